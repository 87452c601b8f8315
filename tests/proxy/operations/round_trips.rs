//! What goes in comes out again, in answers of the documented form.

use std::collections::HashSet;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xks_harness::proxy::main_store;
use xks_harness::request::{base64, bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Http, Proxy, Setup, XksRequest};
use xks_spec::Operation;

use super::{Fixture, decrypt, encrypt, refused, request};

/// Bytes that no two offsets or lengths have alike.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index * 31 % 251).unwrap()).collect()
}

#[tokio::test]
async fn what_was_encrypted_decrypts_over_http1_and_http2() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        for plaintext_bytes in [1, 15, 16, 17, 32, 4300] {
            for aad in [None, Some(0), Some(1), Some(8192)] {
                let (plaintext, aad) = (pattern(plaintext_bytes), aad.map(pattern));
                for wants_integrity_value in [false, true] {
                    let body = encrypt_body(&plaintext, aad.as_deref(), wants_integrity_value);
                    let encrypted = connection.send(&request(Operation::Encrypt, "demo", &body)).await.ok();
                    assert_eq!(bytes_of(&encrypted["ciphertext"]).len(), plaintext.len());
                    assert_eq!(bytes_of(&encrypted["initializationVector"]).len(), 12);
                    assert_eq!(bytes_of(&encrypted["authenticationTag"]).len(), 16);
                    assert_eq!(bytes_of(&encrypted["ciphertextMetadata"]), [1, 0, 0, 0, 1]);
                    let decrypted = decrypt(&mut connection, "demo", &encrypted, aad.as_deref()).await.ok();
                    assert_eq!(bytes_of(&decrypted["plaintext"]), plaintext);
                }
            }
        }
    }
}

#[tokio::test]
async fn answers_hold_the_documented_fields_and_no_others() {
    let mut fixture = Fixture::start().await;
    let without_value = encrypt_body(b"x", None, false);
    let encrypted = ["authenticationTag", "ciphertext", "ciphertextMetadata", "initializationVector"];
    let mut with_value = encrypted.to_vec();
    with_value.insert(2, "ciphertextDataIntegrityValue");
    let health =
        ["ekmFleetDetails", "ekmVendor", "xksProxyFleetSize", "xksProxyModel", "xksProxyVendor"].to_vec();
    let cases = [
        (Operation::Encrypt, without_value, encrypted.to_vec()),
        (Operation::Encrypt, fixture.good_body(Operation::Encrypt), with_value),
        (Operation::Decrypt, fixture.good_body(Operation::Decrypt), vec!["plaintext"]),
        (
            Operation::GetKeyMetadata,
            fixture.good_body(Operation::GetKeyMetadata),
            vec!["keySpec", "keyStatus", "keyUsage"],
        ),
        (Operation::GetHealthStatus, fixture.good_body(Operation::GetHealthStatus), health),
    ];
    for (operation, body, expected) in cases {
        let answer = fixture.send(operation, &body).await;
        assert_eq!(answer.headers["content-type"], "application/json", "{operation}");
        let answer = answer.ok();
        let mut fields: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, expected, "{operation}");
    }
}

#[tokio::test]
async fn health_describes_proxy_and_token() {
    let mut fixture = Fixture::start().await;
    let body = fixture.good_body(Operation::GetHealthStatus);
    let health = fixture.send(Operation::GetHealthStatus, &body).await.ok();
    assert_eq!(health["xksProxyFleetSize"], 1);
    for field in ["xksProxyVendor", "xksProxyModel", "ekmVendor"] {
        assert!(!health[field].as_str().unwrap().is_empty(), "{field}");
    }
    let [token] = health["ekmFleetDetails"].as_array().unwrap().as_slice() else { panic!("{health}") };
    let mut fields: Vec<_> = token.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["healthStatus", "id", "model"]);
    assert_eq!(token["healthStatus"], "ACTIVE");
}

#[tokio::test]
async fn an_absent_aad_and_an_empty_one_are_the_same() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    for (of_encrypt, of_decrypt) in [(None, Some(&b""[..])), (Some(&b""[..]), None)] {
        let encrypted = encrypt(&mut connection, "demo", b"secret", of_encrypt).await;
        let decrypted = decrypt(&mut connection, "demo", &encrypted, of_decrypt).await.ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), b"secret");
    }
}

#[tokio::test]
async fn the_integrity_value_is_the_hash_of_the_decoded_fields_in_order() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::One).await;
    for aad in [None, Some(&b""[..]), Some(b"project=nile"), Some(&[0; 8192])] {
        let body = encrypt_body(&pattern(100), aad, true);
        let encrypted = connection.send(&request(Operation::Encrypt, "demo", &body)).await.ok();
        let mut hash = Sha256::new();
        hash.update(aad.unwrap_or_default());
        for field in ["ciphertextMetadata", "initializationVector", "ciphertext", "authenticationTag"] {
            hash.update(bytes_of(&encrypted[field]));
        }
        assert_eq!(encrypted["ciphertextDataIntegrityValue"], base64(&hash.finalize()));
        let decrypted = decrypt(&mut connection, "demo", &encrypted, aad).await.ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), pattern(100));
    }
}

