//! `xks-proxy keys` on a real token: what it makes, what it prints, and that what it prints works.

mod desk;
mod rotation;

use std::sync::Arc;

use serde_json::Value;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::token::PIN;
use xks_harness::{Faults, Function, Http, Proxy, Setup, SoftHsm, XksRequest};

use desk::Desk;

#[test]
fn list_says_what_each_key_is_and_may_do() {
    let token = SoftHsm::with_keys();
    token.generate("nested-a", &[]);
    token.generate("nested-a@2", &[]);
    token.generate("stray", &["--id", "0a1b", "--usage", "wrap,sign"]);
    let desk = Desk::new(Setup::default(), token);
    let (code, text, _) = desk.keys(&["list"]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "\"demo\"  AES-256  encrypt+decrypt  sensitive, not extractable  store main key demo version 1, primary",
        "\"aes-128\"  AES-128  encrypt+decrypt  sensitive, not extractable  store main key aes-128 version 1, primary",
        "\"no-usage\"  AES-256  may nothing  sensitive, not extractable  store main key no-usage version 1, primary",
        "\"xks-health\"  AES-256  encrypt+decrypt  sensitive, not extractable  health key",
        "\"nested-a\"  AES-256  encrypt+decrypt  sensitive, not extractable  store nested key a version 1, primary",
        "\"nested-a@2\"  AES-256  encrypt+decrypt  sensitive, not extractable  store nested key a version 2, not configured",
        "\"stray\"  id 0x0a1b  AES-256  sign+wrap  sensitive, not extractable  no external key",
        "10 secret keys in token softhsm",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
}

/// The token's own word for a key's attributes.
fn object(token: &SoftHsm, label: &str) -> Value {
    let objects: Vec<Value> = serde_json::from_str(&token.tool(&["list", "--json"])).unwrap();
    let mut found: Vec<_> = objects.into_iter().filter(|object| object["label"] == label).collect();
    assert_eq!(found.len(), 1, "{label}: {found:?}");
    found.remove(0)
}

fn assert_as_it_should_be(token: &SoftHsm, label: &str) {
    let made = object(token, label);
    assert_eq!(made["bits"], 256, "{made}");
    assert_eq!((&made["sensitive"], &made["extractable"]), (&true.into(), &false.into()), "{made}");
    assert_eq!(made["private"], true, "{made}");
    assert_eq!(made["usages"], serde_json::json!(["encrypt", "decrypt"]), "{made}");
}

/// The external key works in a proxy of that setup.
async fn assert_serves(setup: &Setup, token: &Arc<SoftHsm>, store: &xks_harness::Store, key: &str) {
    let proxy = Proxy::start_on(setup, Arc::clone(token)).await;
    let mut connection = proxy.connect(Http::Two).await;
    let body = encrypt_body(b"under a new key", None, true);
    let made = connection.send(&XksRequest::encrypt(store, key, &body)).await.ok();
    let decrypted = connection.send(&XksRequest::decrypt(store, key, &decrypt_body(&made, None))).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), b"under a new key");
}

#[tokio::test]
async fn create_makes_an_aes_256_key_and_prints_an_entry_that_works() {
    let desk = Desk::new(Setup::default(), SoftHsm::with_keys());
    let (code, stanza, errors) = desk.keys(&["create", "--store", "main", "--key", "ledger"]);
    assert_eq!(code, Some(0), "{errors}");
    assert_as_it_should_be(&desk.token, "ledger");
    for line in ["[[stores.keys]]", "external_key_id = \"ledger\"", "label = \"ledger\"", "version = 1"] {
        assert!(stanza.lines().any(|shown| shown == line), "{line}\n{stanza}");
    }
    assert!(stanza.contains("check_value = \"v1:"), "{stanza}");
    let setup = Setup { keys: Setup::default().keys + &stanza, ..Setup::default() };
    assert_serves(&setup, &desk.token, &main_store(), "ledger").await;
    let (code, text, _) = Desk { setup, ..desk }.keys(&["check"]);
    assert!(
        text.contains("store main: key ledger (label \"ledger\") is the key of its check value"),
        "{text}"
    );
    // The key `absent` of the setup is not there.
    assert_eq!(code, Some(1), "{text}");
}

