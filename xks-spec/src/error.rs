//! Error names of the specification's table (section Error codes) and the JSON body that carries one.

use serde::{Deserialize, Serialize};

use crate::limits::ERROR_MESSAGE_CHARS_BELOW;
use crate::path::Operation;

/// An `errorName` of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorName {
    /// An input parameter is invalid.
    ValidationException,
    /// The external key or its store is disabled, deactivated or blocked.
    InvalidStateException,
    /// Ciphertext, initialization vector, additional authenticated data or tag is corrupted, missing or invalid.
    InvalidCiphertextException,
    /// The external key does not support the operation.
    InvalidKeyUsageException,
    /// The SigV4 signature is invalid.
    AuthenticationFailedException,
    /// The request metadata does not authorize the operation.
    AccessDeniedException,
    /// There is no such external key.
    KeyNotFoundException,
    /// The URI path is not valid.
    InvalidUriPathException,
    /// The request rate is too high.
    ThrottlingException,
    /// The operation is not implemented, or a value is longer than this proxy supports.
    UnsupportedOperationException,
    /// A dependency did not answer in time.
    DependencyTimeoutException,
    /// The proxy or something it depends on failed.
    InternalException,
}

impl ErrorName {
    /// Every name, in the order of the specification's table.
    pub const ALL: [Self; 12] = [
        Self::ValidationException,
        Self::InvalidStateException,
        Self::InvalidCiphertextException,
        Self::InvalidKeyUsageException,
        Self::AuthenticationFailedException,
        Self::AccessDeniedException,
        Self::KeyNotFoundException,
        Self::InvalidUriPathException,
        Self::ThrottlingException,
        Self::UnsupportedOperationException,
        Self::DependencyTimeoutException,
        Self::InternalException,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ValidationException => "ValidationException",
            Self::InvalidStateException => "InvalidStateException",
            Self::InvalidCiphertextException => "InvalidCiphertextException",
            Self::InvalidKeyUsageException => "InvalidKeyUsageException",
            Self::AuthenticationFailedException => "AuthenticationFailedException",
            Self::AccessDeniedException => "AccessDeniedException",
            Self::KeyNotFoundException => "KeyNotFoundException",
            Self::InvalidUriPathException => "InvalidUriPathException",
            Self::ThrottlingException => "ThrottlingException",
            Self::UnsupportedOperationException => "UnsupportedOperationException",
            Self::DependencyTimeoutException => "DependencyTimeoutException",
            Self::InternalException => "InternalException",
        }
    }

    /// The HTTP status code that the specification's table gives the name.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::ValidationException
            | Self::InvalidStateException
            | Self::InvalidCiphertextException
            | Self::InvalidKeyUsageException => 400,
            Self::AuthenticationFailedException => 401,
            Self::AccessDeniedException => 403,
            Self::KeyNotFoundException | Self::InvalidUriPathException => 404,
            Self::ThrottlingException => 429,
            Self::InternalException => 500,
            Self::UnsupportedOperationException => 501,
            Self::DependencyTimeoutException => 503,
        }
    }

    /// Whether the specification's table lists the name for `operation`.
    #[must_use]
    pub const fn is_listed_for(self, operation: Operation) -> bool {
        match self {
            Self::ValidationException | Self::AccessDeniedException | Self::KeyNotFoundException => {
                !matches!(operation, Operation::GetHealthStatus)
            }
            Self::InvalidCiphertextException => matches!(operation, Operation::Decrypt),
            Self::InvalidKeyUsageException => matches!(operation, Operation::Encrypt | Operation::Decrypt),
            _ => true,
        }
    }

    /// Whether KMS counts the error as one that a retry may cure (KMS developer guide, reliability of external key
    /// stores): InternalException, DependencyTimeoutException and ThrottlingException.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::InternalException | Self::DependencyTimeoutException | Self::ThrottlingException)
    }
}

impl std::fmt::Display for ErrorName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The JSON body of every answer that is not 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody<'a> {
    /// What went wrong, as KMS reads it.
    pub error_name: ErrorName,
    /// What a person may read: KMS writes it to the caller's CloudWatch log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<&'a str>,
}

/// Whether `message` may be an `errorMessage`: shorter than 512 characters, printable ASCII only.
#[must_use]
pub fn is_safe_message(message: &str) -> bool {
    // SPEC(ERR-MSG-001): MUST be shorter than 512 characters. SPEC(ERR-MSG-002): MUST be printable ASCII.
    message.len() < ERROR_MESSAGE_CHARS_BELOW && message.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_wire() {
        for name in ErrorName::ALL {
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<ErrorName>(&json).unwrap(), name);
        }
    }

    #[test]
    fn messages_are_short_printable_ascii() {
        assert!(is_safe_message("The external key does not exist."));
        assert!(is_safe_message(&"x".repeat(511)));
        assert!(!is_safe_message(&"x".repeat(512)));
        assert!(!is_safe_message("line\nbreak"));
        assert!(!is_safe_message("naïve"));
    }
}
