//! Signatures made by AWS's own signer, and what happens to each when any byte of it changes.

use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials as AwsCredentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use xks_spec::credential::{AccessKeyId, SecretAccessKey};

use super::*;

const ID: &str = "XKSTESTID234567ABCDEFGHIJK";
const SECRET: &str = "unit+test/secret+unit+test/secret+unit+test0";
const PATH: &str = "/a/kms/xks/v1/keys/demo/encrypt";
const BODY: &[u8] = br#"{"plaintext":"aGVsbG8="}"#;

fn at(unix_secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_secs)
}

const NOW: u64 = 1_767_225_600;

fn credentials(region: Option<&str>) -> Credentials {
    let id = AccessKeyId::parse(ID).unwrap();
    let secret = SecretAccessKey::parse(SECRET).unwrap();
    Credentials::new(vec![Credential::new(id, &secret, region.map(Into::into))]).unwrap()
}

/// What to sign, with defaults that verify.
struct Signed<'a> {
    service: &'a str,
    secret: &'a str,
    id: &'a str,
    time: SystemTime,
    extra: &'a [(&'static str, &'a str)],
    checksum: bool,
}

const PLAIN: Signed<'static> =
    Signed { service: SERVICE, secret: SECRET, id: ID, time: UNIX_EPOCH, extra: &[], checksum: false };

