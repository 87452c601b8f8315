//! `xks-proxy doctor`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::json;

use super::{EXIT_FAILED, EXIT_OK, load_config, print};
use crate::config::StoreSettings;
use crate::hsm::examination::{Examination, IvSourceTried, KeyFound, KeyRole, KeyWanted, examine};
use crate::hsm::{ForceLogin, Modules, TokenSettings};
use crate::keystore::{ExternalKey, KeyVersion, VersionState};

/// How long one step of an examination may take before the token is taken to hang.
const STEP_PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(path: &Path, force_login: ForceLogin, as_json: bool) -> u8 {
    let config = match load_config(path, force_login) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let modules = Arc::new(Modules::default());
    let stores: Arc<[StoreSettings]> = config.stores.into();
    let mut examined = Vec::new();
    let mut hangs = false;
    for token in config.tokens {
        let (examination, is_whole) = examine_on_a_thread(token, &modules, &stores);
        if !as_json {
            show(&examination);
        }
        examined.push(examination);
        hangs |= !is_whole;
    }
    if as_json {
        let document = json!({ "xksProxyVersion": env!("CARGO_PKG_VERSION"), "tokens": examined });
        print(&format!("{document:#}"));
    }
    let is_good = examined.iter().all(|examination| examination.faults.is_empty());
    let code = if is_good { EXIT_OK } else { EXIT_FAILED };
    if hangs {
        // A thread is stuck in a module, whose destructors must not run beside it.
        signal_hook::low_level::exit(i32::from(code));
    }
    code
}

/// The keys of a token that the configuration names: those that it lists, and those that its rules make of the labels which the
/// token has. A version that is disabled is no key that anybody needs.
fn keys_of(token: &str, stores: &[StoreSettings], labels: &[Box<str>]) -> Vec<KeyWanted> {
    let mut keys = Vec::new();
    for store in stores.iter().filter(|store| store.tokens.iter().any(|name| **name == *token)) {
        let by_rule = labels.iter().filter_map(|label| Some(store.keys.rule()?.key_of(label)?.0));
        let ids: BTreeSet<_> = store.keys.listed().map(|(id, _)| id.clone()).chain(by_rule).collect();
        for id in ids {
            let Some(key) = store.keys.find(&id) else { continue };
            let name = format!("store {}: key {id}", store.name);
            keys.extend(key.versions().filter_map(|version| wanted(&name, &key, version)));
        }
    }
    keys.sort();
    keys
}

fn wanted(name: &str, key: &ExternalKey, version: &KeyVersion) -> Option<KeyWanted> {
    let role = match version.state {
        VersionState::Primary => KeyRole::Primary,
        VersionState::Staged => KeyRole::Staged,
        VersionState::Retired => KeyRole::Retired,
        VersionState::Disabled => return None,
    };
    let is_one_of_many = !key.others.is_empty();
    let which = if is_one_of_many {
        format!(" version {}, {}", version.number, version.state)
    } else {
        String::new()
    };
    Some(KeyWanted { name: format!("{name}{which}"), locator: version.material.locator.clone(), role })
}

