//! The real proxy, as a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Stop;
use super::folder::Folder;

/// How long anything of the proxy may take: SoftHSM2 on a busy machine needs seconds at most.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A running proxy; it ends when this is dropped.
pub(super) struct ProxyProcess {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    errors: NamedTempFile,
    // Relative paths in it are relative to its folder.
    _configuration: NamedTempFile,
    /// Where KMS connects.
    pub(super) address: SocketAddr,
}

impl ProxyProcess {
    /// Starts the proxy on `port`, 0 for a free one, and waits until it is ready.
    pub(super) async fn start(
        program: &Path,
        folder: &Folder,
        port: u16,
        is_key_enabled: bool,
    ) -> Result<Self, Stop> {
        let fault = |error: std::io::Error| Stop::Proxy(format!("{}: {error}", program.display()));
        let configuration = temporary(folder.path(), ".toml")?;
        configuration
            .as_file()
            .write_all(folder.configuration(port, is_key_enabled)?.as_bytes())
            .map_err(fault)?;
        let errors = temporary(folder.path(), ".stderr")?;
        let mut child = Command::new(program)
            .arg("serve")
            .arg("--config")
            .arg(configuration.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.reopen().map_err(fault)?)
            .spawn()
            .map_err(fault)?;
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(output) = child.stdout.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut proxy = Self { child, log, errors, _configuration: configuration, address: nowhere };
        proxy.address = proxy.listening("KMS").await?;
        let admin = proxy.listening("operators").await?;
        proxy.wait(async |_| is_ready(admin).await).await?;
        Ok(proxy)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log line of the request with that `kmsRequestId`.
    pub(super) async fn request_log(&mut self, kms_request_id: &str) -> Result<Value, Stop> {
        let is_wanted = |line: &Value| line["kmsRequestId"] == kms_request_id;
        self.wait(async |proxy| proxy.log_line(is_wanted)).await
    }

    /// Asks the process to end, and waits until it has.
    pub(super) async fn end(&mut self) -> Result<(), Stop> {
        let _ = Command::new("kill").arg(self.pid().to_string()).status();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(Stop::Proxy("the proxy does not end".to_owned()))
    }

    async fn listening(&mut self, purpose: &str) -> Result<SocketAddr, Stop> {
        let is_wanted = |line: &Value| line["message"] == "listening" && line["purpose"] == purpose;
        self.wait(async |proxy| proxy.log_line(is_wanted)?["address"].as_str()?.parse().ok()).await
    }

    fn log_line(&self, is_wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|line| is_wanted(line)).cloned()
    }

    /// Waits until there is something, as long as the process runs.
    async fn wait<T>(&mut self, ask: impl AsyncFn(&Self) -> Option<T>) -> Result<T, Stop> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = ask(self).await {
                return Ok(found);
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return Err(Stop::Proxy(format!("the proxy ended\n{}", self.last_words())));
            }
            if Instant::now() > until {
                return Err(Stop::Proxy(format!("the proxy is not ready\n{}", self.last_words())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn last_words(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = log.iter().rev().take(5).rev().map(ToString::to_string);
        let errors = std::fs::read_to_string(self.errors.path()).unwrap_or_default();
        lines.chain([errors]).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn temporary(folder: &Path, suffix: &str) -> Result<NamedTempFile, Stop> {
    let made = tempfile::Builder::new().prefix("demo-").suffix(suffix).tempfile_in(folder);
    made.map_err(|error| Stop::Setup(format!("{}: {error}", PathBuf::from(folder).display())))
}

async fn is_ready(admin: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    answer.starts_with(b"HTTP/1.1 200 ").then_some(())
}
