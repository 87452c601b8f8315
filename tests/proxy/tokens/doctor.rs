//! `xks-proxy doctor`: what it finds, what it says to set, and what it must not do.

use std::process::Command;

use serde_json::Value;
use xks_harness::binary::program;
use xks_harness::token::PIN;
use xks_harness::{Faults, Function, Setup, SoftHsm};

use super::aes_gcm::{KEY, hex};

/// A doctor's visit.
struct Visit {
    exit_code: i32,
    text: String,
    faults: Faults,
}

impl Visit {
    fn pay(setup: Setup, token: &SoftHsm, rules: &str, arguments: &[&str]) -> Self {
        let faults = Faults::new();
        faults.set(rules);
        let folder = tempfile::tempdir().unwrap();
        let configuration = faults.between(setup).write(folder.path(), token);
        let output = Command::new(program("xks-proxy"))
            .args(["doctor", "--config"])
            .arg(configuration)
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_no_secret(&text);
        Self { exit_code: output.status.code().unwrap(), text, faults }
    }

    fn json(&self) -> Value {
        serde_json::from_str::<Value>(&self.text).unwrap()["tokens"][0].clone()
    }
}

fn assert_no_secret(text: &str) {
    for secret in [PIN, "main+test+secret", "nested+secret", &hex(&KEY)] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn setup(keys: &[&str]) -> Setup {
    let key = |label: &&str| format!("[[stores.keys]]\nexternal_key_id = \"{label}\"\nlabel = \"{label}\"\n");
    Setup { keys: keys.iter().map(key).collect(), token: "sessions = 2".to_owned(), ..Setup::default() }
}

/// A token with a known key `demo` and a health key.
fn token() -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["import", "--label", "demo", "--value", &hex(&KEY)]);
    token.generate("xks-health", &[]);
    token
}

