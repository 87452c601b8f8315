//! A version becomes primary only after it was staged and found on every token, and a number stands for one key for ever.

use std::sync::Arc;

use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Faults, Proxy, Setup, SoftHsm};

use super::rig::{Client, Reloading, UNWATCHED, listed};

const SECOND: &str = "xks-second";
const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const TWO: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const THREE: &str = "ee0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The entry of key `demo` with versions by number, label and state.
pub(crate) fn versions(versions: &[(u8, &str, &str)]) -> String {
    let version = |(number, label, state): &(u8, &str, &str)| {
        format!("[[stores.keys.versions]]\nnumber = {number}\nlabel = \"{label}\"\nstate = \"{state}\"\n")
    };
    let versions: String = versions.iter().map(version).collect();
    format!("[[stores.keys]]\nexternal_key_id = \"demo\"\n{versions}")
}

/// Store `main` on two tokens of one module, each with the keys given by label and value.
pub(crate) fn two_tokens(keys: &[(&str, &str)]) -> (Setup, SoftHsm) {
    let token = SoftHsm::empty();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    for name in [LABEL, SECOND] {
        token.tool(&["generate", "--token", name, "--label", "xks-health"]);
        keys.iter().for_each(|(label, value)| import(&token, name, label, value));
    }
    let setup = Setup {
        tokens: r#"["softhsm", "second"]"#.to_owned(),
        keys: listed("demo", "demo"),
        more: format!(
            "[[tokens]]\nname = \"second\"\nmodule = {:?}\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\nsessions = 2\n",
            SoftHsm::module().display().to_string()
        ),
        ..Setup::default()
    };
    (setup, token)
}

fn import(token: &SoftHsm, name: &str, label: &str, value: &str) {
    token.tool(&["import", "--token", name, "--label", label, "--value", value]);
}

async fn encrypts_as(client: &mut Client) -> u8 {
    let made = client.encrypt("demo").await.ok();
    xks_harness::request::bytes_of(&made["ciphertextMetadata"])[4]
}

/// It is refused, says so, and changes nothing.
async fn assert_refused(reloading: &Reloading, keys: String, why: &str) {
    let mut client = reloading.client().await;
    let before = encrypts_as(&mut client).await;
    let setup = Setup { keys, ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&setup).await, "unsafe_versions", "{why}");
    let told = reloading.verbose().await;
    assert!(told.contains("store main: key demo version ") && told.contains(why), "{why}: {told}");
    assert_eq!(encrypts_as(&mut client).await, before);
}

async fn assert_reloads(reloading: &Reloading, keys: String) {
    let setup = Setup { keys, ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&setup).await, "ok", "{}", reloading.verbose().await);
}

#[tokio::test]
async fn a_version_that_was_not_staged_does_not_become_primary() {
    let token = SoftHsm::with_keys();
    token.generate("demo-3", &[]);
    let setup = Setup { keys: listed("demo", "demo"), ..Setup::default() };
    let reloading = Reloading::start_on(setup, token).await;
    let mut client = reloading.client().await;
    let promoted = versions(&[(1, "demo", "retired"), (2, "demo-2", "primary")]);
    assert_refused(&reloading, promoted.clone(), "neither staged nor retired").await;
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo-2", "disabled")])).await;
    assert_refused(&reloading, promoted.clone(), "neither staged nor retired").await;
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo-2", "staged")])).await;
    assert_reloads(&reloading, promoted).await;
    assert_eq!(encrypts_as(&mut client).await, 2);
    // Back, which other proxies can decrypt; and on to what they do not know, if that is meant.
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo-2", "retired")])).await;
    let third = versions(&[(1, "demo", "retired"), (2, "demo-2", "retired"), (3, "demo-3", "primary")]);
    assert_refused(&reloading, third, "neither staged nor retired").await;
    assert_eq!(reloading.outcome_of(|this| this.proxy.signal("USR1")).await, "ok");
    assert_eq!(encrypts_as(&mut client).await, 3);
}

