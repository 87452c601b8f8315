//! Initialization vectors are counted for each key version, through restarts and crashes, and warned of in time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Faults, Function, Http, Proxy, Setup, SoftHsm, Store, XksRequest};

/// IVs that are reserved at once.
const BLOCK: u64 = 65_536;

fn counting_in(state: &Path) -> Setup {
    let more = format!("[state]\ndir = \"{}\"\niv_budget_instances = 2\n", state.display());
    Setup { more, ..Setup::default() }
}

async fn encrypt(proxy: &Proxy, store: &Store, key: &str, wants_integrity_value: bool, times: usize) {
    let mut connection = proxy.connect(Http::Two).await;
    for _ in 0..times {
        let body = encrypt_body(b"counted", None, wants_integrity_value);
        connection.send(&XksRequest::encrypt(store, key, &body)).await.ok();
    }
}

/// The files that hold counts, and what they hold.
fn files(state: &Path) -> Vec<(PathBuf, Value)> {
    let folder = fs::read_dir(state.join("iv-budget")).unwrap().map(|entry| entry.unwrap().path());
    let counts = folder.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    counts.map(|path| (path.clone(), serde_json::from_slice(&fs::read(path).unwrap()).unwrap())).collect()
}

fn drawn(state: &Path, key: &str) -> u64 {
    let files = files(state);
    let of_key = files.iter().find(|(_, count)| count["externalKeyId"] == key);
    of_key.unwrap_or_else(|| panic!("{key} in {files:?}")).1["drawn"].as_u64().unwrap()
}

/// Ends in order, while connections can hear that they are to close.
async fn end(mut proxy: Proxy) {
    proxy.signal("TERM");
    let waited = tokio::task::spawn_blocking(move || (proxy.wait_for_exit(), proxy.all_output()));
    let (status, output) = waited.await.unwrap();
    assert!(status.success(), "{status}\n{output}");
}

#[tokio::test]
async fn counts_are_exact_after_an_orderly_end_and_too_high_after_a_crash() {
    let state = tempfile::tempdir().unwrap();
    let token = SoftHsm::with_keys();
    token.generate("nested-a", &[]);
    let (setup, token) = (counting_in(state.path()), Arc::new(token));
    let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
    encrypt(&proxy, &main_store(), "demo", false, 3).await;
    encrypt(&proxy, &main_store(), "demo", true, 2).await;
    encrypt(&proxy, &main_store(), "demo-2", false, 1).await;
    encrypt(&proxy, &nested_store(), "a", false, 4).await;
    end(proxy).await;
    assert_eq!(["demo", "demo-2", "a"].map(|key| drawn(state.path(), key)), [5, 1, 4]);
    assert_eq!(files(state.path()).len(), 3);

    let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
    encrypt(&proxy, &main_store(), "demo", false, 2).await;
    // Killed.
    drop(proxy);
    // The block was reserved before the first was drawn.
    assert_eq!(drawn(state.path(), "demo"), 5 + BLOCK);
    assert_eq!(drawn(state.path(), "demo-2"), 1, "what was not used is as it was");

    let proxy = Proxy::start_on(&setup, token).await;
    encrypt(&proxy, &main_store(), "demo", false, 1).await;
    end(proxy).await;
    assert_eq!(drawn(state.path(), "demo"), 6 + BLOCK);
}

/// Encryptions may outlive the time that requests have at the end.
#[tokio::test]
async fn what_is_drawn_while_the_process_ends_is_counted() {
    const RULE: &str = "C_Encrypt delay_ms=800 label=demo";
    let state = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    faults.set("");
    let setup = Setup {
        server: "lame_duck_secs = 0\ndrain_secs = 1".to_owned(),
        timeouts: "answer_ms = 20000\nfirst_answer_ms = 20000".to_owned(),
        token: "sessions = 1".to_owned(),
        ..counting_in(state.path())
    };
    let mut proxy = Proxy::start_on(&faults.between(setup), Arc::new(SoftHsm::with_keys())).await;
    faults.set(RULE);
    for _ in 0..6 {
        let mut connection = proxy.connect(Http::One).await;
        let body = encrypt_body(b"counted", None, false);
        let request = XksRequest::encrypt(&main_store(), "demo", &body);
        // It may be cut off.
        tokio::spawn(async move { drop(connection.try_send(&request).await) });
    }
    while faults.fired(RULE) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    proxy.signal("TERM");
    tokio::task::spawn_blocking(move || proxy.wait_for_exit()).await.unwrap();
    let (on_disk, made) = (drawn(state.path(), "demo"), faults.fired(RULE));
    assert!(on_disk >= made, "{on_disk} on disk, {made} made");
}