#[tokio::test]
async fn create_for_a_rule_s_store_makes_the_key_that_the_rule_reaches() {
    let desk = Desk::new(Setup::default(), SoftHsm::with_keys());
    let (code, text, errors) = desk.keys(&["create", "--store", "nested", "--key", "a"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("nothing to configure"), "{text}");
    assert_as_it_should_be(&desk.token, "nested-a");
    assert_serves(&desk.setup, &desk.token, &nested_store(), "a").await;
}

#[test]
fn create_makes_the_key_that_the_configuration_lists_already() {
    let keys =
        "[[stores.keys]]\nexternal_key_id = \"ledger\"\nlabel = \"ledger 2026\"\nversion = 7\n".to_owned();
    let desk = Desk::new(Setup { keys, ..Setup::default() }, SoftHsm::with_keys());
    let (code, text, errors) = desk.keys(&["create", "--store", "main", "--key", "ledger"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("version = 7\nlabel = \"ledger 2026\"\n"), "{text}");
    assert_as_it_should_be(&desk.token, "ledger 2026");
}

#[test]
fn create_makes_a_health_key() {
    let desk = Desk::new(Setup::default(), SoftHsm::empty());
    let (code, _, errors) = desk.keys(&["create", "--token", "softhsm", "--label", "xks-health"]);
    assert_eq!(code, Some(0), "{errors}");
    assert_as_it_should_be(&desk.token, "xks-health");
}

#[test]
fn nothing_is_ever_made_twice_or_where_another_store_reaches_it() {
    let desk = Desk::new(Setup::default(), SoftHsm::with_keys());
    let before = desk.token.tool(&["list", "--json"]);
    for (arguments, expected) in [
        (&["create", "--store", "main", "--key", "demo"][..], "has a key with the label \"demo\" already"),
        (&["create", "--token", "softhsm", "--label", "demo"], "store main reaches the label"),
        (&["create", "--store", "main", "--key", "x", "--label", "xks-health"], "health key"),
        (
            &["create", "--store", "main", "--key", "x", "--label", "nested-x"],
            "store nested reaches the label",
        ),
        (&["create", "--store", "main", "--key", "x", "--label", "demo-2"], "has a key with the label"),
        (
            &["create", "--store", "main", "--key", "demo", "--label", "other"],
            "under another label or cka_id",
        ),
        (&["create", "--store", "nowhere", "--key", "x"], "no store with the name"),
        (&["create", "--token", "nowhere", "--label", "x"], "no such token"),
        (&["rotate", "--store", "main", "--key", "x"], "no such external key"),
        (&["rotate", "--store", "main"], "say which key with --key"),
        (&["rotate", "--store", "nested", "--key", "x"], "the token has no key"),
    ] {
        let (code, text, errors) = desk.keys(arguments);
        assert_eq!(code, Some(1), "{arguments:?} {text}");
        assert!(errors.contains(expected), "{arguments:?}\n{errors}");
        assert_eq!(text, "", "{arguments:?}");
    }
    assert_eq!(desk.token.tool(&["list", "--json"]), before, "the token is as it was");
}

#[test]
fn check_finds_another_key_under_the_same_label() {
    let token = SoftHsm::with_keys();
    let only = "[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n".to_owned();
    let desk = Desk::new(Setup { keys: only.clone(), ..Setup::default() }, token);
    let (code, text, errors) = desk.keys(&["check", "--store", "main"]);
    assert_eq!(code, Some(0), "{text}{errors}");
    let (_, value) = text.split_once("has no check value pinned: ").unwrap();
    let pinned = format!("{only}{}\n", value.lines().next().unwrap());
    let desk = Desk { setup: Setup { keys: pinned, ..Setup::default() }, ..desk };
    let good = "store main: key demo (label \"demo\") is the key of its check value";
    for (code, text) in [desk.keys(&["check"]), desk.check()].map(|(code, text, _)| (code, text)) {
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(good), "{text}");
    }

    desk.token.tool(&["destroy", "--label", "demo"]);
    desk.token.generate("demo", &[]);
    for (code, text) in [desk.keys(&["check"]), desk.check()].map(|(code, text, _)| (code, text)) {
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("is another key than the one that its check value is of"), "{text}");
    }
}

#[test]
fn check_finds_versions_that_are_missing_or_one_and_the_same() {
    let token = SoftHsm::with_keys();
    token.generate("twin", &["--id", "7717"]);
    let entry =
        |versions: &str| format!("[[stores.keys]]\nexternal_key_id = \"k\"\nversions = [{versions}]\n");
    let demo = "{ number = 1, label = \"demo\", state = \"primary\" }";
    let desk = Desk::new(Setup::default(), token);
    for (versions, code, expected) in [
        (
            "{ number = 2, label = \"later\", state = \"staged\" }",
            0,
            "version 2, staged (label \"later\") is not in token",
        ),
        (
            "{ number = 2, label = \"gone\", state = \"retired\" }",
            1,
            "version 2, retired (label \"gone\"): the token holds no",
        ),
        (
            "{ number = 2, label = \"gone\", state = \"disabled\" }",
            0,
            "version 1, primary (label \"demo\") is an AES-256 key",
        ),
        (
            "{ number = 2, label = \"twin\", state = \"retired\" }, { number = 3, cka_id = \"7717\", state = \"staged\" }",
            1,
            "store main key k: versions 3 and 2 are one key in the token",
        ),
    ] {
        let keys = entry(&format!("{demo}, {versions}"));
        let desk = Desk::new(Setup { keys, ..Setup::default() }, desk.token.copy());
        let (seen, text, _) = desk.check();
        assert_eq!(seen, Some(code), "{text}");
        assert!(text.contains(expected), "{expected}\n{text}");
        let (seen, text, _) = desk.keys(&["check"]);
        assert_eq!(seen, Some(code), "{text}");
    }
}

/// A token locks after a few wrong PINs: each command tries one once.
#[test]
fn a_wrong_pin_is_tried_once() {
    for command in [
        &["list"][..],
        &["check"],
        &["create", "--store", "main", "--key", "x"],
        &["rotate", "--store", "main", "--key", "demo"],
    ] {
        let faults = Faults::new();
        faults.set("");
        let setup = faults.between(Setup { pin: "pin = \"0000\"".to_owned(), ..Setup::default() });
        let desk = Desk::new(setup, SoftHsm::with_keys());
        let (code, text, errors) = desk.keys(command);
        assert_eq!(code, Some(1), "{text}");
        assert!(errors.contains("CKR_PIN_INCORRECT"), "{command:?} {errors}");
        assert_eq!(faults.calls(Function::Login), 1, "{command:?}");
    }
}

#[test]
fn no_command_prints_the_pin_or_a_key() {
    let desk = Desk::new(Setup::default(), SoftHsm::with_keys());
    for command in [
        &["list"][..],
        &["check"],
        &["create", "--store", "main", "--key", "x"],
        &["rotate", "--store", "main", "--key", "demo"],
        &["rotate", "--store", "nested"],
    ] {
        let (_, text, errors) = desk.keys(command);
        assert!(!format!("{text}{errors}").contains(PIN), "{command:?}");
        assert!(!text.is_empty(), "{command:?} {errors}");
    }
}
