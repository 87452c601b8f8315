//! More than quota, token or processor allow: what is served stays, what is refused is refused soon, and who looks is
//! answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xks_harness::proxy::main_store;
use xks_harness::{Faults, Http, Proxy, Setup, XksRequest};
use xks_load::report::Summary;

use super::Part;
use crate::machine::{Holdings, KIB, MIB};
use crate::rig::{CONNECTIONS, Fault, Load, Rig, run, target_args};
use crate::statistics::{at_the_end, growth};
use crate::table::Row;

/// Offered load, in capacities.
const FACTORS: [f64; 3] = [2.0, 5.0, 10.0];
/// The same where the processor is the limit: what a generator on one core reaches.
const CPU_FACTORS: [f64; 2] = [1.5, 2.0];
/// Enough that no request waits for a connection while the processor is not the limit.
const OVERLOADING_CONNECTIONS: u32 = 800;
/// More than the default `max_in_flight` of 1,024, so that the cap could refuse what the processor cannot do.
const CPU_CONNECTIONS: u32 = 1600;
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
/// What a connection itself may hold by the budget of the part `memory`.
const CONNECTION_MIB: f64 = 24.0 * KIB / MIB;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    // One that fails costs no other its figures.
    let parts = [by_quota(rig), by_token(rig)];
    let failed = |fault: Fault| vec![Row::failed(Part::Overload.name(), &fault.to_string())];
    Ok(parts.into_iter().flat_map(|rows| rows.unwrap_or_else(failed)).collect())
}

/// A token as fast as SoftHSM2 on the proxy's own core: the processor is all that there is too little of.
pub(super) fn measure_cpu(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let proxy = rig.start(&rig.setup(), rig.token(1));
    let bound = Bound::new(Part::OverloadCpu, "CPU", &CPU_FACTORS, CPU_CONNECTIONS, proxy)?;
    let peak = bound.peak(rig, CONNECTIONS)?;
    overload(rig, &bound, peak)
}

/// What limits a proxy, and where that leaves it before the first load.
struct Bound<'a> {
    part: Part,
    name: &'static str,
    factors: &'a [f64],
    connections: u32,
    proxy: Proxy,
    /// Resident memory before anything was asked.
    base_mib: f64,
}

impl<'a> Bound<'a> {
    fn new(
        part: Part,
        name: &'static str,
        factors: &'a [f64],
        connections: u32,
        proxy: Proxy,
    ) -> Result<Self, Fault> {
        let base_mib = Holdings::of(proxy.pid()).ok_or("the proxy has ended")?.rss_bytes / MIB;
        Ok(Self { part, name, factors, connections, proxy, base_mib })
    }

    /// Right answers a second of a closed loop.
    fn peak(&self, rig: &Rig, connections: u32) -> Result<f64, Fault> {
        let load = Load { connections, ..Load::closed("encrypt=1", rig.duration()) };
        Ok(run(&load.on(&target_args(&self.proxy, 1, None))?)?.ok_per_sec)
    }
}

fn by_quota(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let quota = format!("requests_per_second = {QUOTA_PER_SEC}");
    let proxy = rig.start(&Setup { quota, ..rig.setup() }, rig.token(1));
    overload(
        rig,
        &Bound::new(Part::Overload, "quota", &FACTORS, OVERLOADING_CONNECTIONS, proxy)?,
        QUOTA_PER_SEC,
    )
}

/// Two sessions of 5 ms a call; the quota is out of the way.
fn by_token(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let faults = Faults::new();
    let setup = faults.between(Setup { token: "sessions = 2".to_owned(), ..rig.setup() });
    let bound = Bound::new(
        Part::Overload,
        "token",
        &FACTORS,
        OVERLOADING_CONNECTIONS,
        rig.start(&setup, rig.token(1)),
    )?;
    faults.set("C_Encrypt delay_ms=5");
    let peak = bound.peak(rig, 4)?;
    overload(rig, &bound, peak)
}

/// What was seen by those who look.
#[derive(Default)]
struct Seen {
    health_ms: f64,
    admin_ms: f64,
    failed: Option<String>,
    rss_mib: Vec<f64>,
}

