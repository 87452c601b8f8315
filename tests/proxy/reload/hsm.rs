//! What a reload leaves alone at the tokens, and which of their faults stop it.

use xks_harness::{Faults, Function, Setup, SoftHsm};

use super::rig::{Client, Reloading, UNWATCHED, listed};
use crate::fleet;
use crate::tokens::rig::Rig;

/// A proxy on a token that misbehaves on command.
async fn with_faults(setup: Setup) -> (Reloading, Faults) {
    let setup = Setup { more: setup.more + UNWATCHED, ..setup };
    let Rig { proxy, faults } = Rig::start_on(setup.clone(), SoftHsm::with_keys()).await;
    let setup = faults.between(setup);
    (Reloading { proxy, setup }, faults)
}

#[tokio::test]
async fn a_key_that_can_be_used_does_not_become_one_that_cannot_unless_it_is_forced() {
    let reloading = Reloading::start(Setup::default()).await;
    let mut client = reloading.client().await;
    let demo = client.encrypt("demo").await.ok();
    let unresolved = "xks_keys_unresolved{store=\"main\"}";
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(&format!("{unresolved} 1\n"))).await;
    for (from, to) in [
        ("external_key_id = \"demo\"\nlabel = \"demo\"", "external_key_id = \"demo\"\nlabel = \"misspelt\""),
        (
            "external_key_id = \"demo\"\nlabel = \"demo\"",
            "external_key_id = \"demo\"\nlabel = \"demo\"\n\
             check_value = \"v1:AQIDBAUGBwgJCgsM:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=\"",
        ),
    ] {
        reloading.edit(from, to);
        assert_eq!(reloading.reload().await, "keys_lost", "{to}");
        assert!(reloading.verbose().await.contains("store main: key demo version 1"), "{to}");
        client.decrypt("demo", &demo).await.ok();
        client.encrypt("demo").await.ok();
        reloading.write(&reloading.setup);
    }
    // One that never could be used is published as it is, and counted.
    let keys = reloading.setup.keys.clone() + &listed("new", "not-there-yet");
    let with_new = Setup { keys, ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&with_new).await, "ok");
    assert_eq!(reloading.proxy.metric(unresolved).await, 2.0);
    assert!(
        reloading
            .verbose()
            .await
            .contains("store main: no token is known to hold the key with label \"not-there-yet\"")
    );
    let _ = reloading.proxy.wait_for_log(|line| line["locator"] == "label \"not-there-yet\"");
    assert_eq!(client.encrypt("new").await.error().0, 404);

    reloading.edit("label = \"demo\"", "label = \"misspelt\"");
    let forced = reloading.outcome_of(|this| this.proxy.signal("USR1")).await;
    assert_eq!(forced, "ok");
    assert_eq!(client.decrypt("demo", &demo).await.error(), (404, "KeyNotFoundException".to_owned()));
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(&format!("{unresolved} 3\n"))).await;
    // And back: what could not be used may become usable by any reload.
    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
    client.decrypt("demo", &demo).await.ok();
}

#[tokio::test]
async fn a_rule_that_would_lose_its_keys_is_refused() {
    let token = SoftHsm::with_keys();
    token.generate("nested-a", &[]);
    let reloading = Reloading::start_on(Setup::default(), token).await;
    let setup = Setup { nested_rule: "{ label_prefix = \"nest-\" }".to_owned(), ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&setup).await, "keys_lost");
    assert!(reloading.verbose().await.contains("store nested: key a version 1 (label \"nest-a\")"));
    let mut nested = reloading.client_of(xks_harness::proxy::nested_store()).await;
    nested.encrypt("a").await.ok();
}

#[tokio::test]
async fn a_check_value_may_be_pinned_and_corrected() {
    let wrong = "check_value = \"v1:AQIDBAUGBwgJCgsM:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=\"\n";
    let keys = listed("demo", "demo") + wrong;
    let reloading = Reloading::start(Setup { keys, ..Setup::default() }).await;
    let mut client = reloading.client().await;
    assert_eq!(client.encrypt("demo").await.error(), (400, "InvalidStateException".to_owned()));
    reloading.edit(wrong, "");
    assert_eq!(reloading.reload().await, "ok");
    client.encrypt("demo").await.ok();
}

