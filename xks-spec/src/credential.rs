//! SigV4 credentials of a key store (Appendix A, section XKS proxy configuration in AWS KMS console).

use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::limits::{ACCESS_KEY_ID_CHARS, SECRET_ACCESS_KEY_CHARS};

/// Letters of an access key id: those of Base32.
const ACCESS_KEY_ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Letters of a generated secret access key. KMS also takes `=`, which adds nothing.
const SECRET_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Characters of a generated access key id: 130 bits, so that two never meet.
pub const GENERATED_ACCESS_KEY_ID_CHARS: usize = 26;
/// Characters of a generated secret access key: 264 bits.
pub const GENERATED_SECRET_CHARS: usize = 44;

/// Names a secret access key: 20 to 30 of `A-Z 2-7`. Not secret: it travels in every request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccessKeyId(Box<str>);

impl AccessKeyId {
    /// # Errors
    /// [`CredentialFault::AccessKeyId`] where KMS would refuse the text.
    pub fn parse(text: &str) -> Result<Self, CredentialFault> {
        // SPEC(AUTH-CRED-007, AUTH-CRED-008, OPS-CONSOLE-004): 20 to 30 characters of A-Z and 2-7.
        let is_valid = ACCESS_KEY_ID_CHARS.contains(&text.len())
            && text.bytes().all(|byte| ACCESS_KEY_ID_ALPHABET.contains(&byte));
        if is_valid { Ok(Self(text.into())) } else { Err(CredentialFault::AccessKeyId) }
    }

    /// Makes an id of random bytes, independent of any secret.
    #[must_use]
    pub fn from_random(random: [u8; GENERATED_ACCESS_KEY_ID_CHARS]) -> Self {
        let letters = random.iter().map(|byte| char::from(ACCESS_KEY_ID_ALPHABET[usize::from(byte % 32)]));
        Self(letters.collect::<String>().into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for AccessKeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The shared secret that signs requests: 43 to 64 of `A-Z a-z 0-9 / + =`. Wiped when dropped, not shown by Debug.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretAccessKey(String);

impl SecretAccessKey {
    /// # Errors
    /// [`CredentialFault::SecretAccessKey`] where KMS would refuse the text.
    pub fn parse(text: &str) -> Result<Self, CredentialFault> {
        // SPEC(AUTH-CRED-006, OPS-CONSOLE-005): 43 to 64 characters of A-Z a-z 0-9 / + =.
        let is_valid = SECRET_ACCESS_KEY_CHARS.contains(&text.len())
            && text.bytes().all(|byte| SECRET_ALPHABET.contains(&byte) || byte == b'=');
        if is_valid { Ok(Self(text.to_owned())) } else { Err(CredentialFault::SecretAccessKey) }
    }

    /// Makes a secret of random bytes, six bits of each.
    #[must_use]
    // SPEC(AUTH-CRED-005): at least 256 bits that cannot be guessed.
    pub fn from_random(mut random: [u8; GENERATED_SECRET_CHARS]) -> Self {
        let letters = random.iter().map(|byte| char::from(SECRET_ALPHABET[usize::from(byte % 64)]));
        let secret = Self(letters.collect());
        random.zeroize();
        secret
    }

    /// The secret as text, to sign or verify with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretAccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretAccessKey(..)")
    }
}

/// Why a credential is refused. Carries nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CredentialFault {
    /// The id has a wrong length or a wrong character.
    #[error("an access key id is 20 to 30 of A-Z and 2-7")]
    AccessKeyId,
    /// The secret has a wrong length or a wrong character.
    #[error("a secret access key is 43 to 64 of A-Z a-z 0-9 / + =")]
    SecretAccessKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_kms_takes() {
        assert!(AccessKeyId::parse("AKIAI2SFODNN7EXAMPLE").is_ok());
        for bad in
            ["A".repeat(19), "A".repeat(31), "akiai2sfodnn7example".into(), "AKIAI1SFODNN7EXAMPLE".into()]
        {
            assert_eq!(AccessKeyId::parse(&bad), Err(CredentialFault::AccessKeyId), "{bad}");
        }
        assert!(SecretAccessKey::parse(&"a/+=".repeat(16)).is_ok());
        for bad in ["a".repeat(42), "a".repeat(65), "-".repeat(43)] {
            assert!(SecretAccessKey::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn generated_credentials_are_valid() {
        for byte in 0..=u8::MAX {
            let id = AccessKeyId::from_random([byte; GENERATED_ACCESS_KEY_ID_CHARS]);
            assert_eq!(AccessKeyId::parse(id.as_str()).unwrap(), id);
            let secret = SecretAccessKey::from_random([byte; GENERATED_SECRET_CHARS]);
            assert!(SecretAccessKey::parse(secret.expose()).is_ok());
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let secret = SecretAccessKey::parse(&"s3cret".repeat(8)).unwrap();
        assert!(!format!("{secret:?}").contains("s3cret"));
    }
}
