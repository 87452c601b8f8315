//! Where the initialization vectors of encryptions come from.

use std::fmt;

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use serde::{Serialize, Serializer};

use super::Sealed;
use super::gcm::{Failure, IV_BYTES, NewIv};
use super::session::Session;

/// Where initialization vectors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvSource {
    /// The operating system's random source: costs no call to the token. 12 bytes.
    OperatingSystem,
    /// The token's random source (C_GenerateRandom), where an auditor wants it. 12 bytes, and one more call.
    Token,
    /// The token makes it during C_Encrypt and writes it over 12 zeros that it is given.
    WrittenBack,
    /// The token makes it during C_Encrypt and appends its 16 bytes to ciphertext and tag.
    Appended,
}

impl IvSource {
    /// Every source.
    pub const ALL: [Self; 4] = [Self::OperatingSystem, Self::Token, Self::WrittenBack, Self::Appended];

    /// Whether the token is given the IV. Then there is nothing to prove of how it makes one, and that it uses the one given is
    /// what each key's own proof shows where no probe has: what it encrypts decrypts.
    #[must_use]
    pub const fn is_given(self) -> bool {
        matches!(self, Self::OperatingSystem | Self::Token)
    }

    /// The word for it in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::OperatingSystem => "os",
            Self::Token => "token",
            Self::WrittenBack => "written-back",
            Self::Appended => "appended",
        }
    }

    /// Encrypts under an IV from this source: two calls, or three where the token's random source is asked.
    ///
    /// Whether the IV may be used is not judged here: a token that knows nothing of writing IVs back leaves zeros.
    pub(super) fn encrypt(
        self,
        session: &dyn Session,
        key: ObjectHandle,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Failure> {
        let mut iv = [0; IV_BYTES];
        let new_iv = match self {
            Self::OperatingSystem => {
                getrandom::fill(&mut iv).map_err(|_| ("getrandom", RvError::RandomNoRng))?;
                NewIv::Given(iv)
            }
            Self::Token => {
                session.random(&mut iv).map_err(|code| ("C_GenerateRandom", code))?;
                NewIv::Given(iv)
            }
            Self::WrittenBack => NewIv::WrittenBack,
            Self::Appended => NewIv::Appended,
        };
        session.encrypt(key, new_iv, aad, plaintext)
    }
}

impl fmt::Display for IvSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Serialize for IvSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}
