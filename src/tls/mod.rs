//! The TLS side of the listener: four cipher suites, several certificates, ALPN, client certificates.

mod alert;
mod chain;
mod client;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConnection;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use alert::handshake_failure;
pub use chain::{NOTICE_DAYS, Oddity, ServerChain, days_until, show_chains};
use client::ClientRule;
pub use client::{ClientCertificates, ClientFault, kms_common_name};

/// ALPN names, the preferred first.
pub const ALPN_HTTP2: &[u8] = b"h2";
/// HTTP/1.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// A certificate chain and its private key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate first, then the intermediate ones.
    pub chain_file: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
}

/// By what one TLS configuration is told from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsIdentity {
    /// Of what the listener presents: the certificate chains as they are in their files.
    pub certificates: [u8; 32],
    /// Of what decides which clients are admitted. Where it changes, connections that were admitted before are drained.
    pub trust: [u8; 32],
}

impl TlsIdentity {
    /// Reads the chain files and the roots. One that cannot be read has no certificates, as building the configuration has told.
    #[must_use]
    pub fn of(certificates: &[CertificateFiles], clients: Option<&ClientCertificates>) -> Self {
        let of_file = |path| Sha256::digest(std::fs::read(path).unwrap_or_default());
        let mut presented = Sha256::new();
        certificates.iter().for_each(|files| presented.update(of_file(&files.chain_file)));
        let mut trust = Sha256::new();
        if let Some(clients) = clients {
            trust.update(of_file(&clients.ca_file));
            clients.common_names.iter().for_each(|name| trust.update(Sha256::digest(name)));
        }
        Self { certificates: presented.finalize().into(), trust: trust.finalize().into() }
    }
}

/// How the listener speaks TLS, and whom it admits.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// What a handshake is done with.
    pub server: Arc<ServerConfig>,
    /// What it presents, the server's own certificate first.
    chains: Vec<Vec<CertificateDer<'static>>>,
    clients: Option<Arc<ClientRule>>,
}

impl ListenerTls {
    /// Builds it from the settings alone. Nothing is shared with an earlier one, tickets included, so that a client that was
    /// admitted under old rules cannot resume under new ones.
    ///
    /// # Errors
    /// Every [`TlsFault`] of every certificate.
    pub fn new(
        certificates: &[CertificateFiles],
        clients: Option<&ClientCertificates>,
    ) -> Result<Self, Vec<TlsFault>> {
        let provider = Arc::new(provider());
        let mut keys = Vec::with_capacity(certificates.len());
        let mut faults = Vec::new();
        for files in certificates {
            match certified_key(files, &provider) {
                Ok(key) => keys.push(Arc::new(key)),
                Err(fault) => faults.push(fault),
            }
        }
        if keys.is_empty() && faults.is_empty() {
            faults.push(TlsFault::NoCertificate);
        }
        let clients = clients.map(|clients| ClientRule::new(clients, &provider)).transpose();
        let clients = clients.map_err(|fault| faults.push(fault)).unwrap_or_default().map(Arc::new);
        if !faults.is_empty() {
            return Err(faults);
        }
        // SPEC(TRANS-TLS-001): TLS 1.2 or later. SPEC(TRANS-CERT-001): the certificate proves who this is.
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| vec![TlsFault::Provider])?;
        let builder = match &clients {
            Some(rule) => builder.with_client_cert_verifier(Arc::clone(rule) as Arc<_>),
            None => builder.with_no_client_auth(),
        };
        let chains = keys.iter().map(|key| key.cert.clone()).collect();
        let mut server = builder.with_cert_resolver(Arc::new(Certificates(keys)));
        // SPEC(TRANS-HTTP-002, TRANS-ALPN-001): HTTP/1.1 or later; MUST be able to fall back to HTTP/1.1.
        server.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        server.ticketer = aws_lc_rs::Ticketer::new().map_err(|_| vec![TlsFault::Provider])?;
        // For the alert to clients that are not admitted: `alert.rs`.
        server.enable_secret_extraction = clients.is_some();
        Ok(Self { server: Arc::new(server), chains, clients })
    }

    /// The same for a listener that speaks no HTTP/2.
    #[must_use]
    pub fn http1_only(mut self) -> Self {
        Arc::make_mut(&mut self.server).alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        self
    }

    /// Whether a client whose handshake has ended may stay; the subject of its certificate where one was asked for.
    ///
    /// # Errors
    /// [`ClientFault`]: the connection is to end with [`handshake_failure`].
    pub fn admit(&self, connection: &ServerConnection) -> Result<Option<Arc<str>>, ClientFault> {
        self.clients.as_ref().map(|rule| rule.admit(connection)).transpose()
    }
}

