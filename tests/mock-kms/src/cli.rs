//! The command line.

use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;

use crate::api::{Service, Settings};
use crate::kms::State;
use crate::kms::constraint::{ACCOUNT_ID, REGION, URI_ENDPOINT};
use crate::kms::name::Home;
use crate::kms::snapshot::{Snapshot, StateLock};
use crate::server::{self, Callers, CallersError, TlsError};
use crate::xks::{BuildError, Certificate, Client};

/// A local AWS KMS whose external key stores drive a real external key store proxy.
#[derive(Debug, Parser)]
#[command(name = "mock-kms", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the AWS KMS API until interrupted.
    Serve(ServeArgs),
    /// Show the whole way there and back: SoftHSM2, proxy, KMS and a caller, layer by layer.
    Demo(crate::demo::DemoArgs),
}

/// Options of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 takes a free one. The first line of output says which.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4599")]
    pub listen: SocketAddr,
    /// Serve HTTPS with the certificate chain in this PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Where the proxy of a name is, since an endpoint has no port. Its certificate must be for the name all the same.
    #[arg(long, value_name = "NAME=ADDRESS:PORT", value_parser = parse_resolve)]
    pub resolve: Vec<(String, SocketAddr)>,
    /// Trust proxies with certificates of the CAs in this PEM file, besides the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Show proxies the client certificate chain in this PEM file (mutual TLS).
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The client certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// Remember everything in this file, which is made where it is not there. Without it, all is forgotten at the end.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Forget what the file of `--state` remembers, and start anew.
    #[arg(long, requires = "state")]
    pub reset: bool,
    /// The Region that keys are in.
    #[arg(long, default_value = "us-east-1", value_parser = parse_region)]
    pub region: String,
    /// The account that keys belong to, twelve digits.
    #[arg(long, default_value = "111122223333", value_parser = parse_account)]
    pub account_id: String,
    /// Check signatures of callers against the credentials in this TOML file. Without it, anybody who signs may call.
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// How long a key store is CONNECTING before its proxy is called.
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub connect_ms: u64,
    /// How long a key store is DISCONNECTING.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub disconnect_ms: u64,
    /// How often the health of connected proxies is checked.
    #[arg(long, value_name = "SECS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..))]
    pub health_check_secs: u64,
    /// Quota of a key store, in cryptographic requests a second.
    #[arg(long, value_name = "NUMBER", default_value_t = crate::kms::quota::DEFAULT_REQUESTS_PER_SECOND)]
    pub requests_per_second: u32,
    /// How long one try of a call to a proxy may take, connecting included. AWS KMS gives it 250.
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..))]
    pub proxy_timeout_ms: u64,
}

/// Why the KMS cannot be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// A file cannot be read or written.
    #[error("{file}: {error}")]
    File {
        /// Which file.
        file: String,
        /// Why.
        error: std::io::Error,
    },
    /// The state file is not to be read or written, or another process has it.
    #[error("{0}")]
    State(std::io::Error),
    /// The file of credentials is wrong.
    #[error("{file}: {error}")]
    Callers {
        /// Which file.
        file: String,
        /// Why.
        error: CallersError,
    },
    /// HTTPS cannot be served.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The client for proxies cannot be made.
    #[error("client for proxies: {0}")]
    Client(#[from] BuildError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// There are no threads.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// A KMS that is about to serve.
pub struct Server {
    /// The KMS itself.
    pub service: Arc<Service>,
    /// Where it listens, `http://…` or `https://…`.
    pub url: String,
    listener: tokio::net::TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    router: axum::Router,
    health_check_interval: Duration,
    state_lock: Option<StateLock>,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match CommandLine::parse().command {
        Command::Serve(arguments) => arguments,
        Command::Demo(arguments) => return crate::demo::run(&arguments),
    };
    if let Some(name) = name_resolved_twice(&arguments.resolve) {
        let message = format!("--resolve says twice where {name} is");
        CommandLine::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mock-kms: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &ServeArgs) -> Result<(), StartError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let server = Server::start(arguments).await?;
        let _ = writeln!(std::io::stdout(), "mock-kms listens on {}", server.url);
        tokio::select! {
            () = server.serve() => {}
            () = interrupted() => {}
        }
        Ok(())
    })
}

