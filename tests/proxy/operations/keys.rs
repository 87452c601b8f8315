//! What keys are, may do, and are switched to.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use xks_harness::proxy::nested_store;
use xks_harness::request::{decrypt_body, encrypt_body, metadata};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, SoftHsm, XksRequest};
use xks_spec::Operation;

use super::{decrypt, encrypt, listed_key, refused, request};

async fn key_metadata(connection: &mut Connection, key: &str) -> Answer {
    let body = json!({ "requestMetadata": metadata("CreateKey") });
    connection.send(&request(Operation::GetKeyMetadata, key, &body)).await
}

#[tokio::test]
async fn metadata_says_what_a_key_truly_is() {
    let token = SoftHsm::with_keys();
    token.generate("aes-192", &["--bits", "192"]);
    token.generate("every-usage", &["--usage", "encrypt,decrypt,sign,verify,wrap,unwrap,derive"]);
    token.generate("odd-usages", &["--usage", "sign,wrap"]);
    let more = ["aes-192", "every-usage", "odd-usages"].map(|label| listed_key(label, ""));
    let setup = Setup { keys: Setup::default().keys + &more.concat(), ..Setup::default() };
    let proxy = Proxy::start_on(&setup, Arc::new(token)).await;
    let mut connection = proxy.connect(Http::Two).await;
    let every_usage = ["ENCRYPT", "DECRYPT", "SIGN", "VERIFY", "WRAP", "UNWRAP", "DERIVE"];
    let cases: [(&str, &str, &[&str]); 8] = [
        ("demo", "AES_256", &["ENCRYPT", "DECRYPT"]),
        ("encrypt-only", "AES_256", &["ENCRYPT"]),
        ("decrypt-only", "AES_256", &["DECRYPT"]),
        ("no-usage", "AES_256", &[]),
        ("aes-128", "AES_128", &["ENCRYPT", "DECRYPT"]),
        ("aes-192", "AES_192", &["ENCRYPT", "DECRYPT"]),
        ("every-usage", "AES_256", &every_usage),
        ("odd-usages", "AES_256", &["SIGN", "WRAP"]),
    ];
    for (key, spec, usage) in cases {
        let expected = json!({ "keySpec": spec, "keyUsage": usage, "keyStatus": "ENABLED" });
        assert_eq!(key_metadata(&mut connection, key).await.ok(), expected, "{key}");
    }
}

fn object_files(token: &SoftHsm) -> Vec<PathBuf> {
    let files = fs::read_dir(token.objects()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "object")).collect()
}

/// Where in a SoftHSM2 object file CKA_KEY_TYPE has its value: the attribute's number and the mark of a number come
/// before it, eight bytes each.
fn key_type_offset(object: &[u8]) -> Option<usize> {
    let attribute = [0x0100_u64.to_be_bytes(), 2_u64.to_be_bytes(), 0x1f_u64.to_be_bytes()].concat();
    let start = object.windows(attribute.len()).position(|window| window == attribute)?;
    Some(start + attribute.len() - 8)
}

#[tokio::test]
async fn a_key_that_is_not_aes_is_described_and_never_used() {
    const CKK_GENERIC_SECRET: u64 = 0x10;
    let token = SoftHsm::with_keys();
    let before = object_files(&token);
    token.generate("not-aes", &[]);
    let path = object_files(&token).into_iter().find(|path| !before.contains(path)).unwrap();
    let mut object = fs::read(&path).unwrap();
    let offset = key_type_offset(&object).unwrap();
    object[offset..offset + 8].copy_from_slice(&CKK_GENERIC_SECRET.to_be_bytes());
    fs::write(path, object).unwrap();

    let setup = Setup { keys: Setup::default().keys + &listed_key("not-aes", ""), ..Setup::default() };
    let proxy = Proxy::start_on(&setup, Arc::new(token)).await;
    let metrics = proxy.admin("/metrics").await.1;
    let failures: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("xks_hsm_failures_total{") && !line.ends_with(" 0"))
        .collect();
    assert!(failures.is_empty(), "the key was asked to prove itself: {failures:?}");
    let mut connection = proxy.connect(Http::Two).await;
    let described = key_metadata(&mut connection, "not-aes").await.ok();
    assert_eq!(
        (&described["keySpec"], &described["keyStatus"]),
        (&json!("GENERIC_SECRET"), &json!("ENABLED"))
    );
    let encrypted = encrypt(&mut connection, "demo", b"x", None).await;
    assert_usage_error(&proxy, &mut connection, "not-aes", &encrypt_body(b"x", None, false)).await;
    assert_usage_error(&proxy, &mut connection, "not-aes", &decrypt_body(&encrypted, None)).await;
}

/// Encrypts or decrypts, whichever the body is for, and wants InvalidKeyUsageException without a call to the token.
async fn assert_usage_error(proxy: &Proxy, connection: &mut Connection, key: &str, body: &Value) {
    let operation = if body.get("plaintext").is_some() { Operation::Encrypt } else { Operation::Decrypt };
    let refusal = connection.send(&request(operation, key, body)).await.refusal();
    assert_eq!(refusal, refused(400, "InvalidKeyUsageException"), "{operation} {key}");
    let line = proxy.request_log(body["requestMetadata"]["kmsRequestId"].as_str().unwrap());
    assert_eq!(line["hsm_calls"], 0, "the token was asked to do it: {line}");
}

