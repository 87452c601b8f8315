//! What a custom key store of type `EXTERNAL_KEY_STORE` is. What may be done with it is in [`super::stores`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A custom key store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// `cks-…`.
    pub id: String,
    /// Friendly name, unique.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// How its proxy is reached.
    pub proxy: ProxySettings,
    /// Since when the present credential is in use.
    pub credential_since: Timestamp,
    /// Connection state.
    pub connection: ConnectionState,
    /// Counts connects and disconnects, so that a result that comes late changes nothing.
    pub attempt: u64,
}

/// How a store's proxy is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxySettings {
    /// `XksProxyConnectivity`.
    pub connectivity: Connectivity,
    /// `XksProxyUriEndpoint`, `https://` and a host.
    pub uri_endpoint: String,
    /// `XksProxyUriPath`.
    pub uri_path: String,
    /// `XksProxyVpcEndpointServiceName`, where connectivity is by a VPC endpoint service.
    pub vpc_service_name: Option<String>,
    /// `XksProxyVpcEndpointServiceOwner`, likewise.
    pub vpc_service_owner: Option<String>,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: SecretText,
}

impl ProxySettings {
    /// The host of the endpoint.
    #[must_use]
    pub fn host(&self) -> &str {
        self.uri_endpoint.strip_prefix("https://").unwrap_or(&self.uri_endpoint)
    }
}

/// `XksProxyConnectivity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connectivity {
    /// Over the internet.
    #[serde(rename = "PUBLIC_ENDPOINT")]
    PublicEndpoint,
    /// Through a VPC endpoint service.
    #[serde(rename = "VPC_ENDPOINT_SERVICE")]
    VpcEndpointService,
}

impl Connectivity {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PublicEndpoint => "PUBLIC_ENDPOINT",
            Self::VpcEndpointService => "VPC_ENDPOINT_SERVICE",
        }
    }
}

/// A secret access key, hidden from Debug and wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Takes the text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, to sign with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// `ConnectionState`, and why it is `FAILED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    /// Keys can be made and used.
    Connected,
    /// ConnectCustomKeyStore was called and has no result yet.
    Connecting,
    /// Connecting failed; it must be disconnected before the next attempt.
    Failed(ConnectionErrorCode),
    /// Never connected, or disconnected.
    Disconnected,
    /// DisconnectCustomKeyStore was called and is not done yet.
    Disconnecting,
}

impl ConnectionState {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "CONNECTED",
            Self::Connecting => "CONNECTING",
            Self::Failed(_) => "FAILED",
            Self::Disconnected => "DISCONNECTED",
            Self::Disconnecting => "DISCONNECTING",
        }
    }
}

/// `ConnectionErrorCode`, those that external key stores can have here: there are no VPC endpoint services to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the KMS API reference explains them")]
pub enum ConnectionErrorCode {
    InternalError,
    NetworkErrors,
    InvalidCredentials,
    XksProxyAccessDenied,
    XksProxyInvalidConfiguration,
    XksProxyInvalidResponse,
    XksProxyInvalidTlsConfiguration,
    XksProxyNotReachable,
    XksProxyTimedOut,
}

impl ConnectionErrorCode {
    /// The code on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InternalError => "INTERNAL_ERROR",
            Self::NetworkErrors => "NETWORK_ERRORS",
            Self::InvalidCredentials => "INVALID_CREDENTIALS",
            Self::XksProxyAccessDenied => "XKS_PROXY_ACCESS_DENIED",
            Self::XksProxyInvalidConfiguration => "XKS_PROXY_INVALID_CONFIGURATION",
            Self::XksProxyInvalidResponse => "XKS_PROXY_INVALID_RESPONSE",
            Self::XksProxyInvalidTlsConfiguration => "XKS_PROXY_INVALID_TLS_CONFIGURATION",
            Self::XksProxyNotReachable => "XKS_PROXY_NOT_REACHABLE",
            Self::XksProxyTimedOut => "XKS_PROXY_TIMED_OUT",
        }
    }
}

/// What UpdateCustomKeyStore is asked to change; `None` leaves a value as it is.
#[derive(Clone, Debug, Default)]
pub struct StoreChange {
    /// New friendly name.
    pub name: Option<String>,
    /// New connectivity.
    pub connectivity: Option<Connectivity>,
    /// New endpoint.
    pub uri_endpoint: Option<String>,
    /// New path.
    pub uri_path: Option<String>,
    /// New VPC endpoint service.
    pub vpc_service_name: Option<String>,
    /// New owner of the VPC endpoint service.
    pub vpc_service_owner: Option<String>,
    /// New access key id and secret access key.
    pub credential: Option<(String, SecretText)>,
}

impl StoreChange {
    /// Whether the store must be disconnected for it.
    #[must_use]
    pub fn needs_disconnected(&self) -> bool {
        self.connectivity.is_some()
            || self.uri_endpoint.is_some()
            || self.vpc_service_name.is_some()
            || self.vpc_service_owner.is_some()
    }

    /// Whether the proxy must prove itself under the new values before they apply.
    #[must_use]
    pub fn concerns_proxy(&self) -> bool {
        self.needs_disconnected() || self.uri_path.is_some() || self.credential.is_some()
    }

    /// The store with the new values.
    #[must_use]
    pub fn applied_to(self, store: &Store, now: Timestamp) -> Store {
        let mut changed = store.clone();
        let proxy = &mut changed.proxy;
        let StoreChange { name, connectivity, uri_endpoint, uri_path, .. } = self;
        if let Some(name) = name {
            changed.name = name;
        }
        proxy.connectivity = connectivity.unwrap_or(proxy.connectivity);
        proxy.vpc_service_name = self.vpc_service_name.or(proxy.vpc_service_name.take());
        proxy.vpc_service_owner = self.vpc_service_owner.or(proxy.vpc_service_owner.take());
        if proxy.connectivity == Connectivity::PublicEndpoint {
            proxy.vpc_service_name = None;
            proxy.vpc_service_owner = None;
        }
        if let Some(uri_endpoint) = uri_endpoint {
            proxy.uri_endpoint = uri_endpoint;
        }
        if let Some(uri_path) = uri_path {
            proxy.uri_path = uri_path;
        }
        if let Some((access_key_id, secret_access_key)) = self.credential {
            proxy.access_key_id = access_key_id;
            proxy.secret_access_key = secret_access_key;
            changed.credential_since = now;
        }
        changed
    }
}
