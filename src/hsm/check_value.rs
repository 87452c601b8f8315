//! How a key is known again: what it made of a known text.
//!
//! The same label is not the same key. Before a token serves a key, it must decrypt the key's check value, pinned in the
//! configuration or made by the token that served it first.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Hsm, HsmError, KeyMaterial, Sealed, TAG_BYTES};
use crate::clock::Deadline;

/// The known text.
const PLAINTEXT: &[u8] = b"xks-proxy key check";
/// What it is authenticated along with, in a domain of its own: as a framing of additional authenticated data it would say
/// that 65,535 bytes follow.
const AAD: &[u8] = b"\xff\xffxks-proxy key check, version 1";

/// What begins the text form.
const PREFIX: &str = "v1:";

/// The ciphertext of the known text under a key: decrypts under that key alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckValue(Sealed);

/// A text that is no check value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be a check value as `xks-proxy keys check` prints it, beginning with \"v1:\"")]
pub struct CheckValueFault;

impl CheckValue {
    /// Encrypts the known text. The IV that it draws is nobody's to count: there is one for a key at each start.
    ///
    /// # Errors
    /// [`HsmError`] where the token cannot.
    pub async fn make(hsm: &dyn Hsm, key: &KeyMaterial, deadline: Deadline) -> Result<Self, HsmError> {
        let plaintext = Arc::new(Zeroizing::new(PLAINTEXT.to_vec()));
        hsm.encrypt(key, plaintext, AAD.into(), deadline.into()).await.result.map(Self)
    }

    /// Whether this was made by the very key that the token has now.
    ///
    /// # Errors
    /// [`HsmError`] where the token does not say.
    pub async fn is_of(
        &self,
        hsm: &dyn Hsm,
        key: &KeyMaterial,
        deadline: Deadline,
    ) -> Result<bool, HsmError> {
        match hsm.decrypt(key, Arc::new(self.0.clone()), AAD.into(), deadline.into()).await.result {
            Ok(plaintext) => Ok(**plaintext == PLAINTEXT),
            Err(HsmError::BadCiphertext { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for CheckValue {
    /// `v1:`, then IV and ciphertext with tag, each in Base64.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sealed { iv, ciphertext_and_tag } = &self.0;
        write!(f, "{PREFIX}{}:{}", STANDARD.encode(iv), STANDARD.encode(ciphertext_and_tag))
    }
}

impl FromStr for CheckValue {
    type Err = CheckValueFault;

    fn from_str(text: &str) -> Result<Self, CheckValueFault> {
        let (iv, ciphertext) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once(':')).ok_or(CheckValueFault)?;
        let decode = |text| STANDARD.decode(text).map_err(|_| CheckValueFault);
        let sealed = Sealed { iv: decode(iv)?, ciphertext_and_tag: decode(ciphertext)? };
        let has_lengths = matches!(sealed.iv.len(), 12 | 16)
            && sealed.ciphertext_and_tag.len() == PLAINTEXT.len() + TAG_BYTES;
        if has_lengths { Ok(Self(sealed)) } else { Err(CheckValueFault) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_goes_both_ways() {
        let value = CheckValue(Sealed { iv: vec![7; 12], ciphertext_and_tag: vec![9; 35] });
        assert_eq!(value.to_string().parse(), Ok(value.clone()));
        for text in ["", "v1:", "v1::", "v2:BwcHBwcHBwcHBwcH:CQkJ", &value.to_string()[..40]] {
            assert_eq!(text.parse::<CheckValue>(), Err(CheckValueFault), "{text}");
        }
    }
}
