//! Keys that the index does not hold are searched off the hot path, one by one, and not again and again.

use std::time::{Duration, Instant};

use xks_harness::proxy::nested_store;
use xks_harness::{Function, Setup, SoftHsm};

use super::rig::{Client, RECOVERY, Rig, at_once, outcome};

fn setup() -> Setup {
    Setup { token: "sessions = 2\nintervals = { health_probe_ms = 30000 }".to_owned(), ..Setup::default() }
}

fn not_found() -> (u16, String) {
    (404, "KeyNotFoundException".to_owned())
}

#[tokio::test]
async fn a_thousand_requests_make_two_calls_each_and_search_nothing() {
    const REQUESTS: u64 = 1000;
    let rig = Rig::start(setup()).await;
    let mut clients = rig.clients(4).await;
    let first = clients[0].encrypt("demo").await.ok();
    let before = rig.faults.counts();
    let began_at = Instant::now();
    at_once(clients, |_, mut client| async move {
        for _ in 0..REQUESTS / 4 {
            client.encrypt("demo").await.ok();
        }
    })
    .await;
    assert!(began_at.elapsed().as_secs() < 25, "attributes are read anew after 30 s");
    let mut client = rig.client().await;
    for _ in 0..10 {
        client.assert_decrypts("demo", &first).await;
    }
    let after = rig.faults.counts();
    for (function, expected) in [
        (Function::EncryptInit, REQUESTS),
        (Function::Encrypt, REQUESTS),
        (Function::DecryptInit, 10),
        (Function::Decrypt, 10),
    ] {
        assert_eq!(after.calls(function) - before.calls(function), expected, "{function}");
    }
    // The sessions' own opening aside, nothing else was called at all.
    for function in Function::ALL {
        if !matches!(
            function,
            Function::EncryptInit
                | Function::Encrypt
                | Function::DecryptInit
                | Function::Decrypt
                | Function::OpenSession
        ) {
            assert_eq!(after.calls(function), before.calls(function), "{function}");
        }
    }
    assert!(after.calls(Function::OpenSession) - before.calls(Function::OpenSession) <= 1);
}

#[tokio::test]
async fn attributes_that_have_aged_are_read_once_and_not_by_every_request_that_waits() {
    const AGE_MS: u128 = 300;
    let intervals = format!("intervals = {{ key_attributes_ms = {AGE_MS}, health_probe_ms = 30000 }}");
    let rig = Rig::start(Setup { token: format!("sessions = 2\n{intervals}"), ..Setup::default() }).await;
    let clients = rig.clients(32).await;
    rig.client().await.encrypt("demo").await.ok();
    let read_at = Instant::now();
    while read_at.elapsed().as_millis() <= AGE_MS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.faults.set("C_GetAttributeValue delay_ms=30");
    let before = rig.faults.calls(Function::GetAttributeValue);
    let began_at = Instant::now();
    let answers = at_once(clients, |_, mut client| async move { client.encrypt("demo").await }).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    let calls = u128::from(rig.faults.calls(Function::GetAttributeValue) - before);
    let allowed = 1 + began_at.elapsed().as_millis() / AGE_MS;
    assert!(calls <= allowed, "{calls} calls to read the attributes of one key where {allowed} would do");
}

#[tokio::test]
async fn requests_for_an_absent_key_search_it_once_in_two_seconds() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let began_at = Instant::now();
    let before = rig.faults.calls(Function::FindObjectsInit);
    for _ in 0..250 {
        assert_eq!(outcome(&client.metadata("absent").await), not_found());
        assert_eq!(outcome(&client.encrypt("absent").await), not_found());
    }
    let searches = rig.faults.calls(Function::FindObjectsInit) - before;
    let allowed = 1 + began_at.elapsed().as_secs() / 2;
    assert!(searches <= allowed, "{searches} searches where {allowed} would do");
}

#[tokio::test]
async fn requests_for_one_key_at_once_share_its_search() {
    let rig = Rig::start(setup()).await;
    rig.proxy.token.generate("nested-new", &[]);
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(rig.client_of(nested_store()).await);
    }
    rig.faults.set("C_FindObjectsInit delay_ms=200");
    let before = rig.faults.calls(Function::FindObjectsInit);
    let ask = |_, mut client: Client| async move { client.metadata("new").await };
    let answers = at_once(clients, ask).await;
    let refused = answers.iter().filter(|answer| answer.status != 200).count();
    assert_eq!(refused, 0, "of 64 requests for a key that is there");
    let searches = rig.faults.calls(Function::FindObjectsInit) - before;
    assert!(searches <= 3, "{searches} searches for one key");
}

