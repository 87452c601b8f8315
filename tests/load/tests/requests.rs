//! What reaches the target: signatures, HTTP versions, keys, connections and counts.

#![allow(clippy::unwrap_used, reason = "a test's support may panic")]
#![allow(missing_docs)]

#[allow(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use http::request::Parts;
use http::{HeaderMap, Version};
use sha2::{Digest, Sha256};
use support::{SECRET_ACCESS_KEY, closed, open, run, serve};
use xks_load::client::HttpVersion;
use xks_load::echo::{Peer, Reply, echo};
use xks_load::engine::Plan;
use xks_load::schedule::Arrivals;

/// Verifies a signature from its definition: over host (HTTP/2: the authority), date and body, and over nothing else.
fn verifies(head: &Parts, body: &[u8]) -> bool {
    let header = |headers: &HeaderMap, name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    let date = header(&head.headers, "x-amz-date");
    let host = match head.version {
        Version::HTTP_2 => head.uri.authority().unwrap().to_string(),
        _ => header(&head.headers, "host"),
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let canonical = format!(
        "POST\n{}\n\nhost:{host}\nx-amz-date:{date}\n\nhost;x-amz-date\n{}",
        head.uri.path(),
        hex(&Sha256::digest(body))
    );
    let scope = format!("{}/eu-west-1/kms-xks-proxy/aws4_request", &date[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    // The key depends on the day alone; a run over midnight UTC would need the date parsed.
    let key = generate_signing_key(SECRET_ACCESS_KEY, SystemTime::now(), "eu-west-1", "kms-xks-proxy");
    let expected = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders=host;x-amz-date, Signature={}",
        support::ACCESS_KEY_ID,
        calculate_signature(key, to_sign.as_bytes())
    );
    header(&head.headers, "authorization") == expected
        && header(&head.headers, "content-type") == "application/json"
}

fn echo_if_verified(number: u64, head: &Parts, body: &[u8]) -> Reply {
    if verifies(head, body) {
        echo(number, head, body)
    } else {
        Reply::new(401, r#"{"errorName":"AuthenticationFailedException"}"#.to_owned())
    }
}

const MIX: &str = "encrypt=4,decrypt=4,metadata=1,health=1";

#[test]
fn every_operation_is_signed_as_aws_kms_signs() {
    for http in [HttpVersion::Http1, HttpVersion::Http2] {
        for presign in [None, Some(Duration::from_secs(60)), Some(Duration::ZERO)] {
            let server = serve(echo_if_verified);
            let outcome = run(&server, MIX, Plan { http, presign, ..closed(400, 2) });
            assert_eq!(outcome.recorder.failures, BTreeMap::new(), "{http:?} {presign:?}");
            assert_eq!(outcome.recorder.ok, 400);
            assert!(outcome.recorder.by_operation.iter().all(|operation| operation.count() > 0));
        }
    }
}

#[test]
fn the_http_version_is_the_one_asked_for_and_streams_share_a_connection() {
    let versions = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&versions);
    let server = serve(move |number, head, body| {
        seen.lock().unwrap().insert(format!("{:?}", head.version));
        echo(number, head, body)
    });
    let outcome = run(&server, MIX, Plan { http: HttpVersion::Http2, streams: 8, ..closed(500, 2) });
    assert_eq!((outcome.recorder.ok, outcome.recorder.reconnects), (500, 0));
    assert_eq!(*versions.lock().unwrap(), BTreeSet::from(["HTTP/2.0".to_owned()]));
}

#[test]
fn signing_per_request_renews_the_request_id_and_presigning_does_not() {
    for (presign, distinct) in [(None, 100), (Some(Duration::from_secs(60)), 8)] {
        let bodies = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = Arc::clone(&bodies);
        let server = serve(move |number, head, body| {
            seen.lock().unwrap().insert(body.to_vec());
            echo(number, head, body)
        });
        run(&server, "encrypt=1", Plan { presign, ..closed(100, 1) });
        assert_eq!(bodies.lock().unwrap().len(), distinct);
    }
}

#[test]
fn requests_spread_evenly_over_the_keys_and_carry_the_prefix() {
    let paths = Arc::new(Mutex::new(BTreeMap::new()));
    let seen = Arc::clone(&paths);
    let server = serve(move |number, head, body| {
        *seen.lock().unwrap().entry(head.uri.path().to_owned()).or_insert(0) += 1;
        echo(number, head, body)
    });
    run(&server, "metadata=1", closed(100, 1));
    let path = |key: u32| format!("/tenant-a/kms/xks/v1/keys/key-{key}/metadata");
    assert_eq!(*paths.lock().unwrap(), BTreeMap::from([(path(0), 50), (path(1), 50)]));
}

#[test]
fn warm_up_is_sent_and_not_counted_and_workers_share_the_load() {
    let requests = Arc::new(AtomicU64::new(0));
    let connections = Arc::new(Mutex::new(BTreeSet::new()));
    let (seen, seen_on) = (Arc::clone(&requests), Arc::clone(&connections));
    let server = serve(move |number, head, body| {
        seen.fetch_add(1, Ordering::Relaxed);
        seen_on.lock().unwrap().insert(head.extensions.get::<Peer>().unwrap().address);
        echo(number, head, body)
    });
    let warmup = Duration::from_millis(200);
    let plan = Plan { warmup, threads: 3, ..open(500.0, Duration::from_millis(600), 4) };
    let recorder = run(&server, "health=1", plan).recorder;
    assert_eq!((recorder.scheduled, recorder.ok, recorder.dispatch_lag.count()), (300, 300, 300));
    assert_eq!(recorder.seconds.iter().map(|second| second.scheduled).sum::<u64>(), 300);
    assert_eq!(requests.load(Ordering::Relaxed), 400);
    assert_eq!(connections.lock().unwrap().len(), 4);
}

#[test]
fn signatures_are_renewed_once_their_lifetime_is_over() {
    let dates = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&dates);
    let server = serve(move |number, head, body| {
        seen.lock().unwrap().insert(head.headers["x-amz-date"].clone().to_str().unwrap().to_owned());
        echo_if_verified(number, head, body)
    });
    let plan = Plan { presign: Some(Duration::ZERO), ..open(20.0, Duration::from_millis(2_500), 1) };
    let recorder = run(&server, "encrypt=1", plan).recorder;
    assert_eq!((recorder.ok, recorder.failed()), (50, 0));
    // 2.45 s touch three seconds at least; signing the pool beforehand touches two at most.
    assert!(dates.lock().unwrap().len() >= 3, "{dates:?}");
}

#[test]
fn sessions_are_resumed_only_when_asked_for() {
    for tls_resumption in [false, true] {
        let resumed = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&resumed);
        let server = serve(move |number, head, body| {
            seen.fetch_add(u64::from(head.extensions.get::<Peer>().unwrap().tls_resumed), Ordering::Relaxed);
            echo(number, head, body)
        });
        let mut plan = Plan { tls_resumption, ..open(100.0, Duration::from_millis(500), 1) };
        plan.open.as_mut().unwrap().new_connections_per_sec = 100.0;
        assert_eq!(run(&server, "health=1", plan).recorder.ok, 50);
        assert_eq!(resumed.load(Ordering::Relaxed) > 0, tls_resumption);
    }
}