#[tokio::test]
async fn logins_sessions_and_proofs_outlive_a_reload() {
    let (reloading, faults) = with_faults(Setup::default()).await;
    let mut client = reloading.client().await;
    client.encrypt("demo").await.ok();
    let functions = [
        Function::Login,
        Function::OpenSession,
        Function::Initialize,
        Function::Encrypt,
        Function::FindObjects,
    ];
    let calls = || functions.map(|function| faults.calls(function));
    let before = calls();
    for _ in 0..5 {
        assert_eq!(reloading.reload().await, "ok");
    }
    client.encrypt("demo").await.ok();
    let [logins, sessions, starts, encryptions, searches] = before;
    // Health probes and workers that meet their first job go on meanwhile.
    let after = calls();
    assert_eq!((after[0], after[2]), (logins, starts));
    assert!(
        after[1] <= sessions + 2 && after[3] <= encryptions + 4 && after[4] <= searches + 4,
        "{before:?} {after:?}"
    );
}

#[tokio::test]
async fn what_is_queued_for_a_key_that_is_disabled_does_not_begin() {
    let token = "sessions = 1\nintervals = { health_probe_ms = 30000, stuck_after_ms = 60000 }";
    let (reloading, faults) = with_faults(Setup { token: token.to_owned(), ..Setup::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(reloading.client().await);
    }
    let mut first = clients.pop().unwrap();
    let made = first.encrypt("demo").await.ok();
    faults.set("C_Decrypt hang until_removed");
    let begun = tokio::spawn(async move { first.decrypt("demo", &made).await });
    faults.wait_until_inside(Function::Decrypt, 1).await;
    let encryptions = faults.calls(Function::Encrypt);
    let queued: Vec<_> = clients
        .into_iter()
        .map(|mut client: Client| tokio::spawn(async move { client.encrypt("demo").await }))
        .collect();
    let in_flight = "xks_requests_in_flight 4\n";
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(in_flight)).await;
    reloading.edit("label = \"demo\"\n", "label = \"demo\"\nenabled = false\n");
    assert_eq!(reloading.reload().await, "ok");
    faults.clear();
    begun.await.unwrap().ok();
    for answer in queued {
        let answer = answer.await.unwrap();
        assert_eq!(answer.error(), (400, "InvalidStateException".to_owned()));
    }
    assert_eq!(faults.calls(Function::Encrypt), encryptions, "none of them has reached the token");
}

#[tokio::test]
async fn a_key_under_another_name_finishes_what_is_queued() {
    let token = "sessions = 1\nintervals = { health_probe_ms = 30000, stuck_after_ms = 60000 }";
    let setup = Setup { token: token.to_owned(), keys: listed("demo", "demo"), ..Setup::default() };
    let (reloading, faults) = with_faults(setup).await;
    let mut first = reloading.client().await;
    first.encrypt("demo").await.ok();
    let mut second = reloading.client().await;
    faults.set("C_Encrypt hang until_removed");
    let begun = tokio::spawn(async move { first.encrypt("demo").await });
    faults.wait_until_inside(Function::Encrypt, 1).await;
    let queued = tokio::spawn(async move { second.encrypt("demo").await });
    reloading.proxy.wait_for("/metrics", |_, text| text.contains("xks_requests_in_flight 2\n")).await;
    reloading.edit("label = \"demo\"\n", "label = \"demo-2\"\n");
    assert_eq!(reloading.outcome_of(|this| this.proxy.signal("USR1")).await, "ok");
    faults.clear();
    begun.await.unwrap().ok();
    queued.await.unwrap().ok();
}

/// The destructors of its module must not run beside the thread that is inside.
#[tokio::test]
async fn a_thread_that_hangs_in_a_token_that_a_reload_took_away_is_not_forgotten_at_the_end() {
    let setup = fleet::setup();
    let server = "lame_duck_secs = 0\ndrain_secs = 1".to_owned();
    let setup = Setup { server, more: setup.more + UNWATCHED, ..setup };
    let Rig { proxy, faults } = Rig::start_with_faults(setup.clone(), fleet::same_keys(), "");
    proxy.wait_until_ready().await;
    let rig = Rig { proxy, faults };
    fleet::wait_until_both_serve(&rig).await;
    let hang = format!("C_Encrypt hang forever token={}", fleet::SECOND);
    rig.faults.set(&hang);
    let mut client = rig.client().await;
    while rig.faults.counts().inside(Function::Encrypt) == 0 {
        client.encrypt("demo").await;
    }
    let without = Setup { tokens: "[\"softhsm\"]".to_owned(), more: UNWATCHED.to_owned(), ..setup };
    let mut reloading = Reloading { proxy: rig.proxy, setup: rig.faults.between(without) };
    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok", "{}", reloading.verbose().await);
    let _ = reloading.proxy.wait_for_log(|line| line["token"] == "second" && line["has_stopped"] == false);
    reloading.proxy.signal("TERM");
    assert_eq!(reloading.proxy.wait_for_exit().code(), Some(0), "{}", reloading.proxy.all_output());
    let stopped = reloading.proxy.wait_for_log(|line| line["message"] == "stopped");
    assert_eq!(stopped["clean"], false);
}
