//! The one deadline of a request: queue, calls, retries and the verifying decrypt share it.

use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::client::plain_get;
use xks_harness::request::bytes_of;
use xks_harness::{Answer, Function, RawConnection, Setup, SoftHsm};

use super::rig::{
    Client, DEFAULT_DEADLINES, PLAINTEXT, RECOVERY, Rig, at_once, outcome, second_store, with_second_token,
};

const TIMEOUT: (u16, &str) = (503, "DependencyTimeoutException");
const THROTTLED: (u16, &str) = (429, "ThrottlingException");

fn is(answer: &Answer, expected: (u16, &str)) -> bool {
    outcome(answer) == (expected.0, expected.1.to_owned())
}

/// No probe within the test: every call that is counted comes from a request.
const RARE_PROBES: &str = "intervals = { health_probe_ms = 30000 }";
/// Nor is a session replaced that is at one call for long.
const PATIENT: &str = "sessions = 1\nintervals = { health_probe_ms = 30000, stuck_after_ms = 60000 }";

fn setup(sessions: usize, timeouts: &str) -> Setup {
    Setup {
        token: format!("sessions = {sessions}\n{RARE_PROBES}"),
        timeouts: timeouts.to_owned(),
        ..Setup::default()
    }
}

fn patient(answer_ms: u64) -> Setup {
    Setup { token: PATIENT.to_owned(), timeouts: both(answer_ms), ..Setup::default() }
}

fn both(answer_ms: u64) -> String {
    format!("answer_ms = {answer_ms}\nfirst_answer_ms = {answer_ms}")
}

fn total_us(rig: &Rig, client: &Client) -> u64 {
    rig.proxy.request_log(&client.request_id)["total_us"].as_u64().unwrap()
}

