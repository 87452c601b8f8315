//! `xks-proxy keys create` and `xks-proxy keys rotate`.

use xks_spec::ExternalKeyId;

use super::stanza::{self, Entry};
use super::{CreateArgs, Done, EXIT_OK, Refusal, RotateArgs, Target, list};
use crate::cli::print;
use crate::config::{Config, StoreSettings};
use crate::hsm::{HsmError, KeyLocator, TokenSettings};
use crate::keystore::{ExternalKey, FIRST_VERSION, KeyRule, KeyVersion, VERSION_MARK, VersionState};
use crate::version_records::VersionRecords;

/// What `create` was asked for.
struct Plan {
    label: Box<str>,
    number: u32,
    /// The key's entry is to be printed: no rule makes it.
    is_listed: bool,
}

pub(super) fn create(config: &Config, args: &CreateArgs) -> Done {
    let target = Target::of(config, &args.at)?;
    let Some((store, id)) = target.store.zip(args.key.as_ref()) else {
        let label = args.label.as_deref().unwrap_or_default();
        refuse_strangers(config, target.token, None, label)?;
        target.connect()?.generate(label)?;
        print(&format!("# made the key {label:?} in token {}", target.token.name));
        return Ok(EXIT_OK);
    };
    let plan = plan_create(store, id, args.label.as_deref())?;
    refuse_health_key(target.token, &plan.label)?;
    refuse_strangers(config, target.token, Some(store), &plan.label)?;
    target.connect()?.generate(&plan.label)?;
    let locator = KeyLocator::Label(plan.label);
    let check_value = Some(target.check_value_of_new(&locator)?);
    print(&made_line(&target, &locator));
    if plan.is_listed {
        let primary = Entry { number: plan.number, state: VersionState::Primary, locator, check_value };
        print(&format!("# in store {}:", store.name));
        print(&stanza::key(id, true, &[primary]));
    } else {
        print(&format!("# nothing to configure: it is the key {id} of store {} by its key_rule", store.name));
    }
    Ok(EXIT_OK)
}

fn plan_create(store: &StoreSettings, id: &ExternalKeyId, label: Option<&str>) -> Result<Plan, Refusal> {
    let listed = store.keys.listed().find(|(listed, _)| *listed == id).map(|(_, key)| key);
    match (listed, store.keys.rule(), label) {
        (Some(ExternalKey { others, .. }), ..) if !others.is_empty() => {
            Err(Refusal::new("this key has versions already: make the next one with `xks-proxy keys rotate`"))
        }
        (Some(ExternalKey { primary, .. }), ..) => match &primary.material.locator {
            KeyLocator::Label(configured) if label.is_none_or(|label| label == &**configured) => {
                Ok(Plan { label: configured.clone(), number: primary.number, is_listed: true })
            }
            _ => Err(Refusal::new("the configuration has this external key under another label or cka_id")),
        },
        (None, Some(rule), None) => {
            Ok(Plan { label: rule.label(id, rule.primary), number: rule.primary, is_listed: false })
        }
        (None, _, label) => {
            Ok(Plan { label: label.unwrap_or(id.as_str()).into(), number: FIRST_VERSION, is_listed: true })
        }
    }
}

fn refuse_health_key(token: &TokenSettings, label: &str) -> Result<(), Refusal> {
    if *token.health_key_label == *label {
        return Err(Refusal::new("this label is that of the token's health key, which no store may reach"));
    }
    Ok(())
}

/// A new key under a label that another store reaches would be that store's key.
fn refuse_strangers(
    config: &Config,
    token: &TokenSettings,
    own: Option<&StoreSettings>,
    label: &str,
) -> Result<(), Refusal> {
    let locator = KeyLocator::Label(label.into());
    for store in config.stores.iter().filter(|store| store.tokens.contains(&token.name)) {
        if own.is_some_and(|own| own.name == store.name) {
            continue;
        }
        let is_listed = store
            .keys
            .listed()
            .any(|(_, key)| key.versions().any(|version| version.material.locator == locator));
        if is_listed || store.keys.rule().is_some_and(|rule| label.starts_with(&*rule.label_prefix)) {
            return Err(Refusal(format!("store {} reaches the label {label:?}: make it there", store.name)));
        }
    }
    Ok(())
}

