//! The profile `load`: 100,000 encrypts at KMS's default quota, by the open-loop generator `xks-load`.

use std::time::{Duration, Instant};

use xks_load::check::IvReport;
use xks_load::client::HttpVersion;
use xks_load::engine::{Engine, OpenLoop, Plan};
use xks_load::measure::Durations;
use xks_load::report::Summary;
use xks_load::schedule::Arrivals;
use xks_load::target::TargetArgs as LoadArgs;
use xks_load::workload::{Operation, WorkloadSettings};
use xks_spec::limits::KMS_TIMEOUT;

use crate::case::{Level, Outcome, Section};
use crate::client::paste::quoted;
use crate::run::{CaseResult, Sample};
use crate::target::Target;

/// KMS's default quota of an external key store (section GetHealthStatus).
const REQUESTS_PER_SEC: f64 = 1800.0;
/// Encrypts among which no IV may repeat.
const ENCRYPTS: u64 = 100_000;
/// A busy client machine may lose a few of a second's instants.
const LEAST_RATE_SHARE: f64 = 0.99;
/// Kept connections of the open loop.
const CONNECTIONS: u32 = 32;
/// Kept connections of the closed loop, which asks a slower proxy for no more than it can do.
const CONNECTIONS_CLOSED: u32 = 8;
/// Longest that the closed loop may take.
const CLOSED: Duration = Duration::from_secs(600);
const MIX: &str = "encrypt=1,decrypt=0,metadata=0,health=0";
const PLAINTEXT_BYTES: usize = 32;
const POOL: usize = 256;
const WARMUP_SECS: u64 = 2;
/// Dots of the latency plot: quantiles, since the generator keeps no single latencies.
const DOTS: u32 = 1000;

type Fault = Box<dyn std::error::Error>;

/// What one loop found.
struct Looped {
    summary: Summary,
    encrypts: Durations,
    line: String,
    took: Duration,
}

/// What came of the profile.
pub struct Loaded {
    /// Its cases.
    pub cases: Vec<CaseResult>,
    /// Quantiles of the latency, a thousandth of the answers each.
    pub samples: Vec<Sample>,
}

/// Runs the load and judges it.
///
/// # Errors
/// When the load cannot be made at all.
pub async fn run(target: &Target) -> Result<Loaded, Fault> {
    let first = looped(target, plan(true)).await?;
    // IVs are no matter of speed: where the open loop has not given enough answers, they are asked for one after another.
    let is_short = |looped: &Looped| ivs_of(looped).is_none_or(|ivs| (ivs.checked as u64) < ENCRYPTS);
    let second = if is_short(&first) { Some(looped(target, plan(false)).await?) } else { None };
    let about_ivs = second.as_ref().unwrap_or(&first);
    let ivs: Vec<_> = [Some(&first), second.as_ref()].into_iter().flatten().filter_map(ivs_of).collect();
    let ivs = uniqueness(&ivs, about_ivs);
    let took = first.took + second.as_ref().map_or(Duration::ZERO, |second| second.took);
    let mut cases = vec![result("iv-uniqueness", Level::Must, "ENC-GCM-001", EXPECTED_IVS, took, ivs)];
    cases.extend(judged_by_time(&first));
    let sample = |number| Sample {
        operation: "encrypt".to_owned(),
        is_first: false,
        total_ms: first.encrypts.quantile_ms((f64::from(number) + 0.5) / f64::from(DOTS)),
    };
    let dots = if first.encrypts.count() > 0 { DOTS } else { 0 };
    Ok(Loaded { samples: (0..dots).map(sample).collect(), cases })
}

fn ivs_of(looped: &Looped) -> Option<&IvReport> {
    looped.summary.ivs.as_ref()
}

const EXPECTED_IVS: &str = "no IV twice under one key, among the answers to 100,000 encrypts";

/// A repeated IV is one however few there are; that there is none is said of 100,000 alone.
fn uniqueness(ivs: &[&IvReport], looped: &Looped) -> Outcome {
    let repeated: usize = ivs.iter().map(|ivs| ivs.repeated).sum();
    let checked = ivs.iter().map(|ivs| ivs.checked).max().unwrap_or(0);
    let seen = format!("{repeated} repeated among {checked}");
    if repeated > 0 {
        failed(looped, EXPECTED_IVS, seen)
    } else if (checked as u64) < ENCRYPTS {
        let missing =
            format!("{ENCRYPTS} encrypts that succeed within {} minutes: {seen}", CLOSED.as_secs() / 60);
        Outcome::Skipped { missing }
    } else {
        Outcome::Passed { seen }
    }
}

