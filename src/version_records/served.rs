//! Which versions a store's keys had in the configuration that was served last: what a start may make primary depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The versions of a key, or of all keys of a rule, but for those that are disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServedVersions {
    /// The one that encrypts.
    pub primary: u32,
    /// Those that decrypt alone: staged or retired.
    pub others: Vec<u32>,
}

/// The keys of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedStore {
    /// Those that are listed, by their external key ids.
    pub keys: BTreeMap<String, ServedVersions>,
    /// Those of the rule.
    pub rule: Option<ServedVersions>,
    /// Where the keys of the rule were found when their tokens listed them last.
    pub found: FoundByRule,
}

/// On which tokens every key of a rule was found, by the number of its version.
pub type FoundByRule = BTreeMap<u32, BTreeSet<Arc<str>>>;

/// A version that begins to encrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion<'s> {
    /// Of which key; `None` for every key of the rule.
    pub key: Option<&'s str>,
    /// Its number.
    pub number: u32,
    /// It could decrypt before.
    pub was_known: bool,
}

impl ServedStore {
    fn versions(&self, key: &str) -> Option<&ServedVersions> {
        self.keys.get(key).or(self.rule.as_ref())
    }

    /// The tokens on which every key of the rule has been found in that version.
    #[must_use]
    pub fn was_found_on(&self, number: u32, token: &Arc<str>) -> bool {
        self.found.get(&number).is_some_and(|tokens| tokens.contains(token))
    }

    /// Forgets what was found of versions that the rule lacks.
    pub(super) fn forget_unknown(&mut self) {
        let rule = self.rule.as_ref();
        let is_known =
            |number: &u32| rule.is_some_and(|rule| rule.primary == *number || rule.others.contains(number));
        self.found.retain(|number, _| is_known(number));
    }

    /// Versions that would begin to encrypt if this were served after what was served `before`. A key that is new promotes
    /// nothing: none has made anything that its first version could not decrypt.
    pub fn promotions<'s>(&'s self, before: &'s Self) -> Vec<Promotion<'s>> {
        let of = |key: Option<&'s str>, before: Option<&ServedVersions>, now: Option<&ServedVersions>| {
            let (before, number) = (before?, now?.primary);
            let was_known = before.others.contains(&number);
            (number != before.primary).then_some(Promotion { key, number, was_known })
        };
        let keys: BTreeSet<_> = self.keys.keys().chain(before.keys.keys()).collect();
        let listed = keys
            .into_iter()
            .filter_map(|key| of(Some(key.as_str()), before.versions(key), self.versions(key)));
        listed.chain(of(None, before.rule.as_ref(), self.rule.as_ref())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(primary: u32, others: &[u32]) -> ServedVersions {
        ServedVersions { primary, others: others.to_vec() }
    }

    fn store(keys: &[(&str, ServedVersions)], rule: Option<ServedVersions>) -> ServedStore {
        let keys = keys.iter().map(|(id, versions)| ((*id).to_owned(), versions.clone())).collect();
        ServedStore { keys, rule, ..ServedStore::default() }
    }

    #[test]
    fn what_begins_to_encrypt_was_known_or_not() {
        let promotion = |key, number, was_known| vec![Promotion { key, number, was_known }];
        let before = store(&[("a", versions(1, &[2]))], Some(versions(1, &[3])));
        for (next, expected) in [
            (store(&[("a", versions(1, &[]))], None), vec![]),
            (store(&[("a", versions(2, &[1]))], None), promotion(Some("a"), 2, true)),
            (store(&[("a", versions(4, &[1]))], None), promotion(Some("a"), 4, false)),
            (store(&[("new", versions(7, &[]))], None), promotion(Some("new"), 7, false)),
            (store(&[("new", versions(3, &[]))], None), promotion(Some("new"), 3, true)),
            (store(&[("a", versions(1, &[]))], Some(versions(3, &[1]))), promotion(None, 3, true)),
            (store(&[("a", versions(1, &[]))], Some(versions(4, &[1]))), promotion(None, 4, false)),
            (store(&[], Some(versions(1, &[]))), vec![]),
        ] {
            assert_eq!(next.promotions(&before), expected, "{next:?}");
        }
        // It was listed, and is of the rule now: of which version 3 is as new to it as 2.
        let by_rule = store(&[], Some(versions(3, &[1])));
        assert_eq!(by_rule.promotions(&before)[0], Promotion { key: Some("a"), number: 3, was_known: false });
        assert!(store(&[("a", versions(9, &[]))], None).promotions(&ServedStore::default()).is_empty());
    }
}
