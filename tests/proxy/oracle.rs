//! AES-GCM by an implementation that shares nothing with the proxy's, under keys whose values the tests know.

use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::{Aead, Nonce, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, KeyInit};
use serde_json::{Value, json};
use xks_harness::SoftHsm;
use xks_harness::request::base64;

/// The value of an AES-256 key.
pub(crate) type Key = [u8; 32];

/// Puts a key of known value into the token.
pub(crate) fn import(token: &SoftHsm, label: &str, key: &Key) {
    let value: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    token.tool(&["import", "--label", label, "--value", &value]);
}

/// The AAD of AES-GCM as the specification frames it.
pub(crate) fn frame(aad: &[u8], metadata: &[u8]) -> Vec<u8> {
    let aad_length = u16::try_from(aad.len()).unwrap().to_be_bytes();
    let metadata_length = [u8::try_from(metadata.len()).unwrap()];
    [&aad_length, aad, &metadata_length, metadata].concat()
}

/// Ciphertext and tag, made without the proxy.
pub(crate) fn seal<IvSize: ArraySize>(key: &Key, iv: &[u8], framed: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let cipher = AesGcm::<Aes256, IvSize>::new(key.into());
    let iv: &Nonce<AesGcm<Aes256, IvSize>> = iv.try_into().unwrap();
    cipher.encrypt(iv, Payload { msg: plaintext, aad: framed }).unwrap()
}

/// What Encrypt would have answered.
pub(crate) fn answer_of(iv: &[u8], ciphertext_and_tag: &[u8], metadata: &[u8]) -> Value {
    let (ciphertext, tag) = ciphertext_and_tag.split_at(ciphertext_and_tag.len() - 16);
    json!({
        "ciphertext": base64(ciphertext),
        "initializationVector": base64(iv),
        "authenticationTag": base64(tag),
        "ciphertextMetadata": base64(metadata),
    })
}
