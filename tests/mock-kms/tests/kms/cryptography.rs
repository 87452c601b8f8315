//! Encrypt, Decrypt, ReEncrypt, data keys: round trips, double encryption, and everything that must not decrypt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use xks_harness::Proxy;
use xks_spec::Operation;

use crate::fake_proxy::FakeProxy;
use crate::mock::{Mock, real, with};

const REFUSED_BY_PROXY: &str = "The external key store proxy rejected the request because the specified ciphertext or \
                                encryption context is corrupted, missing, or otherwise invalid.";

struct World {
    _proxy: Proxy,
    mock: Mock,
    demo: String,
    demo_2: String,
    plain: String,
}

impl World {
    async fn new() -> Self {
        let (proxy, mock) = real().await;
        let store = mock.connected_store("one").await;
        let demo = mock.create_xks_key(&store, "demo").await;
        let demo_2 = mock.create_xks_key(&store, "demo-2").await;
        let plain = mock.create_plain_key().await;
        Self { _proxy: proxy, mock, demo, demo_2, plain }
    }

    async fn encrypt(&self, key: &str, plaintext: &[u8], context: &Value) -> Value {
        let body = json!({
            "KeyId": key,
            "Plaintext": STANDARD.encode(plaintext),
            "EncryptionContext": context,
        });
        self.mock.call("Encrypt", body).await["CiphertextBlob"].clone()
    }

    async fn decrypt(&self, blob: &Value, context: &Value) -> Vec<u8> {
        let body = json!({ "CiphertextBlob": blob, "EncryptionContext": context });
        bytes(&self.mock.call("Decrypt", body).await["Plaintext"])
    }
}

