//! More than quota or token allow: what is served stays, what is refused is refused soon, and who looks is answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xks_harness::proxy::main_store;
use xks_harness::{Faults, Http, Proxy, Setup, XksRequest};
use xks_load::report::Summary;

use super::Part;
use crate::machine::{Holdings, MIB};
use crate::rig::{Fault, Load, Rig, run, target_args};
use crate::statistics::growth;
use crate::table::Row;

/// Offered load, in capacities.
const FACTORS: [f64; 3] = [2.0, 5.0, 10.0];
/// Enough that no request waits for a connection, however long the answers take.
const CONNECTIONS: u32 = 800;
/// What the quota-bound proxy may serve.
const QUOTA_PER_SEC: f64 = 500.0;
/// Between two looks at health, admin listener and memory; health has 20 a second.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// AWS KMS gives up on a health request after this.
const HEALTH_BOUND_MS: f64 = 250.0;
/// What an orchestrator's probe waits by default.
const ADMIN_BOUND_MS: f64 = 1000.0;
/// Allocations that come and go with the requests in flight.
const FLAT_MIB: f64 = 2.0;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let mut rows = by_quota(rig)?;
    rows.extend(by_token(rig)?);
    Ok(rows)
}

fn by_quota(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let quota = format!("requests_per_second = {QUOTA_PER_SEC}");
    let proxy = rig.start(&Setup { quota, ..rig.setup() }, rig.token(1));
    overload(rig, "quota", &proxy, QUOTA_PER_SEC)
}

/// Two sessions of 5 ms a call; the quota is out of the way.
fn by_token(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let faults = Faults::new();
    let setup = faults.between(Setup { token: "sessions = 2".to_owned(), ..rig.setup() });
    let proxy = rig.start(&setup, rig.token(1));
    faults.set("C_Encrypt delay_ms=5");
    let load = Load { connections: 4, ..Load::closed("encrypt=1", rig.duration()) };
    let peak = run(&load.on(&target_args(&proxy, 1, None))?)?.ok_per_sec;
    overload(rig, "token", &proxy, peak)
}

/// What was seen by those who look.
#[derive(Default)]
struct Seen {
    health_ms: f64,
    admin_ms: f64,
    failed: Option<String>,
    rss_mib: Vec<f64>,
}

fn overload(rig: &Rig, bound: &str, proxy: &Proxy, peak: f64) -> Result<Vec<Row>, Fault> {
    let target = target_args(proxy, 1, None);
    let (mut worst_goodput, mut worst_refusal_ms, mut others) = (f64::INFINITY, 0.0_f64, 0_u64);
    let (mut notes, mut seen, mut scheduled) = (Vec::new(), Seen::default(), 0);
    for factor in FACTORS {
        let load =
            Load { connections: CONNECTIONS, ..Load::open("encrypt=1", factor * peak, rig.duration()) };
        let engine = load.on(&target)?;
        let is_over = AtomicBool::new(false);
        let (summary, looked) = std::thread::scope(|scope| {
            let looking = scope.spawn(|| look(proxy, &is_over));
            let summary = run(&engine);
            is_over.store(true, Ordering::Relaxed);
            (summary, looking.join())
        });
        let (summary, looked) = (summary?, looked.map_err(|_| "health or admin listener gave no answer")??);
        let Summary { ok, failed, dropped, refused_ms, .. } = &summary;
        // Where nothing was refused as too much, nothing was refused in time.
        let (refused, refusal_ms) = refused_ms.as_ref().map_or((0, f64::INFINITY), |ms| (ms.count, ms.p99));
        // By the time of the schedule: what is answered late, after it, is no goodput.
        let goodput = summary.ok_per_sec / peak;
        worst_goodput = worst_goodput.min(goodput);
        worst_refusal_ms = worst_refusal_ms.max(refusal_ms);
        others += failed + dropped - refused;
        scheduled += summary.scheduled;
        let kinds: Vec<_> =
            summary.failures.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        notes.push(format!(
            "{factor}×: {ok} served ({:.0} %), p99 {:.0} ms; {}",
            100.0 * goodput,
            summary.operations_ms.values().next().map_or(f64::NAN, |served| served.p99),
            kinds.join(", ")
        ));
        seen.health_ms = seen.health_ms.max(looked.health_ms);
        seen.admin_ms = seen.admin_ms.max(looked.admin_ms);
        seen.failed = seen.failed.or(looked.failed);
        // Of the last and highest load.
        seen.rss_mib = looked.rss_mib;
    }
    if let Some(failed) = &seen.failed {
        return Err(format!("{bound}: {failed}").into());
    }
    let row = |figure: &str, value, unit| {
        Row::shown(Part::Overload.name(), format!("{bound}-bound: {figure}"), value, unit)
    };
    Ok(vec![
        row("goodput at 2×, 5×, 10×, of the peak, the least", worst_goodput, "")
            .at_least(0.9)
            .noted(format!("peak {peak:.0}/s; {}", notes.join("; "))),
        row("p99 until ThrottlingException, the most", worst_refusal_ms, "ms").at_most(20.0),
        row("share of requests with another end", others as f64 / scheduled.max(1) as f64, "").at_most(0.001),
        row("GetHealthStatus, the slowest", seen.health_ms, "ms").at_most(HEALTH_BOUND_MS),
        row("/readyz and /metrics, the slowest", seen.admin_ms, "ms").at_most(ADMIN_BOUND_MS),
        row("growth of memory at 10×", growth(&seen.rss_mib), "MiB").at_most(FLAT_MIB),
    ])
}

/// Asks health and admin listener, as KMS and an orchestrator do, until it is over.
fn look(proxy: &Proxy, is_over: &AtomicBool) -> Result<Seen, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut seen = Seen::default();
        let mut connection = proxy.connect(Http::One).await;
        while !is_over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let health = connection.send(&XksRequest::health(&main_store())).await;
            seen.health_ms = seen.health_ms.max(millis_since(began));
            if health.status != 200 {
                seen.failed = Some(format!("GetHealthStatus answered {}", health.status));
            }
            for path in ["/readyz", "/metrics"] {
                let began = Instant::now();
                let (status, _) = proxy.admin(path).await;
                seen.admin_ms = seen.admin_ms.max(millis_since(began));
                if status != 200 {
                    seen.failed = Some(format!("{path} answered {status}"));
                }
            }
            seen.rss_mib.extend(Holdings::of(proxy.pid()).map(|holdings| holdings.rss_bytes / MIB));
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(seen)
    })
}

fn millis_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}
