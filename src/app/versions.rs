//! Versions that a new configuration may not make of the keys in use: a primary that was not staged before on every token, and a
//! number that stood for another key.
//!
//! A reload asks the tokens. A start cannot, for they may be away: it goes by what was served and found before, as the state
//! directory remembers it. That a number stands for another key, the token's own proof finds then.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use xks_spec::ExternalKeyId;

use super::reload::wait_until;
use super::resolution::ids_in_use;
use super::tokens::Stores;
use crate::clock::{self, Deadline};
use crate::config::StoreSettings;
use crate::hsm::Fleet;
use crate::keystore::{ExternalKey, KeyMap, KeyStore, KeyVersion, VersionState};
use crate::version_records::{ServedStore, ServedVersions, VersionRecords};

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
        problems.extend(unsafe_rule(store, next, [old_fleet, fleet]).await);
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

/// What is unsafe about a version of all keys of a rule that would become primary. Which keys those are the tokens tell, once they
/// have listed them.
async fn unsafe_rule(before: &KeyStore, after: &KeyStore, fleets: [&Fleet; 2]) -> Option<String> {
    let (was, next) = (served(&before.keys), served(&after.keys));
    let promotion = next.promotions(&was).into_iter().find(|promotion| promotion.key.is_none())?;
    let (store, number) = (&after.name, promotion.number);
    let which = format!("store {store}: version {number} of the keys of its rule would become primary");
    if !promotion.was_known {
        return Some(format!(
            "{which} and was neither staged nor retired in the configuration that is served: stage it in every proxy first"
        ));
    }
    // A token that has just come back does so at this moment.
    wait_until(|| !fleets.iter().any(|fleet| fleet.is_being_listed())).await;
    let unlisted: BTreeSet<_> = fleets.iter().flat_map(|fleet| fleet.unlisted()).collect();
    let unlisted: Vec<_> = unlisted.into_iter().map(|name| &**name).collect();
    (!unlisted.is_empty())
        .then(|| format!("{which}, and token {} cannot be asked which keys those are", unlisted.join(", ")))
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
    let mut ids = ids_in_use(before, fleet);
    if before.keys.rule().is_some() && fleet.unlisted().next().is_some() {
        // Nobody tells which of them the rule made until now.
        ids.extend(after.keys.listed().map(|(id, _)| id.clone()));
    }
    for id in ids {
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

/// Primary versions that a start with these stores would make of versions that could not decrypt before, or were not found on every
/// token of their store, up to twenty. None where nothing is remembered: a replica that is new knows of no version.
#[must_use]
pub fn unsafe_at_start(stores: &[StoreSettings], records: &VersionRecords) -> Vec<String> {
    let mut problems = Vec::new();
    for store in stores {
        let Some(before) = records.served(&store.name) else { continue };
        for promotion in served(&store.keys).promotions(&before) {
            let (name, number) = (&store.name, promotion.number);
            let which = match promotion.key {
                Some(key) => format!("store {name}: key {key} version {number}"),
                None => format!("store {name}: version {number} of the keys of its rule"),
            };
            let mut lacking = match promotion.key {
                Some(key) => records.lacking(name, key, number, &store.tokens),
                None => store.tokens.clone(),
            };
            if promotion.key.is_none_or(|key| !before.keys.contains_key(key)) {
                lacking.retain(|token| !before.was_found_on(number, token));
            }
            if !promotion.was_known {
                let file = records.file_of_store(name).unwrap_or_default();
                problems.push(format!(
                    "{which} would become primary and was neither staged nor retired in the configuration that was served last: \
                     what this proxy encrypted, others could not decrypt. Serve it as staged first, in every proxy. Where every \
                     other proxy knows it already, for this one was away meanwhile, remove {}",
                    file.display()
                ));
            } else if !lacking.is_empty() {
                let what = promotion
                    .key
                    .map_or("not every key of the rule has been found with it", |_| "has not been found");
                problems.push(format!(
                    "{which} would become primary and {what} on token {}: serve it as staged until it is there",
                    lacking.join(", ")
                ));
            }
        }
    }
    problems.sort_unstable();
    problems.truncate(MAX_PROBLEMS);
    problems
}

/// The stores that have several versions of a key which are used. Without a state directory a start does not judge them.
#[must_use]
pub fn stores_with_versions(stores: &[StoreSettings]) -> Vec<&str> {
    let is_used = |state: VersionState| state != VersionState::Disabled;
    let has_several = |store: &&StoreSettings| {
        let of_key =
            |(_, key): (_, &ExternalKey)| key.versions().filter(|version| is_used(version.state)).count();
        let of_rule =
            store.keys.rule().map(|rule| rule.versions().filter(|(_, state)| is_used(*state)).count());
        store.keys.listed().map(of_key).chain(of_rule).any(|used| used > 1)
    };
    let mut names: Vec<_> = stores.iter().filter(has_several).map(|store| &*store.name).collect();
    names.sort_unstable();
    names
}

/// Remembers what is served of a store from now on.
pub(super) fn note_served(records: &VersionRecords, stores: &Stores) {
    for store in stores.stores.iter() {
        records.note_served(&store.name, served(&store.keys));
    }
}

fn served(keys: &KeyMap) -> ServedStore {
    let of_key = |key: &ExternalKey| {
        let others = key.others.iter().filter(|version| version.state != VersionState::Disabled);
        ServedVersions { primary: key.primary.number, others: others.map(|version| version.number).collect() }
    };
    let rule = keys.rule().map(|rule| {
        let others = rule.others.iter().filter(|(_, state)| *state != VersionState::Disabled);
        ServedVersions { primary: rule.primary, others: others.map(|(number, _)| *number).collect() }
    });
    let keys = keys.listed().map(|(id, key)| (id.as_str().to_owned(), of_key(key))).collect();
    ServedStore { keys, rule, ..ServedStore::default() }
}
