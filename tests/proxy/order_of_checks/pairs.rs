//! Each check alone, and each two that a request can fail at once: the upper one answers.

use std::collections::BTreeMap;

use serde_json::Value;
use tempfile::NamedTempFile;
use xks_harness::client::raw_http1;
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Answer, Http, Proxy, RawConnection, Setup, XksRequest};
use xks_spec::Operation;

use super::checks::Check::{BodySize, BodyTime, InFlight, Quota};
use super::checks::{Check, KEYS, POLICIES, request_failing};

/// What Encrypt answered under the key `good`.
pub(super) struct Encrypted(pub(super) Value);

/// A proxy in a state in which requests fail those of InFlight, BodyTime and Quota that are asked for.
struct Scene {
    proxy: Proxy,
    encrypted: Encrypted,
    is_limited: bool,
    _policies: NamedTempFile,
    /// A request without the rest of its body, which keeps the only place in flight.
    held: Option<RawConnection>,
}

impl Scene {
    async fn set(faults: &[Check]) -> Self {
        let fails = |check| faults.contains(&check);
        let policies = NamedTempFile::new().unwrap();
        std::fs::write(policies.path(), POLICIES).unwrap();
        let setup = Setup {
            authorization: format!("authorization = \"cedar\"\npolicies = [{:?}]", policies.path()),
            keys: KEYS.to_owned(),
            limits: if fails(InFlight) { "max_in_flight = 1" } else { "" }.to_owned(),
            // Short only where a body never comes whole.
            timeouts: format!(
                "answer_ms = 30000\nfirst_answer_ms = 30000\nbody_ms = {}",
                if fails(BodyTime) && !fails(InFlight) { 200 } else { 60_000 }
            ),
            quota: if fails(Quota) { "requests_per_second = 1" } else { "requests_per_second = 1000000" }
                .to_owned(),
            ..Setup::default()
        };
        let proxy = Proxy::start(&setup).await;
        let body = encrypt_body(b"secret", None, false);
        let mut connection = proxy.connect(Http::Two).await;
        let encrypted = connection.send(&XksRequest::encrypt(&main_store(), "good", &body)).await.ok();
        let mut scene = Self {
            proxy,
            encrypted: Encrypted(encrypted),
            is_limited: fails(Quota),
            _policies: policies,
            held: None,
        };
        scene.use_up_quota().await;
        if fails(InFlight) {
            scene.held = Some(hold_a_place(&scene.proxy).await);
        }
        scene
    }

    /// Nothing is left of a quota of one request a second, for a second.
    async fn use_up_quota(&self) {
        if !self.is_limited || self.held.is_some() {
            return;
        }
        let mut connection = self.proxy.connect(Http::Two).await;
        for _ in 0..1000 {
            if connection.send(&XksRequest::metadata(&main_store(), "good")).await.status == 429 {
                return;
            }
        }
        panic!("the quota never ran out");
    }
}

/// Sends a request's head and half of its body, and waits until it has its place.
async fn hold_a_place(proxy: &Proxy) -> RawConnection {
    let mut connection = RawConnection::open(proxy.address).await;
    let request = XksRequest::encrypt(&main_store(), "good", &encrypt_body(b"x", None, false));
    let bytes = raw_http1(&request, &authority(proxy));
    connection.send(&bytes[..bytes.len() - 10]).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 1\n")).await;
    connection
}

fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

/// Sends a request that fails these checks over HTTP/1.1 and returns its answer and the reason in the log.
async fn over_http1(scene: &Scene, operation: Operation, faults: &[Check]) -> (Option<Answer>, String) {
    let request = request_failing(operation, faults, &scene.encrypted);
    let mut connection = RawConnection::open(scene.proxy.address).await;
    let mut bytes = raw_http1(&request, &authority(&scene.proxy));
    if faults.contains(&BodyTime) {
        bytes.truncate(bytes.len() - request.body.len() / 2);
    }
    let answer = connection.exchange(&bytes).await;
    if answer.as_ref().is_some_and(|answer| answer.headers.contains_key("connection")) {
        connection.expect_close().await;
    }
    let peer = connection.local_address().to_string();
    let line = scene.proxy.wait_for_log(|line| line["peer"] == peer);
    (answer, line["reason"].as_str().unwrap_or("none").to_owned())
}

async fn over_http2(scene: &Scene, operation: Operation, faults: &[Check]) -> Answer {
    let request = request_failing(operation, faults, &scene.encrypted);
    scene.proxy.connect(Http::Two).await.send(&request).await
}

/// Whether `upper` answered, and nothing else.
fn assert_answered(upper: Check, answer: Option<&Answer>, what: &str) {
    let expected = upper.answer().map(|(status, name)| (status, name.to_owned()));
    assert_eq!(answer.map(Answer::refusal), expected, "{what}");
    if let Some(answer) = answer {
        assert_eq!(answer.headers.contains_key("allow"), upper == Check::Method, "{what}");
    }
}

/// Most attempts to find the quota used up: a second may pass between using it up and asking.
const ATTEMPTS: usize = 10;

