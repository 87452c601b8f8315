//! The reason for this generator: a target that stalls once for a second must not look fast.

#![allow(clippy::unwrap_used, reason = "a test's support may panic")]
#![allow(missing_docs)]

#[allow(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::{closed, open, run, serve};
use xks_load::echo::{EchoServer, echo};

const STALL: Duration = Duration::from_secs(1);

/// A server that answers nothing for a second once it has seen 100 requests, and is fast otherwise.
fn server_that_stalls_once() -> EchoServer {
    let stalled_until = OnceLock::new();
    serve(move |number, head, body| {
        let mut reply = echo(number, head, body);
        if number >= 100 {
            reply.not_before = Some(*stalled_until.get_or_init(|| Instant::now() + STALL));
        }
        reply
    })
}

#[test]
fn an_open_loop_shows_a_stall_that_service_time_hides() {
    let server = server_that_stalls_once();
    // 200 of 800 requests fall into the stall, but only four can be on their way at once.
    let outcome = run(&server, "encrypt=1", open(200.0, Duration::from_secs(4), 4));
    let recorder = outcome.recorder;
    assert_eq!((recorder.scheduled, recorder.ok, recorder.dropped), (800, 800, 0));
    let (latency_ms, service_ms) = (recorder.latency.quantile_ms(0.99), recorder.service.quantile_ms(0.99));
    assert!(latency_ms >= 500.0, "p99 of the latency: {latency_ms} ms");
    assert!(service_ms < 500.0, "p99 of the service time: {service_ms} ms");
    assert!(recorder.service.max_ms() >= 990.0, "the stall took place");
    // Requests due in the first three quarters of the stall waited longer than AWS KMS would have.
    assert!(recorder.past_kms_timeout >= 140, "{} past 250 ms", recorder.past_kms_timeout);
}

#[test]
fn a_closed_loop_hides_the_same_stall() {
    let server = server_that_stalls_once();
    let outcome = run(&server, "encrypt=1", closed(2_000, 4));
    let recorder = outcome.recorder;
    assert_eq!((recorder.ok, recorder.failed()), (2_000, 0));
    let latency_ms = recorder.latency.quantile_ms(0.99);
    assert!(latency_ms < 500.0, "p99 of a closed loop: {latency_ms} ms");
    assert!(recorder.latency.max_ms() >= 990.0, "the stall took place");
}
