//! Nothing that goes wrong goes uncounted, and every run ends.

#![allow(clippy::unwrap_used, reason = "a test's support may panic")]
#![allow(missing_docs)]

#[allow(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::{closed, open, run, serve, settings, target};
use xks_load::echo::{Reply, echo};
use xks_load::engine::{Engine, Plan};
use xks_load::report::{Limits, Summary};

fn counts(expected: &[(&str, u64)]) -> BTreeMap<String, u64> {
    expected.iter().map(|(label, count)| ((*label).to_owned(), *count)).collect()
}

#[test]
fn refusals_count_by_status_and_error_name_and_cut_connections_are_reopened() {
    let server = serve(|number, head, body| match number % 10 {
        0 => Reply::new(429, r#"{"errorName":"ThrottlingException"}"#.to_owned()),
        1 => Reply::new(500, "oops".to_owned()),
        2 => Reply { hangs_up: true, ..echo(number, head, body) },
        _ => echo(number, head, body),
    });
    let outcome = run(&server, "encrypt=1", closed(200, 1));
    let expected = [
        ("HTTP 429 ThrottlingException", 20),
        ("HTTP 500 without errorName", 20),
        ("transport: connection closed before the answer", 20),
    ];
    assert_eq!(outcome.recorder.failures, counts(&expected));
    assert_eq!((outcome.recorder.ok, outcome.recorder.reconnects), (140, 20));
    assert_eq!(Summary::from(&outcome).refused_ms.unwrap().count, 20);
    let breaches = |allow_errors| {
        let limits = Limits { allow_errors, ..Limits::default() };
        Summary::from(&outcome).breaches(&limits, None)
    };
    assert_eq!(breaches(false), ["60 requests failed or were dropped"]);
    assert!(breaches(true).is_empty());
}

#[test]
fn a_wrong_answer_of_status_200_is_a_failure() {
    let server = serve(|number, head, body| {
        let honest = echo(number, head, body);
        match (head.uri.path().rsplit('/').next().unwrap(), number % 2) {
            // The first eight requests, even ones included, make the ciphertexts of the pool.
            ("decrypt", 0) => Reply::new(200, r#"{"plaintext":"AAAA"}"#.to_owned()),
            ("health", _) => Reply::new(200, "{}".to_owned()),
            _ => honest,
        }
    });
    let decrypts = run(&server, "decrypt=1", closed(100, 1)).recorder;
    assert_eq!(decrypts.failures, counts(&[("wrong answer: plaintext differs", 50)]));
    assert_eq!(decrypts.ok, 50);
    let health = run(&server, "health=1", closed(10, 1)).recorder;
    assert_eq!(health.failures, counts(&[("wrong answer: health: JSON shape", 10)]));
}

#[test]
fn an_integrity_value_over_something_else_is_found() {
    let server = serve(|number, head, body| {
        let mut reply = echo(number, head, body);
        // Another tag than the one that was hashed.
        reply.body = reply.body.replace(r#""authenticationTag":"W"#, r#""authenticationTag":"X"#);
        reply
    });
    let every_second = Plan { thorough_every: 2, ..closed(100, 1) };
    let recorder = run(&server, "encrypt=1", every_second).recorder;
    assert_eq!(recorder.failures, counts(&[("wrong answer: ciphertextDataIntegrityValue differs", 50)]));
}

#[test]
fn repeated_ivs_are_found_and_never_tolerated() {
    // Requests take the keys in turn, so that each IV meets first one key, then the other, then the first again.
    let server = serve(|number, head, body| echo(number / 4, head, body));
    let plan = Plan { check_ivs: true, ..closed(100, 1) };
    let outcome = run(&server, "encrypt=1", plan);
    let ivs = outcome.ivs.as_ref().unwrap();
    assert_eq!((ivs.checked, ivs.repeated, ivs.unchecked), (100, 50, 0));
    let limits = Limits { allow_errors: true, ..Limits::default() };
    assert_eq!(Summary::from(&outcome).breaches(&limits, None), ["50 IVs were repeated"]);
}

#[test]
fn a_silent_target_costs_a_timeout_and_what_exceeds_the_cap_is_dropped_and_counted() {
    let server = serve(|number, head, body| Reply {
        not_before: Some(Instant::now() + Duration::from_secs(600)),
        ..echo(number, head, body)
    });
    let mut plan = Plan { timeout: Duration::from_secs(3), ..open(100.0, Duration::from_millis(500), 1) };
    plan.open.as_mut().unwrap().max_outstanding = 5;
    let outcome = run(&server, "encrypt=1", plan);
    let recorder = &outcome.recorder;
    assert_eq!((recorder.scheduled, recorder.ok, recorder.dropped), (50, 0, 45));
    assert_eq!(recorder.failures, counts(&[("transport: timeout", 5)]));
    // One connection: the four others spent their time in the queue, and it counts all the same.
    assert_eq!(recorder.latency.count(), 5);
    assert!(recorder.latency.quantile_ms(0.0) >= 2_990.0);
    assert!(recorder.latency.max_ms() < 30_000.0);
    let limits = Limits { allow_errors: true, max_p99_ms: Some(250.0), min_rate_share: Some(0.9) };
    let breaches = Summary::from(&outcome).breaches(&limits, Some(100.0));
    assert_eq!(breaches.len(), 3, "nothing succeeded, p99, rate: {breaches:?}");
}

#[test]
fn a_target_that_cannot_be_reached_or_does_not_encrypt_is_an_error_before_the_run() {
    let server = serve(|_, _, _| Reply::new(403, r#"{"errorName":"AccessDeniedException"}"#.to_owned()));
    let fault = Engine::prepare(&target(&server), &settings("decrypt=1"), closed(1, 1)).err().unwrap();
    assert!(fault.to_string().contains("HTTP 403 AccessDeniedException"), "{fault}");
    let gone = target(&server);
    drop(server);
    let engine = Engine::prepare(&gone, &settings("health=1"), Plan { threads: 2, ..closed(1, 2) }).unwrap();
    let fault = engine.run().unwrap_err();
    assert!(fault.to_string().contains("connection refused"), "{fault}");
}
