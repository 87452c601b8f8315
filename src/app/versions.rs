//! Versions that a new configuration may not make of the keys in use: a primary that was not staged before on every token, and a
//! number that stood for another key.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use xks_spec::ExternalKeyId;

use super::resolution::ids_in_use;
use super::tokens::Stores;
use crate::clock::{self, Deadline};
use crate::hsm::Fleet;
use crate::keystore::{ExternalKey, KeyStore, KeyVersion, VersionState};

/// How long the tokens may be asked, all keys together.
const PATIENCE: Duration = Duration::from_secs(20);
/// Keys that are asked for at once, so that a rule's thousands are done in time and requests find a session.
const AT_ONCE: usize = 4;
/// So many say enough of what is wrong.
const MAX_PROBLEMS: usize = 20;

/// What is unsafe about the versions of the next configuration, key by key; at most [`MAX_PROBLEMS`]. Only versions that change are
/// looked up.
pub(super) async fn unsafe_versions(before: &Stores, after: &Stores) -> Vec<String> {
    let deadline = Deadline::after(clock::now(), PATIENCE);
    let mut problems = Vec::new();
    for store in before.stores.iter() {
        let Some(next) = after.stores.of_name(&store.name) else { continue };
        let (Some(old_fleet), Some(fleet)) = (before.fleets.get(&store.name), after.fleets.get(&next.name))
        else {
            continue;
        };
        if store.keys == next.keys {
            continue;
        }
        let changed = changes(store, next, old_fleet);
        let judged = changed.into_iter().map(|change| judge(change, fleet, deadline));
        let judged = stream::iter(judged).buffer_unordered(AT_ONCE);
        let mut found = judged.filter_map(std::future::ready).boxed();
        while let Some((id, number, problem)) = found.next().await {
            problems.push(format!("store {}: key {id} version {number} {problem}", next.name));
            if problems.len() >= MAX_PROBLEMS {
                return problems;
            }
        }
    }
    problems.sort_unstable();
    problems
}

/// A version that is another than before, or does something else.
struct Change {
    id: ExternalKeyId,
    version: KeyVersion,
    /// As it was before, where it could decrypt.
    before: Option<KeyVersion>,
    /// It begins to encrypt.
    is_promoted: bool,
}

fn changes(before: &KeyStore, after: &KeyStore, fleet: &Fleet) -> Vec<Change> {
    let mut changes = Vec::new();
    for id in ids_in_use(before, fleet) {
        let (Some(old), Some(new)) = (before.keys.find(&id), after.keys.find(&id)) else { continue };
        if old != new {
            changes.extend(changes_of(&id, &old, &new));
        }
    }
    changes
}

fn changes_of(id: &ExternalKeyId, old: &ExternalKey, new: &ExternalKey) -> Vec<Change> {
    let used = new.versions().filter(|version| version.state != VersionState::Disabled);
    let change = |version: &KeyVersion| {
        let before = old.version(version.number).filter(|version| version.state != VersionState::Disabled);
        let is_promoted = version.number == new.primary.number && new.primary.number != old.primary.number;
        let is_same = before.is_some_and(|before| before.material == version.material);
        (is_promoted || !is_same).then(|| Change {
            id: id.clone(),
            version: version.clone(),
            before: before.cloned(),
            is_promoted,
        })
    };
    used.filter_map(change).collect()
}

async fn judge(change: Change, fleet: &Fleet, deadline: Deadline) -> Option<(ExternalKeyId, u32, String)> {
    let problem = problem(&change, fleet, deadline).await?;
    Some((change.id, change.version.number, problem))
}

async fn problem(change: &Change, fleet: &Fleet, deadline: Deadline) -> Option<String> {
    let material = &change.version.material;
    let locator = &material.locator;
    if let Some(other) = fleet.was_another(material, deadline).await {
        let now = if other == *locator { String::new() } else { format!(", with {locator}") };
        return Some(format!(
            "was the key with {other} before and would be another one{now}: another key needs a number that was never used"
        ));
    }
    if !change.is_promoted {
        return None;
    }
    if change.before.is_none() {
        return Some(format!(
            "({locator}) would become primary and was neither staged nor retired in the configuration that is served: stage \
             it in every proxy first"
        ));
    }
    let lacking = fleet.lacking(material, deadline).await;
    if lacking.is_empty() {
        return None;
    }
    let lacking: Vec<_> = lacking.iter().map(|(token, error)| format!("{token}: {error}")).collect();
    Some(format!("({locator}) would become primary and is not usable on every token: {}", lacking.join("; ")))
}
