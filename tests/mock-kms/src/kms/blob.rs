//! `CiphertextBlob`: one text of bytes that says itself which key made it and holds all that decrypting needs.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | format, 1 |
//! | 1 | origin of the key: 0 in KMS, 1 in an external key store |
//! | 16 | the key's id |
//! | | of a key in KMS: the inner layer (12-byte nonce, ciphertext, 16-byte tag) |
//! | 1, 0–20 | else: length of the ciphertext metadata, 255 where the proxy sent none, and the metadata |
//! | 1, 12 or 16 | length of the proxy's IV, and the IV |
//! | 16 | the proxy's authentication tag |
//! | rest | the proxy's ciphertext, as long as the inner layer |

use xks_spec::limits::{IV_BYTES, MAX_CIPHERTEXT_METADATA_BYTES, TAG_BYTES};

use super::name::{uuid_bytes, uuid_text};
use super::{Exception, KmsError};
use crate::xks::Ciphertext;

const FORMAT: u8 = 1;
const IN_KMS: u8 = 0;
const IN_EXTERNAL_KEY_STORE: u8 = 1;
const NO_METADATA: u8 = 255;

/// A ciphertext blob, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Id of the key that made it.
    pub key_id: String,
    /// What is in it.
    pub layers: Layers,
}

/// The encrypted part of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layers {
    /// The inner layer alone.
    Inner(Vec<u8>),
    /// The inner layer, encrypted by a proxy.
    Outer(Ciphertext),
}

impl Blob {
    /// The bytes that a caller gets.
    ///
    /// # Errors
    /// `KMSInternalException` where the parts do not fit, which the checks of a proxy's answer exclude.
    pub fn encode(&self) -> Result<Vec<u8>, KmsError> {
        self.encoded().ok_or_else(|| {
            KmsError::new(Exception::KMSInternalException, "The parts of the ciphertext blob do not fit.")
        })
    }

    fn encoded(&self) -> Option<Vec<u8>> {
        let id = uuid_bytes(&self.key_id)?;
        let origin = match &self.layers {
            Layers::Inner(_) => IN_KMS,
            Layers::Outer(_) => IN_EXTERNAL_KEY_STORE,
        };
        let mut bytes = vec![FORMAT, origin];
        bytes.extend(id);
        match &self.layers {
            Layers::Inner(inner) => bytes.extend(inner),
            Layers::Outer(outer) => {
                let metadata = outer.metadata.as_deref();
                let metadata_length =
                    metadata.map_or(Some(NO_METADATA), |metadata| u8::try_from(metadata.len()).ok())?;
                bytes.push(metadata_length);
                bytes.extend(metadata.unwrap_or_default());
                bytes.push(u8::try_from(outer.iv.len()).ok()?);
                bytes.extend(&outer.iv);
                bytes.extend(&outer.tag);
                bytes.extend(&outer.ciphertext);
            }
        }
        Some(bytes)
    }

    /// Takes a caller's bytes apart.
    ///
    /// # Errors
    /// `InvalidCiphertextException`, without a message, when they are no blob of this KMS.
    pub fn decode(bytes: &[u8]) -> Result<Self, KmsError> {
        Self::decoded(bytes).ok_or_else(|| KmsError::bare(Exception::InvalidCiphertextException))
    }

    fn decoded(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<18>()?;
        let (&[format, origin], id) = head.split_first_chunk::<2>()?;
        if format != FORMAT {
            return None;
        }
        let key_id = uuid_text(id.try_into().ok()?);
        let layers = match origin {
            IN_KMS => Layers::Inner(rest.to_vec()),
            IN_EXTERNAL_KEY_STORE => Layers::Outer(decoded_outer(rest)?),
            _ => return None,
        };
        Some(Self { key_id, layers })
    }
}

fn decoded_outer(bytes: &[u8]) -> Option<Ciphertext> {
    let (&metadata_length, rest) = bytes.split_first()?;
    let (metadata, rest) = if metadata_length == NO_METADATA {
        (None, rest)
    } else {
        let (metadata, rest) = rest.split_at_checked(usize::from(metadata_length))?;
        (Some(metadata.to_vec()), rest)
    };
    if metadata.as_ref().is_some_and(|metadata| metadata.len() > MAX_CIPHERTEXT_METADATA_BYTES) {
        return None;
    }
    let (&iv_length, rest) = rest.split_first()?;
    let (iv, rest) = rest.split_at_checked(usize::from(iv_length))?;
    let (tag, ciphertext) = rest.split_at_checked(TAG_BYTES)?;
    if !IV_BYTES.contains(&iv.len()) || ciphertext.is_empty() {
        return None;
    }
    Some(Ciphertext { ciphertext: ciphertext.to_vec(), metadata, iv: iv.to_vec(), tag: tag.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> Vec<Blob> {
        let key_id = "1234abcd-12ab-44cd-96ef-1234567890ab".to_owned();
        let outer = |metadata: Option<usize>, iv: usize, ciphertext: usize| Blob {
            key_id: key_id.clone(),
            layers: Layers::Outer(Ciphertext {
                ciphertext: vec![1; ciphertext],
                metadata: metadata.map(|length| vec![2; length]),
                iv: vec![3; iv],
                tag: vec![4; 16],
            }),
        };
        vec![
            Blob { key_id: key_id.clone(), layers: Layers::Inner(vec![5; 29]) },
            outer(None, 12, 1),
            outer(Some(0), 16, 29),
            outer(Some(20), 16, 4096 + crate::kms::crypto::INNER_OVERHEAD_BYTES),
        ]
    }

    #[test]
    fn blobs_survive_both_ways_and_fit() {
        for blob in blobs() {
            let bytes = blob.encode().unwrap();
            assert!(bytes.len() <= 6144);
            assert_eq!(Blob::decode(&bytes).unwrap(), blob);
        }
    }

    #[test]
    fn what_is_no_blob_is_refused() {
        for blob in blobs().drain(1..3) {
            let bytes = blob.encode().unwrap();
            for end in 0..bytes.len() - 28 {
                assert!(Blob::decode(&bytes[..end]).is_err());
            }
            for (position, value) in [(0, 0), (0, 2), (1, 2), (18, 21)] {
                let mut changed = bytes.clone();
                changed[position] = value;
                assert!(Blob::decode(&changed).is_err(), "{position} {value}");
            }
        }
        assert_eq!(Blob::decode(b"x").unwrap_err(), KmsError::bare(Exception::InvalidCiphertextException));
    }
}
