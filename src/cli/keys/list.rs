//! `xks-proxy keys list`.

use std::collections::BTreeSet;

use xks_spec::ExternalKeyId;

use super::{Done, EXIT_OK, Target, TokenArgs};
use crate::cli::print;
use crate::config::{Config, StoreSettings};
use crate::hsm::{KeyKind, KeyLocator, KeyUsages, ManagedKey, TokenSettings};

pub(super) fn list(config: &Config, args: &TokenArgs) -> Done {
    let target = Target::of(config, args)?;
    let keys = target.connect()?.keys()?;
    for key in &keys {
        print(&describe(key, &whose(config, target.token, key)));
    }
    print(&format!("{} secret keys in token {}", keys.len(), target.token.name));
    Ok(EXIT_OK)
}

/// The external keys that a store's rule makes of the token's keys.
pub(super) fn ids_by_rule(store: &StoreSettings, keys: &[ManagedKey]) -> BTreeSet<ExternalKeyId> {
    let Some(rule) = store.keys.rule() else { return BTreeSet::new() };
    let is_listed = |id: &ExternalKeyId| store.keys.listed().any(|(listed, _)| listed == id);
    let of_rule = keys.iter().filter_map(|key| rule.key_of(key.label.as_deref()?));
    of_rule.map(|(id, _)| id).filter(|id| !is_listed(id)).collect()
}

/// What a key of the token is to the configuration.
fn whose(config: &Config, token: &TokenSettings, key: &ManagedKey) -> String {
    if key.answers_to(&KeyLocator::Label(token.health_key_label.clone())) {
        return "health key".to_owned();
    }
    let mut owners = Vec::new();
    for store in config.stores.iter().filter(|store| store.tokens.contains(&token.name)) {
        for (id, external) in store.keys.listed() {
            let version = external.versions().find(|version| key.answers_to(&version.material.locator));
            owners.extend(version.map(|version| {
                format!("store {} key {id} version {}, {}", store.name, version.number, version.state)
            }));
        }
        let made = store.keys.rule().and_then(|rule| Some((rule, rule.key_of(key.label.as_deref()?)?)));
        if let Some((rule, (id, number))) = made
            && store.keys.listed().all(|(listed, _)| *listed != id)
        {
            let state = rule.versions().find(|(known, _)| *known == number);
            let state = state.map_or("not configured".to_owned(), |(_, state)| state.to_string());
            owners.push(format!("store {} key {id} version {number}, {state}", store.name));
        }
    }
    if owners.is_empty() { "no external key".to_owned() } else { owners.join("; ") }
}

fn describe(key: &ManagedKey, whose: &str) -> String {
    let label = key.label.as_deref().map_or("without a label".to_owned(), |label| format!("{label:?}"));
    let id = key.id.as_ref().map_or(String::new(), |id| format!("  {}", KeyLocator::Id(id.clone())));
    let kind = match key.kind {
        KeyKind::Aes { bits: Some(bits) } => format!("AES-{bits}"),
        KeyKind::Aes { bits: None } => "AES of unknown length".to_owned(),
        KeyKind::Other(value) => format!("CKK 0x{value:x}"),
    };
    let sensitive = match key.is_sensitive {
        Some(true) => "sensitive",
        Some(false) => "NOT SENSITIVE",
        None => "sensitive or not",
    };
    let extractable = match key.is_extractable {
        Some(false) => "not extractable",
        Some(true) => "EXTRACTABLE",
        None => "extractable or not",
    };
    format!("{label}{id}  {kind}  {}  {sensitive}, {extractable}  {whose}", usages(key.usages))
}

fn usages(usages: KeyUsages) -> String {
    let all = [
        (usages.encrypt, "encrypt"),
        (usages.decrypt, "decrypt"),
        (usages.sign, "sign"),
        (usages.verify, "verify"),
        (usages.wrap, "wrap"),
        (usages.unwrap, "unwrap"),
        (usages.derive, "derive"),
    ];
    let may: Vec<_> = all.into_iter().filter(|(may, _)| *may).map(|(_, name)| name).collect();
    if may.is_empty() { "may nothing".to_owned() } else { may.join("+") }
}
