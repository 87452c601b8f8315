//! HTTPS for callers.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

/// Why HTTPS cannot be served.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no such thing.
    #[error("{file}: {fault}")]
    File {
        /// Which file.
        file: String,
        /// What is wrong.
        fault: String,
    },
    /// Certificate and key do not go together.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Serves the certificate chain in one PEM file with the key in the other.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor(chain_file: &Path, key_file: &Path) -> Result<TlsAcceptor, TlsError> {
    let fault = |file: &Path, error: &dyn std::fmt::Display| TlsError::File {
        file: file.display().to_string(),
        fault: error.to_string(),
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(chain_file).map_err(|error| fault(chain_file, &error))?.collect();
    let chain = chain.map_err(|error| fault(chain_file, &error))?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| fault(key_file, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
