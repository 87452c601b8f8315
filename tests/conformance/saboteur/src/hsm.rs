//! An HSM in memory, with one flaw of its own: a bit of every fiftieth ciphertext is wrong. A proxy that decrypts what it
//! has encrypted before it answers is not harmed by that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::consts::{U12, U13, U16};
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, KeyInit, Nonce};
use xks_spec::limits::TAG_BYTES;

use crate::setup::keys;

/// Each so many encryptions one gives a corrupt ciphertext.
const CORRUPT_EVERY: u64 = 50;

/// What the HSM does with its next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HsmState {
    /// It works.
    Healthy,
    /// Every call fails.
    Failing,
    /// No call returns.
    Silent,
    /// A bit of every ciphertext is wrong.
    Corrupting,
}

/// Why a call gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HsmError {
    Failed,
    TagMismatch,
}

/// A key in the HSM.
pub(crate) struct Key {
    pub(crate) id: &'static str,
    /// Index of its store; the test key of the health check is in none.
    pub(crate) store: Option<usize>,
    pub(crate) handle: u32,
    pub(crate) may_encrypt: bool,
    pub(crate) may_decrypt: bool,
    pub(crate) is_enabled: bool,
    material: [u8; 32],
}

pub(crate) struct Hsm {
    pub(crate) keys: Vec<Key>,
    state: Mutex<HsmState>,
    encryptions: AtomicU64,
}

impl Hsm {
    pub(crate) fn new() -> Self {
        let rows = [
            (keys::USABLE, Some(0), true, true, true),
            (keys::SECOND, Some(0), true, true, true),
            (keys::EVERY_CHARACTER, Some(0), true, true, true),
            (keys::ENCRYPT_ONLY, Some(0), true, false, true),
            (keys::DECRYPT_ONLY, Some(0), false, true, true),
            (keys::IMPOTENT, Some(0), false, false, true),
            (keys::DISABLED, Some(0), true, true, false),
            (keys::RESTRICTED, Some(0), true, true, true),
            (keys::OTHER_STORE, Some(1), true, true, true),
            (keys::OF_DISABLED_STORE, Some(2), true, true, true),
            ("health-test-key", None, true, true, true),
        ];
        let keys = (1..).zip(rows).map(|(handle, (id, store, may_encrypt, may_decrypt, is_enabled))| Key {
            id,
            store,
            handle,
            may_encrypt,
            may_decrypt,
            is_enabled,
            material: random(),
        });
        Self { keys: keys.collect(), state: Mutex::new(HsmState::Healthy), encryptions: AtomicU64::new(0) }
    }

    pub(crate) fn set_state(&self, state: HsmState) {
        *self.state.lock().unwrap() = state;
    }

    /// The ciphertext with its tag behind it.
    pub(crate) async fn encrypt(
        &self,
        key: &Key,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, HsmError> {
        self.call().await?;
        let mut sealed = seal(key, iv, aad, plaintext)?;
        let number = self.encryptions.fetch_add(1, Ordering::Relaxed) + 1;
        let is_corrupting = *self.state.lock().unwrap() == HsmState::Corrupting;
        if is_corrupting || number.is_multiple_of(CORRUPT_EVERY) {
            sealed[0] ^= 1;
        }
        Ok(sealed)
    }

    /// The plaintext, where `accepts` takes the tag that it should have.
    pub(crate) async fn decrypt(
        &self,
        key: &Key,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
        accepts: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<u8>, HsmError> {
        self.call().await?;
        // GCM encrypts by a key stream, so that encrypting twice decrypts. Its own comparison of tags would allow no fault.
        let mut plaintext = seal(key, iv, aad, ciphertext)?;
        plaintext.truncate(ciphertext.len());
        let sealed = seal(key, iv, aad, &plaintext)?;
        if accepts(&sealed[ciphertext.len()..]) { Ok(plaintext) } else { Err(HsmError::TagMismatch) }
    }

    async fn call(&self) -> Result<(), HsmError> {
        let state = *self.state.lock().unwrap();
        match state {
            HsmState::Healthy | HsmState::Corrupting => Ok(()),
            HsmState::Failing => Err(HsmError::Failed),
            HsmState::Silent => std::future::pending().await,
        }
    }
}

fn seal(key: &Key, iv: &[u8], aad: &[u8], text: &[u8]) -> Result<Vec<u8>, HsmError> {
    match iv.len() {
        12 => seal_with::<U12>(key, iv, aad, text),
        13 => seal_with::<U13>(key, iv, aad, text),
        16 => seal_with::<U16>(key, iv, aad, text),
        _ => Err(HsmError::Failed),
    }
}

fn seal_with<IvBytes: ArraySize>(key: &Key, iv: &[u8], aad: &[u8], text: &[u8]) -> Result<Vec<u8>, HsmError> {
    let cipher = AesGcm::<Aes256, IvBytes>::new(&key.material.into());
    let nonce: &Nonce<IvBytes> = iv.try_into().map_err(|_| HsmError::Failed)?;
    let sealed = cipher.encrypt(nonce, Payload { msg: text, aad }).map_err(|_| HsmError::Failed)?;
    debug_assert_eq!(sealed.len(), text.len() + TAG_BYTES);
    Ok(sealed)
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
