//! From start to ready.

use super::Part;
use crate::rig::{BareModule, Fault, Rig, time_to_ready};
use crate::statistics::median_of;
use crate::table::Row;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let mut rows = Vec::new();
    for keys in [1, 10_000] {
        let token = rig.token(keys);
        let (mut ready_ms, mut bare_ms) = (Vec::new(), Vec::new());
        for _ in 0..rig.rounds {
            bare_ms.push(BareModule::start(rig, &token, &rig.setup())?.start.as_secs_f64() * 1e3);
            ready_ms.push(time_to_ready(rig, &rig.setup(), token.clone())?.as_secs_f64() * 1e3);
        }
        let above: Vec<f64> = ready_ms.iter().zip(&bare_ms).map(|(ready, bare)| ready - bare).collect();
        let figure = format!("start to ready above the bare module's, {keys} keys");
        let row = Row::shown(Part::Start.name(), figure, median_of(&above), "ms").at_most(100.0);
        rows.push(row.noted(format!(
            "proxy {:.0} ms; bare initialise, login and first search {:.0} ms",
            median_of(&ready_ms),
            median_of(&bare_ms)
        )));
    }
    Ok(rows)
}
