//! `xks-load`: the command.

mod cli;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use cli::{Cli, Command, EchoArgs, RunArgs};
use serde_json::{Value, json};
use xks_load::echo::{EchoServer, echo};
use xks_load::engine::Engine;
use xks_load::plot::{Series, svg};
use xks_load::report::Summary;
use xks_load::target::{Target, TargetArgs, read_names};
use xks_load::versus::{self, Round};

type Fault = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let ended = match Cli::parse() {
        Cli { command: Some(Command::EchoServer(args)), .. } => serve_echo(&args).map(|()| Vec::new()),
        Cli { run, .. } => match &run.verdict.versus {
            None => run_alone(&run),
            Some(file) => run_versus(&run, file),
        },
    };
    match ended {
        Ok(breaches) if breaches.is_empty() => ExitCode::SUCCESS,
        Ok(breaches) => {
            for breach in breaches {
                complain(&breach);
            }
            ExitCode::from(1)
        }
        Err(fault) => {
            complain(&fault.to_string());
            ExitCode::from(2)
        }
    }
}

fn complain(text: &str) {
    // Nothing can be done where even stderr is closed.
    let _ = writeln!(std::io::stderr(), "xks-load: {text}");
}

fn say(text: &str) -> Result<(), Fault> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn serve_echo(args: &EchoArgs) -> Result<(), Fault> {
    let server = EchoServer::start(args.listen, Arc::new(echo))?;
    std::fs::write(&args.certificate_out, &server.certificate_pem)?;
    say(&format!("listening on {}", server.address))?;
    server.wait();
    Ok(())
}

/// Prepares a target for the run that `args` describe.
fn ready(args: &RunArgs, target_args: &TargetArgs) -> Result<(Target, Engine), Fault> {
    let target = target_args.target()?;
    let engine = Engine::prepare(&target, &args.workload(target.key_count()), args.plan()?)?;
    Ok((target, engine))
}

fn run_alone(args: &RunArgs) -> Result<Vec<String>, Fault> {
    let (target, engine) = ready(args, &args.target)?;
    let keys = target.key_count();
    say(&format!("{} at {}: {}\n", target.host, target.address, args.headline(keys)))?;
    let outcome = engine.run()?;
    let summary = Summary::from(&outcome);
    say(&summary.table())?;
    let report = json!({ "target": described(&target), "settings": args.settings(keys), "summary": summary });
    write_json(args, &report)?;
    let mut series = Series::new("")?;
    series.add(&outcome)?;
    write_plot(args, &target.host, &[series])?;
    Ok(summary.breaches(&args.limits(), args.rate()))
}

fn run_versus(args: &RunArgs, file: &Path) -> Result<Vec<String>, Fault> {
    let (target_a, engine_a) = ready(args, &args.target)?;
    let (target_b, engine_b) = ready(args, &args.target.overlaid(&read_names(file)?)?)?;
    let keys = target_a.key_count();
    say(&format!(
        "A: {} at {}\nB: {} at {}",
        target_a.host, target_a.address, target_b.host, target_b.address
    ))?;
    say(&format!("{} rounds of A, B; {}\n", args.verdict.rounds, args.headline(keys)))?;
    let mut series_a = Series::new("A")?;
    let mut series_b = Series::new("B")?;
    let (mut rounds, mut breaches) = (Vec::new(), Vec::new());
    for number in 1..=args.verdict.rounds {
        let mut turn = |name: &str, engine: &Engine, series: &mut Series| -> Result<Summary, Fault> {
            let outcome = engine.run()?;
            series.add(&outcome)?;
            let summary = Summary::from(&outcome);
            say(&format!("── round {number}, {name} ──\n{}", summary.table()))?;
            let broken = summary.breaches(&args.limits(), args.rate());
            breaches.extend(broken.into_iter().map(|breach| format!("round {number}, {name}: {breach}")));
            Ok(summary)
        };
        let a = turn("A", &engine_a, &mut series_a)?;
        let b = turn("B", &engine_b, &mut series_b)?;
        rounds.push(Round { a, b });
    }
    let comparison = versus::compare(&rounds);
    say(&versus::table(&comparison))?;
    let report = json!({
        "targets": { "a": described(&target_a), "b": described(&target_b) },
        "settings": args.settings(keys),
        "rounds": rounds,
        "comparison": comparison,
    });
    write_json(args, &report)?;
    let title = format!("A: {}, B: {}", target_a.host, target_b.host);
    write_plot(args, &title, &[series_a, series_b])?;
    Ok(breaches)
}

/// A target as it belongs into the report: nothing secret.
fn described(target: &Target) -> Value {
    json!({
        "host": target.host,
        "address": target.address.to_string(),
        "uriPrefix": target.stores[0].uri_prefix,
        "stores": target.stores.len(),
        "keys": target.key_ids.len(),
        "processId": target.process_id,
    })
}

fn write_json(args: &RunArgs, report: &Value) -> Result<(), Fault> {
    if let Some(file) = &args.verdict.json {
        std::fs::write(file, format!("{report:#}\n"))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn write_plot(args: &RunArgs, title: &str, series: &[Series]) -> Result<(), Fault> {
    if let Some(file) = &args.verdict.plot {
        std::fs::write(file, svg(title, series)).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}