fn bytes(base64: &Value) -> Vec<u8> {
    STANDARD.decode(base64.as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_encrypted_decrypts() {
    let world = World::new().await;
    let contexts = [json!({}), json!({ "project": "nile", "Ünï": "çødé" })];
    for key in [&world.demo, &world.plain] {
        for length in [1, 15, 16, 17, 4095, 4096] {
            let plaintext: Vec<u8> = (0..=250).cycle().take(length).collect();
            for context in &contexts {
                let blob = world.encrypt(key, &plaintext, context).await;
                assert!(bytes(&blob).len() <= 6144);
                assert_eq!(world.decrypt(&blob, context).await, plaintext);
            }
        }
    }
    let again = world.encrypt(&world.demo, b"same", &contexts[0]).await;
    assert_ne!(again, world.encrypt(&world.demo, b"same", &contexts[0]).await);
}

#[tokio::test]
async fn an_encryption_context_has_no_order_but_case() {
    let world = World::new().await;
    let longest = json!({ "k": "v".repeat(8184) });
    let blob = world.encrypt(&world.demo, b"text", &longest).await;
    assert_eq!(world.decrypt(&blob, &longest).await, b"text");
    let too_long = json!({ "KeyId": world.demo, "Plaintext": "aGVsbG8=", "EncryptionContext": { "k": "v".repeat(8185) } });
    assert_eq!(world.mock.fail("Encrypt", too_long).await.0, "ValidationException");
    for (key, exception, message) in [
        (&world.demo, "KMSInvalidStateException", REFUSED_BY_PROXY),
        (&world.plain, "InvalidCiphertextException", ""),
    ] {
        let body =
            format!(r#"{{"KeyId":"{key}","Plaintext":"aGVsbG8=","EncryptionContext":{{"b":"2","a":"1"}}}}"#);
        let target =
            [("x-amz-target", "TrentService.Encrypt"), ("authorization", crate::mock::AUTHORIZATION)];
        let blob = world.mock.post("/", &target, body).await.json()["CiphertextBlob"].clone();
        assert_eq!(world.decrypt(&blob, &json!({ "a": "1", "b": "2" })).await, b"hello");
        for wrong in [json!({}), json!({ "A": "1", "b": "2" }), json!({ "a": "1", "b": "2", "c": "3" })] {
            let body = json!({ "CiphertextBlob": blob, "EncryptionContext": wrong });
            let answer = world.mock.fail("Decrypt", body).await;
            assert_eq!(answer, (exception.to_owned(), message.to_owned()), "{wrong}");
        }
    }
}

#[tokio::test]
async fn the_proxy_sees_ciphertext_alone_and_who_asks_for_what() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    proxy.take_seen();
    let plaintext = [b'p'; 4096];
    let context = json!({ "project": "nile" });
    let body = json!({ "KeyId": key, "Plaintext": STANDARD.encode(plaintext), "EncryptionContext": context });
    let answer = mock.send("Encrypt", &body).await;
    let request_id = answer.headers["x-amzn-requestid"].to_str().unwrap().to_owned();
    let seen = proxy.take_seen();
    let [(Operation::Encrypt, request)] = &seen[..] else { panic!("{seen:?}") };
    let inner = bytes(&request["plaintext"]);
    assert!((4097..=4300).contains(&inner.len()), "{}", inner.len());
    assert!(!inner.windows(8).any(|window| window == [b'p'; 8]));
    assert_eq!(bytes(&request["additionalAuthenticatedData"]), b"\x01\x00\x07project\x00\x04nile");
    assert_eq!(request["ciphertextDataIntegrityValueAlgorithm"], "SHA_256");
    let metadata = json!({
        "awsPrincipalArn": "arn:aws:iam::111122223333:user/AKIDTEST",
        "kmsKeyArn": key,
        "kmsOperation": "Encrypt",
        "kmsRequestId": request_id,
    });
    assert_eq!(request["requestMetadata"], metadata);
    let blob = &answer.json()["CiphertextBlob"];
    mock.call("Decrypt", json!({ "CiphertextBlob": blob, "EncryptionContext": context })).await;
    let data_key = json!({ "KeyId": key, "KeySpec": "AES_256" });
    mock.call("GenerateDataKey", data_key.clone()).await;
    mock.call("GenerateDataKeyWithoutPlaintext", data_key).await;
    let re_encrypt =
        json!({ "CiphertextBlob": blob, "SourceEncryptionContext": context, "DestinationKeyId": key });
    let answer = mock.send("ReEncrypt", &re_encrypt).await;
    assert_eq!(answer.status, 200);
    mock.call("DescribeKey", json!({ "KeyId": key })).await;
    let seen = proxy.take_seen();
    let made: Vec<_> = seen
        .iter()
        .map(|(operation, body)| (*operation, body["requestMetadata"]["kmsOperation"].as_str().unwrap()))
        .collect();
    assert_eq!(
        made,
        [
            (Operation::Decrypt, "Decrypt"),
            (Operation::Encrypt, "GenerateDataKey"),
            (Operation::Encrypt, "GenerateDataKeyWithoutPlaintext"),
            (Operation::Decrypt, "ReEncrypt"),
            (Operation::Encrypt, "ReEncrypt"),
        ]
    );
    // Both halves of ReEncrypt are one request to KMS.
    for (_, body) in &seen[3..] {
        assert_eq!(
            body["requestMetadata"]["kmsRequestId"],
            answer.headers["x-amzn-requestid"].to_str().unwrap()
        );
    }
}

#[tokio::test]
async fn re_encryption_mixes_keys_of_both_kinds() {
    let world = World::new().await;
    let (old, new) = (json!({ "a": "1" }), json!({ "b": "2" }));
    for source in [&world.demo, &world.plain] {
        let blob = world.encrypt(source, b"text", &old).await;
        for destination in [&world.demo, &world.demo_2, &world.plain] {
            let body = json!({
                "CiphertextBlob": blob,
                "SourceKeyId": source,
                "SourceEncryptionContext": old,
                "DestinationKeyId": destination,
                "DestinationEncryptionContext": new,
            });
            let answer = world.mock.call("ReEncrypt", body).await;
            assert_eq!(answer["SourceKeyId"], source.as_str());
            assert_eq!(answer["KeyId"], destination.as_str());
            assert_eq!(answer.get("DestinationKeyMaterialId").is_some(), *destination == world.plain);
            assert_eq!(world.decrypt(&answer["CiphertextBlob"], &new).await, b"text");
        }
    }
    // The destination is judged before the source is used.
    let blob = world.encrypt(&world.demo, b"text", &old).await;
    world.mock.call("DisableKey", json!({ "KeyId": world.demo_2 })).await;
    let body = json!({ "CiphertextBlob": blob, "DestinationKeyId": world.demo_2 });
    assert_eq!(world.mock.fail("ReEncrypt", body).await.0, "DisabledException");
}

#[tokio::test]
async fn data_keys_come_in_the_wanted_length() {
    let world = World::new().await;
    for key in [&world.demo, &world.plain] {
        for (wanted, length) in [
            (json!({ "KeySpec": "AES_128" }), 16),
            (json!({ "KeySpec": "AES_256" }), 32),
            (json!({ "NumberOfBytes": 1 }), 1),
            (json!({ "NumberOfBytes": 1024 }), 1024),
        ] {
            let body = with(json!({ "KeyId": key }), &wanted);
            let answer = world.mock.call("GenerateDataKey", body.clone()).await;
            let data_key = bytes(&answer["Plaintext"]);
            assert_eq!(data_key.len(), length);
            assert_eq!(world.decrypt(&answer["CiphertextBlob"], &json!({})).await, data_key);
            let answer = world.mock.call("GenerateDataKeyWithoutPlaintext", body).await;
            assert!(answer.get("Plaintext").is_none());
            assert_eq!(world.decrypt(&answer["CiphertextBlob"], &json!({})).await.len(), length);
        }
    }
    for wrong in [json!({}), json!({ "KeySpec": "AES_256", "NumberOfBytes": 32 })] {
        let answer = world.mock.fail("GenerateDataKey", with(json!({ "KeyId": world.demo }), &wrong)).await;
        let message = "Please specify either number of bytes or key spec.".to_owned();
        assert_eq!(answer, ("ValidationException".to_owned(), message));
    }
    let random = world.mock.call("GenerateRandom", json!({ "NumberOfBytes": 1024 })).await;
    assert_eq!(bytes(&random["Plaintext"]).len(), 1024);
}

#[tokio::test]
async fn a_dry_run_uses_nothing() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    let blob = mock.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })).await["CiphertextBlob"]
        .clone();
    proxy.take_seen();
    let ignore = json!(["IGNORE_CIPHERTEXT"]);
    let calls = [
        ("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=", "DryRun": true })),
        ("Decrypt", json!({ "CiphertextBlob": blob, "DryRun": true })),
        ("Decrypt", json!({ "KeyId": key, "DryRun": true, "DryRunModifiers": ignore })),
        ("ReEncrypt", json!({ "CiphertextBlob": blob, "DestinationKeyId": key, "DryRun": true })),
        ("GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256", "DryRun": true })),
        ("GenerateDataKeyWithoutPlaintext", json!({ "KeyId": key, "KeySpec": "AES_256", "DryRun": true })),
    ];
    for (operation, body) in &calls {
        assert_eq!(mock.fail(operation, body.clone()).await.0, "DryRunOperationException", "{operation}");
    }
    mock.call("DisableKey", json!({ "KeyId": key })).await;
    for (operation, body) in calls {
        assert_eq!(mock.fail(operation, body).await.0, "DisabledException", "{operation}");
    }
    assert!(proxy.take_seen().is_empty());
}