fn judged_by_time(looped: &Looped) -> [CaseResult; 2] {
    let summary = &looped.summary;
    let judged = |name, expects: &str, holds: bool, seen: String| {
        let outcome = if holds { Outcome::Passed { seen } } else { failed(looped, expects, seen) };
        result(name, Level::Should, "ENC-TIME-001", expects, looped.took, outcome)
    };
    let bad = summary.failed + summary.dropped;
    let p99 = summary.latency_ms.p99;
    let limit_ms = KMS_TIMEOUT.as_secs_f64() * 1000.0;
    [
        judged(
            "sustained",
            "1800 encrypts a second without a failure",
            bad == 0 && summary.ok_per_sec >= REQUESTS_PER_SEC * LEAST_RATE_SHARE,
            format!("{} right answers, {:.0} a second, {bad} failed", summary.ok, summary.ok_per_sec),
        ),
        judged(
            "p99",
            "99 of 100 answers within 250 ms of their instant",
            p99 <= limit_ms,
            format!(
                "p50 {:.1} ms, p99 {p99:.1} ms, p99.9 {:.1} ms",
                summary.latency_ms.p50, summary.latency_ms.p999
            ),
        ),
    ]
}

/// The generator's whole table is the answer: it counts the failures by their kind.
fn failed(looped: &Looped, expects: &str, seen: String) -> Outcome {
    let (request, answer) = (looped.line.clone(), looped.summary.table());
    Outcome::Failed { request, answer, expected: expects.to_owned(), seen }
}