impl Signed<'_> {
    fn request(&self) -> Request<Vec<u8>> {
        let time = if self.time == UNIX_EPOCH { at(NOW) } else { self.time };
        let identity = AwsCredentials::new(self.id, self.secret, None, None, "test").into();
        let mut settings = SigningSettings::default();
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        if self.checksum {
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let params = SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name(self.service)
            .time(time)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let mut request = Request::post(format!("https://localhost:8443{PATH}")).body(BODY.to_vec()).unwrap();
        request.headers_mut().insert("host", HeaderValue::from_static("localhost:8443"));
        for (name, value) in self.extra {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let uri = request.uri().to_string();
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let signable = SignableRequest::new("POST", &uri, headers, SignableBody::Bytes(BODY)).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        instructions.apply_to_request_http1x(&mut request);
        request
    }
}

fn verify_at(
    request: &Request<Vec<u8>>,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Authenticated, AuthenticationFault> {
    let head = SignedHead {
        method: request.method(),
        path: request.uri().path(),
        headers: request.headers(),
        authority: None,
    };
    check_head(head, credentials, now)?.verify(request.body())
}

fn verify(request: &Request<Vec<u8>>) -> Result<Authenticated, AuthenticationFault> {
    verify_at(request, &credentials(None), at(NOW))
}

#[test]
fn takes_what_aws_signs() {
    let authenticated = verify(&PLAIN.request()).unwrap();
    assert_eq!((&*authenticated.access_key_id, &*authenticated.region), (ID, "eu-west-1"));
    let more = Signed {
        extra: &[
            ("content-type", "application/json"),
            ("x-note", "  two   words "),
            ("x-many", "1"),
            ("x-many", "2"),
        ],
        checksum: true,
        ..PLAIN
    };
    verify(&more.request()).unwrap();
}

#[test]
fn a_second_request_uses_the_cached_signing_key() {
    let credentials = credentials(None);
    for _ in 0..2 {
        verify_at(&PLAIN.request(), &credentials, at(NOW)).unwrap();
    }
    assert_eq!(credentials.find(ID).unwrap().cached_key_count(), 1);
    let forged = Signed { secret: "x", time: at(NOW + 86_400), ..PLAIN }.request();
    assert_eq!(verify_at(&forged, &credentials, at(NOW + 86_400)), Err(AuthenticationFault::Signature));
    assert_eq!(credentials.find(ID).unwrap().cached_key_count(), 1, "a forgery leaves nothing in the cache");
}

#[test]
fn five_minutes_either_way_and_no_more() {
    for (skew, is_accepted) in [(-301, false), (-300, true), (0, true), (300, true), (301, false)] {
        let time = at(NOW.checked_add_signed(skew).unwrap());
        let result = verify_at(&Signed { time, ..PLAIN }.request(), &credentials(None), at(NOW));
        assert_eq!(result.is_ok(), is_accepted, "{skew}");
        if !is_accepted {
            assert_eq!(result, Err(AuthenticationFault::ClockSkew { skew_secs: skew }));
        }
    }
}

#[test]
fn every_head_fault_has_its_reason() {
    let fault = |signed: Signed<'_>| verify(&signed.request()).unwrap_err();
    assert_eq!(fault(Signed { service: "kms", ..PLAIN }), AuthenticationFault::ScopeService);
    assert_eq!(fault(Signed { secret: "other", ..PLAIN }), AuthenticationFault::Signature);
    let unknown = "AAAAAAAAAAAAAAAAAAAAAAAAAA";
    assert_eq!(fault(Signed { id: unknown, ..PLAIN }), AuthenticationFault::UnknownAccessKeyId);
    let pinned = verify_at(&PLAIN.request(), &credentials(Some("us-east-1")), at(NOW));
    assert_eq!(pinned, Err(AuthenticationFault::ScopeRegion));
    verify_at(&PLAIN.request(), &credentials(Some("eu-west-1")), at(NOW)).unwrap();
}

type Change = fn(&mut Request<Vec<u8>>);

#[test]
fn headers_must_be_there_once_and_signed() {
    fn unsign(request: &mut Request<Vec<u8>>, from: &str, to: &str) {
        let value = request.headers()["authorization"].to_str().unwrap().replace(from, to);
        request.headers_mut().insert("authorization", value.parse().unwrap());
    }
    let cases: [(Change, AuthenticationFault); 9] = [
        (
            |r| drop(r.headers_mut().remove("authorization")),
            AuthenticationFault::HeaderMissing("authorization"),
        ),
        (|r| drop(r.headers_mut().remove("x-amz-date")), AuthenticationFault::HeaderMissing("x-amz-date")),
        (|r| drop(r.headers_mut().remove("host")), AuthenticationFault::HeaderMissing("host")),
        (|r| twice(r, "authorization"), AuthenticationFault::HeaderTwice("authorization")),
        (|r| twice(r, "x-amz-date"), AuthenticationFault::HeaderTwice("x-amz-date")),
        (|r| twice(r, "host"), AuthenticationFault::HeaderTwice("host")),
        (|r| unsign(r, "host;", ""), AuthenticationFault::NotSigned("host")),
        (|r| unsign(r, "host;x-amz-date", "host"), AuthenticationFault::NotSigned("x-amz-date")),
        (|r| unsign(r, "host;x", "host;x-absent;x"), AuthenticationFault::SignedHeaderMissing),
    ];
    for (change, expected) in cases {
        let mut request = PLAIN.request();
        change(&mut request);
        assert_eq!(verify(&request), Err(expected));
    }
}

fn twice(request: &mut Request<Vec<u8>>, name: &'static str) {
    let value = request.headers()[name].clone();
    request.headers_mut().append(name, value);
}

#[test]
fn a_claimed_body_hash_must_be_true_even_where_it_is_not_signed() {
    for claimed in ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "", &"0".repeat(64)] {
        let mut request = PLAIN.request();
        request.headers_mut().insert("x-amz-content-sha256", claimed.parse().unwrap());
        assert_eq!(verify(&request), Err(AuthenticationFault::BodyHash), "{claimed}");
    }
}

#[test]
fn http2_takes_the_host_from_the_authority() {
    let request = PLAIN.request();
    let verify_with = |headers: &HeaderMap, authority| {
        let head = SignedHead { method: request.method(), path: PATH, headers, authority };
        check_head(head, &credentials(None), at(NOW)).and_then(|pending| pending.verify(BODY))
    };
    let mut headers = request.headers().clone();
    verify_with(&headers, Some("localhost:8443")).unwrap();
    assert_eq!(verify_with(&headers, Some("elsewhere")), Err(AuthenticationFault::HostDiffers));
    headers.remove("host");
    verify_with(&headers, Some("localhost:8443")).unwrap();
    assert_eq!(verify_with(&headers, Some("elsewhere")), Err(AuthenticationFault::Signature));
}

/// Every single-byte change of every part that a signature covers is refused.
#[test]
fn every_changed_byte_is_refused() {
    let signed = Signed { extra: &[("content-type", "application/json"), ("x-note", "a b")], ..PLAIN };
    let original = signed.request();
    verify(&original).unwrap();
    let credentials = credentials(None);
    let mut changes = 0;
    let mut refused = |request: Request<Vec<u8>>, what: &str| {
        assert!(verify_at(&request, &credentials, at(NOW)).is_err(), "{what}");
        changes += 1;
    };
    for (index, _) in BODY.iter().enumerate() {
        let mut request = original.clone();
        request.body_mut()[index] ^= 1;
        refused(request, "body");
    }
    for index in 0..PATH.len() {
        let mut path = PATH.as_bytes().to_vec();
        path[index] ^= 1;
        let Ok(uri) = std::str::from_utf8(&path).unwrap().parse() else { continue };
        let mut request = original.clone();
        *request.uri_mut() = uri;
        refused(request, "path");
    }
    for index in 0..4 {
        let mut method = *b"POST";
        method[index] ^= 1;
        let mut request = original.clone();
        *request.method_mut() = Method::from_bytes(&method).unwrap();
        refused(request, "method");
    }
    for name in ["host", "x-amz-date", "content-type", "x-note", "authorization"] {
        let value = original.headers()[name].as_bytes().to_vec();
        for index in 0..value.len() {
            let mut value = value.clone();
            value[index] ^= 1;
            let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
            let mut request = original.clone();
            request.headers_mut().insert(HeaderName::from_static(name), value);
            refused(request, name);
        }
    }
    assert!(changes > 300, "{changes}");
}

proptest! {
    /// The canonical request over random bodies and header values agrees with AWS's signer.
    #[test]
    fn agrees_with_the_aws_signer(value in "[!-~]([ -~]{0,40}[!-~])?", second in "[!-~]{1,20}") {
        let extra = [("x-first", value.as_str()), ("x-second", second.as_str())];
        let signed = Signed { extra: &extra, checksum: true, ..PLAIN };
        prop_assert_eq!(verify(&signed.request()).map(|by| by.access_key_id), Ok(ID.into()));
    }
}
