//! What can be wrong with an exchange. Its text is the label under which it is counted.

use std::io;

/// Why a request did not get the answer it should have got.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The target answered with another status than 200.
    #[error("HTTP {status} {error_name}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The `errorName` of the body, or a word on its absence.
        error_name: String,
    },
    /// No answer came.
    #[error("transport: {0}")]
    Transport(#[from] Transport),
    /// An answer came with status 200, and it is wrong.
    #[error("wrong answer: {0}")]
    Wrong(#[from] Wrong),
    /// The request could not be signed.
    #[error("unsigned: {0}")]
    Unsigned(String),
}

impl Failure {
    /// Whether the target said that it has too much to do (specification, ThrottlingException).
    #[must_use]
    pub fn is_throttling(&self) -> bool {
        matches!(self, Self::Refused { error_name, .. } if error_name == "ThrottlingException")
    }
}

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Transport {
    /// TCP refused, unreachable, out of descriptors.
    #[error("connect: {0}")]
    Connect(io::ErrorKind),
    /// The TLS handshake failed.
    #[error("TLS handshake: {0}")]
    Tls(io::ErrorKind),
    /// The target does not speak the HTTP version asked for (ALPN).
    #[error("HTTP/2 not negotiated")]
    NoHttp2,
    /// The connection ended before the answer did.
    #[error("connection closed before the answer")]
    Closed,
    /// What came is not HTTP, or longer than any XKS answer.
    #[error("not an HTTP answer")]
    Protocol,
    /// The time allowed for a request, counted from its scheduled instant, ran out.
    #[error("timeout")]
    Timeout,
}

/// What is wrong with an answer of status 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not JSON, or a required field is absent or of another type.
    #[error("{0}: JSON shape")]
    Shape(&'static str),
    /// A field's value breaks the specification.
    #[error("{0}")]
    Value(&'static str),
    /// A decrypt returned something else than what was encrypted.
    #[error("plaintext differs")]
    Plaintext,
    /// The ciphertext data integrity value does not match its inputs.
    #[error("ciphertextDataIntegrityValue differs")]
    Cdiv,
}
