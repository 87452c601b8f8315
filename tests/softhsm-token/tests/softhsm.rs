//! Runs the program against the real SoftHSM2, each test on tokens of its own.
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, not in what they call")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const PIN: &str = "1234";
const SO_PIN: &str = "5678";
/// The 128-bit key of FIPS 197, and the first 3 bytes of a block of zeros under it, as OpenSSL computes them.
const KEY_128: &str = "000102030405060708090a0b0c0d0e0f";
const KEY_128_CHECK_VALUE: &str = "c6a13b";

/// A SoftHSM2 with no tokens, in a directory that is removed at the end.
struct SoftHsm {
    dir: TempDir,
}

impl SoftHsm {
    fn empty() -> Self {
        let dir = TempDir::new().unwrap();
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens).unwrap();
        let settings = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        fs::write(dir.path().join("softhsm2.conf"), settings).unwrap();
        Self { dir }
    }

    fn with_token() -> Self {
        let hsm = Self::empty();
        hsm.succeeds(&["init", "--label", "test"]);
        hsm
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softhsm-token"));
        command.args(arguments).env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        command.env("TOKEN_PIN", PIN).env("TOKEN_SO_PIN", SO_PIN);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the command prints.
    fn succeeds(&self, arguments: &[&str]) -> String {
        stdout(&self.command(arguments).output().unwrap())
    }

    /// What the command complains about.
    fn fails(&self, arguments: &[&str], exit_code: i32) -> String {
        complaint(&self.command(arguments).output().unwrap(), exit_code)
    }

    fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.succeeds(&["list", "--json"])).unwrap()
    }

    fn labels(&self) -> Vec<String> {
        self.list().iter().map(|object| object["label"].as_str().unwrap().to_owned()).collect()
    }

    /// The one object of this label.
    fn object(&self, label: &str) -> Value {
        let mut objects = self.list();
        objects.retain(|object| object["label"] == label);
        assert_eq!(objects.len(), 1, "{label}: {objects:?}");
        objects.remove(0)
    }
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output, exit_code: i32) -> String {
    assert_eq!(output.status.code(), Some(exit_code), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_token_is_made_once() {
    let hsm = SoftHsm::empty();
    assert_eq!(hsm.succeeds(&["init", "--label", "first"]), "first: token made\n");
    hsm.succeeds(&["generate", "--label", "kept"]);
    assert_eq!(hsm.succeeds(&["init", "--label", "first"]), "first: token exists, left as it is\n");
    assert_eq!(hsm.labels(), ["kept"]);
}

#[test]
fn an_interrupted_init_is_completed() {
    let hsm = SoftHsm::empty();
    assert_eq!(hsm.succeeds(&["init", "--label", "half", "--no-pin"]), "half: token made\n");
    assert!(hsm.fails(&["list"], 1).contains("user PIN is not set"));
    assert_eq!(hsm.succeeds(&["init", "--label", "half"]), "half: token exists, user PIN set\n");
    assert_eq!(hsm.list(), [] as [Value; 0]);
}

#[test]
fn the_token_must_be_unambiguous() {
    let hsm = SoftHsm::empty();
    assert!(hsm.fails(&["list"], 3).contains("no initialised token"));
    hsm.succeeds(&["init", "--label", "one"]);
    hsm.succeeds(&["init", "--label", "two"]);
    hsm.succeeds(&["generate", "--token", "two", "--label", "key"]);

    assert!(hsm.fails(&["list"], 1).contains("choose by label"));
    assert!(hsm.fails(&["list", "--token", "three"], 3).contains("three"));
    assert_eq!(hsm.succeeds(&["list", "--token", "one", "--json"]), "[]\n");
    assert!(hsm.succeeds(&["list", "--token", "two"]).contains("key"));
}

#[test]
fn a_generated_key_has_exactly_the_attributes_asked_for() {
    let hsm = SoftHsm::with_token();
    hsm.succeeds(&["generate", "--label", "usual"]);
    hsm.succeeds(&["generate", "--label", "small", "--bits", "128", "--id", "0aFF", "--usage", "encrypt"]);
    hsm.succeeds(&["generate", "--label", "medium", "--bits", "192", "--usage", "none"]);
    hsm.succeeds(&[
        "generate",
        "--label",
        "all",
        "--usage",
        "encrypt,decrypt,wrap,unwrap,sign,verify,derive",
    ]);

    let mut usual = hsm.object("usual");
    assert_eq!(usual["checkValue"].take().as_str().unwrap().len(), 6);
    let expected = json!({
        "label": "usual", "id": "", "class": "CKO_SECRET_KEY", "keyType": "CKK_AES", "bits": 256,
        "checkValue": null, "usages": ["encrypt", "decrypt"],
        "private": true, "sensitive": true, "extractable": false,
    });
    assert_eq!(usual, expected);

    let small = hsm.object("small");
    assert_eq!(
        (&small["bits"], &small["id"], &small["usages"]),
        (&json!(128), &json!("0aff"), &json!(["encrypt"]))
    );
    let medium = hsm.object("medium");
    assert_eq!((&medium["bits"], &medium["usages"]), (&json!(192), &json!([])));
    let all = json!(["encrypt", "decrypt", "wrap", "unwrap", "sign", "verify", "derive"]);
    assert_eq!(hsm.object("all")["usages"], all);
}

#[test]
fn an_existing_label_is_left_alone() {
    let hsm = SoftHsm::with_token();
    assert_eq!(hsm.succeeds(&["generate", "--label", "key"]), "key: key made\n");
    let before = hsm.object("key");

    let again = hsm.succeeds(&["generate", "--label", "key", "--bits", "128", "--usage", "none"]);
    assert_eq!(again, "key: key exists, left as it is\n");
    let again = hsm.succeeds(&["import", "--label", "key", "--value", KEY_128]);
    assert_eq!(again, "key: key exists, left as it is\n");
    assert_eq!(hsm.object("key"), before);
}

#[test]
fn duplicate_labels_are_made_on_demand_and_told_apart_by_id() {
    let hsm = SoftHsm::with_token();
    hsm.succeeds(&["generate", "--label", "twin", "--id", "01"]);
    hsm.succeeds(&["generate", "--label", "twin", "--id", "02", "--duplicate"]);
    hsm.succeeds(&["import", "--label", "twin", "--id", "03", "--duplicate", "--value", KEY_128]);
    assert_eq!(hsm.labels(), ["twin", "twin", "twin"]);

    assert_eq!(
        hsm.succeeds(&["set", "--label", "twin", "--id", "02", "--usage", "none"]),
        "twin: none on 1\n"
    );
    let usages: Vec<_> = hsm.list().iter().map(|key| key["usages"].clone()).collect();
    assert_eq!(usages, [json!(["encrypt", "decrypt"]), json!([]), json!(["encrypt", "decrypt"])]);

    assert_eq!(hsm.succeeds(&["destroy", "--label", "twin", "--id", "01"]), "twin: 1 destroyed\n");
    assert_eq!(hsm.succeeds(&["destroy", "--label", "twin"]), "twin: 2 destroyed\n");
    assert_eq!(hsm.succeeds(&["destroy", "--label", "twin"]), "twin: 0 destroyed\n");
    assert_eq!(hsm.list(), [] as [Value; 0]);
}

#[test]
fn usages_of_an_existing_key_change() {
    let hsm = SoftHsm::with_token();
    hsm.succeeds(&["generate", "--label", "key"]);
    hsm.succeeds(&["generate", "--label", "other"]);
    let (mut expected, other) = (hsm.object("key"), hsm.object("other"));
    for (usage, listed) in
        [("decrypt", json!(["decrypt"])), ("none", json!([])), ("encrypt,wrap", json!(["encrypt", "wrap"]))]
    {
        hsm.succeeds(&["set", "--label", "key", "--usage", usage]);
        expected["usages"] = listed;
        assert_eq!(hsm.object("key"), expected);
    }
    assert_eq!(hsm.object("other"), other);
    assert!(hsm.fails(&["set", "--label", "nobody", "--usage", "none"], 3).contains("nobody"));
}

#[test]
fn an_imported_key_has_the_value_given_and_hides_it() {
    let hsm = SoftHsm::with_token();
    assert_eq!(hsm.succeeds(&["import", "--label", "golden", "--value", KEY_128]), "golden: key made\n");
    let golden = hsm.object("golden");
    assert_eq!((&golden["bits"], &golden["checkValue"]), (&json!(128), &json!(KEY_128_CHECK_VALUE)));
    assert_eq!((&golden["sensitive"], &golden["extractable"]), (&json!(true), &json!(false)));
    assert!(!hsm.succeeds(&["list"]).contains(KEY_128));

    assert!(hsm.fails(&["import", "--label", "short", "--value", "00"], 2).contains("not 8"));
    assert!(hsm.fails(&["import", "--label", "odd", "--value", "0"], 2).contains("hexadecimal"));
}

#[test]
fn many_keys_are_made_in_one_run() {
    let hsm = SoftHsm::with_token();
    assert_eq!(hsm.succeeds(&["generate", "--count", "3", "--label-prefix", "k-"]), "3 keys made\n");
    assert_eq!(hsm.succeeds(&["generate", "--count", "5", "--label-prefix", "k-"]), "2 keys made\n");
    assert_eq!(hsm.labels(), ["k-0", "k-1", "k-2", "k-3", "k-4"]);
    // Three bytes may coincide, five times three do not.
    let check_values: BTreeSet<_> = hsm.list().iter().map(|key| key["checkValue"].to_string()).collect();
    assert!(check_values.len() > 1, "{check_values:?}");
}

#[test]
fn the_pin_comes_from_option_file_or_environment() {
    let hsm = SoftHsm::with_token();
    for (name, content) in
        [("pin", PIN.to_owned()), ("pin-newline", format!("{PIN}\n")), ("wrong", "4321".to_owned())]
    {
        fs::write(hsm.path(name), content).unwrap();
    }
    let list_with_file = |name: &str| {
        let mut command = hsm.command(&["list", "--pin-file"]);
        command.arg(hsm.path(name)).env("TOKEN_PIN", "not this one").output().unwrap()
    };
    stdout(&list_with_file("pin"));
    stdout(&list_with_file("pin-newline"));
    assert!(complaint(&list_with_file("wrong"), 1).contains("refuses the PIN"));
    assert!(complaint(&list_with_file("missing"), 1).contains("missing"));
    stdout(&hsm.command(&["list", "--pin", PIN]).env("TOKEN_PIN", "not this one").output().unwrap());
    let no_pin = hsm.command(&["list"]).env_remove("TOKEN_PIN").output().unwrap();
    assert!(complaint(&no_pin, 2).contains("TOKEN_PIN"));
}

#[test]
fn wrong_arguments_and_missing_modules_are_told_apart() {
    let hsm = SoftHsm::with_token();
    assert!(hsm.fails(&["generate", "--label", "key", "--bits", "512"], 2).contains("not 512"));
    assert!(hsm.fails(&["generate", "--label", "key", "--usage", "encypt"], 2).contains("encypt"));
    assert!(hsm.fails(&["generate", "--count", "2"], 2).contains("--label-prefix"));
    assert!(hsm.fails(&["init", "--label", "a label that is longer than 32 bytes"], 2).contains("32"));
    assert!(hsm.fails(&["--module", "/nowhere/module.so", "list"], 1).contains("/nowhere/module.so"));
    assert_eq!(hsm.list(), [] as [Value; 0]);

    fs::remove_file(hsm.path("softhsm2.conf")).unwrap();
    let complaint = hsm.fails(&["list"], 1);
    assert!(complaint.contains("SOFTHSM2_CONF") && complaint.contains("C_Initialize"), "{complaint}");
}

#[test]
fn the_installed_module_is_found() {
    let hsm = SoftHsm::empty();
    let found = stdout(&hsm.command(&["module"]).env_remove("SOFTHSM2_MODULE").output().unwrap());
    assert!(Path::new(found.trim_end()).exists(), "{found}");
}
