//! The real proxy as a process of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::binary::program;
use crate::client::{Connection, Http};
use crate::pki::Pki;
use crate::request::Signing;
use crate::token::{LABEL, PIN, SoftHsm};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Credentials and prefix of a store in [`Setup`]'s configuration.
#[derive(Clone, Debug)]
pub struct Store {
    /// Path prefix.
    pub prefix: String,
    /// How to sign for it.
    pub signing: Signing,
}

/// Store `main` at `/main`, with the keys of the development set-up.
#[must_use]
pub fn main_store() -> Store {
    Store {
        prefix: "/main".to_owned(),
        signing: Signing::new("MAINTESTKEYID234567ABCDEFG", "main+test+secret/main+test+secret/main+test+1"),
    }
}

/// Store `nested` at `/main/nested`, whose rule puts `nested-` before the external key id.
#[must_use]
pub fn nested_store() -> Store {
    Store {
        prefix: "/main/nested".to_owned(),
        signing: Signing::new("NESTEDTESTKEYID234567ABCDE", "nested+secret/nested+secret/nested+secret+1"),
    }
}

/// What a proxy is started with. The defaults suit tests on a busy machine: generous deadlines, no lame-duck time.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Certificates and their keys, as a TOML array.
    pub certificates: String,
    /// Lines of `[server]`.
    pub server: String,
    /// Lines of `[server.limits]`.
    pub limits: String,
    /// Lines of `[server.timeouts]`.
    pub timeouts: String,
    /// Line that says which token of the module is meant.
    pub selector: String,
    /// Line with the token's PIN.
    pub pin: String,
    /// Lines added to the token.
    pub token: String,
    /// The PKCS#11 module, SoftHSM2 unless another is given.
    pub module: Option<PathBuf>,
    /// Variables for the module besides those of the token.
    pub environment: Vec<(String, String)>,
    /// Names of the tokens of store `main`, as a TOML array.
    pub tokens: String,
    /// Authorization of store `main`, as lines.
    pub authorization: String,
    /// Lines of store `main`.
    pub store: String,
    /// Its request quota, as lines of store `main`: out of the way unless a test is about it.
    pub quota: String,
    /// Keys of store `main`, as TOML.
    pub keys: String,
    /// The rule of store `nested`.
    pub nested_rule: String,
    /// Anything at the end of the file.
    pub more: String,
    /// Arguments of `serve` besides the configuration.
    pub arguments: Vec<String>,
    /// Environment variables of the proxy's process.
    pub process_environment: Vec<(String, String)>,
    /// Words before the proxy's command, which become the proxy by exec: `taskset -c 0`.
    pub launcher: Vec<String>,
    /// The log goes to a file that nobody reads after the start ([`Proxy::log_file`]), as a benchmark wants it: following it
    /// costs the test's process time and memory.
    pub logs_to_file: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let labels = ["demo", "demo-2", "encrypt-only", "decrypt-only", "no-usage", "aes-128", "absent"];
        let key =
            |label: &&str| format!("[[stores.keys]]\nexternal_key_id = \"{label}\"\nlabel = \"{label}\"\n");
        Self {
            certificates: r#"[
    { chain_file = "ecdsa.pem", key_file = "ecdsa.key" },
    { chain_file = "rsa.pem", key_file = "rsa.key" },
]"#
            .to_owned(),
            server: "lame_duck_secs = 0".to_owned(),
            limits: String::new(),
            timeouts: "answer_ms = 30000\nfirst_answer_ms = 30000".to_owned(),
            selector: format!("label = \"{LABEL}\""),
            pin: format!("pin = \"{PIN}\""),
            token: "sessions = 2".to_owned(),
            module: None,
            environment: Vec::new(),
            tokens: r#"["softhsm"]"#.to_owned(),
            authorization: "authorization = \"none\"".to_owned(),
            store: String::new(),
            quota: "requests_per_second = 1000000".to_owned(),
            keys: labels.iter().map(key).collect(),
            nested_rule: "{ label_prefix = \"nested-\" }".to_owned(),
            more: String::new(),
            arguments: Vec::new(),
            process_environment: Vec::new(),
            launcher: Vec::new(),
            logs_to_file: false,
        }
    }
}

