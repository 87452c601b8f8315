//! More than quota, token or processor allow: what is served stays, what is refused is refused soon, and who looks is
//! answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xks_harness::proxy::main_store;
use xks_harness::{Faults, Http, Proxy, Setup, XksRequest};
use xks_load::report::Summary;

use super::Part;
use crate::machine::{Holdings, KIB, MIB, become_observer};
use crate::rig::{CONNECTIONS, Fault, Load, Rig, run, target_args};
use crate::statistics::{at_the_end, growth};
use crate::table::{Row, Verdict};

/// Offered load, in capacities.
const FACTORS: [f64; 3] = [2.0, 5.0, 10.0];
/// The same where the processor is the limit. The generator may be the limit at the highest: then the row says so.
const CPU_FACTORS: [f64; 4] = [1.5, 2.0, 5.0, 10.0];
/// Longest load where the processor is the limit, since ten times its peak are some hundred thousand requests a second. Each
/// ends at the latest with its requests' timeout of 20 s.
const CPU_LONGEST: Duration = Duration::from_secs(5);
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
/// A generator that took as much of a core, until the last answer, had no time left for more.
const FULL_CORES: f64 = 0.95;
/// One whose requests left later than this, a twelfth of what KMS waits, was late itself.
const LATE_MS: f64 = 20.0;
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
    let bound = Bound { longest: CPU_LONGEST, ..bound };
    let peak = bound.peak(rig, CONNECTIONS)?;
    overload(rig, &bound, peak)
}

/// What limits a proxy, and where that leaves it before the first load.
struct Bound<'a> {
    part: Part,
    name: &'static str,
    factors: &'a [f64],
    connections: u32,
    /// Longest load.
    longest: Duration,
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
        Ok(Self { part, name, factors, connections, longest: Duration::MAX, proxy, base_mib })
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
    /// Why the look had no priority.
    without_priority: Option<String>,
}

/// What one load found.
struct Found {
    factor: f64,
    summary: Summary,
    seen: Seen,
}

impl Found {
    /// Right answers a second, in peaks.
    fn goodput(&self, peak: f64) -> f64 {
        self.summary.ok_per_sec / peak
    }

    /// The same of those within KMS's time. Whatever ended too late counts as a right answer that came too late: what is
    /// refused late helps nobody either.
    fn goodput_in_time(&self, peak: f64) -> f64 {
        let Summary { ok, past_kms_timeout, .. } = self.summary;
        self.goodput(peak) * ok.saturating_sub(past_kms_timeout) as f64 / ok.max(1) as f64
    }

    /// Refusals, and the p99 until one: where nothing was refused as too much, nothing was refused in time.
    fn refusals(&self) -> (u64, f64) {
        self.summary.refused_ms.as_ref().map_or((0, f64::INFINITY), |ms| (ms.count, ms.p99))
    }

    /// Share of requests that were neither answered right nor refused as too much.
    fn others(&self) -> f64 {
        let Summary { failed, dropped, scheduled, .. } = self.summary;
        (failed + dropped - self.refusals().0) as f64 / scheduled.max(1) as f64
    }

    fn generator_cores(&self) -> f64 {
        self.summary.generator_process.as_ref().map_or(f64::NAN, |process| process.cores)
    }

    fn target_cores(&self) -> f64 {
        self.summary.target_process.as_ref().map_or(f64::NAN, |process| process.cores)
    }

    /// How late the generator's requests left, by the 99th percentile.
    fn lag_ms(&self) -> f64 {
        self.summary.dispatch_lag_ms.as_ref().map_or(f64::NAN, |lag| lag.p99)
    }

    /// Whether the figures are the proxy's and not the generator's.
    fn generator_kept_up(&self) -> bool {
        kept_up(self.generator_cores(), self.lag_ms())
    }

