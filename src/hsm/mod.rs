//! The narrow door to the HSM: AES-GCM, key attributes and health, each within a deadline.
//!
//! This module knows neither HTTP nor XKS. [`Hsm`] is the whole of what the rest of the proxy sees; [`Token`] is its
//! implementation over one PKCS#11 token, [`Fleet`] over several that hold the same keys.

mod breaker;
mod check_value;
mod ckr;
mod connection;
pub mod examination;
mod fleet;
mod gate;
mod gcm;
mod hedge;
mod isolation;
mod iv;
mod keeper;
mod keys;
mod lane;
mod manage;
mod module;
mod pace;
mod pin_guard;
mod probe;
mod profiles;
mod recovery;
mod searches;
mod session;
mod settings;
mod shared;
mod standing;
mod threads;
mod token;
mod workers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::clock::Deadline;

pub use check_value::{CheckValue, CheckValueFault};
pub use connection::{ConnectionFault, TokenSelector};
pub use fleet::{Fleet, FleetSettings, Generation, KeyMemory, KnownVersion, Resolution};
pub use hedge::HedgeSettings;
pub use isolation::{COMMAND as HELPER_COMMAND, serve_as_helper};
pub use iv::IvSource;
pub use manage::{KeyManager, ManageFault, ManagedKey};
pub use module::{ModuleFault, Modules};
pub use pin_guard::{PinFault, PinFlag};
pub use profiles::Profile;
pub use settings::{ForceLogin, Isolation, TokenSettings, UserType};
pub use token::Token;

/// Length of an AES-GCM authentication tag, in bytes.
pub const TAG_BYTES: usize = 16;

/// A future that an [`Hsm`] returns.
pub type HsmFuture<'a, T> = Pin<Box<dyn Future<Output = Outcome<T>> + Send + 'a>>;

/// What the proxy asks of one or several tokens.
///
/// Every method returns by its deadline, whatever the token does. Dropping a future abandons its job: what has not
/// begun then never reaches the token.
pub trait Hsm: Send + Sync {
    /// Encrypts under a fresh initialization vector.
    fn encrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        plaintext: Plaintext,
        aad: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Sealed>;

    /// The same, after which the session decrypts what it has made. `digest` is taken in between: of the very output that is
    /// decrypted then. [`HsmError::Unverified`] where that does not give the plaintext back; such an output goes nowhere.
    fn encrypt_checked<'a>(
        &'a self,
        key: &'a KeyMaterial,
        plaintext: Plaintext,
        aad: Arc<[u8]>,
        digest: Digest,
        terms: Terms,
    ) -> HsmFuture<'a, Checked>;

    /// Decrypts. [`HsmError::BadCiphertext`] is a proven verdict on the ciphertext, never a fault of the token; it says
    /// how it was proven.
    fn decrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        sealed: Arc<Sealed>,
        aad: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Plaintext>;

    /// What a key is and may do, at most as old as the token's settings say.
    fn key_attributes<'a>(&'a self, key: &'a KeyMaterial, deadline: Deadline)
    -> HsmFuture<'a, KeyAttributes>;

    /// The health of each token as last measured; waits for nothing.
    fn health(&self) -> Vec<TokenHealth>;
}

/// Until when a key is used for a request, on what condition, and who counts.
#[derive(Clone)]
pub struct Terms {
    /// The answer is due.
    pub deadline: Deadline,
    /// Asked before each call: the key may have been disabled while the job was queued.
    pub permit: Option<Permit>,
    /// Told of each initialization vector that an encryption draws.
    pub on_iv: Option<OnIv>,
}

/// Whether a key may still be used.
pub type Permit = Arc<dyn Fn() -> bool + Send + Sync>;

/// Called before each initialization vector is drawn, on the thread that draws it: one encryption may take several, on
/// several tokens, and some after its caller has left. Must return at once.
pub type OnIv = Arc<dyn Fn() + Send + Sync>;

impl From<Deadline> for Terms {
    /// Without a condition, and nobody counts.
    fn from(deadline: Deadline) -> Self {
        Self { deadline, permit: None, on_iv: None }
    }
}

