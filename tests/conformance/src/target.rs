//! What is under test: flags, the environment names of AWS's test client, or the KMS console's JSON file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mock_kms::xks::{BuildError, Client, ClientBuilder, HttpVersion, Proxy};
use serde::Deserialize;

pub use crate::need::{Declared, Need};

/// Longest that a case waits for anything. Far above what KMS would: latency has cases of its own.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The target and what its owner declares of it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// The proxy, such as `https://xks.example.com`; a port may follow
    #[arg(long, env = "XKS_PROXY_HOST", value_name = "URL")]
    pub endpoint: Option<String>,
    /// What stands before /kms/xks/v1 in the path; empty for nothing
    #[arg(long, env = "URI_PREFIX", default_value = "", hide_default_value = true)]
    pub uri_prefix: String,
    /// The KMS console's JSON file, for path and credential
    #[arg(long, value_name = "FILE")]
    pub console_json: Option<PathBuf>,
    /// SigV4 access key id
    #[arg(long, env = "SIGV4_ACCESS_KEY_ID")]
    pub access_key_id: Option<String>,
    /// SigV4 secret access key; prefer the environment, which other users cannot list
    #[arg(long, env = "SIGV4_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub secret_access_key: Option<String>,
    /// AWS Region in the credential scope
    #[arg(long, env = "REGION", default_value = "us-east-1")]
    pub region: String,
    /// External key that may encrypt and decrypt
    #[arg(long, env = "KEY_ID")]
    pub key_id: Option<String>,
    /// Another such key of the same store
    #[arg(long, env = "SECOND_KEY_ID")]
    pub second_key_id: Option<String>,
    /// Key that may encrypt alone
    #[arg(long, env = "ENCRYPT_ONLY_KEY_ID")]
    pub encrypt_only_key_id: Option<String>,
    /// Key that may decrypt alone
    #[arg(long, env = "DECRYPT_ONLY_KEY_ID")]
    pub decrypt_only_key_id: Option<String>,
    /// Key that may do neither
    #[arg(long, env = "IMPOTENT_KEY_ID")]
    pub impotent_key_id: Option<String>,
    /// Disabled key
    #[arg(long, env = "DISABLED_KEY_ID")]
    pub disabled_key_id: Option<String>,
    /// Key that a policy refuses to arn:aws:iam::777788889999:user/Mallory, and permits to everybody else
    #[arg(long, env = "DENIED_KEY_ID")]
    pub denied_key_id: Option<String>,
    /// PEM file of roots to trust besides the system's: declares that the certificate is of no public authority
    #[arg(long, env = "CURL_CA_BUNDLE", value_name = "FILE")]
    pub trust_ca: Option<PathBuf>,
    /// Connect here for the endpoint's host, as if the DNS said so
    #[arg(long, env = "RESOLVE", value_name = "ADDR:PORT")]
    pub resolve: Option<SocketAddr>,
    /// PEM file of the client certificate for a proxy that always wants one
    #[arg(long, env = "CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, env = "CLIENT_KEY", value_name = "FILE")]
    pub client_key: Option<PathBuf>,
    /// The same two as options of curl, `--key FILE --cert FILE`, as AWS's test client takes them
    #[arg(long, env = "MTLS", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub mtls: Option<String>,
    /// What is under test, for the head of the report, such as its vendor, name and version
    #[arg(long, env = "PRODUCT", value_name = "TEXT")]
    pub product: Option<String>,
    /// Other stores, mutual TLS, hook, counts.
    #[command(flatten)]
    pub more: MoreArgs,
}

