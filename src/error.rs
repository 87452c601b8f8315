//! The only place that turns what went wrong into an XKS `errorName` and a text for the outside.
//!
//! Inside, errors are precise and go to the log by their `Display`. Outside, the text is fixed: it says what to do, and
//! nothing of keys, credentials or the HSM that a stranger could use.

use std::borrow::Cow;

use thiserror::Error;
use xks_spec::body::BodyFault;
use xks_spec::{ErrorName, Operation};

use crate::hsm::HsmError;
use crate::policy::Denial;
use crate::sigv4::AuthenticationFault;

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The path is none of ours.
    #[error("no such path")]
    UnknownPath,
    /// An API path with another method than POST.
    #[error("another method than POST on an API path")]
    Method,
    /// As many requests as the proxy takes are being worked on.
    #[error("too many requests are in flight")]
    TooManyInFlight,
    /// The signature does not hold.
    #[error("not authenticated: {0}")]
    Authentication(#[from] AuthenticationFault),
    /// The body is longer than any valid one.
    #[error("the body is longer than {max_bytes} bytes")]
    BodyTooLong {
        /// The cap.
        max_bytes: usize,
    },
    /// The connection failed in the middle of the body.
    #[error("the body did not arrive whole")]
    BodyIncomplete,
    /// The store's quota is used up.
    #[error("the key store's request quota is used up")]
    OverQuota,
    /// The body is not what the operation wants.
    #[error("{0}")]
    Body(BodyFault, Operation),
    /// The store has no such external key.
    #[error("the key store maps no key to this external key id")]
    KeyNotMapped,
    /// The store's policies do not allow it.
    #[error("denied: {0}")]
    Denied(Denial),
    /// The store is disabled.
    #[error("the key store is disabled")]
    StoreDisabled,
    /// The external key is disabled.
    #[error("the external key is disabled")]
    KeyDisabled,
    /// The ciphertext was made under a version that has been disabled.
    #[error("key version {0} is disabled")]
    KeyVersionDisabled(u32),
    /// The key is no AES-256 key.
    #[error("the key is not an AES-256 key")]
    KeyNotAes256,
    /// The key lacks an attribute that the operation needs.
    #[error("the key lacks {0}")]
    KeyUsage(&'static str),
    /// The ciphertext metadata is not one that this proxy made.
    #[error("the ciphertext metadata is not of a format that this proxy makes")]
    CiphertextMetadata,
    /// The ciphertext metadata names a version that the key does not have.
    #[error("the ciphertext was made under key version {0}, which this external key does not have")]
    UnknownKeyVersion(u32),
    /// The token failed.
    #[error("{0}")]
    Hsm(#[from] HsmError),
    /// What was encrypted did not decrypt to the plaintext, twice.
    #[error("the ciphertext did not decrypt to the plaintext, twice: the token or the memory is faulty")]
    Integrity,
    /// Health has not been measured yet.
    #[error("health has not been measured yet")]
    HealthNotMeasured,
    /// The configuration wants every success on record, and the record cannot be written.
    #[error(
        "the audit log is not written: on_failure = \"refuse\" lets nothing be served without its record"
    )]
    Audit,
    /// A handler panicked.
    #[error("the request handler panicked")]
    Panic,
}

/// What the outside is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// For KMS.
    pub name: ErrorName,
    /// For a person: KMS writes it to the caller's CloudWatch log.
    pub message: Cow<'static, str>,
}

