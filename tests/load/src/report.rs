//! What a run found, as numbers for a program and as a table for a reader.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::check::IvReport;
use crate::engine::{Outcome, ProcessUse};
use crate::measure::{Durations, Second};
use crate::workload::Operation;

/// Durations in milliseconds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    /// How many were recorded.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Maximum.
    pub max: f64,
}

impl From<&Durations> for Quantiles {
    fn from(durations: &Durations) -> Self {
        Self {
            count: durations.count(),
            mean: durations.mean_ms(),
            p50: durations.quantile_ms(0.5),
            p90: durations.quantile_ms(0.9),
            p99: durations.quantile_ms(0.99),
            p999: durations.quantile_ms(0.999),
            max: durations.max_ms(),
        }
    }
}

/// What a process cost during the measured phase. CPU time has a resolution of 10 ms in all.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessReport {
    /// CPU time in user mode per finished request, in microseconds.
    pub user_us_per_request: f64,
    /// CPU time in the kernel per finished request, in microseconds.
    pub system_us_per_request: f64,
    /// CPU time relative to one core.
    pub cores: f64,
    /// Resident memory before the phase.
    pub rss_before_bytes: u64,
    /// Resident memory after the phase.
    pub rss_after_bytes: u64,
    /// Highest resident memory since the process began.
    pub peak_rss_bytes: u64,
    /// Threads after the phase, when the generator's own have ended.
    pub threads: u64,
}

impl ProcessReport {
    fn new(used: &ProcessUse, requests: u64) -> Self {
        let user = used.after.user.saturating_sub(used.before.user).as_secs_f64();
        let system = used.after.system.saturating_sub(used.before.system).as_secs_f64();
        let requests = requests.max(1) as f64;
        Self {
            user_us_per_request: user * 1e6 / requests,
            system_us_per_request: system * 1e6 / requests,
            cores: (user + system) / used.wall.as_secs_f64().max(1e-9),
            rss_before_bytes: used.before.rss_bytes,
            rss_after_bytes: used.after.rss_bytes,
            peak_rss_bytes: used.after.peak_rss_bytes,
            threads: used.after.threads,
        }
    }

    /// User and system time per finished request, in microseconds.
    pub fn cpu_us_per_request(&self) -> f64 {
        self.user_us_per_request + self.system_us_per_request
    }
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Requests scheduled in the measured phase.
    pub scheduled: u64,
    /// Right answers.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests not sent because too many were outstanding.
    pub dropped: u64,
    /// Requests that ended later than 250 ms after their scheduled instant, when AWS KMS would have given up.
    pub past_kms_timeout: u64,
    /// Kept connections that the target had closed and that were opened again.
    pub reconnects: u64,
    /// Time over which the rates count.
    pub span_secs: f64,
    /// Right answers a second.
    pub ok_per_sec: f64,
    /// Latency from the scheduled instant, whatever the request's end.
    pub latency_ms: Quantiles,
    /// Time from the instant a request was handed to its connection.
    pub service_ms: Quantiles,
    /// Latency of right answers by operation.
    pub operations_ms: BTreeMap<Operation, Quantiles>,
    /// Latency of requests that opened a connection of their own.
    pub on_new_connection_ms: Option<Quantiles>,
    /// Latency of requests that the target answered with ThrottlingException.
    pub refused_ms: Option<Quantiles>,
    /// Time to open a connection during the measured phase.
    pub handshake_ms: Option<Quantiles>,
    /// How late the generator itself dispatched, in an open loop.
    pub dispatch_lag_ms: Option<Quantiles>,
    /// Failed requests by kind.
    pub failures: BTreeMap<String, u64>,
    /// The search for repeated IVs, where asked for.
    pub ivs: Option<IvReport>,
    /// The target's process, where known.
    pub target_process: Option<ProcessReport>,
    /// This process.
    pub generator_process: Option<ProcessReport>,
    /// The timeline, a second an entry.
    pub seconds: Vec<Second>,
}

impl From<&Outcome> for Summary {
    fn from(outcome: &Outcome) -> Self {
        let recorder = &outcome.recorder;
        let used = |durations: &Durations| (durations.count() > 0).then(|| Quantiles::from(durations));
        let process = |used: &ProcessUse| ProcessReport::new(used, recorder.latency.count());
        let span_secs = outcome.span.as_secs_f64();
        Self {
            scheduled: recorder.scheduled,
            ok: recorder.ok,
            failed: recorder.failed(),
            dropped: recorder.dropped,
            past_kms_timeout: recorder.past_kms_timeout,
            reconnects: recorder.reconnects,
            span_secs,
            ok_per_sec: recorder.ok as f64 / span_secs.max(1e-9),
            latency_ms: (&recorder.latency).into(),
            service_ms: (&recorder.service).into(),
            operations_ms: Operation::ALL
                .into_iter()
                .filter_map(|operation| Some((operation, used(&recorder.by_operation[operation as usize])?)))
                .collect(),
            on_new_connection_ms: used(&recorder.on_new_connection),
            refused_ms: used(&recorder.refused),
            handshake_ms: used(&recorder.handshake),
            dispatch_lag_ms: used(&recorder.dispatch_lag),
            failures: recorder.failures.clone(),
            ivs: outcome.ivs.clone(),
            target_process: outcome.target.as_ref().map(process),
            generator_process: outcome.generator.as_ref().map(process),
            seconds: recorder.seconds.clone(),
        }
    }
}

