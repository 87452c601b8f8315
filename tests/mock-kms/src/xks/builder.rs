//! How a client is set up.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use thiserror::Error;
use xks_spec::limits::KMS_TIMEOUT;

use super::client::Client;
use super::connection::{Connector, HttpVersion};

/// The suites that the specification names (section API content type): at least one of them must be served.
const CIPHER_SUITES: [CipherSuite; 4] = [
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
];

/// Tries of KMS: the first, and one more after a network time-out (KMS developer guide).
const KMS_TRIES: u32 = 2;

/// How long a connection may be idle and still be used.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Why a client cannot be made.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Text that should hold certificates or a key in PEM does not.
    #[error("{what}: {fault}")]
    Pem {
        /// What was to be read.
        what: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The settings of TLS do not go together, such as a certificate with another's key.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Settings of a [`Client`]; the defaults are what KMS does.
#[derive(Debug)]
pub struct ClientBuilder {
    roots: RootCertStore,
    trusts_system_roots: bool,
    checks_common_name: bool,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    addresses: HashMap<String, SocketAddr>,
    http_versions: Vec<HttpVersion>,
    try_timeout: Duration,
    tries: u32,
    keep_alive: Duration,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self {
            roots: RootCertStore::empty(),
            trusts_system_roots: true,
            checks_common_name: true,
            identity: None,
            addresses: HashMap::new(),
            http_versions: vec![HttpVersion::Http2, HttpVersion::Http1],
            try_timeout: KMS_TIMEOUT,
            tries: KMS_TRIES,
            keep_alive: KEEP_ALIVE,
        }
    }

    /// Says where `name` is, instead of the DNS and of the proxy's port. Certificates are checked against the name all the
    /// same.
    #[must_use]
    pub fn resolve(mut self, name: &str, address: SocketAddr) -> Self {
        self.addresses.insert(name.to_ascii_lowercase(), address);
        self
    }

    /// Trusts the CA certificates in `pem` too, besides the system's.
    ///
    /// # Errors
    /// [`BuildError`] when there are none, or one cannot be read.
    pub fn trust_ca_pem(mut self, pem: &[u8]) -> Result<Self, BuildError> {
        for certificate in certificates("CA certificates", pem)? {
            self.roots.add(certificate)?;
        }
        Ok(self)
    }

    /// Trusts none of the system's CAs.
    #[must_use]
    pub fn without_system_roots(mut self) -> Self {
        self.trusts_system_roots = false;
        self
    }

    /// Takes certificates whose common name is not the host, which KMS refuses. Their subject alternative names are
    /// checked all the same.
    #[must_use]
    pub fn any_common_name(mut self) -> Self {
        self.checks_common_name = false;
        self
    }

    /// Shows a client certificate to proxies that ask for one. KMS's has the common name
    /// `cks.kms.<Region>.amazonaws.com`.
    ///
    /// # Errors
    /// [`BuildError`] when `chain_pem` holds no certificate or `key_pem` no private key.
    pub fn client_identity_pem(mut self, chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, BuildError> {
        let chain = certificates("client certificate", chain_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| fault("client key", error))?;
        self.identity = Some((chain, key));
        Ok(self)
    }

    /// The HTTP versions that are offered, the preferred one first. Both unless said otherwise.
    #[must_use]
    pub fn http_versions(mut self, versions: &[HttpVersion]) -> Self {
        self.http_versions = versions.to_vec();
        self
    }

    /// How long one try may take from its start to connect to the last byte of the answer; 250 ms for KMS.
    #[must_use]
    pub fn try_timeout(mut self, timeout: Duration) -> Self {
        self.try_timeout = timeout;
        self
    }

    /// Most tries of one request when each ends in a network time-out; 2 for KMS.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries.max(1);
        self
    }

    /// How long a connection may be idle and still be used. With zero every request opens a new one.
    #[must_use]
    pub fn keep_alive(mut self, idle: Duration) -> Self {
        self.keep_alive = idle;
        self
    }

    /// Makes the client.
    ///
    /// # Errors
    /// [`BuildError`] when TLS cannot be set up so.
    pub fn build(self) -> Result<Client, BuildError> {
        let mut roots = self.roots;
        if self.trusts_system_roots {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let mut provider: CryptoProvider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|suite| CIPHER_SUITES.contains(&suite.suite()));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut tls = match self.identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = self.http_versions.iter().map(|version| version.alpn().to_vec()).collect();
        let connector = Connector::new(tls, self.addresses, self.checks_common_name);
        Ok(Client::new(connector, self.try_timeout, self.tries, self.keep_alive))
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read.map_err(|error| fault(what, error))? {
        none if none.is_empty() => Err(fault(what, "there is none in it")),
        certificates => Ok(certificates),
    }
}

fn fault(what: &'static str, fault: impl Display) -> BuildError {
    BuildError::Pem { what, fault: fault.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_certificates_or_key_is_refused() {
        let builder = ClientBuilder::new;
        assert_eq!(
            builder().trust_ca_pem(b"").unwrap_err().to_string(),
            "CA certificates: there is none in it"
        );
        let broken = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert!(builder().trust_ca_pem(broken).is_err());
        assert!(builder().client_identity_pem(b"", b"").is_err());
    }
}
