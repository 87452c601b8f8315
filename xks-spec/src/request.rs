//! Request bodies: parsed, checked against the specification and the proxy's size limits, decoded.
//!
//! Checks run in one order: JSON, then the fields one by one (400), then sizes (501).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::body::{BodyFault, Field, parse_object};
use crate::limits::{IV_BYTES, MAX_CIPHERTEXT_METADATA_BYTES, TAG_BYTES};
use crate::metadata::RequestMetadata;
use crate::path::Operation;

/// The one `encryptionAlgorithm` of version 1.
pub const AES_GCM: &str = "AES_GCM";
/// The one `ciphertextDataIntegrityValueAlgorithm` of version 1.
pub const SHA_256: &str = "SHA_256";

/// The longest values that a proxy takes, in bytes before Base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimits {
    /// Longest plaintext and ciphertext.
    pub max_plaintext_bytes: usize,
    /// Longest additional authenticated data.
    pub max_aad_bytes: usize,
}

/// Reads the body of GetKeyMetadata or GetHealthStatus, which is the request metadata alone.
///
/// `metadata` receives the request metadata, whatever fault is found afterwards: the log wants it then most of all.
///
/// # Errors
/// [`BodyFault`] where the JSON or a required metadata field is bad.
pub fn parse_metadata_only(
    body: &[u8],
    operation: Operation,
    metadata: &mut Option<RequestMetadata>,
) -> Result<(), BodyFault> {
    let wire: MetadataOnlyWire = parse_object(body)?;
    keep_metadata(wire.request_metadata, operation, metadata)
}

/// An Encrypt request.
pub struct EncryptRequest {
    /// What to encrypt, at least one byte. Wiped when dropped.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// What to authenticate along; empty where absent.
    pub aad: Vec<u8>,
    /// Whether a ciphertext data integrity value is asked for.
    pub wants_integrity_value: bool,
}

impl EncryptRequest {
    /// `metadata` receives the request metadata, whatever fault is found afterwards.
    ///
    /// # Errors
    /// [`BodyFault`], the first in the order: JSON, metadata, algorithms, AAD, plaintext, sizes.
    pub fn parse(
        body: &[u8],
        limits: SizeLimits,
        metadata: &mut Option<RequestMetadata>,
    ) -> Result<Self, BodyFault> {
        let wire: EncryptWire<'_> = parse_object(body)?;
        keep_metadata(wire.request_metadata, Operation::Encrypt, metadata)?;
        // SPEC(ENC-FIELD-002, ENC-ALG-001): encryptionAlgorithm is REQUIRED and MUST be AES_GCM.
        wire.encryption_algorithm.must_be("encryptionAlgorithm", AES_GCM)?;
        // SPEC(ENC-CDIV-003): OPTIONAL.
        let integrity = &wire.ciphertext_data_integrity_value_algorithm;
        let wants_integrity_value = integrity.text("ciphertextDataIntegrityValueAlgorithm")?.is_some();
        if wants_integrity_value {
            // SPEC(ENC-CDIV-001, ENC-CDIV-006): the integrity value's algorithm MUST be SHA_256.
            integrity.must_be("ciphertextDataIntegrityValueAlgorithm", SHA_256)?;
        }
        // SPEC(ENC-AAD-002): OPTIONAL.
        let aad =
            wire.additional_authenticated_data.bytes("additionalAuthenticatedData")?.unwrap_or_default();
        let plaintext = Zeroizing::new(wire.plaintext.required_bytes("plaintext")?);
        limit(&plaintext, "plaintext", limits.max_plaintext_bytes)?;
        limit(&aad, "additionalAuthenticatedData", limits.max_aad_bytes)?;
        Ok(Self { plaintext, aad, wants_integrity_value })
    }
}

/// A Decrypt request.
pub struct DecryptRequest {
    /// What was authenticated along; empty where absent.
    pub aad: Vec<u8>,
    /// Whether the field was there: the specification's framing does not tell absent from empty, others may.
    pub has_aad: bool,
    /// The ciphertext with its 16-byte tag behind it, as PKCS#11 takes it.
    pub ciphertext_and_tag: Vec<u8>,
    /// The initialization vector: 12 or 16 bytes.
    pub iv: Vec<u8>,
    /// The ciphertext metadata, at most 20 bytes; empty where absent.
    pub ciphertext_metadata: Vec<u8>,
}