/// A plaintext that several holders share and the last one wipes.
pub type Plaintext = Arc<Zeroizing<Vec<u8>>>;

/// The material of a key, whichever tokens hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyMaterial {
    /// How each token finds it.
    pub locator: KeyLocator,
    /// How it is known to be the same on each, where the configuration pins that.
    pub check_value: Option<CheckValue>,
}

/// How a key is found in a token. Only secret keys are looked at.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeyLocator {
    /// By CKA_LABEL, compared byte by byte.
    Label(Box<str>),
    /// By CKA_ID.
    Id(Box<[u8]>),
}

impl std::fmt::Debug for KeyLocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for KeyLocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "label {label:?}"),
            Self::Id(id) => {
                f.write_str("id 0x")?;
                id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// What AES-GCM made: initialization vector, ciphertext and tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// 12 or 16 bytes.
    pub iv: Vec<u8>,
    /// The ciphertext with its 16-byte tag behind it, as PKCS#11 has it.
    pub ciphertext_and_tag: Vec<u8>,
}

/// Made of what was encrypted, on the thread of the session: must return at once.
pub type Digest = Arc<dyn Fn(&Sealed) -> [u8; 32] + Send + Sync>;

/// What was encrypted and has been seen to decrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// It.
    pub sealed: Sealed,
    /// What was made of it before it was decrypted.
    pub digest: [u8; 32],
}

/// What a key is and may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAttributes {
    /// Its object handle, to see whether two locators name one key; means nothing after the next login.
    pub object: u64,
    /// Algorithm and length.
    pub kind: KeyKind,
    /// What its CKA_… booleans permit.
    pub usages: KeyUsages,
}

/// Algorithm and length of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyKind {
    /// AES; the length in bits, `None` where the token does not tell it.
    Aes {
        /// 128, 192 or 256.
        bits: Option<u32>,
    },
    /// Another secret key, by CKK value.
    Other(u64),
}

impl std::ops::BitOr for KeyUsages {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            encrypt: self.encrypt | other.encrypt,
            decrypt: self.decrypt | other.decrypt,
            sign: self.sign | other.sign,
            verify: self.verify | other.verify,
            wrap: self.wrap | other.wrap,
            unwrap: self.unwrap | other.unwrap,
            derive: self.derive | other.derive,
        }
    }
}

/// What a key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "PKCS#11 has them as booleans")]
pub struct KeyUsages {
    /// CKA_ENCRYPT.
    pub encrypt: bool,
    /// CKA_DECRYPT.
    pub decrypt: bool,
    /// CKA_SIGN.
    pub sign: bool,
    /// CKA_VERIFY.
    pub verify: bool,
    /// CKA_WRAP.
    pub wrap: bool,
    /// CKA_UNWRAP.
    pub unwrap: bool,
    /// CKA_DERIVE.
    pub derive: bool,
}

/// A result and what it cost.
#[derive(Debug)]
pub struct Outcome<T> {
    /// What came of it.
    pub result: Result<T, HsmError>,
    /// Where and how long.
    pub report: CallReport,
}

impl<T> Outcome<T> {
    /// A failure that no token was asked about.
    #[must_use]
    pub fn failed(error: HsmError) -> Self {
        Self { result: Err(error), report: CallReport::default() }
    }
}

impl Outcome<Checked> {
    /// Where there is a result, a decryption was made as well.
    fn with_decryption(mut self) -> Self {
        self.report.attempts += u32::from(self.result.is_ok());
        self
    }
}

/// Where a call ran and how long it took.
#[derive(Clone, Debug, Default)]
pub struct CallReport {
    /// Serial number of the token that answered.
    pub token_serial: Option<Arc<str>>,
    /// Time spent waiting for a session.
    pub queue_time: Duration,
    /// Time spent inside the PKCS#11 module.
    pub call_time: Duration,
    /// Calls made, retries included.
    pub attempts: u32,
    /// Ciphertexts that were made and did not decrypt to the plaintext: none of them left.
    pub unverified: u32,
    /// A second token was asked while the first had not answered.
    pub is_hedged: bool,
}

