//! What AWS's sample proxy encrypted decrypts where a store is told so, and nowhere else.
//!
//! The ciphertexts are made here from the sample's layout, by an AES-GCM that is not the proxy's.

use aes_gcm::aead::consts::{U12, U16};
use serde_json::Value;
use sha2::{Digest, Sha256};
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, SoftHsm, Store, XksRequest};

use crate::oracle::{Key, answer_of, frame, import, seal};

const KEY: Key = *b"a key that the sample used, once";
const SECRET: &[u8] = b"kept since the sample ran";
/// The static metadata that the sample's settings show, and its Base64.
const STATIC: &[u8] = b"v0.0.1";
const STATIC_B64: &str = "djAuMC4x";
/// Metadata of this proxy for version 1.
const OWN: [u8; 5] = [1, 0, 0, 0, 1];

/// What the sample feeds to AES-GCM: the AAD's length, its digest unless the field is absent, and the metadata.
fn sample_frame(aad: Option<&[u8]>, metadata: &[u8]) -> Vec<u8> {
    let length = u16::try_from(aad.map_or(0, <[u8]>::len)).unwrap().to_be_bytes();
    let digest = aad.map(|aad| Sha256::digest(aad).to_vec()).unwrap_or_default();
    [&length[..], &digest, &[u8::try_from(metadata.len()).unwrap()], metadata].concat()
}

/// What the sample answered to Encrypt; it sends no metadata where none is set.
fn made_by_sample(aad: Option<&[u8]>, metadata: &[u8]) -> Value {
    let iv = [5; 12];
    answer_without_empty(answer_of(
        &iv,
        &seal::<U12>(&KEY, &iv, &sample_frame(aad, metadata), SECRET),
        metadata,
    ))
}

fn answer_without_empty(mut answer: Value) -> Value {
    if answer["ciphertextMetadata"] == "" {
        answer["ciphertextMetadata"] = Value::Null;
    }
    answer
}

struct Migrated {
    proxy: Proxy,
    connection: Connection,
}

impl Migrated {
    /// Store `main` with the option given, and its key `old`, by default version 1 alone.
    async fn start(option: &str, key: &str) -> Self {
        let token = SoftHsm::with_keys();
        import(&token, "old", &KEY);
        import(&token, "nested-old", &KEY);
        token.generate("old@2", &[]);
        let keys = format!("[[stores.keys]]\nexternal_key_id = \"old\"\n{key}\n");
        let setup = Setup { store: option.to_owned(), keys, ..Setup::default() };
        let proxy = Proxy::start_on(&setup, token.into()).await;
        let connection = proxy.connect(Http::Two).await;
        Self { proxy, connection }
    }

    async fn decrypt_in(&mut self, store: &Store, encrypted: &Value, aad: Option<&[u8]>) -> Answer {
        self.connection.send(&XksRequest::decrypt(store, "old", &decrypt_body(encrypted, aad))).await
    }

    async fn assert_decrypts(&mut self, encrypted: &Value, aad: Option<&[u8]>) {
        let answer = self.decrypt_in(&main_store(), encrypted, aad).await;
        assert_eq!(answer.status, 200, "{encrypted} {aad:?} {:?}", answer.body);
        assert_eq!(bytes_of(&answer.json()["plaintext"]), SECRET);
    }

    async fn assert_refused(&mut self, encrypted: &Value, aad: Option<&[u8]>, name: &str) {
        let refusal = self.decrypt_in(&main_store(), encrypted, aad).await.refusal();
        assert_eq!(refusal, (400, name.to_owned()), "{encrypted} {aad:?}");
    }
}

const BOTH: &str = "decrypts_aws_sample = { ciphertext_metadata_b64 = [\"\", \"djAuMC4x\"] }";
const ONE_VERSION: &str = "label = \"old\"";
const INVALID: &str = "InvalidCiphertextException";

const AADS: [Option<&[u8]>; 4] = [None, Some(b""), Some(b"project=nile"), Some(&[7; 8192])];

#[tokio::test]
async fn what_the_sample_made_decrypts_with_and_without_static_metadata() {
    let mut migrated = Migrated::start(BOTH, ONE_VERSION).await;
    for metadata in [&b""[..], STATIC] {
        for aad in AADS {
            migrated.assert_decrypts(&made_by_sample(aad, metadata), aad).await;
            // Luna in FIPS mode makes IVs of 16 bytes.
            let iv = [6; 16];
            let sealed = seal::<U16>(&KEY, &iv, &sample_frame(aad, metadata), SECRET);
            migrated.assert_decrypts(&answer_of(&iv, &sealed, metadata), aad).await;
        }
    }
    let count = migrated.proxy.metric("xks_aws_sample_decrypts_total{store=\"main\"}").await;
    assert!((count - 16.0).abs() < 0.5, "{count}");
    let line = migrated.proxy.wait_for_log(|line| line["aws_sample"] == true);
    assert_eq!((&line["outcome"], &line["key_version"]), (&"ok".into(), &1.into()), "{line}");
}

