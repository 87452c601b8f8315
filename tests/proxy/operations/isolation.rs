//! Stores are worlds apart, and the health key is in none of them.

use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use xks_harness::binary::program;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body, metadata};
use xks_harness::{Connection, Http, Proxy, Setup, SoftHsm, Store, XksRequest};
use xks_spec::Operation;

use super::{listed_key, refused, request};

/// The same external key id in both stores, each with a key of its own behind it.
async fn start_with_demo_in_both_stores() -> (Proxy, Connection) {
    let token = SoftHsm::with_keys();
    token.generate("nested-demo", &[]);
    let proxy = Proxy::start_on(&Setup::default(), Arc::new(token)).await;
    let connection = proxy.connect(Http::Two).await;
    (proxy, connection)
}

async fn encrypt_in(connection: &mut Connection, store: &Store) -> Value {
    let body = encrypt_body(b"of one store", None, true);
    connection.send(&XksRequest::encrypt(store, "demo", &body)).await.ok()
}

#[tokio::test]
async fn one_id_in_two_stores_is_two_keys() {
    let (_proxy, mut connection) = start_with_demo_in_both_stores().await;
    for (store, other) in [(main_store(), nested_store()), (nested_store(), main_store())] {
        let encrypted = encrypt_in(&mut connection, &store).await;
        let body = decrypt_body(&encrypted, None);
        let decrypted = connection.send(&XksRequest::decrypt(&store, "demo", &body)).await.ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), b"of one store");
        let body = decrypt_body(&encrypted, None);
        let refusal = connection.send(&XksRequest::decrypt(&other, "demo", &body)).await.refusal();
        assert_eq!(refusal, refused(400, "InvalidCiphertextException"), "{}", other.prefix);
    }
}

#[tokio::test]
async fn a_store_does_not_see_the_keys_of_another() {
    let (_proxy, mut connection) = start_with_demo_in_both_stores().await;
    let encrypted = encrypt_in(&mut connection, &main_store()).await;
    // The label of one store's key as the other's id, with and without the rule's prefix.
    for (store, key) in
        [(main_store(), "nested-demo"), (nested_store(), "demo-2"), (nested_store(), "nested-demo")]
    {
        for request in [
            XksRequest::metadata(&store, key),
            XksRequest::encrypt(&store, key, &encrypt_body(b"x", None, false)),
            XksRequest::decrypt(&store, key, &decrypt_body(&encrypted, None)),
        ] {
            let refusal = connection.send(&request).await.refusal();
            assert_eq!(refusal, refused(404, "KeyNotFoundException"), "{}", request.path);
        }
    }
}

#[tokio::test]
async fn the_credentials_of_one_store_open_no_other() {
    let (_proxy, mut connection) = start_with_demo_in_both_stores().await;
    let (main, nested) = (main_store(), nested_store());
    for (store, other) in [(&main, &nested), (&nested, &main)] {
        let intruder = Store { prefix: other.prefix.clone(), signing: store.signing.clone() };
        for request in [
            XksRequest::metadata(&intruder, "demo"),
            XksRequest::encrypt(&intruder, "demo", &encrypt_body(b"x", None, false)),
            XksRequest::health(&intruder),
        ] {
            let refusal = connection.send(&request).await.refusal();
            assert_eq!(refusal, refused(401, "AuthenticationFailedException"), "{}", request.path);
        }
    }
}

/// Every operation on this id of store `main` says that there is no such key.
async fn assert_unreachable(setup: &Setup, token: SoftHsm, key: &str) {
    let proxy = Proxy::start_on(setup, Arc::new(token)).await;
    let mut connection = proxy.connect(Http::Two).await;
    let sealed = json!({
        "ciphertext": "AAAA",
        "initializationVector": "AAAAAAAAAAAAAAAA",
        "authenticationTag": "AAAAAAAAAAAAAAAAAAAAAA==",
        "ciphertextMetadata": "AQAAAAE=",
    });
    for (operation, body) in [
        (Operation::Encrypt, encrypt_body(b"x", None, false)),
        (Operation::Decrypt, decrypt_body(&sealed, None)),
        (Operation::GetKeyMetadata, json!({ "requestMetadata": metadata("CreateKey") })),
    ] {
        let refusal = connection.send(&request(operation, key, &body)).await.refusal();
        assert_eq!(refusal, refused(404, "KeyNotFoundException"), "{operation} {key}");
    }
}