    fn note(&self, peak: f64) -> String {
        let Summary { ok, dropped, past_kms_timeout, failures, operations_ms, .. } = &self.summary;
        let kinds = failures.iter().map(|(kind, count)| format!("{count} × {kind}"));
        let dropped = (*dropped > 0).then(|| format!("{dropped} not sent, with 100,000 outstanding"));
        let kinds: String = kinds.chain(dropped).map(|kind| format!(", {kind}")).collect();
        let served = operations_ms.values().next();
        format!(
            "{}×: {ok} served ({:.0} %), median {:.0} ms, p99 {:.0} ms, {past_kms_timeout} ends after 250 ms{kinds}",
            self.factor,
            100.0 * self.goodput(peak),
            served.map_or(f64::NAN, |served| served.p50),
            served.map_or(f64::NAN, |served| served.p99),
        )
    }
}

/// Nothing is known of a generator without figures.
fn kept_up(generator_cores: f64, lag_ms: f64) -> bool {
    generator_cores < FULL_CORES && lag_ms <= LATE_MS
}

fn overload(rig: &Rig, bound: &Bound<'_>, peak: f64) -> Result<Vec<Row>, Fault> {
    let found: Vec<_> =
        bound.factors.iter().map(|factor| load(rig, bound, *factor, peak)).collect::<Result<_, _>>()?;
    let mut notes: Vec<_> = found.iter().map(|load| load.note(peak)).collect();
    for reason in ["store_quota", "in_flight", "token"] {
        let series = format!(r#"xks_throttled_total{{reason="{reason}",store="main"}}"#);
        let refused = rig.wait(bound.proxy.metric(&series));
        if refused > 0.0 {
            notes.push(format!("{refused:.0} in all refused by {reason}"));
        }
    }
    let factors: Vec<_> = bound.factors.iter().map(|factor| format!("{factor}×")).collect();
    let (factors, last) = (factors.join(", "), factors.last().cloned().unwrap_or_default());
    // Memory is that of the highest load that there was.
    let highest = found.iter().rfind(|load| load.generator_kept_up()).or(found.last()).ok_or("no load")?;
    let most = |value: &dyn Fn(&Found) -> f64| worst(&found, value, f64::max);
    let least = |value: &dyn Fn(&Found) -> f64| worst(&found, value, f64::min);
    let row = |figure: &str, value, unit| {
        Row::shown(bound.part.name(), format!("{}-bound: {figure}", bound.name), value, unit)
    };
    let rows = [
        row(&format!("goodput at {factors}, of the peak, the least"), least(&|load| load.goodput(peak)), "")
            .at_least(0.9)
            .noted(format!("peak {peak:.0}/s; {}", notes.join("; "))),
        row("the same of answers within KMS's 250 ms", least(&|load| load.goodput_in_time(peak)), "")
            .at_least(0.9),
        row("p99 until ThrottlingException, the most", most(&|load| load.refusals().1), "ms").at_most(20.0),
        row("share of requests with another end, the most", most(&Found::others), "").at_most(0.001),
        row("GetHealthStatus, the slowest", most(&|load| load.seen.health_ms), "ms").at_most(HEALTH_BOUND_MS),
        row("/readyz and /metrics, the slowest", most(&|load| load.seen.admin_ms), "ms")
            .at_most(ADMIN_BOUND_MS),
        row(&format!("growth of memory at {last}"), growth(&highest.seen.rss_mib), "MiB").at_most(FLAT_MIB),
        row(
            &format!("memory at the end of {last} above that before the first load"),
            at_the_end(&highest.seen.rss_mib) - bound.base_mib,
            "MiB",
        )
        .at_most(f64::from(bound.connections) * CONNECTION_MIB + FLAT_MIB)
        .noted(format!("from {:.1} MiB; {} connections", bound.base_mib, bound.connections)),
    ];
    let kept_up: Vec<_> = found.iter().map(Found::generator_kept_up).collect();
    let note = generator_note(&found);
    Ok(rows.into_iter().map(|row| decided(row, &kept_up).also_noted(&note)).collect())
}

/// One load, with someone who looks meanwhile.
fn load(rig: &Rig, bound: &Bound<'_>, factor: f64, peak: f64) -> Result<Found, Fault> {
    let duration = rig.duration().min(bound.longest);
    let load = Load { connections: bound.connections, ..Load::open("encrypt=1", factor * peak, duration) };
    let engine = load.on(&target_args(&bound.proxy, 1, None))?;
    let is_over = AtomicBool::new(false);
    let (summary, seen) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| look(rig, &bound.proxy, &is_over));
        let summary = run(&engine);
        is_over.store(true, Ordering::Relaxed);
        (summary, looking.join())
    });
    let (summary, seen) = (summary?, seen.map_err(|_| "health or admin listener gave no answer")??);
    if let Some(failed) = &seen.failed {
        return Err(format!("{}-bound, {factor}×: {failed}", bound.name).into());
    }
    Ok(Found { factor, summary, seen })
}

