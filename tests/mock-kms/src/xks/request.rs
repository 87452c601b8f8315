//! Which proxy is called, and with what.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use serde::Serialize;
use xks_spec::request::{DecryptBody, EncryptBody};
use xks_spec::response::EncryptResponse;
use xks_spec::{Operation, RequestMetadata};
use zeroize::Zeroizing;

use super::operations::Ciphertext;
use super::shaping::Shaping;
use super::signing::Signing;

/// The proxy of one external key store: where it is, and how KMS proves itself to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `XksProxyUriEndpoint` without its `https://`. A port may follow, which KMS does not allow; 443 where none does.
    pub host: String,
    /// `XksProxyUriPath`, such as `/demo/kms/xks/v1`.
    pub uri_path: String,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key; never shown, and wiped when dropped.
    pub secret_access_key: Zeroizing<String>,
    /// Region of the signature's scope.
    pub region: String,
}

impl Proxy {
    /// A proxy at `https://<host><uri_path>`.
    #[must_use]
    pub fn new(
        host: &str,
        uri_path: &str,
        access_key_id: &str,
        secret_access_key: &str,
        region: &str,
    ) -> Self {
        Self {
            host: host.to_owned(),
            uri_path: uri_path.to_owned(),
            access_key_id: access_key_id.to_owned(),
            secret_access_key: Zeroizing::new(secret_access_key.to_owned()),
            region: region.to_owned(),
        }
    }

    /// The path of GetHealthStatus.
    #[must_use]
    pub fn health_path(&self) -> String {
        format!("{}/health", self.uri_path)
    }

    /// The path of `operation` on an external key. The id goes in as it is, permitted or not.
    #[must_use]
    pub fn key_path(&self, external_key_id: &str, operation: Operation) -> String {
        format!("{}/keys/{external_key_id}/{}", self.uri_path, operation.path_segment())
    }

    /// Host name and port apart.
    pub(super) fn name_and_port(&self) -> (&str, u16) {
        let with_port = self.host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
        with_port.unwrap_or((&self.host, 443))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{} ({} in {})", self.host, self.uri_path, self.access_key_id, self.region)
    }
}

/// Changes a finished HTTP request just before it is sent, its signature included.
pub type Edit = Arc<dyn Fn(&mut http::Request<Bytes>) + Send + Sync>;

/// A request to a proxy. What the constructors make is what KMS would send; every field may be changed.
#[derive(Clone)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path, and query if any, as it is sent.
    pub path: String,
    /// Headers besides `host`, `x-amz-date` and `authorization`. They are not signed, as with KMS.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
    /// How the signature differs from KMS's.
    pub signing: Signing,
    /// How the connection differs from KMS's.
    pub shaping: Shaping,
    /// The last word on the HTTP request, before each try.
    pub edit: Option<Edit>,
}

impl Request {
    /// A POST of JSON text to `path`.
    #[must_use]
    pub fn post(path: String, body: impl Into<Bytes>) -> Self {
        Self {
            method: Method::POST,
            path,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.into(),
            signing: Signing::default(),
            shaping: Shaping::default(),
            edit: None,
        }
    }

    /// GetHealthStatus.
    #[must_use]
    pub fn health_status(proxy: &Proxy, metadata: &RequestMetadata) -> Self {
        Self::post(proxy.health_path(), json(&MetadataOnly { request_metadata: metadata }))
    }

    /// GetKeyMetadata.
    #[must_use]
    pub fn key_metadata(proxy: &Proxy, external_key_id: &str, metadata: &RequestMetadata) -> Self {
        let path = proxy.key_path(external_key_id, Operation::GetKeyMetadata);
        Self::post(path, json(&MetadataOnly { request_metadata: metadata }))
    }

    /// Encrypt, with the ciphertext data integrity value asked for.
    #[must_use]
    pub fn encrypt(
        proxy: &Proxy,
        external_key_id: &str,
        metadata: &RequestMetadata,
        plaintext: &[u8],
        aad: Option<&[u8]>,
    ) -> Self {
        let path = proxy.key_path(external_key_id, Operation::Encrypt);
        Self::post(path, json(&EncryptBody::new(metadata, plaintext, aad, true)))
    }

    /// Decrypt.
    #[must_use]
    pub fn decrypt(
        proxy: &Proxy,
        external_key_id: &str,
        metadata: &RequestMetadata,
        ciphertext: &Ciphertext,
        aad: Option<&[u8]>,
    ) -> Self {
        let path = proxy.key_path(external_key_id, Operation::Decrypt);
        let encrypted = EncryptResponse::from(ciphertext);
        Self::post(path, json(&DecryptBody::new(metadata, &encrypted, aad)))
    }

    /// The same request with `edit` as the last word on it.
    #[must_use]
    pub fn edited(self, edit: impl Fn(&mut http::Request<Bytes>) + Send + Sync + 'static) -> Self {
        Self { edit: Some(Arc::new(edit)), ..self }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} with {} bytes", self.method, self.path, self.body.len())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MetadataOnly<'a> {
    request_metadata: &'a RequestMetadata,
}

fn json(body: &impl Serialize) -> Bytes {
    // INVARIANT: text and maps of text keys always serialise, and a Vec takes every byte; empty would be refused anyway.
    serde_json::to_vec(body).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(host: &str) -> Proxy {
        Proxy::new(host, "/p/kms/xks/v1", "AKIDAKIDAKIDAKIDAKID", "the+secret", "eu-west-1")
    }

    #[test]
    fn the_port_is_443_unless_one_is_given() {
        assert_eq!(proxy("xks.example.com").name_and_port(), ("xks.example.com", 443));
        assert_eq!(proxy("localhost:8443").name_and_port(), ("localhost", 8443));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", proxy("xks.example.com")).contains("the+secret"));
    }

    #[test]
    fn bodies_are_those_of_the_specification() {
        let metadata =
            RequestMetadata { kms_operation: Some("CreateKey".to_owned()), ..RequestMetadata::default() };
        let request = Request::key_metadata(&proxy("h"), "key.1", &metadata);
        assert_eq!(request.path, "/p/kms/xks/v1/keys/key.1/metadata");
        assert_eq!(request.body, r#"{"requestMetadata":{"kmsOperation":"CreateKey"}}"#);
        let request = Request::encrypt(&proxy("h"), "key.1", &metadata, b"Hello World!", Some(b"a"));
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let expected = serde_json::json!({
            "requestMetadata": { "kmsOperation": "CreateKey" },
            "additionalAuthenticatedData": "YQ==",
            "plaintext": "SGVsbG8gV29ybGQh",
            "encryptionAlgorithm": "AES_GCM",
            "ciphertextDataIntegrityValueAlgorithm": "SHA_256",
        });
        assert_eq!(body, expected);
    }
}