fn made_line(target: &Target<'_>, locator: &KeyLocator) -> String {
    format!(
        "# made the key with {locator} in token {}: AES-256, sensitive, not extractable",
        target.token.name
    )
}

pub(super) fn rotate(config: &Config, args: &RotateArgs) -> Done {
    let target = Target::of(config, &args.at)?;
    let store = target.store.ok_or_else(|| Refusal::new("rotate wants --store"))?;
    let listed = store.keys.listed().find(|(id, _)| Some(*id) == args.key.as_ref());
    match (listed, store.keys.rule()) {
        (Some((id, key)), _) => rotate_listed(config, &target, store, (id, key), args.label.as_deref()),
        (None, Some(rule)) if args.label.is_none() => {
            rotate_rule(config, &target, store, rule, args.key.as_ref())
        }
        (None, Some(_)) => Err(Refusal::new("the store's key_rule gives each version its label")),
        (None, None) if args.key.is_none() => {
            Err(Refusal::new("say which key with --key: the store has no key_rule"))
        }
        (None, None) => {
            Err(Refusal::new("the store has no such external key: make it with `xks-proxy keys create`"))
        }
    }
}

fn rotate_listed(
    config: &Config,
    target: &Target<'_>,
    store: &StoreSettings,
    (id, key): (&ExternalKeyId, &ExternalKey),
    label: Option<&str>,
) -> Done {
    if let Some(staged) = key.others.iter().find(|version| version.state == VersionState::Staged) {
        return Err(Refusal(format!(
            "version {} is staged already: make it primary, or disable it, before the next one is made",
            staged.number
        )));
    }
    let records = records(config)?;
    let recorded = records.and_then(|records| records.highest(&store.name, id.as_str()));
    let number = next_number(key.versions().map(|version| version.number).chain(recorded))?;
    let label = label.map_or_else(|| next_label(id, key, number), Into::into);
    refuse_health_key(target.token, &label)?;
    refuse_strangers(config, target.token, Some(store), &label)?;
    // What keeps the entries from being printed is met before there is a key. A wrong PIN is tried once.
    drop(target.connect()?);
    let mut versions = pinned_versions(target, key)?;
    target.connect()?.generate(&label)?;
    let locator = KeyLocator::Label(label);
    let line = made_line(target, &locator);
    let check_value = Some(target.check_value_of_new(&locator)?);
    versions.push(Entry { number, state: VersionState::Staged, locator, check_value });
    versions.sort_by_key(|version| version.number);
    print(&line);
    print(&format!(
        "# Step 1: in store {}, instead of the entry of {id} until now, on every proxy:",
        store.name
    ));
    print(&stanza::key(id, key.is_enabled, &versions));
    for version in &mut versions {
        version.state = promoted(version.number, version.state, number);
    }
    print(
        &"# Step 2: instead of that, once every proxy runs with step 1 and `xks-proxy check` finds nothing:",
    );
    print(&stanza::key(id, key.is_enabled, &versions));
    Ok(EXIT_OK)
}

/// The versions of a key, each with a check value where it is used. A key that only decrypts may make none, or be gone.
fn pinned_versions(target: &Target<'_>, key: &ExternalKey) -> Result<Vec<Entry>, Refusal> {
    let entry = |version: &KeyVersion| Entry {
        number: version.number,
        state: version.state,
        locator: version.material.locator.clone(),
        check_value: version.material.check_value.clone(),
    };
    let mut versions: Vec<_> = key.versions().map(entry).collect();
    let is_unpinned =
        |version: &&mut Entry| version.check_value.is_none() && version.state != VersionState::Disabled;
    let unpinned: Vec<_> = versions.iter_mut().filter(is_unpinned).collect();
    let locators: Vec<_> = unpinned.iter().map(|version| version.locator.clone()).collect();
    for (version, value) in unpinned.into_iter().zip(target.check_values(&locators)?) {
        version.check_value = match value {
            Ok(value) => Some(value),
            Err(HsmError::KeyNotFound | HsmError::KeyNotPermitted { .. })
                if version.state == VersionState::Retired =>
            {
                None
            }
            Err(error) => {
                let Entry { number, state, locator, .. } = version;
                return Err(Refusal(format!(
                    "version {number}, {state} ({locator}), makes no check value: {error}. No key was made: mend that, and try again"
                )));
            }
        };
    }
    Ok(versions)
}

