//! The profile `load`: 100,000 encrypts at KMS's default quota, by the open-loop generator `xks-load`.

use std::time::Duration;

use xks_load::client::HttpVersion;
use xks_load::engine::{Engine, OpenLoop, Plan};
use xks_load::report::Summary;
use xks_load::schedule::Arrivals;
use xks_load::target::TargetArgs as LoadArgs;
use xks_load::workload::WorkloadSettings;
use xks_spec::limits::KMS_TIMEOUT;

use crate::case::{Level, Outcome, Section};
use crate::run::CaseResult;
use crate::target::Target;

/// KMS's default quota of an external key store (section GetHealthStatus).
const REQUESTS_PER_SEC: f64 = 1800.0;
/// Encrypts among which no IV may repeat.
const ENCRYPTS: u64 = 100_000;
/// A busy client machine may lose a few of a second's instants.
const LEAST_RATE_SHARE: f64 = 0.99;

type Fault = Box<dyn std::error::Error>;

/// Runs the load and judges it.
///
/// # Errors
/// When the load cannot be made at all.
pub async fn run(target: &Target) -> Result<Vec<CaseResult>, Fault> {
    let args = load_args(target);
    let workload = WorkloadSettings {
        mix: "encrypt=1,decrypt=0,metadata=0,health=0".parse()?,
        plaintext_bytes: 32,
        aad_bytes: 0,
        cdiv: true,
        pool: 256,
        seed: 1,
        principal_arn: "arn:aws:iam::123456789012:user/Alice".to_owned(),
        kms_key_arn: "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000".to_owned(),
    };
    let plan = plan();
    let summary = tokio::task::spawn_blocking(move || -> Result<Summary, String> {
        let target = args.target().map_err(|error| error.to_string())?;
        let engine = Engine::prepare(&target, &workload, plan).map_err(|error| error.to_string())?;
        Ok(Summary::from(&engine.run().map_err(|error| error.to_string())?))
    })
    .await??;
    let repeated = summary.ivs.as_ref().map_or(0, |ivs| ivs.repeated);
    let failed = summary.failed + summary.dropped;
    let p99 = summary.latency_ms.p99;
    let limit_ms = KMS_TIMEOUT.as_secs_f64() * 1000.0;
    let described = format!("{} right answers, {:.0} a second", summary.ok, summary.ok_per_sec);
    Ok(vec![
        judged(
            "iv-uniqueness",
            Level::Must,
            "no IV repeats under one key, among 50,000 answers at least",
            repeated == 0 && summary.ok >= ENCRYPTS / 2,
            &format!("{repeated} repeated among {}", summary.ok),
        ),
        judged(
            "sustained",
            Level::Should,
            "1800 encrypts a second without a failure",
            failed == 0 && summary.ok_per_sec >= REQUESTS_PER_SEC * LEAST_RATE_SHARE,
            &format!("{described}, {failed} failed: {:?}", summary.failures),
        ),
        judged(
            "p99",
            Level::Should,
            "99 of 100 answers within 250 ms of their instant",
            p99 <= limit_ms,
            &format!(
                "p50 {:.1} ms, p99 {p99:.1} ms, p99.9 {:.1} ms",
                summary.latency_ms.p50, summary.latency_ms.p999
            ),
        ),
    ])
}

fn judged(name: &str, level: Level, expects: &str, holds: bool, seen: &str) -> CaseResult {
    let outcome = if holds {
        Outcome::Passed { seen: seen.to_owned() }
    } else {
        let request = "xks-load --rate 1800 --mix encrypt=1 --check-ivs".to_owned();
        Outcome::Failed {
            request,
            answer: String::new(),
            expected: expects.to_owned(),
            seen: seen.to_owned(),
        }
    };
    CaseResult {
        id: format!("load.{name}"),
        section: Section::Load,
        level,
        requirements: vec!["ENC-TIME-001"],
        source: "NIST SP 800-38D section 8; KMS quota of 1800 requests a second",
        does: "100,000 encrypts in an open loop of 1800 a second".to_owned(),
        expects: expects.to_owned(),
        took_ms: 0,
        outcome,
    }
}

fn plan() -> Plan {
    Plan {
        open: Some(OpenLoop {
            arrivals: Arrivals::Fixed,
            rate_per_sec: REQUESTS_PER_SEC,
            new_connections_per_sec: 0.0,
            max_outstanding: 20_000,
        }),
        http: HttpVersion::Http1,
        tls_resumption: false,
        warmup: Duration::from_secs(2),
        duration: Duration::from_secs_f64(ENCRYPTS as f64 / REQUESTS_PER_SEC),
        max_requests: ENCRYPTS,
        connections: 32,
        streams: 1,
        threads: 1,
        timeout: Duration::from_secs(10),
        presign: None,
        thorough_every: 10,
        check_ivs: true,
        seed: 1,
    }
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
