//! Who may connect, where client certificates are asked for: KMS's own, by authority and common name.
//!
//! A certificate is judged in the handshake and, since a resumed handshake shows none, once more behind it, by the rule and
//! the clock of now: no session outlives the trust or the certificate that it was opened with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConnection, SignatureScheme,
};
use thiserror::Error as ThisError;

use super::{TlsFault, read_chain};

/// Which client certificates are accepted. Both parts are needed: an authority alone vouches for all of its customers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The root certificates that a chain must end at, PEM.
    pub ca_file: PathBuf,
    /// The common names that are accepted, compared byte by byte.
    pub common_names: Vec<String>,
}

/// The common name of KMS's certificate in an AWS Region (section Authentication).
#[must_use]
pub fn kms_common_name(region: &str) -> String {
    format!("cks.kms.{region}.amazonaws.com")
}

/// Why a client is not admitted. Its text is for the log: the client sees the alert handshake_failure, whatever the reason.
#[derive(Clone, Debug, PartialEq, ThisError)]
pub enum ClientFault {
    /// None was shown.
    #[error("the client showed no certificate")]
    None,
    /// Its chain does not hold.
    #[error("the client's certificate does not hold: {0}")]
    Chain(CertificateError),
    /// What was shown is no certificate, or has a subject that cannot be read.
    #[error("the client's certificate cannot be read")]
    Unreadable,
    /// No common name, or several.
    #[error("the client's certificate has {0} common names and not exactly one")]
    CommonNames(usize),
    /// Another than those that are configured.
    #[error("the common name of the client's certificate, {0:?}, is none of those accepted")]
    CommonName(Box<str>),
    /// The client does not hold the certificate's key.
    #[error("the client did not prove that it holds the certificate's key: {0}")]
    Proof(Box<str>),
}

impl ClientFault {
    /// Short word for the metric.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Chain(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => "expired",
            Self::Chain(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                "not_valid_yet"
            }
            Self::Chain(CertificateError::UnknownIssuer) => "unknown_issuer",
            Self::Chain(_) => "chain",
            Self::Unreadable => "unreadable",
            Self::CommonNames(_) => "common_names",
            Self::CommonName(_) => "common_name",
            Self::Proof(_) => "proof",
        }
    }

    /// What a handshake failed of, where that was the client's certificate.
    #[must_use]
    pub fn of_handshake(error: &std::io::Error) -> Option<&Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::Other(OtherError(fault)) => fault.downcast_ref(),
            _ => None,
        }
    }
}

/// rustls sends handshake_failure for every error of a verifier but those of certificates.
impl From<ClientFault> for Error {
    fn from(fault: ClientFault) -> Self {
        Self::Other(OtherError(Arc::new(fault)))
    }
}

/// The rule that [`ClientCertificates`] states.
pub(super) struct ClientRule {
    chains: Arc<dyn ClientCertVerifier>,
    common_names: Vec<String>,
}

impl ClientRule {
    /// Reads the roots.
    pub(super) fn new(
        settings: &ClientCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsFault> {
        let mut roots = RootCertStore::empty();
        for root in read_chain(&settings.ca_file)? {
            roots.add(root).map_err(|_| TlsFault::Chain(settings.ca_file.clone()))?;
        }
        // SPEC(AUTH-MTLS-003): MUST let the customer configure the root authority of client certificates.
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let chains = chains.build().map_err(|_| TlsFault::Provider)?;
        Ok(Self { chains, common_names: settings.common_names.clone() })
    }

    /// Judges the certificates that a connection was opened, or resumed, with; the certificate's subject.
    pub(super) fn admit(&self, connection: &ServerConnection) -> Result<Arc<str>, ClientFault> {
        let (certificate, intermediates) =
            connection.peer_certificates().and_then(<[_]>::split_first).ok_or(ClientFault::None)?;
        self.judge(certificate, intermediates, UnixTime::now())
    }

    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<str>, ClientFault> {
        // SPEC(AUTH-MTLS-005): MUST end the handshake with a client whose certificate is of another authority.
        self.chains.verify_client_cert(certificate, intermediates, now).map_err(|error| match error {
            Error::InvalidCertificate(fault) => ClientFault::Chain(fault),
            _ => ClientFault::Unreadable,
        })?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| ClientFault::Unreadable)?;
        let names: Vec<_> = parsed.subject().iter_common_name().collect();
        let [name] = names.as_slice() else { return Err(ClientFault::CommonNames(names.len())) };
        let name = name.as_str().map_err(|_| ClientFault::Unreadable)?;
        // SPEC(AUTH-MTLS-002): MUST let the customer configure the expected subject name. SPEC(AUTH-MTLS-004): MUST end the
        // handshake with a client of another.
        if !self.common_names.iter().any(|accepted| accepted == name) {
            return Err(ClientFault::CommonName(name.into()));
        }
        Ok(parsed.subject().to_string().into())
    }
}

impl fmt::Debug for ClientRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientRule").field("common_names", &self.common_names).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientRule {
    // SPEC(AUTH-MTLS-001): SHOULD be able to authenticate the client by TLS certificate.
    fn offer_client_auth(&self) -> bool {
        true
    }

    /// Where one is mandatory, rustls answers a client that has none with an alert of its own choice. So the handshake goes
    /// on, and [`ClientRule::admit`] ends it.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(certificate, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature).map_err(|error| no_proof(&error))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature).map_err(|error| no_proof(&error))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn no_proof(error: &Error) -> Error {
    ClientFault::Proof(error.to_string().into()).into()
}
