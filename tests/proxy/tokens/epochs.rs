//! Handles, sessions and logins end; the proxy begins anew, and never takes one key for another.

use std::time::Duration;

use xks_harness::proxy::nested_store;
use xks_harness::{Function, Setup, SoftHsm};

use super::aes_gcm::{KEY, hex, open};
use super::rig::{AAD, PLAINTEXT, Rig, at_once, is_internal, outcome};

pub(super) fn setup(sessions: usize, intervals: &str) -> Setup {
    Setup { token: format!("sessions = {sessions}\nintervals = {{ {intervals} }}"), ..Setup::default() }
}

/// A token whose key `demo` has a value that the test knows.
pub(super) fn token_with_known_key() -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["import", "--label", "demo", "--value", &hex(&KEY)]);
    token.generate("demo-2", &[]);
    token.generate("xks-health", &[]);
    token
}

#[tokio::test]
async fn sessions_logins_and_handles_that_end_while_serving_are_had_anew() {
    let rig = Rig::start(setup(2, "health_probe_ms = 30000")).await;
    let mut client = rig.client().await;
    for function in ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] {
        for event in ["drop_sessions", "forget_logins", "invalidate_handles"] {
            let encrypted = rig.wait_until_it_encrypts().await;
            let rule = format!("{function} {event}");
            rig.faults.set(&rule);
            for _ in 0..3 {
                let answer = client.decrypt("demo", &encrypted).await;
                assert!(answer.status == 200 || is_internal(&answer), "{rule}: {:?}", outcome(&answer));
                let answer = client.encrypt_with_integrity_value("demo").await;
                assert!(answer.status == 200 || is_internal(&answer), "{rule}: {:?}", outcome(&answer));
            }
            assert_eq!(rig.faults.fired(&rule), 1);
            rig.faults.clear();
            rig.wait_until_it_encrypts().await;
            rig.wait_until_it_decrypts(&encrypted).await;
        }
    }
}