#[tokio::test]
async fn a_use_that_the_key_lacks_is_refused_before_the_token_is_asked() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let encrypted = encrypt(&mut connection, "demo", b"secret", None).await;
    for key in ["decrypt-only", "no-usage", "aes-128"] {
        for wants_integrity_value in [false, true] {
            let body = encrypt_body(b"secret", None, wants_integrity_value);
            assert_usage_error(&proxy, &mut connection, key, &body).await;
        }
    }
    for key in ["encrypt-only", "no-usage", "aes-128"] {
        assert_usage_error(&proxy, &mut connection, key, &decrypt_body(&encrypted, None)).await;
    }
    let with_value = encrypt_body(b"secret", None, true);
    assert_usage_error(&proxy, &mut connection, "encrypt-only", &with_value).await;
}

#[tokio::test]
async fn keys_for_one_direction_serve_that_direction() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let encrypted = encrypt(&mut connection, "encrypt-only", b"secret", None).await;
    // It gets as far as the token, which finds that the ciphertext is another key's.
    let refusal = decrypt(&mut connection, "decrypt-only", &encrypted, None).await.refusal();
    assert_eq!(refusal, refused(400, "InvalidCiphertextException"));
}

#[tokio::test]
async fn keys_that_are_not_there_are_not_found() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::One).await;
    let encrypted = encrypt(&mut connection, "demo", b"secret", None).await;
    // The first is listed, but the token has no such key; the others differ from a listed one in case or by a letter.
    for key in ["absent", "unlisted", "Demo", "demo-", "emo", ".", ".."] {
        for (operation, body) in [
            (Operation::Encrypt, encrypt_body(b"secret", None, false)),
            (Operation::Decrypt, decrypt_body(&encrypted, None)),
            (Operation::GetKeyMetadata, json!({ "requestMetadata": metadata("CreateKey") })),
        ] {
            let refusal = connection.send(&request(operation, key, &body)).await.refusal();
            assert_eq!(refusal, refused(404, "KeyNotFoundException"), "{operation} {key}");
        }
    }
}

#[tokio::test]
async fn a_disabled_key_says_so_and_does_nothing_while_others_serve() {
    let keys = listed_key("demo", "enabled = false") + &listed_key("demo-2", "enabled = true");
    let proxy = Proxy::start(&Setup { keys, ..Setup::default() }).await;
    let mut connection = proxy.connect(Http::Two).await;
    let described = key_metadata(&mut connection, "demo").await.ok();
    assert_eq!(described["keyStatus"], "DISABLED");
    assert_eq!(
        (&described["keySpec"], &described["keyUsage"]),
        (&json!("AES_256"), &json!(["ENCRYPT", "DECRYPT"]))
    );
    assert_eq!(key_metadata(&mut connection, "demo-2").await.ok()["keyStatus"], "ENABLED");
    let encrypted = encrypt(&mut connection, "demo-2", b"secret", None).await;
    for body in [encrypt_body(b"secret", None, false), encrypt_body(b"secret", None, true)] {
        let refusal = connection.send(&request(Operation::Encrypt, "demo", &body)).await.refusal();
        assert_eq!(refusal, refused(400, "InvalidStateException"));
    }
    let refusal = decrypt(&mut connection, "demo", &encrypted, None).await.refusal();
    assert_eq!(refusal, refused(400, "InvalidStateException"));
    decrypt(&mut connection, "demo-2", &encrypted, None).await.ok();
}

#[tokio::test]
async fn a_disabled_store_serves_nothing_but_metadata_while_others_serve() {
    let proxy = Proxy::start(&Setup { store: "enabled = false".to_owned(), ..Setup::default() }).await;
    proxy.token.generate("nested-demo", &[]);
    let mut connection = proxy.connect(Http::Two).await;
    let nested = nested_store();
    let body = encrypt_body(b"secret", None, true);
    let encrypted = connection.send(&XksRequest::encrypt(&nested, "demo", &body)).await.ok();
    let health = json!({ "requestMetadata": metadata("KmsHealthCheck") });
    for (operation, body) in [
        (Operation::Encrypt, encrypt_body(b"secret", None, false)),
        (Operation::Decrypt, decrypt_body(&encrypted, None)),
        (Operation::GetHealthStatus, health),
    ] {
        let refusal = connection.send(&request(operation, "demo", &body)).await.refusal();
        assert_eq!(refusal, refused(400, "InvalidStateException"), "{operation}");
    }
    let described = key_metadata(&mut connection, "demo").await.ok();
    assert_eq!(
        described,
        json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "DISABLED" })
    );
    let health = connection.send(&XksRequest::health(&nested)).await.ok();
    assert_eq!(health["ekmFleetDetails"][0]["healthStatus"], "ACTIVE");
}
