//! `[[tokens]]`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xks_spec::limits::MAX_HEALTH_RESULT_AGE;

use super::read_secret;
use super::reader::{Section, Table, Value};
use crate::hsm::{ForceLogin, Isolation, IvSource, Profile, TokenSelector, TokenSettings, UserType};

/// A key that was searched and not found is not searched again for so long.
const MISS_MEMORY: Duration = Duration::from_secs(2);

pub(super) fn read(root: &mut Table<'_>, folder: &Path, state_dir: Option<&Path>) -> Vec<TokenSettings> {
    let mut tokens: Vec<TokenSettings> = Vec::new();
    let mut environment: HashMap<String, String> = HashMap::new();
    let Some(array) = root.require("tokens") else { return tokens };
    for mut table in array.array().iter().filter_map(Value::table) {
        let Some(token) = read_one(&mut table, folder) else {
            table.finish();
            continue;
        };
        if tokens.iter().any(|other| other.name == token.name) {
            table.fault("another token has this name");
        }
        if tokens.iter().any(|other| other.module == token.module && other.selector == token.selector) {
            table.fault("another entry names the same token of the same module");
        }
        for (name, value) in &token.environment {
            // The environment is the process's: there is one value for all modules.
            if environment.insert(name.clone(), value.clone()).is_some_and(|other| other != *value) {
                table.fault("environment: another token gives one of these variables another value");
            }
        }
        table.finish();
        tokens.push(TokenSettings { state_dir: state_dir.map(Path::to_owned), ..token });
    }
    if array.array().is_empty() {
        array.fault("at least one token is needed");
    }
    tokens
}

fn read_one(table: &mut Table<'_>, folder: &Path) -> Option<TokenSettings> {
    let name = table.require("name").and_then(|value| value.text());
    let module = table.require("module").and_then(|value| value.path_in(folder));
    let selector = read_selector(table);
    let user_type = table.take("user_type").map_or(Some(UserType::User), |value| read_user_type(&value));
    let pin = match table.take("pin") {
        Some(value) => read_secret(&value, folder).map(|(source, _)| Some(source)),
        None => Some(None),
    };
    let environment: BTreeMap<_, _> =
        table.take("environment").map(|value| value.string_map()).unwrap_or_default().into_iter().collect();
    let isolation = read_optional(table, "isolation", |value| {
        value.one_of(&[("none", Isolation::None), ("process", Isolation::Process)])
    });
    let helper_memory_mib =
        table.take("helper_memory_mib").map_or(Some(1024), |value| value.integer(64..=1 << 20));
    let profile = read_optional(table, "profile", |value| {
        let words: Vec<_> = Profile::all().iter().map(|profile| (profile.name, profile)).collect();
        value.one_of(&words)
    });
    let iv_source = read_optional(table, "iv_source", |value| {
        value.one_of(&IvSource::ALL.map(|source| (source.word(), source)))
    });
    let health_key_label = table.take("health_key_label").map_or(Some("xks-health"), |value| value.text());
    let sessions = table.take("sessions").map_or(Some(4), |value| value.integer(1..=1024));
    let queue_depth = table.take("queue_depth").map_or(Some(256), |value| value.integer(1..=65_536));
    let times = read_times(table.section("intervals"));
    Some(TokenSettings {
        name: Arc::from(name?),
        module: module?,
        isolation: isolation?.unwrap_or_default(),
        helper_memory_bytes: helper_memory_mib? << 20,
        environment,
        selector: selector?,
        user_type: user_type?,
        pin: pin?,
        state_dir: None,
        force_login: ForceLogin::No,
        sessions: usize::try_from(sessions?).ok()?,
        queue_depth: usize::try_from(queue_depth?).ok()?,
        profile: profile?,
        iv_source: iv_source?,
        health_key_label: health_key_label?.into(),
        probe_interval: times.probe,
        probe_max_age: MAX_HEALTH_RESULT_AGE,
        attributes_max_age: times.attributes,
        reindex_interval: times.reindex,
        stall_after: times.stuck_after,
        miss_memory: MISS_MEMORY,
    })
}

/// `Some(None)` where the key is absent, `None` where it is wrong.
fn read_optional<'d, T>(
    table: &mut Table<'d>,
    name: &'static str,
    read: impl FnOnce(&Value<'d>) -> Option<T>,
) -> Option<Option<T>> {
    match table.take(name) {
        Some(value) => read(&value).map(Some),
        None => Some(None),
    }
}

struct Times {
    probe: Duration,
    attributes: Duration,
    reindex: Duration,
    stuck_after: Duration,
}

fn read_times(mut intervals: Section<'_>) -> Times {
    let times = Times {
        // Two intervals, after which a prober is taken to hang, stay within the minute that a result may be old.
        probe: intervals.millis("health_probe_ms", 100..=30_000, 10_000),
        attributes: intervals.millis("key_attributes_ms", 100..=30_000, 30_000),
        reindex: intervals.secs("reindex_secs", 1..=86_400, 300),
        // KMS has given up by then.
        stuck_after: intervals.millis("stuck_after_ms", 100..=60_000, 250),
    };
    intervals.finish();
    times
}

fn read_selector(table: &mut Table<'_>) -> Option<TokenSelector> {
    let label = table.take("label").and_then(|value| value.text());
    let serial = table.take("serial").and_then(|value| value.text());
    let slot_id = table.take("slot_id").and_then(|value| value.integer(0..=u64::MAX));
    let selectors = [
        label.map(|label| TokenSelector::Label(label.into())),
        serial.map(|serial| TokenSelector::Serial(serial.into())),
        slot_id.map(TokenSelector::SlotId),
    ];
    let mut given = selectors.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(selector), None) => Some(selector),
        _ => {
            table.fault("exactly one of label, serial and slot_id must say which token is meant");
            None
        }
    }
}

fn read_user_type(value: &Value<'_>) -> Option<UserType> {
    const WORDS: [(&str, UserType); 3] = [
        ("user", UserType::User),
        ("so", UserType::SecurityOfficer),
        // QUIRK(luna): CKU_LIMITED_USER, the Crypto User, may use keys and change none.
        ("luna-crypto-user", UserType::Vendor(0x8000_0001)),
    ];
    if value.is_string() {
        return value.one_of(&WORDS);
    }
    let number = value.integer(0..=u64::from(u32::MAX))?;
    Some(UserType::Vendor(u32::try_from(number).ok()?))
}