impl CallReport {
    /// Adds what a further call cost.
    pub fn add(&mut self, other: &Self) {
        if other.token_serial.is_some() {
            self.token_serial.clone_from(&other.token_serial);
        }
        self.queue_time += other.queue_time;
        self.call_time += other.call_time;
        self.attempts += other.attempts;
        self.unverified += other.unverified;
        self.is_hedged |= other.is_hedged;
    }
}

/// Health of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHealth {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Who and what it is; `None` before it was first reached.
    pub identity: Option<Arc<TokenIdentity>>,
    /// As measured; `None` until the first measurement has ended.
    pub status: Option<HealthStatus>,
    /// Why it is not active, for the log and the operator.
    pub reason: Option<Arc<str>>,
}

/// What a token says of itself (C_GetTokenInfo).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenIdentity {
    /// Manufacturer.
    pub manufacturer: Box<str>,
    /// Model.
    pub model: Box<str>,
    /// Serial number.
    pub serial: Arc<str>,
    /// Firmware version.
    pub firmware: Box<str>,
}

/// Health of a token, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthStatus {
    /// Cannot serve.
    Unavailable,
    /// Can serve, but something is wrong.
    Degraded,
    /// Healthy.
    Active,
}

/// Why a token did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HsmError {
    /// No key there answers to the locator.
    #[error("the token holds no secret key with that label or id")]
    KeyNotFound,
    /// Several keys answer to the locator, and nothing tells which is meant.
    #[error("the token holds {count} secret keys with that label or id: rename or remove all but one")]
    KeyAmbiguous {
        /// How many, at least.
        count: usize,
    },
    /// The key has yet to prove that it is the one meant.
    #[error("the key has not proven yet that it is the one meant")]
    KeyUnproven,
    /// Another store uses the key, under another of its names.
    #[error("another store uses the same key of the token under another name")]
    KeyOfAnotherStore,
    /// The key is another than its check value, or than what it was before.
    #[error("the key under that label or id is another key than it should be")]
    KeyDiffers,
    /// The key may not be used so (CKR_KEY_FUNCTION_NOT_PERMITTED and its kin).
    #[error("the key's attributes do not permit the operation ({code})")]
    KeyNotPermitted {
        /// The return code.
        code: Box<str>,
    },
    /// The key was disabled, or removed, while the job waited for its turn.
    #[error("the key was disabled while the request was queued")]
    KeyWithdrawn,
    /// The tag does not fit ciphertext, IV and AAD.
    #[error("the authentication tag does not match")]
    BadCiphertext {
        /// The return code says so and can mean nothing else. Otherwise it could have been the token's fault as well, and
        /// the verdict rests on another ciphertext that did decrypt on the same session, before the same failed again.
        is_certain: bool,
    },
    /// What was encrypted does not decrypt to the plaintext: the token, or memory on the way, is faulty.
    #[error("what was encrypted does not decrypt to the plaintext")]
    Unverified,
    /// Every session is busy, and the queue is full or longer than the deadline allows.
    #[error("the token's queue is full, or longer than the deadline allows")]
    QueueFull,
    /// Too many searches for keys that are not in the index.
    #[error("too many keys are being searched that the index does not hold")]
    TooManySearches,
    /// No answer by the deadline.
    #[error("the deadline passed before the token answered")]
    DeadlinePassed,
    /// So little of the deadline was left when the job's turn came that it was not begun.
    #[error("the job's turn at the token came too late for its deadline")]
    TooLate,
    /// The queue is full because calls do not return.
    #[error("the token's queue is full and its calls hang")]
    Stalled,
    /// The token cannot be used now.
    #[error("the token is not usable: {0}")]
    Unavailable(Arc<str>),
    /// A call failed for a reason that is not the caller's.
    #[error("{call} failed with {code}")]
    Device {
        /// The PKCS#11 function.
        call: &'static str,
        /// The return code.
        code: Box<str>,
    },
    /// The token made an initialization vector that must not be used.
    #[error(
        "the initialization vector is all zero, repeated or of a wrong length; the ciphertext was discarded"
    )]
    UnsafeIv,
    /// Something in the proxy itself failed.
    #[error("a worker thread failed")]
    Worker,
}
