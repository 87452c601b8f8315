//! What the hook has changed it restores, whatever comes of the case; and a target that a case brings down is waited for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod on_saboteur;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use tempfile::TempDir;
use xks_conformance::case::{Case, Finding, Level, Outcome, Section, fail};
use xks_conformance::run::{CaseResult, Profile, run};
use xks_conformance::target::{Target, TargetArgs};
use xks_conformance::wire::Wire;
use xks_saboteur::Saboteur;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    target: TargetArgs,
}

/// A target whose hook writes down each action before the saboteur's does it, and then does `more`.
async fn start(folder: &TempDir, more: &str) -> (Saboteur, Arc<Target>) {
    let saboteur = Saboteur::start(None).await;
    let words = on_saboteur::command_line(&saboteur, folder.path());
    let mut args = CommandLine::parse_from(words).target;
    let inner = args.more.hook.take().unwrap();
    let log = folder.path().join("actions").display().to_string();
    args.more.hook = Some(format!("log() {{ echo \"$1\" >>'{log}'; {inner} \"$1\"; {more}; }}; log"));
    (saboteur, Arc::new(args.target().await.unwrap()))
}

fn actions(folder: &TempDir) -> Vec<String> {
    let text = fs::read_to_string(folder.path().join("actions")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn case<F: Future<Output = Finding> + Send + 'static>(
    run: impl Fn(Wire) -> F + Send + Sync + 'static,
) -> Case {
    Case::new(Section::Health, "hooked", Level::Must, "changes the target", "nothing", run)
}

async fn outcome(target: &Arc<Target>, case: Case) -> CaseResult {
    let mut cases = run(Arc::clone(target), Profile::Full, vec![case], |_| ()).await.cases;
    cases.remove(0)
}

async fn change(wire: &Wire, action: &str) -> Result<(), xks_conformance::case::Stop> {
    wire.target.change(action).await.or_else(|fault| fail("the hook", fault))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = start(&folder, ":").await;
    let failing = case(|wire| async move {
        change(&wire, "hsm-failing").await?;
        fail("one thing", "another")
    });
    let result = outcome(&target, failing).await;
    assert!(matches!(&result.outcome, Outcome::Failed { seen, .. } if seen == "another"), "{result:?}");
    assert_eq!(actions(&folder), ["hsm-failing", "hsm-healthy"]);
    assert!(!target.is_changed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_time_out() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = start(&folder, ":").await;
    // In the middle of a case, and in the middle of the hook itself.
    for action in ["credentials-next", "hsm-silent"] {
        let hanging = case(move |wire| async move {
            change(&wire, action).await?;
            std::future::pending().await
        });
        let result = outcome(&target, hanging.within(Duration::from_secs(2))).await;
        let is_late = |seen: &str| seen.contains("did not end within 2s");
        assert!(matches!(&result.outcome, Outcome::Failed { seen, .. } if is_late(seen)), "{result:?}");
        assert!(!target.is_changed());
    }
    assert_eq!(actions(&folder), ["credentials-next", "credentials-first", "hsm-silent", "hsm-healthy"]);
}

/// A hook that fails may have done half of its work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_hook_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) =
        start(&folder, "[ \"$1\" = hsm-healthy ] || { echo out of order >&2; exit 7; }").await;
    let result = outcome(
        &target,
        case(|wire| async move { change(&wire, "hsm-failing").await.map(|()| String::new()) }),
    )
    .await;
    let seen = format!("{:?}", result.outcome);
    assert!(seen.contains("the hook failed at hsm-failing: out of order"), "{seen}");
    assert_eq!(actions(&folder), ["hsm-failing", "hsm-healthy"]);
}

/// A target that stays broken makes nonsense of what comes behind: the report says so, even of a case that passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_cannot_restore_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) =
        start(&folder, "[ \"$1\" != hsm-healthy ] || { echo out of order >&2; exit 7; }").await;
    let passing = case(|wire| async move {
        change(&wire, "hsm-failing").await?;
        Ok("as expected".to_owned())
    });
    let result = outcome(&target, passing).await;
    let seen = format!("{:?}", result.outcome);
    assert!(matches!(result.outcome, Outcome::Failed { .. }), "{seen}");
    assert!(seen.contains("the target could not be restored") && seen.contains("out of order"), "{seen}");
    assert!(target.is_changed());
}

/// A supervisor starts it again; until then the next case would fail for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_a_case_brings_down_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (saboteur, target) = start(&folder, ":").await;
    let (running, address) = (Arc::new(Mutex::new(Some(saboteur))), target.address);
    let fatal = case(move |_| {
        drop(running.lock().unwrap().take());
        async move {
            while TcpStream::connect(address).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                TcpListener::bind(address).unwrap().incoming().for_each(drop);
            });
            fail("an answer", "none")
        }
    });
    let next = case(move |_| async move {
        TcpStream::connect(address)
            .map(|_| String::new())
            .or_else(|fault| fail("a target", fault.to_string()))
    });
    let results = run(target, Profile::Full, vec![fatal, next], |_| ()).await.cases;
    let seen = format!("{:?}", results[0].outcome);
    assert!(seen.contains("none; and nobody listened for "), "{seen}");
    assert!(matches!(results[1].outcome, Outcome::Passed { .. }), "{:?}", results[1]);
}
