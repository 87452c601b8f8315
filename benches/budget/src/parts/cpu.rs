//! CPU of each operation, in turns with a bare encrypt on the same core.

use xks_harness::Setup;

use super::Part;
use crate::rig::{BareModule, Fault, Load, MoreStores, Rig, cpu_us, run_clean, target_args};
use crate::statistics::{median_of, quotients};
use crate::table::Row;

/// Stores that health requests are dealt out over: each answers twenty a second.
const HEALTH_STORES: usize = 2500;

/// An operation, its load, and its budget: the ratio to a bare encrypt, and the microseconds where that takes 13.
struct Operation {
    part: Part,
    figure: &'static str,
    mix: &'static str,
    cdiv: bool,
    ratio: f64,
    us: f64,
}

const OPERATIONS: [Operation; 5] = [
    Operation {
        part: Part::Encrypt,
        figure: "CPU of an encrypt",
        mix: "encrypt=1",
        cdiv: false,
        ratio: 3.7,
        us: 48.0,
    },
    Operation {
        part: Part::EncryptCdiv,
        figure: "CPU of an encrypt with integrity value",
        mix: "encrypt=1",
        cdiv: true,
        ratio: 4.8,
        us: 62.0,
    },
    Operation {
        part: Part::Decrypt,
        figure: "CPU of a decrypt",
        mix: "decrypt=1",
        cdiv: false,
        ratio: 3.7,
        us: 48.0,
    },
    Operation {
        part: Part::Metadata,
        figure: "CPU of a GetKeyMetadata",
        mix: "metadata=1",
        cdiv: false,
        ratio: 3.1,
        us: 40.0,
    },
    Operation {
        part: Part::Health,
        figure: "CPU of a GetHealthStatus",
        mix: "health=1",
        cdiv: false,
        ratio: 1.7,
        us: 22.0,
    },
];

pub(super) fn measure(rig: &Rig, parts: &[Part]) -> Result<Vec<Row>, Fault> {
    let token = rig.token(1);
    let mut bare = BareModule::start(rig, &token, &rig.setup())?;
    let proxy = rig.start(&rig.setup(), token.clone());
    let target = target_args(&proxy, 1, None);
    let mut engines = Vec::new();
    let mut of_health = None;
    for operation in OPERATIONS.iter().filter(|operation| parts.contains(&operation.part)) {
        let load = Load { cdiv: operation.cdiv, ..Load::closed(operation.mix, rig.duration()) };
        let engine = if operation.part == Part::Health {
            let stores = MoreStores::new(HEALTH_STORES, false);
            let setup = rig.setup();
            let many = Setup { more: format!("{}{}", setup.more, stores.config), ..setup };
            let many = of_health.insert(rig.start(&many, token.clone()));
            load.on(&target_args(many, 1, Some(stores.file(many)?)))?
        } else {
            load.on(&target)?
        };
        engines.push((operation, engine));
    }
    let mut bare_us = Vec::new();
    let mut measured: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); engines.len()];
    for _ in 0..rig.rounds {
        bare_us.push(bare.encrypt_us(rig.duration())?.0);
        for ((_, engine), (us, per_sec)) in engines.iter().zip(&mut measured) {
            let summary = run_clean(engine)?;
            us.push(cpu_us(&summary)?);
            per_sec.push(summary.ok_per_sec);
        }
    }
    let mut rows = Vec::new();
    if parts.contains(&Part::Bare) {
        let row = Row::shown(Part::Bare.name(), "CPU of a bare SoftHSM2 encrypt", median_of(&bare_us), "µs");
        rows.push(row.noted("32 bytes under 100 bytes of AAD; the base of the ratios"));
    }
    for ((operation, _), (us, per_sec)) in engines.iter().zip(&measured) {
        let ratios = quotients(us, &bare_us);
        let row = Row::shown(operation.part.name(), operation.figure, median_of(us), "µs");
        let row = row.at_most_bare(&ratios, operation.ratio, operation.us);
        rows.push(row.noted(format!("{:.0}/s on one core", median_of(per_sec))));
    }
    Ok(rows)
}
