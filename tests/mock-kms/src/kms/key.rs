//! KMS keys: what they are, which state they are in, and what may be done with them in it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::name::{Home, KeyName, hex, random_bytes, uuid_bytes};
use super::store::ConnectionState;
use super::stores::NOT_CONNECTED;
use super::{Exception, KmsError, State, Timestamp};

/// Most tags of a key.
pub const MAX_TAGS: usize = 50;
/// Waiting period of ScheduleKeyDeletion where none is given, in days.
pub const DEFAULT_PENDING_WINDOW_DAYS: i64 = 30;
/// `RotationPeriodInDays` where the request says none.
pub const DEFAULT_ROTATION_PERIOD_DAYS: i64 = 365;

/// A symmetric KMS key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// A UUID.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// `Description`.
    pub description: String,
    /// Key policy, JSON. Returned, never evaluated.
    pub policy: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// What EnableKey and DisableKey set.
    pub is_enabled: bool,
    /// Set while deletion is pending.
    pub deletion: Option<Deletion>,
    /// Where the key material is.
    pub origin: Origin,
    /// What EnableKeyRotation and DisableKeyRotation set. Nothing rotates.
    pub is_rotating: bool,
    /// `RotationPeriodInDays`, which counts while rotation is enabled.
    #[serde(default = "default_rotation_period_days")]
    pub rotation_period_days: i64,
    /// The key's own material inside KMS: every key has some, those of external key stores too.
    pub material: Material,
}

/// State files of before the period was kept have none.
const fn default_rotation_period_days() -> i64 {
    DEFAULT_ROTATION_PERIOD_DAYS
}

/// A deletion that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When the key goes.
    pub at: Timestamp,
    /// Length of the waiting period.
    pub window_days: i64,
}

/// `Origin` of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// All in KMS.
    AwsKms,
    /// Half in KMS, half behind a proxy.
    ExternalKeyStore {
        /// The store.
        store_id: String,
        /// The external key's id at the proxy.
        xks_key_id: String,
    },
}

impl Origin {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::AwsKms => "AWS_KMS",
            Self::ExternalKeyStore { .. } => "EXTERNAL_KEY_STORE",
        }
    }

    /// Store and external key id, of a key in an external key store.
    #[must_use]
    pub fn external_key(&self) -> Option<(&str, &str)> {
        match self {
            Self::AwsKms => None,
            Self::ExternalKeyStore { store_id, xks_key_id } => Some((store_id, xks_key_id)),
        }
    }

    /// The store, of a key in an external key store.
    #[must_use]
    pub fn store_id(&self) -> Option<&str> {
        self.external_key().map(|(store_id, _)| store_id)
    }
}

/// 256 bits of key material, hidden from Debug and wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Material([u8; 32]);

impl Material {
    /// New material.
    ///
    /// # Errors
    /// `KMSInternalException` when the system has no random bytes.
    pub fn random() -> Result<Self, KmsError> {
        Ok(Self(random_bytes()?))
    }

    /// Material of known bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to encrypt with.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// `KeyMaterialId`: 64 hexadecimal digits that tell one material from another.
    #[must_use]
    pub fn id(&self) -> String {
        use sha2::Digest as _;
        hex(&sha2::Sha256::new().chain_update(b"mock-kms key material id").chain_update(self.0).finalize())
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Material(..)")
    }
}

/// `KeyState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the KMS developer guide explains them")]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    Unavailable,
}

impl KeyState {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::Unavailable => "Unavailable",
        }
    }
}

impl State {
    /// The key that a caller named.
    ///
    /// # Errors
    /// `NotFoundException`, and `InvalidArnException` for ARNs that are none of KMS.
    pub fn key(&self, home: &Home, name: &str) -> Result<&Key, KmsError> {
        let id = self.key_id(home, name)?;
        self.keys.get(&id).ok_or_else(|| key_not_found(&home.key_arn(&id)))
    }

