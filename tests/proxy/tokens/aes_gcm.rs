//! AES-GCM and the framing of the AAD by other code than the proxy's, for keys whose value the test knows.

use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{Aes256Gcm, AesGcm, KeyInit};
use serde_json::Value;
use xks_harness::request::{base64, bytes_of};

/// The value of a test key.
pub(crate) const KEY: [u8; 32] = *b"a test key that guards no secret";

/// A key's value as `softhsm-token import --value` wants it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens what an Encrypt answer holds; `None` where it was not made under this key, or with another AAD.
pub(crate) fn open(key: &[u8; 32], encrypted: &Value, aad: &[u8]) -> Option<Vec<u8>> {
    let metadata = bytes_of(&encrypted["ciphertextMetadata"]);
    let aad_length = u16::try_from(aad.len()).unwrap().to_be_bytes();
    let metadata_length = u8::try_from(metadata.len()).unwrap();
    let framed = [&aad_length[..], aad, &[metadata_length], &metadata].concat();
    let iv = bytes_of(&encrypted["initializationVector"]);
    let sealed = [bytes_of(&encrypted["ciphertext"]), bytes_of(&encrypted["authenticationTag"])].concat();
    let payload = Payload { msg: &sealed, aad: &framed };
    match iv.len() {
        16 => AesGcm::<Aes256, U16>::new(key.into()).decrypt(iv.as_slice().try_into().ok()?, payload).ok(),
        _ => Aes256Gcm::new(key.into()).decrypt(iv.as_slice().try_into().ok()?, payload).ok(),
    }
}

/// The check value of a key, as `xks-proxy keys check` would print it.
pub(crate) fn check_value(key: &[u8; 32]) -> String {
    let iv = [7; 12];
    let payload = Payload { msg: b"xks-proxy key check", aad: b"\xff\xffxks-proxy key check, version 1" };
    let sealed = Aes256Gcm::new(key.into()).encrypt(&iv.into(), payload).unwrap();
    format!("v1:{}:{}", base64(&iv), base64(&sealed))
}
