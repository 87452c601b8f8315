//! Which token is meant, and logging in to it: once, and never again with a PIN that was refused.

use std::fs;

use xks_harness::token::{PIN, SO_PIN};
use xks_harness::{Function, Setup, SoftHsm, binary};

use super::rig::{Rig, is_internal};

const RARE_PROBES: &str = "sessions = 2\nintervals = { health_probe_ms = 30000 }";

fn setup() -> Setup {
    Setup { token: RARE_PROBES.to_owned(), ..Setup::default() }
}

fn selected_by(selector: String) -> Setup {
    Setup { selector, ..setup() }
}

/// Up, but neither ready nor healthy; every request fails at once, and as what it is.
async fn assert_unusable(rig: &Rig) {
    rig.wait_for_health("UNAVAILABLE").await;
    assert_eq!(rig.proxy.admin("/readyz").await.0, 503);
    assert_eq!(rig.proxy.admin("/livez").await.0, 200);
    let mut client = rig.client().await;
    for answer in [
        client.encrypt("demo").await,
        client.encrypt_with_integrity_value("demo").await,
        client.metadata("demo").await,
        client.metadata("absent").await,
    ] {
        assert!(is_internal(&answer), "{:?}", answer.body);
    }
}

/// The log says it in one error line, and `check` with exit code 1.
async fn assert_told(rig: &Rig, words: &[&str]) {
    let told = |text: &str| words.iter().all(|word| text.contains(word));
    let line = rig.proxy.wait_for_log(|line| line["level"] == "ERROR");
    assert!(told(line["reason"].as_str().unwrap()), "{line} does not say {words:?}");
    let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
    assert!(told(&verbose), "{verbose} does not say {words:?}");
    let (code, text) = rig.check();
    assert_eq!(code, Some(1), "{text}");
    assert!(told(&text), "{text} does not say {words:?}");
}

#[tokio::test]
async fn a_token_is_found_by_label_serial_number_and_slot_id() {
    let rig = Rig::start(setup()).await;
    let health = rig.client().await.health().await.ok();
    let serial = health["ekmFleetDetails"][0]["id"].as_str().unwrap().to_owned();
    // SoftHSM2 makes the slot id out of the last 31 bits of the serial number.
    let slot_id = u32::from_str_radix(&serial[serial.len() - 8..], 16).unwrap() & 0x7fff_ffff;
    for selector in [format!("serial = \"{serial}\""), format!("slot_id = {slot_id}")] {
        let rig = Rig::start(selected_by(selector.clone())).await;
        rig.wait_until_it_serves().await;
        let health = rig.client().await.health().await.ok();
        assert_eq!(health["ekmFleetDetails"][0]["id"].as_str(), Some(&*serial), "{selector}");
    }
}

#[tokio::test]
async fn where_no_token_is_the_one_meant_the_log_says_which_there_are() {
    for selector in [r#"label = "xks""#, r#"serial = "0123456789abcdef""#, "slot_id = 4294967295"] {
        let rig = Rig::start_with_faults(selected_by(selector.to_owned()), SoftHsm::with_keys(), "");
        assert_unusable(&rig).await;
        let wanted = selector.split(" = ").nth(1).unwrap();
        assert_told(&rig, &[wanted, "\"xks-test\""]).await;
        let health = rig.client().await.health().await.ok();
        assert_eq!(health["ekmFleetDetails"].as_array().unwrap().len(), 1);
    }
}