#[tokio::test]
async fn half_of_the_share_is_warned_of_and_nothing_is_refused_beyond_all_of_it() {
    let state = tempfile::tempdir().unwrap();
    let (setup, token) = (counting_in(state.path()), Arc::new(SoftHsm::with_keys()));
    let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
    encrypt(&proxy, &main_store(), "demo", false, 1).await;
    encrypt(&proxy, &main_store(), "demo-2", false, 1).await;
    end(proxy).await;
    // Two proxies share 2^32.
    let share = 1_u64 << 31;
    let (file, mut count) =
        files(state.path()).into_iter().find(|(_, count)| count["externalKeyId"] == "demo").unwrap();
    for (drawn, words, ratio) in [(share / 2 - 1, "half", 0.5), (share, "all", 1.0)] {
        count["drawn"] = drawn.into();
        fs::write(&file, count.to_string()).unwrap();
        let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
        encrypt(&proxy, &main_store(), "demo-2", false, 1).await;
        encrypt(&proxy, &main_store(), "demo", false, 1).await;
        let line = proxy.wait_for_log(|line| line["level"] == "WARN" && line["share"] == share);
        assert!(line["message"].as_str().unwrap().contains(words), "{line}");
        assert_eq!(
            (&line["store"], &line["external_key_id"], &line["key_version"]),
            (&"main".into(), &"demo".into(), &1.into())
        );
        let of_store = |name: &str| format!("{name}{{store=\"main\"}}");
        proxy
            .wait_for("/metrics", |_, text| {
                text.contains(&format!("{} 1\n", of_store("xks_iv_budget_over_half")))
            })
            .await;
        let used = proxy.metric(&of_store("xks_iv_budget_used_ratio")).await;
        assert!((used - ratio).abs() < 0.001, "{used}");
        encrypt(&proxy, &main_store(), "demo", true, 1).await;
        end(proxy).await;
    }
}

/// A key whose handle has gone is looked up and used anew: two attempts, and an IV for each.
#[tokio::test]
async fn attempts_that_failed_count_too() {
    let state = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    faults.set("");
    let setup = faults.between(counting_in(state.path()));
    let proxy = Proxy::start_on(&setup, Arc::new(SoftHsm::with_keys())).await;
    encrypt(&proxy, &main_store(), "demo", false, 1).await;
    let rule = "C_EncryptInit fail=CKR_KEY_HANDLE_INVALID label=demo times=1";
    faults.set(rule);
    encrypt(&proxy, &main_store(), "demo", false, 1).await;
    assert_eq!(faults.fired(rule), 1);
    assert!(faults.calls(Function::EncryptInit) >= 3);
    end(proxy).await;
    assert_eq!(drawn(state.path(), "demo"), 3);
}

/// A session that is lost is replaced within one attempt, and the encryption done anew under another IV.
#[tokio::test]
async fn every_iv_of_one_attempt_counts() {
    let state = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    faults.set("");
    let setup = faults.between(counting_in(state.path()));
    let proxy = Proxy::start_on(&setup, Arc::new(SoftHsm::with_keys())).await;
    encrypt(&proxy, &main_store(), "demo", false, 1).await;
    for (rule, drawn) in [
        ("C_Encrypt fail=CKR_SESSION_CLOSED label=demo times=1", 1),
        // With an integrity value, the second decryption proves that the first was the token's fault: two are sealed.
        ("C_Encrypt corrupt=tag label=demo times=1", 1),
    ] {
        faults.set(rule);
        encrypt(&proxy, &main_store(), "demo", true, 1).await;
        assert_eq!(faults.fired(rule), drawn, "{rule}");
    }
    end(proxy).await;
    assert_eq!(drawn(state.path(), "demo"), 5);
}

/// Nobody hears any more of an encryption that hangs beyond the deadline. What it draws once the token goes on counts all
/// the same.
#[tokio::test]
async fn an_iv_that_is_drawn_after_the_deadline_counts() {
    let state = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    faults.set("");
    let timeouts = "answer_ms = 1000\nfirst_answer_ms = 1000".to_owned();
    let setup = faults.between(Setup { timeouts, ..counting_in(state.path()) });
    let proxy = Proxy::start_on(&setup, Arc::new(SoftHsm::with_keys())).await;
    let hang = "C_Encrypt hang until_removed label=demo times=1";
    let lost = "C_Encrypt fail=CKR_SESSION_CLOSED label=demo times=1";
    faults.set(&format!("{hang}\n{lost}"));
    let mut connection = proxy.connect(Http::Two).await;
    let body = encrypt_body(b"counted", None, false);
    let answer = connection.send(&XksRequest::encrypt(&main_store(), "demo", &body)).await;
    assert_eq!(answer.error().1, "DependencyTimeoutException");
    let before = faults.calls(Function::Encrypt);
    faults.set(lost);
    faults
        .wait_for("the second try", |counts| {
            counts.calls(Function::Encrypt) > before && counts.inside(Function::Encrypt) == 0
        })
        .await;
    end(proxy).await;
    assert_eq!(drawn(state.path(), "demo"), 2);
}

/// The exit code and what was said of a proxy that does not start.
fn refusal(setup: &Setup) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = setup.write(folder.path(), &SoftHsm::with_keys());
    let mut command = std::process::Command::new(xks_harness::binary::program("xks-proxy"));
    let output = command.arg("serve").arg("--config").arg(config).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn two_proxies_do_not_count_in_one_directory() {
    let state = tempfile::tempdir().unwrap();
    let setup = counting_in(state.path());
    let _first = Proxy::start(&setup).await;
    let (code, text) = refusal(&setup);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("in use by another process"), "{text}");
}

#[tokio::test]
async fn a_damaged_count_ends_the_start_and_is_not_overwritten() {
    let state = tempfile::tempdir().unwrap();
    let setup = counting_in(state.path());
    let proxy = Proxy::start(&setup).await;
    encrypt(&proxy, &main_store(), "demo", false, 1).await;
    end(proxy).await;
    let (file, _) = files(state.path()).remove(0);
    fs::write(&file, "{\"drawn\":").unwrap();
    let (code, text) = refusal(&setup);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&file.display().to_string()), "{text}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"drawn\":");
}
