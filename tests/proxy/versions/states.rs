//! What a version in each state does.

use std::fmt::Write;

use aes_gcm::aead::consts::U12;
use serde_json::{Value, json};
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, SoftHsm, Store, XksRequest};

use crate::oracle::{Key, answer_of, frame, import, seal};

const AAD: &[u8] = b"project=nile";
const SECRET: &[u8] = b"of one version";

/// The value of version `number`'s key.
const fn key_of(number: u8) -> Key {
    [number; 32]
}

/// What Encrypt answered when version `number` was primary.
fn made_under(number: u8) -> Value {
    let metadata = [1, 0, 0, 0, number];
    let iv = [9; 12];
    answer_of(&iv, &seal::<U12>(&key_of(number), &iv, &frame(AAD, &metadata), SECRET), &metadata)
}

/// The entry of a key `vault` whose version N is the token's key `vault@N`.
fn vault(states: &[(u8, &str)]) -> String {
    let mut entry = "[[stores.keys]]\nexternal_key_id = \"vault\"\n".to_owned();
    for (number, state) in states {
        let lines = format!("number = {number}\nlabel = \"vault@{number}\"\nstate = \"{state}\"\n");
        write!(entry, "[[stores.keys.versions]]\n{lines}").unwrap();
    }
    entry
}

/// A token whose key `PREFIXvault@N` is version N's, for each number given.
fn token_with(prefix: &str, numbers: &[u8]) -> SoftHsm {
    let token = SoftHsm::with_keys();
    for number in numbers {
        import(&token, &format!("{prefix}vault@{number}"), &key_of(*number));
    }
    token
}

struct Vault {
    proxy: Proxy,
    connection: Connection,
    store: Store,
}

impl Vault {
    async fn start(keys: String, token: SoftHsm) -> Self {
        let proxy = Proxy::start_on(&Setup { keys, ..Setup::default() }, token.into()).await;
        let connection = proxy.connect(Http::Two).await;
        Self { proxy, connection, store: main_store() }
    }

    async fn decrypt(&mut self, encrypted: &Value) -> Answer {
        let body = decrypt_body(encrypted, Some(AAD));
        self.connection.send(&XksRequest::decrypt(&self.store, "vault", &body)).await
    }

    async fn encrypt(&mut self) -> Answer {
        let body = encrypt_body(SECRET, Some(AAD), true);
        self.connection.send(&XksRequest::encrypt(&self.store, "vault", &body)).await
    }

    async fn metadata(&mut self) -> Answer {
        self.connection.send(&XksRequest::metadata(&self.store, "vault")).await
    }

    async fn assert_decrypts(&mut self, encrypted: &Value) {
        let plaintext = self.decrypt(encrypted).await.ok()["plaintext"].clone();
        assert_eq!(bytes_of(&plaintext), SECRET);
    }

    async fn assert_refused(&mut self, encrypted: &Value, name: &str) {
        assert_eq!(self.decrypt(encrypted).await.refusal(), (400, name.to_owned()), "{encrypted}");
    }
}

const EVERY_STATE: [(u8, &str); 4] = [(1, "disabled"), (2, "retired"), (3, "primary"), (4, "staged")];

#[tokio::test]
async fn the_primary_encrypts_and_the_metadata_alone_says_which_decrypts() {
    let mut vault = Vault::start(vault(&EVERY_STATE), token_with("", &[1, 2, 3, 4])).await;
    let made = vault.encrypt().await.ok();
    assert_eq!(bytes_of(&made["ciphertextMetadata"]), [1, 0, 0, 0, 3]);
    vault.assert_decrypts(&made).await;
    for number in [2, 3, 4] {
        vault.assert_decrypts(&made_under(number)).await;
    }
    vault.assert_refused(&made_under(1), "InvalidStateException").await;
    // No version is tried but the one that is named.
    let mut other = made_under(2);
    other["ciphertextMetadata"] = made_under(3)["ciphertextMetadata"].clone();
    vault.assert_refused(&other, "InvalidCiphertextException").await;
}

#[tokio::test]
async fn an_unknown_version_is_refused_and_counted() {
    let mut vault = Vault::start(vault(&EVERY_STATE), token_with("", &[1, 2, 3, 4])).await;
    let counter = "xks_unknown_key_versions_total{store=\"main\"}";
    assert!(vault.proxy.metric(counter).await.abs() < 0.5);
    vault.assert_refused(&made_under(5), "InvalidCiphertextException").await;
    vault.assert_refused(&made_under(1), "InvalidStateException").await;
    vault.assert_decrypts(&made_under(2)).await;
    assert!((vault.proxy.metric(counter).await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_disabled_version_is_disabled_even_where_its_key_is_gone() {
    let mut vault = Vault::start(vault(&EVERY_STATE), token_with("", &[2, 3])).await;
    vault.assert_refused(&made_under(1), "InvalidStateException").await;
    vault.assert_decrypts(&made_under(2)).await;
    vault.encrypt().await.ok();
}

/// What one version cannot, another never does instead.
#[tokio::test]
async fn a_primary_that_the_token_lacks_is_an_error_and_no_other_version_takes_its_place() {
    let mut vault =
        Vault::start(vault(&[(1, "retired"), (2, "primary"), (3, "staged")]), token_with("", &[1, 3])).await;
    let missing = (404, "KeyNotFoundException".to_owned());
    assert_eq!(vault.encrypt().await.refusal(), missing);
    assert_eq!(vault.metadata().await.refusal(), missing);
    assert_eq!(vault.decrypt(&made_under(2)).await.refusal(), missing);
    for number in [1, 3] {
        vault.assert_decrypts(&made_under(number)).await;
    }
}

#[tokio::test]
async fn key_metadata_is_that_of_the_primary() {
    let token = token_with("", &[1]);
    token.generate("vault@2", &["--usage", "encrypt,decrypt,wrap"]);
    let mut vault = Vault::start(vault(&[(1, "retired"), (2, "primary")]), token).await;
    assert_eq!(
        vault.metadata().await.ok(),
        json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT", "WRAP"], "keyStatus": "ENABLED" })
    );
}

/// The rule of store `nested` has versions of its own: version 1 has the bare label.
#[tokio::test]
async fn the_keys_of_a_rule_have_versions_too() {
    let token = token_with("nested-", &[2, 3]);
    import(&token, "nested-vault", &key_of(1));
    let states = r#"[
        { number = 1, state = "retired" }, { number = 2, state = "primary" }, { number = 3, state = "disabled" },
    ]"#;
    let nested_rule = format!("{{ label_prefix = \"nested-\", versions = {states} }}");
    let setup = Setup { nested_rule, ..Setup::default() };
    let proxy = Proxy::start_on(&setup, token.into()).await;
    let connection = proxy.connect(Http::Two).await;
    let mut vault = Vault { proxy, connection, store: nested_store() };
    let made = vault.encrypt().await.ok();
    assert_eq!(bytes_of(&made["ciphertextMetadata"]), [1, 0, 0, 0, 2]);
    vault.assert_decrypts(&made).await;
    vault.assert_decrypts(&made_under(1)).await;
    vault.assert_refused(&made_under(3), "InvalidStateException").await;
    vault.assert_refused(&made_under(4), "InvalidCiphertextException").await;
    // A version's label is no external key id of its own.
    let path = format!("{}/kms/xks/v1/keys/vault@2/encrypt", vault.store.prefix);
    let request = XksRequest::new(&vault.store.signing, path, &encrypt_body(SECRET, Some(AAD), false));
    let refusal = vault.connection.send(&request).await.refusal();
    assert_eq!(refusal, (404, "InvalidUriPathException".to_owned()));
}
