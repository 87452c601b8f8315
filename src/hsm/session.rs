//! What the threads of a token ask of a PKCS#11 module: in this process, or in a helper's.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{SessionState, UserType as CryptokiUserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::Zeroizing;

use super::gate::Gate;
use super::gcm::{Failure, NewIv};
use super::keys::{self, KeyObject};
use super::module::{OpenSession, OwnModule};
use super::pin_guard::PinFlag;
use super::settings::UserType;
use super::{KeyLocator, Sealed, TokenIdentity, ckr};
use crate::secret::Secret;

/// A module that has been loaded and initialised.
pub(super) trait Module: Send + Sync {
    /// The tokens that are there and the slots that they are in. A slot that cannot be asked is left out: others of the
    /// module must stay reachable.
    fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, RvError>;

    /// What the token in a slot says of itself now.
    fn token(&self, slot: Slot) -> Result<TokenInfo, RvError>;

    /// Whether the token in a slot has CKM_AES_GCM.
    fn has_aes_gcm(&self, slot: Slot) -> Result<bool, RvError>;

    /// Opens a session with the token in a slot.
    fn open_session(&self, slot: Slot, access: Access) -> Result<Box<dyn Session>, RvError>;

    /// Whoever calls the module goes through here.
    fn gate(&self) -> &Gate;

    /// A token of the module serves.
    fn begin_serving(&self) {}

    /// It serves no more.
    fn end_serving(&self) {}
}

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Access {
    /// Use keys.
    ReadOnly,
    /// Make keys too.
    ReadWrite,
}

/// An open session. Lives on one thread; dropping it closes it.
pub(super) trait Session: Send {
    /// Logs the application in.
    fn log_in(&self, user_type: UserType, pin: &Secret) -> Result<(), RvError>;

    /// Whether anybody is logged in.
    fn is_logged_in(&self) -> bool;

    /// The secret keys that answer to `locator`, or all.
    fn find_keys(&self, locator: Option<&KeyLocator>) -> Result<Vec<ObjectHandle>, RvError>;

    /// A key as the token describes it, `None` where it has gone.
    fn read_key(&self, key: ObjectHandle) -> Result<Option<KeyObject>, RvError>;

    /// Makes an AES-256 key that lives as long as the session.
    fn make_session_key(&self) -> Result<ObjectHandle, RvError>;

    /// Fills a buffer from the token's random source.
    fn random(&self, bytes: &mut [u8]) -> Result<(), RvError>;

    /// Encrypts by AES-GCM. Whether the IV may be used is for the caller to judge.
    fn encrypt(
        &self,
        key: ObjectHandle,
        new_iv: NewIv,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Failure>;

    /// Decrypts by AES-GCM.
    fn decrypt(&self, key: ObjectHandle, sealed: &Sealed, aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure>;

    /// Gives the session up without closing it: it is gone, and its handle may by now be another's.
    fn forget(self: Box<Self>);
}

/// What matters of what a token says of itself (C_GetTokenInfo).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TokenInfo {
    pub(super) label: String,
    pub(super) identity: TokenIdentity,
    pub(super) is_initialized: bool,
    pub(super) needs_login: bool,
    user_pin: Option<PinFlag>,
    officer_pin: Option<PinFlag>,
}

impl TokenInfo {
    /// How near the PIN of `user` is to being locked. Of a vendor's own users the standard says nothing: the user's flags may
    /// be theirs as well.
    pub(super) fn pin_flag(&self, user: UserType) -> Option<PinFlag> {
        match user {
            UserType::SecurityOfficer => self.officer_pin,
            UserType::User | UserType::Vendor(_) => self.user_pin,
        }
    }
}

impl From<&cryptoki::slot::TokenInfo> for TokenInfo {
    fn from(token: &cryptoki::slot::TokenInfo) -> Self {
        let firmware = token.firmware_version();
        let identity = TokenIdentity {
            manufacturer: token.manufacturer_id().into(),
            model: token.model().into(),
            serial: token.serial_number().into(),
            firmware: format!("{}.{}", firmware.major(), firmware.minor()).into(),
        };
        Self {
            label: token.label().to_owned(),
            identity,
            is_initialized: token.token_initialized(),
            needs_login: token.login_required(),
            user_pin: PinFlag::of([
                token.user_pin_locked(),
                token.user_pin_final_try(),
                token.user_pin_count_low(),
            ]),
            officer_pin: PinFlag::of([
                token.so_pin_locked(),
                token.so_pin_final_try(),
                token.so_pin_count_low(),
            ]),
        }
    }
}

impl Module for Arc<OwnModule> {
    fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, RvError> {
        let slots = self.pkcs11.get_slots_with_token().map_err(code)?;
        Ok(slots.into_iter().filter_map(|slot| Some((slot, self.token(slot).ok()?))).collect())
    }

