//! A module whose tokens come back only after C_Finalize and C_Initialize, as Luna's after losing a whole group.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use xks_harness::proxy::nested_store;
use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Faults, Function, Setup, SoftHsm};

use super::rig::{RECOVERY, Rig, is_internal};

const SECOND: &str = "xks-second";
/// Its name in the configuration.
const SECOND_NAME: &str = "second";
/// The profile says that its module must be initialised anew; where its IVs come from has nothing to do with it.
const LUNA: &str =
    "profile = \"luna\"\niv_source = \"os\"\nsessions = 2\nintervals = { health_probe_ms = 100 }";

fn luna() -> Setup {
    let server = "lame_duck_secs = 0\ndrain_secs = 1".to_owned();
    Setup { token: LUNA.to_owned(), server, ..Setup::default() }
}

/// Two tokens of one module behind store `main`.
async fn two_tokens() -> Rig {
    two_tokens_by(&Faults::module()).await
}

/// The same, where another path leads to the second one's module.
async fn two_tokens_by(module: &Path) -> Rig {
    let rig = Rig::start_with_faults(on_two_tokens(module), with_both_labels(), "");
    rig.proxy.wait_until_ready().await;
    wait_until_both(&rig, "ACTIVE").await;
    rig
}

/// Both tokens, with the same key.
fn with_both_labels() -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    let value = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    for name in [LABEL, SECOND] {
        token.tool(&["generate", "--token", name, "--label", "xks-health"]);
        token.tool(&["import", "--token", name, "--label", "demo", "--value", value]);
    }
    token
}

/// The first token alone, and the key that both have.
fn on_one_token() -> Setup {
    let keys = "[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n".to_owned();
    Setup { keys, ..luna() }
}