fn texts(found: &Value, name: &str) -> String {
    let texts: Vec<_> = found[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    texts.join("\n")
}

#[test]
fn a_good_token_has_no_fault_and_everything_about_it_is_told() {
    let visit = Visit::pay(setup(&["demo"]), &token(), "", &["--json"]);
    assert_eq!(visit.exit_code, 0, "{}", visit.text);
    let found = visit.json();
    assert_eq!(found["faults"], Value::Array(Vec::new()));
    let profile = if SoftHsm::is_kryoptic() { "kryoptic" } else { "softhsm" };
    assert_eq!(found["profile"]["name"], profile);
    assert_eq!(found["profile"]["isConfigured"], false);
    let works: Vec<_> = found["ivSources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tried| (tried["ivSource"].as_str().unwrap(), tried["problem"].is_null()))
        .collect();
    assert_eq!(works, [("os", true), ("token", true), ("written-back", false), ("appended", false)]);
    assert_eq!(found["badTag"]["decryptsAfterwards"], true);
    assert!(found["sessions"]["opened"].as_u64().unwrap() >= 3);
    let sizes: Vec<_> =
        found["times"].as_array().unwrap().iter().map(|time| &time["plaintextBytes"]).collect();
    assert_eq!(sizes, [32, 256, 1024, 4300]);
    assert!(found["throughput"][0]["encryptionsPerSecond"].as_u64().unwrap() > 0);
    let key = &found["keys"][0];
    assert_eq!((&key["name"], &key["count"]), (&"store main: key demo".into(), &1.into()));
    for (attribute, value) in [("CKA_ENCRYPT", "true"), ("CKA_VALUE_LEN", "32"), ("CKA_LOCAL", "false")] {
        assert_eq!(key["attributes"][attribute], value, "{attribute}");
    }
    assert_eq!(visit.faults.calls(Function::Login), 1);
    // The same in lines, for people.
    let visit = Visit::pay(setup(&["demo"]), &token(), "", &[]);
    assert_eq!(visit.exit_code, 0);
    for word in
        [&format!("profile      {profile}"), "os (used) works", "bad tag", "throughput", "CKA_SENSITIVE=true"]
    {
        assert!(visit.text.contains(word), "{word}: {}", visit.text);
    }
}

#[test]
fn keys_that_cannot_serve_are_faults() {
    let token = SoftHsm::with_keys();
    token.generate("demo-2", &["--duplicate"]);
    let keys = ["demo", "demo-2", "encrypt-only", "decrypt-only", "aes-128", "absent"];
    let visit = Visit::pay(setup(&keys), &token, "", &["--json"]);
    assert_eq!(visit.exit_code, 1);
    let faults = texts(&visit.json(), "faults");
    for (key, fault) in [
        ("demo-2", "2 keys of the token answer"),
        ("encrypt-only", "may not decrypt"),
        ("decrypt-only", "may not encrypt"),
        ("aes-128", "not an AES key of 256 bits"),
        ("absent", "holds no such secret key"),
    ] {
        let is_told = |line: &str| line.contains(&format!("key {key} (")) && line.contains(fault);
        assert!(faults.lines().any(is_told), "{key}: {faults}");
    }
    assert!(!faults.contains("key demo ("), "{faults}");
}

#[test]
fn a_token_without_aes_gcm_is_told_so_before_any_login() {
    let visit = Visit::pay(setup(&["demo"]), &token(), "* hide_mechanism=CKM_AES_GCM", &["--json"]);
    assert_eq!(visit.exit_code, 1);
    assert!(texts(&visit.json(), "faults").contains("no AES-GCM"), "{}", visit.text);
    assert!(texts(&visit.json(), "advice").contains("cannot serve"), "{}", visit.text);
    assert_eq!(visit.faults.calls(Function::Login), 0);
}

#[test]
fn what_to_set_is_what_works() {
    for (rule, settings, set) in [
        ("* gcm_iv=written_back", "", "Set iv_source = \"written-back\""),
        ("* gcm_iv=appended", "", "Set iv_source = \"appended\""),
        ("", "profile = \"luna\"", "Set iv_source = \"os\""),
        ("C_GenerateRandom random=zeros", "iv_source = \"token\"", "Set iv_source = \"os\""),
        ("C_OpenSession session_limit=3", "sessions = 8", "Set sessions = 2"),
        ("* gcm_iv=zeros", "", "No IV source works"),
        ("* gcm_iv=repeated", "profile = \"cloudhsm\"", "No IV source works"),
    ] {
        let token_lines = if settings.contains("sessions") { "" } else { "sessions = 2\n" };
        let setup = Setup { token: format!("{token_lines}{settings}"), ..setup(&["demo"]) };
        let visit = Visit::pay(setup, &token(), rule, &["--json"]);
        assert_eq!(visit.exit_code, 1, "{rule}: {}", visit.text);
        assert!(texts(&visit.json(), "advice").contains(set), "{rule}: {}", visit.text);
    }
}

#[test]
fn a_bad_tag_is_told_as_the_token_says_it_and_as_the_proxy_takes_it() {
    for (rule, answer, taken_for) in [
        ("C_Decrypt bad_tag=CKR_GENERAL_ERROR", "CKR_GENERAL_ERROR", "bad_tag_or_fault"),
        ("C_Decrypt bad_tag=CKR_FUNCTION_FAILED", "CKR_FUNCTION_FAILED", "bad_tag_or_fault"),
        ("C_Decrypt bad_tag=CKR_ENCRYPTED_DATA_INVALID", "CKR_ENCRYPTED_DATA_INVALID", "bad_tag"),
        ("C_Decrypt bad_tag=CKR_DEVICE_ERROR", "CKR_DEVICE_ERROR", "fault"),
    ] {
        let visit = Visit::pay(setup(&["demo"]), &token(), rule, &["--json"]);
        let bad_tag = &visit.json()["badTag"];
        assert!(bad_tag["answer"].as_str().unwrap().ends_with(answer), "{rule}: {bad_tag}");
        assert_eq!(bad_tag["takenFor"], taken_for, "{rule}");
        assert_eq!(visit.exit_code, i32::from(taken_for == "fault"), "{rule}: {}", visit.text);
    }
}

#[test]
fn a_pin_that_is_refused_is_given_once() {
    let setup = Setup { pin: "pin = \"not the PIN 4711\"".to_owned(), ..setup(&["demo"]) };
    let visit = Visit::pay(setup, &token(), "", &[]);
    assert_eq!(visit.exit_code, 1);
    assert!(visit.text.contains("refused the PIN with CKR_PIN_INCORRECT"), "{}", visit.text);
    assert!(!visit.text.contains("4711"), "{}", visit.text);
    assert_eq!(visit.faults.calls(Function::Login), 1);
}

#[test]
fn a_version_is_judged_by_what_it_is_configured_for() {
    let version = |number: u8, label: &str, state: &str| {
        format!("[[stores.keys.versions]]\nnumber = {number}\nlabel = \"{label}\"\nstate = \"{state}\"\n")
    };
    let keys = |states: [&str; 4]| {
        let labels = ["decrypt-only", "demo", "not-yet", "gone"];
        let versions: String = (1..)
            .zip(labels)
            .zip(states)
            .map(|((number, label), state)| version(number, label, state))
            .collect();
        Setup { keys: format!("[[stores.keys]]\nexternal_key_id = \"demo\"\n{versions}"), ..setup(&[]) }
    };
    let token = SoftHsm::with_keys();
    let visit = Visit::pay(keys(["retired", "primary", "staged", "disabled"]), &token, "", &["--json"]);
    assert_eq!(visit.exit_code, 0, "{}", visit.text);
    let found = visit.json();
    let roles: Vec<_> =
        found["keys"].as_array().unwrap().iter().map(|key| key["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["retired", "primary", "staged"]);
    let not_yet = "key demo version 3, staged (label \"not-yet\"): the token does not hold it yet";
    assert!(texts(&found, "advice").contains(not_yet), "{}", visit.text);
    let visit = Visit::pay(keys(["staged", "primary", "disabled", "retired"]), &token, "", &["--json"]);
    let faults = texts(&visit.json(), "faults");
    assert!(faults.contains("version 1, staged (label \"decrypt-only\"): it may not encrypt"), "{faults}");
    assert!(faults.contains("version 4, retired (label \"gone\"): the token holds no such"), "{faults}");
    assert!(!faults.contains("version 3"), "{faults}");
}

#[test]
fn the_keys_of_a_rule_are_looked_at_too() {
    let token = token();
    for label in ["nested-a", "nested-a@2", "nested-b", "another"] {
        token.generate(label, &[]);
    }
    let rule = "{ label_prefix = \"nested-\", versions = [{ number = 1, state = \"retired\" }, \
                { number = 2, state = \"primary\" }] }";
    let setup = Setup { nested_rule: rule.to_owned(), ..setup(&["demo"]) };
    let visit = Visit::pay(setup, &token, "", &["--json"]);
    assert_eq!(visit.exit_code, 1);
    let found = visit.json();
    let names: Vec<_> =
        found["keys"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap()).collect();
    let of = |key, version| format!("store nested: key {key} version {version}");
    let of_rule =
        [of("a", "1, retired"), of("a", "2, primary"), of("b", "1, retired"), of("b", "2, primary")];
    assert_eq!(names, [&["store main: key demo".to_owned()], &of_rule[..]].concat());
    let lacks = "key b version 2, primary (label \"nested-b@2\"): the token holds no such secret key";
    assert_eq!(texts(&found, "faults").lines().count(), 1, "{}", visit.text);
    assert!(texts(&found, "faults").contains(lacks), "{}", visit.text);
}
