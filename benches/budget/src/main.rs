//! `xks-budget`: measures a release build of xks-proxy against its budget and prints the table.
//!
//! `docs/performance.md` says what each figure means. Each part of the budget has a name and is measured by itself: one
//! that fails costs no other its figures.

mod accepted;
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
/// where every figure is within its budget or its miss is accepted, 1 where one is not or could not be measured, 2 when nothing
/// was measured.
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
    /// What is measured, for the heading: `benches/run` names the commit
    #[arg(long, default_value = "unknown", overrides_with = "commit")]
    commit: String,
    /// Misses that are known, as benches/budget/accepted.json has them: they do not fail
    #[arg(long, value_name = "FILE")]
    accepted: Option<PathBuf>,
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
    let accepted = cli.accepted.as_deref().map(accepted::read).transpose()?.unwrap_or_default();
    let (machine, began) = (Machine::this(), SystemTime::now());
    machine::allow_open_files(u64::from(cli.connections) + 1000)?;
    let target_cpu = (machine.cpus > 1).then_some(cli.target_cpu);
    if target_cpu.is_some() {
        machine::stay_on(cli.generator_cpu)?;
    } else {
        tell("one core for proxy and load generator: latencies hold both");
    }
    let soak = Duration::from_secs_f64(cli.soak_mins * 60.0);
    // A third core has neither of the two on it.
    let observer_cpu =
        (0..machine.cpus).find(|cpu| machine.cpus > 2 && *cpu != cli.target_cpu && *cpu != cli.generator_cpu);
    let rig = Rig::new([target_cpu, observer_cpu], cli.secs, cli.rounds, soak, cli.connections)?;
    let parts = Part::all()
        .filter(|part| (cli.only.is_empty() || cli.only.contains(part)) && !cli.skip.contains(part));
    let parts: Vec<_> = parts.collect();
    let mut rows: Vec<Row> = Vec::new();
    for group in parts::groups(&parts) {
        let names: Vec<_> = group.iter().map(|part| part.name()).collect();
        let names = names.join(", ");
        tell(&format!("{names} …"));
        let started = Instant::now();
        let measured = parts::measure(&rig, &group);
        tell(&format!("{names}: {:.0} s", started.elapsed().as_secs_f64()));
        rows.extend(measured);
    }
    accepted::mark(&mut rows, &accepted);
    for figure in accepted::stale(&rows, &accepted) {
        tell(&format!("accepted, but no row has it: {figure}"));
    }
    let began = began.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    writeln!(std::io::stdout(), "{}\n\n{}", heading(cli, &machine, began), markdown(&rows))?;
    if let Some(file) = &cli.json {
        let report = json!({
            "commit": cli.commit, "date": date(began), "measuredAtUnixSecs": began,
            "machine": machine, "secs": cli.secs, "rounds": cli.rounds, "rows": rows,
        });
        std::fs::write(file, format!("{report:#}\n"))?;
    }
    Ok(!rows.iter().any(|row| row.verdict.is_bad()))
}

/// What was measured, when, and on what.
fn heading(cli: &Cli, machine: &Machine, began_unix_secs: u64) -> String {
    let Machine { cpu, cpus, memory_mib, kernel } = machine;
    format!(
        "{}, commit {}; {cpu}, {cpus} cores, {memory_mib} MiB, Linux {kernel}; {} rounds of {} s; log and audit by default, \
         to files; SoftHSM2 with one session; quotas out of the way but where a row is about them",
        date(began_unix_secs),
        cli.commit,
        cli.rounds,
        cli.secs,
    )
}

/// The day in UTC, as 2026-11-30: Howard Hinnant's `civil_from_days`, which counts years from March on.
fn date(unix_secs: u64) -> String {
    let days = unix_secs / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix_secs, day) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_798_761_599, "2026-12-31"),
            (1_798_761_600, "2027-01-01"),
        ] {
            assert_eq!(date(unix_secs), day);
        }
    }

    #[test]
    fn the_heading_names_day_and_commit() {
        let cli = Cli::try_parse_from(["xks-budget", "--commit", "0123456789ab + changes"]).unwrap();
        let heading = heading(&cli, &Machine::this(), 0);
        assert!(heading.starts_with("1970-01-01, commit 0123456789ab + changes; "), "{heading}");
    }
}