    fn key_mut(&mut self, home: &Home, name: &str) -> Result<&mut Key, KmsError> {
        let id = self.key_id(home, name)?;
        self.keys.get_mut(&id).ok_or_else(|| key_not_found(&home.key_arn(&id)))
    }

    fn key_id(&self, home: &Home, name: &str) -> Result<String, KmsError> {
        match home.parse(name)? {
            KeyName::Id(id) if uuid_bytes(id).is_none() => {
                Err(KmsError::new(Exception::NotFoundException, format!("Invalid keyId '{id}'")))
            }
            KeyName::Id(id) => Ok(id.to_owned()),
            KeyName::Alias(alias) => Ok(self.alias(home, alias)?.target_key_id.clone()),
        }
    }

    /// The state that DescribeKey shows. Deletion shows through a store that is not connected, nothing else does.
    #[must_use]
    pub fn key_state(&self, key: &Key) -> KeyState {
        if key.deletion.is_some() {
            return KeyState::PendingDeletion;
        }
        let store = key.origin.store_id().map(|id| self.stores.get(id));
        let is_reachable = store
            .is_none_or(|store| store.is_some_and(|store| store.connection == ConnectionState::Connected));
        match (is_reachable, key.is_enabled) {
            (false, _) => KeyState::Unavailable,
            (true, true) => KeyState::Enabled,
            (true, false) => KeyState::Disabled,
        }
    }

    /// Checks that a key may be used for cryptography.
    ///
    /// # Errors
    /// `DisabledException`; `KMSInvalidStateException` while deletion is pending or the store is not connected.
    pub fn check_usable(&self, home: &Home, key: &Key) -> Result<(), KmsError> {
        match self.key_state(key) {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => {
                let message = format!("{} is disabled.", home.key_arn(&key.id));
                Err(KmsError::new(Exception::DisabledException, message))
            }
            KeyState::PendingDeletion => Err(pending_deletion(home, key)),
            KeyState::Unavailable => Err(KmsError::new(Exception::KMSInvalidStateException, NOT_CONNECTED)),
        }
    }

    /// Checks that a key is not pending deletion, as most operations of management want.
    ///
    /// # Errors
    /// `KMSInvalidStateException`.
    pub fn check_not_pending_deletion(&self, home: &Home, key: &Key) -> Result<(), KmsError> {
        if key.deletion.is_some() { Err(pending_deletion(home, key)) } else { Ok(()) }
    }

    /// Adds a key.
    ///
    /// # Errors
    /// As [`State::check_new_xks_key`] for a key in an external key store.
    pub fn create_key(&mut self, key: Key) -> Result<(), KmsError> {
        if let Some((store_id, xks_key_id)) = key.origin.external_key() {
            self.check_new_xks_key(store_id, xks_key_id)?;
        }
        self.keys.insert(key.id.clone(), key);
        Ok(())
    }

    /// Changes a key that is not pending deletion.
    ///
    /// # Errors
    /// `NotFoundException`, `KMSInvalidStateException`, and those of `change`.
    pub fn change_key<T>(
        &mut self,
        home: &Home,
        name: &str,
        change: impl FnOnce(&mut Key) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let key = self.key_mut(home, name)?;
        if key.deletion.is_some() {
            return Err(pending_deletion(home, key));
        }
        change(key)
    }

    /// Changes the policy, which may change while deletion is pending too.
    ///
    /// # Errors
    /// `NotFoundException`.
    pub fn put_policy(&mut self, home: &Home, name: &str, policy: String) -> Result<(), KmsError> {
        self.key_mut(home, name)?.policy = policy;
        Ok(())
    }

    /// Schedules a key's deletion.
    ///
    /// # Errors
    /// `NotFoundException`, `KMSInvalidStateException` when it is pending already.
    pub fn schedule_deletion(
        &mut self,
        home: &Home,
        name: &str,
        window_days: i64,
        now: Timestamp,
    ) -> Result<Key, KmsError> {
        self.change_key(home, name, |key| {
            key.deletion = Some(Deletion { at: now.plus_days(window_days), window_days });
            Ok(key.clone())
        })
    }