impl Server {
    /// Reads every file and binds the address.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(arguments: &ServeArgs) -> Result<Self, StartError> {
        let home = Home { account_id: arguments.account_id.clone(), region: arguments.region.clone() };
        let callers = match &arguments.credentials {
            None => Callers::anybody(home.clone()),
            Some(file) => {
                let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&read(file)?).into_owned());
                let fault = |error| StartError::Callers { file: file.display().to_string(), error };
                Callers::from_toml(home.clone(), &text).map_err(fault)?
            }
        };
        let tls = match (&arguments.tls_cert, &arguments.tls_key) {
            (Some(chain), Some(key)) => Some(server::acceptor(chain, key)?),
            _ => None,
        };
        let snapshot = arguments.state.clone().map(Snapshot::at);
        let state_lock = snapshot.as_ref().map(Snapshot::lock).transpose().map_err(StartError::State)?;
        let state = match &snapshot {
            Some(snapshot) if !arguments.reset => snapshot.load().map_err(StartError::State)?,
            _ => State::default(),
        };
        // What cannot be written is found now, and not by the first change.
        if let Some(snapshot) = &snapshot {
            snapshot.save(&state).map_err(StartError::State)?;
        }
        let settings = Settings {
            home,
            connect_delay: Duration::from_millis(arguments.connect_ms),
            disconnect_delay: Duration::from_millis(arguments.disconnect_ms),
            requests_per_second: arguments.requests_per_second,
        };
        let service = Service::new(settings, client(arguments)?, state, snapshot);
        let address = arguments.listen;
        let listener = server::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
        let bound = listener.local_addr().unwrap_or(address);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{bound}");
        let pages = crate::page::router(&service, &url);
        let router = server::router(Arc::clone(&service), callers, pages);
        Ok(Self {
            service,
            url,
            listener,
            tls,
            router,
            health_check_interval: Duration::from_secs(arguments.health_check_secs),
            state_lock,
        })
    }

    /// Serves until it is dropped.
    pub async fn serve(self) {
        let _state_lock = self.state_lock;
        self.service.resume();
        let health_checks = self.service.check_health_every(self.health_check_interval);
        tokio::join!(health_checks, server::serve(self.listener, self.tls, self.router));
    }
}

fn client(arguments: &ServeArgs) -> Result<Client, StartError> {
    let mut builder = Client::builder().try_timeout(Duration::from_millis(arguments.proxy_timeout_ms));
    for (name, address) in &arguments.resolve {
        builder = builder.resolve(name, *address);
    }
    if let Some(file) = &arguments.ca_file {
        builder = builder.trust_ca_pem(&read(file)?)?;
    }
    if let (Some(chain), Some(key)) = (&arguments.client_cert, &arguments.client_key) {
        let chain = read(chain)?;
        builder = builder.client_identity_pem(&chain, &read(key)?)?;
        warn_of_foreign_name(&chain, &arguments.region);
    }
    Ok(builder.build()?)
}

/// A proxy that looks at the name would refuse AWS, or this.
fn warn_of_foreign_name(chain_pem: &[u8], region: &str) {
    let own = format!("cks.kms.{region}.amazonaws.com");
    let first = CertificateDer::from_pem_slice(chain_pem).ok();
    let names = first.and_then(|first| Certificate::from_der(&first)).map(|first| first.common_names);
    let names = names.unwrap_or_default();
    if !names.contains(&own) {
        let names = names.join(", ");
        let _ = writeln!(
            std::io::stderr(),
            "mock-kms: warning: the client certificate's common name is {names:?}; that of AWS KMS is {own:?}"
        );
    }
}

fn read(file: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, StartError> {
    let read = std::fs::read(file).map(zeroize::Zeroizing::new);
    read.map_err(|error| StartError::File { file: file.display().to_string(), error })
}

/// Waits for Ctrl-C or SIGTERM.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

fn parse_resolve(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, place) = text.split_once('=').ok_or("must be NAME=ADDRESS:PORT")?;
    if !URI_ENDPOINT.faults(&format!("https://{name}")).is_empty() {
        return Err("NAME must be the host of an endpoint, without https:// and port".to_owned());
    }
    let address: Option<SocketAddr> =
        place.parse().ok().or_else(|| place.to_socket_addrs().ok()?.min_by_key(SocketAddr::is_ipv6));
    Ok((name.to_owned(), address.ok_or("must be NAME=ADDRESS:PORT")?))
}

/// A name that `--resolve` has twice: only one of the places could be meant.
fn name_resolved_twice(resolve: &[(String, SocketAddr)]) -> Option<&str> {
    let mut names = resolve.iter().enumerate().map(|(index, (name, _))| (index, name));
    let is_earlier = |index: usize, name: &str| {
        resolve.iter().take(index).any(|(earlier, _)| earlier.eq_ignore_ascii_case(name))
    };
    names.find(|(index, name)| is_earlier(*index, name)).map(|(_, name)| name.as_str())
}

fn parse_region(text: &str) -> Result<String, String> {
    if REGION.faults(text).is_empty() {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a Region, such as us-east-1".to_owned())
    }
}

fn parse_account(text: &str) -> Result<String, String> {
    if ACCOUNT_ID.faults(text).is_empty() {
        Ok(text.to_owned())
    } else {
        Err("must be twelve digits".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_name_is_resolved_to_address_and_port() {
        let parsed = parse_resolve("xks.example.com=127.0.0.1:8443").unwrap();
        assert_eq!(parsed, ("xks.example.com".to_owned(), "127.0.0.1:8443".parse().unwrap()));
        for wrong in [
            "xks.example.com",
            "=127.0.0.1:8443",
            "xks.example.com=127.0.0.1",
            "xks.example.com=b",
            "xks.example.com:443=127.0.0.1:8443",
            "https://xks.example.com=127.0.0.1:8443",
            "xks.example.com/path=127.0.0.1:8443",
        ] {
            assert!(parse_resolve(wrong).is_err(), "{wrong}");
        }
    }
}