fn overload(rig: &Rig, bound: &Bound<'_>, peak: f64) -> Result<Vec<Row>, Fault> {
    let Bound { name, proxy, .. } = bound;
    let target = target_args(proxy, 1, None);
    let (mut worst_goodput, mut worst_refusal_ms, mut others) = (f64::INFINITY, 0.0_f64, 0_u64);
    let mut worst_in_time = f64::INFINITY;
    let (mut notes, mut seen, mut scheduled) = (Vec::new(), Seen::default(), 0);
    for factor in bound.factors {
        let load =
            Load { connections: bound.connections, ..Load::open("encrypt=1", factor * peak, rig.duration()) };
        let engine = load.on(&target)?;
        let is_over = AtomicBool::new(false);
        let (summary, looked) = std::thread::scope(|scope| {
            let looking = scope.spawn(|| look(proxy, &is_over));
            let summary = run(&engine);
            is_over.store(true, Ordering::Relaxed);
            (summary, looking.join())
        });
        let (summary, looked) = (summary?, looked.map_err(|_| "health or admin listener gave no answer")??);
        let Summary { ok, failed, dropped, refused_ms, past_kms_timeout, .. } = &summary;
        // Where nothing was refused as too much, nothing was refused in time.
        let (refused, refusal_ms) = refused_ms.as_ref().map_or((0, f64::INFINITY), |ms| (ms.count, ms.p99));
        let goodput = summary.ok_per_sec / peak;
        // Whatever ended too late counts as a right answer that came too late: what is refused late helps nobody either.
        let in_time = ok.saturating_sub(*past_kms_timeout) as f64 / (*ok).max(1) as f64;
        worst_in_time = worst_in_time.min(goodput * in_time);
        worst_goodput = worst_goodput.min(goodput);
        worst_refusal_ms = worst_refusal_ms.max(refusal_ms);
        others += failed + dropped - refused;
        scheduled += summary.scheduled;
        let kinds: Vec<_> =
            summary.failures.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        let served = summary.operations_ms.values().next();
        notes.push(format!(
            "{factor}×: {ok} served ({:.0} %), median {:.0} ms, p99 {:.0} ms, {past_kms_timeout} ends after 250 ms; {}",
            100.0 * goodput,
            served.map_or(f64::NAN, |served| served.p50),
            served.map_or(f64::NAN, |served| served.p99),
            kinds.join(", ")
        ));
        seen.health_ms = seen.health_ms.max(looked.health_ms);
        seen.admin_ms = seen.admin_ms.max(looked.admin_ms);
        seen.failed = seen.failed.or(looked.failed);
        // Of the last and highest load.
        seen.rss_mib = looked.rss_mib;
    }
    if let Some(failed) = &seen.failed {
        return Err(format!("{name}-bound: {failed}").into());
    }
    for reason in ["store_quota", "in_flight", "token"] {
        let series = format!(r#"xks_throttled_total{{reason="{reason}",store="main"}}"#);
        let refused = rig.wait(proxy.metric(&series));
        if refused > 0.0 {
            notes.push(format!("{refused:.0} in all refused by {reason}"));
        }
    }
    let factors: Vec<_> = bound.factors.iter().map(|factor| format!("{factor}×")).collect();
    let (factors, last) = (factors.join(", "), factors.last().cloned().unwrap_or_default());
    let growth_since_start = at_the_end(&seen.rss_mib) - bound.base_mib;
    let row = |figure: &str, value, unit| {
        Row::shown(bound.part.name(), format!("{name}-bound: {figure}"), value, unit)
    };
    Ok(vec![
        row(&format!("goodput at {factors}, of the peak, the least"), worst_goodput, "")
            .at_least(0.9)
            .noted(format!("peak {peak:.0}/s; {}", notes.join("; "))),
        row("the same of answers within KMS's 250 ms", worst_in_time, "").at_least(0.9),
        row("p99 until ThrottlingException, the most", worst_refusal_ms, "ms").at_most(20.0),
        row("share of requests with another end", others as f64 / scheduled.max(1) as f64, "").at_most(0.001),
        row("GetHealthStatus, the slowest", seen.health_ms, "ms").at_most(HEALTH_BOUND_MS),
        row("/readyz and /metrics, the slowest", seen.admin_ms, "ms").at_most(ADMIN_BOUND_MS),
        row(&format!("growth of memory at {last}"), growth(&seen.rss_mib), "MiB").at_most(FLAT_MIB),
        row(
            &format!("memory at the end of {last} above that before the first load"),
            growth_since_start,
            "MiB",
        )
        .at_most(f64::from(bound.connections) * CONNECTION_MIB + FLAT_MIB)
        .noted(format!("from {:.1} MiB; {} connections", bound.base_mib, bound.connections)),
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