/// The worst of the loads that the generator kept up with; of all, where it did so with none.
fn worst(found: &[Found], value: &dyn Fn(&Found) -> f64, worse: fn(f64, f64) -> f64) -> f64 {
    let none = !found.iter().any(Found::generator_kept_up);
    let counts = found.iter().filter(|load| none || load.generator_kept_up());
    counts.map(value).reduce(worse).unwrap_or(f64::NAN)
}

/// A budget that is missed at a load with which the generator kept up is missed. It is met where the generator kept up with
/// every load.
fn decided(row: Row, kept_up: &[bool]) -> Row {
    let all = kept_up.iter().all(|kept_up| *kept_up);
    let none = !kept_up.contains(&true);
    if none || (!all && row.verdict == Verdict::Met) { row.undecided() } else { row }
}

/// What the generator had to do, so that a reader can tell its figures from the proxy's.
fn generator_note(found: &[Found]) -> String {
    let each = |load: &Found| {
        format!(
            "{}× {:.2} of a core and {:.1} ms late{}, proxy {:.2}",
            load.factor,
            load.generator_cores(),
            load.lag_ms(),
            if load.generator_kept_up() { "" } else { " (full or late: not counted)" },
            load.target_cores(),
        )
    };
    let loads: Vec<_> = found.iter().map(each).collect();
    let without = found.iter().find_map(|load| load.seen.without_priority.as_ref());
    let without = without.map_or(String::new(), |reason| format!("; who looked had no priority: {reason}"));
    format!("generator at {}{without}", loads.join("; "))
}

/// Asks health and admin listener, as KMS and an orchestrator do, until it is over.
fn look(rig: &Rig, proxy: &Proxy, is_over: &AtomicBool) -> Result<Seen, Fault> {
    let without_priority = become_observer(rig.observer_cpu).err().map(|error| error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut seen = Seen { without_priority, ..Seen::default() };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_is_full_or_late_did_not_keep_up() {
        assert!(kept_up(0.94, 20.0));
        assert!(!kept_up(0.95, 0.1) && !kept_up(0.1, 20.1));
        assert!(!kept_up(f64::NAN, 0.1) && !kept_up(0.1, f64::NAN));
    }

    #[test]
    fn only_loads_that_the_generator_kept_up_with_decide() {
        let row = |measured: f64| Row::shown("part", "figure", measured, "").at_most(2.0);
        let verdict = |measured, kept_up: &[bool]| decided(row(measured), kept_up).verdict;
        assert_eq!(verdict(1.0, &[true, true]), Verdict::Met);
        assert_eq!(verdict(1.0, &[true, false]), Verdict::Undecided);
        assert_eq!(verdict(3.0, &[true, false]), Verdict::Missed);
        assert_eq!(verdict(1.0, &[false, false]), Verdict::Undecided);
        assert_eq!(verdict(3.0, &[false, false]), Verdict::Undecided);
    }
}
