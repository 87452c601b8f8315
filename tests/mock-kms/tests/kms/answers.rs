//! A proxy that lies: what KMS catches, and what it says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use xks_spec::Operation;

use crate::fake_proxy::{Behaviour, FakeProxy, Lie, forged};
use crate::mock::{Mock, store_members, with, xks_key_members};

const UNINTERPRETABLE: &str = "AWS KMS cannot interpret the response from the external key store proxy. If you see this \
                               error repeatedly, report it to your external key store proxy administrator.";
const WRONG_INNER_LAYER: &str = "The ciphertext that the external key store proxy submitted for decryption, or the \
                                 encryption context, is corrupted, missing, or otherwise invalid.";

async fn world() -> (FakeProxy, Mock, String, String, Value) {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    let encrypted = mock.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })).await;
    let blob = encrypted["CiphertextBlob"].clone();
    (proxy, mock, store, key, blob)
}

fn decoded(answer: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(answer[field].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn lies_about_a_ciphertext_are_caught() {
    let (proxy, mock, _, key, _) = world().await;
    let lies: [(&str, Lie); 12] = [
        ("no integrity value", |answer| answer["ciphertextDataIntegrityValue"] = Value::Null),
        ("wrong integrity value", |answer| {
            answer["ciphertextDataIntegrityValue"] = STANDARD.encode([0; 32]).into();
        }),
        ("another ciphertext", |answer| {
            let mut ciphertext = decoded(answer, "ciphertext");
            ciphertext[0] ^= 1;
            answer["ciphertext"] = STANDARD.encode(ciphertext).into();
        }),
        ("a longer ciphertext", |answer| {
            let longer = [decoded(answer, "ciphertext"), vec![0]].concat();
            forged(answer, "ciphertext", &longer);
        }),
        ("21 bytes of metadata", |answer| forged(answer, "ciphertextMetadata", &[1; 21])),
        ("a 13-byte IV", |answer| forged(answer, "initializationVector", &[1; 13])),
        ("a 12-byte tag", |answer| forged(answer, "authenticationTag", &[1; 12])),
        ("no tag", |answer| answer["authenticationTag"] = Value::Null),
        ("no Base64", |answer| answer["ciphertext"] = "%%%%".into()),
        ("a number", |answer| answer["ciphertext"] = 1.into()),
        ("Base64 without padding", |answer| {
            let text = answer["authenticationTag"].as_str().unwrap().trim_end_matches('=').to_owned();
            answer["authenticationTag"] = text.into();
        }),
        ("nothing", |answer| *answer = json!({})),
    ];
    for (what, lie) in lies {
        proxy.behave_for(Operation::Encrypt, Behaviour::Lie(lie));
        let calls = [
            ("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })),
            ("GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256" })),
        ];
        for (operation, body) in calls {
            let answer = mock.fail(operation, body).await;
            assert_eq!(answer, ("KMSInvalidStateException".into(), UNINTERPRETABLE.into()), "{what}");
        }
    }
    // The forger's tools are good: what is lawful passes.
    let lawful: [Lie; 2] = [
        |answer| forged(answer, "ciphertextMetadata", &[1; 20]),
        |answer| forged(answer, "initializationVector", &[1; 16]),
    ];
    for change in lawful {
        proxy.behave_for(Operation::Encrypt, Behaviour::Lie(change));
        mock.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })).await;
    }
}

#[tokio::test]
async fn lies_about_a_plaintext_are_caught() {
    let (proxy, mock, _, _, blob) = world().await;
    let lies: [(&str, Lie); 5] = [
        (UNINTERPRETABLE, |answer| answer["plaintext"] = Value::Null),
        (UNINTERPRETABLE, |answer| answer["plaintext"] = "%%%%".into()),
        (UNINTERPRETABLE, |answer| {
            let longer = [decoded(answer, "plaintext"), vec![0]].concat();
            answer["plaintext"] = STANDARD.encode(longer).into();
        }),
        (WRONG_INNER_LAYER, |answer| {
            let mut plaintext = decoded(answer, "plaintext");
            plaintext[20] ^= 1;
            answer["plaintext"] = STANDARD.encode(plaintext).into();
        }),
        (WRONG_INNER_LAYER, |answer| {
            let length = decoded(answer, "plaintext").len();
            answer["plaintext"] = STANDARD.encode(vec![0; length]).into();
        }),
    ];
    for (message, lie) in lies {
        proxy.behave_for(Operation::Decrypt, Behaviour::Lie(lie));
        let answer = mock.fail("Decrypt", json!({ "CiphertextBlob": blob })).await;
        assert_eq!(answer, ("KMSInvalidStateException".into(), message.into()));
    }
}

#[tokio::test]
async fn lies_about_a_key_are_caught() {
    let (proxy, mock, store, ..) = world().await;
    let lies: [Lie; 5] = [
        |answer| {
            answer["keyUsage"] = json!(["ENCRYPT", "DECRYPT", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
        },
        |answer| answer["keyUsage"] = "ENCRYPT,DECRYPT".into(),
        |answer| answer["keyStatus"] = "SLEEPING".into(),
        |answer| answer["keySpec"] = Value::Null,
        |answer| *answer = json!([]),
    ];
    for lie in lies {
        proxy.behave_for(Operation::GetKeyMetadata, Behaviour::Lie(lie));
        let answer = mock.fail("CreateKey", xks_key_members(&store, "new")).await;
        assert_eq!(answer, ("CustomKeyStoreInvalidStateException".into(), UNINTERPRETABLE.into()));
    }
}

#[tokio::test]
async fn lies_about_health_are_caught() {
    let (proxy, mock, ..) = world().await;
    let lies: [Lie; 7] = [
        |answer| answer["xksProxyFleetSize"] = 0.into(),
        |answer| answer["xksProxyFleetSize"] = "1".into(),
        |answer| answer["xksProxyVendor"] = Value::Null,
        |answer| answer["ekmFleetDetails"] = json!([]),
        |answer| {
            let entry = answer["ekmFleetDetails"][0].clone();
            answer["ekmFleetDetails"] = vec![entry; 11].into();
        },
        |answer| answer["ekmFleetDetails"][0]["healthStatus"] = "WELL".into(),
        |answer| answer["ekmFleetDetails"][0]["id"] = Value::Null,
    ];
    for lie in lies {
        proxy.behave(Behaviour::Lie(lie));
        let members = with(store_members("new"), &json!({ "XksProxyUriPath": "/new/kms/xks/v1" }));
        let answer = mock.fail("CreateCustomKeyStore", members).await;
        assert_eq!(answer, ("XksProxyInvalidResponseException".into(), UNINTERPRETABLE.into()));
    }
}