/// Examines on a thread of its own, so that a call that hangs ends the examination and not the answer. False where one
/// does.
fn examine_on_a_thread(
    settings: TokenSettings,
    modules: &Arc<Modules>,
    stores: &Arc<[StoreSettings]>,
) -> (Examination, bool) {
    enum Message {
        Step(&'static str),
        Done(Box<Examination>),
    }
    let (sender, messages) = mpsc::channel();
    let token = settings.name.to_string();
    let (modules, stores) = (Arc::clone(modules), Arc::clone(stores));
    let work = move || {
        let on_step = |step| {
            let _ = sender.send(Message::Step(step));
        };
        let keys = |labels: &[Box<str>]| keys_of(&settings.name, &stores, labels);
        let examination = examine(&settings, &modules, &keys, &on_step);
        let _ = sender.send(Message::Done(Box::new(examination)));
    };
    let ended = |faults: String| Examination { token, faults: vec![faults], ..Examination::default() };
    if let Err(error) = std::thread::Builder::new().name("doctor".to_owned()).spawn(work) {
        return (ended(format!("no thread can be started: {error}")), true);
    }
    let mut last_step = "beginning";
    loop {
        match messages.recv_timeout(STEP_PATIENCE) {
            Ok(Message::Step(step)) => last_step = step,
            Ok(Message::Done(examination)) => return (*examination, true),
            Err(RecvTimeoutError::Timeout) => {
                let secs = STEP_PATIENCE.as_secs();
                return (ended(format!("the token did not answer for {secs} s while {last_step}")), false);
            }
            Err(RecvTimeoutError::Disconnected) => {
                return (ended(format!("the examination broke off while {last_step}")), true);
            }
        }
    }
}

/// For people.
fn show(found: &Examination) {
    print(&format!("token {}", found.token));
    let line = |name: &str, text: &str| print(&format!("  {name:<12} {text}"));
    if let Some(module) = &found.module {
        line("module", module);
    }
    if let Some(identity) = &found.identity {
        let told: Vec<_> = identity.iter().map(|(name, value)| format!("{name} {value}")).collect();
        line("token", &told.join(", "));
    }
    if let Some(mechanisms) = &found.mechanisms {
        let has = |is_there, name: &str| format!("{}{name}", if is_there { "" } else { "no " });
        let gcm = match mechanisms.aes_gcm_key_sizes {
            Some((min, max)) => format!("AES-GCM (keys from {min} to {max})"),
            None => "no AES-GCM".to_owned(),
        };
        let generates = has(mechanisms.generates_aes_keys, "AES key generation");
        let random = has(mechanisms.has_random_source, "random source");
        line("mechanisms", &format!("{} in all; {gcm}; {generates}; {random}", mechanisms.count));
    }
    if let Some(profile) = &found.profile {
        let by = |is_configured| if is_configured { "the configuration" } else { "its manufacturer" };
        let text = format!("{}, by {}", profile.name, by(profile.is_configured));
        line("profile", &text);
    }
    for tried in &found.iv_sources {
        line("IV source", &iv_source_text(tried));
    }
    if let Some(bad_tag) = &found.bad_tag {
        line("bad tag", &format!("{}; taken for: {}", bad_tag.answer, bad_tag.taken_for));
    }
    if let Some(sessions) = &found.sessions {
        let refusal = sessions.refusal.as_deref().map(|code| format!(" ({code})")).unwrap_or_default();
        let text = format!(
            "{} of {} opened{refusal}; {} are needed",
            sessions.opened, sessions.tried, sessions.needed
        );
        line("sessions", &text);
    }
    show_speed(found);
    for key in &found.keys {
        line("key", &key_text(key));
    }
    for fault in &found.faults {
        print(&format!("FAULT   {fault}"));
    }
    for advice in &found.advice {
        print(&format!("advice  {advice}"));
    }
}

fn show_speed(found: &Examination) {
    for time in &found.times {
        print(&format!(
            "  time         {} bytes: encrypt {} µs (at most {}), decrypt {} µs (at most {})",
            time.plaintext_bytes,
            time.encrypt_median_us,
            time.encrypt_max_us,
            time.decrypt_median_us,
            time.decrypt_max_us
        ));
    }
    for measured in &found.throughput {
        print(&format!(
            "  throughput   {} sessions: {} encryptions a second",
            measured.sessions, measured.encryptions_per_second
        ));
    }
}

fn iv_source_text(tried: &IvSourceTried) -> String {
    let used = if tried.is_used { " (used)" } else { "" };
    let result = match &tried.problem {
        Some(problem) => format!("does not work: {problem}"),
        None => "works".to_owned(),
    };
    format!("{}{used} {result}", tried.iv_source)
}

fn key_text(key: &KeyFound) -> String {
    let attributes: Vec<_> = key.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{} ({}): {} found; {}", key.name, key.locator, key.count, attributes.join(" "))
}
