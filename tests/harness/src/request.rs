//! XKS requests, signed by AWS's own signer.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method, Request};
use serde_json::{Map, Value, json};

/// How requests are signed.
#[derive(Clone, Debug)]
pub struct Signing {
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
    /// Region of the scope.
    pub region: String,
    /// Service of the scope.
    pub service: String,
    /// How far the request's clock is ahead of ours, in seconds.
    pub skew_secs: i64,
    /// Whether x-amz-content-sha256 is sent and signed.
    pub sends_checksum: bool,
}

impl Signing {
    /// Signs as KMS in us-east-1 does.
    #[must_use]
    pub fn new(access_key_id: &str, secret_access_key: &str) -> Self {
        Self {
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
            region: "us-east-1".to_owned(),
            service: "kms-xks-proxy".to_owned(),
            skew_secs: 0,
            sends_checksum: false,
        }
    }

    /// The `x-amz-date` and `authorization` headers of a request, and the checksum's where it is sent.
    #[must_use]
    pub fn headers(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<(HeaderName, HeaderValue)> {
        let identity =
            Credentials::new(&self.access_key_id, &self.secret_access_key, None, None, "test").into();
        let mut settings = SigningSettings::default();
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        if self.sends_checksum {
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let skew = Duration::from_secs(self.skew_secs.unsigned_abs());
        let now = SystemTime::now();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.service)
            .time(if self.skew_secs < 0 { now - skew } else { now + skew })
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let signable =
            SignableRequest::new(method, url, headers.iter().copied(), SignableBody::Bytes(body)).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let mut signed = Request::new(());
        instructions.apply_to_request_http1x(&mut signed);
        signed.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// A request that is right until a test changes it.
#[derive(Clone, Debug)]
pub struct XksRequest {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Body, as it is signed.
    pub body: Vec<u8>,
    /// Further headers, signed too.
    pub headers: Vec<(&'static str, String)>,
    /// How it is signed; `None` for not at all.
    pub signing: Option<Signing>,
}

impl XksRequest {
    /// A request to `path` with a JSON body.
    #[must_use]
    pub fn new(signing: &Signing, path: String, body: &Value) -> Self {
        Self {
            method: Method::POST,
            path,
            body: body.to_string().into_bytes(),
            headers: vec![("content-type", "application/json".to_owned())],
            signing: Some(signing.clone()),
        }
    }

    /// Encrypt.
    #[must_use]
    pub fn encrypt(store: &crate::Store, key: &str, body: &Value) -> Self {
        Self::new(&store.signing, format!("{}/kms/xks/v1/keys/{key}/encrypt", store.prefix), body)
    }

    /// Decrypt.
    #[must_use]
    pub fn decrypt(store: &crate::Store, key: &str, body: &Value) -> Self {
        Self::new(&store.signing, format!("{}/kms/xks/v1/keys/{key}/decrypt", store.prefix), body)
    }

    /// GetKeyMetadata.
    #[must_use]
    pub fn metadata(store: &crate::Store, key: &str) -> Self {
        let path = format!("{}/kms/xks/v1/keys/{key}/metadata", store.prefix);
        Self::new(&store.signing, path, &json!({ "requestMetadata": metadata("CreateKey") }))
    }

    /// GetHealthStatus.
    #[must_use]
    pub fn health(store: &crate::Store) -> Self {
        let body = json!({ "requestMetadata": { "kmsRequestId": new_request_id(), "kmsOperation": "KmsHealthCheck" } });
        Self::new(&store.signing, format!("{}/kms/xks/v1/health", store.prefix), &body)
    }
}

/// Request metadata with every field that the specification names, and a fresh kmsRequestId.
#[must_use]
pub fn metadata(kms_operation: &str) -> Value {
    json!({
        "awsPrincipalArn": "arn:aws:iam::123456789012:user/Alice",
        "kmsKeyArn": "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "kmsOperation": kms_operation,
        "kmsRequestId": new_request_id(),
        "kmsViaService": "s3.us-east-1.amazonaws.com",
    })
}

/// A kmsRequestId that no other request of this process has.
#[must_use]
pub fn new_request_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test-request-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The body of an Encrypt request.
#[must_use]
pub fn encrypt_body(plaintext: &[u8], aad: Option<&[u8]>, wants_integrity_value: bool) -> Value {
    let mut body = json!({
        "requestMetadata": metadata("Encrypt"),
        "plaintext": STANDARD.encode(plaintext),
        "encryptionAlgorithm": "AES_GCM",
    });
    if let Some(aad) = aad {
        body["additionalAuthenticatedData"] = json!(STANDARD.encode(aad));
    }
    if wants_integrity_value {
        body["ciphertextDataIntegrityValueAlgorithm"] = json!("SHA_256");
    }
    body
}

/// The body of a Decrypt request for what an Encrypt answer holds.
#[must_use]
pub fn decrypt_body(encrypted: &Value, aad: Option<&[u8]>) -> Value {
    let mut body = Map::new();
    for field in ["ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata"] {
        body.insert(field.to_owned(), encrypted[field].clone());
    }
    body.insert("requestMetadata".to_owned(), metadata("Decrypt"));
    body.insert("encryptionAlgorithm".to_owned(), json!("AES_GCM"));
    if let Some(aad) = aad {
        body.insert("additionalAuthenticatedData".to_owned(), json!(STANDARD.encode(aad)));
    }
    Value::Object(body)
}

/// The bytes of a Base64 field.
#[must_use]
pub fn bytes_of(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// Base64.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
