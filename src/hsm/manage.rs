//! What an operator does to a token's keys by command: list them, and make new ones.

use std::sync::Arc;

use cryptoki::error::Error as CryptokiError;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use thiserror::Error;

use super::connection::{self, ConnectionFault, Epoch};
use super::keys::{self, KeyObject};
use super::module::{Modules, OpenSession};
use super::session::Session as TokenSession;
use super::settings::TokenSettings;
use super::{KeyKind, KeyLocator, KeyUsages, ckr};

/// A login of its own to one token. The keys stay the token's: nothing of them but their attributes is read.
pub struct KeyManager {
    session: OpenSession,
    /// The one that logged in: the login lasts while it is open.
    _login: Box<dyn TokenSession>,
}

/// A secret key of the token, as far as it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedKey {
    /// CKA_LABEL, where it is UTF-8.
    pub label: Option<Box<str>>,
    /// CKA_ID, where it has one.
    pub id: Option<Box<[u8]>>,
    /// Algorithm and length.
    pub kind: KeyKind,
    /// What it may do.
    pub usages: KeyUsages,
    /// CKA_SENSITIVE: its value cannot be read; `None` where the token does not tell.
    pub is_sensitive: Option<bool>,
    /// CKA_EXTRACTABLE: it may leave the token wrapped by another key.
    pub is_extractable: Option<bool>,
}

impl ManagedKey {
    /// Whether `locator` means this key, among others perhaps.
    #[must_use]
    pub fn answers_to(&self, locator: &KeyLocator) -> bool {
        match locator {
            KeyLocator::Label(label) => self.label.as_ref() == Some(label),
            KeyLocator::Id(id) => self.id.as_ref() == Some(id),
        }
    }

    /// What of it is not as [`KeyManager::generate`] asks.
    fn deviation(&self) -> Option<&'static str> {
        let Self { kind, usages, is_sensitive, is_extractable, .. } = self;
        let wanted = KeyUsages { encrypt: true, decrypt: true, ..KeyUsages::default() };
        if *kind != (KeyKind::Aes { bits: Some(256) }) {
            Some("it is not an AES-256 key")
        } else if *is_sensitive != Some(true) {
            Some("it is not sensitive")
        } else if *is_extractable != Some(false) {
            Some("it is extractable")
        } else if *usages != wanted {
            Some("it may do more or less than encrypt and decrypt")
        } else {
            None
        }
    }
}

impl KeyManager {
    /// Logs in, once.
    ///
    /// # Errors
    /// [`ManageFault::Connection`].
    pub fn connect(settings: &TokenSettings, modules: &Modules) -> Result<Self, ManageFault> {
        let module = modules.load(&settings.module).map_err(ConnectionFault::from)?;
        let in_process = Arc::new(Arc::clone(&module));
        let (connection, login) =
            connection::connect(settings, in_process, Epoch(0), &modules.pin_guard, || {})?;
        let session = OpenSession::open(&module, connection.slot, true);
        let session = session.map_err(|error| call_fault("C_OpenSession", &error))?;
        Ok(Self { session, _login: login })
    }

    /// Every secret key, sorted by label.
    ///
    /// # Errors
    /// [`ManageFault::Call`].
    pub fn keys(&self) -> Result<Vec<ManagedKey>, ManageFault> {
        let mut keys = self.find(None)?;
        keys.sort_by(|(_, a), (_, b)| (&a.label, &a.id).cmp(&(&b.label, &b.id)));
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }

    /// Has the token make an AES-256 key that may encrypt and decrypt and nothing else, sensitive and not extractable.
    ///
    /// # Errors
    /// [`ManageFault::LabelExists`] where a key has that label; [`ManageFault::NotAsAsked`] where the token made another
    /// kind of key, which is destroyed again; [`ManageFault::Call`].
    pub fn generate(&self, label: &str) -> Result<ManagedKey, ManageFault> {
        let locator = KeyLocator::Label(label.into());
        if !self.find(Some(&locator))?.is_empty() {
            return Err(ManageFault::LabelExists(label.into()));
        }
        let template = [
            Attribute::Token(true),
            Attribute::Label(label.into()),
            Attribute::ValueLen(32.into()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Sign(false),
            Attribute::Verify(false),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
        ];
        let made = self.session.generate_key(&Mechanism::AesKeyGen, &template);
        let made = made.map_err(|error| call_fault("C_GenerateKey", &error))?;
        match self.examine(made, &locator) {
            Ok(key) => Ok(key),
            Err(fault) => {
                // Nothing has been encrypted under it.
                self.session.destroy_object(made).map_err(|error| call_fault("C_DestroyObject", &error))?;
                Err(fault)
            }
        }
    }

    /// The key just made, if it is as asked and alone with its label: somebody else may have made one meanwhile.
    fn examine(&self, made: ObjectHandle, locator: &KeyLocator) -> Result<ManagedKey, ManageFault> {
        let mut found = self.find(Some(locator))?;
        let Some(position) = found.iter().position(|(handle, _)| *handle == made) else {
            return Err(ManageFault::NotAsAsked("it has not the label that was asked for"));
        };
        let (_, key) = found.swap_remove(position);
        if let (false, KeyLocator::Label(label)) = (found.is_empty(), locator) {
            return Err(ManageFault::LabelExists(label.clone()));
        }
        key.deviation().map_or(Ok(key), |deviation| Err(ManageFault::NotAsAsked(deviation)))
    }

    fn find(&self, locator: Option<&KeyLocator>) -> Result<Vec<(ObjectHandle, ManagedKey)>, ManageFault> {
        let found = self.session.find_objects(&keys::template(locator));
        let mut keys = Vec::new();
        for handle in found.map_err(|error| call_fault("C_FindObjects", &error))? {
            let read = keys::read(&self.session, handle).and_then(|object| {
                let Some(object) = object else { return Ok(None) };
                let wanted = [AttributeType::Sensitive, AttributeType::Extractable];
                Ok(Some((object, self.session.get_attributes(handle, &wanted)?)))
            });
            if let Some((object, attributes)) =
                read.map_err(|error| call_fault("C_GetAttributeValue", &error))?
            {
                keys.push((handle, managed(object, &attributes)));
            }
        }
        Ok(keys)
    }
}

fn managed(object: KeyObject, attributes: &[Attribute]) -> ManagedKey {
    let (mut is_sensitive, mut is_extractable) = (None, None);
    for attribute in attributes {
        match attribute {
            Attribute::Sensitive(value) => is_sensitive = Some(*value),
            Attribute::Extractable(value) => is_extractable = Some(*value),
            _ => {}
        }
    }
    let KeyObject { label, id, attributes, .. } = object;
    ManagedKey { label, id, kind: attributes.kind, usages: attributes.usages, is_sensitive, is_extractable }
}

fn call_fault(call: &'static str, error: &CryptokiError) -> ManageFault {
    ManageFault::Call { call, code: ckr::name(ckr::code_of(error)) }
}

/// Why a key was not made or listed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManageFault {
    /// The token cannot be used.
    #[error(transparent)]
    Connection(#[from] ConnectionFault),
    /// A key has that label: none is ever overwritten, nor made twice.
    #[error("the token has a key with the label {0:?} already")]
    LabelExists(Box<str>),
    /// The token made something else.
    #[error("the token did not make the key that was asked for: {0}; it was destroyed again")]
    NotAsAsked(&'static str),
    /// A call failed.
    #[error("{call} failed with {code}")]
    Call {
        /// The PKCS#11 function.
        call: &'static str,
        /// The return code.
        code: Box<str>,
    },
}
