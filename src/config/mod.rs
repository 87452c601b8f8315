//! Configuration: one TOML file, read into settings that are known to be right, or a report of every fault.
//!
//! `deploy/xks-proxy.example.toml` explains every key; [`SETTINGS`] lists them.

mod admin;
mod audit;
mod cases;
mod keys;
mod policies;
mod reader;
mod reference;
mod server;
mod stores;
mod tokens;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use toml::de::DeTable;
use zeroize::Zeroizing;

pub use admin::{AdminSettings, AdminTls};
pub use cases::{PolicyCase, read_policy_cases};
pub use reader::Fault;
use reader::{Faults, Section, Table, Value};
pub use reference::{Kind, SETTINGS, Setting, Takeover};
pub use stores::StoreSettings;

use crate::audit::AuditSettings;
use crate::hsm::TokenSettings;
use crate::iv_budget::{IVS_PER_KEY, IvBudgetSettings};
use crate::operations::Fleet;
use crate::secret::{Secret, SecretSource};
use crate::server::{Limits, Timeouts};
use crate::tls::{CertificateFiles, ListenerTls, TlsIdentity};

/// Everything that a proxy is told.
#[derive(Debug)]
pub struct Config {
    /// Where KMS connects.
    pub listen: SocketAddr,
    /// How KMS connects.
    pub tls: ListenerTls,
    /// Where the certificates in `tls` came from.
    pub certificates: Vec<CertificateFiles>,
    /// By what `tls` is told from that of another configuration.
    pub tls_identity: TlsIdentity,
    /// The host name that KMS is told to connect to, where the certificates are to be held against it.
    pub endpoint: Option<String>,
    /// Sizes.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
    /// What GetHealthStatus says of the fleet.
    pub fleet: Fleet,
    /// Where and how operators connect.
    pub admin: AdminSettings,
    /// Where load balancers ask for `/ping` without TLS.
    pub ping_listen: Option<SocketAddr>,
    /// What is kept of initialization vectors, and where.
    pub iv_budget: IvBudgetSettings,
    /// Load balancers that send PROXY protocol.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Where authenticated requests are recorded.
    pub audit: Option<AuditSettings>,
    /// What is logged.
    pub log_level: LogLevel,
    /// Every file that was read for it, where it was loaded from a file: with another content it would be another.
    pub files: BTreeSet<PathBuf>,
    /// Those of them that hold secrets.
    pub secret_files: BTreeSet<PathBuf>,
    /// How often the configuration's files are looked at for changes; `None` for never.
    pub watch_interval: Option<Duration>,
    /// The tokens.
    pub tokens: Vec<TokenSettings>,
    /// The key stores.
    pub stores: Vec<StoreSettings>,
}

/// How much is logged; requests are logged at `Info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Errors alone.
    Error,
    /// And warnings.
    Warn,
    /// And one line a request.
    Info,
    /// And connections, indexing.
    Debug,
    /// Everything.
    Trace,
}

/// Why a configuration is not usable.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::ErrorKind,
    },
    /// The file is not right; every fault of it.
    #[error("{}", report(path, faults))]
    Faulty {
        /// The file.
        path: PathBuf,
        /// What is wrong, from top to bottom.
        faults: Vec<Fault>,
    },
}

fn report(path: &Path, faults: &[Fault]) -> String {
    let count = faults.len();
    let mut text = format!(
        "the configuration {} has {count} fault{}:",
        path.display(),
        if count == 1 { "" } else { "s" }
    );
    for fault in faults {
        text.push_str(&format!("\n  {fault}"));
    }
    text
}

impl Config {
    /// Reads a file and everything that it refers to: certificates, keys and secrets.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with_files(path).0
    }

    /// The same, and every file that was read for it, this one included: what must change before the result can.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn load_with_files(path: &Path) -> (Result<Self, ConfigError>, BTreeSet<PathBuf>) {
        let mut files = BTreeSet::from([path.to_owned()]);
        let loaded = Self::load_noting(path, &mut files);
        (loaded.map(|config| Self { files: files.clone(), ..config }), files)
    }

    fn load_noting(path: &Path, files: &mut BTreeSet<PathBuf>) -> Result<Self, ConfigError> {
        let source = std::fs::read_to_string(path).map(Zeroizing::new);
        let source = source
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.kind() })?;
        // The folder of a bare file name is the working directory, which an empty path does not name.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The parts that refer to each other by relative paths must not depend on the working directory.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let (config, named) = Self::parse_with_files(&source, &folder);
        files.extend(named);
        let mut config = config.map_err(|faults| ConfigError::Faulty { path: path.to_owned(), faults })?;
        if config.secret_files.remove(Path::new("")) {
            config.secret_files.insert(path.to_owned());
        }
        Ok(config)
    }

    /// Reads a document; relative paths in it are relative to `folder`.
    ///
    /// # Errors
    /// Every fault.
    pub fn parse(source: &str, folder: &Path) -> Result<Self, Vec<Fault>> {
        Self::parse_with_files(source, folder).0
    }

    fn parse_with_files(source: &str, folder: &Path) -> (Result<Self, Vec<Fault>>, BTreeSet<PathBuf>) {
        let (document, syntax_errors) = DeTable::parse_recoverable(source);
        let faults = Faults::new(source);
        for error in &syntax_errors {
            // The error's own text may quote the source.
            let offset = error.span().map_or(0, |span| span.start);
            faults.note(offset, "", "this is not TOML, or a key is given twice");
        }
        let config = if syntax_errors.is_empty() { read(&document, folder, &faults) } else { None };
        let (files, faults) = (faults.files(), faults.into_sorted());
        match config {
            Some(config) if faults.is_empty() => (Ok(config), files),
            _ => (Err(faults), files),
        }
    }
}