impl Setup {
    /// Writes the configuration and its certificates into `folder` and returns the configuration's path.
    #[must_use]
    pub fn write(&self, folder: &Path, token: &SoftHsm) -> PathBuf {
        Pki::shared().write(folder);
        let path = folder.join("xks-proxy.toml");
        fs::write(&path, self.toml(token)).unwrap();
        path
    }

    fn toml(&self, token: &SoftHsm) -> String {
        let module = self.module.clone().unwrap_or_else(SoftHsm::module);
        let of_token = token.environment().map(|(name, path)| (name.to_owned(), path.display().to_string()));
        let mut environment = Vec::from(of_token);
        environment.extend(self.environment.clone());
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        let credential = |store: &Store| {
            format!(
                "[[stores.credentials]]\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"",
                store.signing.access_key_id, store.signing.secret_access_key
            )
        };
        let Self {
            certificates,
            server,
            limits,
            timeouts,
            selector,
            pin,
            tokens,
            authorization,
            store,
            quota,
            keys,
            nested_rule,
            more,
            ..
        } = self;
        let token_lines = &self.token;
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
certificates = {certificates}
{server}
[server.limits]
{limits}
[server.timeouts]
{timeouts}
[admin]
listen = "127.0.0.1:0"
[ping]
listen = "127.0.0.1:0"
[[tokens]]
name = "softhsm"
module = {module:?}
{selector}
{pin}
environment = {{ {environment} }}
{token_lines}
[[stores]]
name = "main"
uri_path_prefix = "/main"
tokens = {tokens}
{authorization}
{quota}
{store}
{main_credential}
{keys}
[[stores]]
name = "nested"
uri_path_prefix = "/main/nested"
tokens = ["softhsm"]
authorization = "none"
key_rule = {nested_rule}
{nested_credential}
{more}
"#,
            module = module.display().to_string(),
            environment = environment.join(", "),
            main_credential = credential(&main_store()),
            nested_credential = credential(&nested_store()),
        )
    }
}

/// A running proxy, killed when dropped.
pub struct Proxy {
    child: Child,
    log: Arc<Log>,
    folder: TempDir,
    /// The token behind it.
    pub token: Arc<SoftHsm>,
    /// Where KMS connects.
    pub address: SocketAddr,
    /// The operator's listener.
    pub admin: SocketAddr,
    /// The load balancer's plain listener.
    pub ping: SocketAddr,
}

/// The log in the proxy's folder, where the set-up wants a file.
const LOG_FILE: &str = "log";
/// The listeners, by their purpose in the log.
const PURPOSES: [&str; 3] = ["KMS", "operators", "load balancers"];

/// What the proxy has logged so far, line by line.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    grew: Condvar,
    is_stuck: AtomicBool,
}

impl Log {
    /// Keeps each line until the output ends.
    fn follow(&self, output: impl BufRead) {
        for line in output.lines().map_while(Result::ok) {
            while self.is_stuck.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.keep(line);
        }
    }