/// What the state directory remembers of key versions, where there is one.
fn records(config: &Config) -> Result<Option<VersionRecords>, Refusal> {
    let read = config.iv_budget.dir.as_deref().map(VersionRecords::read).transpose();
    read.map_err(|fault| Refusal(fault.to_string()))
}

/// The state of a version after version `number` has become primary.
fn promoted(version: u32, state: VersionState, number: u32) -> VersionState {
    match state {
        _ if version == number => VersionState::Primary,
        VersionState::Primary => VersionState::Retired,
        other => other,
    }
}

fn next_number(numbers: impl Iterator<Item = u32>) -> Result<u32, Refusal> {
    let next = numbers.max().and_then(|number| number.checked_add(1));
    next.ok_or_else(|| Refusal::new("there is no higher version number"))
}

/// The first label of the key with the new number behind it.
fn next_label(id: &ExternalKeyId, key: &ExternalKey, number: u32) -> Box<str> {
    let labelled = key.versions().filter_map(|version| match &version.material.locator {
        KeyLocator::Label(label) => Some((version.number, &**label)),
        KeyLocator::Id(_) => None,
    });
    let first = labelled.min_by_key(|(number, _)| *number).map_or(id.as_str(), |(_, label)| label);
    let base = match first.rsplit_once(VERSION_MARK) {
        Some((base, mark)) if !base.is_empty() && mark.bytes().all(|byte| byte.is_ascii_digit()) => base,
        _ => first,
    };
    format!("{base}{VERSION_MARK}{number}").into()
}

/// Makes the next version of one key of a rule, or of each that has none yet.
fn rotate_rule(
    config: &Config,
    target: &Target<'_>,
    store: &StoreSettings,
    rule: &KeyRule,
    one: Option<&ExternalKeyId>,
) -> Done {
    let staged =
        rule.others.iter().find(|(_, state)| *state == VersionState::Staged).map(|(number, _)| *number);
    let manager = target.connect()?;
    let keys = manager.keys()?;
    let mut ids = list::ids_by_rule(store, &keys);
    let records = records(config)?;
    let recorded = records
        .iter()
        .flat_map(|records| ids.iter().filter_map(|id| records.highest(&store.name, id.as_str())));
    let number = match staged {
        Some(number) => number,
        None => next_number(rule.versions().map(|(number, _)| number).chain(recorded))?,
    };
    if let Some(one) = one {
        ids.retain(|id| id == one);
        if ids.is_empty() {
            return Err(Refusal::new(
                "the token has no key that the store's key_rule makes this external key of",
            ));
        }
    }
    let mut made = 0;
    for id in &ids {
        let locator = KeyLocator::Label(rule.label(id, number));
        if !keys.iter().any(|key| key.answers_to(&locator)) {
            manager.generate(&rule.label(id, number))?;
            made += 1;
        }
    }
    let of = ids.len();
    print(&format!(
        "# made version {number} of {made} keys in token {}; {of} have it now",
        target.token.name
    ));
    let mut versions: Vec<_> = rule.versions().collect();
    if staged.is_none() {
        versions.push((number, VersionState::Staged));
        versions.sort_by_key(|(number, _)| *number);
        print(&format!("# Step 1: in store {}, on every proxy:", store.name));
        print(&stanza::rule(rule, &versions));
    }
    for (version, state) in &mut versions {
        *state = promoted(*version, *state, number);
    }
    print(&"# Step 2: once every proxy runs with step 1 and `xks-proxy keys check` finds no key without it:");
    print(&stanza::rule(rule, &versions));
    Ok(EXIT_OK)
}
