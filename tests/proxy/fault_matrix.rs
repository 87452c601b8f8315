//! Every fault that pkcs11-fault has × every request, with one token and with two: what the caller is told, when, and that
//! nothing wrong leaves.
//!
//! The rows are in `rows.rs`, the run of one in `run.rs`. docs/hsm/faults.md shows what is expected; a test compares.

mod rows;
mod run;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use xks_harness::FaultKind;

use rows::{Request, Row, When, rows};
use run::{Cell, Tokens};

/// Rows that are tried at once: most of the time they wait.
const THREADS: usize = 8;

const DOCUMENT: &str = include_str!("../../docs/hsm/faults.md");

fn all_rows() -> Vec<Row> {
    FaultKind::ALL.iter().flat_map(|kind| rows(*kind)).collect()
}

fn rules(row: &Row) -> String {
    let when = match row.when {
        When::Serving => "",
        When::Probed => " (after a probe)",
        When::Connecting => " (at a new connection)",
        When::LoggingIn => " (at a new login)",
    };
    let isolation = row.is_isolated.then_some("isolation = \"process\"");
    let settings: Vec<_> = isolation.into_iter().chain(row.setting.lines()).collect();
    let setting = if settings.is_empty() { String::new() } else { format!(" ({})", settings.join(", ")) };
    let rules: Vec<_> = row.rules.iter().map(|rule| format!("`{rule}`")).collect();
    format!("{}{when}{setting}", rules.join(", "))
}

/// The table in the documentation: what is expected, without times.
fn expected_table() -> String {
    let mut table = String::from("| fault | tokens |");
    Request::ALL.iter().for_each(|request| write!(table, " {} |", request.name()).unwrap());
    table.push_str("\n|---|---|---|---|---|---|---|---|\n");
    for row in all_rows() {
        for (tokens, told) in [("one", row.one), ("two", row.two)] {
            let fault = if tokens == "one" { rules(&row) } else { String::new() };
            let told: Vec<_> = told.iter().map(|told| told.join(" or ")).collect();
            writeln!(table, "| {fault} | {tokens} | {} |", told.join(" | ")).unwrap();
        }
    }
    table
}

#[test]
fn the_documentation_shows_the_matrix() {
    let expected = expected_table();
    let shown: Vec<_> = DOCUMENT.lines().filter(|line| line.starts_with('|')).collect();
    for (expected, shown) in expected.lines().zip(&shown) {
        assert_eq!(&expected, shown, "the whole table should be\n{}", expected_table());
    }
    assert_eq!(expected.lines().count(), shown.len(), "the whole table should be\n{expected}");
}

#[test]
fn every_fault_is_told_truly_and_in_time_and_nothing_wrong_leaves() {
    let (table, wrong) = run_all(all_rows());
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The rows that end otherwise with the modules in helper processes, and all of them with XKS_LONG_TESTS (`.ci/full`).
#[test]
fn with_modules_in_helper_processes_all_is_told_truly_too() {
    let is_long = std::env::var_os("XKS_LONG_TESTS").is_some();
    // A new login is a new process, in which no handle is of the login before.
    let all = all_rows().into_iter().filter(|row| !row.is_isolated && row.when != When::LoggingIn);
    let (now, later): (Vec<_>, Vec<_>) = all.partition(|row| is_long || row.is_about_isolation());
    println!("{} rows are run; {} more are with XKS_LONG_TESTS", now.len(), later.len());
    let (table, wrong) = run_all(now.iter().map(Row::isolated).collect());
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs rows; what was seen, and what is wrong with it.
fn run_all(rows: Vec<Row>) -> (String, Vec<String>) {
    let pattern = std::env::var("XKS_FAULT_ROWS").unwrap_or_default();
    let mut waiting = Vec::new();
    for row in rows.into_iter().rev().filter(|row| rules(row).contains(&pattern)) {
        waiting.push((row.clone(), Tokens::Two));
        waiting.push((row, Tokens::One));
    }
    let count = waiting.len();
    let waiting = Arc::new(Mutex::new(waiting));
    let (done, results) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (done, waiting) = (done.clone(), Arc::clone(&waiting));
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let Some((row, tokens)) = waiting.lock().unwrap().pop() else { return };
                    let cells = runtime.block_on(run::run(&row, tokens));
                    done.send((row, tokens, cells)).unwrap();
                }
            });
        }
    });
    drop(done);
    let mut results: Vec<_> = results.iter().collect();
    results.sort_by_key(|(row, tokens, _)| (rules(row), *tokens));
    assert_eq!(results.len(), count);
    let wrong = results.iter().filter_map(|(row, tokens, cells)| {
        Some(format!("{} with {tokens:?}: {}", rules(row), cells.as_ref().err()?))
    });
    let wrong = wrong.collect();
    (observed_table(&results), wrong)
}

/// A row, how many tokens, and what came of it.
type Ran = (Row, Tokens, Result<Vec<Cell>, String>);

/// What was seen, with the longest time that the proxy took for an answer in milliseconds; at its foot, how often the machine was too
/// busy to tell.
fn observed_table(results: &[Ran]) -> String {
    let mut table = String::new();
    for (row, tokens, cells) in results {
        writeln!(table, "{} with {tokens:?}", rules(row)).unwrap();
        match cells {
            Ok(cells) => {
                let cells = cells.iter().zip(Request::ALL).map(|(cell, request)| {
                    let ms = cell.longest.as_micros() as f64 / 1000.0;
                    format!("{}: {} {ms:.1} ms", request.name(), cell.told.join("/"))
                });
                writeln!(table, "    {}", cells.collect::<Vec<_>>().join(" | ")).unwrap();
            }
            Err(_) => table.push_str("    WRONG\n"),
        }
    }
    let cells = || results.iter().filter_map(|(_, _, cells)| cells.as_ref().ok()).flatten();
    let late = cells().filter(|cell| cell.late > 0).count();
    writeln!(table, "{late} of {} cells were tried again because an answer was late", cells().count())
        .unwrap();
    table
}