    /// Keeps the lines up to those that say where the proxy listens, or until it has ended.
    fn read_start_of(&self, file: &Path, child: &mut Child) {
        let until = Instant::now() + PATIENCE;
        loop {
            let has_ended = child.try_wait().unwrap().is_some();
            let text = fs::read_to_string(file).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let listens = whole.lines().filter(|line| line.contains("\"listening\"")).count();
            if listens >= PURPOSES.len() || has_ended || Instant::now() > until {
                whole.lines().for_each(|line| self.keep(line.to_owned()));
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn keep(&self, line: String) {
        let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
        self.lines.lock().unwrap().push(value);
        self.grew.notify_all();
    }
}

impl Proxy {
    /// Starts a proxy on a fresh token with the development keys, and waits until it is ready.
    pub async fn start(setup: &Setup) -> Self {
        Self::start_on(setup, Arc::new(SoftHsm::with_keys())).await
    }

    /// The same on a given token.
    pub async fn start_on(setup: &Setup, token: Arc<SoftHsm>) -> Self {
        let proxy = Self::start_without_waiting(setup, token);
        proxy.wait_until_ready().await;
        proxy
    }

    /// Starts a proxy and waits until it listens.
    ///
    /// # Panics
    /// If it ends instead, or does not listen in time.
    #[must_use]
    pub fn start_without_waiting(setup: &Setup, token: Arc<SoftHsm>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = setup.write(folder.path(), &token);
        Self::launch(folder, &config, setup, token)
    }

    /// Starts a proxy with the configuration in a folder that a test has laid out, and waits until it listens.
    ///
    /// # Panics
    /// If it ends instead, or does not listen in time.
    #[must_use]
    pub fn start_in(folder: &Path, token: Arc<SoftHsm>) -> Self {
        let config = folder.join("xks-proxy.toml");
        Self::launch(tempfile::tempdir().unwrap(), &config, &Setup::default(), token)
    }

    fn launch(folder: TempDir, config: &Path, setup: &Setup, token: Arc<SoftHsm>) -> Self {
        let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
        let proxy = program("xks-proxy").into_os_string();
        let mut words = setup.launcher.iter().map(OsString::from).chain([proxy]);
        let stdout = if setup.logs_to_file {
            // Appended to, so that it may be cut while the proxy writes.
            let file = fs::OpenOptions::new().create(true).append(true).open(folder.path().join(LOG_FILE));
            Stdio::from(file.unwrap())
        } else {
            Stdio::piped()
        };
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .args(&setup.arguments)
            .envs(setup.process_environment.iter().map(|(name, value)| (name, value)))
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let log = Arc::new(Log::default());
        match child.stdout.take() {
            Some(output) => {
                let reader_log = Arc::clone(&log);
                std::thread::spawn(move || reader_log.follow(BufReader::new(output)));
            }
            None => log.read_start_of(&folder.path().join(LOG_FILE), &mut child),
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut proxy = Self { child, log, folder, token, address: nowhere, admin: nowhere, ping: nowhere };
        for (which, purpose) in PURPOSES.into_iter().enumerate() {
            let line =
                proxy.wait_for_log(|line| line["message"] == "listening" && line["purpose"] == purpose);
            let address = line["address"].as_str().unwrap().parse().unwrap();
            *[&mut proxy.address, &mut proxy.admin, &mut proxy.ping][which] = address;
        }
        proxy
    }

    /// Waits until `/readyz` says 200.
    pub async fn wait_until_ready(&self) {
        self.wait_for("/readyz", |status, _| status == 200).await;
    }

    /// Polls the admin listener until an answer is as wanted.
    ///
    /// # Panics
    /// If it is not in time.
    pub async fn wait_for(&self, path: &str, is_wanted: impl Fn(u16, &str) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let (status, text) = self.admin(path).await;
            if is_wanted(status, &text) {
                return;
            }
            assert!(Instant::now() < until, "{path} still says {status} {text}\n{}", self.all_output());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks the admin listener.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        crate::client::plain_get(self.admin, path).await
    }

    /// The value of a metric, 0 where it is absent; `name` includes its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.admin("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// A new connection.
    pub async fn connect(&self, http: Http) -> Connection {
        Connection::open(self.address, http).await
    }

    /// The folder with its configuration and certificates.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The log, where the set-up wants a file. It may be cut at any time.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join(LOG_FILE)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until the process has ended.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "still running\n{}", self.all_output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The first log line that is wanted, waited for if need be.
    ///
    /// # Panics
    /// If there is none in time.
    #[must_use]
    pub fn wait_for_log(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| is_wanted(line)) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                panic!("no such line in the log\n{}", self.all_output());
            }
            // A proxy that ends before it listens leaves no lines behind.
            lines = self.log.grew.wait_timeout(lines, left.min(Duration::from_millis(50))).unwrap().0;
        }
    }

    /// From now on nobody reads what the proxy writes to its standard output.
    pub fn stop_reading_the_log(&self) {
        self.log.is_stuck.store(true, Ordering::Release);
    }

    /// The log line of the request with that kmsRequestId.
    #[must_use]
    pub fn request_log(&self, kms_request_id: &str) -> Value {
        self.wait_for_log(|line| line["kmsRequestId"] == kms_request_id)
    }

    /// All log lines so far.
    #[must_use]
    pub fn log_lines(&self) -> Vec<Value> {
        self.log.lines.lock().unwrap().clone()
    }

    /// Log and standard error, for messages of failed tests and for searches of secrets.
    #[must_use]
    pub fn all_output(&self) -> String {
        let log: Vec<_> = self.log_lines().iter().map(ToString::to_string).collect();
        let errors = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
        format!("{}\n{errors}", log.join("\n"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