    /// Cancels a key's deletion; the key is disabled afterwards.
    ///
    /// # Errors
    /// `NotFoundException`, `KMSInvalidStateException` when none is pending.
    pub fn cancel_deletion(&mut self, home: &Home, name: &str) -> Result<String, KmsError> {
        let key = self.key_mut(home, name)?;
        let arn = home.key_arn(&key.id);
        if key.deletion.take().is_none() {
            let message = format!("{arn} is not pending deletion.");
            return Err(KmsError::new(Exception::KMSInvalidStateException, message));
        }
        key.is_enabled = false;
        Ok(arn)
    }

    /// Removes the keys whose waiting period is over, and their aliases. Says whether there were any.
    pub fn delete_expired_keys(&mut self, now: Timestamp) -> bool {
        let before = self.keys.len();
        self.keys.retain(|_, key| key.deletion.is_none_or(|deletion| now < deletion.at));
        let keys = &self.keys;
        self.aliases.retain(|_, alias| keys.contains_key(&alias.target_key_id));
        self.keys.len() < before
    }

    /// When the next key goes.
    #[must_use]
    pub fn earliest_deletion(&self) -> Option<Timestamp> {
        self.keys.values().filter_map(|key| Some(key.deletion?.at)).min()
    }
}

impl Key {
    /// Adds or replaces tags.
    ///
    /// # Errors
    /// `LimitExceededException` beyond 50 tags.
    pub fn add_tags(&mut self, tags: BTreeMap<String, String>) -> Result<(), KmsError> {
        let new = tags.keys().filter(|key| !self.tags.contains_key(*key)).count();
        if self.tags.len() + new > MAX_TAGS {
            return Err(KmsError::new(
                Exception::LimitExceededException,
                "A KMS key can have at most 50 tags.",
            ));
        }
        self.tags.extend(tags);
        Ok(())
    }
}

fn key_not_found(arn: &str) -> KmsError {
    KmsError::new(Exception::NotFoundException, format!("Key '{arn}' does not exist"))
}

fn pending_deletion(home: &Home, key: &Key) -> KmsError {
    let message = format!("{} is pending deletion.", home.key_arn(&key.id));
    KmsError::new(Exception::KMSInvalidStateException, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_at_the_end_of_its_waiting_period_and_not_before() {
        let home = Home { account_id: "111122223333".to_owned(), region: "us-east-1".to_owned() };
        let start = Timestamp { unix_ms: 1_700_000_000_000 };
        let key = Key {
            id: "1234abcd-12ab-44cd-96ef-1234567890ab".to_owned(),
            created: start,
            description: String::new(),
            policy: String::new(),
            tags: BTreeMap::new(),
            is_enabled: true,
            deletion: None,
            origin: Origin::AwsKms,
            is_rotating: false,
            rotation_period_days: DEFAULT_ROTATION_PERIOD_DAYS,
            material: Material::from_bytes([1; 32]),
        };
        let (id, arn) = (key.id.clone(), home.key_arn(&key.id));
        let mut state = State::default();
        state.create_key(key).unwrap();
        state.create_alias(&home, "alias/a", &id, start).unwrap();
        state.schedule_deletion(&home, &arn, 7, start).unwrap();
        let end = start.plus_days(7);
        assert_eq!(state.earliest_deletion(), Some(end));
        assert!(!state.delete_expired_keys(Timestamp { unix_ms: end.unix_ms - 1 }));
        assert!(state.key(&home, "alias/a").is_ok());
        assert!(state.delete_expired_keys(end));
        assert_eq!(state.earliest_deletion(), None);
        assert!(state.keys.is_empty() && state.aliases.is_empty());
    }

    #[test]
    fn material_is_not_shown() {
        let material = Material::from_bytes([0x5a; 32]);
        assert_eq!(format!("{material:?}"), "Material(..)");
        assert!(!material.id().contains("5a5a5a5a"));
    }
}
