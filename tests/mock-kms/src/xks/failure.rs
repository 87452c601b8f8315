//! Why a call to a proxy has no result.

use thiserror::Error;
use xks_spec::ErrorName;

/// Why a call to a proxy has no result. Texts are for people; nothing in them is secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The name has no address, or there is no TCP connection to it.
    #[error("no TCP connection: {0}")]
    Unreachable(String),
    /// There is a TCP connection, but the TLS handshake failed or the certificate is not good.
    #[error("no TLS connection: {0}")]
    Tls(String),
    /// The time ran out after TCP had connected, in the last try too.
    #[error("no answer in time")]
    TimedOut,
    /// The connection ended before the answer did.
    #[error("the connection ended before the answer did: {0}")]
    Broken(String),
    /// The proxy refused the request with an `errorName` of the specification.
    #[error("refused with {0}")]
    Refused(Refusal),
    /// The proxy answered something that KMS cannot interpret.
    #[error("the answer cannot be interpreted: {0}")]
    Malformed(#[from] Malformed),
    /// The request cannot be made: its path, host or header values are no HTTP.
    #[error("the request cannot be made: {0}")]
    NotSent(String),
}

/// An error answer of the documented form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What went wrong, as KMS reads it.
    pub error_name: ErrorName,
    /// What a person may read. KMS writes it to CloudWatch Logs and never into its own answers.
    pub error_message: Option<String>,
    /// HTTP status, which KMS does not go by.
    pub status: u16,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (HTTP {})", self.error_name, self.status)?;
        self.error_message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Status neither 200 nor one with an error body.
    #[error("HTTP status {0} is neither 200 nor an error")]
    Status(u16),
    /// The content type is missing or another one than JSON.
    #[error("content type {0:?} instead of application/json")]
    ContentType(String),
    /// Not JSON, or not of the documented shape.
    #[error("HTTP {status}, and the body is not the documented JSON: {fault}")]
    Json {
        /// HTTP status.
        status: u16,
        /// Position and kind of the fault.
        fault: String,
    },
    /// An error body whose name the specification does not know.
    #[error("unknown errorName {0:?}")]
    UnknownErrorName(String),
    /// Longer than any lawful answer.
    #[error("longer than {0} bytes")]
    TooLong(usize),
    /// Not HTTP.
    #[error("not HTTP: {0}")]
    Http(String),
    /// A field is not standard Base64 with padding.
    #[error("{0} is not standard Base64")]
    Base64(&'static str),
    /// A field has another length than it must have.
    #[error("{field} has {found} bytes instead of {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// Its length, decoded.
        found: usize,
        /// The lengths that it may have.
        expected: String,
    },
    /// The ciphertext data integrity value is absent though asked for.
    #[error("ciphertextDataIntegrityValue is missing")]
    IntegrityValueMissing,
    /// The ciphertext data integrity value does not match what came with it.
    #[error("ciphertextDataIntegrityValue is wrong")]
    IntegrityValueWrong,
    /// More than ten key usages.
    #[error("{0} values of keyUsage, ten at most")]
    KeyUsages(usize),
    /// A fleet of no proxies.
    #[error("xksProxyFleetSize is zero")]
    FleetSize,
    /// None or more than ten key managers.
    #[error("{0} entries in ekmFleetDetails, one to ten expected")]
    FleetDetails(usize),
}
