//! One proxy as a target: address, trust, credentials and keys, from flags, environment or a file of names.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::ServerName;

use crate::sign::Signer;

/// Flags that describe a target. Each has an environment name, so that a file which describes the target for a curl
/// client serves here too.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// Host of the proxy, with ":port" unless 443
    #[arg(long, env = "XKS_PROXY_HOST", value_name = "HOST[:PORT]")]
    pub host: Option<String>,
    /// URI path prefix, without a leading slash; empty for none
    #[arg(long, env = "URI_PREFIX", default_value = "", hide_default_value = true)]
    pub uri_prefix: String,
    /// SigV4 access key id
    #[arg(long, env = "SIGV4_ACCESS_KEY_ID")]
    pub access_key_id: Option<String>,
    /// SigV4 secret access key; prefer the environment, which other users cannot list
    #[arg(long, env = "SIGV4_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub secret_access_key: Option<String>,
    /// AWS Region in the credential scope
    #[arg(long, env = "REGION", default_value = "us-east-1")]
    pub region: String,
    /// Further stores of the same proxy, one a line: URI_PREFIX ACCESS_KEY_ID SECRET_ACCESS_KEY. Requests are dealt out
    /// over all, for the same external key ids
    #[arg(long, env = "STORES_FILE", value_name = "FILE")]
    pub stores_file: Option<PathBuf>,
    /// External key id; repeatable
    #[arg(long, env = "KEY_ID")]
    pub key_id: Vec<String>,
    /// External key ids by number, such as 'bench-{0..9999}'; takes the place of --key-id
    #[arg(long, env = "KEY_ID_PATTERN", value_name = "PATTERN")]
    pub key_id_pattern: Option<String>,
    /// PEM file of the roots to trust; otherwise the system's
    #[arg(long, env = "CURL_CA_BUNDLE", value_name = "FILE")]
    pub trust_ca: Option<PathBuf>,
    /// PEM file of a client certificate chain, for a proxy that asks for one
    #[arg(long, env = "CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// PEM file of the client certificate's private key
    #[arg(long, env = "CLIENT_KEY", value_name = "FILE")]
    pub client_key: Option<PathBuf>,
    /// Connect to ADDR:PORT for host NAME, as if the DNS said so
    #[arg(long, env = "RESOLVE", value_name = "NAME=ADDR:PORT")]
    pub resolve: Option<String>,
    /// Process id of the proxy on this machine: reports its CPU per request and memory
    #[arg(long, env = "TARGET_PID", value_name = "PID")]
    pub target_pid: Option<u32>,
}

/// A target that cannot be used as described.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A setting without which no request can be made.
    #[error("{0} is missing (flag --{1} or environment {2})")]
    Missing(&'static str, &'static str, &'static str),
    /// A setting that cannot be understood.
    #[error("{0}")]
    Invalid(String),
}

/// A key store of a target, as its client knows it.
#[derive(Debug)]
pub struct Store {
    /// Path before `/kms/xks/v1`: empty, or with a leading slash.
    pub uri_prefix: String,
    /// Makes the signatures.
    pub signer: Signer,
}

/// A target ready for use. Its name is resolved once, so that no run measures the DNS.
#[derive(Debug)]
pub struct Target {
    /// The `Host` header: name, and port unless 443.
    pub host: String,
    /// The name in the certificate.
    pub server_name: ServerName<'static>,
    /// Where to connect.
    pub address: SocketAddr,
    /// Its stores, at least one.
    pub stores: Arc<Vec<Store>>,
    /// External key ids of each store, at least one.
    pub key_ids: Vec<String>,
    /// Roots to trust; otherwise the system's.
    pub trust_ca: Option<PathBuf>,
    /// Files of the client certificate chain and its key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// The proxy's process on this machine.
    pub process_id: Option<u32>,
}

impl Target {
    /// Keys of all stores together.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.stores.len() * self.key_ids.len()
    }
}