impl Error {
    /// The one map to the wire (section Error codes).
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        // SPEC(ERR-KEY-001, ERR-THROTTLE-001, ERR-THROTTLE-002, ERR-TIMEOUT-001, ERR-INTERNAL-001, ERR-UNSUPPORTED-001): one
        // name for each scenario of the table.
        let (name, message) = match self {
            Self::UnknownPath => (
                ErrorName::InvalidUriPathException,
                "The URI path is not one of this proxy. Check the path prefix and the external key id.",
            ),
            Self::Method => {
                (ErrorName::UnsupportedOperationException, "Use POST: this API has no other method.")
            }
            Self::TooManyInFlight | Self::OverQuota => {
                (ErrorName::ThrottlingException, "Too many requests. Reduce the rate and retry.")
            }
            Self::Authentication(_) => (
                ErrorName::AuthenticationFailedException,
                "The SigV4 signature could not be verified. Check the access key id, the secret access key and the \
                 clocks; the proxy's log has the reason.",
            ),
            Self::BodyTooLong { .. } => (
                ErrorName::UnsupportedOperationException,
                "The request body is longer than this proxy takes.",
            ),
            Self::BodyIncomplete => {
                (ErrorName::ValidationException, "The request body did not arrive whole.")
            }
            // Names a field and what it should be, never what it was.
            Self::Body(fault, operation) => {
                return WireError { name: fault.error_name(*operation), message: fault.to_string().into() };
            }
            Self::KeyNotMapped | Self::Hsm(HsmError::KeyNotFound) => {
                (ErrorName::KeyNotFoundException, "The external key does not exist in this key store.")
            }
            Self::Hsm(HsmError::KeyAmbiguous { .. }) => (
                ErrorName::InvalidStateException,
                "The external key is blocked: several keys in the key manager answer to its name.",
            ),
            Self::Hsm(HsmError::KeyDiffers | HsmError::KeyOfAnotherStore) => (
                ErrorName::InvalidStateException,
                "The external key is blocked: the key manager's key under its name is not the one meant, or not this store's.",
            ),
            // SPEC(ERR-DENIED-001): what policy refuses is AccessDeniedException.
            Self::Denied(_) => (
                ErrorName::AccessDeniedException,
                "The proxy's authorization policies do not allow this use of the external key. The proxy's log has the policy.",
            ),
            Self::StoreDisabled => {
                (ErrorName::InvalidStateException, "The key store is disabled in the proxy.")
            }
            Self::KeyDisabled | Self::Hsm(HsmError::KeyWithdrawn) => {
                (ErrorName::InvalidStateException, "The external key is disabled in the proxy.")
            }
            Self::KeyVersionDisabled(_) => (
                ErrorName::InvalidStateException,
                "The version of the external key that made the ciphertext is disabled in the proxy.",
            ),
            Self::KeyNotAes256 => {
                (ErrorName::InvalidKeyUsageException, "The external key is not an AES-256 key.")
            }
            Self::KeyUsage(_) | Self::Hsm(HsmError::KeyNotPermitted { .. }) => (
                ErrorName::InvalidKeyUsageException,
                "The external key does not permit this operation in the key manager.",
            ),
            Self::CiphertextMetadata
            | Self::UnknownKeyVersion(_)
            | Self::Hsm(HsmError::BadCiphertext { .. }) => (
                ErrorName::InvalidCiphertextException,
                "The ciphertext, its metadata, initialization vector, tag or the additional authenticated data is \
                 not what this key encrypted.",
            ),
            Self::Hsm(HsmError::QueueFull | HsmError::TooManySearches) => {
                (ErrorName::ThrottlingException, "The key manager is busy. Reduce the rate and retry.")
            }
            Self::Hsm(HsmError::DeadlinePassed | HsmError::TooLate | HsmError::Stalled) => {
                (ErrorName::DependencyTimeoutException, "The key manager did not answer in time. Retry.")
            }
            Self::HealthNotMeasured => (
                ErrorName::DependencyTimeoutException,
                "The proxy is starting and has not measured health yet. Retry.",
            ),
            Self::Hsm(HsmError::Unavailable(_) | HsmError::KeyUnproven) => (
                ErrorName::InternalException,
                "The key manager cannot be reached. The proxy's log has the reason.",
            ),
            Self::Hsm(
                HsmError::Device { .. } | HsmError::Unverified | HsmError::UnsafeIv | HsmError::Worker,
            )
            | Self::Integrity => {
                (ErrorName::InternalException, "The key manager failed. The proxy's log has the reason.")
            }
            Self::Panic | Self::Audit => {
                (ErrorName::InternalException, "The proxy failed. The proxy's log has the reason.")
            }
        };
        WireError { name, message: Cow::Borrowed(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::DenialReason;

    #[test]
    fn every_text_for_the_outside_is_safe() {
        let hsm = [
            HsmError::KeyNotFound,
            HsmError::KeyAmbiguous { count: 2 },
            HsmError::KeyNotPermitted { code: "CKR_X".into() },
            HsmError::KeyUnproven,
            HsmError::KeyDiffers,
            HsmError::KeyOfAnotherStore,
            HsmError::KeyWithdrawn,
            HsmError::BadCiphertext { is_certain: true },
            HsmError::QueueFull,
            HsmError::TooManySearches,
            HsmError::DeadlinePassed,
            HsmError::TooLate,
            HsmError::Stalled,
            HsmError::Unavailable("secret reason".into()),
            HsmError::Device { call: "C_Encrypt", code: "CKR_DEVICE_ERROR".into() },
            HsmError::Unverified,
            HsmError::UnsafeIv,
            HsmError::Worker,
        ];
        let body = [
            BodyFault::Json { line: 1, column: 2 },
            BodyFault::Missing("kmsKeyArn"),
            BodyFault::NotText("plaintext"),
            BodyFault::NotBase64("plaintext"),
            BodyFault::Empty("plaintext"),
            BodyFault::Length { field: "authenticationTag", expected: "16 bytes" },
            BodyFault::NotSupported { field: "encryptionAlgorithm", supported: "AES_GCM" },
            BodyFault::TooLong { field: "plaintext", max_bytes: 1 },
        ];
        let others = [
            Error::UnknownPath,
            Error::Method,
            Error::TooManyInFlight,
            Error::Authentication(AuthenticationFault::Signature),
            Error::BodyTooLong { max_bytes: 1 },
            Error::BodyIncomplete,
            Error::OverQuota,
            Error::KeyNotMapped,
            Error::Denied(Denial { reason: DenialReason::Forbid, policy: Some("secret reason".into()) }),
            Error::Denied(Denial {
                reason: DenialReason::EvaluationError("secret reason".into()),
                policy: None,
            }),
            Error::StoreDisabled,
            Error::KeyDisabled,
            Error::KeyVersionDisabled(9),
            Error::KeyNotAes256,
            Error::KeyUsage("CKA_DECRYPT"),
            Error::CiphertextMetadata,
            Error::UnknownKeyVersion(9),
            Error::Integrity,
            Error::HealthNotMeasured,
            Error::Audit,
            Error::Panic,
        ];
        let hsm = hsm.into_iter().map(Error::Hsm);
        let body = body.into_iter().map(|fault| Error::Body(fault, Operation::Encrypt));
        for error in hsm.chain(body).chain(others) {
            let wire = error.to_wire();
            assert!(xks_spec::error::is_safe_message(&wire.message), "{error:?}");
            assert!(!wire.message.contains("secret reason") && !wire.message.contains("CKR"), "{error:?}");
        }
    }
}
