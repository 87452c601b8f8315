//! What the configuration that holds now says of a store's keys, whichever a request began under.

use arc_swap::ArcSwap;
use std::sync::Arc;
use xks_spec::ExternalKeyId;

use super::{KeyMap, VersionState};

/// The switches of a store's keys as they are now. A request is served under the configuration that held when its
/// body had come, but what has been switched off meanwhile no longer begins at the HSM.
pub struct LatestKeys(ArcSwap<Switches>);

struct Switches {
    is_enabled: bool,
    keys: Arc<KeyMap>,
}

impl LatestKeys {
    /// Of a store that is new.
    #[must_use]
    pub fn new(is_enabled: bool, keys: Arc<KeyMap>) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(Switches { is_enabled, keys })))
    }

    /// Another configuration holds from now on.
    pub fn replace(&self, is_enabled: bool, keys: Arc<KeyMap>) {
        self.0.store(Arc::new(Switches { is_enabled, keys }));
    }

    /// The store is no more.
    pub fn withdraw(&self) {
        self.replace(false, Arc::default());
    }

    /// Whether store, key and version are there and switched on.
    #[must_use]
    pub fn permits(&self, id: &ExternalKeyId, version: u32) -> bool {
        let switches = self.0.load();
        let key = switches.is_enabled.then(|| switches.keys.find(id)).flatten().filter(|key| key.is_enabled);
        let version = key.as_ref().and_then(|key| key.version(version));
        version.is_some_and(|version| version.state != VersionState::Disabled)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::keystore::{ExternalKey, KeyRule};

    #[test]
    fn what_is_switched_off_or_gone_is_not_permitted() {
        let id = ExternalKeyId::parse("a").unwrap();
        let rule = KeyRule {
            label_prefix: "".into(),
            primary: 3,
            others: vec![(1, VersionState::Disabled), (2, VersionState::Retired)],
        };
        let by_rule = Arc::new(KeyMap::new(HashMap::new(), Some(rule)));
        let latest = LatestKeys::new(true, Arc::clone(&by_rule));
        assert!(latest.permits(&id, 3) && latest.permits(&id, 2));
        assert!(!latest.permits(&id, 1), "a disabled version");
        assert!(!latest.permits(&id, 4), "a version that is gone");
        let disabled = ExternalKey { is_enabled: false, ..ExternalKey::clone(&by_rule.find(&id).unwrap()) };
        let listed = HashMap::from([(id.clone(), Arc::new(disabled))]);
        latest.replace(true, Arc::new(KeyMap::new(listed, by_rule.rule().cloned())));
        assert!(!latest.permits(&id, 3), "a disabled key");
        latest.replace(false, by_rule);
        assert!(!latest.permits(&id, 3), "a disabled store");
        latest.withdraw();
        assert!(!latest.permits(&id, 3), "a store that is gone");
    }
}
