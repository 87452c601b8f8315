//! The ciphertext data integrity value: what was not seen to decrypt never leaves.

use xks_harness::{Answer, Function, Setup};

use super::rig::{Rig, is_internal, outcome};

fn setup() -> Setup {
    Setup { token: "sessions = 2\nintervals = { health_probe_ms = 30000 }".to_owned(), ..Setup::default() }
}

/// Nothing in the answer could be taken for a ciphertext.
fn assert_holds_nothing(answer: &Answer, rule: &str) {
    assert!(is_internal(answer), "{rule}: {:?}", outcome(answer));
    let body = answer.json();
    let names: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(names.iter().all(|name| ["errorName", "errorMessage"].contains(name)), "{rule}: {body}");
}

/// What was counted of store `main`. A request counts before its line is logged: wait for that first.
async fn failures_counted(rig: &Rig) -> f64 {
    rig.proxy.metric(r#"xks_integrity_failures_total{store="main"}"#).await
}

const CORRUPTIONS: [(&str, &str); 3] =
    [("C_Encrypt", "ciphertext"), ("C_Encrypt", "tag"), ("C_Decrypt", "plaintext")];

#[tokio::test]
async fn a_ciphertext_that_does_not_verify_once_is_made_anew() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    for (counted, (function, part)) in (1_u32..).zip(CORRUPTIONS) {
        let rule = format!("{function} corrupt={part} label=demo times=1");
        rig.faults.set(&rule);
        let before = rig.faults.counts();
        let encrypted = client.encrypt_with_integrity_value("demo").await.ok();
        let after = rig.faults.counts();
        assert_eq!(rig.faults.fired(&rule), 1, "{rule}");
        assert_eq!(after.calls(Function::Encrypt) - before.calls(Function::Encrypt), 2, "{rule}");
        let line = rig.proxy.request_log(&client.request_id);
        assert_eq!(line["integrity_failures"], 1, "{rule}: {line}");
        assert_eq!(failures_counted(&rig).await, f64::from(counted), "{rule}");
        client.assert_decrypts("demo", &encrypted).await;
    }
    let encrypted = client.encrypt_with_integrity_value("demo").await;
    assert_eq!(encrypted.status, 200);
    let line = rig.proxy.request_log(&client.request_id);
    assert!(line.get("integrity_failures").is_none(), "what verified at once is not counted: {line}");
    assert_eq!(failures_counted(&rig).await, 3.0);
}

#[tokio::test]
async fn a_ciphertext_that_does_not_verify_twice_is_an_error_and_stays_inside() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    for (requests, (function, part)) in (1_u32..).zip(CORRUPTIONS) {
        let rule = format!("{function} corrupt={part} label=demo");
        rig.faults.set(&rule);
        let before = rig.faults.calls(Function::Encrypt);
        let answer = client.encrypt_with_integrity_value("demo").await;
        assert_holds_nothing(&answer, &rule);
        assert_eq!(rig.faults.calls(Function::Encrypt) - before, 2, "{rule}: one retry");
        let line = rig.proxy.request_log(&client.request_id);
        assert!(line["reason"].as_str().unwrap().contains("did not decrypt"), "{line}");
        assert_eq!(line["integrity_failures"], 2, "{rule}: {line}");
        assert_eq!(failures_counted(&rig).await, f64::from(2 * requests), "{rule}");
    }
    rig.faults.clear();
    rig.wait_until_it_serves().await;
}

/// To wake a token's thread costs as much as a call to a fast token.
#[tokio::test]
async fn both_calls_are_one_turn_at_the_token() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    client.encrypt("demo").await.ok();
    let turns = "xks_hsm_queue_seconds_count{token=\"softhsm\"}";
    let (turns_before, before) = (rig.proxy.metric(turns).await, rig.faults.counts());
    client.encrypt_with_integrity_value("demo").await.ok();
    let after = rig.faults.counts();
    for function in [Function::Encrypt, Function::Decrypt] {
        assert_eq!(after.calls(function) - before.calls(function), 1, "{function}");
    }
    assert_eq!(rig.proxy.metric(turns).await - turns_before, 1.0);
}

#[tokio::test]
async fn a_ciphertext_that_could_not_be_verified_stays_inside() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    for code in ["CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_DEVICE_REMOVED"] {
        for function in ["C_DecryptInit", "C_Decrypt"] {
            rig.wait_until_it_serves().await;
            let rule = format!("{function} fail={code}");
            rig.faults.set(&rule);
            assert_holds_nothing(&client.encrypt_with_integrity_value("demo").await, &rule);
            rig.faults.clear();
        }
    }
    rig.wait_until_it_serves().await;
}

/// Nothing else tells of it: the tag is right.
#[tokio::test]
async fn a_token_that_decrypts_to_something_else_is_found_out_by_a_probe_and_gets_no_plaintext_out() {
    let token = "sessions = 2\nintervals = { health_probe_ms = 100 }".to_owned();
    let rig = Rig::start(Setup { token, ..Setup::default() }).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    rig.faults.set("C_Decrypt corrupt=plaintext");
    rig.wait_for_health("UNAVAILABLE").await;
    for _ in 0..3 {
        let answer = client.decrypt("demo", &encrypted).await;
        assert!(is_internal(&answer), "{:?}", outcome(&answer));
    }
    rig.faults.clear();
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_key_whose_value_changes_between_the_two_calls_vouches_for_nothing() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let rule = "C_DecryptInit other_value label=demo";
    rig.faults.set(rule);
    assert_holds_nothing(&client.encrypt_with_integrity_value("demo").await, rule);
    rig.faults.clear();
    rig.wait_until_it_serves().await;
}
