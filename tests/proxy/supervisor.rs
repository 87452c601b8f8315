//! What a supervisor is told over its socket: ready, reloading, stopping, signs of life.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use xks_harness::client::plain_get;
use xks_harness::proxy::PATIENCE;
use xks_harness::{Faults, Function, Http, Proxy, Setup, SoftHsm, XksRequest};

use crate::reload::rig::UNWATCHED;

/// A sign of life that should not come would have come within this time.
const SILENCE: Duration = Duration::from_millis(500);

/// The supervisor's side of the socket.
struct Supervisor {
    socket: UnixDatagram,
    _folder: TempDir,
    path: String,
}

impl Supervisor {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, _folder: folder, path: path.display().to_string() }
    }

    /// A set-up whose proxy has this supervisor, and `more` variables of it.
    fn over(&self, setup: Setup, more: &[(&str, &str)]) -> Setup {
        let mut variables = vec![("NOTIFY_SOCKET".to_owned(), self.path.clone())];
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Setup { process_environment: variables, more: setup.more + UNWATCHED, ..setup }
    }

    fn try_next(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// The next message of those with this line; the others are passed over.
    fn next_with(&self, line: &str) -> String {
        let until = Instant::now() + PATIENCE;
        while let Some(message) = self.try_next(until.saturating_duration_since(Instant::now()).max(SILENCE))
        {
            if message.lines().any(|each| each.starts_with(line)) {
                return message;
            }
            assert!(Instant::now() < until, "never told {line}");
        }
        panic!("never told {line}");
    }

    /// Nothing of the kind comes any more.
    fn assert_never(&self, line: &str) {
        while let Some(message) = self.try_next(SILENCE) {
            assert!(!message.contains(line), "{message}");
        }
    }
}

/// The value of `NAME=` in a message.
fn value<'a>(message: &'a str, name: &str) -> &'a str {
    message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_else(|| {
        panic!("no {name} in {message}");
    })
}

fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
}

#[tokio::test]
async fn ready_is_told_once_it_listens() {
    let supervisor = Supervisor::new();
    let setup = supervisor.over(Setup::default(), &[]);
    let proxy = Proxy::start_without_waiting(&setup, SoftHsm::with_keys().into());
    let first = supervisor.try_next(PATIENCE).unwrap();
    assert_eq!(first.lines().next(), Some("READY=1"));
    assert_eq!(plain_get(proxy.admin, "/livez").await.0, 200);
    let _ = proxy.connect(Http::Two).await;
    assert_eq!(value(&supervisor.next_with("STATUS=ready"), "STATUS"), "ready, configuration 1");
}

/// Otherwise each try to start would be one more login, and a store without its HSM a service that does not start.
#[tokio::test]
async fn ready_waits_for_no_token() {
    let supervisor = Supervisor::new();
    let setup = Setup { selector: "label = \"nobody\"".to_owned(), ..Setup::default() };
    let setup = supervisor.over(setup, &[("WATCHDOG_USEC", "100000")]);
    let proxy = Proxy::start_without_waiting(&setup, SoftHsm::with_keys().into());
    let message = supervisor.next_with("READY=1");
    assert_eq!(value(&message, "STATUS"), "not ready (why: /readyz?verbose), configuration 1");
    assert_eq!(plain_get(proxy.admin, "/readyz").await.0, 503);
    // Nor is it ended for want of one.
    for _ in 0..4 {
        supervisor.next_with("WATCHDOG=1");
    }
}

#[tokio::test]
async fn a_reload_is_told_from_its_beginning_to_its_end() {
    let supervisor = Supervisor::new();
    let proxy = Proxy::start(&supervisor.over(Setup::default(), &[])).await;
    supervisor.next_with("READY=1");
    for signal in ["HUP", "USR1"] {
        let before = monotonic_micros();
        proxy.signal(signal);
        let message = supervisor.next_with("RELOADING=1");
        let at: u64 = value(&message, "MONOTONIC_USEC").parse().unwrap();
        // systemd takes none for the answer to its signal that was told before it.
        assert!((before..=monotonic_micros()).contains(&at), "{message}");
        let ended = supervisor.next_with("READY=1");
        let generation = if signal == "HUP" { 2 } else { 3 };
        assert_eq!(value(&ended, "STATUS"), format!("ready, configuration {generation}"));
    }
}

