//! What can go wrong, in words for the person at the terminal.

use std::path::PathBuf;

use cryptoki::error::{Error as Pkcs11Error, RvError};

use crate::module::INSTALL_PATHS;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure. [`Error::is_not_found`] separates what is absent from what is broken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No SoftHSM2 in any of the usual places.
    #[error("no SoftHSM2 module found; install SoftHSM2 or name its library; looked at {}", INSTALL_PATHS.join(", "))]
    NoModule,

    /// The module could not be loaded.
    #[error("cannot load the PKCS#11 module {}: {source}", path.display())]
    Load {
        /// The library's path.
        path: PathBuf,
        /// What the loader said.
        source: Pkcs11Error,
    },

    /// The module was loaded and refuses to work.
    #[error("the PKCS#11 module refuses to start (does SOFTHSM2_CONF name the right file?): {}", brief(.0))]
    Initialize(#[source] Pkcs11Error),

    /// The module offers no slot whose token could be initialised.
    #[error("no slot is free for a new token")]
    NoFreeSlot,

    /// No initialised token has this label.
    #[error("no token is labelled {0:?}")]
    NoSuchToken(String),

    /// No token is initialised, and none was named.
    #[error("the module has no initialised token (does SOFTHSM2_CONF name the right file?)")]
    NoToken,

    /// Several tokens could be meant.
    #[error("more than one token could be meant, choose by label: {}", .0.join(", "))]
    AmbiguousToken(Vec<String>),

    /// No secret key has this label (and id).
    #[error("no secret key is labelled {0:?}")]
    NoSuchKey(String),

    /// A token label does not fit into the 32 bytes that PKCS#11 gives it.
    #[error("a token label has 1 to 32 bytes, {0:?} has {len}", len = .0.len())]
    TokenLabelLength(String),

    /// Not an AES key size.
    #[error("an AES key has 128, 192 or 256 bits, not {0}")]
    KeyBits(usize),

    /// Not a usage.
    #[error(
        "unknown usage {0:?}; known are encrypt, decrypt, wrap, unwrap, sign, verify, derive, or none alone"
    )]
    Usage(String),

    /// Not an even number of hexadecimal digits.
    #[error("not hexadecimal: an even number of the digits 0-9, a-f, A-F is needed")]
    Hex,

    /// The token refused the PIN.
    #[error("the token refuses the PIN")]
    PinIncorrect,

    /// The token counts failed logins and has locked the PIN.
    #[error("the token has locked the PIN")]
    PinLocked,

    /// The PIN is too short or too long for the token; SoftHSM2 takes 4 to 255 bytes.
    #[error("the PIN is too short or too long for this token")]
    PinLength,

    /// The token's user PIN was never set.
    #[error("the token's user PIN is not set yet")]
    PinNotSet,

    /// Any other failure of a PKCS#11 call.
    #[error("{}", brief(.0))]
    Pkcs11(#[source] Pkcs11Error),
}

impl Error {
    /// Whether a token or key that was asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NoSuchToken(_) | Self::NoToken | Self::NoSuchKey(_))
    }
}

/// The function and its return value by their names: the descriptions that cryptoki has of them are long.
fn brief(error: &Pkcs11Error) -> String {
    match error {
        Pkcs11Error::Pkcs11(value, function) => format!("C_{function:?} returned {value:?}"),
        other => other.to_string(),
    }
}

impl From<Pkcs11Error> for Error {
    fn from(error: Pkcs11Error) -> Self {
        match error {
            Pkcs11Error::Pkcs11(RvError::PinIncorrect, _) => Self::PinIncorrect,
            Pkcs11Error::Pkcs11(RvError::PinLocked, _) => Self::PinLocked,
            Pkcs11Error::Pkcs11(RvError::PinLenRange, _) => Self::PinLength,
            Pkcs11Error::Pkcs11(RvError::UserPinNotInitialized, _) => Self::PinNotSet,
            other => Self::Pkcs11(other),
        }
    }
}
