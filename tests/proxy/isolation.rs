//! `isolation = "process"`: the module runs in a helper process, which may crash, hang and be killed.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xks_harness::binary::program;
use xks_harness::proxy::PATIENCE;
use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Faults, Function, Proxy, Setup, SoftHsm};

use crate::fleet::{self, SECOND, Traffic, wait_for_fleet, wait_until_both_serve};
use crate::tokens::rig::{Rig, is_internal, outcome, with_bad_tag};

const ISOLATED: &str = "sessions = 2\nisolation = \"process\"\nintervals = { health_probe_ms = 200 }";
/// A helper that hangs is left alone.
const PATIENT: &str = "sessions = 2\nisolation = \"process\"\n\
    intervals = { health_probe_ms = 30000, stuck_after_ms = 60000 }";
const RESTARTS: &str = "xks_token_helper_restarts_total{token=\"softhsm\"}";

fn setup() -> Setup {
    Setup { token: ISOLATED.to_owned(), ..Setup::default() }
}

/// The same with deadlines of 300 ms.
fn impatient() -> Setup {
    Setup { timeouts: "answer_ms = 300\nfirst_answer_ms = 300".to_owned(), ..setup() }
}

/// Two tokens with the same keys, each in a helper of its own, which has the variables of its own token alone.
async fn start_two() -> Rig {
    start_two_with("").await
}

async fn start_two_with(line: &str) -> Rig {
    let (faults, token) = (Faults::new(), fleet::same_keys());
    let setup = faults.between(fleet::setup());
    let of_token = token.environment().map(|(name, path)| (name.to_owned(), path.display().to_string()));
    let variables = of_token.into_iter().chain(setup.environment.clone());
    let variables: Vec<_> = variables.map(|(name, value)| format!("{name} = {value:?}")).collect();
    let isolated = &format!("sessions = 2\nisolation = \"process\"\n{line}");
    let environment = format!("environment = {{ {} }}\n", variables.join(", "));
    let setup = Setup {
        token: setup.token.replace("sessions = 2", isolated),
        more: setup.more.replace("sessions = 2", isolated) + &environment,
        ..setup
    };
    let proxy = Proxy::start_on(&setup, Arc::new(token)).await;
    let rig = Rig { faults, proxy };
    wait_until_both_serve(&rig).await;
    rig
}

fn read(pid: u32, file: &str) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()).into_owned()
}