#[test]
fn a_part_of_the_requests_opens_connections_of_their_own() {
    let server = serve(echo);
    let mut plan = open(200.0, Duration::from_secs(1), 2);
    plan.open.as_mut().unwrap().new_connections_per_sec = 50.0;
    let recorder = run(&server, "encrypt=1", plan).recorder;
    assert_eq!((recorder.ok, recorder.reconnects), (200, 0));
    assert_eq!((recorder.on_new_connection.count(), recorder.handshake.count()), (50, 50));
    // The handshake is part of the latency.
    assert!(recorder.on_new_connection.quantile_ms(0.0) >= recorder.handshake.quantile_ms(0.0));
}

#[test]
fn poisson_arrivals_end_and_are_all_answered() {
    let server = serve(echo);
    let mut plan = open(1_000.0, Duration::from_millis(500), 4);
    plan.open.as_mut().unwrap().arrivals = Arrivals::Poisson;
    let recorder = run(&server, "encrypt=1", plan).recorder;
    // 500 expected, standard deviation 22; the seed is fixed.
    assert!((400..600).contains(&recorder.scheduled), "{}", recorder.scheduled);
    assert_eq!(recorder.ok, recorder.scheduled);
}

#[test]
fn the_number_of_requests_is_bounded_in_an_open_loop_too() {
    let server = serve(echo);
    let plan = Plan { max_requests: 30, ..open(1_000.0, Duration::from_secs(300), 2) };
    let outcome = run(&server, "encrypt=1", plan);
    assert_eq!(outcome.recorder.ok, 30);
    assert!(outcome.span < Duration::from_secs(300));
}