#[tokio::test]
async fn a_version_that_one_token_lacks_or_has_as_another_key_does_not_become_primary() {
    let (setup, token) = two_tokens(&[("demo", ONE)]);
    import(&token, LABEL, "demo@2", TWO);
    let reloading = Reloading::start_on(setup, token).await;
    reloading.proxy.wait_for("/readyz?verbose", |_, text| text.contains("token second active\n")).await;
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo@2", "staged")])).await;
    let promoted = versions(&[(1, "demo", "retired"), (2, "demo@2", "primary")]);
    assert_refused(&reloading, promoted.clone(), "second: the token holds no secret key").await;

    import(&reloading.proxy.token, SECOND, "demo@2", ONE);
    // A key that was missed is not searched again for a moment.
    let is_another = "second: the key under that label or id is another key";
    loop {
        let setup = Setup { keys: promoted.clone(), ..reloading.setup.clone() };
        assert_eq!(reloading.reload_with(&setup).await, "unsafe_versions");
        let told = reloading.verbose().await;
        if told.contains(is_another) {
            break;
        }
        assert!(told.contains("second: the token holds no secret key"), "{told}");
    }
    reloading.proxy.token.tool(&["destroy", "--token", SECOND, "--label", "demo@2"]);
    import(&reloading.proxy.token, SECOND, "demo@2", TWO);
    assert_reloads(&reloading, promoted).await;
    assert_eq!(encrypts_as(&mut reloading.client().await).await, 2);
}

/// Nothing has changed, and so the number stands for nothing yet.
#[tokio::test]
async fn a_promotion_that_is_refused_says_nothing_of_which_key_the_number_is() {
    let (setup, token) = two_tokens(&[("demo", ONE)]);
    import(&token, LABEL, "mistaken", TWO);
    let reloading = Reloading::start_on(setup, token).await;
    reloading.proxy.wait_for("/readyz?verbose", |_, text| text.contains("token second active\n")).await;
    // On no token yet.
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo@2", "staged")])).await;
    let mistaken = versions(&[(1, "demo", "retired"), (2, "mistaken", "primary")]);
    assert_refused(&reloading, mistaken, "second: the token holds no secret key").await;
    for name in [LABEL, SECOND] {
        import(&reloading.proxy.token, name, "demo@2", THREE);
    }
    let keys = versions(&[(1, "demo", "retired"), (2, "demo@2", "primary")]);
    let meant = Setup { keys, ..reloading.setup.clone() };
    while reloading.reload_with(&meant).await != "ok" {
        // A key that was missed is not searched again for a moment.
        let told = reloading.verbose().await;
        assert!(told.contains("the token holds no secret key"), "{told}");
    }
    assert_eq!(encrypts_as(&mut reloading.client().await).await, 2);
}