#[tokio::test]
async fn no_rule_reaches_the_health_key() {
    for (prefix, key) in [("xks-", "health"), ("x", "ks-health"), ("xks-healt", "h")] {
        let store = format!("key_rule = {{ label_prefix = \"{prefix}\" }}");
        let setup = Setup { store, keys: String::new(), ..Setup::default() };
        assert_unreachable(&setup, SoftHsm::with_keys(), key).await;
    }
}

#[tokio::test]
async fn the_health_key_is_not_reached_by_its_cka_id() {
    let token = SoftHsm::empty();
    token.generate("xks-health", &["--id", "c0ffee"]);
    let keys = "[[stores.keys]]\nexternal_key_id = \"sneaky\"\ncka_id = \"c0ffee\"\n".to_owned();
    assert_unreachable(&Setup { keys, ..Setup::default() }, token, "sneaky").await;
}

#[tokio::test]
async fn a_key_of_the_same_cka_id_as_the_health_key_is_reached_alone() {
    let token = SoftHsm::with_keys();
    token.generate("by-id", &["--id", "c0ffee"]);
    token.tool(&["destroy", "--label", "xks-health"]);
    token.generate("xks-health", &["--id", "c0ffee", "--usage", "encrypt,decrypt,sign"]);
    let keys = "[[stores.keys]]\nexternal_key_id = \"key\"\ncka_id = \"c0ffee\"\n".to_owned();
    let proxy = Proxy::start_on(&Setup { keys, ..Setup::default() }, Arc::new(token)).await;
    let mut connection = proxy.connect(Http::Two).await;
    let described = connection.send(&XksRequest::metadata(&main_store(), "key")).await.ok();
    assert_eq!(described["keyUsage"], json!(["ENCRYPT", "DECRYPT"]));
}

/// What `check` says of a setup that it must refuse.
fn refusal_of(setup: &Setup) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = setup.write(folder.path(), &SoftHsm::with_keys());
    let output =
        Command::new(program("xks-proxy")).arg("check").arg("--config").arg(config).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn a_configuration_that_lists_the_health_key_is_refused() {
    let named = refusal_of(&Setup { keys: listed_key("xks-health", ""), ..Setup::default() });
    assert!(named.contains("health key"), "{named}");
    let renamed = Setup {
        token: "sessions = 2\nhealth_key_label = \"demo\"".to_owned(),
        keys: listed_key("demo", ""),
        ..Setup::default()
    };
    assert!(refusal_of(&renamed).contains("health key"));
}

#[test]
fn a_configuration_in_which_two_stores_reach_one_key_is_refused() {
    let listed = Setup { keys: listed_key("nested-demo", ""), ..Setup::default() };
    assert!(refusal_of(&listed).contains("reach"));
    let rules = Setup {
        store: "key_rule = { label_prefix = \"nest\" }".to_owned(),
        keys: String::new(),
        ..Setup::default()
    };
    assert!(refusal_of(&rules).contains("reach"));
    let twice = listed_key("demo", "") + "[[stores.keys]]\nexternal_key_id = \"again\"\nlabel = \"demo\"\n";
    assert!(refusal_of(&Setup { keys: twice, ..Setup::default() }).contains("reach"));
}

/// The configuration alone cannot tell that a label here and a CKA_ID there are one key's: `check` asks the token.
#[tokio::test]
async fn one_key_under_a_label_here_and_a_cka_id_there_is_found_by_check() {
    let token = SoftHsm::with_keys();
    token.generate("shared", &["--id", "5ba2ed"]);
    let keys = "[[stores.keys]]\nexternal_key_id = \"shared\"\ncka_id = \"5ba2ed\"\n".to_owned();
    let more = Setup::default().more + "[[stores.keys]]\nexternal_key_id = \"same\"\nlabel = \"shared\"\n";
    let setup = Setup { keys, more, ..Setup::default() };
    let proxy = Proxy::start_on(&setup, Arc::new(token)).await;
    let mut check = Command::new(program("xks-proxy"));
    check.args(["check", "--config", "xks-proxy.toml"]).current_dir(proxy.folder());
    let output = check.envs(proxy.token.environment()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("store nested key same and store main key shared are one key in the token"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1), "{text}");
}