/// Most keys that a pattern may name.
const MAX_KEYS: u64 = 1_000_000;

impl TargetArgs {
    /// The second target of a comparison: `names` where given, this target's values otherwise, but never its process.
    ///
    /// # Errors
    /// When a name is unknown or a value cannot be understood.
    pub fn overlaid(&self, names: &BTreeMap<String, String>) -> Result<Self, TargetError> {
        let mut args = Self { target_pid: None, ..self.clone() };
        for (name, value) in names {
            let text = || Some(value.clone());
            let file = || Some(PathBuf::from(value));
            match name.as_str() {
                "XKS_PROXY_HOST" => {
                    args.host = text();
                    args.resolve = None;
                }
                "URI_PREFIX" => args.uri_prefix.clone_from(value),
                "SIGV4_ACCESS_KEY_ID" => args.access_key_id = text(),
                "SIGV4_SECRET_ACCESS_KEY" => args.secret_access_key = text(),
                "REGION" => args.region.clone_from(value),
                "STORES_FILE" => args.stores_file = file(),
                "KEY_ID" => {
                    args.key_id = vec![value.clone()];
                    args.key_id_pattern = None;
                }
                "KEY_ID_PATTERN" => {
                    args.key_id_pattern = text();
                    args.key_id.clear();
                }
                "CURL_CA_BUNDLE" => args.trust_ca = file(),
                "CLIENT_CERT" => args.client_cert = file(),
                "CLIENT_KEY" => args.client_key = file(),
                "TARGET_PID" => {
                    let process_id = value.parse().map_err(|_| invalid("TARGET_PID", value))?;
                    args.target_pid = Some(process_id);
                }
                "RESOLVE" => {}
                _ => return Err(TargetError::Invalid(format!("unknown name {name}"))),
            }
        }
        // Last, because a new host drops the old one's address whatever the order of the names.
        if let Some(resolve) = names.get("RESOLVE") {
            args.resolve = Some(resolve.clone());
        }
        Ok(args)
    }

    /// Checks the settings and resolves the host's name.
    ///
    /// # Errors
    /// When one is missing or invalid, or the name does not resolve.
    pub fn target(&self) -> Result<Target, TargetError> {
        let host = required(self.host.as_ref(), "the proxy's host", "host", "XKS_PROXY_HOST")?;
        let access_key_id = required(
            self.access_key_id.as_ref(),
            "the access key id",
            "access-key-id",
            "SIGV4_ACCESS_KEY_ID",
        )?;
        let secret_access_key = required(
            self.secret_access_key.as_ref(),
            "the secret access key",
            "secret-access-key",
            "SIGV4_SECRET_ACCESS_KEY",
        )?;
        let (name, port) = split_host(host)?;
        // A client leaves the default port out of the Host header, and so out of the signature.
        let host = if port == 443 { name.to_owned() } else { host.to_owned() };
        let store = |prefix: &str, access_key_id: &str, secret_access_key: &str| {
            let prefix = prefix.trim_matches('/');
            let uri_prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
            Store { uri_prefix, signer: Signer::new(access_key_id, secret_access_key, &self.region, &host) }
        };
        let mut stores = vec![store(&self.uri_prefix, access_key_id, secret_access_key)];
        if let Some(file) = &self.stores_file {
            let further = read_stores(file)?;
            stores.extend(further.iter().map(|[prefix, id, secret]| store(prefix, id, secret)));
        }
        Ok(Target {
            stores: Arc::new(stores),
            server_name: ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
                .map_err(|_| invalid("host", name))?,
            address: self.address(name, port)?,
            host,
            key_ids: self.key_ids()?,
            trust_ca: self.trust_ca.clone(),
            client_identity: self.client_cert.clone().zip(self.client_key.clone()),
            process_id: self.target_pid,
        })
    }

