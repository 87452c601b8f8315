//! One session of a token and what is done on it, retries within the session's power included.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cryptoki::error::RvError;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::ckr::{self, Meaning};
use super::connection::Connection;
use super::gcm::Failure;
use super::keys::{self, IvGuard, KeyEntry};
use super::session::Session;
use super::{Checked, Digest, HsmError, KeyAttributes, OnIv, Plaintext, Sealed, Terms};
use crate::clock;
use crate::metrics::TokenMetrics;

/// What a failed decryption says of the ciphertext.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Its tag does not fit.
    BadTag,
    /// That, or the token is at fault.
    Open,
    /// Nothing.
    None,
}

/// An encryption under whichever key and on whichever session it is given.
pub(super) fn encrypting(
    plaintext: Plaintext,
    aad: Arc<[u8]>,
    terms: Terms,
) -> impl Fn(&mut Lane, &KeyEntry) -> Result<Sealed, HsmError> + Clone {
    move |lane, key| {
        terms.require_permit()?;
        lane.encrypt(key, &aad, &plaintext, terms.on_iv.as_ref())
    }
}

/// The same, and a decryption that shows whether what was made gives the plaintext back: one turn, since what takes the
/// longest of a call to a fast token is to wake the thread that makes it.
pub(super) fn encrypting_checked(
    plaintext: Plaintext,
    aad: Arc<[u8]>,
    digest: Digest,
    terms: Terms,
) -> impl Fn(&mut Lane, &KeyEntry) -> Result<Option<Checked>, HsmError> + Clone {
    let encrypt = encrypting(Arc::clone(&plaintext), Arc::clone(&aad), terms.clone());
    move |lane, key| {
        let sealed = encrypt(lane, key)?;
        let digest = digest(&sealed);
        // The second call is not begun where the first would not have been.
        if terms.deadline.has_passed() {
            return Err(HsmError::DeadlinePassed);
        }
        terms.require_permit()?;
        match lane.decrypt(key, &sealed, &aad) {
            Ok(decrypted) => {
                Ok(bool::from(decrypted.ct_eq(&plaintext)).then_some(Checked { sealed, digest }))
            }
            Err(HsmError::BadCiphertext { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The same for a decryption alone.
pub(super) fn decrypting(
    sealed: Arc<Sealed>,
    aad: Arc<[u8]>,
    terms: Terms,
) -> impl Fn(&mut Lane, &KeyEntry) -> Result<Plaintext, HsmError> + Clone {
    move |lane, key| {
        terms.require_permit()?;
        lane.decrypt(key, &sealed, &aad).map(Arc::new)
    }
}

impl Terms {
    /// The key may be used still.
    fn require_permit(&self) -> Result<(), HsmError> {
        let is_permitted = self.permit.as_ref().is_none_or(|is_permitted| is_permitted());
        if is_permitted { Ok(()) } else { Err(HsmError::KeyWithdrawn) }
    }
}

/// A session with its connection. Lives on one thread.
pub(super) struct Lane {
    /// `None` after the session was lost and no other could be opened.
    session: Option<Box<dyn Session>>,
    pub(super) connection: Arc<Connection>,
    ivs: Arc<IvGuard>,
    metrics: TokenMetrics,
    /// What the session's failures said of the whole connection.
    lost: Option<Meaning>,
}

impl Lane {
    /// Opens a session. The login is the application's, so that a new session has it.
    pub(super) fn open(
        connection: &Arc<Connection>,
        ivs: &Arc<IvGuard>,
        metrics: &TokenMetrics,
    ) -> Result<Self, (HsmError, Option<Meaning>)> {
        let mut lane = Self {
            session: None,
            connection: Arc::clone(connection),
            ivs: Arc::clone(ivs),
            metrics: metrics.clone(),
            lost: None,
        };
        match lane.open_session() {
            Ok(()) => Ok(lane),
            Err(failure) => {
                let error = lane.error(failure);
                Err((error, lane.lost))
            }
        }
    }

    /// Whether login or token are gone. That nobody is logged in is asked of the session itself: one key may be said to want a
    /// login while all others are served, and then its failure was no more than that.
    pub(super) fn confirm_loss(&mut self) -> Option<Meaning> {
        let is_logged_in = || self.session.as_ref().is_some_and(|session| session.is_logged_in());
        if self.lost == Some(Meaning::LoginLost) && is_logged_in() {
            self.lost = None;
            self.session = None;
        }
        self.lost
    }

    /// Gives the session up. Where the token was lost, its handle may by now be another's: it is not closed.
    pub(super) fn abandon(mut self) {
        let session = self.session.take();
        if let Some(session) = session
            && self.connection.lost.get() == Some(&Meaning::TokenLost)
        {
            session.forget();
        }
    }

    /// A handle of another login means nothing here: the key is looked up anew. Asked before a handle is used, and after: a
    /// call takes its time, and another login may have given the handle to another key meanwhile.
    fn require_epoch(&self, key: &KeyEntry) -> Result<(), HsmError> {
        let is_current = key.epoch == self.connection.epoch && !self.connection.has_ended();
        if is_current { Ok(()) } else { Err(HsmError::KeyNotFound) }
    }

    /// Encrypts under a fresh IV; a lost session is replaced and the encryption done anew, under another IV.
    pub(super) fn encrypt(
        &mut self,
        key: &KeyEntry,
        aad: &[u8],
        plaintext: &[u8],
        on_iv: Option<&OnIv>,
    ) -> Result<Sealed, HsmError> {
        self.require_epoch(key)?;
        if self.connection.encrypts_wrongly.load(Ordering::Relaxed) {
            return Err(HsmError::Unavailable(
                "a health probe has shown that it makes no good ciphertexts".into(),
            ));
        }
        let sealed = self.with_session(|lane, session| {
            if let Some(on_iv) = on_iv {
                on_iv();
            }
            let started = clock::now();
            let sealed = lane.connection.iv_source.encrypt(session, key.handle, aad, plaintext);
            lane.metrics.encrypted(started.elapsed());
            sealed
        });
        let sealed = sealed.map_err(|failure| self.error(failure));
        self.require_epoch(key)?;
        let sealed = sealed?;
        // SPEC(ENC-IV-001): MUST be 12 or 16 bytes. INVARIANT of the product: no ciphertext leaves under an IV that is zero or was drawn just now.
        if self.ivs.accepts(&sealed.iv) { Ok(sealed) } else { Err(HsmError::UnsafeIv) }
    }

    /// Decrypts. Where the return code leaves open whether the tag or the token is bad, a ciphertext that is known to
    /// be good decides, on the same session.
    pub(super) fn decrypt(
        &mut self,
        key: &KeyEntry,
        sealed: &Sealed,
        aad: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        self.require_epoch(key)?;
        if self.connection.decrypts_wrongly.load(Ordering::Relaxed) {
            return Err(HsmError::Unavailable("a health probe has shown that it decrypts wrongly".into()));
        }
        let mut outcome = self.try_decrypt(key, sealed, aad);
        let token_works = self.verdict(&outcome) == Verdict::Open && self.token_still_decrypts();
        if token_works {
            // Only what fails again is the ciphertext's fault: the first time it may have been the token's.
            self.metrics.retried("doubtful_tag");
            outcome = self.try_decrypt(key, sealed, aad);
        }
        let verdict = self.verdict(&outcome);
        let plaintext = outcome.map_err(|failure| match verdict {
            Verdict::BadTag => self.bad_ciphertext(Meaning::BadTag),
            Verdict::Open if token_works => self.bad_ciphertext(Meaning::BadTagOrFault),
            Verdict::Open | Verdict::None => self.error(failure),
        });
        // A tag that fits shows the key, and one that does not may be another key's.
        if plaintext.is_err() {
            self.require_epoch(key)?;
        }
        plaintext
    }

    /// What a decryption says of the ciphertext: only C_Decrypt has seen it.
    fn verdict(&self, outcome: &Result<Zeroizing<Vec<u8>>, Failure>) -> Verdict {
        let Err(("C_Decrypt", code)) = outcome else { return Verdict::None };
        match self.connection.profile.meaning(*code) {
            Meaning::BadTag => Verdict::BadTag,
            Meaning::BadTagOrFault => Verdict::Open,
            _ => Verdict::None,
        }
    }

    fn try_decrypt(
        &mut self,
        key: &KeyEntry,
        sealed: &Sealed,
        aad: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.with_session(|lane, session| {
            let started = clock::now();
            let plaintext = session.decrypt(key.handle, sealed, aad);
            lane.metrics.decrypted(started.elapsed());
            plaintext
        })
    }

    /// Reads a key's attributes anew.
    pub(super) fn read_attributes(&mut self, key: &KeyEntry) -> Result<KeyAttributes, HsmError> {
        self.require_epoch(key)?;
        let attributes = self.with_session(|_, session| {
            keys::read_attributes(session, key).map_err(|code| ("C_GetAttributeValue", code))
        });
        let attributes = attributes.map_err(|failure| self.error(failure));
        self.require_epoch(key)?;
        attributes?.ok_or(HsmError::KeyNotFound)
    }

    /// A known-good ciphertext of the health key decrypts on this session. Without one there is no proof, and a fault
    /// that a retry may cure must not be called a bad ciphertext.
    fn token_still_decrypts(&mut self) -> bool {
        let Some(known_good) = self.connection.known_good.load_full() else { return false };
        let plaintext = self.with_session(|_, session| {
            session.decrypt(known_good.key, &known_good.sealed, super::probe::AAD)
        });
        plaintext.is_ok_and(|plaintext| *plaintext == super::probe::PLAINTEXT)
    }

    /// Runs `work`; where the session turns out to be lost, opens another and runs it once more.
    fn with_session<T>(
        &mut self,
        mut work: impl FnMut(&Self, &dyn Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let first = self.with_open_session(&mut work);
        match first {
            Err((_, code)) if ckr::meaning(code) == Meaning::SessionLost => {
                self.give_session_up(code);
                // What was to be done with handles of another login is not begun on a session of this one.
                if self.connection.has_ended() {
                    return first;
                }
                self.metrics.failed(Meaning::SessionLost.label());
                self.metrics.retried("session_lost");
                self.with_open_session(&mut work)
            }
            done => done,
        }
    }

    fn with_open_session<T>(
        &mut self,
        work: &mut impl FnMut(&Self, &dyn Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.session.is_none() {
            self.open_session()?;
        }
        match &self.session {
            Some(session) => work(self, &**session),
            None => Err(("C_OpenSession", RvError::SessionHandleInvalid)),
        }
    }

    fn open_session(&mut self) -> Result<(), Failure> {
        let access = self.connection.profile.access_to_use_keys();
        let opened = self.connection.module.open_session(self.connection.slot, access);
        self.session = Some(opened.map_err(|code| ("C_OpenSession", code))?);
        Ok(())
    }

    /// A session that is still open, but in the middle of an operation, is closed; one that the token no longer knows
    /// is forgotten.
    fn give_session_up(&mut self, code: RvError) {
        let session = self.session.take();
        if let Some(session) = session
            && !matches!(code, RvError::OperationActive | RvError::OperationNotInitialized)
        {
            session.forget();
        }
    }

    fn bad_ciphertext(&self, meaning: Meaning) -> HsmError {
        self.metrics.failed(meaning.label());
        HsmError::BadCiphertext { is_certain: meaning == Meaning::BadTag }
    }

    /// What a failure means to whoever asked; notes what it means for the connection.
    fn error(&mut self, (call, code): Failure) -> HsmError {
        let meaning = match call {
            "C_EncryptInit" | "C_DecryptInit" | "C_GetAttributeValue" => {
                self.connection.profile.meaning_for_key(code)
            }
            _ => ckr::meaning(code),
        };
        self.metrics.failed(meaning.label());
        match meaning {
            Meaning::KeyGone => HsmError::KeyNotFound,
            Meaning::KeyNotPermitted => HsmError::KeyNotPermitted { code: ckr::name(code) },
            Meaning::LoginLost | Meaning::TokenLost => {
                self.lost = Some(meaning);
                ckr::device_error(call, code)
            }
            _ => {
                // Whatever state the failure left the session in goes with the session.
                drop(self.session.take());
                ckr::device_error(call, code)
            }
        }
    }
}
