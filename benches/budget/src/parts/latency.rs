//! Latency at the rate of KMS's quota, above what a null TLS echo has under the same load.

use super::Part;
use crate::rig::{Fault, KMS_RATE_PER_SEC, Load, NullEcho, Rig, run_clean, target_args};
use crate::statistics::median_of;
use crate::table::Row;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let proxy = rig.start(&rig.setup(), rig.token(1));
    let target = target_args(&proxy, 1, None);
    let echo = NullEcho::start(rig, &target)?;
    let load = Load::open("encrypt=1", KMS_RATE_PER_SEC, rig.duration());
    let (of_proxy, of_echo) = (load.on(&target)?, load.on(&echo.target)?);
    let (mut p99, mut p99_of_echo) = (Vec::new(), Vec::new());
    for _ in 0..rig.rounds {
        p99_of_echo.push(run_clean(&of_echo)?.latency_ms.p99);
        p99.push(run_clean(&of_proxy)?.latency_ms.p99);
    }
    let above: Vec<f64> = p99.iter().zip(&p99_of_echo).map(|(proxy, echo)| proxy - echo).collect();
    let row = Row::shown(
        Part::Latency.name(),
        format!("p99 of encrypts at {KMS_RATE_PER_SEC}/s, above a null TLS echo"),
        median_of(&above),
        "ms",
    );
    let note = format!("proxy {:.2} ms, echo {:.2} ms; open loop", median_of(&p99), median_of(&p99_of_echo));
    Ok(vec![row.at_most(2.0).noted(note)])
}
