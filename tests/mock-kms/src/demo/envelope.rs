//! Envelope encryption of a file, as an application does it with a data key.
//!
//! The encrypted file: 2-byte big-endian length of the encrypted data key, the encrypted data key, a 12-byte nonce, the
//! ciphertext and its 16-byte tag.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::Stop;
use crate::kms::name::random_bytes;

/// Encrypts `content` under `data_key` and keeps the encrypted data key with it.
pub(super) fn seal(data_key: &[u8], encrypted_data_key: &[u8], content: &[u8]) -> Result<Vec<u8>, Stop> {
    let fault = || Stop::Setup("the file cannot be encrypted".to_owned());
    let nonce: [u8; NONCE_LEN] = random_bytes().map_err(|_| fault())?;
    let mut sealed = content.to_vec();
    let key = key(data_key).ok_or_else(fault)?;
    let aad = Aad::from(encrypted_data_key);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
        .map_err(|_| fault())?;
    let length = u16::try_from(encrypted_data_key.len()).map_err(|_| fault())?;
    Ok([&length.to_be_bytes(), encrypted_data_key, &nonce, &sealed].concat())
}

/// The encrypted data key of an encrypted file.
pub(super) fn encrypted_data_key(file: &[u8]) -> Option<&[u8]> {
    let (length, rest) = file.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

/// The content of an encrypted file; `None` where file or key is another.
pub(super) fn open(data_key: &[u8], file: &[u8]) -> Option<Vec<u8>> {
    let encrypted_data_key = encrypted_data_key(file)?;
    let (nonce, sealed) = file.get(2 + encrypted_data_key.len()..)?.split_first_chunk::<NONCE_LEN>()?;
    let mut buffer = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let opened = key(data_key)?.open_in_place(nonce, Aad::from(encrypted_data_key), &mut buffer).ok()?;
    Some(opened.to_vec())
}

fn key(data_key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, data_key).ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_opens_with_its_key_alone() {
        let file = seal(&[1; 32], b"encrypted data key", b"content").unwrap();
        assert_eq!(encrypted_data_key(&file), Some(&b"encrypted data key"[..]));
        assert_eq!(open(&[1; 32], &file).as_deref(), Some(&b"content"[..]));
        assert_eq!(open(&[2; 32], &file), None);
        for index in 0..file.len() {
            let mut damaged = file.clone();
            damaged[index] ^= 1;
            assert_eq!(open(&[1; 32], &damaged), None, "byte {index}");
        }
        for length in 0..file.len() {
            assert_eq!(open(&[1; 32], &file[..length]), None, "{length} bytes");
        }
    }
}
