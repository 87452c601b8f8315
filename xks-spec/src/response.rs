//! Bodies of successful answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::limits::TAG_BYTES;

/// `keySpec` of the one kind of key that version 1 uses.
pub const AES_256: &str = "AES_256";
/// `keyUsage` of a key that may encrypt.
pub const ENCRYPT: &str = "ENCRYPT";
/// `keyUsage` of a key that may decrypt.
pub const DECRYPT: &str = "DECRYPT";

// SPEC(META-RESP-001, META-RESP-003, META-RESP-004): all three fields MUST be there.
/// Answer of GetKeyMetadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetKeyMetadataResponse {
    /// `AES_256`, or the true kind of a key that KMS will refuse.
    pub key_spec: String,
    /// What the key may do; at most ten values.
    pub key_usage: Vec<String>,
    /// Whether the key may be used now.
    pub key_status: KeyStatus,
}

/// `keyStatus` of an external key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum KeyStatus {
    /// Usable.
    Enabled,
    /// Switched off in the proxy or in the key manager.
    Disabled,
}

// SPEC(ENC-RESP-001, ENC-RESP-002, ENC-RESP-003): ciphertext, initializationVector and authenticationTag MUST be there.
/// Answer of Encrypt. All texts are standard Base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptResponse {
    /// As long as the plaintext.
    pub ciphertext: String,
    /// At most 20 bytes that select how to decrypt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ciphertext_metadata: Option<String>,
    /// 12 or 16 bytes.
    pub initialization_vector: String,
    /// 16 bytes.
    pub authentication_tag: String,
    /// SHA-256, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ciphertext_data_integrity_value: Option<String>,
}

impl EncryptResponse {
    /// Builds the answer from what AES-GCM gave: `ciphertext_and_tag` ends with the 16-byte tag.
    ///
    /// `None` where there are fewer bytes than a tag has.
    #[must_use]
    pub fn new(
        iv: &[u8],
        ciphertext_and_tag: &[u8],
        ciphertext_metadata: &[u8],
        integrity_value: Option<&[u8; 32]>,
    ) -> Option<Self> {
        // SPEC(ENC-TAG-001, ENC-TAG-002, ENC-SIZE-002): MUST separate the 16-byte tag that a key manager appends.
        // SPEC(ENC-BASE64-002, ENC-CTMD-001, ENC-CTMD-002, ENC-CTMD-003): standard Base64; metadata of at most 20 bytes.
        let ciphertext_bytes = ciphertext_and_tag.len().checked_sub(TAG_BYTES)?;
        let (ciphertext, tag) = ciphertext_and_tag.split_at(ciphertext_bytes);
        Some(Self {
            ciphertext: STANDARD.encode(ciphertext),
            ciphertext_metadata: Some(STANDARD.encode(ciphertext_metadata)),
            initialization_vector: STANDARD.encode(iv),
            authentication_tag: STANDARD.encode(tag),
            ciphertext_data_integrity_value: integrity_value.map(|value| STANDARD.encode(value)),
        })
    }
}

// SPEC(DEC-RESP-001): plaintext MUST be there.
/// Answer of Decrypt.
#[derive(Serialize, Deserialize)]
pub struct DecryptResponse {
    /// Standard Base64.
    pub plaintext: String,
}

impl DecryptResponse {
    /// Builds the answer.
    #[must_use]
    pub fn new(plaintext: &[u8]) -> Self {
        // SPEC(DEC-BASE64-002, DEC-SIZE-002): standard Base64, as long as the ciphertext.
        Self { plaintext: STANDARD.encode(plaintext) }
    }
}

impl Drop for DecryptResponse {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.plaintext);
    }
}

// SPEC(HEALTH-RESP-003, HEALTH-RESP-004, HEALTH-RESP-005, HEALTH-RESP-006): all fields MUST be there.
/// Answer of GetHealthStatus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetHealthStatusResponse {
    /// Number of proxies, at least one.
    pub xks_proxy_fleet_size: u32,
    /// Who makes the proxy.
    pub xks_proxy_vendor: String,
    /// Name and version of the proxy.
    pub xks_proxy_model: String,
    /// Who makes the key manager.
    pub ekm_vendor: String,
    /// The key managers, one to ten.
    pub ekm_fleet_details: Vec<EkmDetails>,
}

/// One external key manager of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EkmDetails {
    /// Tells it from the others.
    pub id: String,
    /// Name and version.
    pub model: String,
    /// As measured.
    pub health_status: HealthStatus,
}

/// `healthStatus` of an external key manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HealthStatus {
    /// Healthy.
    Active,
    /// Unhealthy, but it can serve.
    Degraded,
    /// Unable to serve.
    Unavailable,
}

impl HealthStatus {
    /// The status on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Degraded => "DEGRADED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}
