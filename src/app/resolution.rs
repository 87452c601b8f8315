//! Keys that a new configuration would lose: they were in the tokens, and under it they would not be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use xks_spec::ExternalKeyId;

use super::tokens::Stores;
use crate::clock::{self, Deadline};
use crate::hsm::{Fleet, HsmError, KeyMaterial, Resolution};
use crate::keystore::{ExternalKey, KeyStore, KeyVersion, VersionState};

/// How long the tokens may be asked, all keys together.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many say enough of what is wrong.
const MAX_LOSSES: usize = 20;

/// What could be used before and could not be used after, key by key; at most [`MAX_LOSSES`]. Only keys whose entries or
/// tokens change are looked up.
pub(super) async fn losses(before: &Stores, after: &Stores) -> Vec<String> {
    let mut search =
        Search { deadline: Deadline::after(clock::now(), PATIENCE), before, after, losses: Vec::new() };
    for store in before.stores.iter() {
        if let Some(successor) = after.stores.of_name(&store.name) {
            search.look_at(store, successor).await;
        }
    }
    search.losses
}

struct Search<'a> {
    deadline: Deadline,
    before: &'a Stores,
    after: &'a Stores,
    losses: Vec<String>,
}

impl Search<'_> {
    async fn look_at(&mut self, before: &KeyStore, after: &KeyStore) {
        let (Some(old_fleet), Some(new_fleet)) =
            (self.before.fleets.get(&before.name), self.after.fleets.get(&after.name))
        else {
            return;
        };
        let (old_fleet, new_fleet) = (Arc::clone(old_fleet), Arc::clone(new_fleet));
        let are_tokens_kept = old_fleet.has_tokens_of(&new_fleet);
        if are_tokens_kept && before.keys == after.keys {
            return;
        }
        for id in ids_in_use(before, &old_fleet) {
            let (Some(old), Some(new)) = (before.keys.find(&id), after.keys.find(&id)) else { continue };
            if are_tokens_kept && old == new {
                continue;
            }
            let versions = new.versions().filter(|version| version.state != VersionState::Disabled);
            for version in versions {
                if self.losses.len() >= MAX_LOSSES {
                    return;
                }
                let is_as_before = are_tokens_kept && does_as_before(&old, version);
                if !is_as_before && let Some(why) = self.loss(&old, version, &old_fleet, &new_fleet).await {
                    let (store, number, locator) = (&after.name, version.number, &version.material.locator);
                    self.losses.push(format!("store {store}: key {id} version {number} ({locator}): {why}"));
                }
            }
        }
    }

    /// Why a version of a key could not be used any more, where it could before.
    async fn loss(
        &self,
        old: &ExternalKey,
        version: &KeyVersion,
        old_fleet: &Fleet,
        new_fleet: &Fleet,
    ) -> Option<HsmError> {
        let same = old.version(version.number).filter(|version| version.state != VersionState::Disabled);
        let did_the_work = (version.state == VersionState::Primary).then_some(&old.primary);
        let mut was_there = Resolution::No(HsmError::KeyNotFound);
        for material in [same, did_the_work].into_iter().flatten().map(|version| &version.material) {
            match self.resolve(old_fleet, material).await {
                Resolution::No(_) => {}
                found => was_there = found,
            }
            if was_there == Resolution::Yes {
                break;
            }
        }
        match (was_there, self.resolve(new_fleet, &version.material).await) {
            (Resolution::No(_), _)
            | (_, Resolution::Yes)
            | (Resolution::Unknown(_), Resolution::Unknown(_)) => None,
            (_, Resolution::No(why) | Resolution::Unknown(why)) => Some(why),
        }
    }

    async fn resolve(&self, fleet: &Fleet, material: &KeyMaterial) -> Resolution {
        fleet.resolve(material, self.deadline).await
    }
}

/// The version was the same material in the same role.
fn does_as_before(old: &ExternalKey, version: &KeyVersion) -> bool {
    let is_primary = |version: &KeyVersion| version.state == VersionState::Primary;
    old.version(version.number).is_some_and(|before| {
        before.state != VersionState::Disabled
            && before.material == version.material
            && is_primary(before) == is_primary(version)
    })
}

/// The keys that are listed, and those of the rule that the tokens hold.
pub(super) fn ids_in_use(store: &KeyStore, fleet: &Fleet) -> BTreeSet<ExternalKeyId> {
    let listed = store.keys.listed().map(|(id, _)| id.clone());
    let rule = store.keys.rule();
    let labels = if rule.is_some() { fleet.labels_by_rule() } else { Vec::new() };
    let by_rule = labels.iter().filter_map(|label| Some(rule?.key_of(label)?.0));
    listed.chain(by_rule).collect()
}
