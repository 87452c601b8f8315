//! `[[stores.keys]]` and `key_rule`.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use xks_spec::ExternalKeyId;

use super::reader::{Table, Value};
use crate::hsm::{CheckValue, KeyLocator, KeyMaterial, TokenSettings};
use crate::keystore::{ExternalKey, FIRST_VERSION, KeyMap, KeyRule, KeyVersion, VersionState};

const NUMBERS: RangeInclusive<u64> = 1..=u32::MAX as u64;

/// The keys of one store.
pub(super) fn read(
    table: &mut Table<'_>,
    tokens: &[&TokenSettings],
    reached: &mut ReachedKeys,
) -> Option<KeyMap> {
    let mut is_whole = true;
    let rule = table.take("key_rule").and_then(|value| {
        let rule = read_rule(&value);
        is_whole &= rule.is_some();
        if let Some(rule) = &rule
            // Not short-circuited: each is to be noted.
            && tokens.iter().filter(|token| !reached.add_rule(token, rule)).count() > 0
        {
            value.fault("this rule reaches keys that another store of the same token reaches too");
        }
        rule
    });
    let mut listed = HashMap::new();
    let keys = table.take("keys");
    for mut entry in keys.iter().flat_map(Value::array).filter_map(|value| value.table()) {
        match read_key(&mut entry, tokens, reached, rule.as_ref()) {
            // SPEC(URI-KEYID-001): no two keys of a store have the same id.
            Some((id, _)) if listed.contains_key(&id) => entry.fault("this external_key_id is listed twice"),
            Some((id, key)) => drop(listed.insert(id, Arc::new(key))),
            None => is_whole = false,
        }
        entry.finish();
    }
    if listed.is_empty() && rule.is_none() && is_whole {
        table.fault("a store needs keys, listed in keys or made by key_rule");
    }
    is_whole.then(|| KeyMap::new(listed, rule))
}

fn read_rule(value: &Value<'_>) -> Option<KeyRule> {
    let mut rule = value.table()?;
    let prefix = rule.require("label_prefix").and_then(|prefix| prefix.string());
    let versions = match rule.take("versions") {
        None => Some((FIRST_VERSION, Vec::new())),
        Some(list) => {
            let read = |mut entry: Table<'_>| {
                let version = (read_number(&mut entry), read_state(&mut entry));
                entry.finish();
                Some((version.0?, version.1?))
            };
            let all: Vec<_> = list.array().iter().filter_map(Value::table).map(read).collect();
            let all: Option<Vec<_>> = all.into_iter().collect();
            all.and_then(|all| with_one_primary(&list, all, |version| *version))
                .map(|((primary, _), others)| (primary, others))
        }
    };
    rule.finish();
    let (primary, others) = versions?;
    Some(KeyRule { label_prefix: prefix?.into(), primary, others })
}

fn read_key(
    entry: &mut Table<'_>,
    tokens: &[&TokenSettings],
    reached: &mut ReachedKeys,
    rule: Option<&KeyRule>,
) -> Option<(ExternalKeyId, ExternalKey)> {
    let id = entry.require("external_key_id").and_then(|value| value.parsed(ExternalKeyId::parse));
    let is_enabled = entry.take("enabled").map_or(Some(true), |value| value.boolean());
    let mut owner = Owner { id: id.clone(), tokens, rule, reached };
    let (primary, others) = match entry.take("versions") {
        Some(list) => read_versions(&list, &mut owner),
        None => {
            let number = entry.take("version").map_or(Some(u64::from(FIRST_VERSION)), |n| n.integer(NUMBERS));
            let material = read_material(entry, &mut owner);
            let number = u32::try_from(number?).ok()?;
            let primary = KeyVersion { number, state: VersionState::Primary, material: material? };
            Some((primary, Vec::new()))
        }
    }?;
    Some((id?, ExternalKey { is_enabled: is_enabled?, primary, others }))
}

/// The long form: a table for each version.
fn read_versions(list: &Value<'_>, owner: &mut Owner<'_>) -> Option<(KeyVersion, Vec<KeyVersion>)> {
    let mut versions: Vec<KeyVersion> = Vec::new();
    let mut is_whole = true;
    for mut entry in list.array().iter().filter_map(Value::table) {
        let (number, state) = (read_number(&mut entry), read_state(&mut entry));
        let material = read_material(&mut entry, owner);
        if let (Some(number), Some(state), Some(material)) = (number, state, material) {
            let pins_the_same = |other: &KeyVersion| {
                material.check_value.is_some() && other.material.check_value == material.check_value
            };
            if versions.iter().any(pins_the_same) {
                entry.fault("another version has this check_value: two numbers for one key");
            }
            versions.push(KeyVersion { number, state, material });
        } else {
            is_whole = false;
        }
        entry.finish();
    }
    let versions = is_whole.then_some(versions)?;
    with_one_primary(list, versions, |version| (version.number, version.state))
}

