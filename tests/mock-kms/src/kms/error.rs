//! Exceptions of the KMS API.

/// What KMS answers instead of a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", exception.name(), message.as_deref().unwrap_or("(no message)"))]
pub struct KmsError {
    /// Which exception.
    pub exception: Exception,
    /// Its message. Some exceptions of AWS have none.
    pub message: Option<String>,
}

impl KmsError {
    /// An exception with a message.
    #[must_use]
    pub fn new(exception: Exception, message: impl Into<String>) -> Self {
        Self { exception, message: Some(message.into()) }
    }

    /// An exception without a message, as AWS sends a few.
    #[must_use]
    pub const fn bare(exception: Exception) -> Self {
        Self { exception, message: None }
    }

    /// A `ValidationException` for a rule that spans several members.
    #[must_use]
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(Exception::ValidationException, message)
    }
}

macro_rules! exceptions {
    ($($name:ident)*) => {
        /// The exceptions that this KMS raises, by their names on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the names are those of the KMS API reference, which explains them")]
        pub enum Exception { $($name),* }

        impl Exception {
            /// The `__type` on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

exceptions! {
    AccessDeniedException
    AlreadyExistsException
    CloudHsmClusterNotFoundException
    CustomKeyStoreHasCMKsException
    CustomKeyStoreInvalidStateException
    CustomKeyStoreNameInUseException
    CustomKeyStoreNotFoundException
    DependencyTimeoutException
    DisabledException
    DryRunOperationException
    IncompleteSignatureException
    IncorrectKeyException
    InvalidArnException
    InvalidCiphertextException
    InvalidKeyUsageException
    InvalidMarkerException
    InvalidSignatureException
    KMSInternalException
    KMSInvalidStateException
    KeyUnavailableException
    LimitExceededException
    MalformedPolicyDocumentException
    MissingAuthenticationTokenException
    NotAuthorizedException
    NotFoundException
    SerializationException
    TagException
    ThrottlingException
    UnknownOperationException
    UnrecognizedClientException
    UnsupportedOperationException
    ValidationException
    XksKeyAlreadyInUseException
    XksKeyInvalidConfigurationException
    XksKeyNotFoundException
    XksProxyIncorrectAuthenticationCredentialException
    XksProxyInvalidConfigurationException
    XksProxyInvalidResponseException
    XksProxyUriEndpointInUseException
    XksProxyUriInUseException
    XksProxyUriUnreachableException
    XksProxyVpcEndpointServiceInUseException
    XksProxyVpcEndpointServiceNotFoundException
}

impl Exception {
    /// HTTP status: AWS answers every fault of a client with 400, whatever the exception is called, and its own with 500
    /// or 503.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::KMSInternalException | Self::KeyUnavailableException => 500,
            Self::DependencyTimeoutException => 503,
            _ => 400,
        }
    }
}
