//! What a fleet knows of its keys from earlier configurations and processes.

use super::Fleet;
use crate::hsm::{CheckValue, KeyLocator, KeyMaterial};

/// Which key a version was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownVersion {
    /// How it was found then.
    pub locator: KeyLocator,
    /// What that key made of the known text.
    pub check_value: CheckValue,
}

impl KnownVersion {
    /// Whether the configuration says that another key is meant: under the same name it pins what that other key has made.
    #[must_use]
    pub fn is_overruled_by(&self, key: &KeyMaterial) -> bool {
        self.locator == key.locator && key.check_value.is_some()
    }
}

/// Remembers which key each version of a store's keys is. The fleet knows versions by their locators.
pub trait KeyMemory: Send + Sync {
    /// What the version that a locator now stands for was found to be.
    fn known(&self, locator: &KeyLocator) -> Option<KnownVersion>;

    /// The version that a locator stands for is on that token, and is the key that made this. Must return at once.
    fn note(&self, locator: &KeyLocator, check_value: &CheckValue, token: &str);

    /// Every token of the fleet has listed its keys, or has others than at the last time. Asks the indexes alone.
    fn note_listing(&self, fleet: &Fleet);
}
