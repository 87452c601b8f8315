//! What KMS makes of a proxy's failures: one table, from the specification's table of exception messages.
//!
//! The message is the specification's, word for word: programs match on it. The exception is the specification's too,
//! unless AWS's service model does not declare it for the operation; then it is the KMS developer guide's. Failures that
//! no lawful proxy shows to an operation are answers that KMS cannot interpret.

use xks_spec::ErrorName;
use xks_spec::response::{GetHealthStatusResponse, HealthStatus};

use crate::kms::journal::ProxyFailure;
use crate::kms::store::ConnectionErrorCode;
use crate::kms::{Exception, KmsError};
use crate::xks::Failure;

/// The groups of KMS operations that the table tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// CreateCustomKeyStore and UpdateCustomKeyStore, which ask for the proxy's health.
    ManageStore,
    /// CreateKey, which asks for the external key's metadata.
    CreateKey,
    /// Encrypt, GenerateDataKey, GenerateDataKeyWithoutPlaintext, and ReEncrypt's second half.
    Encrypt,
    /// Decrypt, and ReEncrypt's first half.
    Decrypt,
}

/// One row: the message, and the exception for each purpose.
struct Row {
    message: &'static str,
    manage_store: Exception,
    create_key: Exception,
}

const UNINTERPRETABLE: &str = "AWS KMS cannot interpret the response from the external key store proxy. If you see this \
                               error repeatedly, report it to your external key store proxy administrator.";
const NOT_ENABLED: &str = "The external key associated with this KMS key in an external key store is not enabled in the \
                           external key manager. Enable the external key in the external key manager and retry the \
                           request.";
const REFUSED_CIPHERTEXT: &str = "The external key store proxy rejected the request because the specified ciphertext or \
                                  encryption context is corrupted, missing, or otherwise invalid.";
const WRONG_CIPHERTEXT: &str = "The ciphertext that the external key store proxy submitted for decryption, or the \
                                encryption context, is corrupted, missing, or otherwise invalid.";
const WRONG_USAGE: &str = "The external key associated with this KMS key in an external key store does not support the \
                           requested operation. Enable the operation on the key in your external key manager, and try \
                           the request again.";
const NOT_AUTHENTICATED: &str = "The external key store proxy rejected the request because it could not authenticate AWS \
                                 KMS. Verify the XKS proxy authentication credentials for your external key store and \
                                 update if necessary.";
const ACCESS_DENIED: &str = "The external key store proxy denied access to the operation. Verify that the user and the \
                             external key are both authorized for this operation, and try the request again.";
const KEY_NOT_FOUND: &str = "The external key associated with this KMS key in an external key store was not found in its \
                             external key manager. If the external key ID associated with this KMS key is incorrect, \
                             create a new KMS key with the correct external key ID.";
const WRONG_PATH: &str = "The external key store proxy rejected the request because of an invalid URI path. Verify the URI \
                          path for your external key store and update if necessary.";
const NOT_SUPPORTED: &str = "The external key store proxy rejected the request because it does not support the requested \
                             operation. If you see this error repeatedly, report it to your external key store proxy \
                             administrator.";
const DEPENDENCY_TIMEOUT: &str = "The external key store proxy did not respond to the request in the time allotted. Retry \
                                  the request. If you see this error repeatedly, report it to your external key store \
                                  proxy administrator.";
const THROTTLED: &str = "The external key store proxy rejected the request due to a very high request rate. Reduce the \
                         frequency of your calls using KMS keys in this external key store.";
const INTERNAL: &str = "The external key store proxy rejected the request because it cannot communicate with the external \
                        key manager. Verify that the external key store proxy configuration is correct and that the \
                        external key manager is available.";
const NO_TCP: &str = "AWS KMS cannot communicate with the external key store proxy. This might be a transient network \
                      issue. If you see this error repeatedly, verify that your external key store proxy is active and is \
                      connected to the network, and that its endpoint URI is correct in your external keystore.";
const NO_TLS: &str = "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify the TLS \
                      configuration, including its certificate.";
const TIMED_OUT: &str = "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry \
                         the request. If you see this error repeatedly, report it to your external key store proxy \
                         administrator.";
/// Of the developer guide: the specification has no row for it.
const UNHEALTHY: &str = "The external key store proxy is in an unhealthy state. If you see this message repeatedly, notify \
                         your external key store proxy administrator.";

/// The exception of a KMS operation whose call to a proxy failed.
#[must_use]
pub fn exception(failure: &Failure, purpose: Purpose) -> KmsError {
    let row = row(failure, purpose);
    let exception = match purpose {
        Purpose::ManageStore => row.manage_store,
        Purpose::CreateKey => row.create_key,
        Purpose::Encrypt | Purpose::Decrypt => Exception::KMSInvalidStateException,
    };
    KmsError::new(exception, row.message)
}

