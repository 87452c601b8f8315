//! Tokens, proxies, and what they are compared with, as every part of the budget needs them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;
use xks_harness::binary::program;
use xks_harness::proxy::main_store;
use xks_harness::token::{LABEL, PIN};
use xks_harness::{Proxy, Setup, SoftHsm};
use xks_load::client::HttpVersion;
use xks_load::engine::{Engine, OpenLoop, Plan};
use xks_load::report::Summary;
use xks_load::schedule::Arrivals;
use xks_load::target::TargetArgs;
use xks_load::workload::WorkloadSettings;

/// Why something could not be measured.
pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Requests of each operation that are prepared, unless there are more keys or stores.
const POOL: usize = 256;
/// Kept connections of a load, unless a part is about their number.
pub(crate) const CONNECTIONS: u32 = 16;
/// AWS KMS's own quota of a store.
pub(crate) const KMS_RATE_PER_SEC: f64 = 1800.0;
/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the measurements are made.
pub(crate) struct Rig {
    /// The core of what is measured; `None` where the machine has but one.
    pub(crate) target_cpu: Option<usize>,
    /// The core of who watches; `None` where the load generator's has to do.
    pub(crate) observer_cpu: Option<usize>,
    /// Length of one measurement.
    pub(crate) secs: f64,
    /// How often it is made, in turns with what it is compared with.
    pub(crate) rounds: u32,
    /// Length of the soak.
    pub(crate) soak: Duration,
    /// Connections that the part `connections` opens.
    pub(crate) connections: u32,
    runtime: Runtime,
    tokens: std::sync::Mutex<BTreeMap<usize, Arc<SoftHsm>>>,
}

impl Rig {
    pub(crate) fn new(
        [target_cpu, observer_cpu]: [Option<usize>; 2],
        secs: f64,
        rounds: u32,
        soak: Duration,
        connections: u32,
    ) -> Result<Self, Fault> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            target_cpu,
            observer_cpu,
            secs,
            rounds,
            soak,
            connections,
            runtime,
            tokens: std::sync::Mutex::default(),
        })
    }

    /// Length of one measurement.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.secs)
    }

    /// Runs what the harness offers as a future.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The words that put a process onto the core of what is measured.
    pub(crate) fn launcher(&self) -> Vec<String> {
        let onto = |cpu| vec!["taskset".to_owned(), "-c".to_owned(), format!("{cpu}")];
        self.target_cpu.map(onto).unwrap_or_default()
    }

    fn command(&self, name: &str) -> Command {
        let mut words = self.launcher();
        words.push(program(name).display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// A token with so many keys, `bench-0` and on, and the one for health probes. Made once, and never changed.
    pub(crate) fn token(&self, keys: usize) -> Arc<SoftHsm> {
        let mut tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let make = || {
            let token = SoftHsm::empty();
            token.generate("xks-health", &[]);
            token.tool(&["generate", "--count", &keys.to_string(), "--label-prefix", "bench-"]);
            Arc::new(token)
        };
        Arc::clone(tokens.entry(keys).or_insert_with(make))
    }

    /// The configuration of every proxy that is measured: the defaults, with log and audit, an ECDSA certificate, the one
    /// session that SoftHSM2 is fastest with, and quotas out of the way.
    pub(crate) fn setup(&self) -> Setup {
        Setup {
            certificates: r#"[{ chain_file = "ecdsa.pem", key_file = "ecdsa.key" }]"#.to_owned(),
            timeouts: String::new(),
            token: "sessions = 1".to_owned(),
            store: r#"key_rule = { label_prefix = "bench-" }"#.to_owned(),
            keys: String::new(),
            more: "[audit]\npath = \"audit.log\"\n".to_owned(),
            launcher: self.launcher(),
            logs_to_file: true,
            ..Setup::default()
        }
    }

    /// A proxy that is ready.
    pub(crate) fn start(&self, setup: &Setup, token: Arc<SoftHsm>) -> Proxy {
        self.wait(Proxy::start_on(setup, token))
    }
}

/// Stores besides `main`, `/more-1` and on, each with a credential of its own. With `keys`, store N has the key `bench-N` as
/// external key `0`, which is what the target's requests name.
pub(crate) struct MoreStores {
    /// For the end of the configuration.
    pub(crate) config: String,
    lines: String,
}

impl MoreStores {
    pub(crate) fn new(count: usize, with_keys: bool) -> Self {
        let (mut config, mut lines) = (String::new(), String::new());
        for number in 1..=count {
            let id = access_key_id(number);
            let secret = format!("{number:043}");
            let keys = if with_keys {
                format!("[[stores.keys]]\nexternal_key_id = \"0\"\nlabel = \"bench-{number}\"\n")
            } else {
                String::new()
            };
            let rule = if with_keys {
                String::new()
            } else {
                format!("key_rule = {{ label_prefix = \"none-{number}-\" }}\n")
            };
            // Writing to a String cannot fail.
            let _ = write!(
                config,
                "[[stores]]\nname = \"more-{number}\"\nuri_path_prefix = \"/more-{number}\"\ntokens = [\"softhsm\"]\n\
                 authorization = \"none\"\nrequests_per_second = 1000000\n{rule}[[stores.credentials]]\n\
                 access_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n{keys}"
            );
            let _ = writeln!(lines, "/more-{number} {id} {secret}");
        }
        Self { config, lines }
    }

    /// Writes what the load generator has to know of them.
    pub(crate) fn file(&self, proxy: &Proxy) -> Result<PathBuf, Fault> {
        let file = proxy.folder().join("stores");
        fs::write(&file, &self.lines)?;
        Ok(file)
    }
}

/// An access key id that no other number has.
fn access_key_id(number: usize) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let letter = |place: u32| char::from(LETTERS[number / 32_usize.pow(place) % 32]);
    format!("BENCHMARKSTOREKEY{}", (0..4).rev().map(letter).collect::<String>())
}

