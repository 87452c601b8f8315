//! One login to one token: found by label, serial number or slot id.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use cryptoki::slot::Slot;
use thiserror::Error;

use super::ckr::Meaning;
use super::gate::Generation;
use super::iv::IvSource;
use super::module::ModuleFault;
use super::pin_guard::{PinFault, PinGuard};
use super::profiles::Profile;
use super::session::{Access, Module, Session, TokenInfo};
use super::settings::TokenSettings;
use super::{Sealed, TokenIdentity, ckr};
use crate::secret::SecretFault;

/// How a token is told from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenSelector {
    /// By its label, trailing spaces aside.
    Label(Box<str>),
    /// By its serial number.
    Serial(Box<str>),
    /// By the id of its slot. Some modules number slots anew at every start.
    SlotId(u64),
}

impl fmt::Display for TokenSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "label {label:?}"),
            Self::Serial(serial) => write!(f, "serial number {serial:?}"),
            Self::SlotId(id) => write!(f, "slot id {id}"),
        }
    }
}

/// Counts initialisations and logins: object handles of one epoch mean nothing in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Epoch(pub(super) u64);

/// A token that has been found and logged in to.
pub(super) struct Connection {
    pub(super) module: Arc<dyn Module>,
    /// Of the module, which may be initialised anew.
    pub(super) generation: Generation,
    pub(super) slot: Slot,
    pub(super) identity: Arc<TokenIdentity>,
    pub(super) epoch: Epoch,
    /// What is known of this kind of token.
    pub(super) profile: &'static Profile,
    /// Where IVs come from.
    pub(super) iv_source: IvSource,
    /// What tells a bad tag from a broken token; there once the first probe has ended.
    pub(super) known_good: ArcSwapOption<KnownGood>,
    /// It has ended, or its login has: from here on another login may give its handles another meaning.
    has_ended: AtomicBool,
    /// Why it ended, once it has: a lost token took its sessions along, otherwise they are still to be closed.
    pub(super) lost: OnceLock<Meaning>,
    /// A probe has shown that the token makes good ciphertexts with its IV source. Without a key to probe with, each key has
    /// to show that.
    pub(super) is_proven: AtomicBool,
    /// The probe has shown that what the token encrypts does not decrypt: none of it may leave.
    pub(super) encrypts_wrongly: AtomicBool,
    /// The probe has shown that what it decrypts is not what was encrypted: no plaintext may leave either.
    pub(super) decrypts_wrongly: AtomicBool,
}

impl Connection {
    /// Said before there is another login.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    /// Whether it has made good ciphertexts.
    pub(super) fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Acquire)
    }

    /// What its handles were used for since it was asked last may have been done with other keys.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

/// A ciphertext of the health key that decrypts, as it has been seen to.
pub(super) struct KnownGood {
    pub(super) key: ObjectHandle,
    pub(super) sealed: Sealed,
}

/// Finds the token and logs in, where the PIN may be tried.
///
/// The session that comes along is the one that logged in; the login lasts while any session is open. `on_new_login` is called
/// where no login was there: before there is one, if the token says so, or else once it has taken the PIN.
pub(super) fn connect(
    settings: &TokenSettings,
    module: Arc<dyn Module>,
    epoch: Epoch,
    pin_guard: &PinGuard,
    on_new_login: impl Fn(),
) -> Result<(Connection, Box<dyn Session>), ConnectionFault> {
    let door = Arc::clone(&module);
    let being_initialised = || ModuleFault::BeingInitialised(settings.module.clone());
    let _inside = door.gate().enter().ok_or_else(being_initialised)?;
    let (slot, token) = find(&*module, &settings.selector)?;
    if !module.has_aes_gcm(slot).map_err(|code| call_fault("C_GetMechanismList", code))? {
        return Err(ConnectionFault::NoAesGcm);
    }
    let session = module.open_session(slot, Access::ReadWrite);
    let session = session.map_err(|code| call_fault("C_OpenSession", code))?;
    log_in(settings, pin_guard, (&*module, slot), &token, &*session, on_new_login)?;
    let identity = Arc::new(token.identity);
    let profile = settings.profile.unwrap_or_else(|| Profile::of_manufacturer(&identity.manufacturer));
    let connection = Connection {
        generation: module.gate().generation(),
        module,
        slot,
        identity,
        epoch,
        profile,
        iv_source: settings.iv_source.unwrap_or(profile.iv_source.value),
        known_good: ArcSwapOption::empty(),
        has_ended: AtomicBool::new(false),
        lost: OnceLock::new(),
        is_proven: AtomicBool::new(false),
        encrypts_wrongly: AtomicBool::new(false),
        decrypts_wrongly: AtomicBool::new(false),
    };
    Ok((connection, session))
}

