//! Latency: the first request of a connection apart, since connecting counts.

use std::time::Duration;

use mock_kms::xks::{HttpVersion, Shaping};
use xks_spec::Operation;
use xks_spec::limits::{KMS_TIMEOUT, RECOMMENDED_ROUND_TRIP};

use crate::case::{Case, Level, Section, expect};
use crate::report::html::percentile;
use crate::wire::{Wire, body_of, decrypt_body, encrypt_body};

/// Requests of each measurement. The median is judged: one answer that this machine was slow to read is no finding.
const SAMPLES: usize = 40;

/// Pairs of an Encrypt and a Decrypt, of whose answers a share is judged.
const PAIRS: usize = 150;

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for operation in Operation::ALL {
        let requirement: &[&'static str] = match operation {
            Operation::GetKeyMetadata => &["META-TIME-001"],
            Operation::Encrypt => &["ENC-TIME-001"],
            Operation::Decrypt => &["DEC-TIME-001"],
            Operation::GetHealthStatus => &["HEALTH-TIME-001"],
        };
        for (kind, is_new) in [("kept", false), ("new", true)] {
            all.push(
                Case::new(
                    Section::Latency,
                    format!("{}-{kind}-connection", operation.path_segment()),
                    Level::Must,
                    format!("{} {SAMPLES} times, on a {kind} connection", operation.name()),
                    "answers within 250 ms, connecting included (judged by the median)",
                    move |wire| async move { measured(&wire, operation, is_new).await },
                )
                .of(requirement),
            );
        }
    }
    all.push(
        Case::new(
            Section::Latency,
            "tcp-connect",
            Level::Should,
            format!("opens {SAMPLES} TCP connections"),
            "each within 35 ms, the round trip that KMS recommends (judged by the median)",
            |wire| async move {
                let mut times = Vec::new();
                for _ in 0..SAMPLES {
                    let begin = std::time::Instant::now();
                    let opened = tokio::net::TcpStream::connect(wire.target.address).await;
                    expect(opened.is_ok(), "a TCP connection", "none")?;
                    times.push(begin.elapsed().as_secs_f64() * 1000.0);
                }
                judge(times, RECOMMENDED_ROUND_TRIP)
            },
        )
        .of(&["OPS-RTT-001"]),
    );
    all.push(
        Case::new(
            Section::Latency,
            "together",
            Level::Must,
            "20 encrypts at once, five times",
            "the slowest of a round within 250 ms (judged by the best round)",
            |wire| async move {
                let mut best = f64::MAX;
                for _ in 0..5 {
                    let one = |wire: Wire, _| async move {
                        let seen = wire.send(&wire.request(Operation::Encrypt)).await?;
                        Ok(seen.report.last_try.as_secs_f64() * 1000.0)
                    };
                    let times = wire.at_once(20, one).await?;
                    best = best.min(times.into_iter().fold(0.0, f64::max));
                }
                expect(best <= 250.0, "within 250 ms", format!("{best:.1} ms"))?;
                Ok(format!("{best:.1} ms"))
            },
        )
        .of(&["ENC-TIME-001"]),
    );
    all.push(
        Case::new(
            Section::Latency,
            "share-beyond",
            Level::Should,
            format!("encrypts and decrypts {PAIRS} times, one after the other"),
            "at most one answer in a hundred beyond 250 ms",
            |wire| async move { share_beyond(&wire).await },
        )
        .of(&["ENC-TIME-001", "DEC-TIME-001"])
        .source("KMS gives up after 250 ms: what the median hides is failed calls"),
    );
    all
}

async fn measured(wire: &Wire, operation: Operation, is_new: bool) -> crate::case::Finding {
    let mut body = body_of(operation);
    if operation == Operation::Decrypt {
        body =
            decrypt_body(&wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?, None);
    }
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let mut request = wire.request(operation);
        request.body = body.to_string().into();
        request.shaping = Shaping { has_own_connection: is_new, ..Shaping::default() };
        let seen = wire.send_to(wire.proxy(), HttpVersion::Http1, &request).await?;
        seen.ok()?;
        times.push(seen.report.last_try.as_secs_f64() * 1000.0);
    }
    judge(times, KMS_TIMEOUT)
}

fn judge(mut times: Vec<f64>, limit: Duration) -> crate::case::Finding {
    times.sort_by(f64::total_cmp);
    let (median, p99) = (percentile(&times, 50), percentile(&times, 99));
    let seen = format!("median {median:.1} ms, p99 {p99:.1} ms");
    expect(
        median <= limit.as_secs_f64() * 1000.0,
        format!("a median within {} ms", limit.as_millis()),
        &seen,
    )?;
    Ok(seen)
}

async fn share_beyond(wire: &Wire) -> crate::case::Finding {
    let limit_ms = KMS_TIMEOUT.as_secs_f64() * 1000.0;
    let (mut beyond, mut slowest) = (0, 0.0_f64);
    for _ in 0..PAIRS {
        let encrypt = wire.request(Operation::Encrypt);
        let encrypted = wire.send(&encrypt).await?;
        let decrypt = wire.decrypt_request(wire.key(), &decrypt_body(&encrypted.ok()?, None));
        let decrypted = wire.send(&decrypt).await?;
        decrypted.ok()?;
        for seen in [encrypted, decrypted] {
            let took_ms = seen.report.last_try.as_secs_f64() * 1000.0;
            beyond += usize::from(took_ms > limit_ms);
            slowest = slowest.max(took_ms);
        }
    }
    let seen = format!("{beyond} of {} beyond {limit_ms} ms, the slowest {slowest:.1} ms", 2 * PAIRS);
    expect(beyond * 100 <= 2 * PAIRS, "at most one in a hundred beyond 250 ms", &seen)?;
    Ok(seen)
}
