//! Many keys, and many stores, against one: the same load in turns.

use xks_harness::{Proxy, Setup};
use xks_load::engine::Engine;

use super::Part;
use crate::rig::{Fault, Load, MoreStores, Rig, cpu_us, run_clean, target_args};
use crate::statistics::{median_of, quotients};
use crate::table::Row;

/// A proxy of one size, and the load on all that it has.
struct Size {
    name: String,
    engine: Engine,
    _proxy: Proxy,
}

pub(super) fn keys(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let mut sizes = Vec::new();
    for keys in [1, 1000, 10_000] {
        let proxy = rig.start(&rig.setup(), rig.token(keys));
        let engine = Load::closed("encrypt=1", rig.duration()).on(&target_args(&proxy, keys, None))?;
        sizes.push(Size { name: format!("{keys} keys"), engine, _proxy: proxy });
    }
    compare(rig, Part::Keys, "1 key", &sizes)
}

pub(super) fn stores(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let token = rig.token(1000);
    let mut sizes = Vec::new();
    for count in [1, 100, 1000] {
        let stores = MoreStores::new(count - 1, true);
        let setup = rig.setup();
        let setup = Setup {
            store: String::new(),
            keys: "[[stores.keys]]\nexternal_key_id = \"0\"\nlabel = \"bench-0\"\n".to_owned(),
            more: format!("{}{}", setup.more, stores.config),
            ..setup
        };
        let proxy = rig.start(&setup, token.clone());
        let target = target_args(&proxy, 1, Some(stores.file(&proxy)?));
        let engine = Load::closed("encrypt=1", rig.duration()).on(&target)?;
        sizes.push(Size { name: format!("{count} stores"), engine, _proxy: proxy });
    }
    compare(rig, Part::Stores, "1 store", &sizes)
}

/// CPU of an encrypt with each size, as a ratio to the first in the same round.
fn compare(rig: &Rig, part: Part, base_name: &str, sizes: &[Size]) -> Result<Vec<Row>, Fault> {
    let mut us = vec![Vec::new(); sizes.len()];
    for _ in 0..rig.rounds {
        for (size, us) in sizes.iter().zip(&mut us) {
            us.push(cpu_us(&run_clean(&size.engine)?)?);
        }
    }
    let base = &us[0];
    let row = |(size, us): (&Size, &Vec<f64>)| {
        let figure = format!("CPU of an encrypt with {}", size.name);
        let row = Row::shown(part.name(), figure, median_of(us), "µs");
        row.like_base(&quotients(us, base))
            .noted(format!("ratio to {base_name}, {:.1} µs; each in use in turn", median_of(base)))
    };
    Ok(sizes.iter().zip(&us).skip(1).map(row).collect())
}