impl DecryptRequest {
    /// `metadata` receives the request metadata, whatever fault is found afterwards.
    ///
    /// # Errors
    /// [`BodyFault`], the first in the order: JSON, metadata, algorithm, AAD, ciphertext, IV, tag, ciphertext
    /// metadata, sizes.
    pub fn parse(
        body: &[u8],
        limits: SizeLimits,
        metadata: &mut Option<RequestMetadata>,
    ) -> Result<Self, BodyFault> {
        let wire: DecryptWire<'_> = parse_object(body)?;
        keep_metadata(wire.request_metadata, Operation::Decrypt, metadata)?;
        // SPEC(DEC-FIELD-002, DEC-ALG-001): encryptionAlgorithm is REQUIRED and MUST be AES_GCM.
        wire.encryption_algorithm.must_be("encryptionAlgorithm", AES_GCM)?;
        // SPEC(DEC-AAD-002): OPTIONAL.
        let aad = wire.additional_authenticated_data.bytes("additionalAuthenticatedData")?;
        let (has_aad, aad) = (aad.is_some(), aad.unwrap_or_default());
        let mut ciphertext_and_tag = wire.ciphertext.required_bytes("ciphertext")?;
        let iv = wire.initialization_vector.required_bytes("initializationVector")?;
        // SPEC(DEC-IV-002): MUST be 12 or 16 bytes.
        if !IV_BYTES.contains(&iv.len()) {
            return Err(BodyFault::Length { field: "initializationVector", expected: "12 or 16 bytes" });
        }
        let tag = wire.authentication_tag.required_bytes("authenticationTag")?;
        // SPEC(DEC-TAG-001): MUST be 16 bytes.
        if tag.len() != TAG_BYTES {
            return Err(BodyFault::Length { field: "authenticationTag", expected: "16 bytes" });
        }
        let ciphertext_metadata = wire.ciphertext_metadata.bytes("ciphertextMetadata")?.unwrap_or_default();
        // SPEC(DEC-CTMD-002): MUST NOT be longer than 20 bytes.
        if ciphertext_metadata.len() > MAX_CIPHERTEXT_METADATA_BYTES {
            return Err(BodyFault::Length { field: "ciphertextMetadata", expected: "at most 20 bytes" });
        }
        limit(&ciphertext_and_tag, "ciphertext", limits.max_plaintext_bytes)?;
        limit(&aad, "additionalAuthenticatedData", limits.max_aad_bytes)?;
        ciphertext_and_tag.extend_from_slice(&tag);
        Ok(Self { aad, has_aad, ciphertext_and_tag, iv, ciphertext_metadata })
    }
}

fn keep_metadata(
    found: Option<RequestMetadata>,
    operation: Operation,
    metadata: &mut Option<RequestMetadata>,
) -> Result<(), BodyFault> {
    metadata.insert(found.ok_or(BodyFault::Missing("requestMetadata"))?).require_fields(operation)
}

fn limit(bytes: &[u8], field: &'static str, max_bytes: usize) -> Result<(), BodyFault> {
    if bytes.len() > max_bytes { Err(BodyFault::TooLong { field, max_bytes }) } else { Ok(()) }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetadataOnlyWire {
    request_metadata: Option<RequestMetadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EncryptWire<'a> {
    request_metadata: Option<RequestMetadata>,
    #[serde(borrow, default)]
    plaintext: Field<'a>,
    #[serde(borrow, default)]
    encryption_algorithm: Field<'a>,
    #[serde(borrow, default)]
    additional_authenticated_data: Field<'a>,
    #[serde(borrow, default)]
    ciphertext_data_integrity_value_algorithm: Field<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DecryptWire<'a> {
    request_metadata: Option<RequestMetadata>,
    #[serde(borrow, default)]
    ciphertext: Field<'a>,
    #[serde(borrow, default)]
    ciphertext_metadata: Field<'a>,
    #[serde(borrow, default)]
    encryption_algorithm: Field<'a>,
    #[serde(borrow, default)]
    additional_authenticated_data: Field<'a>,
    #[serde(borrow, default)]
    initialization_vector: Field<'a>,
    #[serde(borrow, default)]
    authentication_tag: Field<'a>,
}

/// The body of an Encrypt request, for clients.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptBody<'a> {
    request_metadata: &'a RequestMetadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_authenticated_data: Option<String>,
    plaintext: String,
    encryption_algorithm: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_data_integrity_value_algorithm: Option<&'static str>,
}

impl<'a> EncryptBody<'a> {
    /// A body that asks to encrypt `plaintext`.
    #[must_use]
    pub fn new(
        request_metadata: &'a RequestMetadata,
        plaintext: &[u8],
        aad: Option<&[u8]>,
        wants_integrity_value: bool,
    ) -> Self {
        Self {
            request_metadata,
            additional_authenticated_data: aad.map(|aad| STANDARD.encode(aad)),
            plaintext: STANDARD.encode(plaintext),
            encryption_algorithm: AES_GCM,
            ciphertext_data_integrity_value_algorithm: wants_integrity_value.then_some(SHA_256),
        }
    }
}

/// The body of a Decrypt request, for clients.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecryptBody<'a> {
    request_metadata: &'a RequestMetadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_authenticated_data: Option<String>,
    ciphertext: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_metadata: Option<String>,
    encryption_algorithm: &'static str,
    initialization_vector: String,
    authentication_tag: String,
}

impl<'a> DecryptBody<'a> {
    /// A body that asks to decrypt what `encrypted`, an Encrypt answer, holds.
    #[must_use]
    pub fn new(
        request_metadata: &'a RequestMetadata,
        encrypted: &crate::response::EncryptResponse,
        aad: Option<&[u8]>,
    ) -> Self {
        Self {
            request_metadata,
            additional_authenticated_data: aad.map(|aad| STANDARD.encode(aad)),
            ciphertext: encrypted.ciphertext.clone(),
            ciphertext_metadata: encrypted.ciphertext_metadata.clone(),
            encryption_algorithm: AES_GCM,
            initialization_vector: encrypted.initialization_vector.clone(),
            authentication_tag: encrypted.authentication_tag.clone(),
        }
    }
}
