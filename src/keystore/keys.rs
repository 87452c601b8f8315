//! The external keys of a store, listed one by one or made by a rule.

use std::collections::HashMap;
use std::sync::Arc;

use xks_spec::ExternalKeyId;

use crate::hsm::{KeyLocator, KeyMaterial};

/// Version number of a key that a rule makes.
const RULE_KEY_VERSION: u32 = 1;

/// One generation of an external key's material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The number that ciphertexts carry: written in the configuration once and never used for other material.
    pub number: u32,
    /// The key in the tokens.
    pub material: KeyMaterial,
}

/// What an external key id stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalKey {
    /// Whether it may be used.
    pub is_enabled: bool,
    /// The version that encrypts.
    pub primary: KeyVersion,
}

impl ExternalKey {
    /// The version of that number.
    #[must_use]
    pub fn version(&self, number: u32) -> Option<&KeyVersion> {
        (self.primary.number == number).then_some(&self.primary)
    }
}

/// Makes external keys by a rule: CKA_LABEL is the prefix followed by the external key id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRule {
    /// What every label starts with; may be empty.
    pub label_prefix: Box<str>,
}

/// The keys of one store.
#[derive(Clone, Debug, Default)]
pub struct KeyMap {
    listed: HashMap<ExternalKeyId, Arc<ExternalKey>>,
    rule: Option<KeyRule>,
}

impl KeyMap {
    /// The keys listed, and those of a rule for every other id.
    #[must_use]
    pub fn new(listed: HashMap<ExternalKeyId, Arc<ExternalKey>>, rule: Option<KeyRule>) -> Self {
        Self { listed, rule }
    }

    /// What `id` stands for in this store. A rule answers for every id: whether the token holds such a key is for the
    /// token to say.
    #[must_use]
    pub fn find(&self, id: &ExternalKeyId) -> Option<Arc<ExternalKey>> {
        if let Some(key) = self.listed.get(id) {
            return Some(Arc::clone(key));
        }
        let rule = self.rule.as_ref()?;
        let locator = KeyLocator::Label(format!("{}{id}", rule.label_prefix).into());
        Some(Arc::new(ExternalKey {
            is_enabled: true,
            primary: KeyVersion {
                number: RULE_KEY_VERSION,
                material: KeyMaterial { locator, check_value: None },
            },
        }))
    }

    /// What labels begin with that the rule makes, if there is one.
    #[must_use]
    pub fn rule_prefix(&self) -> Option<&str> {
        self.rule.as_ref().map(|rule| &*rule.label_prefix)
    }

    /// The material of every key that is listed.
    #[must_use]
    pub fn materials(&self) -> Vec<KeyMaterial> {
        self.listed.values().map(|key| key.primary.material.clone()).collect()
    }

    /// The keys that are listed one by one.
    pub fn listed(&self) -> impl Iterator<Item = (&ExternalKeyId, &ExternalKey)> {
        self.listed.iter().map(|(id, key)| (id, &**key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ExternalKeyId {
        ExternalKeyId::parse(text).unwrap()
    }

    fn material(locator: KeyLocator) -> KeyMaterial {
        KeyMaterial { locator, check_value: None }
    }

    #[test]
    fn a_rule_makes_the_keys_that_are_not_listed() {
        let listed = ExternalKey {
            is_enabled: false,
            primary: KeyVersion { number: 7, material: material(KeyLocator::Id([1, 2].into())) },
        };
        let rule = KeyRule { label_prefix: "xks-".into() };
        let keys = KeyMap::new(HashMap::from([(id("a"), Arc::new(listed.clone()))]), Some(rule));
        assert_eq!(*keys.find(&id("a")).unwrap(), listed);
        let made = keys.find(&id("b")).unwrap();
        assert_eq!(
            made.primary,
            KeyVersion { number: 1, material: material(KeyLocator::Label("xks-b".into())) }
        );
        assert_eq!(made.version(2), None);
        assert!(KeyMap::default().find(&id("a")).is_none());
    }
}
