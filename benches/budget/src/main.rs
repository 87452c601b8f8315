//! `xks-budget`: measures a release build of xks-proxy against its budget and prints the table.
//!
//! `docs/performance.md` says what each figure means. Each part of the budget has a name and is measured by itself: one
//! that fails costs no other its figures.

mod machine;
mod parts;
mod rig;
mod statistics;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use machine::Machine;
use parts::Part;
use rig::{Fault, Rig};
use serde_json::json;
use table::{Row, markdown};

/// Measures xks-proxy against its performance budget.
///
/// Needs xks-proxy, xks-load, softhsm-token and pkcs11-fault of the same build: `benches/run` makes them. Exit status: 0
/// where every figure is within its budget, 1 where one is not or could not be measured, 2 when nothing was measured.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Only this part; repeatable
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Not this part; repeatable
    #[arg(long, value_enum)]
    skip: Vec<Part>,
    /// Length of one measurement
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Rounds, in turns with what a figure is compared with; fewer than six cannot cover a median with 95 %
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of the soak
    #[arg(long, default_value_t = 60.0)]
    soak_mins: f64,
    /// Connections that the part `connections` opens
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Core of what is measured
    #[arg(long, default_value_t = 0)]
    target_cpu: usize,
    /// Core of the load generator
    #[arg(long, default_value_t = 1)]
    generator_cpu: usize,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(fault) => {
            tell(&format!("xks-budget: {fault}"));
            ExitCode::from(2)
        }
    }
}

/// Progress, which is no part of the result.
fn tell(text: &str) {
    // Nothing can be done where even standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn measure(cli: &Cli) -> Result<bool, Fault> {
    let is_within = |secs: f64| secs > 0.0 && secs <= 604_800.0;
    if !is_within(cli.secs) || !is_within(cli.soak_mins * 60.0) {
        return Err("--secs and --soak-mins must be above zero and within a week".into());
    }
    let machine = Machine::this();
    machine::allow_open_files(u64::from(cli.connections) + 1000)?;
    let target_cpu = (machine.cpus > 1).then_some(cli.target_cpu);
    if target_cpu.is_some() {
        machine::stay_on(cli.generator_cpu)?;
    } else {
        tell("one core for proxy and load generator: latencies hold both");
    }
    let soak = Duration::from_secs_f64(cli.soak_mins * 60.0);
    let rig = Rig::new(target_cpu, cli.secs, cli.rounds, soak, cli.connections)?;
    let parts = Part::all()
        .filter(|part| (cli.only.is_empty() || cli.only.contains(part)) && !cli.skip.contains(part));
    let parts: Vec<_> = parts.collect();
    let mut rows: Vec<Row> = Vec::new();
    for group in parts::groups(&parts) {
        let names: Vec<_> = group.iter().map(|part| part.name()).collect();
        let names = names.join(", ");
        tell(&format!("{names} …"));
        let began = Instant::now();
        let measured = parts::measure(&rig, &group);
        tell(&format!("{names}: {:.0} s", began.elapsed().as_secs_f64()));
        rows.extend(measured);
    }
    let Machine { cpu, cpus, memory_mib, kernel } = &machine;
    writeln!(
        std::io::stdout(),
        "{cpu}, {cpus} cores, {memory_mib} MiB, Linux {kernel}; {} rounds of {} s; log and audit by default, to files; \
         SoftHSM2 with one session; quotas out of the way but where a row is about them\n\n{}",
        cli.rounds,
        cli.secs,
        markdown(&rows)
    )?;
    if let Some(file) = &cli.json {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let report = json!({
            "machine": machine, "measuredAtUnixSecs": at, "secs": cli.secs, "rounds": cli.rounds, "rows": rows,
        });
        std::fs::write(file, format!("{report:#}\n"))?;
    }
    Ok(!rows.iter().any(|row| row.verdict.is_bad()))
}