fn result(
    name: &str,
    level: Level,
    requirement: &'static str,
    expects: &str,
    took: Duration,
    outcome: Outcome,
) -> CaseResult {
    let is_about_ivs = level == Level::Must;
    CaseResult {
        id: format!("load.{name}"),
        section: Section::Load,
        level,
        requirements: vec![requirement],
        source: if is_about_ivs {
            "NIST SP 800-38D section 8"
        } else {
            "KMS quota of 1800 requests a second"
        },
        does: "100,000 encrypts in an open loop of 1800 a second".to_owned()
            + if is_about_ivs { ", and in a closed one where not all of them succeed" } else { "" },
        expects: expects.to_owned(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        outcome,
    }
}

async fn looped(target: &Target, plan: Plan) -> Result<Looped, Fault> {
    let workload = WorkloadSettings {
        mix: MIX.parse()?,
        plaintext_bytes: PLAINTEXT_BYTES,
        aad_bytes: 0,
        cdiv: true,
        pool: POOL,
        seed: 1,
        principal_arn: "arn:aws:iam::123456789012:user/Alice".to_owned(),
        kms_key_arn: "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000".to_owned(),
    };
    let args = load_args(target);
    let line = command_line(&args, &plan);
    let begin = Instant::now();
    let outcome = tokio::task::spawn_blocking(move || {
        let target = args.target().map_err(|error| error.to_string())?;
        let engine = Engine::prepare(&target, &workload, plan).map_err(|error| error.to_string())?;
        engine.run().map_err(|error| error.to_string())
    })
    .await??;
    let encrypts = outcome.recorder.by_operation[Operation::Encrypt as usize].clone();
    Ok(Looped { summary: Summary::from(&outcome), encrypts, line, took: begin.elapsed() })
}

fn plan(is_open: bool) -> Plan {
    let open = OpenLoop {
        arrivals: Arrivals::Fixed,
        rate_per_sec: REQUESTS_PER_SEC,
        new_connections_per_sec: 0.0,
        max_outstanding: 20_000,
    };
    let open_for = Duration::from_secs_f64(ENCRYPTS as f64 / REQUESTS_PER_SEC);
    Plan {
        open: is_open.then_some(open),
        http: HttpVersion::Http1,
        tls_resumption: false,
        warmup: Duration::from_secs(WARMUP_SECS),
        duration: if is_open { open_for } else { CLOSED },
        // Of the closed loop's, a few may fail.
        max_requests: if is_open { ENCRYPTS } else { ENCRYPTS + ENCRYPTS / 10 },
        connections: if is_open { CONNECTIONS } else { CONNECTIONS_CLOSED },
        streams: 1,
        threads: 1,
        timeout: Duration::from_secs(10),
        presign: None,
        thorough_every: 10,
        check_ivs: true,
        seed: 1,
    }
}

/// The same load by `xks-load`. The credential goes through the environment, where other users cannot list it.
fn command_line(args: &LoadArgs, plan: &Plan) -> String {
    let credential =
        ["SIGV4_ACCESS_KEY_ID", "SIGV4_SECRET_ACCESS_KEY"].map(|name| format!("{name}=\"${name}\" "));
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let mut line = credential.concat() + "xks-load";
    for (flag, value) in [
        ("host", args.host.clone()),
        ("uri-prefix", Some(args.uri_prefix.clone())),
        ("region", Some(args.region.clone())),
        ("key-id", args.key_id.first().cloned()),
        ("trust-ca", path(&args.trust_ca)),
        ("client-cert", path(&args.client_cert)),
        ("client-key", path(&args.client_key)),
        ("resolve", args.resolve.clone()),
        ("rate", plan.open.as_ref().map(|open| open.rate_per_sec.to_string())),
        ("duration-secs", Some(plan.duration.as_secs_f64().to_string())),
        ("warmup-secs", Some(plan.warmup.as_secs_f64().to_string())),
        ("max-requests", Some(plan.max_requests.to_string())),
        ("connections", Some(plan.connections.to_string())),
        ("mix", Some(MIX.to_owned())),
        ("plaintext-bytes", Some(PLAINTEXT_BYTES.to_string())),
        ("pool", Some(POOL.to_string())),
    ] {
        if let Some(value) = value {
            line.push_str(&format!(" --{flag} {}", quoted(&value)));
        }
    }
    if plan.open.is_none() {
        line.push_str(" --closed");
    }
    line + " --cdiv --check-ivs"
}

fn load_args(target: &Target) -> LoadArgs {
    let proxy = &target.proxy;
    LoadArgs {
        host: Some(proxy.host.clone()),
        uri_prefix: proxy.uri_path.trim_end_matches(xks_spec::path::VERSION_PATH).to_owned(),
        access_key_id: Some(proxy.access_key_id.clone()),
        secret_access_key: Some(proxy.secret_access_key.to_string()),
        region: proxy.region.clone(),
        key_id: vec![target.key_id.clone()],
        stores_file: None,
        key_id_pattern: None,
        trust_ca: target.args.trust_ca.clone(),
        client_cert: target.args.client_cert.clone(),
        client_key: target.args.client_key.clone(),
        resolve: Some(format!("{}={}", target.host, target.address)),
        target_pid: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use super::*;

    fn loaded() -> Looped {
        use xks_load::engine::Outcome;
        use xks_load::measure::Recorder;
        let recorder = Recorder::new(0).unwrap();
        let encrypts = recorder.latency.clone();
        let outcome = Outcome { recorder, ivs: None, span: Duration::ZERO, target: None, generator: None };
        Looped {
            summary: Summary::from(&outcome),
            encrypts,
            line: "xks-load".to_owned(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn too_few_answers_prove_nothing_but_a_repeated_iv_does() {
        let of = |reports: &[(usize, usize)]| {
            let all: Vec<_> = reports
                .iter()
                .map(|(checked, repeated)| IvReport { checked: *checked, repeated: *repeated, unchecked: 0 })
                .collect();
            uniqueness(&all.iter().collect::<Vec<_>>(), &loaded())
        };
        assert!(matches!(of(&[(100_000, 0)]), Outcome::Passed { .. }));
        assert!(matches!(of(&[(70_000, 0), (100_400, 0)]), Outcome::Passed { .. }));
        assert!(matches!(of(&[(70_000, 0), (99_999, 0)]), Outcome::Skipped { .. }));
        assert!(matches!(of(&[]), Outcome::Skipped { .. }));
        // Also where the loop that was long enough has none.
        assert!(matches!(of(&[(7, 1), (100_000, 0)]), Outcome::Failed { .. }));
    }

    #[test]
    fn the_line_has_the_whole_load_and_no_secret() {
        let args = LoadArgs {
            host: Some("xks.example.com:8443".to_owned()),
            uri_prefix: "/it's".to_owned(),
            access_key_id: Some("AKID".to_owned()),
            secret_access_key: Some("hush".to_owned()),
            region: "eu-west-3".to_owned(),
            key_id: vec!["a-key".to_owned()],
            stores_file: None,
            key_id_pattern: None,
            trust_ca: Some("/tmp/ca.pem".into()),
            client_cert: None,
            client_key: None,
            resolve: Some("xks.example.com=127.0.0.1:8443".to_owned()),
            target_pid: None,
        };
        let (open, closed) = (command_line(&args, &plan(true)), command_line(&args, &plan(false)));
        for part in [
            "SIGV4_SECRET_ACCESS_KEY=\"$SIGV4_SECRET_ACCESS_KEY\" xks-load --host 'xks.example.com:8443'",
            "--uri-prefix '/it'\\''s'",
            "--key-id 'a-key' --trust-ca '/tmp/ca.pem' --resolve 'xks.example.com=127.0.0.1:8443' --rate '1800'",
            "--connections '32'",
            "--cdiv",
        ] {
            assert!(open.contains(part), "{part}: {open}");
        }
        assert!(!open.contains("hush") && !open.contains("--closed"), "{open}");
        assert!(closed.contains("--closed") && !closed.contains("--rate"), "{closed}");
    }
}