#[tokio::test]
async fn a_reload_that_is_refused_ends_too_and_the_status_says_so() {
    let supervisor = Supervisor::new();
    let proxy = Proxy::start(&supervisor.over(Setup::default(), &[])).await;
    supervisor.next_with("READY=1");
    std::fs::write(proxy.folder().join("xks-proxy.toml"), "no configuration").unwrap();
    proxy.signal("HUP");
    supervisor.next_with("RELOADING=1");
    let ended = supervisor.next_with("READY=1");
    assert_eq!(value(&ended, "STATUS"), "ready, configuration 1; a later one was refused");
}

#[tokio::test]
async fn the_end_is_told_with_the_time_it_may_take_and_nothing_is_ready_after_it() {
    for signal in ["TERM", "INT"] {
        let supervisor = Supervisor::new();
        let setup = Setup { server: "lame_duck_secs = 900\ndrain_secs = 300".to_owned(), ..Setup::default() };
        let mut proxy = Proxy::start(&supervisor.over(setup, &[])).await;
        supervisor.next_with("READY=1");
        proxy.signal(signal);
        let message = supervisor.next_with("STOPPING=1");
        let allowed: u64 = value(&message, "EXTEND_TIMEOUT_USEC").parse().unwrap();
        assert!(allowed >= 1_200_000_000, "{message}");
        // It is served on, and a reload is still possible.
        proxy.signal("HUP");
        proxy
            .wait_for("/metrics", |_, text| text.contains("xks_config_reloads_total{outcome=\"ok\"} 1"))
            .await;
        supervisor.assert_never("READY=1");
        // A second signal ends the waiting.
        proxy.signal(signal);
        assert_eq!(proxy.wait_for_exit().code(), Some(0), "{}", proxy.all_output());
    }
}

#[tokio::test]
async fn signs_of_life_come_while_it_runs_and_not_while_it_is_stopped() {
    let supervisor = Supervisor::new();
    let proxy = Proxy::start(&supervisor.over(Setup::default(), &[("WATCHDOG_USEC", "100000")])).await;
    for _ in 0..5 {
        supervisor.next_with("WATCHDOG=1");
    }
    proxy.signal("STOP");
    // What was on its way.
    while supervisor.try_next(SILENCE).is_some() {}
    assert_eq!(supervisor.try_next(SILENCE), None);
    proxy.signal("CONT");
    supervisor.next_with("WATCHDOG=1");
}

/// What is stuck in an HSM is the breaker's affair: a new process would meet the same HSM.
#[tokio::test]
async fn a_module_that_hangs_does_not_silence_it() {
    let supervisor = Supervisor::new();
    let faults = Faults::new();
    let setup = Setup { timeouts: "answer_ms = 1000\nfirst_answer_ms = 1000".to_owned(), ..Setup::default() };
    let setup = supervisor.over(faults.between(setup), &[("WATCHDOG_USEC", "100000")]);
    let proxy = Proxy::start(&setup).await;
    faults.set("C_Encrypt hang until_removed");
    let body = xks_harness::request::encrypt_body(b"a plaintext", None, false);
    let request = XksRequest::encrypt(&xks_harness::proxy::main_store(), "demo", &body);
    let mut connection = proxy.connect(Http::Two).await;
    while faults.counts().inside(Function::Encrypt) == 0 {
        let _ = connection.send(&request).await;
    }
    while supervisor.try_next(Duration::from_millis(1)).is_some() {}
    for _ in 0..5 {
        supervisor.next_with("WATCHDOG=1");
    }
    faults.clear();
}

#[tokio::test]
async fn no_signs_of_life_where_nobody_waits_for_them() {
    for more in [&[][..], &[("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")][..]] {
        let supervisor = Supervisor::new();
        let _proxy = Proxy::start(&supervisor.over(Setup::default(), more)).await;
        supervisor.next_with("READY=1");
        supervisor.assert_never("WATCHDOG");
    }
}

/// The process serves all the same.
#[tokio::test]
async fn a_supervisor_that_is_not_there_is_logged() {
    let gone = Path::new("/nonexistent/notify").display().to_string();
    let setup = Setup { process_environment: vec![("NOTIFY_SOCKET".to_owned(), gone)], ..Setup::default() };
    let proxy = Proxy::start(&setup).await;
    let _ = proxy.wait_for_log(|line| line["message"] == "cannot reach the supervisor at NOTIFY_SOCKET");
}