    fn address(&self, name: &str, port: u16) -> Result<SocketAddr, TargetError> {
        if let Some(resolve) = &self.resolve {
            let (resolved_name, address) =
                resolve.split_once('=').ok_or_else(|| invalid("resolve", resolve))?;
            if resolved_name == name {
                return address.parse().map_err(|_| invalid("resolve", resolve));
            }
        }
        let addresses: Vec<SocketAddr> = (name.trim_matches(['[', ']']), port)
            .to_socket_addrs()
            .map_err(|error| TargetError::Invalid(format!("{name} does not resolve: {error}")))?
            .collect();
        // AWS KMS reaches proxies by IPv4.
        let chosen = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        chosen.copied().ok_or_else(|| TargetError::Invalid(format!("{name} has no address")))
    }

    fn key_ids(&self) -> Result<Vec<String>, TargetError> {
        match &self.key_id_pattern {
            Some(pattern) => expand(pattern),
            None if self.key_id.is_empty() => {
                Err(TargetError::Missing("an external key id", "key-id", "KEY_ID"))
            }
            None => Ok(self.key_id.clone()),
        }
    }
}

fn required<'a>(
    value: Option<&'a String>,
    what: &'static str,
    flag: &'static str,
    name: &'static str,
) -> Result<&'a str, TargetError> {
    value.filter(|value| !value.is_empty()).map(String::as_str).ok_or(TargetError::Missing(what, flag, name))
}

fn invalid(what: &str, value: &str) -> TargetError {
    TargetError::Invalid(format!("{what} cannot be understood: {value:?}"))
}

fn split_host(host: &str) -> Result<(&str, u16), TargetError> {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => {
            Ok((name, port.parse().map_err(|_| invalid("host", host))?))
        }
        _ => Ok((host, 443)),
    }
}

/// Expands the one `{first..last}` of a pattern; a leading zero in `first` pads every number to its width.
fn expand(pattern: &str) -> Result<Vec<String>, TargetError> {
    let fault = || invalid("key id pattern (expected one {first..last})", pattern);
    let (before, rest) = pattern.split_once('{').ok_or_else(fault)?;
    let (range, after) = rest.split_once('}').ok_or_else(fault)?;
    let (first, last) = range.split_once("..").ok_or_else(fault)?;
    let (low, high): (u64, u64) = (first.parse().map_err(|_| fault())?, last.parse().map_err(|_| fault())?);
    if high < low || high - low >= MAX_KEYS {
        return Err(fault());
    }
    let width = if first.len() > 1 && first.starts_with('0') { first.len() } else { 0 };
    Ok((low..=high).map(|number| format!("{before}{number:0width$}{after}")).collect())
}

/// Reads prefix, access key id and secret access key of each line. A line is never shown: it holds a secret.
fn read_stores(file: &Path) -> Result<Vec<[String; 3]>, TargetError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| TargetError::Invalid(format!("{}: {error}", file.display())))?;
    let mut stores = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        stores.push(words.try_into().map_err(|_| {
            let place = format!("{}, line {}", file.display(), index + 1);
            TargetError::Invalid(format!("{place}: expected URI_PREFIX ACCESS_KEY_ID SECRET_ACCESS_KEY"))
        })?);
    }
    Ok(stores)
}

