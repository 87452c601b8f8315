//! SigV4 signatures as AWS KMS makes them, with knobs for tests (specification, Appendix A).

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::HeaderValue;

use super::failure::Failure;
use super::request::Proxy;

/// The service of the credential scope.
pub const SERVICE: &str = "kms-xks-proxy";

/// What is signed, where that differs from what KMS would sign. The default differs nowhere.
#[derive(Clone, Debug, Default)]
pub struct Signing {
    /// Sends neither `authorization` nor `x-amz-date`.
    pub is_off: bool,
    /// How far the request's clock is ahead of ours, in seconds.
    pub skew_secs: i64,
    /// Access key id other than the proxy's credential.
    pub access_key_id: Option<String>,
    /// Secret other than the proxy's credential.
    pub secret_access_key: Option<String>,
    /// Region of the scope.
    pub region: Option<String>,
    /// Service of the scope.
    pub service: Option<String>,
    /// Method that is signed.
    pub method: Option<String>,
    /// Path that is signed.
    pub path: Option<String>,
    /// Host that is signed.
    pub host: Option<String>,
    /// Body that is signed.
    pub body: Option<Bytes>,
    /// Headers signed besides `host` and `x-amz-date`; sent only if the request has them too.
    pub headers: Vec<(String, String)>,
}

/// The two headers of a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// `x-amz-date`.
    pub date: HeaderValue,
    /// `authorization`.
    pub authorization: HeaderValue,
}

impl Signing {
    /// Signs a request with `proxy`'s credential as of `at`, the knobs applied.
    ///
    /// # Errors
    /// [`Failure::NotSent`] when host or path cannot stand in a URI.
    pub fn sign(
        &self,
        proxy: &Proxy,
        method: &str,
        path: &str,
        body: &[u8],
        at: SystemTime,
    ) -> Result<Signature, Failure> {
        let fault = |error: &dyn std::error::Error| Failure::NotSent(error.to_string());
        let access_key_id = self.access_key_id.as_deref().unwrap_or(&proxy.access_key_id);
        let secret = self.secret_access_key.as_deref().unwrap_or(&proxy.secret_access_key);
        let identity = Credentials::new(access_key_id, secret, None, None, "mock-kms").into();
        let mut settings = SigningSettings::default();
        // A key may be called "..", and the proxy sees the path as it is sent.
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region.as_deref().unwrap_or(&proxy.region))
            .name(self.service.as_deref().unwrap_or(SERVICE))
            .time(shifted(at, self.skew_secs))
            .settings(settings)
            .build()
            .map_err(|error| fault(&error))?
            .into();
        let host = ("host", self.host.as_deref().unwrap_or(&proxy.host));
        // Every header given here is signed: KMS signs host and date alone.
        let more = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let request = SignableRequest::new(
            self.method.as_deref().unwrap_or(method),
            self.path.as_deref().unwrap_or(path),
            std::iter::once(host).chain(more),
            SignableBody::Bytes(self.body.as_deref().unwrap_or(body)),
        );
        let request = request.map_err(|error| fault(&error))?;
        let (instructions, _) = sign(request, &params).map_err(|error| fault(&error))?.into_parts();
        let header = |name: &str| {
            let value = instructions.headers().find_map(|(n, value)| (n == name).then_some(value));
            HeaderValue::from_str(value.unwrap_or_default()).map_err(|error| fault(&error))
        };
        Ok(Signature { date: header("x-amz-date")?, authorization: header("authorization")? })
    }
}

fn shifted(at: SystemTime, secs: i64) -> SystemTime {
    let distance = Duration::from_secs(secs.unsigned_abs());
    let moved = if secs < 0 { at.checked_sub(distance) } else { at.checked_add(distance) };
    moved.unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(signing: &Signing) -> String {
        let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I";
        let proxy =
            Proxy::new("xks.example.com:8443", "/p/kms/xks/v1", "AKIDAKIDAKIDAKIDAKID", secret, "eu-west-1");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        let made = signing.sign(&proxy, "POST", "/p/kms/xks/v1/keys/../encrypt", br#"{"a":1}"#, at).unwrap();
        assert_eq!(made.date, if signing.skew_secs == 0 { "20260102T030405Z" } else { "20260102T025905Z" });
        made.authorization.to_str().unwrap().to_owned()
    }

    /// The value comes from botocore's `SigV4Auth` with its normalisation of paths switched off.
    #[test]
    fn signs_as_botocore_does() {
        assert_eq!(
            signature(&Signing::default()),
            "AWS4-HMAC-SHA256 Credential=AKIDAKIDAKIDAKIDAKID/20260102/eu-west-1/kms-xks-proxy/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=08a515dae0fc59a0baa9637fea585a8fd470d131aa649ab155c2437c96f74c2c"
        );
    }

    #[test]
    fn each_knob_changes_the_signature() {
        let text = |text: &str| Some(text.to_owned());
        let knobs = [
            Signing { skew_secs: -300, ..Signing::default() },
            Signing { access_key_id: text("AKIDAKIDAKIDAKIDAKIE"), ..Signing::default() },
            Signing { secret_access_key: text("other"), ..Signing::default() },
            Signing { region: text("us-east-1"), ..Signing::default() },
            Signing { service: text("kms"), ..Signing::default() },
            Signing { method: text("PUT"), ..Signing::default() },
            Signing { path: text("/other"), ..Signing::default() },
            Signing { host: text("other"), ..Signing::default() },
            Signing { body: Some(Bytes::from_static(b"{}")), ..Signing::default() },
            Signing { headers: vec![("x-more".to_owned(), "1".to_owned())], ..Signing::default() },
        ];
        let mut seen = vec![signature(&Signing::default())];
        for knob in &knobs {
            let made = signature(knob);
            assert!(!seen.contains(&made), "{knob:?}");
            seen.push(made);
        }
    }
}
