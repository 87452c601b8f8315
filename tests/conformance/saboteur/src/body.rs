//! Reads request bodies.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde_json::{Map, Value};
use xks_spec::limits::{MAX_ARN_CHARS, MIN_SUPPORTED_AAD_BYTES, MIN_SUPPORTED_PLAINTEXT_BYTES};
use xks_spec::request::AES_GCM;
use xks_spec::{ErrorName, Operation, RequestMetadata};

use crate::fault::Fault;
use crate::proxy::{Proxy, Refusal};

/// Every `kmsOperation` that the specification lists.
const LISTED_OPERATIONS: [&str; 11] = [
    "CreateKey",
    "DescribeKey",
    "Encrypt",
    "Decrypt",
    "ReEncrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "CreateCustomKeyStore",
    "ConnectCustomKeyStore",
    "UpdateCustomKeyStore",
    "KmsHealthCheck",
];

/// A body whose requestMetadata is whole.
pub(crate) struct Body<'a> {
    proxy: &'a Proxy,
    fields: Map<String, Value>,
}

impl<'a> Body<'a> {
    /// # Errors
    /// ValidationException.
    pub(crate) fn parse(proxy: &'a Proxy, operation: Operation, bytes: &[u8]) -> Result<Self, Refusal> {
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
        let not_an_object = || {
            let bad_json = proxy.has(Fault::BadJsonAsInternalError);
            let name = if bad_json { ErrorName::InternalException } else { ErrorName::ValidationException };
            Refusal::new(name, "The body is not one JSON object.")
        };
        let Some(Ok(Value::Object(fields))) = values.next() else { return Err(not_an_object()) };
        if values.next().is_some() && !proxy.has(Fault::TrailingJsonAccepted) {
            return Err(not_an_object());
        }
        check_metadata(proxy, operation, fields.get("requestMetadata"))?;
        Ok(Self { proxy, fields })
    }

    /// Who called KMS, where the request says so.
    pub(crate) fn caller(&self) -> Option<&str> {
        self.fields.get("requestMetadata")?["awsPrincipalArn"].as_str()
    }

    /// The text of a field; `None` where it is absent or null.
    ///
    /// # Errors
    /// ValidationException.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::invalid(format!("{name} is not a string."))),
        }
    }

    /// The bytes of a Base64 field; `None` where it is absent or null.
    ///
    /// # Errors
    /// ValidationException.
    pub(crate) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let decoded = decode(self.proxy, text);
        decoded.map(Some).ok_or_else(|| Refusal::invalid(format!("{name} is not Base64.")))
    }

    /// The bytes of a Base64 field that must be there and hold something.
    ///
    /// # Errors
    /// ValidationException.
    pub(crate) fn required_bytes(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        let bytes = self.bytes(name)?.filter(|bytes| !bytes.is_empty());
        bytes.ok_or_else(|| Refusal::invalid(format!("{name} is missing.")))
    }

    /// # Errors
    /// ValidationException unless the field says AES_GCM.
    pub(crate) fn check_algorithm(&self) -> Result<(), Refusal> {
        let is_lenient = match self.text("encryptionAlgorithm")? {
            None => self.proxy.has(Fault::AlgorithmNotRequired),
            Some(AES_GCM) => true,
            Some(_) => self.proxy.has(Fault::OtherAlgorithmAccepted),
        };
        if is_lenient { Ok(()) } else { Err(Refusal::invalid("encryptionAlgorithm is not AES_GCM.")) }
    }

    /// The additional authenticated data, empty where there are none.
    ///
    /// # Errors
    /// ValidationException, UnsupportedOperationException.
    pub(crate) fn aad(&self) -> Result<Vec<u8>, Refusal> {
        let aad = self.bytes("additionalAuthenticatedData")?;
        if aad.is_none() && self.proxy.has(Fault::AadRequired) {
            return Err(Refusal::invalid("additionalAuthenticatedData is missing."));
        }
        let is_short = self.proxy.has(Fault::AadOf4096);
        let limit = if is_short { 4096 } else { MIN_SUPPORTED_AAD_BYTES };
        self.limited("additionalAuthenticatedData", aad.unwrap_or_default(), limit)
    }

    /// A plaintext or ciphertext that must be there.
    ///
    /// # Errors
    /// ValidationException, UnsupportedOperationException.
    pub(crate) fn message(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        let is_short = self.proxy.has(Fault::PlaintextOf4096);
        let limit = if is_short { 4096 } else { MIN_SUPPORTED_PLAINTEXT_BYTES };
        self.limited(name, self.required_bytes(name)?, limit)
    }

    fn limited(&self, name: &str, bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, Refusal> {
        if bytes.len() <= limit {
            return Ok(bytes);
        }
        if self.proxy.has(Fault::OversizeCut) {
            return Ok(bytes[..limit].to_vec());
        }
        let is_internal = self.proxy.has(Fault::OversizeAsInternalError);
        let error =
            if is_internal { ErrorName::InternalException } else { ErrorName::UnsupportedOperationException };
        Err(Refusal::new(error, format!("{name} is longer than {limit} bytes.")))
    }
}