/// Encrypts and decrypts values of these lengths and returns what the two answer.
async fn answers_to_sizes(setup: &Setup, plaintext_bytes: usize, aad_bytes: usize) -> [(u16, String); 2] {
    let proxy = Proxy::start(setup).await;
    let (plaintext, aad) = (pattern(plaintext_bytes), pattern(aad_bytes));
    let mut of_last = None;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let body = encrypt_body(&plaintext, Some(&aad), true);
        let encrypted = connection.send(&request(Operation::Encrypt, "demo", &body)).await;
        let is_taken = encrypted.status == 200;
        let fields = if is_taken { encrypted.json() } else { sealed(&plaintext) };
        let decrypted = decrypt(&mut connection, "demo", &fields, Some(&aad)).await;
        if is_taken {
            assert_eq!(bytes_of(&decrypted.ok()["plaintext"]), plaintext);
        }
        let both = [encrypted, decrypted]
            .map(|answer| if answer.status == 200 { refused(200, "none") } else { answer.refusal() });
        assert!(of_last.is_none_or(|last| last == both), "HTTP/1.1 and HTTP/2 differ");
        of_last = Some(both);
    }
    of_last.unwrap()
}

/// Fields of a ciphertext that nobody made.
fn sealed(ciphertext: &[u8]) -> Value {
    json!({
        "ciphertext": base64(ciphertext),
        "initializationVector": base64(&[1; 12]),
        "authenticationTag": base64(&[2; 16]),
        "ciphertextMetadata": base64(&[1, 0, 0, 0, 1]),
    })
}

#[tokio::test]
async fn one_byte_more_than_the_limit_is_unsupported() {
    let setup = Setup::default();
    let unsupported = refused(501, "UnsupportedOperationException");
    for (plaintext_bytes, aad_bytes) in [(4301, 0), (1, 8193), (4301, 8193)] {
        let answers = answers_to_sizes(&setup, plaintext_bytes, aad_bytes).await;
        assert_eq!(answers, [unsupported.clone(), unsupported.clone()], "{plaintext_bytes} {aad_bytes}");
    }
}

#[tokio::test]
async fn limits_can_be_raised_to_65536_of_plaintext_and_65535_of_aad() {
    let limits = "max_plaintext_bytes = 65536\nmax_aad_bytes = 65535".to_owned();
    let setup = Setup { limits, ..Setup::default() };
    let taken = refused(200, "none");
    let unsupported = refused(501, "UnsupportedOperationException");
    assert_eq!(answers_to_sizes(&setup, 65_536, 65_535).await, [taken.clone(), taken]);
    for (plaintext_bytes, aad_bytes) in [(65_537, 65_535), (65_536, 65_536)] {
        let answers = answers_to_sizes(&setup, plaintext_bytes, aad_bytes).await;
        assert_eq!(answers, [unsupported.clone(), unsupported.clone()], "{plaintext_bytes} {aad_bytes}");
    }
}

/// The longest values, each character of their Base64 escaped where JSON signers may do so, and the longest metadata
/// that KMS may send: the body cap leaves room.
#[tokio::test]
async fn the_longest_valid_request_fits_under_the_body_cap() {
    let mut fixture = Fixture::start().await;
    let mut body = encrypt_body(&[0xff; 4300], Some(&[0xff; 8192]), true);
    for field in ["awsPrincipalArn", "kmsKeyArn", "kmsViaService", "awsSourceVpc", "awsSourceVpce"] {
        body["requestMetadata"][field] = json!("x".repeat(2048));
    }
    let escaped = body.to_string().replace('/', "\\/");
    assert!(escaped.len() > body.to_string().len() + 16_000, "0xff is all slashes in Base64");
    let encrypted = fixture.send_bytes(Operation::Encrypt, escaped.into_bytes()).await.ok();
    let decrypted = decrypt(&mut fixture.connection, "demo", &encrypted, Some(&[0xff; 8192])).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), [0xff; 4300]);
}

#[tokio::test]
async fn the_ivs_of_two_thousand_encryptions_all_differ() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut tasks = Vec::new();
    for http in [Http::One, Http::Two, Http::One, Http::Two] {
        let mut connection = proxy.connect(http).await;
        tasks.push(tokio::spawn(async move {
            let mut ivs = Vec::new();
            for _ in 0..500 {
                let encrypted = encrypt(&mut connection, "demo", b"x", None).await;
                ivs.push(bytes_of(&encrypted["initializationVector"]));
            }
            ivs
        }));
    }
    let mut ivs = HashSet::new();
    for task in tasks {
        ivs.extend(task.await.unwrap());
    }
    assert_eq!(ivs.len(), 2000);
}

#[tokio::test]
async fn decrypt_takes_what_kms_kept_and_nothing_else_matters() {
    // KMS hands back ciphertext, IV, tag and metadata, and calls from wherever: everything else may differ.
    let proxy = Proxy::start(&Setup::default()).await;
    let store = main_store();
    let encrypted = encrypt(&mut proxy.connect(Http::One).await, "demo", b"kept", Some(b"context")).await;
    let mut body = decrypt_body(&encrypted, Some(b"context"));
    body["requestMetadata"] = json!({
        "awsPrincipalArn": "AWS Internal",
        "kmsKeyArn": "arn:aws:kms:eu-central-1:210987654321:key/other",
        "kmsOperation": "ReEncrypt",
        "kmsRequestId": "another",
    });
    let decrypted =
        proxy.connect(Http::Two).await.send(&XksRequest::decrypt(&store, "demo", &body)).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), b"kept");
}
