//! The inner layer: AES-256-GCM under a KMS key's own material.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::context::EncryptionContext;
use super::key::Material;
use super::name::{random_bytes, uuid_bytes};
use super::{Exception, KmsError};

/// Bytes that the inner layer adds: nonce and tag.
pub const INNER_OVERHEAD_BYTES: usize = NONCE_LEN + 16;

/// Encrypts, bound to the key and the context: nonce, then ciphertext and tag.
///
/// # Errors
/// `KMSInternalException` when the system has no random bytes.
pub fn seal(
    key_id: &str,
    material: &Material,
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<Vec<u8>, KmsError> {
    let nonce: [u8; NONCE_LEN] = random_bytes()?;
    let mut sealed = plaintext.to_vec();
    let sealing = aead_key(material).and_then(|key| {
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(bound(key_id, context)), &mut sealed).ok()
    });
    if sealing.is_none() {
        zeroize::Zeroize::zeroize(&mut sealed);
        return Err(KmsError::new(Exception::KMSInternalException, "The inner layer cannot be encrypted."));
    }
    Ok([nonce.as_slice(), &sealed].concat())
}

/// Decrypts what [`seal`] made; `None` where anything of it, the key or the context is another.
#[must_use]
pub fn open(
    key_id: &str,
    material: &Material,
    context: &EncryptionContext,
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let key = aead_key(material)?;
    let length = key.open_in_place(nonce, Aad::from(bound(key_id, context)), &mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer)
}

fn aead_key(material: &Material) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, material.expose()).ok().map(LessSafeKey::new)
}

fn bound(key_id: &str, context: &EncryptionContext) -> Vec<u8> {
    let id = uuid_bytes(key_id).unwrap_or_default();
    [b"mock-kms inner layer".as_slice(), &id, &context.canonical()].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const KEY: &str = "1234abcd-12ab-44cd-96ef-1234567890ab";

    #[test]
    fn what_is_sealed_opens_only_with_the_same_key_context_and_bytes() {
        let material = Material::random().unwrap();
        let none = EncryptionContext::default();
        let context = EncryptionContext::new(BTreeMap::from([("a".to_owned(), "b".to_owned())])).unwrap();
        for length in [1, 16, 4096] {
            let plaintext = vec![7; length];
            let sealed = seal(KEY, &material, &context, &plaintext).unwrap();
            assert_eq!(sealed.len(), length + INNER_OVERHEAD_BYTES);
            assert_eq!(open(KEY, &material, &context, &sealed).unwrap().as_slice(), plaintext);
            assert!(open(KEY, &material, &none, &sealed).is_none());
            assert!(open(KEY, &Material::random().unwrap(), &context, &sealed).is_none());
            assert!(open("1234abcd-12ab-44cd-96ef-1234567890ac", &material, &context, &sealed).is_none());
            for position in [0, NONCE_LEN, sealed.len() - 1] {
                let mut changed = sealed.clone();
                changed[position] ^= 1;
                assert!(open(KEY, &material, &context, &changed).is_none());
            }
        }
        assert!(open(KEY, &material, &context, &[]).is_none());
    }
}
