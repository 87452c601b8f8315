//! Many keys, and many stores, against one: the same load in turns.
//!
//! SoftHSM2 opens, locks and reads the file of a key at each use of it, so that each further key costs the bare module too.
//! What the proxy itself takes must not grow: a figure is held against that of one key, and what as many keys cost the bare
//! module more than one.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use xks_harness::{Proxy, Setup, SoftHsm};
use xks_load::engine::Engine;
use xks_load::report::Summary;
use xks_load::target::TargetArgs;

use super::Part;
use crate::machine::become_observer;
use crate::rig::{BareModule, Fault, Load, MoreStores, Rig, cpu_us, run_clean, target_args};
use crate::statistics::{Interval, median_of, quotients};
use crate::table::Row;

/// Requests before the first measurement, as a multiple of the keys: by then the sixteen connections, each of which goes
/// through the keys in their order from a place of its own, have used every key. What a key costs the first time, its proof
/// and the block of initialization vectors, is paid once.
const WARMUP_REQUESTS_A_KEY: u64 = 8;

/// Between two looks at the metrics while stores are measured, as Prometheus is often told; once a run at least.
const SCRAPE_EVERY: Duration = Duration::from_secs(15);

/// A proxy of one size, the load on all that it has, and a bare module with as many keys in use.
struct Size {
    name: String,
    keys: usize,
    engine: Engine,
    bare: BareModule,
    proxy: Proxy,
}

impl Size {
    fn new(
        rig: &Rig,
        name: String,
        keys: usize,
        (proxy, target): (Proxy, TargetArgs),
        token: &SoftHsm,
    ) -> Result<Self, Fault> {
        let engine = Load::closed("encrypt=1", rig.duration()).on(&target)?;
        let bare = BareModule::start(rig, token, &rig.setup())?;
        Ok(Self { name, keys, engine, bare, proxy })
    }

    /// Runs the load; with `scraped`, under the eyes of a Prometheus, and adds the milliseconds that each scrape took.
    fn run(&self, rig: &Rig, scraped: Option<&mut Vec<f64>>) -> Result<Summary, Fault> {
        let Some(scrapes_ms) = scraped else { return run_clean(&self.engine) };
        let (over, is_over) = mpsc::channel();
        let (summary, scrapes) = std::thread::scope(|scope| {
            let scraping = scope.spawn(move || scrape(rig, &self.proxy, &is_over));
            let summary = run_clean(&self.engine);
            drop(over);
            (summary, scraping.join())
        });
        scrapes_ms.extend(scrapes.map_err(|_| "/metrics gave no answer")??);
        summary
    }

    fn warm_up(&self) -> Result<(), Fault> {
        let mut requests = 0;
        while requests < WARMUP_REQUESTS_A_KEY * self.keys as u64 {
            requests += run_clean(&self.engine)?.ok;
        }
        Ok(())
    }
}

pub(super) fn keys(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let mut sizes = Vec::new();
    for keys in [1, 1000, 10_000] {
        let token = rig.token(keys);
        let proxy = rig.start(&rig.setup(), Arc::clone(&token));
        let target = target_args(&proxy, keys, None);
        sizes.push(Size::new(rig, format!("{keys} keys"), keys, (proxy, target), &token)?);
    }
    compare(rig, Part::Keys, "1 key", sizes)
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
        let proxy = rig.start(&setup, Arc::clone(&token));
        let target = target_args(&proxy, 1, Some(stores.file(&proxy)?));
        sizes.push(Size::new(rig, format!("{count} stores"), count, (proxy, target), &token)?);
    }
    compare(rig, Part::Stores, "1 store", sizes)
}

/// Asks for the metrics in the middle of a run, and again and again after that, until it is over; returns how many
/// milliseconds each answer took.
fn scrape(rig: &Rig, proxy: &Proxy, is_over: &mpsc::Receiver<()>) -> Result<Vec<f64>, Fault> {
    // Without priority a scrape takes longer, and is one all the same.
    let _ = become_observer(rig.observer_cpu);
    let mut scrapes_ms = Vec::new();
    let mut wait = (rig.duration() / 2).min(SCRAPE_EVERY);
    while is_over.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        let began = Instant::now();
        let (status, _) = rig.wait(proxy.admin("/metrics"));
        if status != 200 {
            return Err(format!("/metrics answered {status}").into());
        }
        scrapes_ms.push(began.elapsed().as_secs_f64() * 1e3);
        wait = SCRAPE_EVERY;
    }
    Ok(scrapes_ms)
}

/// CPU of an encrypt with each size in the same round, as a ratio to the first and what the bare module takes more.
fn compare(rig: &Rig, part: Part, base_name: &str, mut sizes: Vec<Size>) -> Result<Vec<Row>, Fault> {
    sizes.iter().try_for_each(Size::warm_up)?;
    let (mut us, mut bare_us) = (vec![Vec::new(); sizes.len()], vec![Vec::new(); sizes.len()]);
    let mut scrapes_ms = vec![Vec::new(); sizes.len()];
    for _ in 0..rig.rounds {
        for (number, size) in sizes.iter_mut().enumerate() {
            bare_us[number].push(size.bare.encrypt_under_us(size.keys, rig.duration() / 2)?.0);
            let scraped = (part == Part::Stores).then_some(&mut scrapes_ms[number]);
            us[number].push(cpu_us(&size.run(rig, scraped)?)?);
        }
    }
    let row = |number: usize| {
        let (us_of, bare_of) = (&us[number], &bare_us[number]);
        let more = bare_of.iter().zip(&bare_us[0]).map(|(bare, base)| bare - base);
        let expected: Vec<_> = us[0].iter().zip(more).map(|(base, more)| base + more).collect();
        let Interval { median, low, high, .. } = Interval::of(&quotients(us_of, &us[0]));
        let figure = format!("CPU of an encrypt with {}", sizes[number].name);
        let row = Row::shown(part.name(), figure, median_of(us_of), "µs");
        row.like_base(&quotients(us_of, &expected)).noted(format!(
            "ratio to {base_name}, {:.1} µs, and what as many keys cost the bare module more, {:.1} µs after {:.1}; without \
             that {median:.2} ({low:.2}–{high:.2}); each in use in turn",
            median_of(&us[0]),
            median_of(bare_of),
            median_of(&bare_us[0]),
        ))
    };
    let with_scrapes = |number: usize| match scrapes_ms[number].as_slice() {
        [] => row(number),
        scrapes => row(number).also_noted(&format!(
            "{} GET /metrics meanwhile, median {:.1} ms, the slowest {:.1} ms",
            scrapes.len(),
            median_of(scrapes),
            scrapes.iter().copied().fold(0.0, f64::max),
        )),
    };
    Ok((1..sizes.len()).map(with_scrapes).collect())
}