/// The one token that the selector means.
pub(super) fn find(
    module: &dyn Module,
    selector: &TokenSelector,
) -> Result<(Slot, TokenInfo), ConnectionFault> {
    let mut found = None;
    let mut seen = Vec::new();
    for (slot, token) in module.tokens().map_err(|code| call_fault("C_GetSlotList", code))? {
        let is_meant = match selector {
            TokenSelector::Label(label) => *token.label == **label,
            TokenSelector::Serial(serial) => *token.identity.serial == **serial,
            TokenSelector::SlotId(id) => slot.id() == *id,
        };
        if is_meant && found.is_some() {
            return Err(ConnectionFault::SeveralTokens(selector.clone()));
        }
        if token.is_initialized {
            seen.push(format!("{:?}", token.label));
        }
        if is_meant {
            found = Some((slot, token));
        }
    }
    found.ok_or_else(|| ConnectionFault::NoToken { selector: selector.clone(), seen: seen.join(", ").into() })
}

fn log_in(
    settings: &TokenSettings,
    pin_guard: &PinGuard,
    (module, slot): (&dyn Module, Slot),
    token: &TokenInfo,
    session: &dyn Session,
    on_new_login: impl Fn(),
) -> Result<(), ConnectionFault> {
    let Some(source) = &settings.pin else {
        return if token.needs_login { Err(ConnectionFault::PinNeeded) } else { Ok(()) };
    };
    let pin = source.read()?;
    // What was read before may be of before another's try.
    let flag = || {
        let now = module.token(slot);
        now.as_ref().unwrap_or(token).pin_flag(settings.user_type)
    };
    let attempt = pin_guard.permit(settings, &token.identity.serial, &pin, flag)?;
    if !session.is_logged_in() {
        on_new_login();
    }
    match session.log_in(settings.user_type, &pin) {
        Ok(()) => {
            on_new_login();
            attempt.accepted();
            Ok(())
        }
        // The login belongs to the application: another of our configured tokens may be the same one. Of the PIN this says
        // nothing.
        Err(RvError::UserAlreadyLoggedIn) => {
            attempt.not_judged();
            Ok(())
        }
        // Whatever the token has said, nobody has heard it: the attempt counts.
        Err(ckr::HELPER_ENDED) => Err(call_fault("C_Login", ckr::HELPER_ENDED)),
        Err(code) => {
            let is_about_pin = matches!(
                code,
                RvError::PinIncorrect
                    | RvError::PinInvalid
                    | RvError::PinLenRange
                    | RvError::PinLocked
                    | RvError::PinExpired
            );
            if is_about_pin {
                Err(attempt.refused(&ckr::name(code)).into())
            } else {
                attempt.not_judged();
                Err(call_fault("C_Login", code))
            }
        }
    }
}

fn call_fault(call: &'static str, code: RvError) -> ConnectionFault {
    ConnectionFault::Call { call, code: ckr::name(code) }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectionFault {
    /// The module is not usable.
    #[error(transparent)]
    Module(#[from] ModuleFault),
    /// The PIN cannot be read.
    #[error("the PIN: {0}")]
    Secret(#[from] SecretFault),
    /// The module has no such token.
    #[error("the module has no token with {selector}; the labels of those it has: {}", if seen.is_empty() { "none" } else { seen })]
    NoToken {
        /// What was looked for.
        selector: TokenSelector,
        /// Labels of the tokens that are there.
        seen: Box<str>,
    },
    /// More than one token answers.
    #[error("the module has several tokens with {0}: choose one by its serial number")]
    SeveralTokens(TokenSelector),
    /// The token cannot do what the proxy needs.
    #[error("the token has no AES-GCM (CKM_AES_GCM): it cannot serve an external key store")]
    NoAesGcm,
    /// The token wants a login and the configuration has no PIN.
    #[error("the token wants a login: give its PIN in the configuration")]
    PinNeeded,
    /// The token refused the PIN, now or before, or the PIN must not be tried.
    #[error(transparent)]
    Pin(#[from] PinFault),
    /// A call failed.
    #[error("{call} failed with {code}")]
    Call {
        /// The PKCS#11 function.
        call: &'static str,
        /// The return code.
        code: Box<str>,
    },
}
