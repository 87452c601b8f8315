//! Initialization vectors: fresh ones, never zero, never the one before, wherever they come from.

use std::collections::HashSet;

use xks_harness::request::bytes_of;
use xks_harness::{Function, Setup, SoftHsm};

use super::rig::{Client, Rig, is_internal, outcome};

fn setup(iv_source: &str) -> Setup {
    let token =
        format!("sessions = 2\niv_source = \"{iv_source}\"\nintervals = {{ health_probe_ms = 30000 }}");
    Setup { token, ..Setup::default() }
}

async fn assert_ivs_are_fresh(client: &mut Client) {
    let mut seen = HashSet::new();
    for _ in 0..50 {
        let encrypted = client.encrypt("demo").await.ok();
        let iv = bytes_of(&encrypted["initializationVector"]);
        assert_eq!(iv.len(), 12);
        assert_ne!(iv, [0; 12]);
        assert!(seen.insert(iv), "an IV twice");
    }
}

#[tokio::test]
async fn ivs_are_fresh_and_made_where_the_configuration_says() {
    for (source, calls) in [("os", 0), ("token", 50)] {
        let rig = Rig::start(setup(source)).await;
        let before = rig.faults.calls(Function::GenerateRandom);
        assert_ivs_are_fresh(&mut rig.client().await).await;
        assert_eq!(rig.faults.calls(Function::GenerateRandom) - before, calls, "{source}");
    }
}

#[tokio::test]
async fn an_iv_of_zeros_never_leaves() {
    let rig = Rig::start(setup("token")).await;
    let mut client = rig.client().await;
    rig.faults.set("C_GenerateRandom random=zeros");
    assert!(is_internal(&client.encrypt("demo").await));
    let line = rig.proxy.request_log(&client.request_id);
    assert!(line["reason"].as_str().unwrap().contains("initialization vector"), "{line}");
    // Later on, the health probe finds it too, and the token is not asked any more.
    for _ in 0..5 {
        assert!(is_internal(&client.encrypt("demo").await));
        assert!(is_internal(&client.encrypt_with_integrity_value("demo").await));
    }
    rig.faults.clear();
    rig.wait_until_it_serves().await;
    assert_ivs_are_fresh(&mut client).await;
}

/// Whatever happens in between, a token that makes one IV for ever gets one ciphertext out under it: the guard remembers
/// it, and the next connect finds it out.
#[tokio::test]
async fn an_iv_that_was_the_one_before_never_leaves() {
    let events = ["", "drop_sessions", "forget_logins", "invalidate_handles", "remove_token"];
    for event in events {
        let rig = Rig::start(setup("token")).await;
        let mut client = rig.client().await;
        let repeated = "C_GenerateRandom random=repeated";
        rig.faults.set(repeated);
        let mut ivs = Vec::new();
        for round in 0..2 {
            for _ in 0..3 {
                let answer = client.encrypt("demo").await;
                if answer.status == 200 {
                    ivs.push(bytes_of(&answer.json()["initializationVector"]));
                } else {
                    assert!(is_internal(&answer), "{:?}", outcome(&answer));
                }
            }
            if !event.is_empty() && round == 0 {
                rig.faults.set(&format!("{repeated}\nC_EncryptInit {event}"));
                client.encrypt("demo").await;
                rig.faults.set(repeated);
                if event != "invalidate_handles" && event != "drop_sessions" {
                    rig.wait_for_health("UNAVAILABLE").await;
                }
            }
        }
        assert!(ivs.len() <= 1, "{event}: {} ciphertexts under one IV", ivs.len());
        rig.faults.clear();
        rig.wait_until_it_serves().await;
        assert_ivs_are_fresh(&mut client).await;
    }
}

#[tokio::test]
async fn a_token_that_makes_ivs_of_its_own_is_unavailable_and_gets_nothing_out() {
    for behaviour in ["written_back", "appended", "repeated", "appended_repeated"] {
        let rule = format!("* gcm_iv={behaviour}");
        let rig = Rig::start_with_faults(setup("os"), SoftHsm::with_keys(), &rule);
        rig.wait_for_health("UNAVAILABLE").await;
        let mut client = rig.client().await;
        for answer in [client.encrypt("demo").await, client.encrypt_with_integrity_value("demo").await] {
            assert!(is_internal(&answer), "{behaviour}: {:?}", outcome(&answer));
        }
    }
}

#[tokio::test]
async fn a_token_that_encrypts_with_zeros_for_every_iv_is_unavailable_and_gets_nothing_out() {
    let rig = Rig::start_with_faults(setup("os"), SoftHsm::with_keys(), "* gcm_iv=zeros");
    rig.wait_for_health("UNAVAILABLE").await;
    let mut client = rig.client().await;
    let verified = client.encrypt_with_integrity_value("demo").await;
    assert!(is_internal(&verified), "{:?}", outcome(&verified));
    // Nobody could decrypt it: the worst that can happen.
    let unverified = client.encrypt("demo").await;
    assert!(is_internal(&unverified), "{:?}", outcome(&unverified));
}