fn row(failure: &Failure, purpose: Purpose) -> Row {
    use Exception::{
        CustomKeyStoreInvalidStateException as StoreState, UnsupportedOperationException as Unsupported,
        XksKeyInvalidConfigurationException as WrongKey, XksKeyNotFoundException as NoKey,
        XksProxyIncorrectAuthenticationCredentialException as WrongCredential,
        XksProxyInvalidConfigurationException as WrongConfiguration,
        XksProxyInvalidResponseException as Invalid, XksProxyUriUnreachableException as Unreachable,
    };
    let of = |message, manage_store, create_key| Row { message, manage_store, create_key };
    let is_health = purpose == Purpose::ManageStore;
    let uninterpretable = of(UNINTERPRETABLE, Invalid, StoreState);
    let name = match failure {
        Failure::Refused(refusal) => refusal.error_name,
        Failure::Unreachable(_) | Failure::Broken(_) | Failure::NotSent(_) => {
            return of(NO_TCP, Unreachable, StoreState);
        }
        Failure::Tls(_) => return of(NO_TLS, Unreachable, StoreState),
        Failure::TimedOut => return of(TIMED_OUT, Unreachable, StoreState),
        Failure::Malformed(_) => return uninterpretable,
    };
    match name {
        ErrorName::InvalidStateException if is_health => of(UNHEALTHY, Unreachable, StoreState),
        ErrorName::InvalidStateException => of(NOT_ENABLED, Invalid, WrongKey),
        ErrorName::InvalidCiphertextException if purpose == Purpose::Decrypt => {
            of(REFUSED_CIPHERTEXT, Invalid, StoreState)
        }
        ErrorName::InvalidKeyUsageException if !is_health => of(WRONG_USAGE, Invalid, WrongKey),
        ErrorName::KeyNotFoundException if !is_health => of(KEY_NOT_FOUND, Invalid, NoKey),
        ErrorName::AuthenticationFailedException => of(NOT_AUTHENTICATED, WrongCredential, StoreState),
        ErrorName::AccessDeniedException => of(ACCESS_DENIED, Invalid, StoreState),
        ErrorName::InvalidUriPathException => of(WRONG_PATH, WrongConfiguration, StoreState),
        ErrorName::UnsupportedOperationException => of(NOT_SUPPORTED, Invalid, Unsupported),
        ErrorName::DependencyTimeoutException => of(DEPENDENCY_TIMEOUT, Unreachable, StoreState),
        ErrorName::ThrottlingException => of(THROTTLED, Unreachable, StoreState),
        ErrorName::InternalException => of(INTERNAL, Invalid, StoreState),
        ErrorName::ValidationException
        | ErrorName::InvalidCiphertextException
        | ErrorName::InvalidKeyUsageException
        | ErrorName::KeyNotFoundException => uninterpretable,
    }
}

/// What ConnectCustomKeyStore leaves as `ConnectionErrorCode`.
#[must_use]
pub fn connection_error_code(failure: &Failure) -> ConnectionErrorCode {
    use ConnectionErrorCode as Code;
    let name = match failure {
        Failure::Refused(refusal) => refusal.error_name,
        Failure::Unreachable(_) => return Code::XksProxyNotReachable,
        Failure::Tls(_) => return Code::XksProxyInvalidTlsConfiguration,
        Failure::TimedOut => return Code::XksProxyTimedOut,
        Failure::Broken(_) => return Code::NetworkErrors,
        Failure::Malformed(_) => return Code::XksProxyInvalidResponse,
        Failure::NotSent(_) => return Code::InternalError,
    };
    match name {
        ErrorName::AuthenticationFailedException => Code::InvalidCredentials,
        ErrorName::AccessDeniedException => Code::XksProxyAccessDenied,
        ErrorName::InvalidUriPathException => Code::XksProxyInvalidConfiguration,
        ErrorName::DependencyTimeoutException => Code::XksProxyTimedOut,
        ErrorName::ThrottlingException | ErrorName::InvalidStateException => Code::XksProxyNotReachable,
        ErrorName::ValidationException
        | ErrorName::InvalidCiphertextException
        | ErrorName::InvalidKeyUsageException
        | ErrorName::KeyNotFoundException
        | ErrorName::UnsupportedOperationException
        | ErrorName::InternalException => Code::XksProxyInvalidResponse,
    }
}

/// Whether a health answer leaves nothing to connect to.
#[must_use]
pub fn is_all_unavailable(health: &GetHealthStatusResponse) -> bool {
    health.ekm_fleet_details.iter().all(|manager| manager.health_status == HealthStatus::Unavailable)
}

/// CreateCustomKeyStore or UpdateCustomKeyStore when every external key manager is unavailable.
#[must_use]
pub fn all_unavailable() -> KmsError {
    KmsError::new(Exception::XksProxyUriUnreachableException, UNHEALTHY)
}

/// Decrypt when the proxy's plaintext is not what KMS had encrypted.
#[must_use]
pub fn wrong_inner_layer() -> KmsError {
    KmsError::new(Exception::KMSInvalidStateException, WRONG_CIPHERTEXT)
}

/// A failure as journal and metrics count it. Retryable are the errors that KMS's reliability graph counts so.
#[must_use]
pub fn for_journal(failure: &Failure) -> ProxyFailure {
    let (kind, is_retryable) = match failure {
        Failure::Refused(refusal) => (refusal.error_name.as_str(), refusal.error_name.is_retryable()),
        Failure::Unreachable(_) => ("Unreachable", true),
        Failure::TimedOut => ("TimedOut", true),
        Failure::Broken(_) => ("ConnectionBroken", true),
        Failure::Tls(_) => ("TlsFailure", false),
        Failure::Malformed(_) => ("MalformedResponse", false),
        Failure::NotSent(_) => ("NotSent", false),
    };
    ProxyFailure { kind, is_retryable, text: failure.to_string() }
}
