//! Tokens: making one, and opening one by its label.

use cryptoki::context::Pkcs11;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::error::{Error, Result};
use crate::module::Module;

/// What [`initialize`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialized {
    /// There was no such token; it was made.
    Created,
    /// The token was there without a user PIN, as an interrupted run leaves it; the PIN was set.
    PinSet,
    /// The token was there; nothing was done.
    AlreadyThere,
}

/// Makes a token, unless one with this label exists. Without a `pin` the user PIN is left unset.
///
/// # Errors
/// [`Error::TokenLabelLength`], [`Error::NoFreeSlot`], [`Error::PinLength`], and [`Error::PinIncorrect`] where
/// the token exists without a user PIN and has another SO PIN.
pub fn initialize(
    module: &Module,
    label: &str,
    so_pin: &AuthPin,
    pin: Option<&AuthPin>,
) -> Result<Initialized> {
    if label.is_empty() || label.len() > 32 {
        return Err(Error::TokenLabelLength(label.to_owned()));
    }
    let pkcs11 = &module.pkcs11;
    let (slot, mut outcome) = match find_slot(pkcs11, Some(label)) {
        Ok(slot) => (slot, Initialized::AlreadyThere),
        Err(Error::NoSuchToken(_)) => {
            let slot = free_slot(pkcs11)?;
            pkcs11.init_token(slot, so_pin, label)?;
            (slot, Initialized::Created)
        }
        Err(error) => return Err(error),
    };
    if let Some(pin) = pin
        && !pkcs11.get_token_info(slot)?.user_pin_initialized()
    {
        let session = pkcs11.open_rw_session(slot)?;
        session.login(UserType::So, Some(so_pin))?;
        session.init_pin(pin)?;
        if outcome == Initialized::AlreadyThere {
            outcome = Initialized::PinSet;
        }
    }
    Ok(outcome)
}

fn free_slot(pkcs11: &Pkcs11) -> Result<Slot> {
    for slot in pkcs11.get_slots_with_token()? {
        if !pkcs11.get_token_info(slot)?.token_initialized() {
            return Ok(slot);
        }
    }
    Err(Error::NoFreeSlot)
}

/// The one initialised token with this label, or the only one there is.
fn find_slot(pkcs11: &Pkcs11, label: Option<&str>) -> Result<Slot> {
    let mut found = Vec::new();
    for slot in pkcs11.get_slots_with_initialized_token()? {
        let info = pkcs11.get_token_info(slot)?;
        if label.is_none_or(|label| label == info.label()) {
            found.push((slot, info.label().to_owned()));
        }
    }
    match (found.as_slice(), label) {
        ([(slot, _)], _) => Ok(*slot),
        ([], Some(label)) => Err(Error::NoSuchToken(label.to_owned())),
        ([], None) => Err(Error::NoToken),
        _ => Err(Error::AmbiguousToken(found.into_iter().map(|(_, label)| label).collect())),
    }
}

/// A token with a read-write session of its user. What can be done with its keys is in `key.rs`.
#[derive(Debug)]
pub struct Token {
    // Before the module: a session closes while the module is still initialised.
    pub(crate) session: Session,
    _module: Module,
}

impl Token {
    /// Opens the token with this label, or the only one there is, and logs in.
    ///
    /// # Errors
    /// [`Error::NoSuchToken`], [`Error::NoToken`], [`Error::AmbiguousToken`], [`Error::PinIncorrect`].
    pub fn open(module: Module, label: Option<&str>, pin: &AuthPin) -> Result<Self> {
        let slot = find_slot(&module.pkcs11, label)?;
        let session = module.pkcs11.open_rw_session(slot)?;
        session.login(UserType::User, Some(pin))?;
        Ok(Self { session, _module: module })
    }
}