/// What a whole examination needs besides.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Other stores, mutual TLS, hook, counts")]
pub struct MoreArgs {
    /// Prefix of a second store of the same proxy
    #[arg(long, env = "SECOND_URI_PREFIX")]
    pub second_uri_prefix: Option<String>,
    /// Its access key id
    #[arg(long, env = "SECOND_SIGV4_ACCESS_KEY_ID")]
    pub second_access_key_id: Option<String>,
    /// Its secret access key
    #[arg(long, env = "SECOND_SIGV4_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub second_secret_access_key: Option<String>,
    /// A usable key of it that the first store has not
    #[arg(long, env = "SECOND_STORE_KEY_ID")]
    pub second_store_key_id: Option<String>,
    /// Prefix of a disabled store of the same proxy
    #[arg(long, env = "DISABLED_URI_PREFIX")]
    pub disabled_uri_prefix: Option<String>,
    /// Its access key id
    #[arg(long, env = "DISABLED_SIGV4_ACCESS_KEY_ID")]
    pub disabled_access_key_id: Option<String>,
    /// Its secret access key
    #[arg(long, env = "DISABLED_SIGV4_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub disabled_secret_access_key: Option<String>,
    /// A key of it that would be usable, were the store not disabled
    #[arg(long, env = "DISABLED_STORE_KEY_ID")]
    pub disabled_store_key_id: Option<String>,
    /// Where the same proxy serves with mutual TLS
    #[arg(long, env = "MTLS_ADDRESS", value_name = "ADDR:PORT")]
    pub mtls_address: Option<SocketAddr>,
    /// Folder of client certificates, NAME.pem and NAME.key: docs/conformance.md lists the names
    #[arg(long, env = "CLIENT_CERTS", value_name = "FOLDER")]
    pub client_certs: Option<PathBuf>,
    /// Command that changes the target: called with an action, docs/conformance.md lists them
    #[arg(long, env = "HOOK", value_name = "COMMAND")]
    pub hook: Option<String>,
    /// Access key id that the hook's credential actions bring and take
    #[arg(long, env = "NEXT_SIGV4_ACCESS_KEY_ID")]
    pub next_access_key_id: Option<String>,
    /// Its secret access key
    #[arg(long, env = "NEXT_SIGV4_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub next_secret_access_key: Option<String>,
    /// How many proxies serve the endpoint
    #[arg(long, env = "PROXY_COUNT", value_name = "NUMBER")]
    pub proxy_count: Option<u64>,
    /// How many external key managers they work with
    #[arg(long, env = "KEY_MANAGER_COUNT", value_name = "NUMBER")]
    pub key_manager_count: Option<u64>,
    /// URL path that answers a load balancer's plain GET with 200
    #[arg(long, env = "PING_PATH")]
    pub ping_path: Option<String>,
    /// Declarations.
    #[command(flatten)]
    pub declared: Declared,
}

/// The console's file (section XKS proxy configuration in AWS KMS console).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConsoleFile {
    xks_proxy_uri_path: String,
    xks_proxy_authentication_credential: ConsoleCredential,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConsoleCredential {
    access_key_id: String,
    raw_secret_access_key: String,
}

/// Settings that make no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Something without which nothing can be tested.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A file that cannot be read.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// Something that cannot be understood.
    #[error("{0}")]
    Invalid(String),
    /// The TLS client cannot be made.
    #[error(transparent)]
    Client(#[from] BuildError),
}

/// A target ready for use.
pub struct Target {
    /// As it was described.
    pub args: TargetArgs,
    /// First store.
    pub proxy: Proxy,
    /// Second store.
    pub second: Option<Proxy>,
    /// Disabled store.
    pub disabled: Option<Proxy>,
    /// First store with the credential that the hook brings.
    pub next: Option<Proxy>,
    /// External key that may encrypt and decrypt.
    pub key_id: String,
    /// Clients that offer one HTTP version each.
    pub http1: Client,
    /// See [`Self::http1`].
    pub http2: Client,
    /// Host without port.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Where to connect.
    pub address: SocketAddr,
    /// The action of the hook that undoes what others have done.
    undo: Mutex<Option<&'static str>>,
}

