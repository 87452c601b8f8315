//! Ciphertexts of earlier releases decrypt for ever.

use std::fmt::Write;

use serde_json::{Value, json};
use xks_harness::proxy::main_store;
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Http, Proxy, Setup, SoftHsm, XksRequest};

/// The file's own header says what it holds and that entries are only ever added.
const FILE: &str = include_str!("golden/ciphertexts.json");

/// The key versions that the entries were made under.
const VERSIONS: [u32; 3] = [1, 7, u32::MAX];

fn golden() -> Value {
    serde_json::from_str(FILE).unwrap()
}

/// A proxy whose external key `golden-N` is version N of the golden file's key.
async fn start(golden: &Value) -> Proxy {
    let token = SoftHsm::empty();
    let mut keys = String::new();
    for version in VERSIONS {
        let name = format!("golden-{version}");
        token.tool(&["import", "--label", &name, "--value", golden["key"].as_str().unwrap()]);
        let lines = format!("external_key_id = \"{name}\"\nlabel = \"{name}\"\nversion = {version}\n");
        write!(keys, "[[stores.keys]]\n{lines}").unwrap();
    }
    Proxy::start_on(&Setup { keys, ..Setup::default() }, token.into()).await
}

fn aad_of(entry: &Value) -> Option<Vec<u8>> {
    entry.get("additionalAuthenticatedData").map(bytes_of)
}

#[tokio::test]
async fn every_ciphertext_ever_made_decrypts() {
    let golden = golden();
    let proxy = start(&golden).await;
    let mut connection = proxy.connect(Http::One).await;
    for entry in golden["entries"].as_array().unwrap() {
        let key = format!("golden-{}", entry["version"]);
        let body = decrypt_body(entry, aad_of(entry).as_deref());
        let answer = connection.send(&XksRequest::decrypt(&main_store(), &key, &body)).await;
        assert_eq!(answer.status, 200, "{}: {:?}", entry["name"], answer.body);
        assert_eq!(answer.json()["plaintext"], entry["plaintext"], "{}", entry["name"]);
    }
}

#[tokio::test]
async fn the_entries_hold_every_kind_of_ciphertext_that_can_be_met() {
    let golden = golden();
    let entries = golden["entries"].as_array().unwrap();
    let mut names: Vec<_> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), entries.len(), "a name twice");
    let has = |kind: &dyn Fn(&Value) -> bool| entries.iter().any(kind);
    for version in VERSIONS {
        for iv_bytes in [12, 16] {
            for aad_bytes in [None, Some(0), Some(24)] {
                assert!(
                    has(&|entry| {
                        entry["version"] == version
                            && bytes_of(&entry["initializationVector"]).len() == iv_bytes
                            && aad_of(entry).map(|aad| aad.len()) == aad_bytes
                    }),
                    "{version} {iv_bytes} {aad_bytes:?}"
                );
            }
        }
    }
    for iv_bytes in [12, 16] {
        let is_of = |entry: &Value| bytes_of(&entry["initializationVector"]).len() == iv_bytes;
        assert!(has(&|entry| is_of(entry) && bytes_of(&entry["plaintext"]).len() == 4300));
        assert!(has(&|entry| is_of(entry) && aad_of(entry).is_some_and(|aad| aad.len() == 8192)));
    }
}

/// Whoever changes what Encrypt makes adds entries of the new kind, and leaves the old ones.
#[tokio::test]
async fn what_is_encrypted_now_is_of_a_kind_that_the_entries_hold() {
    let golden = golden();
    let entries = golden["entries"].as_array().unwrap();
    let proxy = start(&golden).await;
    let mut connection = proxy.connect(Http::One).await;
    for version in VERSIONS {
        let body = encrypt_body(b"of today", Some(b"context"), true);
        let key = format!("golden-{version}");
        let made = connection.send(&XksRequest::encrypt(&main_store(), &key, &body)).await.ok();
        let iv_bytes = bytes_of(&made["initializationVector"]).len();
        let is_alike = |entry: &Value| {
            entry["version"] == json!(version)
                && entry["ciphertextMetadata"] == made["ciphertextMetadata"]
                && bytes_of(&entry["initializationVector"]).len() == iv_bytes
        };
        assert!(entries.iter().any(is_alike), "{made}");
    }
}