/// Reads a file of `NAME=VALUE` lines as a shell would: comments, `export` and matching quotes are taken off.
///
/// # Errors
/// When the file cannot be read or a line holds no `=`. The line itself is never shown: it may hold a secret.
pub fn read_names(file: &Path) -> Result<BTreeMap<String, String>, TargetError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| TargetError::Invalid(format!("{}: {error}", file.display())))?;
    let mut names = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) =
            line.strip_prefix("export ").unwrap_or(line).split_once('=').ok_or_else(|| {
                TargetError::Invalid(format!("{}, line {}: expected NAME=VALUE", file.display(), index + 1))
            })?;
        let quoted = |mark| value.strip_prefix(mark).and_then(|rest: &str| rest.strip_suffix(mark));
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        names.insert(name.trim().to_owned(), value.to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn args(extra: &[&str]) -> TargetArgs {
        let base = ["x", "--access-key-id", "AKID", "--secret-access-key", "secret", "--key-id", "k"];
        Cli::parse_from(base.iter().chain(extra)).target
    }

    #[test]
    fn patterns_expand_plain_or_padded() {
        assert_eq!(expand("bench-{8..11}").unwrap(), ["bench-8", "bench-9", "bench-10", "bench-11"]);
        assert_eq!(expand("k{08..10}z").unwrap(), ["k08z", "k09z", "k10z"]);
        assert_eq!(expand("bench-{0..9999}").unwrap().len(), 10_000);
        for fault in ["bench", "{1..", "{a..b}", "{5..4}", "{0..99999999}"] {
            assert!(expand(fault).is_err(), "{fault}");
        }
    }

    #[test]
    fn the_default_port_stays_out_of_the_host_header() {
        let resolve = "xks.example.com=127.0.0.1:8443";
        let target = args(&["--host", "xks.example.com:443", "--resolve", resolve]).target().unwrap();
        assert_eq!((target.host.as_str(), target.address.port()), ("xks.example.com", 8443));
        let target = args(&["--host", "127.0.0.1:9443", "--uri-prefix", "a/b"]).target().unwrap();
        assert_eq!((target.host.as_str(), target.stores[0].uri_prefix.as_str()), ("127.0.0.1:9443", "/a/b"));
        let target = args(&["--host", "[::1]"]).target().unwrap();
        assert_eq!(target.address.to_string(), "[::1]:443");
    }

    #[test]
    fn further_stores_are_read_and_a_fault_shows_no_secret() {
        let file = std::env::temp_dir().join(format!("xks-load-stores-{}", std::process::id()));
        let path = file.to_str().unwrap();
        std::fs::write(&file, "/b AKIDB secret-b\n\nc AKIDC secret-c\n").unwrap();
        let target = args(&["--host", "127.0.0.1:1", "--uri-prefix", "a", "--stores-file", path]).target();
        std::fs::write(&file, "/b AKIDB\n/c hunter2 hunter2 hunter2\n").unwrap();
        let fault = args(&["--host", "127.0.0.1:1", "--stores-file", path]).target().unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        let target = target.unwrap();
        let prefixes: Vec<_> = target.stores.iter().map(|store| store.uri_prefix.as_str()).collect();
        assert_eq!(prefixes, ["/a", "/b", "/c"]);
        assert!(fault.contains("line 1") && !fault.contains("AKIDB"), "{fault}");
    }

    #[test]
    fn a_second_target_inherits_all_but_the_process() {
        let first = args(&["--host", "a:1", "--resolve", "a=127.0.0.1:1", "--target-pid", "7"]);
        let names = BTreeMap::from([("XKS_PROXY_HOST".to_owned(), "b:2".to_owned())]);
        let second = first.overlaid(&names).unwrap();
        assert_eq!((second.host.as_deref(), second.resolve, second.target_pid), (Some("b:2"), None, None));
        assert_eq!(second.access_key_id.as_deref(), Some("AKID"));
        assert!(first.overlaid(&BTreeMap::from([("HOST".to_owned(), "b".to_owned())])).is_err());
    }

    #[test]
    fn names_are_read_as_a_shell_reads_them() {
        let file = std::env::temp_dir().join(format!("xks-load-names-{}", std::process::id()));
        std::fs::write(&file, "# comment\nexport A='x y'\nB=\"z=\"\n\nC=plain\n").unwrap();
        let names = read_names(&file).unwrap();
        std::fs::write(&file, "secret without a sign\n").unwrap();
        let fault = read_names(&file).unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(names.into_values().collect::<Vec<_>>(), ["x y", "z=", "plain"]);
        assert!(fault.contains("line 1") && !fault.contains("secret"), "{fault}");
    }
}