/// Over which address, and with which client certificate, a request goes.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Where to connect, where that is not what the DNS says.
    pub address: Option<SocketAddr>,
    /// PEM files of the client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TargetArgs {
    /// Checks the description and makes the clients.
    ///
    /// # Errors
    /// When something is missing or unreadable.
    pub async fn target(mut self) -> Result<Target, TargetError> {
        self.read_console_file()?;
        self.read_mtls()?;
        let endpoint = self.endpoint.clone().ok_or(TargetError::Missing("--endpoint"))?;
        if endpoint.starts_with("http://") {
            return Err(TargetError::Invalid("--endpoint must be https: KMS speaks nothing else".to_owned()));
        }
        let authority = endpoint.trim_start_matches("https://").trim_end_matches('/').to_owned();
        if authority.is_empty() || authority.contains('/') {
            return Err(TargetError::Invalid(
                "--endpoint is https://HOST[:PORT]; the path goes into --uri-prefix".to_owned(),
            ));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().map_err(|_| TargetError::Invalid(format!("{port:?} is no port")))?;
                (host.to_owned(), port)
            }
            None => (authority.clone(), 443),
        };
        let id = self.access_key_id.clone().ok_or(TargetError::Missing("--access-key-id"))?;
        let secret = self.secret_access_key.clone().ok_or(TargetError::Missing("--secret-access-key"))?;
        let key_id = self.key_id.clone().ok_or(TargetError::Missing("--key-id"))?;
        let store = |prefix: &str, id: &str, secret: &str| {
            Proxy::new(&authority, &uri_path(prefix), id, secret, &self.region)
        };
        let proxy = store(&self.uri_prefix, &id, &secret);
        let more = &self.more;
        let other_store = |prefix: &Option<String>, id: &Option<String>, secret: &Option<String>| match (
            prefix, id, secret,
        ) {
            (Some(prefix), Some(id), Some(secret)) => Some(store(prefix, id, secret)),
            _ => None,
        };
        let second =
            other_store(&more.second_uri_prefix, &more.second_access_key_id, &more.second_secret_access_key);
        let disabled = other_store(
            &more.disabled_uri_prefix,
            &more.disabled_access_key_id,
            &more.disabled_secret_access_key,
        );
        let next = match (&more.next_access_key_id, &more.next_secret_access_key) {
            (Some(id), Some(secret)) => Some(store(&self.uri_prefix, id, secret)),
            _ => None,
        };
        let address = match self.resolve {
            Some(address) => address,
            None => tokio::net::lookup_host((host.as_str(), port))
                .await
                .map_err(|error| TargetError::Invalid(format!("{host} does not resolve: {error}")))?
                .find(SocketAddr::is_ipv4)
                .ok_or_else(|| {
                    TargetError::Invalid(format!("{host} has no IPv4 address, and KMS knows no other"))
                })?,
        };
        let identity = self.client_cert.clone().zip(self.client_key.clone());
        let client = |version| self.client(&host, address, &[version], identity.as_ref());
        let (http1, http2) = (client(HttpVersion::Http1)?, client(HttpVersion::Http2)?);
        Ok(Target {
            proxy,
            second,
            disabled,
            next,
            key_id,
            http1,
            http2,
            host,
            port,
            address,
            undo: Mutex::default(),
            args: self,
        })
    }

    fn read_console_file(&mut self) -> Result<(), TargetError> {
        let Some(path) = &self.console_json else { return Ok(()) };
        // serde_json's own words would quote the file, secret included.
        let file: ConsoleFile = serde_json::from_slice(&read(path)?).map_err(|error| {
            TargetError::Invalid(format!("{}: not the console's JSON, line {}", path.display(), error.line()))
        })?;
        let prefix = file.xks_proxy_uri_path.strip_suffix(xks_spec::path::VERSION_PATH);
        let prefix = prefix
            .ok_or_else(|| TargetError::Invalid("XksProxyUriPath does not end in /kms/xks/v1".to_owned()))?;
        self.uri_prefix = prefix.to_owned();
        self.access_key_id = Some(file.xks_proxy_authentication_credential.access_key_id);
        self.secret_access_key = Some(file.xks_proxy_authentication_credential.raw_secret_access_key);
        Ok(())
    }

    /// Flags of our own go before what AWS's test client calls `MTLS`.
    fn read_mtls(&mut self) -> Result<(), TargetError> {
        let Some(options) = self.mtls.as_deref().filter(|_| self.client_cert.is_none()) else {
            return Ok(());
        };
        let words: Vec<_> = options.split_whitespace().collect();
        for pair in words.chunks(2) {
            match *pair {
                ["--key", file] => self.client_key = Some(file.into()),
                ["--cert", file] => self.client_cert = Some(file.into()),
                _ => break,
            }
        }
        if words.is_empty() || (words.len() == 4 && self.client_cert.is_some() && self.client_key.is_some()) {
            return Ok(());
        }
        Err(TargetError::Invalid("MTLS is not of the form --key FILE --cert FILE".to_owned()))
    }

    fn client(
        &self,
        host: &str,
        address: SocketAddr,
        versions: &[HttpVersion],
        identity: Option<&(PathBuf, PathBuf)>,
    ) -> Result<Client, TargetError> {
        let mut builder: ClientBuilder = Client::builder()
            .resolve(host, address)
            .http_versions(versions)
            .any_common_name()
            .try_timeout(PATIENCE)
            .tries(1);
        if let Some(file) = &self.trust_ca {
            builder = builder.trust_ca_pem(&read(file)?)?;
        }
        if let Some((chain, key)) = identity {
            builder = builder.client_identity_pem(&read(chain)?, &read(key)?)?;
        }
        Ok(builder.build()?)
    }
}

