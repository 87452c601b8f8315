//! The proof of the suite: it passes the saboteur without a fault whole, and notices each fault, by cases that pass
//! without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod on_saboteur;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use tempfile::TempDir;
use tokio::sync::Notify;
use xks_conformance::case::{Case, Level, Outcome, Section};
use xks_conformance::cases;
use xks_conformance::run::{CaseResult, Profile, run};
use xks_saboteur::Fault;

/// Faults that are tried at once. Most of the time their cases wait for something.
const AT_ONCE: usize = 8;

/// After this time the cases that have caught a fault are enough.
const LONG: Duration = Duration::from_secs(10);

/// Cases that a line of the matrix names.
const SHOWN: usize = 6;

/// Runs that a measurement gets on a busy machine; a proxy that is too slow is so in each.
const MEASUREMENTS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_caught_and_no_alarm_is_false() {
    let folder = tempfile::tempdir().unwrap();
    let passing = passing_without_a_fault(&folder).await;
    let try_out = async |fault: &Fault| (*fault, catchers(*fault, &folder, &passing).await);
    let at_once =
        async |faults, count| iter(faults).map(try_out).buffer_unordered(count).collect::<Vec<_>>().await;
    let (about_health, others): (Vec<_>, Vec<_>) =
        Fault::ALL.iter().partition(|fault| breaks(**fault, "HEALTH-DEEP-", "HEALTH-CACHE-"));
    let (timed, untimed): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|fault: &&Fault| breaks(**fault, "-TIME-", "ERR-TIMEOUT-"));
    // A health status may be a minute old: the proxies of which nothing else is asked wait beside the rest. Whether answers
    // come in time is judged of one proxy after the other.
    let (mut matrix, (second, third)) = tokio::join!(at_once(about_health, AT_ONCE), async {
        (at_once(untimed, AT_ONCE).await, at_once(timed, 1).await)
    });
    matrix.extend(second.into_iter().chain(third));
    matrix.sort_by_key(|(fault, _)| Fault::ALL.iter().position(|other| other == fault));
    print(&matrix);
    assert_eq!(matrix.len(), Fault::ALL.len());
    let survivors: Vec<_> =
        matrix.iter().filter(|(_, by)| by.is_empty()).map(|(fault, _)| fault.name()).collect();
    assert!(survivors.is_empty(), "no case notices {survivors:?}");
    documented(&matrix);
}

/// What the document says of the matrix is so.
fn documented(matrix: &[(Fault, Vec<CaseResult>)]) {
    let by = |level: Level| {
        let heaviest = |by: &[CaseResult]| by.iter().map(|result| result.level).max();
        matrix.iter().filter(|(_, by)| heaviest(by) == Some(level)).count()
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
    let document = std::fs::read_to_string(path).unwrap();
    let sentence =
        format!("{} faults are noticed by a MUST, {} by a SHOULD", by(Level::Must), by(Level::Should));
    assert!(document.replace('\n', " ").contains(&sentence), "{path} does not say: {sentence}");
    assert_eq!(by(Level::May), 1, "region-assumed alone");
}

/// The ids of all cases that pass; none may fail or be skipped, and what is not applicable is so by declaration.
async fn passing_without_a_fault(folder: &TempDir) -> BTreeSet<String> {
    let (_saboteur, target) = on_saboteur::start(None, folder).await;
    let mut results = run(Arc::clone(&target), Profile::Full, cases::all(), |_| ()).await.cases;
    for _ in 1..MEASUREMENTS {
        let slow = results.extract_if(.., |result| result.section == Section::Latency && is_failed(result));
        let slow: BTreeSet<_> = slow.map(|result| result.id).collect();
        let again = only(|case| slow.contains(&case.id));
        results.extend(run(Arc::clone(&target), Profile::Full, again, |_| ()).await.cases);
    }
    // Two declarations, and a fact that a case finds out itself.
    let reasons = ["--trust-ca", "--no-port-443", "Encrypt returns ciphertextMetadata"];
    let wrong: Vec<_> = results
        .iter()
        .filter(|result| match &result.outcome {
            Outcome::Passed { .. } | Outcome::Noted { .. } => false,
            Outcome::NotApplicable { declared } => !reasons.contains(&declared.as_str()),
            Outcome::Failed { .. } | Outcome::Skipped { .. } => true,
        })
        .map(|result| format!("{}: {:?}", result.id, result.outcome))
        .collect();
    assert!(wrong.is_empty(), "false alarms:\n{}", wrong.join("\n"));
    let passed = results.into_iter().filter(|result| matches!(result.outcome, Outcome::Passed { .. }));
    passed.map(|result| result.id).collect()
}

/// The cases that fail with the fault and pass without it, among those that check a requirement that it breaks: all
/// of them, or where that takes long those that were found until then.
async fn catchers(fault: Fault, folder: &TempDir, passing: &BTreeSet<String>) -> Vec<CaseResult> {
    let checks = |case: &Case| fault.requirements().iter().any(|id| case.requirements.contains(id));
    let (saboteur, target) = on_saboteur::start(Some(fault), folder).await;
    let (mut caught, is_caught) = (Vec::new(), Notify::new());
    let cases = only(|case| checks(case) && passing.contains(&case.id));
    let progress = |result: &CaseResult| {
        if is_failed(result) {
            caught.push(result.clone());
            is_caught.notify_one();
        }
    };
    let is_enough = async {
        tokio::time::sleep(LONG).await;
        is_caught.notified().await;
    };
    tokio::select! {
        _ = run(target, Profile::Full, cases, progress) => {}
        () = is_enough => {}
    }
    drop(saboteur);
    caught
}

fn is_failed(result: &CaseResult) -> bool {
    matches!(result.outcome, Outcome::Failed { .. })
}

fn breaks(fault: Fault, one: &str, other: &str) -> bool {
    fault.requirements().iter().any(|id| id.contains(one) || id.contains(other))
}

fn only(is_wanted: impl Fn(&Case) -> bool) -> Vec<Case> {
    cases::all().into_iter().filter(is_wanted).collect()
}

/// To the terminal itself: what a passing test prints with `println!` is not shown.
fn print(matrix: &[(Fault, Vec<CaseResult>)]) {
    let mut text = String::new();
    for (fault, by) in matrix {
        let heaviest = by.iter().map(|result| result.level).max().map_or("SURVIVES", Level::name);
        let ids: Vec<_> = by.iter().take(SHOWN).map(|result| &*result.id).collect();
        let more = if by.len() > SHOWN { format!(" and {} more", by.len() - SHOWN) } else { String::new() };
        text += &format!("{:36} {heaviest:8} {}{more}\n", fault.name(), ids.join(" "));
    }
    let caught = matrix.iter().filter(|(_, by)| !by.is_empty()).count();
    text += &format!("{caught} of {} faults caught\n", matrix.len());
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}