/// A proxy as the load generator sees it, with external keys `0` and on.
pub(crate) fn target_args(proxy: &Proxy, keys: usize, stores_file: Option<PathBuf>) -> TargetArgs {
    let store = main_store();
    TargetArgs {
        host: Some(format!("localhost:{}", proxy.address.port())),
        uri_prefix: store.prefix,
        access_key_id: Some(store.signing.access_key_id),
        secret_access_key: Some(store.signing.secret_access_key),
        region: store.signing.region,
        key_id: Vec::new(),
        stores_file,
        key_id_pattern: Some(format!("{{0..{}}}", keys - 1)),
        trust_ca: Some(proxy.folder().join("ca.pem")),
        client_cert: None,
        client_key: None,
        resolve: Some(format!("localhost={}", proxy.address)),
        target_pid: Some(proxy.pid()),
    }
}

/// A load on a target.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) mix: &'static str,
    pub(crate) cdiv: bool,
    /// Requests a second of an open loop; a closed one where `None`.
    pub(crate) rate_per_sec: Option<f64>,
    pub(crate) new_connections_per_sec: f64,
    pub(crate) connections: u32,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

impl Load {
    /// As fast as the target goes.
    pub(crate) fn closed(mix: &'static str, duration: Duration) -> Self {
        Self {
            mix,
            cdiv: false,
            rate_per_sec: None,
            new_connections_per_sec: 0.0,
            connections: CONNECTIONS,
            warmup: (duration / 5).min(Duration::from_secs(2)),
            duration,
        }
    }

    /// At a rate of its own, whatever the target does.
    pub(crate) fn open(mix: &'static str, rate_per_sec: f64, duration: Duration) -> Self {
        Self { rate_per_sec: Some(rate_per_sec), ..Self::closed(mix, duration) }
    }

    /// Requests of 32 bytes under 100 bytes of AAD, signed beforehand: signing is the caller's work.
    pub(crate) fn on(&self, target: &TargetArgs) -> Result<Engine, Fault> {
        let target = target.target()?;
        let settings = WorkloadSettings {
            mix: self.mix.parse()?,
            plaintext_bytes: 32,
            aad_bytes: 100,
            cdiv: self.cdiv,
            pool: target.key_count().max(POOL),
            principal_arn: "arn:aws:iam::123456789012:user/Alice".to_owned(),
            kms_key_arn: "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000"
                .to_owned(),
            seed: 1,
        };
        let plan = Plan {
            open: self.rate_per_sec.map(|rate_per_sec| OpenLoop {
                arrivals: Arrivals::Fixed,
                rate_per_sec,
                new_connections_per_sec: self.new_connections_per_sec,
                max_outstanding: 100_000,
            }),
            http: HttpVersion::Http1,
            tls_resumption: true,
            warmup: self.warmup,
            duration: self.duration,
            max_requests: u64::MAX,
            connections: self.connections,
            streams: 1,
            threads: 1,
            timeout: Duration::from_secs(20),
            presign: Some(Duration::from_secs(60)),
            thorough_every: 10,
            check_ivs: false,
            seed: 1,
        };
        Ok(Engine::prepare(&target, &settings, plan)?)
    }
}

/// Runs a load once.
pub(crate) fn run(engine: &Engine) -> Result<Summary, Fault> {
    Ok(Summary::from(&engine.run()?))
}

/// The same; anything but right answers is a fault.
pub(crate) fn run_clean(engine: &Engine) -> Result<Summary, Fault> {
    let summary = run(engine)?;
    if summary.failed + summary.dropped > 0 || summary.ok == 0 {
        let Summary { ok, dropped, failures, .. } = &summary;
        return Err(format!("{ok} right answers, {dropped} dropped, and {failures:?}").into());
    }
    Ok(summary)
}

