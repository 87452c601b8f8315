//! The four operations as KMS makes them, their answers checked as KMS checks them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use xks_spec::RequestMetadata;
use xks_spec::framing::ciphertext_data_integrity_value;
use xks_spec::limits::{
    IV_BYTES, MAX_CIPHERTEXT_METADATA_BYTES, MAX_FLEET_DETAILS, MAX_KEY_USAGES, TAG_BYTES,
};
use xks_spec::response::{DecryptResponse, EncryptResponse, GetHealthStatusResponse, GetKeyMetadataResponse};
use zeroize::Zeroizing;

use super::client::{Client, Exchange};
use super::failure::{Failure, Malformed};
use super::request::{Proxy, Request};

/// What a proxy's Encrypt gave, decoded: all that its Decrypt wants back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ciphertext {
    /// As long as the plaintext.
    pub ciphertext: Vec<u8>,
    /// At most 20 bytes; `None` where the proxy sent none.
    pub metadata: Option<Vec<u8>>,
    /// 12 or 16 bytes.
    pub iv: Vec<u8>,
    /// 16 bytes.
    pub tag: Vec<u8>,
}

impl From<&Ciphertext> for EncryptResponse {
    fn from(ciphertext: &Ciphertext) -> Self {
        Self {
            ciphertext: STANDARD.encode(&ciphertext.ciphertext),
            ciphertext_metadata: ciphertext.metadata.as_ref().map(|metadata| STANDARD.encode(metadata)),
            initialization_vector: STANDARD.encode(&ciphertext.iv),
            authentication_tag: STANDARD.encode(&ciphertext.tag),
            ciphertext_data_integrity_value: None,
        }
    }
}

impl Client {
    /// GetHealthStatus.
    pub async fn health_status(
        &self,
        proxy: &Proxy,
        metadata: &RequestMetadata,
    ) -> Exchange<GetHealthStatusResponse> {
        let exchange = self.send(proxy, &Request::health_status(proxy, metadata)).await;
        exchange.and_then(|answer| checked_health(answer.read()?))
    }

    /// GetKeyMetadata. Whether KMS can use such a key is for the caller to judge.
    pub async fn key_metadata(
        &self,
        proxy: &Proxy,
        external_key_id: &str,
        metadata: &RequestMetadata,
    ) -> Exchange<GetKeyMetadataResponse> {
        let exchange = self.send(proxy, &Request::key_metadata(proxy, external_key_id, metadata)).await;
        exchange.and_then(|answer| checked_key_metadata(answer.read()?))
    }

    /// Encrypt. The ciphertext data integrity value is asked for and verified.
    pub async fn encrypt(
        &self,
        proxy: &Proxy,
        external_key_id: &str,
        metadata: &RequestMetadata,
        plaintext: &[u8],
        aad: Option<&[u8]>,
    ) -> Exchange<Ciphertext> {
        let request = Request::encrypt(proxy, external_key_id, metadata, plaintext, aad);
        let exchange = self.send(proxy, &request).await;
        exchange
            .and_then(|answer| checked_ciphertext(&answer.read()?, plaintext.len(), aad.unwrap_or_default()))
    }

    /// Decrypt. The plaintext is wiped when dropped.
    pub async fn decrypt(
        &self,
        proxy: &Proxy,
        external_key_id: &str,
        metadata: &RequestMetadata,
        ciphertext: &Ciphertext,
        aad: Option<&[u8]>,
    ) -> Exchange<Zeroizing<Vec<u8>>> {
        let request = Request::decrypt(proxy, external_key_id, metadata, ciphertext, aad);
        let exchange = self.send(proxy, &request).await;
        exchange.and_then(|answer| checked_plaintext(&answer.read()?, ciphertext.ciphertext.len()))
    }
}

fn checked_health(health: GetHealthStatusResponse) -> Result<GetHealthStatusResponse, Failure> {
    let entries = health.ekm_fleet_details.len();
    if health.xks_proxy_fleet_size == 0 {
        return Err(Malformed::FleetSize.into());
    }
    if entries == 0 || entries > MAX_FLEET_DETAILS {
        return Err(Malformed::FleetDetails(entries).into());
    }
    Ok(health)
}

fn checked_key_metadata(metadata: GetKeyMetadataResponse) -> Result<GetKeyMetadataResponse, Failure> {
    match metadata.key_usage.len() {
        0..=MAX_KEY_USAGES => Ok(metadata),
        usages => Err(Malformed::KeyUsages(usages).into()),
    }
}

fn checked_ciphertext(
    answer: &EncryptResponse,
    plaintext_bytes: usize,
    aad: &[u8],
) -> Result<Ciphertext, Failure> {
    let ciphertext = decoded("ciphertext", &answer.ciphertext)?;
    let metadata = answer.ciphertext_metadata.as_deref();
    let metadata = metadata.map(|text| decoded("ciphertextMetadata", text)).transpose()?;
    let iv = decoded("initializationVector", &answer.initialization_vector)?;
    let tag = decoded("authenticationTag", &answer.authentication_tag)?;
    let metadata_bytes = metadata.as_ref().map_or(0, Vec::len);
    expect_length("ciphertext", ciphertext.len(), ciphertext.len() == plaintext_bytes, plaintext_bytes)?;
    let is_metadata_short = metadata_bytes <= MAX_CIPHERTEXT_METADATA_BYTES;
    expect_length("ciphertextMetadata", metadata_bytes, is_metadata_short, "at most 20")?;
    expect_length("initializationVector", iv.len(), IV_BYTES.contains(&iv.len()), "12 or 16")?;
    expect_length("authenticationTag", tag.len(), tag.len() == TAG_BYTES, TAG_BYTES)?;

    let value = answer.ciphertext_data_integrity_value.as_deref().ok_or(Malformed::IntegrityValueMissing)?;
    let value = decoded("ciphertextDataIntegrityValue", value)?;
    let ciphertext_and_tag = [ciphertext.as_slice(), &tag].concat();
    let expected = ciphertext_data_integrity_value(
        aad,
        metadata.as_deref().unwrap_or_default(),
        &iv,
        &ciphertext_and_tag,
    );
    if value != expected {
        return Err(Malformed::IntegrityValueWrong.into());
    }
    Ok(Ciphertext { ciphertext, metadata, iv, tag })
}

fn checked_plaintext(
    answer: &DecryptResponse,
    ciphertext_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let plaintext = Zeroizing::new(decoded("plaintext", &answer.plaintext)?);
    expect_length("plaintext", plaintext.len(), plaintext.len() == ciphertext_bytes, ciphertext_bytes)?;
    Ok(plaintext)
}

fn decoded(field: &'static str, text: &str) -> Result<Vec<u8>, Malformed> {
    STANDARD.decode(text).map_err(|_| Malformed::Base64(field))
}

fn expect_length(
    field: &'static str,
    found: usize,
    is_right: bool,
    expected: impl std::fmt::Display + Copy,
) -> Result<(), Malformed> {
    if is_right { Ok(()) } else { Err(Malformed::Length { field, found, expected: expected.to_string() }) }
}