#[tokio::test]
async fn nothing_but_the_whole_blob_decrypts() {
    let world = World::new().await;
    for key in [&world.demo, &world.plain] {
        let blob = bytes(&world.encrypt(key, b"a text of some length", &json!({})).await);
        for position in 0..blob.len() {
            let mut changed = blob.clone();
            changed[position] ^= 0x10;
            let body = json!({ "CiphertextBlob": STANDARD.encode(&changed) });
            let (exception, message) = world.mock.fail("Decrypt", body).await;
            let expected = match position {
                2..18 => ["AccessDeniedException"; 2],
                _ => ["InvalidCiphertextException", "KMSInvalidStateException"],
            };
            assert!(expected.contains(&exception.as_str()), "byte {position}: {exception} {message}");
        }
        for end in [1, 17, 18, 19, blob.len() - 1] {
            let body = json!({ "CiphertextBlob": STANDARD.encode(&blob[..end]) });
            world.mock.fail("Decrypt", body).await;
        }
    }
}

#[tokio::test]
async fn a_blob_is_of_its_key_alone() {
    let world = World::new().await;
    let blob = world.encrypt(&world.demo, b"text", &json!({})).await;
    let decrypt = |key: &str| json!({ "CiphertextBlob": blob, "KeyId": key });
    assert_eq!(bytes(&world.mock.call("Decrypt", decrypt(&world.demo)).await["Plaintext"]), b"text");
    let wrong = (
        "IncorrectKeyException".to_owned(),
        "The key ID in the request does not identify a CMK that can perform this operation.".to_owned(),
    );
    assert_eq!(world.mock.fail("Decrypt", decrypt(&world.demo_2)).await, wrong);
    assert_eq!(world.mock.fail("Decrypt", decrypt("alias/none")).await.0, "NotFoundException");
    let wrong_algorithm = with(decrypt(&world.demo), &json!({ "EncryptionAlgorithm": "RSAES_OAEP_SHA_256" }));
    assert_eq!(world.mock.fail("Decrypt", wrong_algorithm).await.0, "InvalidKeyUsageException");
    // The same external key under another KMS key: the inner layer is another.
    let mut transplanted = bytes(&blob);
    let other = bytes(&world.encrypt(&world.demo_2, b"text", &json!({})).await);
    transplanted[..18].copy_from_slice(&other[..18]);
    let (exception, message) =
        world.mock.fail("Decrypt", json!({ "CiphertextBlob": STANDARD.encode(transplanted) })).await;
    assert_eq!((exception.as_str(), message.as_str()), ("KMSInvalidStateException", REFUSED_BY_PROXY));
}