/// CPU of the target for each request, in microseconds.
pub(crate) fn cpu_us(summary: &Summary) -> Result<f64, Fault> {
    let process = summary.target_process.as_ref().ok_or("the target has ended")?;
    Ok(process.cpu_us_per_request())
}

/// A module in a process of its own, on the core of what is measured.
pub(crate) struct BareModule {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Initialise, login and first search.
    pub(crate) start: Duration,
}

impl BareModule {
    /// Starts it on a token of [`Rig::token`]; `module` with its variables stands before SoftHSM2.
    pub(crate) fn start(rig: &Rig, token: &SoftHsm, setup: &Setup) -> Result<Self, Fault> {
        let module = setup.module.clone().unwrap_or_else(SoftHsm::module);
        let mut child = rig
            .command("xks-bare-module")
            .arg(module)
            .args([LABEL, "bench-0"])
            .envs(token.environment())
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .env("TOKEN_PIN", PIN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = child.stdin.take().zip(child.stdout.take()).ok_or("no pipes")?;
        let mut bare = Self { child, input, output: BufReader::new(output), start: Duration::ZERO };
        bare.start = Duration::from_micros(bare.line()?.parse()?);
        Ok(bare)
    }

    fn line(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the bare module ended; its standard error says why".into());
        }
        Ok(line.trim().to_owned())
    }

    /// CPU and time of one encrypt, in microseconds.
    pub(crate) fn encrypt_us(&mut self, duration: Duration) -> Result<(f64, f64), Fault> {
        self.encrypt_under_us(1, duration)
    }

    /// The same under so many keys of the token in turn.
    pub(crate) fn encrypt_under_us(&mut self, keys: usize, duration: Duration) -> Result<(f64, f64), Fault> {
        writeln!(self.input, "encrypt {} {keys}", duration.as_secs_f64())?;
        let line = self.line()?;
        let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [calls, cpu_nanos, wall_nanos] = numbers.as_slice() else { return Err(line.into()) };
        Ok((cpu_nanos / calls / 1e3, wall_nanos / calls / 1e3))
    }

    /// Encrypts a second on so many sessions at once.
    pub(crate) fn encrypts_per_sec(&mut self, sessions: u32, duration: Duration) -> Result<f64, Fault> {
        writeln!(self.input, "sessions {} {sessions}", duration.as_secs_f64())?;
        Ok(self.line()?.parse()?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareModule {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// A null TLS echo on the core of what is measured.
pub(crate) struct NullEcho {
    child: Child,
    _folder: TempDir,
    /// How the load generator reaches it.
    pub(crate) target: TargetArgs,
}

impl NullEcho {
    pub(crate) fn start(rig: &Rig, like: &TargetArgs) -> Result<Self, Fault> {
        let folder = tempfile::tempdir()?;
        let certificate = folder.path().join("echo.pem");
        let mut child = rig
            .command("xks-load")
            .args(["echo-server", "--listen", "127.0.0.1:0", "--certificate-out"])
            .arg(&certificate)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or("no pipe")?;
        BufReader::new(output).read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("listening on ") else {
            end(&mut child);
            return Err(format!("the echo server said {line:?}").into());
        };
        let port = address.rsplit(':').next().unwrap_or_default();
        let target = TargetArgs {
            host: Some(format!("localhost:{port}")),
            trust_ca: Some(certificate),
            resolve: Some(format!("localhost={address}")),
            target_pid: Some(child.id()),
            ..like.clone()
        };
        Ok(Self { child, _folder: folder, target })
    }
}

impl Drop for NullEcho {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// How long a proxy takes from its start until it is ready.
pub(crate) fn time_to_ready(rig: &Rig, setup: &Setup, token: Arc<SoftHsm>) -> Result<Duration, Fault> {
    let began = Instant::now();
    let proxy = Proxy::start_without_waiting(setup, token);
    loop {
        if rig.wait(proxy.admin("/readyz")).0 == 200 {
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            return Err("the proxy does not become ready".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_has_a_credential_of_its_own_that_kms_would_take() {
        let ids: std::collections::BTreeSet<_> = (1..=5000).map(access_key_id).collect();
        assert_eq!(ids.len(), 5000);
        assert!(ids.iter().all(|id| id.len() == 21 && id.bytes().all(|byte| !b"0189".contains(&byte))));
        let stores = MoreStores::new(2, true);
        assert_eq!(stores.lines.lines().count(), 2);
        assert!(stores.config.contains("label = \"bench-2\"") && !stores.config.contains("key_rule"));
        assert!(MoreStores::new(1, false).config.contains("label_prefix = \"none-1-\""));
    }
}