/// What must be there is there and is text. Nothing else is looked at: the signature covers it.
fn check_metadata(proxy: &Proxy, operation: Operation, metadata: Option<&Value>) -> Result<(), Refusal> {
    let Some(Value::Object(metadata)) = metadata else {
        return Err(Refusal::invalid("requestMetadata is missing."));
    };
    let text = |name: &str| metadata.get(name).and_then(Value::as_str);
    let also = match operation {
        Operation::Encrypt | Operation::Decrypt if proxy.has(Fault::ViaServiceRequired) => {
            Some(&"kmsViaService")
        }
        Operation::GetKeyMetadata if proxy.has(Fault::KeyArnRequired) => Some(&"kmsKeyArn"),
        Operation::GetHealthStatus if proxy.has(Fault::HealthWantsPrincipal) => Some(&"awsPrincipalArn"),
        _ => None,
    };
    let mut required = RequestMetadata::required_fields(operation).iter().chain(also);
    if let Some(missing) = required.find(|name| text(name).is_none()) {
        return Err(Refusal::invalid(format!("{missing} is missing.")));
    }
    let known = [
        "awsPrincipalArn",
        "awsSourceVpc",
        "awsSourceVpce",
        "kmsKeyArn",
        "kmsOperation",
        "kmsRequestId",
        "kmsViaService",
    ];
    if proxy.has(Fault::UnknownFieldRefused) && metadata.keys().any(|name| !known.contains(&name.as_str())) {
        return Err(Refusal::invalid("requestMetadata has an unknown member."));
    }
    if proxy.has(Fault::UnlistedOperationRefused)
        && text("kmsOperation").is_some_and(|name| !LISTED_OPERATIONS.contains(&name))
    {
        return Err(Refusal::invalid("kmsOperation is unknown."));
    }
    if proxy.has(Fault::RequestIdMustBeUuid) && text("kmsRequestId").is_some_and(|id| !is_uuid(id)) {
        return Err(Refusal::invalid("kmsRequestId is not a UUID."));
    }
    if proxy.has(Fault::PrincipalMustBeArn)
        && text("awsPrincipalArn").is_some_and(|principal| !principal.starts_with("arn:"))
    {
        return Err(Refusal::invalid("awsPrincipalArn is not an ARN."));
    }
    let is_long = |name| text(name).is_some_and(|arn| arn.len() > MAX_ARN_CHARS / 2);
    if proxy.has(Fault::LongArnRefused) && (is_long("awsPrincipalArn") || is_long("kmsKeyArn")) {
        return Err(Refusal::invalid("An ARN is too long."));
    }
    Ok(())
}

fn is_uuid(text: &str) -> bool {
    let is_right = |(index, byte): (usize, u8)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(is_right)
}

fn decode(proxy: &Proxy, text: &str) -> Option<Vec<u8>> {
    if proxy.has(Fault::LooseBase64Accepted) {
        let is_base64 = |character: &char| character.is_ascii_alphanumeric() || "+/".contains(*character);
        let config = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        let text: String = text.chars().filter(is_base64).collect();
        return GeneralPurpose::new(&alphabet::STANDARD, config).decode(text).ok();
    }
    let url_safe = || URL_SAFE.decode(text).ok().filter(|_| proxy.has(Fault::UrlSafeAccepted));
    STANDARD.decode(text).ok().or_else(url_safe)
}