fn read<'d>(
    document: &'d toml::Spanned<DeTable<'d>>,
    folder: &Path,
    faults: &'d Faults<'d>,
) -> Option<Config> {
    let mut root = Table::root(document, faults);
    let server = root.require("server").and_then(|server| server.table());
    let server = server.and_then(|server| server::read(server, folder));
    let admin = admin::read(root.section("admin"), folder);
    let ping_listen = read_listen(root.section("ping"));
    let state = read_state(root.section("state"), folder);
    let audit = root.take("audit").and_then(|value| value.table());
    let audit = audit.and_then(|audit| audit::read(audit, folder));
    let log_level = read_log(root.section("log"));
    let watch_interval = read_reload(root.section("reload"));
    let tokens = tokens::read(&mut root, folder, state.0.as_deref());
    let stores = stores::read(&mut root, folder, &tokens);
    root.finish();
    let server = server?;
    let (state_dir, iv_budget_instances) = state;
    let instances = iv_budget_instances.unwrap_or(server.fleet.size.get().into());
    Some(Config {
        listen: server.listen,
        tls: server.tls,
        certificates: server.certificates,
        tls_identity: server.tls_identity,
        endpoint: server.endpoint,
        limits: server.limits,
        timeouts: server.timeouts,
        fleet: server.fleet,
        admin,
        ping_listen,
        iv_budget: IvBudgetSettings { dir: state_dir, share: IVS_PER_KEY / instances },
        proxy_protocol_from: server.proxy_protocol_from,
        audit,
        log_level,
        files: BTreeSet::new(),
        secret_files: faults.secret_files(),
        watch_interval,
        tokens,
        stores,
    })
}

fn read_listen(mut section: Section<'_>) -> Option<SocketAddr> {
    let listen = section.take("listen").and_then(|value| value.socket_address());
    section.finish();
    listen
}

/// The state directory, and how many proxies share the initialization vectors of a key where that is not the fleet.
fn read_state(mut section: Section<'_>, folder: &Path) -> (Option<PathBuf>, Option<u64>) {
    let dir = section.take("dir").and_then(|value| value.path_in(folder));
    let instances = section.take("iv_budget_instances").and_then(|value| value.integer(1..=1000));
    section.finish();
    (dir, instances)
}

fn read_log(mut section: Section<'_>) -> LogLevel {
    const LEVELS: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let level = section.take("level").and_then(|value| value.one_of(&LEVELS));
    section.finish();
    level.unwrap_or(LogLevel::Info)
}

fn read_reload(mut section: Section<'_>) -> Option<Duration> {
    let is_watched = section.take("watch").is_none_or(|value| value.boolean() != Some(false));
    let interval = section.millis("watch_interval_ms", 100..=60_000, 1_000);
    section.finish();
    is_watched.then_some(interval)
}

/// A secret: a string, or a table that says where it is. It is read at once, to report what is wrong with it.
fn read_secret(value: &Value<'_>, folder: &Path) -> Option<(SecretSource, Secret)> {
    let source = if value.is_string() {
        SecretSource::Inline(Secret::copy_of(value.text()?))
    } else {
        let mut table = value.table()?;
        let file = table.take("file").and_then(|file| file.path_in(folder)).map(SecretSource::File);
        let environment = table.take("environment").and_then(|name| name.text());
        let environment = environment.map(|name| SecretSource::Environment(name.to_owned()));
        let credential = table.take("systemd_credential").and_then(|name| name.text());
        let credential = credential.map(|name| SecretSource::SystemdCredential(name.to_owned()));
        table.finish();
        let mut given = [file, environment, credential].into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(source), None) => source,
            _ => {
                value.fault("must be a string, or exactly one of { file = … }, { environment = … }, { systemd_credential = … }");
                return None;
            }
        }
    };
    if !matches!(source, SecretSource::Environment(_)) {
        value.note_secret(source.file());
    }
    match source.read() {
        Ok(secret) => Some((source, secret)),
        Err(fault) => {
            value.passing_fault(fault.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests;