/// Asks for no client certificate.
impl From<ServerConfig> for ListenerTls {
    fn from(server: ServerConfig) -> Self {
        Self { server: Arc::new(server), chains: Vec::new(), clients: None }
    }
}

/// What every handshake is made of, in the order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// The cryptography library.
    pub provider: &'static str,
    /// Whether all of it is that library's FIPS module, in a mode that NIST approves.
    pub is_fips: bool,
    /// Cipher suites.
    pub suites: Vec<String>,
    /// Key exchange groups.
    pub groups: Vec<String>,
}

impl ListenerTls {
    /// What handshakes are made of.
    #[must_use]
    pub fn facts(&self) -> TlsFacts {
        let provider = self.server.crypto_provider();
        TlsFacts {
            provider: "aws-lc-rs",
            is_fips: self.server.fips(),
            suites: provider.cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect(),
            groups: provider.kx_groups.iter().map(|group| format!("{:?}", group.name())).collect(),
        }
    }
}

/// aws-lc-rs with the specification's four cipher suites and no other, or the three of them that NIST approves.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite as suite;
    // SPEC(TRANS-CIPHER-001): at least one of these four suites.
    let cipher_suites = vec![
        suite::TLS13_AES_256_GCM_SHA384,
        // NIST does not approve it.
        #[cfg(not(feature = "fips"))]
        suite::TLS13_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() }
}

fn certified_key(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsFault> {
    let chain = read_chain(&files.chain_file)?;
    let unreadable_key = || TlsFault::Key(files.key_file.clone());
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|_| unreadable_key())?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsFault::Mismatch(files.clone()),
        rustls::Error::InvalidCertificate(_) => TlsFault::Chain(files.chain_file.clone()),
        _ => unreadable_key(),
    })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let unreadable = || TlsFault::Chain(path.to_owned());
    let certificates = CertificateDer::pem_file_iter(path).map_err(|_| unreadable())?;
    let chain = certificates.collect::<Result<Vec<_>, _>>().map_err(|_| unreadable())?;
    if chain.is_empty() { Err(unreadable()) } else { Ok(chain) }
}

/// Chooses among several certificates by what the client can verify, so that RSA and ECDSA are both served.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.0.iter().find(|certified| certified.key.choose_scheme(schemes).is_some()).cloned()
    }
}

/// Why there is no TLS configuration. Names files, never what is in them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TlsFault {
    /// Nothing is configured.
    #[error("no certificate is configured")]
    NoCertificate,
    /// A chain file is not one.
    #[error("cannot read a PEM certificate chain from {}", .0.display())]
    Chain(PathBuf),
    /// A key file is not one.
    #[error("cannot read a PEM private key (PKCS#8, PKCS#1 or SEC1) from {}", .0.display())]
    Key(PathBuf),
    /// Key and certificate do not belong together.
    #[error("the private key {} does not belong to the first certificate of {}", .0.key_file.display(), .0.chain_file.display())]
    Mismatch(CertificateFiles),
    /// The cryptography library refused to work.
    #[error("the TLS library cannot be set up")]
    Provider,
}