#[tokio::test]
async fn a_call_that_hangs_is_a_timeout_at_the_deadline_which_comes_sooner_on_a_new_connection() {
    // Each request that times out leaves its session in the call.
    let rig = Rig::start(setup(16, DEFAULT_DEADLINES)).await;
    let encrypted = rig.client().await.encrypt("demo").await.ok();
    let hang = "C_Encrypt hang until_removed label=demo\nC_Decrypt hang until_removed label=demo";
    rig.faults.set(hang);
    let (mut first_us, mut later_us, mut seen_by_client) = (u64::MAX, u64::MAX, Duration::MAX);
    for _ in 0..3 {
        let mut client = rig.client().await;
        for (is_first, is_decrypt) in [(true, false), (false, true)] {
            let sent_at = Instant::now();
            let answer = if is_decrypt {
                client.decrypt("demo", &encrypted).await
            } else {
                client.encrypt("demo").await
            };
            assert!(is(&answer, TIMEOUT), "{:?}", outcome(&answer));
            seen_by_client = seen_by_client.min(sent_at.elapsed());
            let best = if is_first { &mut first_us } else { &mut later_us };
            *best = total_us(&rig, &client).min(*best);
        }
    }
    // The quickest of several tries: a busy machine is late, never early.
    assert!((145_000..195_000).contains(&first_us), "{first_us}");
    assert!((200_000..400_000).contains(&later_us), "{later_us}");
    assert!(seen_by_client < Duration::from_secs(1), "{seen_by_client:?}");
    rig.faults.clear();
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn an_integrity_value_is_made_within_the_one_deadline_of_its_request() {
    let rig = Rig::start(setup(1, &both(1500))).await;
    let slow = "C_Encrypt delay_ms=900 label=demo\nC_Decrypt delay_ms=900 label=demo";
    rig.faults.set(slow);
    let mut client = rig.client().await;
    assert_eq!(client.encrypt("demo").await.status, 200);
    let answer = client.encrypt_with_integrity_value("demo").await;
    assert!(is(&answer, TIMEOUT), "{:?}", outcome(&answer));
    assert!(total_us(&rig, &client) >= 1_500_000);
    assert_eq!(rig.faults.fired("C_Decrypt delay_ms=900 label=demo"), 1, "the verifying decrypt had begun");
}

#[tokio::test]
async fn time_in_the_queue_counts() {
    let rig = Rig::start(patient(1500)).await;
    rig.faults.set("C_Encrypt delay_ms=1000 label=demo");
    let clients = rig.clients(2).await;
    let answers = at_once(clients, |_, mut client| async move { client.encrypt("demo").await }).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let late = answers.iter().filter(|answer| is(answer, TIMEOUT)).count();
    assert_eq!((served, late), (1, 1), "{answers:?}");
}

#[tokio::test]
async fn a_job_that_expired_in_the_queue_never_reaches_the_token() {
    let rig = Rig::start(patient(400)).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut first = rig.client().await;
    let hanging = tokio::spawn(async move { first.encrypt("demo").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let before = rig.faults.calls(Function::EncryptInit);
    let expired =
        at_once(rig.clients(10).await, |_, mut client| async move { client.encrypt("demo-2").await });
    assert!(expired.await.iter().all(|answer| is(answer, TIMEOUT)));
    assert!(is(&hanging.await.unwrap(), TIMEOUT));
    rig.faults.clear();
    let mut client = rig.client().await;
    let mut tries = 1;
    while client.encrypt("demo").await.status != 200 {
        tries += 1;
    }
    let calls = rig.faults.calls(Function::EncryptInit) - before;
    assert!(calls <= tries, "{calls} calls for {tries} requests that were not expired");
}

#[tokio::test]
async fn a_job_whose_client_has_left_never_reaches_the_token() {
    let rig = Rig::start(patient(30_000)).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut first = rig.client().await;
    let hanging = tokio::spawn(async move { first.encrypt("demo").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let before = rig.faults.calls(Function::EncryptInit);
    let mut leaving = Vec::new();
    for mut client in rig.clients(10).await {
        leaving.push(tokio::spawn(async move { client.encrypt("demo-2").await }));
    }
    rig.proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 11\n")).await;
    leaving.iter().for_each(tokio::task::JoinHandle::abort);
    rig.proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 1\n")).await;
    rig.faults.clear();
    assert_eq!(hanging.await.unwrap().status, 200);
    rig.client().await.encrypt("demo").await.ok();
    assert_eq!(rig.faults.calls(Function::EncryptInit) - before, 1);
    let abandoned = |line: &Value| line["outcome"] == "abandoned" && line["operation"] == "Encrypt";
    assert_eq!(rig.proxy.log_lines().iter().filter(|line| abandoned(line)).count(), 10);
}

#[tokio::test]
async fn a_full_queue_on_a_slow_token_is_throttled_at_once() {
    let mut setup = patient(30_000);
    setup.token.push_str("\nqueue_depth = 1");
    let rig = Rig::start(setup).await;
    rig.faults.set("C_Encrypt delay_ms=150 label=demo");
    // A token that is known to be slow does not hang.
    let mut first = rig.client().await;
    for _ in 0..8 {
        first.encrypt("demo").await.ok();
    }
    let clients = rig.clients(10).await;
    let answers = at_once(clients, |_, mut client| async move {
        let answer = client.encrypt("demo").await;
        (answer, client)
    });
    let answers = answers.await;
    let throttled: Vec<_> = answers.iter().filter(|(answer, _)| is(answer, THROTTLED)).collect();
    let served = answers.iter().filter(|(answer, _)| answer.status == 200).count();
    assert_eq!(
        throttled.len() + served,
        10,
        "{:?}",
        answers.iter().map(|(a, _)| outcome(a)).collect::<Vec<_>>()
    );
    assert!(served >= 1 && !throttled.is_empty());
    let quickest = throttled.iter().map(|(_, client)| total_us(&rig, client)).min().unwrap();
    assert!(quickest < 100_000, "{quickest} µs: less than the call that is waited for");
}

#[tokio::test]
async fn what_could_not_end_in_time_is_throttled_at_once_and_the_rest_is_served() {
    const CLIENTS: usize = 40;
    for wants_value in [false, true] {
        // Twenty calls fit into the time, and forty are asked for: served in their order without a look ahead, half of the
        // requests would wait until their deadline in vain; with an integrity value, all.
        let rig = Rig::start(patient(4_000)).await;
        rig.faults.set("C_Encrypt delay_ms=200 label=demo\nC_Decrypt delay_ms=200 label=demo");
        let mut first = rig.client().await;
        // Until the calls before, which took no time, do not count any more.
        for _ in 0..12 {
            first.encrypt("demo").await.ok();
        }
        let answers = at_once(rig.clients(CLIENTS).await, move |_, mut client| async move {
            let answer = if wants_value {
                client.encrypt_with_integrity_value("demo").await
            } else {
                client.encrypt("demo").await
            };
            (answer, client)
        });
        let answers = answers.await;
        let (served, refused): (Vec<_>, Vec<_>) =
            answers.iter().partition(|(answer, _)| answer.status == 200);
        assert!(served.len() >= 4 && refused.len() >= 10, "{} served", served.len());
        for (answer, client) in refused {
            assert!(is(answer, THROTTLED), "{:?}", outcome(answer));
            let line = rig.proxy.request_log(&client.request_id);
            assert_eq!(line["hsm_calls"], 0, "what was begun is ended: {line}");
        }
        // Whoever comes when the queue is empty again is served, whatever the calls take.
        first.encrypt("demo").await.ok();
    }
}

#[tokio::test]
async fn a_full_queue_before_calls_that_hang_is_a_timeout_at_once() {
    let mut setup = setup(1, &both(30_000));
    setup.token.push_str("\nqueue_depth = 1");
    let rig = Rig::start(setup).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut waiting = Vec::new();
    // One hangs, as do both replacements; the fourth waits.
    for (mut client, inside) in rig.clients(4).await.into_iter().zip([1, 2, 3, 3]) {
        waiting.push(tokio::spawn(async move { client.encrypt("demo").await }));
        rig.faults.wait_until_inside(Function::Encrypt, inside).await;
    }
    rig.proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 4\n")).await;
    rig.proxy.wait_for("/readyz?verbose", |_, text| text.contains("hang")).await;
    let mut client = rig.client().await;
    let answer = client.encrypt("demo-2").await;
    assert!(is(&answer, TIMEOUT), "{:?}", outcome(&answer));
    assert!(total_us(&rig, &client) < 1_000_000, "at once, long before the deadline of 30 s");
    rig.faults.clear();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().status, 200);
    }
    rig.wait_until_it_serves().await;
}

/// As soon as the call takes far longer than calls do, and not only once its session is replaced.
#[tokio::test]
async fn a_full_queue_before_a_call_that_hangs_is_a_timeout_before_its_session_is_replaced() {
    let mut setup = patient(60_000);
    setup.token.push_str("\nqueue_depth = 1");
    let rig = Rig::start(setup).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut waiting = Vec::new();
    for (mut client, in_flight) in rig.clients(2).await.into_iter().zip([1, 2]) {
        waiting.push(tokio::spawn(async move { client.encrypt("demo").await }));
        rig.faults.wait_until_inside(Function::Encrypt, 1).await;
        let in_flight = format!("\nxks_requests_in_flight {in_flight}\n");
        rig.proxy.wait_for("/metrics", |_, text| text.contains(&in_flight)).await;
    }
    let mut client = rig.client().await;
    let until = Instant::now() + RECOVERY;
    loop {
        let answer = client.encrypt("demo-2").await;
        if is(&answer, TIMEOUT) {
            break;
        }
        // Until then it may only be slow.
        assert!(is(&answer, THROTTLED) && Instant::now() < until, "{:?}", outcome(&answer));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.faults.clear();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().status, 200);
    }
    assert_eq!(client.encrypt("demo-2").await.status, 200, "it serves as before");
}

#[tokio::test]
async fn a_token_that_cannot_be_used_fails_within_10_ms() {
    let setup = Setup { selector: r#"label = "no such token""#.to_owned(), ..setup(2, &both(30_000)) };
    let rig = Rig::start_with_faults(setup, SoftHsm::with_keys(), "");
    rig.wait_for_health("UNAVAILABLE").await;
    let mut client = rig.client().await;
    let mut quickest = u64::MAX;
    for _ in 0..20 {
        for answer in [client.encrypt("demo").await, client.metadata("demo").await] {
            assert!(is(&answer, (500, "InternalException")), "{:?}", outcome(&answer));
        }
        quickest = quickest.min(total_us(&rig, &client));
    }
    assert!(quickest < 10_000, "{quickest} µs");
}

#[tokio::test]
async fn with_one_session_hung_the_others_serve_on() {
    let rig = Rig::start(setup(2, &both(30_000))).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo times=1");
    let mut unlucky = rig.client().await;
    let unlucky = tokio::spawn(async move { unlucky.encrypt("demo").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let mut client = rig.client().await;
    for _ in 0..25 {
        let encrypted = client.encrypt_with_integrity_value("demo").await.ok();
        client.assert_decrypts("demo", &encrypted).await;
    }
    rig.wait_for_health("DEGRADED").await;
    assert_eq!(rig.proxy.admin("/readyz").await.0, 200, "it still serves");
    rig.faults.clear();
    assert_eq!(unlucky.await.unwrap().status, 200);
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn everything_else_answers_while_a_token_hangs_and_the_token_serves_again_afterwards() {
    let token = SoftHsm::with_keys();
    let rig = Rig::start_on(with_second_token(setup(2, &both(30_000)), &token), token).await;
    let encrypted = rig.client().await.encrypt("demo").await.ok();
    rig.faults
        .set("C_Encrypt hang until_removed token=xks-test\nC_Decrypt hang until_removed token=xks-test");
    let mut waiting = Vec::new();
    for mut client in rig.clients(3).await {
        let encrypted = encrypted.clone();
        waiting.push(tokio::spawn(async move { client.decrypt("demo", &encrypted).await }));
    }
    rig.faults.wait_until_inside(Function::Decrypt, 2).await;
    rig.wait_for_health("UNAVAILABLE").await;

    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(rig.proxy.admin(path).await.0, 200, "{path}: one of two tokens still serves");
    }
    assert_eq!(plain_get(rig.proxy.ping, "/ping").await.0, 200);
    let mut balancer = RawConnection::open(rig.proxy.address).await;
    let ping = balancer.exchange(b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    assert_eq!(ping.status, 200);
    assert_eq!(rig.client().await.metadata("demo").await.ok()["keySpec"], "AES_256");
    let mut other = rig.client_of(second_store()).await;
    for _ in 0..10 {
        let encrypted = other.encrypt_with_integrity_value("demo").await.ok();
        other.assert_decrypts("demo", &encrypted).await;
    }
    assert_eq!(other.health().await.ok()["ekmFleetDetails"][0]["healthStatus"], "ACTIVE");
    assert!(waiting.iter().all(|request| !request.is_finished()));

    rig.faults.clear();
    for request in waiting {
        let decrypted = request.await.unwrap().ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), PLAINTEXT);
    }
    rig.wait_until_it_serves().await;
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_session_that_hangs_for_ever_is_replaced() {
    let rig = Rig::start(setup(1, &both(300))).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo times=1");
    assert!(is(&rig.client().await.encrypt("demo").await, TIMEOUT));
    rig.wait_until_it_serves().await;
    rig.wait_for_health("DEGRADED").await;
    assert_eq!(rig.proxy.metric("xks_token_threads_replaced_total{token=\"softhsm\"}").await, 1.0);
    // It comes back after all: it ends, and nothing is left of the hang.
    rig.faults.clear();
    rig.wait_for_health("ACTIVE").await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn sessions_that_hang_are_replaced_up_to_a_cap_and_serve_again_when_the_token_does() {
    let rig = Rig::start(setup(1, &both(300))).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    // One hangs, as do both replacements.
    while rig.proxy.metric("xks_token_sessions_stalled{token=\"softhsm\"}").await < 3.0 {
        assert!(is(&rig.client().await.encrypt("demo").await, TIMEOUT));
    }
    rig.wait_for_health("UNAVAILABLE").await;
    assert!(is(&rig.client().await.encrypt("demo").await, TIMEOUT));
    assert_eq!(rig.proxy.metric("xks_token_threads_replaced_total{token=\"softhsm\"}").await, 2.0);
    rig.faults.clear();
    rig.wait_until_it_serves().await;
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_prober_that_hangs_for_ever_is_replaced() {
    let mut setup = setup(1, &both(5000));
    setup.token = "sessions = 1\nintervals = { health_probe_ms = 100 }".to_owned();
    let rig = Rig::start(setup).await;
    rig.faults.set("C_EncryptInit hang until_removed label=xks-health times=1");
    rig.wait_for_health("UNAVAILABLE").await;
    rig.wait_for_health("ACTIVE").await;
    rig.wait_until_it_serves().await;
    rig.faults.clear();
    rig.wait_until_it_serves().await;
    rig.wait_for_health("ACTIVE").await;
}

/// A session that is given up is closed, which is a call like any other.
#[tokio::test]
async fn a_keeper_that_hangs_for_ever_while_it_closes_its_session_is_replaced() {
    let mut setup = setup(1, &both(5000));
    setup.token = "sessions = 1\nintervals = { health_probe_ms = 100 }".to_owned();
    let rig = Rig::start(setup).await;
    let hang = "C_CloseSession hang forever times=1";
    rig.faults.set(&format!("C_Encrypt fail=CKR_USER_NOT_LOGGED_IN label=xks-health times=1\n{hang}"));
    let until = Instant::now() + RECOVERY;
    while rig.faults.fired(hang) == 0 {
        assert!(Instant::now() < until, "{}", rig.last_lines());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.wait_until_it_serves().await;
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_call_that_hangs_does_not_keep_the_process_from_ending() {
    for (rule, key) in [("C_Encrypt hang forever", "demo"), ("C_FindObjectsInit hang forever", "absent")] {
        let mut setup = setup(1, &both(300));
        setup.server = "lame_duck_secs = 0\ndrain_secs = 1".to_owned();
        let mut rig = Rig::start(setup).await;
        rig.faults.set(rule);
        assert!(is(&rig.client().await.encrypt(key).await, TIMEOUT));
        rig.proxy.signal("TERM");
        assert!(rig.proxy.wait_for_exit().success(), "{rule}");
    }
}

#[tokio::test]
async fn a_call_that_hangs_is_logged_as_time_in_the_token_and_not_in_the_queue() {
    let rig = Rig::start(setup(1, &both(1000))).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut client = rig.client().await;
    assert!(is(&client.encrypt("demo").await, TIMEOUT));
    let line = rig.proxy.request_log(&client.request_id);
    assert!(line["hsm_us"].as_u64().unwrap() > 500_000, "the session was idle: {line}");
    assert!(line["queue_us"].as_u64().unwrap() < 500_000, "the session was idle: {line}");
    assert_eq!(line["hsm_calls"], 1, "{line}");
}