/// What a run must not exceed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Failures and drops are tolerated.
    pub allow_errors: bool,
    /// Highest 99th percentile of the latency, in milliseconds.
    pub max_p99_ms: Option<f64>,
    /// Lowest rate of right answers, as a share of the scheduled rate.
    pub min_rate_share: Option<f64>,
}

impl Summary {
    /// Every limit that this run broke, in words. `rate_per_sec` is the scheduled rate of an open loop.
    pub fn breaches(&self, limits: &Limits, rate_per_sec: Option<f64>) -> Vec<String> {
        let mut breaches = Vec::new();
        let mut breach = |broken: bool, text: String| {
            if broken {
                breaches.push(text);
            }
        };
        let bad = self.failed + self.dropped;
        breach(bad > 0 && !limits.allow_errors, format!("{bad} requests failed or were dropped"));
        breach(self.ok == 0, "no request succeeded".to_owned());
        // No tolerance: under GCM a repeated IV gives the key's plaintexts away.
        let repeated = self.ivs.as_ref().map_or(0, |ivs| ivs.repeated);
        breach(repeated > 0, format!("{repeated} IVs were repeated"));
        if let Some(max) = limits.max_p99_ms {
            let p99 = self.latency_ms.p99;
            breach(p99 > max, format!("p99 latency {p99:.3} ms is over {max} ms"));
        }
        if let (Some(min), Some(rate)) = (limits.min_rate_share, rate_per_sec) {
            let share = self.ok_per_sec / rate;
            breach(share < min, format!("achieved {share:.4} of the scheduled rate, under {min}"));
        }
        breaches
    }

    /// The summary as text of several lines.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "requests  {} scheduled, {} ok, {} failed, {} dropped; {:.1} ok/s over {:.2} s",
            self.scheduled, self.ok, self.failed, self.dropped, self.ok_per_sec, self.span_secs
        )?;
        writeln!(
            out,
            "\n{:<28}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "milliseconds", "count", "mean", "p50", "p90", "p99", "p99.9", "max"
        )?;
        write_row(out, "latency from schedule", &self.latency_ms)?;
        for (operation, quantiles) in &self.operations_ms {
            write_row(out, &format!("  {}, ok", operation.name()), quantiles)?;
        }
        if let Some(quantiles) = &self.on_new_connection_ms {
            write_row(out, "  on a new connection", quantiles)?;
        }
        if let Some(quantiles) = &self.refused_ms {
            write_row(out, "  ThrottlingException", quantiles)?;
        }
        write_row(out, "service time from send", &self.service_ms)?;
        if let Some(quantiles) = &self.handshake_ms {
            write_row(out, "TCP and TLS handshake", quantiles)?;
        }
        if let Some(quantiles) = &self.dispatch_lag_ms {
            write_row(out, "generator's dispatch lag", quantiles)?;
        }
        writeln!(
            out,
            "\n{} requests past the 250 ms of AWS KMS; {} kept connections reopened",
            self.past_kms_timeout, self.reconnects
        )?;
        for (label, count) in &self.failures {
            writeln!(out, "failed    {count:>8}  {label}")?;
        }
        if let Some(ivs) = &self.ivs {
            let IvReport { checked, repeated, unchecked } = ivs;
            writeln!(out, "IVs       {checked} compared, {repeated} repeated, {unchecked} beyond memory")?;
        }
        if let Some(process) = &self.target_process {
            write_process(out, "target", process)?;
            writeln!(out, "{:<10}{} threads", "", process.threads)?;
        }
        if let Some(process) = &self.generator_process {
            write_process(out, "generator", process)?;
        }
        if self.dispatch_lag_ms.as_ref().is_some_and(|lag| lag.p99 > 1.0) {
            writeln!(
                out,
                "warning   the generator was late itself: its core is busy, and latencies include that"
            )?;
        }
        Ok(())
    }
}

fn write_row(out: &mut String, name: &str, quantiles: &Quantiles) -> std::fmt::Result {
    let Quantiles { count, mean, p50, p90, p99, p999, max } = quantiles;
    writeln!(out, "{name:<28}{count:>10}{mean:>10.3}{p50:>10.3}{p90:>10.3}{p99:>10.3}{p999:>10.3}{max:>10.3}")
}

fn write_process(out: &mut String, name: &str, process: &ProcessReport) -> std::fmt::Result {
    const MB: f64 = 1e6;
    writeln!(
        out,
        "{name:<10}{:.1} µs of CPU a request (user {:.1}, system {:.1}), {:.2} cores; RSS {:.1} → {:.1} MB, peak {:.1} MB",
        process.cpu_us_per_request(),
        process.user_us_per_request,
        process.system_us_per_request,
        process.cores,
        process.rss_before_bytes as f64 / MB,
        process.rss_after_bytes as f64 / MB,
        process.peak_rss_bytes as f64 / MB
    )
}
