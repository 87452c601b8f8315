//! Growth over time, under the load that KMS may make, with new connections, and with log and audit rotated.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xks_harness::Proxy;
use xks_load::report::Summary;

use super::Part;
use crate::machine::{Holdings, MIB};
use crate::rig::{Fault, KMS_RATE_PER_SEC, Load, Rig, run, target_args};
use crate::statistics::growth;
use crate::table::Row;

const MIX: &str = "encrypt=90,decrypt=5,metadata=5";
const NEW_CONNECTIONS_PER_SEC: f64 = 5.0;
/// Until caches, pools and the memory of past IVs are full; at most a fifth of the soak.
const WARMUP: Duration = Duration::from_secs(120);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// A minute of full load makes 100 MB of log and audit.
const ROTATE_EVERY: Duration = Duration::from_secs(60);
/// What an allocator's arenas may still shift after the warm-up.
const FLAT_MIB: f64 = 1.0;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let proxy = rig.start(&rig.setup(), rig.token(1));
    let warmup = WARMUP.min(rig.soak / 5);
    let load = Load {
        new_connections_per_sec: NEW_CONNECTIONS_PER_SEC,
        warmup,
        ..Load::open(MIX, KMS_RATE_PER_SEC, rig.soak - warmup)
    };
    let engine = load.on(&target_args(&proxy, 1, None))?;
    let is_over = AtomicBool::new(false);
    let (summary, samples) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&proxy, warmup, &is_over));
        let summary = run(&engine);
        is_over.store(true, Ordering::Relaxed);
        (summary, watching.join())
    });
    let (summary, samples) = (summary?, samples.map_err(|_| "the proxy could not be watched")?);
    if samples.len() < 10 {
        return Err("too short a soak: fewer than ten samples".into());
    }
    let column = |value: fn(&Holdings) -> f64| samples.iter().map(value).collect::<Vec<_>>();
    let growth_of = |value| growth(&column(value));
    let mins = rig.soak.as_secs_f64() / 60.0;
    let row = |figure: &str, value, unit| {
        Row::shown(Part::Soak.name(), format!("{figure} in {mins:.0} min"), value, unit)
    };
    let last = samples.last().copied();
    let note = |value: fn(&Holdings) -> f64| {
        format!(
            "{} samples after {} s; {:.1} at the end",
            samples.len(),
            warmup.as_secs(),
            last.as_ref().map_or(0.0, value)
        )
    };
    let Summary { scheduled, ok, failures, latency_ms, .. } = &summary;
    let wrong = 1.0 - *ok as f64 / (*scheduled).max(1) as f64;
    let requests = format!(
        "{ok} of {scheduled} right at {KMS_RATE_PER_SEC}/s, p99 {:.1} ms; {failures:?}",
        latency_ms.p99
    );
    let rss_mib: fn(&Holdings) -> f64 = |holdings| holdings.rss_bytes / MIB;
    Ok(vec![
        row("growth of resident memory", growth_of(rss_mib), "MiB").at_most(FLAT_MIB).noted(note(rss_mib)),
        row("growth of open files", growth_of(|holdings| holdings.open_files), "")
            .at_most(2.0)
            .noted(note(|holdings| holdings.open_files)),
        row("growth of threads", growth_of(|holdings| holdings.threads), "")
            .at_most(0.0)
            .noted(note(|holdings| holdings.threads)),
        row("share of requests not answered right", wrong, "").at_most(0.001).noted(requests),
    ])
}

/// Samples once the warm-up is over, and rotates log and audit as an operator would.
fn watch(proxy: &Proxy, warmup: Duration, is_over: &AtomicBool) -> Vec<Holdings> {
    let began = Instant::now();
    let (mut samples, mut rotated) = (Vec::new(), Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(SAMPLE_EVERY);
        if began.elapsed() > warmup {
            samples.extend(Holdings::of(proxy.pid()));
        }
        if rotated.elapsed() > ROTATE_EVERY {
            rotate(proxy);
            rotated = Instant::now();
        }
    }
    samples
}

/// What cannot be rotated now is rotated the next time: the disk is large enough for that.
fn rotate(proxy: &Proxy) {
    let audit = proxy.folder().join("audit.log");
    let _ = fs::rename(&audit, proxy.folder().join("audit.log.1"));
    proxy.signal("HUP");
    let _ = fs::OpenOptions::new().write(true).open(proxy.log_file()).and_then(|log| log.set_len(0));
}