/// Sends a request that fails `faults` over both protocols and wants the answer of the first.
async fn assert_first_answers(scene: &Scene, operation: Operation, faults: &[Check]) {
    let upper = faults[0];
    let what = format!("{operation} {faults:?}");
    scene.use_up_quota().await;
    let is_wanted =
        |answer: Option<&Answer>| upper != Quota || answer.is_some_and(|answer| answer.status == 429);
    let (mut answer, mut reason) = over_http1(scene, operation, faults).await;
    for _ in 1..ATTEMPTS {
        if is_wanted(answer.as_ref()) {
            break;
        }
        (answer, reason) = over_http1(scene, operation, faults).await;
    }
    assert_answered(upper, answer.as_ref(), &what);
    assert!(reason.contains(upper.reason()), "{what}: {reason}");
    let closes =
        answer.is_some_and(|answer| answer.headers.get("connection").is_some_and(|it| it == "close"));
    assert_eq!(closes, upper == BodySize, "{what}");
    if faults.contains(&BodyTime) {
        return;
    }
    let mut answer = over_http2(scene, operation, faults).await;
    for _ in 1..ATTEMPTS {
        if is_wanted(Some(&answer)) {
            break;
        }
        answer = over_http2(scene, operation, faults).await;
    }
    assert_answered(upper, Some(&answer), &format!("{what} on HTTP/2"));
}

#[tokio::test]
async fn a_request_that_fails_no_check_is_served() {
    let scene = Scene::set(&[]).await;
    for operation in Operation::ALL {
        let (answer, reason) = over_http1(&scene, operation, &[]).await;
        assert_eq!((answer.unwrap().status.as_u16(), reason.as_str()), (200, "none"), "{operation}");
        assert_eq!(over_http2(&scene, operation, &[]).await.status, 200, "{operation}");
    }
}

#[tokio::test]
async fn each_check_has_its_one_answer() {
    for check in Check::ALL {
        let scene = Scene::set(&[check]).await;
        for operation in Operation::ALL {
            // Health has a quota of its own, which is not used up here.
            let is_other_quota = check == Quota && operation == Operation::GetHealthStatus;
            if check.is_of(operation) && !is_other_quota {
                assert_first_answers(&scene, operation, &[check]).await;
            }
        }
        let throttled = scene.proxy.metric("xks_throttled_total{reason=\"in_flight\",store=\"main\"}").await;
        // Each operation over both protocols.
        let expected = if check == InFlight { 2 * Operation::ALL.len() } else { 0 };
        assert_eq!(throttled, expected as f64, "{check:?}");
    }
}

/// All pairs of checks of `operation` from `first` on.
async fn assert_pairs(operation: Operation, first: Check) -> usize {
    let mut scenes: BTreeMap<Vec<Check>, Scene> = BTreeMap::new();
    let checks: Vec<_> =
        Check::ALL.into_iter().filter(|check| *check >= first && check.is_of(operation)).collect();
    let mut pairs = 0;
    for (index, upper) in checks.iter().enumerate() {
        for lower in checks[index + 1..].iter().filter(|lower| upper.goes_with(**lower)) {
            let faults = [*upper, *lower];
            let mut state = faults.to_vec();
            state.retain(|check| [InFlight, BodyTime, Quota].contains(check));
            if !scenes.contains_key(&state) {
                scenes.insert(state.clone(), Scene::set(&state).await);
            }
            assert_first_answers(&scenes[&state], operation, &faults).await;
            pairs += 1;
        }
    }
    pairs
}

#[tokio::test]
async fn of_two_checks_that_fail_the_upper_one_answers() {
    // Decrypt can fail them all; Key and Usage do not go together.
    assert_eq!(assert_pairs(Operation::Decrypt, Check::Path).await, 16 * 15 / 2 - 1);
}

/// Each operation parses and looks things up by itself.
#[tokio::test]
async fn of_two_checks_behind_the_signature_the_upper_one_answers_in_the_other_operations_too() {
    assert_eq!(assert_pairs(Operation::Encrypt, Quota).await, 7 * 6 / 2 - 1);
    assert_eq!(assert_pairs(Operation::GetKeyMetadata, Quota).await, 6);
}

#[tokio::test]
async fn a_request_that_fails_everything_is_answered_by_one_check_after_the_other() {
    // Without Key a request can fail all of them.
    let mut faults: Vec<_> = Check::ALL.into_iter().filter(|check| *check != Check::Key).collect();
    while !faults.is_empty() {
        let scene = Scene::set(&faults).await;
        assert_first_answers(&scene, Operation::Decrypt, &faults).await;
        faults.remove(0);
    }
}

#[test]
fn the_document_has_these_rows() {
    let document = include_str!("../../../docs/order-of-checks.md");
    for check in Check::ALL {
        let start = format!("| {} |", check.row());
        let row = document.lines().find(|line| line.starts_with(&start)).unwrap();
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, status, names] = cells.as_slice() else { panic!("{row}") };
        match check.answer() {
            // What the token can say has a table of its own.
            Some((code, name)) if check == Check::Token => {
                let of_the_tag = document.lines().find(|line| line.contains("the tag does not fit")).unwrap();
                assert!(of_the_tag.contains(&code.to_string()) && of_the_tag.contains(name), "{of_the_tag}");
            }
            Some((code, name)) => {
                assert!(status.starts_with(&code.to_string()) && names.contains(name), "{row}");
            }
            None => assert!(status.starts_with("none") && *names == "none", "{row}"),
        }
    }
}