#[tokio::test]
async fn a_stampede_of_absent_keys_disturbs_nobody() {
    const CLIENTS: usize = 40;
    let rig = Rig::start(setup()).await;
    rig.faults.set("C_FindObjectsInit delay_ms=20");
    let mut strangers = Vec::new();
    for _ in 0..CLIENTS {
        strangers.push(rig.client_of(nested_store()).await);
    }
    let stampede = tokio::spawn(at_once(strangers, |index, mut client| async move {
        let mut answers = Vec::new();
        for number in 0..10 {
            answers.push(outcome(&client.metadata(&format!("absent-{index}-{number}")).await));
        }
        answers
    }));
    let mut client = rig.client().await;
    let mut served = 0;
    while !stampede.is_finished() {
        let encrypted = client.encrypt("demo").await.ok();
        client.assert_decrypts("demo", &encrypted).await;
        assert_eq!(client.metadata("demo-2").await.status, 200);
        served += 1;
    }
    let answers: Vec<_> = stampede.await.unwrap().into_iter().flatten().collect();
    let throttled = (429, "ThrottlingException".to_owned());
    let others = answers.iter().filter(|answer| **answer != not_found() && **answer != throttled).count();
    assert_eq!(others, 0, "{answers:?}");
    assert!(answers.contains(&not_found()) && answers.contains(&throttled));
    assert!(served >= 10, "only {served} rounds were served meanwhile");
    rig.faults.clear();
    assert_eq!(rig.proxy.admin("/readyz").await.0, 200);
    rig.settle().await;
}

#[tokio::test]
async fn a_search_that_nobody_waits_for_any_more_never_reaches_the_token() {
    let timeouts = "answer_ms = 300\nfirst_answer_ms = 300".to_owned();
    let rig = Rig::start(Setup { timeouts, ..setup() }).await;
    rig.faults.set("C_FindObjectsInit hang until_removed");
    let before = rig.faults.calls(Function::FindObjectsInit);
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(rig.client_of(nested_store()).await);
    }
    let ask = |index, mut client: Client| async move { client.metadata(&format!("absent-{index}")).await };
    let timeout = (503, "DependencyTimeoutException".to_owned());
    assert!(at_once(clients, ask).await.iter().all(|answer| outcome(answer) == timeout));
    rig.faults.clear();
    let mut client = rig.client_of(nested_store()).await;
    while outcome(&client.metadata("asked-afterwards").await) != not_found() {}
    let searches = rig.faults.calls(Function::FindObjectsInit) - before;
    assert!(searches <= 2, "{searches} searches, of which the first hung and the last was waited for");
}

/// What a keeper was stuck in comes back to it though another has taken its place.
#[tokio::test]
async fn a_search_of_a_keeper_that_was_replaced_takes_no_key_away() {
    let token = "sessions = 2\nintervals = { health_probe_ms = 100 }".to_owned();
    let timeouts = "answer_ms = 2000\nfirst_answer_ms = 2000".to_owned();
    let rig = Rig::start(Setup { token, timeouts, ..Setup::default() }).await;
    rig.proxy.token.generate("nested-new", &[]);
    let hang = "C_FindObjectsInit hang until_removed times=1";
    rig.faults.set(hang);
    let mut client = rig.client_of(nested_store()).await;
    assert_ne!(client.encrypt("new").await.status, 200);
    assert_eq!(rig.faults.fired(hang), 1);
    let until = Instant::now() + RECOVERY;
    while client.encrypt("new").await.status != 200 {
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    rig.faults.clear();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        client.encrypt("new").await.ok();
    }
}

#[tokio::test]
async fn keys_are_served_while_all_keys_are_being_indexed() {
    let token = SoftHsm::with_keys();
    token.tool(&["generate", "--count", "200", "--label-prefix", "nested-"]);
    let timeouts = "answer_ms = 300\nfirst_answer_ms = 300".to_owned();
    // A token in the network: making the index takes a while, finding one key need not.
    let slow = "C_GetAttributeValue delay_ms=3";
    let rig = Rig::start_with_faults(Setup { timeouts, ..setup() }, token, slow);
    rig.proxy.wait_until_ready().await;
    let mut client = rig.client_of(nested_store()).await;
    for number in [0, 100, 199] {
        let answer = client.encrypt(&number.to_string()).await;
        assert_eq!(outcome(&answer), (200, String::new()), "who is ready serves every key");
    }
}

/// Whoever asks while the index is being made must not keep it from being made.
#[tokio::test]
async fn a_proxy_is_ready_only_once_its_keys_are_indexed_however_many_ask_meanwhile() {
    let token = SoftHsm::with_keys();
    token.tool(&["generate", "--count", "300", "--label-prefix", "nested-many-"]);
    let setup = Setup { timeouts: "answer_ms = 1000\nfirst_answer_ms = 1000".to_owned(), ..Setup::default() };
    let rig = Rig::start_with_faults(setup, token, "C_FindObjectsInit delay_ms=50");
    let mut impatient = rig.client_of(nested_store()).await;
    for number in 0.. {
        // Served or not: each is a search, one after the other.
        impatient.encrypt(&format!("many-{}", number % 300)).await;
        if rig.proxy.admin("/readyz").await.0 == 200 {
            break;
        }
        assert!(number < 300, "{}", rig.last_lines());
    }
    let before = rig.faults.calls(Function::FindObjectsInit);
    for number in 0..300 {
        impatient.encrypt(&format!("many-{number}")).await.ok();
    }
    assert_eq!(rig.faults.calls(Function::FindObjectsInit), before, "a key was searched");
}