#[tokio::test]
async fn a_number_does_not_come_back_as_another_key() {
    let (setup, token) = two_tokens(&[("demo", ONE), ("same", ONE), ("demo@2", TWO), ("other", ONE)]);
    let reloading = Reloading::start_on(setup, token).await;
    // The same key under another name is the same key.
    assert_reloads(&reloading, listed("demo", "same")).await;
    assert_reloads(&reloading, listed("demo", "demo")).await;
    assert_refused(&reloading, listed("demo", "demo@2"), "another key needs a number that was never used")
        .await;
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo@2", "staged")])).await;
    // What it made is kept somewhere.
    assert_reloads(&reloading, versions(&[(1, "demo", "retired"), (2, "demo@2", "primary")])).await;
    assert_reloads(&reloading, versions(&[(1, "demo", "primary"), (2, "demo@2", "retired")])).await;
    assert_reloads(&reloading, listed("demo", "demo")).await;
    let again = versions(&[(1, "demo", "primary"), (2, "other", "staged")]);
    assert_refused(&reloading, again.clone(), "version 2 was the key with label \"demo@2\" before").await;
    // Forced, it is in the configuration, and not used.
    assert_eq!(reloading.outcome_of(|this| this.proxy.signal("USR1")).await, "ok");
    let told = |_, text: &str| text.contains("xks_keys_unresolved{store=\"main\"} 1\n");
    reloading.proxy.wait_for("/metrics", told).await;
    assert_eq!(encrypts_as(&mut reloading.client().await).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_stands_for_its_key_after_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let with = |keys: String| Setup {
        keys,
        more: format!("[state]\ndir = {:?}\n", state.path().display().to_string()),
        ..Setup::default()
    };
    let token = Arc::new(SoftHsm::with_keys());
    let start = async |keys: String| Proxy::start_on(&with(keys), Arc::clone(&token)).await;
    let end = |mut proxy: Proxy| {
        proxy.signal("TERM");
        assert!(proxy.wait_for_exit().success(), "{}", proxy.all_output());
    };
    let encrypt = async |proxy: &Proxy| {
        let body = xks_harness::request::encrypt_body(b"x", None, false);
        let request = xks_harness::XksRequest::encrypt(&xks_harness::proxy::main_store(), "demo", &body);
        proxy.connect(xks_harness::Http::One).await.send(&request).await
    };
    let refused = (400, "InvalidStateException".to_owned());
    let proxy = start(listed("demo", "demo")).await;
    encrypt(&proxy).await.ok();
    end(proxy);

    // Another label.
    let proxy = start(listed("demo", "demo-2")).await;
    assert_eq!(encrypt(&proxy).await.error(), refused);
    end(proxy);
    // Another key under the same label.
    token.tool(&["destroy", "--label", "demo"]);
    token.generate("demo", &[]);
    let proxy = start(listed("demo", "demo")).await;
    assert_eq!(encrypt(&proxy).await.error(), refused);
    let _ = proxy.wait_for_log(|line| {
        line["message"].as_str().is_some_and(|text| text.contains("pin its check value"))
    });
    end(proxy);
    // Which is meant: what is pinned under the same name goes before what was.
    let folder = tempfile::tempdir().unwrap();
    let config = with(listed("demo", "demo")).write(folder.path(), &token);
    let output = std::process::Command::new(xks_harness::binary::program("xks-proxy"))
        .args(["keys", "check", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = text.split("check_value = \"").nth(1).unwrap().split('"').next().unwrap();
    let pinned = listed("demo", "demo") + &format!("check_value = \"{value}\"\n");
    for keys in [pinned, listed("demo", "demo")] {
        let proxy = start(keys).await;
        encrypt(&proxy).await.ok();
        end(proxy);
    }
}

/// What a command of the proxy ends with: its exit code, and all that it printed.
fn run(command: &str, setup: &Setup, token: &SoftHsm) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = setup.write(folder.path(), token);
    let program = xks_harness::binary::program("xks-proxy");
    let output = std::process::Command::new(program).arg(command).arg("--config").arg(config).output();
    let output = output.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A start is judged by what was served before, and so is `check`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_promotes_only_what_was_staged_and_found() {
    let token = Arc::new(SoftHsm::with_keys());
    let state = tempfile::tempdir().unwrap();
    let with = |state: &std::path::Path, keys: String| Setup {
        keys,
        more: format!("[state]\ndir = {:?}\n", state.display().to_string()),
        ..Setup::default()
    };
    let serve = async |keys: String| {
        let mut proxy = Proxy::start_on(&with(state.path(), keys), Arc::clone(&token)).await;
        let body = xks_harness::request::encrypt_body(b"x", None, false);
        let request = xks_harness::XksRequest::encrypt(&xks_harness::proxy::main_store(), "demo", &body);
        let made = proxy.connect(xks_harness::Http::One).await.send(&request).await.ok();
        proxy.signal("TERM");
        assert!(proxy.wait_for_exit().success(), "{}", proxy.all_output());
        xks_harness::request::bytes_of(&made["ciphertextMetadata"])[4]
    };
    let assert_refused = |keys: &str, why: &str| {
        for (command, code) in [("serve", 2), ("check", 1)] {
            let (ended, text) = run(command, &with(state.path(), keys.to_owned()), &token);
            assert!(ended == Some(code) && text.contains(why), "{command} {ended:?}, not {why}: {text}");
        }
    };
    let (first, second) = ((1, "demo", "primary"), (2, "demo-2", "primary"));
    let promoted = versions(&[(1, "demo", "retired"), second]);
    let too_early = "store main: key demo version 2 would become primary and was neither staged nor retired";

    // A replica that is new knows of nothing.
    let replica = tempfile::tempdir().unwrap();
    let (code, text) = run("check", &with(replica.path(), promoted.clone()), &token);
    assert!(code == Some(0) && std::fs::read_dir(replica.path()).unwrap().count() <= 1, "{code:?} {text}");
    drop(Proxy::start_on(&with(replica.path(), promoted.clone()), Arc::clone(&token)).await);

    assert_eq!(serve(versions(&[first])).await, 1);
    assert_refused(&promoted, too_early);
    assert_eq!(serve(versions(&[first, (2, "demo-2", "disabled")])).await, 1);
    assert_refused(&promoted, too_early);
    // Staged, and nowhere to be found.
    assert_eq!(serve(versions(&[first, (2, "demo@2", "staged")])).await, 1);
    let lost = versions(&[(1, "demo", "retired"), (2, "demo@2", "primary")]);
    assert_refused(&lost, "version 2 would become primary and has not been found on token softhsm");
    token.generate("demo@2", &[]);
    let staged = versions(&[first, (2, "demo@2", "staged")]);
    assert_eq!(serve(staged).await, 1);
    assert_eq!(serve(lost.clone()).await, 2);
    // Back and forth between what all know.
    assert_eq!(serve(versions(&[first, (2, "demo@2", "retired")])).await, 1);
    assert_eq!(serve(lost).await, 2);
    // Another key under that number.
    let reused = versions(&[(1, "demo", "retired"), second]);
    let (code, text) = run("check", &with(state.path(), reused), &token);
    let told = "is another key than the one with label \"demo@2\" that its number stood for before";
    assert!(code == Some(1) && text.contains(told), "{text}");
    // It was away while all others went on, as its operator says.
    let third = versions(&[(1, "demo", "retired"), (2, "demo@2", "retired"), (3, "demo-2", "primary")]);
    let (_, text) = run("serve", &with(state.path(), third.clone()), &token);
    let file = text.trim_end().rsplit("remove ").next().unwrap();
    std::fs::remove_file(file).unwrap();
    assert_eq!(serve(third).await, 3);
}

/// Without a state directory a start judges nothing, and says so where there is something to judge.
#[tokio::test]
async fn several_versions_without_a_state_directory_are_warned_of() {
    let token = Arc::new(SoftHsm::with_keys());
    let state = tempfile::tempdir().unwrap();
    let dir = format!("[state]\ndir = {:?}\n", state.path().display().to_string());
    let rule = |versions: &str| format!("{{ label_prefix = \"nested-\", versions = [{versions}] }}");
    let two = versions(&[(1, "demo", "primary"), (2, "demo-2", "staged")]);
    let one = versions(&[(1, "demo", "primary"), (2, "demo-2", "disabled")]);
    let says = "without a state directory ([state] dir) a start does not know which versions were staged";
    for (keys, nested_rule, more, stores) in [
        (&two, rule(FIRST), "", Some("main")),
        (&one, rule(STAGED), "", Some("nested")),
        (&two, rule(STAGED), "", Some("main, nested")),
        (&one, rule(FIRST), "", None),
        (&two, rule(STAGED), dir.as_str(), None),
    ] {
        let setup = Setup { keys: keys.clone(), nested_rule, more: more.to_owned(), ..Setup::default() };
        let (_, text) = run("check", &setup, &token);
        let notice = stores.map(|stores| format!("notice  store {stores}: {says}"));
        assert_eq!(text.contains(says), stores.is_some(), "{text}");
        assert!(notice.is_none_or(|notice| text.contains(&notice)), "{text}");
        let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
        let lines = proxy.log_lines();
        let is_it =
            |line: &&serde_json::Value| line["message"].as_str().is_some_and(|text| text.starts_with(says));
        let warned: Vec<_> = lines.iter().filter(is_it).collect();
        assert_eq!(warned.len(), usize::from(stores.is_some()), "{warned:?}");
        assert!(
            warned.iter().all(|line| line["level"] == "WARN" && line["stores"] == stores.unwrap()),
            "{warned:?}"
        );
    }
}

/// The same for all keys of a rule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_promotes_a_rules_version_only_where_it_was_staged() {
    let token = Arc::new(SoftHsm::with_keys());
    let state = tempfile::tempdir().unwrap();
    let with = |versions: &str| Setup {
        keys: listed("demo", "demo"),
        nested_rule: format!("{{ label_prefix = \"nested-\", versions = [{versions}] }}"),
        more: format!("[state]\ndir = {:?}\n", state.path().display().to_string()),
        ..Setup::default()
    };
    let start = async |versions: &str| {
        let mut proxy = Proxy::start_on(&with(versions), Arc::clone(&token)).await;
        proxy.signal("TERM");
        assert!(proxy.wait_for_exit().success());
    };
    start(FIRST).await;
    let (code, text) = run("serve", &with(PROMOTED), &token);
    assert!(
        code == Some(2) && text.contains("store nested: version 2 of the keys of its rule would"),
        "{text}"
    );
    start(STAGED).await;
    // No key of the rule, so that none lacks the version; and one that does.
    start(PROMOTED).await;
    token.generate("nested-a", &[]);
    start(STAGED).await;
    let (code, text) = run("serve", &with(PROMOTED), &token);
    let told = "version 2 of the keys of its rule would become primary and not every key of the rule has been found with it on \
                token softhsm";
    assert!(code == Some(2) && text.contains(told), "{text}");
    assert_eq!(run("check", &with(PROMOTED), &token).0, Some(1));
    token.generate("nested-a@2", &[]);
    start(STAGED).await;
    start(PROMOTED).await;
    // And back to a version that was retired meanwhile.
    start(STAGED).await;
}

const FIRST: &str = "{ number = 1, state = \"primary\" }";
const STAGED: &str = "{ number = 1, state = \"primary\" }, { number = 2, state = \"staged\" }";
const PROMOTED: &str = "{ number = 1, state = \"retired\" }, { number = 2, state = \"primary\" }";

/// Which keys a rule has only its tokens know, which may be away.
#[tokio::test]
async fn a_rules_version_does_not_become_primary_while_no_token_tells_its_keys() {
    let token = SoftHsm::with_keys();
    for label in ["nested-a", "nested-a@2"] {
        token.generate(label, &[]);
    }
    let faults = Faults::new();
    faults.set("* remove_token");
    let with = |versions: &str| Setup {
        nested_rule: format!("{{ label_prefix = \"nested-\", versions = [{versions}] }}"),
        more: UNWATCHED.to_owned(),
        ..Setup::default()
    };
    let setup = faults.between(with(FIRST));
    let reloading = Reloading { proxy: Proxy::start_without_waiting(&setup, token.into()), setup };
    let reload = async |versions: &str| reloading.reload_with(&faults.between(with(versions))).await;
    let which = "store nested: version 2 of the keys of its rule";
    let assert_told = async |why: &str| {
        let told = reloading.verbose().await;
        assert!(told.contains(which) && told.contains(why), "{told}");
    };
    assert_eq!(reload(PROMOTED).await, "unsafe_versions");
    assert_told("neither staged nor retired").await;
    // To stage takes no token.
    assert_eq!(reload(STAGED).await, "ok");
    assert_eq!(reload(PROMOTED).await, "unsafe_versions");
    assert_told("token softhsm cannot be asked").await;
    faults.clear();
    reloading.proxy.wait_until_ready().await;
    assert_eq!(reload(PROMOTED).await, "ok", "{}", reloading.verbose().await);
}