fn uri_path(prefix: &str) -> String {
    match prefix.trim_matches('/') {
        "" => xks_spec::path::VERSION_PATH.to_owned(),
        prefix => format!("/{prefix}{}", xks_spec::path::VERSION_PATH),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TargetError> {
    std::fs::read(path).map_err(|error| TargetError::File(path.to_owned(), error))
}

impl Target {
    /// A client that shows the certificate `name` of the folder of client certificates, on the mTLS address.
    ///
    /// # Errors
    /// When there is no such certificate.
    pub fn mtls_client(&self, name: Option<&str>) -> Result<(Client, Route), TargetError> {
        let more = &self.args.more;
        let folder = more.client_certs.as_ref().ok_or(TargetError::Missing("--client-certs"))?;
        let address = more.mtls_address.ok_or(TargetError::Missing("--mtls-address"))?;
        let identity =
            name.map(|name| (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key"))));
        let client = self.args.client(&self.host, address, &[HttpVersion::Http1], identity.as_ref())?;
        Ok((client, Route { address: Some(address), identity }))
    }

    /// How the clients of the main address connect.
    #[must_use]
    pub fn route(&self) -> Route {
        let identity = self.args.client_cert.clone().zip(self.args.client_key.clone());
        Route { address: self.args.resolve, identity }
    }

    /// A client that offers no protocol by ALPN.
    ///
    /// # Errors
    /// When TLS cannot be set up so.
    pub fn without_alpn(&self) -> Result<Client, TargetError> {
        self.args.client(&self.host, self.address, &[], self.route().identity.as_ref())
    }

    /// What stands in the way of a case that needs `need`: nothing, a declaration, or neither supply nor declaration.
    #[must_use]
    pub fn lacks(&self, need: Need) -> Option<Lack> {
        let args = &self.args;
        let has = match need {
            Need::SecondKey => args.second_key_id.is_some(),
            Need::EncryptOnlyKey => args.encrypt_only_key_id.is_some(),
            Need::DecryptOnlyKey => args.decrypt_only_key_id.is_some(),
            Need::ImpotentKey => args.impotent_key_id.is_some(),
            Need::DisabledKey => args.disabled_key_id.is_some(),
            Need::DeniedKey => args.denied_key_id.is_some(),
            Need::DisabledStore => self.disabled.is_some() && args.more.disabled_store_key_id.is_some(),
            Need::SecondStore => self.second.is_some() && args.more.second_store_key_id.is_some(),
            Need::Mtls => args.more.mtls_address.is_some() && args.more.client_certs.is_some(),
            Need::RotationHook => args.more.hook.is_some() && self.next.is_some(),
            Need::HsmHook | Need::HsmCorrupting => args.more.hook.is_some(),
            Need::Counts => args.more.proxy_count.is_some() && args.more.key_manager_count.is_some(),
            Need::PingPath => args.more.ping_path.is_some(),
            // What every target is held to unless it is declared otherwise.
            Need::Http2 | Need::Fqdn | Need::Port443 | Need::PublicCa | Need::CommonName => true,
        };
        if args.more.declared.has(need) {
            return Some(Lack::Declared(need.declaration().to_owned()));
        }
        if need == Need::HsmCorrupting && args.more.declared.no_hsm_hook {
            return Some(Lack::Declared(Need::HsmHook.declaration().to_owned()));
        }
        if need == Need::PublicCa && args.trust_ca.is_some() {
            return Some(Lack::Declared("--trust-ca".to_owned()));
        }
        (!has)
            .then(|| Lack::Undeclared(format!("supply {}, or declare {}", need.supply(), need.declaration())))
    }

    /// The declarations in force, for the report.
    #[must_use]
    pub fn declarations(&self) -> Vec<String> {
        let declared = &self.args.more.declared;
        let mut all: Vec<_> = Need::ALL
            .iter()
            .filter(|need| declared.has(**need))
            .map(|need| need.declaration().to_owned())
            .collect();
        if let Some(file) = &self.args.trust_ca {
            all.push(format!("--trust-ca {}", file.display()));
        }
        if let Some(address) = &self.args.resolve {
            all.push(format!("--resolve {address}"));
        }
        all
    }

    /// Has the hook change the target, whether it manages to or not until [`Self::restore`].
    ///
    /// # Errors
    /// In words, when it cannot run or ends with another status than 0.
    pub async fn change(&self, action: &str) -> Result<(), String> {
        // Before the hook runs: one that fails, or is given up, may have done half of it.
        *self.undo() = Some(if action.starts_with("hsm-") { "hsm-healthy" } else { "credentials-first" });
        self.hook(action).await
    }

    /// Whether the target is not as its owner handed it over.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.undo().is_some()
    }

    /// Has the hook undo what it did, if it did anything. Where that fails it can be tried again.
    ///
    /// # Errors
    /// As for [`Self::change`].
    pub async fn restore(&self) -> Result<(), String> {
        let undo = *self.undo();
        if let Some(action) = undo {
            self.hook(action).await?;
            *self.undo() = None;
        }
        Ok(())
    }

    fn undo(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn hook(&self, action: &str) -> Result<(), String> {
        let command = self.args.more.hook.as_deref().unwrap_or_default();
        let output = tokio::process::Command::new("/bin/sh")
            .args(["-c", &format!("{command} \"$@\""), "hook", action])
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(120), output)
            .await
            .map_err(|_| format!("the hook has not ended {action} within two minutes"))?
            .map_err(|error| format!("the hook cannot run: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("the hook failed at {action}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// What stands in the way of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The declaration that says so.
    Declared(String),
    /// What to do about it.
    Undeclared(String),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn read(arguments: &[&str]) -> Option<[Option<PathBuf>; 2]> {
        let words = ["xks-conformance"].iter().chain(arguments);
        let mut args = CommandLine::try_parse_from(words).unwrap().target;
        args.read_mtls().ok()?;
        Some([args.client_cert, args.client_key])
    }

    #[test]
    fn the_client_certificate_may_be_written_as_awss_client_takes_it() {
        let both = Some([Some("c.pem".into()), Some("k.pem".into())]);
        assert_eq!(read(&["--mtls", "--key k.pem --cert c.pem"]), both);
        assert_eq!(read(&["--mtls=--cert c.pem  --key k.pem"]), both);
        assert_eq!(read(&["--mtls", ""]), Some([None, None]));
        let flags = ["--client-cert", "c.pem", "--client-key", "k.pem", "--mtls", "--key x --cert y"];
        assert_eq!(read(&flags), both);
        for wrong in
            ["--cert c.pem", "--key k.pem", "--key a --key b", "--key k.pem --cert c.pem -k", "c.pem"]
        {
            assert_eq!(read(&["--mtls", wrong]), None, "{wrong}");
        }
    }
}
