//! As many connections as the defaults allow, all in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use xks_load::report::Summary;

use super::Part;
use crate::rig::{Fault, Load, Rig, run, target_args};
use crate::table::Row;

/// Each connection carries so many requests.
const REQUESTS_EACH: f64 = 2.0;
/// Slow enough to be about connections and not about throughput.
const RATE_PER_SEC: f64 = 1000.0;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let proxy = rig.start(&rig.setup(), rig.token(1));
    let connections = rig.connections;
    let duration = Duration::from_secs_f64(REQUESTS_EACH * f64::from(connections) / RATE_PER_SEC);
    let load =
        Load { connections, warmup: Duration::ZERO, ..Load::open("encrypt=1", RATE_PER_SEC, duration) };
    let engine = load.on(&target_args(&proxy, 1, None))?;
    let is_over = AtomicBool::new(false);
    let (summary, open) = std::thread::scope(|scope| {
        let most_open = scope.spawn(|| {
            let mut most: f64 = 0.0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(rig.wait(proxy.metric("xks_connections")));
                std::thread::sleep(Duration::from_millis(500));
            }
            most
        });
        let summary = run(&engine);
        is_over.store(true, Ordering::Relaxed);
        (summary, most_open.join())
    });
    let (summary, open) = (summary?, open.map_err(|_| "the metric could not be read")?);
    let Summary { scheduled, ok, latency_ms, reconnects, failures, .. } = &summary;
    let part = Part::Connections.name();
    let right =
        Row::shown(part, "share of right answers over them", *ok as f64 / (*scheduled).max(1) as f64, "");
    let note = format!(
        "{ok} of {scheduled}, each connection in turn; p99 {:.1} ms; {reconnects} opened again; {failures:?}",
        latency_ms.p99
    );
    Ok(vec![
        Row::shown(part, "connections open at once, by the proxy's metric", open, "")
            .at_least(f64::from(connections)),
        right.at_least(1.0).noted(note),
    ])
}