/// A process that has ended and is not waited for yet is none.
fn is_running(pid: u32) -> bool {
    read(pid, "status").lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// The helper that a proxy has for a token, if it has one.
fn find_helper(proxy: &Proxy, token: &str) -> Option<u32> {
    let wanted = format!("xks-proxy\0hsm-helper\0{token}\0");
    let parent = format!("PPid:\t{}", proxy.pid());
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut helpers = pids.filter(|pid| {
        read(*pid, "cmdline") == wanted && read(*pid, "status").lines().any(|line| line == parent)
    });
    helpers.find(|pid| is_running(*pid))
}

pub(crate) fn helper(proxy: &Proxy, token: &str) -> u32 {
    find_helper(proxy, token).unwrap_or_else(|| panic!("there is no helper\n{}", proxy.all_output()))
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

async fn wait_until_gone(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while is_running(pid) {
        assert!(Instant::now() < until, "{} still runs: {}", pid, read(pid, "status"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_for_restarts(rig: &Rig, count: u32) {
    let wanted = |text: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(RESTARTS)?.trim().parse().ok());
        value.is_some_and(|restarts: u32| restarts >= count)
    };
    rig.proxy.wait_for("/metrics", |_, text| wanted(text)).await;
}

#[tokio::test]
async fn a_helper_does_all_that_the_module_does_in_the_process() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt_with_integrity_value("demo").await.ok();
    client.assert_decrypts("demo", &encrypted).await;
    let bad = client.decrypt("demo", &with_bad_tag(&encrypted)).await;
    assert_eq!(outcome(&bad), (400, "InvalidCiphertextException".to_owned()));
    assert_eq!(client.metadata("encrypt-only").await.ok()["keyUsage"][0], "ENCRYPT");
    assert_eq!(client.metadata("absent").await.status, 404);
    assert_eq!(client.encrypt("decrypt-only").await.status, 400);
    rig.wait_for_health("ACTIVE").await;
    let encrypts = rig.proxy.metric("xks_hsm_call_seconds_count{call=\"encrypt\",token=\"softhsm\"}").await;
    assert!(encrypts > 0.0, "calls in a helper are measured as well");
    // The module is there and nowhere else.
    let module = Faults::module().file_name().unwrap().to_string_lossy().into_owned();
    assert!(read(helper(&rig.proxy, "softhsm"), "maps").contains(&module));
    assert!(!read(rig.proxy.pid(), "maps").contains(&module));
    assert_eq!(rig.proxy.metric(RESTARTS).await, 0.0);
    assert_eq!(read(helper(&rig.proxy, "softhsm"), "oom_score_adj").trim(), "500");
}

#[tokio::test]
async fn a_helper_gets_no_secret_by_its_command_line_or_environment() {
    // Cargo sets it for tests, and the proxy has it from us.
    const VARIABLE: &str = "CARGO_PKG_DESCRIPTION";
    let pin = env!("CARGO_PKG_DESCRIPTION");
    let token = SoftHsm::with_keys();
    token.tool(&["init", "--label", "other", "--so-pin", SO_PIN, "--pin", pin]);
    token.tool(&["generate", "--token", "other", "--pin", pin, "--label", "demo"]);
    let setup = Setup {
        selector: "label = \"other\"".to_owned(),
        pin: format!("pin = {{ environment = \"{VARIABLE}\" }}"),
        ..setup()
    };
    let proxy = Proxy::start_on(&setup, Arc::new(token)).await;
    assert!(read(proxy.pid(), "environ").contains(pin));
    let helper = helper(&proxy, "softhsm");
    let environment = read(helper, "environ");
    assert!(environment.contains("SOFTHSM2_CONF="), "{environment}");
    assert!(!environment.contains(pin) && !environment.contains(PIN), "{environment}");
    assert_eq!(read(helper, "cmdline"), "xks-proxy\0hsm-helper\0softhsm\0");
}

#[tokio::test]
async fn no_request_fails_while_helpers_are_killed() {
    let rig = start_two().await;
    let traffic = Traffic::start(&rig, 4).await;
    for token in ["softhsm", "second", "softhsm", "second"] {
        let killed = helper(&rig.proxy, token);
        signal(killed, "KILL");
        wait_until_gone(killed).await;
        let until = Instant::now() + PATIENCE;
        while find_helper(&rig.proxy, token).is_none_or(|pid| pid == killed) {
            assert!(Instant::now() < until, "{}", rig.last_lines());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
    }
    traffic.assert_no_failure().await;
    wait_until_both_serve(&rig).await;
}

#[tokio::test]
async fn no_request_fails_while_a_module_hangs_or_aborts() {
    let rig = start_two().await;
    let traffic = Traffic::start(&rig, 4).await;
    for fault in ["hang forever", "abort"] {
        for name in [LABEL, SECOND] {
            let of = if name == LABEL { "softhsm" } else { "second" };
            let before = helper(&rig.proxy, of);
            // What no probe meets: only requests do.
            rig.faults.set(&format!("C_Encrypt {fault} token={name} label=demo"));
            wait_until_gone(before).await;
            rig.faults.clear();
            wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
        }
    }
    traffic.assert_no_failure().await;
    wait_until_both_serve(&rig).await;
}

/// What a module leaks goes with its helper, long before the machine has no memory left.
#[tokio::test]
async fn no_request_fails_while_a_module_leaks() {
    let rig = start_two_with("helper_memory_mib = 128").await;
    let traffic = Traffic::start(&rig, 4).await;
    for (name, of) in [(LABEL, "softhsm"), (SECOND, "second")] {
        let before = helper(&rig.proxy, of);
        rig.faults.set(&format!("C_Encrypt leak_kib=1024 token={name} label=demo"));
        wait_until_gone(before).await;
        rig.faults.clear();
        wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
        let kills = format!("xks_token_helper_memory_kills_total{{token=\"{of}\"}}");
        assert!(rig.proxy.metric(&kills).await >= 1.0);
        let told = |line: &serde_json::Value| {
            line["token"] == of
                && line["reason"].as_str().is_some_and(|text| text.contains("helper_memory_mib"))
        };
        let _ = rig.proxy.wait_for_log(told);
    }
    traffic.assert_no_failure().await;
    wait_until_both_serve(&rig).await;
    for of in ["softhsm", "second"] {
        let metric = format!("xks_token_helper_memory_bytes{{token=\"{of}\"}}");
        let until = Instant::now() + PATIENCE;
        loop {
            let bytes = rig.proxy.metric(&metric).await;
            if bytes > f64::from(1 << 20) && bytes <= f64::from(128 << 20) {
                break;
            }
            // What is told may be the last that was heard of the helper before.
            assert!(Instant::now() < until, "{bytes}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How much memory a helper has is asked for again where an answer was late.
#[tokio::test]
async fn a_module_that_leaks_is_noticed_also_after_its_helper_was_slow() {
    let rig = Rig::start(Setup { token: format!("{PATIENT}\nhelper_memory_mib = 128"), ..setup() }).await;
    let slow = helper(&rig.proxy, "softhsm");
    signal(slow, "STOP");
    // Several questions for its memory come too late.
    tokio::time::sleep(Duration::from_secs(1)).await;
    signal(slow, "CONT");
    rig.faults.set("C_Encrypt leak_kib=262144 label=demo times=1");
    let _ = rig.client().await.encrypt("demo").await;
    wait_until_gone(slow).await;
    assert!(rig.proxy.metric("xks_token_helper_memory_kills_total{token=\"softhsm\"}").await >= 1.0);
}

/// Sessions that are open serve on where there can be no further one.
#[tokio::test]
async fn a_helper_that_may_open_no_more_files_is_not_lost() {
    let rig = Rig::start(impatient()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let helper = helper(&rig.proxy, "softhsm");
    let allow = |files: usize| {
        let limit = format!("--nofile={files}:");
        let arguments = ["--pid", &helper.to_string(), &limit];
        assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
    };
    allow(3);
    rig.faults.set("C_Encrypt fail=CKR_SESSION_HANDLE_INVALID label=demo times=4");
    for _ in 0..4 {
        let _ = client.encrypt("demo").await;
    }
    allow(1024);
    rig.faults.clear();
    rig.wait_until_it_decrypts(&encrypted).await;
    assert_eq!(rig.proxy.metric(RESTARTS).await, 0.0, "{}", rig.proxy.all_output());
    assert!(is_running(helper));
}

#[tokio::test]
async fn a_token_alone_comes_back_by_itself_after_its_helper_was_killed() {
    let rig = Rig::start(impatient()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    for restarts in 1..=3 {
        signal(helper(&rig.proxy, "softhsm"), "KILL");
        // Nobody needs to ask for it: the end of the process is noticed, and told.
        wait_for_restarts(&rig, restarts).await;
        rig.wait_until_it_decrypts(&encrypted).await;
    }
    let _ = rig
        .proxy
        .wait_for_log(|line| line["status"].as_str().is_some_and(|status| status.contains("SIGKILL")));
}

#[tokio::test]
async fn a_call_that_never_returns_ends_with_its_helper() {
    let rig = Rig::start(impatient()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let stuck = helper(&rig.proxy, "softhsm");
    rig.faults.set("C_Encrypt hang forever label=demo");
    // By the deadline, or when the helper is killed.
    assert_ne!(client.encrypt("demo").await.status, 200);
    wait_until_gone(stuck).await;
    rig.faults.clear();
    rig.wait_until_it_decrypts(&encrypted).await;
    rig.wait_for_health("ACTIVE").await;
    assert_eq!(rig.proxy.metric("xks_token_sessions_stalled{token=\"softhsm\"}").await, 0.0);
}

#[tokio::test]
async fn a_helper_that_is_stopped_is_taken_to_hang() {
    let rig = Rig::start(impatient()).await;
    let stopped = helper(&rig.proxy, "softhsm");
    signal(stopped, "STOP");
    // Not one request comes: a probe finds out.
    wait_for_restarts(&rig, 1).await;
    wait_until_gone(stopped).await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_module_that_crashes_when_it_is_loaded_takes_nothing_along() {
    let rig = Rig::start_with_faults(setup(), SoftHsm::with_keys(), "C_Initialize abort");
    rig.proxy.wait_for("/readyz?verbose", |_, text| text.contains("the helper process ended")).await;
    rig.faults.clear();
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_pin_that_was_refused_is_not_tried_again_by_the_next_helper() {
    let setup = Setup { pin: "pin = \"not-the-pin\"".to_owned(), ..setup() };
    let rig = Rig::start_with_faults(setup, SoftHsm::with_keys(), "");
    rig.faults.wait_for("three helpers", |counts| counts.calls(Function::Initialize) >= 3).await;
    assert_eq!(rig.faults.calls(Function::Login), 1);
}

#[tokio::test]
async fn a_helper_ends_with_its_proxy() {
    for rule in ["", "C_Encrypt hang forever"] {
        let mut rig = Rig::start(Setup { token: PATIENT.to_owned(), ..impatient() }).await;
        let helper = helper(&rig.proxy, "softhsm");
        rig.faults.set(rule);
        if !rule.is_empty() {
            assert_ne!(rig.client().await.encrypt("demo").await.status, 200);
            assert_eq!(rig.faults.counts().inside(Function::Encrypt), 1);
        }
        rig.proxy.signal("KILL");
        let _ = rig.proxy.wait_for_exit();
        wait_until_gone(helper).await;
    }
}

#[tokio::test]
async fn a_service_manager_that_signals_all_processes_loses_no_request() {
    let server = "lame_duck_secs = 900".to_owned();
    let mut rig = Rig::start(Setup { server, ..setup() }).await;
    let helper = helper(&rig.proxy, "softhsm");
    for pid in [rig.proxy.pid(), helper] {
        signal(pid, "TERM");
    }
    let _ = rig
        .proxy
        .wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.starts_with("stopping")));
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    client.assert_decrypts("demo", &encrypted).await;
    drop(client);
    // The second one ends the waiting.
    rig.proxy.signal("TERM");
    assert!(rig.proxy.wait_for_exit().success());
    assert!(!is_running(helper), "a helper is left behind");
    assert_eq!(rig.proxy.wait_for_log(|line| line["message"] == "stopped")["clean"], true);
}

#[tokio::test]
async fn a_call_that_hangs_does_not_outlive_the_proxy() {
    let server = "lame_duck_secs = 0\ndrain_secs = 1".to_owned();
    let mut rig = Rig::start(Setup { server, token: PATIENT.to_owned(), ..impatient() }).await;
    let helper = helper(&rig.proxy, "softhsm");
    rig.faults.set("C_Encrypt hang forever label=demo");
    assert!(!is_internal(&rig.client().await.encrypt("demo").await), "the deadline ends it");
    rig.proxy.signal("TERM");
    assert!(rig.proxy.wait_for_exit().success());
    assert!(!is_running(helper));
    // What was stuck has come back.
    assert_eq!(rig.proxy.wait_for_log(|line| line["message"] == "stopped")["clean"], true);
}

#[tokio::test]
async fn commands_work_whatever_the_isolation() {
    let rig = Rig::start(setup()).await;
    let (code, text) = rig.check();
    assert!(text.contains("encrypts and decrypts"), "{text}");
    assert_eq!(code, Some(1), "one of the listed keys is absent: {text}");
    let configuration = rig.proxy.folder().join("xks-proxy.toml");
    for command in [&["doctor"][..], &["keys", "list"]] {
        let output =
            Command::new(program("xks-proxy")).args(command).arg("--config").arg(&configuration).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("demo"), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}