/// Both tokens behind store `main`.
fn on_two_tokens(module: &Path) -> Setup {
    let more = format!(
        "[[tokens]]\nname = \"{SECOND_NAME}\"\nmodule = \"{}\"\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\n{LUNA}\n",
        module.display()
    );
    Setup { tokens: r#"["softhsm", "second"]"#.to_owned(), more, ..on_one_token() }
}

async fn wait_until_both(rig: &Rig, wanted: &str) {
    let until = Instant::now() + RECOVERY;
    loop {
        let health = rig.client().await.health().await.json();
        let details = health["ekmFleetDetails"].as_array().cloned().unwrap_or_default();
        if details.len() == 2 && details.iter().all(|token| token["healthStatus"] == wanted) {
            return;
        }
        assert!(Instant::now() < until, "{health}\n{}", rig.last_lines());
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

#[tokio::test]
async fn a_token_that_needs_it_comes_back_by_initialising_its_module_anew() {
    for rule in [
        "C_EncryptInit need_reinit",
        "C_EncryptInit need_reinit=CKR_TOKEN_NOT_PRESENT",
        "C_Encrypt need_reinit=CKR_DEVICE_REMOVED",
    ] {
        let rig = Rig::start(luna()).await;
        let encrypted = rig.client().await.encrypt("demo").await.ok();
        rig.faults.set(rule);
        assert!(is_internal(&rig.client().await.encrypt("demo").await), "{rule}");
        // Not taken away: it happens once, and only C_Finalize and C_Initialize undo it.
        rig.wait_until_it_decrypts(&encrypted).await;
        rig.wait_until_it_serves().await;
        let calls = [Function::Finalize, Function::Initialize, Function::Login].map(|f| rig.faults.calls(f));
        assert_eq!(calls, [1, 2, 2], "{rule}");
    }
}

/// Slots and sessions may be there while the whole group behind them is gone: then only C_Login says so.
#[tokio::test]
async fn a_token_whose_login_says_that_it_is_gone_comes_back_so_too() {
    let lost = "C_EncryptInit fail=CKR_DEVICE_REMOVED label=demo times=1";
    for code in ["CKR_TOKEN_NOT_PRESENT", "CKR_DEVICE_REMOVED", "CKR_DEVICE_ERROR"] {
        let rig = Rig::start(luna()).await;
        rig.faults.set(&format!("{lost}\nC_Login fail={code}"));
        assert!(is_internal(&rig.client().await.encrypt("demo").await), "{code}");
        rig.faults.wait_for(code, |counts| counts.calls(Function::Initialize) == 2).await;
        // One at each try to connect, three of which make a loss.
        assert!(rig.faults.calls(Function::Login) <= 5, "{}", rig.faults.calls(Function::Login));
        rig.faults.clear();
        rig.wait_until_it_serves().await;
    }
    // A token that answers otherwise is there.
    let rig = Rig::start(luna()).await;
    rig.faults.set(&format!("{lost}\nC_Login fail=CKR_FUNCTION_FAILED"));
    assert!(is_internal(&rig.client().await.encrypt("demo").await));
    rig.faults.wait_for("tries", |counts| counts.calls(Function::Login) >= 6).await;
    assert_eq!(rig.faults.calls(Function::Finalize), 0);
}

#[tokio::test]
async fn a_module_that_says_that_it_is_not_initialised_is_initialised_whatever_its_profile() {
    let token = "sessions = 2\nintervals = { health_probe_ms = 100 }".to_owned();
    let rig = Rig::start(Setup { token, ..Setup::default() }).await;
    let encrypted = rig.client().await.encrypt("demo").await.ok();
    rig.faults.set("C_EncryptInit need_reinit=CKR_CRYPTOKI_NOT_INITIALIZED");
    rig.client().await.encrypt("demo").await;
    rig.wait_until_it_decrypts(&encrypted).await;
    assert_eq!(rig.faults.calls(Function::Initialize), 2);
    assert_eq!(rig.faults.calls(Function::Login), 2);
}

#[tokio::test]
async fn all_tokens_of_the_module_come_back_with_one_login_each() {
    let rig = two_tokens().await;
    let encrypted = rig.client().await.encrypt("demo").await.ok();
    let rule = "C_EncryptInit need_reinit";
    rig.faults.set(rule);
    let fired = rule.parse().unwrap();
    rig.faults.wait_for("the loss", |counts| counts.fired(&fired) == 1).await;
    rig.faults.wait_for("a new initialisation", |counts| counts.calls(Function::Initialize) == 2).await;
    wait_until_both(&rig, "ACTIVE").await;
    rig.wait_until_it_decrypts(&encrypted).await;
    assert_eq!(rig.faults.calls(Function::Finalize), 1);
    assert_eq!(rig.faults.calls(Function::Login), 4);
}

#[tokio::test]
async fn a_module_that_two_paths_lead_to_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link.so");
    symlink(Faults::module(), &link).unwrap();
    let rig = two_tokens_by(&link).await;
    assert_eq!(rig.faults.calls(Function::Initialize), 1);
    // One of them away takes the other down no sooner than with one path.
    let slots = rig.faults.calls(Function::GetSlotList);
    rig.faults.set(&format!("* remove_token token=\"{SECOND}\""));
    rig.faults.wait_for("tries to connect", |counts| counts.calls(Function::GetSlotList) >= slots + 8).await;
    rig.client().await.encrypt("demo").await.ok();
    assert_eq!(rig.faults.calls(Function::Finalize), 0);
}

#[tokio::test]
async fn a_token_that_stays_away_takes_none_down_that_serves() {
    let rig = two_tokens().await;
    let slots = rig.faults.calls(Function::GetSlotList);
    rig.faults.set(&format!("* remove_token token=\"{SECOND}\""));
    let mut client = rig.client().await;
    rig.faults.wait_for("tries to connect", |counts| counts.calls(Function::GetSlotList) >= slots + 10).await;
    for _ in 0..20 {
        client.encrypt("demo").await.ok();
    }
    assert_eq!(rig.faults.calls(Function::Finalize), 0);
    rig.faults.clear();
    wait_until_both(&rig, "ACTIVE").await;
}

#[tokio::test]
async fn a_token_that_stays_away_is_not_asked_all_the_time() {
    let rig = Rig::start(luna()).await;
    rig.faults.set("* remove_token");
    // Three failures, then pauses of at least 2 and 4 s between one and the next.
    rig.faults.wait_for("two initialisations more", |counts| counts.calls(Function::Initialize) == 3).await;
    assert!(rig.faults.calls(Function::GetSlotList) > 5);
    rig.faults.clear();
    rig.wait_until_it_serves().await;
    assert_eq!(rig.faults.calls(Function::Login), 2);
}

#[tokio::test]
async fn a_call_that_hangs_inside_ends_the_process_in_order_and_not_the_module() {
    let mut rig = Rig::start(luna()).await;
    rig.faults.set("C_Encrypt hang forever label=demo-2");
    let mut client = rig.client().await;
    let waiting = tokio::spawn(async move { client.encrypt("demo-2").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    rig.faults.set("C_Encrypt hang forever label=demo-2\nC_EncryptInit need_reinit");
    let _ = rig.proxy.wait_for_log(|line| {
        line["message"].as_str().is_some_and(|text| text.contains("to be started again"))
    });
    let status = rig.proxy.wait_for_exit();
    assert_eq!(status.code(), Some(75), "{}", rig.last_lines());
    let lines = rig.proxy.log_lines();
    let position = |message: &str| {
        lines.iter().position(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message)))
    };
    assert!(position("stopping: not ready").is_some() && position("stopping") < position("draining"));
    assert_eq!(rig.faults.calls(Function::Finalize), 0, "beside a thread that is inside");
    waiting.abort();
}

/// The connection that a stuck keeper leaves behind is its token's own, and serves nobody.
#[tokio::test]
async fn a_keeper_that_hangs_inside_a_module_that_needs_it_ends_the_process_in_order() {
    let mut rig = Rig::start(luna()).await;
    let mut client = rig.client().await;
    let hang = "C_EncryptInit hang forever label=xks-health times=1";
    rig.faults.set(hang);
    let hung = hang.parse().unwrap();
    rig.faults.wait_for("a probe that hangs", |counts| counts.fired(&hung) == 1).await;
    // Before the next keeper connects.
    rig.faults.set(&format!("{hang}\n* need_reinit"));
    for _ in 0..5 {
        assert!(is_internal(&client.encrypt("demo").await));
    }
    assert_eq!(rig.proxy.wait_for_exit().code(), Some(75), "{}", rig.last_lines());
    assert_eq!(rig.faults.calls(Function::Finalize), 0, "beside a thread that is inside");
}

#[tokio::test]
async fn a_token_that_a_reload_lets_go_of_is_none_that_serves() {
    let rig = two_tokens().await;
    let one = rig.faults.between(on_one_token());
    let _ = one.write(rig.proxy.folder(), &rig.proxy.token);
    rig.proxy.signal("HUP");
    let _ = rig.proxy.wait_for_log(|line| line["token"] == SECOND_NAME && line["has_stopped"] == true);
    let encrypted = rig.client().await.encrypt("demo").await.ok();
    rig.faults.set("C_EncryptInit need_reinit");
    assert!(is_internal(&rig.client().await.encrypt("demo").await));
    // One that serves would be left in peace for a minute.
    rig.wait_until_it_decrypts(&encrypted).await;
    assert_eq!(rig.faults.calls(Function::Finalize), 1);
}

#[tokio::test]
async fn a_module_that_hangs_in_its_own_initialisation_ends_the_process_in_order() {
    for rule in ["C_Initialize hang forever", "C_Finalize hang forever"] {
        let mut rig = Rig::start(luna()).await;
        rig.faults.set(&format!("{rule}\nC_EncryptInit need_reinit"));
        assert_eq!(rig.proxy.wait_for_exit().code(), Some(75), "{rule}\n{}", rig.last_lines());
    }
}

#[tokio::test]
async fn a_call_that_comes_back_in_time_is_waited_for() {
    let token = LUNA.replace("health_probe_ms = 100", "health_probe_ms = 5000");
    let rig = Rig::start(Setup { token, ..luna() }).await;
    let hang = "C_Encrypt hang until_removed label=demo-2";
    rig.faults.set(hang);
    let mut client = rig.client().await;
    let waiting = tokio::spawn(async move { client.encrypt("demo-2").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let loss = "C_EncryptInit need_reinit=CKR_DEVICE_REMOVED";
    let slots = rig.faults.calls(Function::GetSlotList);
    rig.faults.set(&format!("{hang}\n{loss}"));
    rig.client().await.encrypt("demo").await;
    rig.faults.wait_for("three tries", |counts| counts.calls(Function::GetSlotList) >= slots + 3).await;
    assert_eq!(rig.faults.calls(Function::Finalize), 0);
    rig.faults.set(loss);
    rig.wait_until_it_serves().await;
    assert_eq!(rig.faults.calls(Function::Finalize), 1);
    waiting.await.unwrap();
}

/// Takes minutes: a lost token waits for one that serves for a minute.
#[tokio::test]
async fn a_token_that_is_away_for_minutes_costs_another_one_login_and_no_session() {
    if std::env::var_os("XKS_LONG_TESTS").is_none() {
        return;
    }
    let rig = two_tokens().await;
    rig.faults.set(&format!("* remove_token token=\"{SECOND}\""));
    let mut client = rig.client().await;
    let until = Instant::now() + Duration::from_secs(160);
    let mut failed = 0;
    while Instant::now() < until {
        failed += u32::from(client.encrypt("demo").await.status != 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // After a minute, and then not for two.
    assert_eq!(rig.faults.calls(Function::Finalize), 1);
    assert_eq!(rig.faults.calls(Function::Login), 3, "both once, then the one that serves");
    assert!(failed < 100, "{failed}");
    rig.faults.clear();
    wait_until_both(&rig, "ACTIVE").await;
}

/// Takes minutes too. Its door is closed again and again, and never in time for who wants to be alone.
#[tokio::test]
async fn a_thread_that_hangs_while_another_token_is_away_costs_neither_login_nor_sessions() {
    if std::env::var_os("XKS_LONG_TESTS").is_none() {
        return;
    }
    let rig = two_tokens().await;
    rig.proxy.token.generate("nested-x", &["--token", LABEL]);
    let hang = "C_Encrypt hang forever label=nested-x times=1";
    rig.faults.set(hang);
    let mut hung = rig.client_of(nested_store()).await;
    let waiting = tokio::spawn(async move { hung.encrypt("x").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let sessions = || rig.faults.calls(Function::OpenSession) - rig.faults.calls(Function::CloseSession);
    rig.faults.set(&format!("{hang}\n* remove_token token=\"{SECOND}\""));
    let mut client = rig.client().await;
    let before = sessions();
    let until = Instant::now() + Duration::from_secs(100);
    let mut failed = 0;
    while Instant::now() < until {
        failed += u32::from(client.encrypt("demo").await.status != 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.faults.calls(Function::Finalize), 0);
    assert_eq!(rig.faults.calls(Function::Login), 2);
    assert!(sessions() <= before + 4, "{before} and then {}", sessions());
    assert!((1..100).contains(&failed), "the door was closed for a second: {failed}");
    waiting.abort();
}