/// Ciphertexts of the sample's layout that were made once, by neither this code nor the proxy's.
#[tokio::test]
async fn the_ciphertexts_on_file_decrypt_for_ever() {
    let file: Value = serde_json::from_str(include_str!("golden/aws_sample.json")).unwrap();
    let token = SoftHsm::empty();
    token.tool(&["import", "--label", "old", "--value", file["key"].as_str().unwrap()]);
    let keys = "[[stores.keys]]\nexternal_key_id = \"old\"\nlabel = \"old\"\n".to_owned();
    let setup = Setup { store: BOTH.to_owned(), keys, ..Setup::default() };
    let proxy = Proxy::start_on(&setup, token.into()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let entries = file["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 16);
    for entry in entries {
        let aad = entry.get("additionalAuthenticatedData").map(bytes_of);
        let body = decrypt_body(entry, aad.as_deref());
        let answer = connection.send(&XksRequest::decrypt(&main_store(), "old", &body)).await;
        assert_eq!(answer.status, 200, "{}: {:?}", entry["name"], answer.body);
        assert_eq!(answer.json()["plaintext"], entry["plaintext"], "{}", entry["name"]);
    }
}

/// The sample tells an absent AAD from an empty one.
#[tokio::test]
async fn what_was_authenticated_otherwise_is_refused() {
    let mut migrated = Migrated::start(BOTH, ONE_VERSION).await;
    for metadata in [&b""[..], STATIC] {
        for made in AADS {
            for sent in AADS.into_iter().filter(|sent| *sent != made) {
                migrated.assert_refused(&made_by_sample(made, metadata), sent, INVALID).await;
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_is_not_told_so_decrypts_none_of_it() {
    let aad = Some(&b"project=nile"[..]);
    let mut migrated = Migrated::start("", ONE_VERSION).await;
    for metadata in [&b""[..], STATIC] {
        migrated.assert_refused(&made_by_sample(aad, metadata), aad, INVALID).await;
    }
    let mut migrated = Migrated::start(BOTH, ONE_VERSION).await;
    for metadata in [&b""[..], STATIC] {
        let refusal =
            migrated.decrypt_in(&nested_store(), &made_by_sample(aad, metadata), aad).await.refusal();
        assert_eq!(refusal, (400, INVALID.to_owned()), "the other store was not told");
    }
}

#[tokio::test]
async fn static_metadata_matches_exactly_or_not_at_all() {
    let aad = Some(&b"project=nile"[..]);
    let option = format!("decrypts_aws_sample = {{ ciphertext_metadata_b64 = [\"{STATIC_B64}\"] }}");
    let mut migrated = Migrated::start(&option, ONE_VERSION).await;
    migrated.assert_decrypts(&made_by_sample(aad, STATIC), aad).await;
    for metadata in [&b""[..], b"v0.0.2", b"v0.0.", b"v0.0.10", b"V0.0.1"] {
        migrated.assert_refused(&made_by_sample(aad, metadata), aad, INVALID).await;
    }
}

/// Metadata selects the framing: no other is tried.
#[tokio::test]
async fn neither_framing_is_taken_for_the_other() {
    let aad = b"project=nile";
    let mut migrated = Migrated::start(BOTH, ONE_VERSION).await;
    let iv = [8; 12];
    migrated.assert_refused(&made_by_sample(Some(aad), &OWN), Some(aad), INVALID).await;
    for metadata in [&b""[..], STATIC] {
        let sealed = seal::<U12>(&KEY, &iv, &frame(aad, metadata), SECRET);
        migrated.assert_refused(&answer_of(&iv, &sealed, metadata), Some(aad), INVALID).await;
    }
    let sealed = seal::<U12>(&KEY, &iv, &frame(aad, &OWN), SECRET);
    migrated.assert_decrypts(&answer_of(&iv, &sealed, &OWN), Some(aad)).await;
}

#[tokio::test]
async fn nothing_is_encrypted_as_the_sample_did() {
    let mut migrated = Migrated::start(BOTH, ONE_VERSION).await;
    let body = encrypt_body(SECRET, Some(b"project=nile"), true);
    let made = migrated.connection.send(&XksRequest::encrypt(&main_store(), "old", &body)).await.ok();
    assert_eq!(bytes_of(&made["ciphertextMetadata"]), OWN);
    migrated.assert_decrypts(&made, Some(b"project=nile")).await;
    assert!(migrated.proxy.metric("xks_aws_sample_decrypts_total{store=\"main\"}").await.abs() < 0.5);
}

/// The sample knew one version of each key: the one that the option names.
#[tokio::test]
async fn after_a_rotation_the_sample_s_version_still_decrypts() {
    let aad = Some(&b"project=nile"[..]);
    let versions = |old: &str| {
        format!(
            "versions = [{{ number = 7, label = \"old\", state = \"{old}\" }}, \
             {{ number = 8, label = \"old@2\", state = \"primary\" }}]"
        )
    };
    let option = |version: u32| {
        format!("decrypts_aws_sample = {{ ciphertext_metadata_b64 = [\"\"], version = {version} }}")
    };
    let made = made_by_sample(aad, b"");
    Migrated::start(&option(7), &versions("retired")).await.assert_decrypts(&made, aad).await;
    for (version, state, name) in [
        (7, "disabled", "InvalidStateException"),
        (8, "retired", INVALID),
        // No version of the key has that number.
        (1, "retired", INVALID),
    ] {
        Migrated::start(&option(version), &versions(state)).await.assert_refused(&made, aad, name).await;
    }
}