/// Adds a second token with the label of the first. `init` refuses to, so one of another label of the same length is
/// renamed in its file.
fn add_namesake(token: &SoftHsm) {
    let first = token.objects();
    token.tool(&["init", "--label", "xks-Test", "--so-pin", SO_PIN, "--pin", PIN]);
    let tokens = fs::read_dir(first.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let second = tokens.into_iter().find(|folder| *folder != first).unwrap().join("token.object");
    let mut content = fs::read(&second).unwrap();
    let at = content.windows(8).position(|window| window == b"xks-Test").unwrap();
    content[at..at + 8].copy_from_slice(b"xks-test");
    fs::write(second, content).unwrap();
}

#[tokio::test]
async fn two_tokens_of_one_label_are_refused_and_told_apart_by_their_serial_numbers() {
    let token = SoftHsm::with_keys();
    let serial = token.objects().file_name().unwrap().to_str().unwrap().to_owned();
    add_namesake(&token);
    let rig = Rig::start_with_faults(setup(), token.copy(), "");
    assert_unusable(&rig).await;
    assert_told(&rig, &["several tokens", "\"xks-test\"", "serial number"]).await;
    assert_eq!(
        rig.faults.calls(Function::Login),
        0,
        "no PIN is tried on a token that may not be the one meant"
    );

    // The serial number is the last 16 digits of the folder's UUID.
    let serial: String = serial.chars().filter(|char| *char != '-').collect();
    let selector = format!("serial = \"{}\"", &serial[serial.len() - 16..]);
    let rig = Rig::start_on(selected_by(selector), token).await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_pin_that_was_refused_is_never_tried_again() {
    let setup = Setup { pin: r#"pin = "not-the-pin""#.to_owned(), ..setup() };
    let rig = Rig::start_with_faults(setup, SoftHsm::with_keys(), "");
    assert_unusable(&rig).await;
    // Each round of trying opens a session to log in by.
    rig.faults.wait_for("four rounds", |counts| counts.calls(Function::OpenSession) >= 4).await;
    let mut client = rig.client().await;
    for _ in 0..20 {
        assert!(is_internal(&client.encrypt("demo").await));
    }
    rig.wait_for_health("UNAVAILABLE").await;
    assert_eq!(rig.faults.calls(Function::Login), 1);
    let is_refusal =
        |line: &serde_json::Value| line["reason"].as_str().is_some_and(|it| it.contains("PIN_INC"));
    let told =
        rig.proxy.log_lines().iter().filter(|line| line["level"] == "ERROR" && is_refusal(line)).count();
    assert_eq!(told, 1, "said once, not every round");
    let inside =
        rig.faults.counts().calls(Function::OpenSession) - rig.faults.counts().calls(Function::CloseSession);
    assert!(inside <= 1, "no session is left open by a round that failed: {inside}");

    let (code, text) = rig.check();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the PIN is not tried") && !text.contains("not-the-pin"), "{text}");
    assert_eq!(rig.faults.calls(Function::Login), 1, "the token says that it has refused one");
    assert!(!rig.proxy.all_output().contains("not-the-pin"));
}

#[tokio::test]
async fn the_reason_that_a_pin_was_refused_for_stays_the_true_one() {
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), "C_Login fail=CKR_PIN_LOCKED");
    assert_unusable(&rig).await;
    rig.faults.wait_for("three rounds", |counts| counts.calls(Function::OpenSession) >= 3).await;
    let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
    assert!(verbose.contains("CKR_PIN_LOCKED"), "{verbose}");
    assert_eq!(rig.faults.calls(Function::Login), 1);
}

#[tokio::test]
async fn a_pin_file_that_is_corrected_is_read_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pin");
    fs::write(&file, "not-the-pin\n").unwrap();
    let setup = Setup { pin: format!("pin = {{ file = {:?} }}", file.display().to_string()), ..setup() };
    let rig = Rig::start_with_faults(setup, SoftHsm::with_keys(), "");
    assert_unusable(&rig).await;
    rig.faults.wait_for("three rounds", |counts| counts.calls(Function::OpenSession) >= 3).await;
    assert_eq!(rig.faults.calls(Function::Login), 1);
    fs::write(&file, format!("{PIN}\n")).unwrap();
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
    assert_eq!(rig.faults.calls(Function::Login), 2);
    // Should the login be lost, it is the right PIN that is given.
    rig.faults.set("C_EncryptInit forget_logins");
    rig.client().await.encrypt("demo").await;
    rig.faults.clear();
    rig.wait_until_it_serves().await;
    assert_eq!(rig.faults.calls(Function::Login), 3);
}

#[tokio::test]
async fn a_login_that_fails_for_another_reason_is_tried_again() {
    let rules = "C_Login fail=CKR_FUNCTION_FAILED times=2";
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), rules);
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
    assert_eq!(rig.faults.calls(Function::Login), 3);
}

/// A shared object that is no PKCS#11 module: a macro of some library, which cargo leaves beside every test.
fn some_shared_object() -> std::path::PathBuf {
    let files = fs::read_dir(binary::profile_folder().join("deps")).unwrap();
    let mut paths = files.map(|entry| entry.unwrap().path());
    let is_other = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|extension| extension == "so") && !path.ends_with("libpkcs11_fault.so")
    };
    paths.find(is_other).unwrap()
}

