//! AWS SigV4 signatures as AWS KMS makes them: service `kms-xks-proxy`, signed headers `host;x-amz-date`.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::HeaderValue;

/// The service name in the credential scope (specification, Appendix A).
pub const SERVICE: &str = "kms-xks-proxy";

/// The two headers that a signed request carries beside `host`.
#[derive(Debug, Clone)]
pub struct Signature {
    /// `x-amz-date`.
    pub date: HeaderValue,
    /// `authorization`.
    pub authorization: HeaderValue,
}

/// A request that cannot be signed.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign: {0}")]
pub struct SignError(String);

/// Signs requests to one host with one credential.
#[derive(Debug)]
pub struct Signer {
    credentials: Credentials,
    region: String,
    host: String,
}

impl Signer {
    /// A signer for `host` as the `Host` header (HTTP/2: the authority) names it, in AWS Region `region`.
    pub fn new(access_key_id: &str, secret_access_key: &str, region: &str, host: &str) -> Self {
        let credentials = Credentials::new(access_key_id, secret_access_key, None, None, "xks-load");
        Self { credentials, region: region.to_owned(), host: host.to_owned() }
    }

    /// Signs a POST of `body` to `path` as of `at`.
    ///
    /// # Errors
    /// When the host or the path cannot stand in a URI.
    pub fn sign(&self, path: &str, body: &[u8], at: SystemTime) -> Result<Signature, SignError> {
        let fault = |error: &dyn std::error::Error| SignError(error.to_string());
        let identity = self.credentials.clone().into();
        // A key may be named "..", and the proxy sees the path as sent: neither normalise nor encode it a second time.
        let mut settings = SigningSettings::default();
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(at)
            .settings(settings)
            .build()
            .map_err(|error| fault(&error))?
            .into();
        // Every header given here would be signed: KMS signs host and date alone.
        let headers = std::iter::once(("host", self.host.as_str()));
        let request = SignableRequest::new("POST", path, headers, SignableBody::Bytes(body));
        let (instructions, _) = sign(request.map_err(|error| fault(&error))?, &params)
            .map_err(|error| fault(&error))?
            .into_parts();
        let header = |name: &str| {
            let value = instructions.headers().find_map(|(n, value)| (n == name).then_some(value));
            HeaderValue::from_str(value.unwrap_or_default()).map_err(|error| fault(&error))
        };
        Ok(Signature { date: header("x-amz-date")?, authorization: header("authorization")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn signed(path: &str) -> Signature {
        let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I";
        let signer = Signer::new("AKIDAKIDAKIDAKIDAKID", secret, "eu-west-1", "xks.example.com:8443");
        signer.sign(path, br#"{"a":1}"#, SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045)).unwrap()
    }

    /// Both values come from botocore's `SigV4Auth`; the second with its normalisation of paths switched off.
    #[test]
    fn signatures_are_those_of_botocore() {
        for (path, signature) in [
            (
                "/p/kms/xks/v1/keys/key-1/encrypt",
                "3f563b082865e854693689fb47a38dc5798606016c6f18fd197833283c5f6557",
            ),
            (
                "/p/kms/xks/v1/keys/../encrypt",
                "08a515dae0fc59a0baa9637fea585a8fd470d131aa649ab155c2437c96f74c2c",
            ),
        ] {
            let made = signed(path);
            assert_eq!(made.date, "20260102T030405Z");
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDAKIDAKIDAKIDAKID/20260102/eu-west-1/kms-xks-proxy/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature={signature}"
            );
            assert_eq!(made.authorization, expected, "{path}");
        }
    }

    #[test]
    fn a_path_that_is_no_uri_is_refused() {
        let signer = Signer::new("A", "s", "r", "h");
        assert!(signer.sign("/with space", b"", SystemTime::UNIX_EPOCH).is_err());
    }
}
