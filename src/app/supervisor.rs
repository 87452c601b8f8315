//! What the process tells the supervisor that started it, systemd or another that keeps to sd_notify(3).
//!
//! It is told in datagrams to the socket that `NOTIFY_SOCKET` names; without the variable nobody is told anything. Ready means
//! that the configuration holds and its addresses are listened on. It does not wait for a token: a supervisor that waits for
//! an HSM in vain ends the process and starts another, which logs in anew. Whether requests can be served is what `/readyz`
//! says, and the status line repeats it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::{interval, timeout};

use crate::admin::Readiness;
use crate::clock;

/// How long one that does not read is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at what the status line says.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// What the end may take beyond lame-duck and drain time: the threads of the tokens and the last log lines.
const MARGIN: Duration = Duration::from_secs(15);

/// Whom the process tells how it is.
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    /// It ends the process when it has heard no sign of life for so long; `None` if it does not listen for any.
    watchdog_timeout: Option<Duration>,
    /// The last word: nothing after it may say that the process is ready.
    is_stopping: AtomicBool,
}

impl Supervisor {
    /// The one that the environment names. Where it cannot be reached, the log says so and the process goes on: whoever waits
    /// for a word will notice.
    pub(super) fn of_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let socket = variable("NOTIFY_SOCKET").and_then(|address| {
            connect(&address)
                .inspect_err(|error| tracing::warn!(%error, "cannot reach the supervisor at NOTIFY_SOCKET"))
                .ok()
        });
        let watchdog_timeout = watchdog_timeout(
            variable("WATCHDOG_USEC").as_deref().and_then(OsStr::to_str),
            variable("WATCHDOG_PID").as_deref().and_then(OsStr::to_str),
            std::process::id(),
        );
        Self { socket, watchdog_timeout, is_stopping: AtomicBool::new(false) }
    }

    /// How long it waits for a sign of life, where it does.
    pub(super) fn watchdog_timeout(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog_timeout)
    }

    /// The process serves, at the start and after each reload, whatever came of it.
    pub(super) async fn ready(&self, readiness: &Readiness) {
        if !self.is_stopping.load(Ordering::Acquire) {
            self.tell(&format!("READY=1\nSTATUS={}", readiness.summary())).await;
        }
    }

    /// Another configuration is being looked at. [`Supervisor::ready`] ends it.
    pub(super) async fn reloading(&self) {
        if !self.is_stopping.load(Ordering::Acquire) {
            let micros = clock::monotonic_micros();
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading")).await;
        }
    }

    /// The process is ending, and may take `lame_duck` and `drain` for it, whatever the supervisor was told to allow.
    pub(super) async fn stopping(&self, lame_duck: Duration, drain: Duration) {
        self.is_stopping.store(true, Ordering::Release);
        let allowed = (lame_duck + drain + MARGIN).as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={allowed}\nSTATUS=stopping")).await;
    }

    /// The process lives.
    pub(super) async fn alive(&self) {
        self.tell("WATCHDOG=1").await;
    }

    /// Keeps the status line as the readiness is. Ends never.
    pub(super) async fn show_status(self: Arc<Self>, readiness: Arc<Readiness>) {
        if self.socket.is_none() {
            return;
        }
        let mut ticks = interval(STATUS_INTERVAL);
        let mut shown = String::new();
        loop {
            ticks.tick().await;
            let summary = readiness.summary();
            if summary != shown && !self.is_stopping.load(Ordering::Acquire) {
                self.tell(&format!("STATUS={summary}")).await;
                shown = summary;
            }
        }
    }

    async fn tell(&self, lines: &str) {
        let Some(socket) = &self.socket else { return };
        match timeout(PATIENCE, socket.send(lines.as_bytes())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot tell the supervisor"),
            Err(_) => tracing::warn!("cannot tell the supervisor: it does not read"),
        }
    }
}

/// A socket whose datagrams go to `address`: a path, or a name of Linux's abstract namespace after an `@`.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)?
        }
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = StdDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// `WATCHDOG_USEC`, unless `WATCHDOG_PID` says that another process is meant.
fn watchdog_timeout(micros: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    let is_meant = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let micros = micros?.parse().ok().filter(|micros| *micros > 0 && is_meant)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_of_the_process_that_is_meant() {
        let five = Some(Duration::from_micros(5));
        for (micros, pid, expected) in [
            (Some("5"), None, five),
            (Some("5"), Some("7"), five),
            (Some("5"), Some("8"), None),
            (Some("5"), Some("seven"), None),
            (Some("0"), None, None),
            (Some("five"), None, None),
            (None, Some("7"), None),
        ] {
            assert_eq!(watchdog_timeout(micros, pid, 7), expected, "{micros:?} {pid:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn abstract_addresses_are_reached() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("xks-supervisor-{}", std::process::id());
        let heard = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        connect(OsStr::new(&format!("@{name}"))).unwrap().send(b"READY=1").await.unwrap();
        let mut buffer = [0; 64];
        let length = heard.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[tokio::test]
    async fn one_that_is_not_there_is_an_error() {
        assert!(connect(OsStr::new("/nonexistent/notify")).is_err());
        assert!(connect(OsStr::new("relative")).is_err());
    }
}