#[tokio::test]
async fn a_job_that_was_queued_before_a_new_login_does_not_use_a_handle_from_before() {
    let intervals = "health_probe_ms = 100, stuck_after_ms = 60000";
    let rig = Rig::start_on(setup(1, intervals), token_with_known_key()).await;
    let hang = "C_Encrypt hang until_removed label=demo-2";
    rig.faults.set(hang);
    let (mut first, mut second) = (rig.client().await, rig.client().await);
    let first = tokio::spawn(async move { first.encrypt("demo-2").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let second = tokio::spawn(async move { second.encrypt("demo").await });
    rig.proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 2\n")).await;
    rig.client().await.metadata("demo").await.ok();

    // The keeper finds the token gone and comes back to one whose handles mean other keys.
    let lost = "C_EncryptInit fail=CKR_TOKEN_NOT_PRESENT label=xks-health times=1";
    let other_handles = "C_Login permute_handles";
    rig.faults.set(&format!("{hang}\n{lost}\n{other_handles}"));
    let rule = other_handles.parse().unwrap();
    rig.faults.wait_for("a new login", |counts| counts.fired(&rule) == 1).await;
    rig.proxy.wait_until_ready().await;
    rig.settle().await;
    rig.faults.clear();
    first.await.unwrap();
    let answer = second.await.unwrap();
    if answer.status == 200 {
        let plaintext = open(&KEY, &answer.json(), AAD);
        assert_eq!(
            plaintext.as_deref(),
            Some(PLAINTEXT),
            "encrypted under another key than the one asked for"
        );
    } else {
        assert!(is_internal(&answer), "{:?}", outcome(&answer));
    }
    let encrypted = rig.wait_until_it_encrypts().await;
    assert_eq!(open(&KEY, &encrypted, AAD).as_deref(), Some(PLAINTEXT));
}

#[tokio::test]
async fn a_handle_that_comes_to_mean_another_key_is_noticed_within_the_age_of_its_attributes() {
    let rig =
        Rig::start_on(setup(2, "key_attributes_ms = 100, health_probe_ms = 30000"), token_with_known_key())
            .await;
    let mut client = rig.client().await;
    rig.faults.set("C_EncryptInit permute_handles after=1");
    for _ in 0..2 {
        client.encrypt("demo").await;
    }
    assert_eq!(rig.faults.fired("C_EncryptInit permute_handles after=1"), 1);
    // Once the attributes have been read anew, twice to be sure that it was after the change.
    for _ in 0..2 {
        let before = rig.faults.calls(Function::GetAttributeValue);
        while rig.faults.calls(Function::GetAttributeValue) == before {
            client.metadata("demo").await;
        }
    }
    let encrypted = client.encrypt("demo").await.ok();
    let plaintext = open(&KEY, &encrypted, AAD);
    assert_eq!(plaintext.as_deref(), Some(PLAINTEXT), "encrypted under another key than the one asked for");
}

#[tokio::test]
async fn a_search_without_a_login_does_not_make_keys_unknown() {
    let rig = Rig::start(setup(2, "health_probe_ms = 30000")).await;
    rig.proxy.token.generate("nested-new", &[]);
    rig.faults.set("C_FindObjectsInit forget_logins");
    let mut nested = rig.client_of(nested_store()).await;
    let answer = nested.metadata("new").await;
    assert!(answer.status == 200 || is_internal(&answer), "the key is there: {:?}", outcome(&answer));
    rig.faults.clear();
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn indexing_without_a_login_does_not_make_keys_unknown() {
    let rig = Rig::start(setup(2, "health_probe_ms = 30000, reindex_secs = 1")).await;
    let mut client = rig.client().await;
    rig.faults.set("C_FindObjectsInit forget_logins");
    let rule = "C_FindObjectsInit forget_logins".parse().unwrap();
    rig.faults.wait_for("an index made without a login", |counts| counts.fired(&rule) == 1).await;
    for _ in 0..50 {
        let answer = client.encrypt("demo").await;
        assert!(answer.status == 200 || is_internal(&answer), "the key is there: {:?}", outcome(&answer));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    rig.faults.clear();
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn logins_lost_again_and_again_leave_no_sessions_behind() {
    // Two that work, the keeper's, and as many again while the old ones go.
    let limit = "C_OpenSession session_limit=6";
    let rig = Rig::start_with_faults(setup(2, "health_probe_ms = 30000"), SoftHsm::with_keys(), limit);
    rig.proxy.wait_until_ready().await;
    let mut client = rig.client().await;
    for round in 0..10 {
        rig.wait_until_it_serves().await;
        rig.faults.set(&format!("{limit}\nC_EncryptInit forget_logins"));
        let clients = rig.clients(4).await;
        at_once(clients, |_, mut client| async move { client.encrypt("demo").await }).await;
        assert_eq!(rig.faults.fired("C_EncryptInit forget_logins"), round + 1);
        rig.faults.set(limit);
        client.encrypt("demo").await;
    }
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_loss_that_is_found_while_searches_wait_is_not_forgotten() {
    let rig = Rig::start(setup(2, "health_probe_ms = 1000")).await;
    let hang = "C_FindObjectsInit hang until_removed";
    rig.faults.set(hang);
    let mut searching = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(rig.client_of(nested_store()).await);
    }
    for (index, mut client) in clients.into_iter().enumerate() {
        searching.push(tokio::spawn(async move { client.metadata(&format!("absent-{index}")).await }));
    }
    rig.faults.wait_until_inside(Function::FindObjectsInit, 1).await;
    // Those that found the queue full have their answers; the others fill it.
    let throttled = async || {
        let refused =
            r#"xks_requests_total{error="ThrottlingException",operation="GetKeyMetadata",store="nested"}"#;
        let waiting = rig.proxy.metric("xks_requests_in_flight").await;
        rig.proxy.metric(refused).await + waiting
    };
    while throttled().await < 60.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.faults.set(&format!("{hang}\nC_Encrypt fail=CKR_DEVICE_REMOVED label=demo times=1"));
    assert!(is_internal(&rig.client().await.encrypt("demo").await));
    rig.faults.clear();
    for search in searching {
        search.await.unwrap();
    }
    rig.wait_until_it_serves().await;
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_login_that_does_not_last_is_not_tried_in_a_loop() {
    for code in ["CKR_USER_NOT_LOGGED_IN", "CKR_DEVICE_REMOVED", "CKR_SESSION_HANDLE_INVALID"] {
        let rig = Rig::start(setup(2, "health_probe_ms = 200")).await;
        rig.faults.set(&format!("C_EncryptInit fail={code}"));
        let mut client = rig.client().await;
        assert!(is_internal(&client.encrypt("demo").await), "{code}");
        let before = rig.faults.calls(Function::OpenSession);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tries = rig.faults.calls(Function::OpenSession) - before;
        assert!(tries <= 20, "{code}: {tries} tries to begin anew within a second");
        let lines = rig.proxy.log_lines().len();
        assert!(lines < 200, "{code}: {lines} lines in the log");
        rig.faults.clear();
        rig.wait_until_it_serves().await;
    }
}

#[tokio::test]
async fn a_module_that_answers_with_errors_alone_ends_nothing_but_the_service_of_its_token() {
    for code in ["CKR_DEVICE_ERROR", "CKR_TOKEN_NOT_PRESENT", "CKR_FUNCTION_FAILED"] {
        let mut rig = Rig::start(setup(2, "health_probe_ms = 100")).await;
        let encrypted = rig.client().await.encrypt("demo").await.ok();
        rig.faults.set(&format!("C_EncryptInit need_reinit={code}"));
        let mut client = rig.client().await;
        for _ in 0..10 {
            let answers = [
                client.encrypt("demo").await,
                client.decrypt("demo", &encrypted).await,
                client.encrypt_with_integrity_value("demo-2").await,
            ];
            for answer in answers {
                assert!(is_internal(&answer), "{code}: {:?}", outcome(&answer));
            }
        }
        rig.wait_for_health("UNAVAILABLE").await;
        assert!(rig.proxy.is_running());
        // It might help here too, and take others down: the profile does not say that it is needed.
        assert_eq!(rig.faults.calls(Function::Finalize), 0, "{code}");
    }
}

#[tokio::test]
async fn a_token_that_gives_fewer_sessions_than_configured_serves_with_those() {
    let setup = setup(4, "health_probe_ms = 30000");
    let rig = Rig::start_with_faults(setup, SoftHsm::with_keys(), "C_OpenSession session_limit=3");
    rig.proxy.wait_until_ready().await;
    let mut client = rig.client().await;
    for _ in 0..20 {
        let answer = client.encrypt("demo").await;
        assert_eq!(outcome(&answer), (200, String::new()), "who is ready serves");
    }
    let clients = rig.clients(8).await;
    let answers = at_once(clients, |_, mut client| async move { client.encrypt("demo").await }).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn when_all_handles_become_invalid_all_keys_are_found_again() {
    const KEYS: usize = 100;
    let token = SoftHsm::with_keys();
    token.tool(&["generate", "--count", &KEYS.to_string(), "--label-prefix", "nested-"]);
    let rig = Rig::start_on(setup(2, "health_probe_ms = 30000"), token).await;
    let mut client = rig.client_of(nested_store()).await;
    for key in 0..KEYS {
        client.encrypt(&key.to_string()).await.ok();
    }
    let before = rig.faults.calls(Function::FindObjectsInit);
    // A token whose searches take their time.
    rig.faults.set("C_EncryptInit invalidate_handles\nC_FindObjectsInit delay_ms=100");
    let mut clients = Vec::new();
    for _ in 0..KEYS {
        clients.push(rig.client_of(nested_store()).await);
    }
    let encrypt =
        |key: usize, mut client: super::rig::Client| async move { client.encrypt(&key.to_string()).await };
    let answers = at_once(clients, encrypt).await;
    for answer in &answers {
        assert!(!matches!(answer.status.as_u16(), 400 | 404), "{:?}", outcome(answer));
    }
    for key in 0..KEYS {
        client.encrypt(&key.to_string()).await.ok();
    }
    let searches = rig.faults.calls(Function::FindObjectsInit) - before;
    assert!(searches < 20, "{searches} searches where making the index anew needs one");
}