/// Takes the primary out of the versions; a fault unless there is exactly one, and where a number stands twice.
fn with_one_primary<V>(
    list: &Value<'_>,
    mut versions: Vec<V>,
    number_and_state: impl Fn(&V) -> (u32, VersionState),
) -> Option<(V, Vec<V>)> {
    let mut numbers = HashSet::new();
    if !versions.iter().all(|version| numbers.insert(number_and_state(version).0)) {
        list.fault("a version number stands twice: each is of one key for ever");
        return None;
    }
    let is_primary = |version: &V| number_and_state(version).1 == VersionState::Primary;
    if versions.iter().filter(|version| is_primary(version)).count() != 1 {
        list.fault("exactly one version must be primary");
        return None;
    }
    let primary = versions.remove(versions.iter().position(is_primary)?);
    Some((primary, versions))
}

fn read_number(entry: &mut Table<'_>) -> Option<u32> {
    u32::try_from(entry.require("number")?.integer(NUMBERS)?).ok()
}

fn read_state(entry: &mut Table<'_>) -> Option<VersionState> {
    entry.require("state")?.one_of(&VersionState::WORDS)
}

/// Whose material is being read.
struct Owner<'a> {
    /// `None` where the external key id is itself at fault.
    id: Option<ExternalKeyId>,
    tokens: &'a [&'a TokenSettings],
    rule: Option<&'a KeyRule>,
    reached: &'a mut ReachedKeys,
}

fn read_material(entry: &mut Table<'_>, owner: &mut Owner<'_>) -> Option<KeyMaterial> {
    let label = entry.take("label").map(|value| value.text().map(|label| KeyLocator::Label(label.into())));
    let cka_id = entry.take("cka_id").map(|value| value.parsed(parse_hex).map(KeyLocator::Id));
    let check_value = match entry.take("check_value") {
        Some(value) => Some(value.parsed(str::parse::<CheckValue>)?),
        None => None,
    };
    let locator = match (label, cka_id) {
        (Some(locator), None) | (None, Some(locator)) => locator?,
        _ => {
            entry.fault("exactly one of label and cka_id must say which key of the token is meant");
            return None;
        }
    };
    for token in owner.tokens {
        if matches!(&locator, KeyLocator::Label(label) if *label == token.health_key_label) {
            entry.fault("this label is that of the token's health key, which no store may reach");
        }
        if !owner.reached.add_key(token, &locator, owner.rule) {
            entry.fault(
                "this key of the token is already reached as another external key, or as another version",
            );
        }
    }
    // The rule's own name for it is no fault: the entry says more of the key than the rule can.
    if let (Some(rule), Some(id), KeyLocator::Label(label)) = (owner.rule, &owner.id, &locator)
        && rule.key_of(label).is_some_and(|(other, _)| other != *id)
    {
        entry.fault("the store's key_rule reaches this key too, under another external_key_id");
    }
    Some(KeyMaterial { locator, check_value })
}

fn parse_hex(text: &str) -> Result<Box<[u8]>, &'static str> {
    const FAULT: &str = "must be the bytes of CKA_ID in hexadecimal, such as \"0a1b\"";
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Err(FAULT);
    }
    let byte = |start: usize| u8::from_str_radix(&text[start..start + 2], 16).map_err(|_| FAULT);
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Which keys of which token stores reach, so that no two external keys are one key: what one store made another could
/// open.
#[derive(Default)]
pub(super) struct ReachedKeys {
    keys: HashSet<(Arc<str>, KeyLocator)>,
    rules: Vec<(Arc<str>, KeyRule)>,
}

impl ReachedKeys {
    /// False where another rule, or a listed key of another store, is reached too.
    fn add_rule(&mut self, token: &TokenSettings, rule: &KeyRule) -> bool {
        let overlaps = |other: &str| other.starts_with(&*rule.label_prefix);
        let reaches_rule = self.rules.iter().any(|(name, other)| {
            *name == token.name
                && (overlaps(&other.label_prefix) || rule.label_prefix.starts_with(&*other.label_prefix))
        });
        let reaches_key = self.keys.iter().any(|(name, locator)| {
            *name == token.name && matches!(locator, KeyLocator::Label(label) if overlaps(label))
        });
        self.rules.push((Arc::clone(&token.name), rule.clone()));
        !reaches_rule && !reaches_key
    }

    /// False where the key is listed already, or a rule of another store (`own` is the store's own) reaches it.
    fn add_key(&mut self, token: &TokenSettings, locator: &KeyLocator, own: Option<&KeyRule>) -> bool {
        let is_reached = self.rules.iter().any(|(name, rule)| {
            *name == token.name
                && Some(rule) != own
                && matches!(locator, KeyLocator::Label(label) if label.starts_with(&*rule.label_prefix))
        });
        self.keys.insert((Arc::clone(&token.name), locator.clone())) && !is_reached
    }
}