    fn token(&self, slot: Slot) -> Result<TokenInfo, RvError> {
        self.pkcs11.get_token_info(slot).map(|token| TokenInfo::from(&token)).map_err(code)
    }

    fn has_aes_gcm(&self, slot: Slot) -> Result<bool, RvError> {
        let mechanisms = self.pkcs11.get_mechanism_list(slot).map_err(code)?;
        Ok(mechanisms.contains(&MechanismType::AES_GCM))
    }

    fn open_session(&self, slot: Slot, access: Access) -> Result<Box<dyn Session>, RvError> {
        let session = OpenSession::open(self, slot, access == Access::ReadWrite).map_err(code)?;
        Ok(Box::new(OwnSession { session, module: Self::clone(self) }))
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn begin_serving(&self) {
        OwnModule::begin_serving(self);
    }

    fn end_serving(&self) {
        OwnModule::end_serving(self);
    }
}

/// A session of a module in this process.
struct OwnSession {
    session: OpenSession,
    module: Arc<OwnModule>,
}

impl Session for OwnSession {
    fn log_in(&self, user_type: UserType, pin: &Secret) -> Result<(), RvError> {
        let user_type = match user_type {
            UserType::User => CryptokiUserType::User,
            UserType::SecurityOfficer => CryptokiUserType::So,
            UserType::Vendor(value) => CryptokiUserType::VendorExtension(value),
        };
        self.session.login(user_type, Some(&AuthPin::new(pin.expose().into()))).map_err(code)
    }

    fn is_logged_in(&self) -> bool {
        let state = self.session.get_session_info().map(|info| info.session_state());
        matches!(state, Ok(SessionState::RwUser | SessionState::RwSecurityOfficer | SessionState::RoUser))
    }

    fn find_keys(&self, locator: Option<&KeyLocator>) -> Result<Vec<ObjectHandle>, RvError> {
        const HANDLES_A_CALL: std::num::NonZeroUsize = std::num::NonZeroUsize::new(256).unwrap();
        let template = keys::template(locator);
        if locator.is_some() {
            return self.session.find_objects(&template).map_err(code);
        }
        let objects = self.session.iter_objects_with_cache_size(&template, HANDLES_A_CALL).map_err(code)?;
        objects.collect::<Result<_, _>>().map_err(code)
    }

    fn read_key(&self, key: ObjectHandle) -> Result<Option<KeyObject>, RvError> {
        keys::read_at_once(&self.module.gcm, &self.session, key)
    }

    fn make_session_key(&self) -> Result<ObjectHandle, RvError> {
        let template = [
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(32.into()),
        ];
        self.session.generate_key(&Mechanism::AesKeyGen, &template).map_err(code)
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), RvError> {
        self.session.generate_random_slice(bytes).map_err(code)
    }

    fn encrypt(
        &self,
        key: ObjectHandle,
        new_iv: NewIv,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Failure> {
        self.module.gcm.encrypt(&self.session, key, new_iv, aad, plaintext)
    }

    fn decrypt(&self, key: ObjectHandle, sealed: &Sealed, aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.module.gcm.decrypt(&self.session, key, &sealed.iv, aad, &sealed.ciphertext_and_tag)
    }

    fn forget(self: Box<Self>) {
        std::mem::forget(self.session);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn code(error: Error) -> RvError {
    ckr::code_of(&error)
}