#[tokio::test]
async fn a_module_that_is_missing_or_none_is_reported_and_loaded_once_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("module.so");
    let text = folder.path().join("text.so");
    fs::write(&text, "not a shared object").unwrap();
    for (content, words) in [
        (None, ["cannot load", "module.so"]),
        (Some(text), ["cannot load", "module.so"]),
        (Some(some_shared_object()), ["C_GetFunctionList", "module.so"]),
    ] {
        let _ = fs::remove_file(&path);
        if let Some(content) = content {
            fs::copy(content, &path).unwrap();
        }
        let setup = Setup { module: Some(path.clone()), ..setup() };
        let proxy = xks_harness::Proxy::start_without_waiting(&setup, SoftHsm::with_keys().into());
        let rig = Rig { faults: xks_harness::Faults::new(), proxy };
        assert_unusable(&rig).await;
        assert_told(&rig, &words).await;
        // As a package manager does it: never into a file that may be loaded.
        let new = folder.path().join("new.so");
        fs::copy(SoftHsm::module(), &new).unwrap();
        fs::rename(new, &path).unwrap();
        rig.proxy.wait_until_ready().await;
        rig.wait_until_it_serves().await;
    }
}

#[tokio::test]
async fn a_token_that_is_absent_at_the_start_or_removed_later_serves_as_soon_as_it_is_there() {
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), "* remove_token");
    assert_unusable(&rig).await;
    let line = rig.proxy.wait_for_log(|line| line["level"] == "ERROR");
    assert!(line["reason"].as_str().unwrap().contains("\"xks-test\""), "{line}");
    rig.faults.clear();
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;

    rig.faults.set("* remove_token");
    let mut client = rig.client().await;
    for _ in 0..20 {
        assert!(is_internal(&client.encrypt("demo").await));
    }
    assert_unusable(&rig).await;
    rig.faults.clear();
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_token_without_aes_gcm_is_refused_with_the_reason() {
    let rules = "* hide_mechanism=CKM_AES_GCM";
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), rules);
    assert_unusable(&rig).await;
    assert_told(&rig, &["AES-GCM", "CKM_AES_GCM"]).await;
    assert_eq!(rig.faults.calls(Function::Login), 0);
}

#[tokio::test]
async fn a_module_that_cannot_be_initialised_is_initialised_later() {
    let rules = "C_Initialize fail=CKR_GENERAL_ERROR";
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), rules);
    assert_unusable(&rig).await;
    assert_told(&rig, &["C_Initialize", "CKR_GENERAL_ERROR"]).await;
    rig.faults.clear();
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn the_configuration_says_who_logs_in() {
    // SoftHSM2's security officer has a PIN of his own, and may use no key.
    let as_officer = |pin: &str| {
        let token = format!("{}\nuser_type = \"so\"", Setup::default().token);
        Setup { token, pin: format!("pin = \"{pin}\""), ..Setup::default() }
    };
    let rig = Rig::start_with_faults(as_officer(SO_PIN), SoftHsm::with_keys(), "");
    // What he may not do differs from token to token; that his PIN is taken does not.
    let is_in = |text: &str| !text.contains("not connected yet") && !text.contains("PIN");
    rig.proxy.wait_for("/readyz?verbose", |_, text| is_in(text)).await;
    let rig = Rig::start_with_faults(as_officer(PIN), SoftHsm::with_keys(), "");
    let line = rig.proxy.wait_for_log(|line| line["message"] == "the token is not usable");
    assert!(line["reason"].as_str().unwrap().contains("CKR_PIN_INCORRECT"), "{line}");
}

#[tokio::test]
async fn a_module_that_cannot_be_initialised_stays_loaded() {
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), "C_Initialize fail=CKR_DEVICE_ERROR");
    assert_unusable(&rig).await;
    let loaded = rig.faults.calls(Function::GetFunctionList);
    rig.faults.wait_for("three tries", |counts| counts.calls(Function::Initialize) >= 3).await;
    let maps = fs::read_to_string(format!("/proc/{}/maps", rig.proxy.pid())).unwrap();
    let module = xks_harness::Faults::module();
    assert!(maps.contains(module.file_name().unwrap().to_str().unwrap()), "{maps}");
    assert_eq!(rig.faults.calls(Function::GetFunctionList), loaded, "it was loaded anew");
    rig.faults.clear();
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
}
