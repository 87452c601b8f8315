//! The external keys of a store, listed one by one or made by a rule, and the versions of each.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use xks_spec::ExternalKeyId;

use crate::hsm::{KeyLocator, KeyMaterial};

/// The number of a key that has but one version, unless the configuration says another.
pub const FIRST_VERSION: u32 = 1;

/// What stands between external key id and version number in the labels of a rule: no external key id may contain it, so
/// that no version of one key has the label of another key.
pub const VERSION_MARK: char = '@';

/// What a version of a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// Known everywhere before it encrypts anywhere: decrypts alone.
    Staged,
    /// Encrypts and decrypts. Each key has exactly one.
    Primary,
    /// Was primary: decrypts alone.
    Retired,
    /// Does nothing.
    Disabled,
}

impl VersionState {
    /// Each state and the word for it in the configuration.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("staged", Self::Staged),
        ("primary", Self::Primary),
        ("retired", Self::Retired),
        ("disabled", Self::Disabled),
    ];
}

impl fmt::Display for VersionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, state)| state == self).map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

/// One generation of an external key's material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The number that ciphertexts carry: written in the configuration once and never used for other material.
    pub number: u32,
    /// What it may do.
    pub state: VersionState,
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
    /// The versions that do not.
    pub others: Vec<KeyVersion>,
}

impl ExternalKey {
    /// The version of that number.
    #[must_use]
    pub fn version(&self, number: u32) -> Option<&KeyVersion> {
        self.versions().find(|version| version.number == number)
    }

    /// Every version, the primary first.
    pub fn versions(&self) -> impl Iterator<Item = &KeyVersion> {
        std::iter::once(&self.primary).chain(&self.others)
    }
}

/// Makes external keys by a rule: the CKA_LABEL of version 1 is the prefix followed by the external key id, that of each
/// other version the same followed by [`VERSION_MARK`] and the version's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRule {
    /// What every label starts with; may be empty.
    pub label_prefix: Box<str>,
    /// Number of the version of every key that encrypts.
    pub primary: u32,
    /// The versions of every key that do not.
    pub others: Vec<(u32, VersionState)>,
}

impl KeyRule {
    /// A rule by which each key has one version.
    #[must_use]
    pub fn of_one_version(label_prefix: &str) -> Self {
        Self { label_prefix: label_prefix.into(), primary: FIRST_VERSION, others: Vec::new() }
    }

    /// The label of a key's version.
    #[must_use]
    pub fn label(&self, id: &ExternalKeyId, number: u32) -> Box<str> {
        let prefix = &self.label_prefix;
        match number {
            FIRST_VERSION => format!("{prefix}{id}").into(),
            _ => format!("{prefix}{id}{VERSION_MARK}{number}").into(),
        }
    }

    /// Which version of which key has that label; `None` where the rule makes no such label.
    #[must_use]
    pub fn key_of(&self, label: &str) -> Option<(ExternalKeyId, u32)> {
        let rest = label.strip_prefix(&*self.label_prefix)?;
        let (id, number) = match rest.split_once(VERSION_MARK) {
            Some((id, number)) => (id, number.parse().ok()?),
            None => (rest, FIRST_VERSION),
        };
        let id = ExternalKeyId::parse(id).ok()?;
        // "a@1", "a@02" and "a@+2" are labels of no version.
        (*self.label(&id, number) == *label).then_some((id, number))
    }

    /// Number and state of every version, the primary first.
    pub fn versions(&self) -> impl Iterator<Item = (u32, VersionState)> {
        std::iter::once((self.primary, VersionState::Primary)).chain(self.others.iter().copied())
    }

    fn make(&self, id: &ExternalKeyId) -> ExternalKey {
        let version = |(number, state)| {
            let locator = KeyLocator::Label(self.label(id, number));
            KeyVersion { number, state, material: KeyMaterial { locator, check_value: None } }
        };
        ExternalKey {
            is_enabled: true,
            primary: version((self.primary, VersionState::Primary)),
            others: self.others.iter().copied().map(version).collect(),
        }
    }
}

/// The keys of one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        match self.listed.get(id) {
            Some(key) => Some(Arc::clone(key)),
            None => self.rule.as_ref().map(|rule| Arc::new(rule.make(id))),
        }
    }

    /// The material of every version of every key that is listed, but of those that do nothing.
    #[must_use]
    pub fn materials(&self) -> Vec<KeyMaterial> {
        let versions = self.listed.values().flat_map(|key| key.versions());
        let used = versions.filter(|version| version.state != VersionState::Disabled);
        used.map(|version| version.material.clone()).collect()
    }

    /// The keys that are listed one by one.
    pub fn listed(&self) -> impl Iterator<Item = (&ExternalKeyId, &ExternalKey)> {
        self.listed.iter().map(|(id, key)| (id, &**key))
    }

    /// The rule that makes the others.
    #[must_use]
    pub const fn rule(&self) -> Option<&KeyRule> {
        self.rule.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ExternalKeyId {
        ExternalKeyId::parse(text).unwrap()
    }

    fn version(number: u32, state: VersionState, locator: KeyLocator) -> KeyVersion {
        KeyVersion { number, state, material: KeyMaterial { locator, check_value: None } }
    }

    #[test]
    fn a_rule_makes_the_keys_that_are_not_listed() {
        let primary = version(7, VersionState::Primary, KeyLocator::Id([1, 2].into()));
        let listed = ExternalKey { is_enabled: false, primary, others: Vec::new() };
        let rule = KeyRule::of_one_version("xks-");
        let keys = KeyMap::new(HashMap::from([(id("a"), Arc::new(listed.clone()))]), Some(rule));
        assert_eq!(*keys.find(&id("a")).unwrap(), listed);
        let made = keys.find(&id("b")).unwrap();
        assert_eq!(made.primary, version(1, VersionState::Primary, KeyLocator::Label("xks-b".into())));
        assert_eq!(made.version(2), None);
        assert!(KeyMap::default().find(&id("a")).is_none());
    }

    #[test]
    fn a_rule_gives_each_version_a_label_of_its_own() {
        let others = vec![(1, VersionState::Retired), (3, VersionState::Staged)];
        let rule = KeyRule { label_prefix: "t-".into(), primary: 2, others };
        let made = KeyMap::new(HashMap::new(), Some(rule)).find(&id("a")).unwrap();
        let label = |label: &str| KeyLocator::Label(label.into());
        assert_eq!(made.primary, version(2, VersionState::Primary, label("t-a@2")));
        assert_eq!(made.version(1), Some(&version(1, VersionState::Retired, label("t-a"))));
        assert_eq!(made.version(3), Some(&version(3, VersionState::Staged, label("t-a@3"))));
        assert_eq!(made.version(4), None);
        assert_eq!(made.versions().map(|version| version.number).collect::<Vec<_>>(), [2, 1, 3]);
    }

    #[test]
    fn a_label_is_that_of_one_version_of_one_key() {
        let rule = KeyRule::of_one_version("t-");
        for number in [1, 2, 10, u32::MAX] {
            assert_eq!(rule.key_of(&rule.label(&id("a.b"), number)), Some((id("a.b"), number)));
        }
        for other in ["a", "t-", "t-a@", "t-a@1", "t-a@02", "t-a@+2", "t-a@4294967296", "t-a b", "t-a@2@3"] {
            assert_eq!(rule.key_of(other), None, "{other}");
        }
        assert!(ExternalKeyId::parse(&VERSION_MARK.to_string()).is_err());
    }
}
