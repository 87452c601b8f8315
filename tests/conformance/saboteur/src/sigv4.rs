//! Verifies SigV4 (Appendix A of the specification) over the bytes as they came.

use std::time::{Duration, SystemTime};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use time::{Date, Month, PrimitiveDateTime, Time};
use xks_spec::ErrorName;
use xks_spec::limits::MAX_CLOCK_SKEW;

use crate::fault::Fault;
use crate::proxy::{Proxy, Refusal};
use crate::setup::{Credential, REGION};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "kms-xks-proxy";
const SCOPE_END: &str = "aws4_request";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// What is signed besides the body.
pub(crate) struct Head<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// Of HTTP/2, where it stands for host.
    pub(crate) authority: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
}

/// The Authorization header taken apart.
struct Authorization<'a> {
    algorithm: &'a str,
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    end: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

/// # Errors
/// AuthenticationFailedException, the same for every reason.
pub(crate) fn verify(proxy: &Proxy, store: usize, head: &Head<'_>, body: &[u8]) -> Result<(), Refusal> {
    let text = only(head.headers, "authorization").ok_or_else(|| {
        if proxy.has(Fault::AuthorizationMissingAs400) { Refusal::invalid("unsigned") } else { denied() }
    })?;
    if proxy.has(Fault::AuthorizationCached) && proxy.authorized.lock().unwrap().contains(text) {
        return Ok(());
    }
    let authorization = Authorization::parse(text).ok_or_else(denied)?;
    let timestamp = only(head.headers, "x-amz-date").ok_or_else(denied)?;
    check_form(proxy, &authorization, timestamp).ok_or_else(denied)?;
    check_signed_headers(proxy, head, &authorization).ok_or_else(denied)?;

    let payload_hash = payload_hash(proxy, head.headers, body).ok_or_else(denied)?;
    let canonical = canonical_request(proxy, head, &authorization, &payload_hash);
    let canonical_hash = hex(&Sha256::digest(canonical));
    // Both constants were compared with what the header says, unless a fault is that they are not.
    let Authorization { date, region, service, .. } = authorization;
    let scope = format!("{date}/{region}/{service}/{SCOPE_END}");
    let string_to_sign = [ALGORITHM, timestamp, &scope, &canonical_hash].join("\n");
    let expected = expected_signatures(proxy, store, &authorization, &string_to_sign).ok_or_else(denied)?;
    if expected.iter().any(|expected| signatures_match(proxy, expected, authorization.signature)) {
        if proxy.has(Fault::AuthorizationCached) {
            proxy.authorized.lock().unwrap().insert(text.to_owned());
        }
        return Ok(());
    }
    match expected.first() {
        Some(expected) if proxy.has(Fault::ExpectedSignatureShown) => Err(Refusal::new(
            ErrorName::AuthenticationFailedException,
            format!("expected the signature {expected}"),
        )),
        _ => Err(denied()),
    }
}

/// Whether there is one Authorization header of the right form, or none.
pub(crate) fn is_well_formed(headers: &HeaderMap) -> bool {
    !headers.contains_key("authorization")
        || only(headers, "authorization").and_then(Authorization::parse).is_some()
}

fn denied() -> Refusal {
    Refusal::new(ErrorName::AuthenticationFailedException, "The request could not be authenticated.")
}

/// The value of a header that must be there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

impl<'a> Authorization<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (algorithm, rest) = text.split_once(' ')?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim_matches(' ').split_once('=')?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return None,
            };
            if slot.replace(value).is_some() {
                return None;
            }
        }
        let (access_key_id, scope) = credential?.split_once('/')?;
        let parts: Vec<_> = scope.split('/').collect();
        let [date, region, service, end] = parts.try_into().ok()?;
        let signed_headers: Vec<_> = signed_headers?.split(';').collect();
        let is_lower_case =
            |name: &&str| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase());
        let is_sorted = signed_headers.windows(2).all(|pair| pair[0] < pair[1]);
        let is_well_formed = is_sorted && signed_headers.iter().all(is_lower_case);
        let signature = signature?;
        is_well_formed.then_some(Self {
            algorithm,
            access_key_id,
            date,
            region,
            service,
            end,
            signed_headers,
            signature,
        })
    }
}

fn check_form(proxy: &Proxy, authorization: &Authorization<'_>, timestamp: &str) -> Option<()> {
    let Authorization { algorithm, date, region, service, end, .. } = authorization;
    let at = parse_timestamp(timestamp)?;
    let holds = [
        proxy.has(Fault::AlgorithmUnchecked) || *algorithm == ALGORITHM,
        !region.is_empty(),
        proxy.has(Fault::ScopeServiceUnchecked) || *service == SERVICE,
        proxy.has(Fault::ScopeEndUnchecked) || *end == SCOPE_END,
        proxy.has(Fault::ScopeDateUnchecked) || *date == &timestamp[..8],
        is_recent(proxy, at),
    ];
    holds.into_iter().all(|holds| holds).then_some(())
}

fn is_recent(proxy: &Proxy, at: SystemTime) -> bool {
    if proxy.has(Fault::DateUnchecked) {
        return true;
    }
    let tolerance = if proxy.has(Fault::FifteenMinutes) { Duration::from_secs(900) } else { MAX_CLOCK_SKEW };
    match SystemTime::now().duration_since(at) {
        Ok(age) => age <= tolerance,
        Err(ahead) => proxy.has(Fault::FutureUnchecked) || ahead.duration() <= tolerance,
    }
}

/// `YYYYMMDDTHHMMSSZ`.
fn parse_timestamp(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        let part = text.get(range)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u16>().ok())?
    };
    let small = |range| u8::try_from(digits(range)?).ok();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let month = Month::try_from(small(4..6)?).ok()?;
    let date = Date::from_calendar_date(i32::from(digits(0..4)?), month, small(6..8)?).ok()?;
    let time = Time::from_hms(small(9..11)?, small(11..13)?, small(13..15)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().into())
}

fn check_signed_headers(proxy: &Proxy, head: &Head<'_>, authorization: &Authorization<'_>) -> Option<()> {
    let signed = &authorization.signed_headers;
    let hosts = head.headers.get_all("host").iter().count();
    let is_host_clear = match head.authority {
        Some(authority) => {
            head.headers.get_all("host").iter().all(|host| host.as_bytes() == authority.as_bytes())
        }
        None => hosts == 1,
    };
    let holds = [
        is_host_clear,
        proxy.has(Fault::HostNotSigned) || signed.contains(&"host"),
        proxy.has(Fault::DateNotSigned) || signed.contains(&"x-amz-date"),
        !proxy.has(Fault::FurtherSignedHeadersRefused) || signed.len() <= 2,
        signed.iter().all(|name| !values(proxy, head, name).is_empty()),
    ];
    holds.into_iter().all(|holds| holds).then_some(())
}

/// The values of a signed header, spaces collapsed; over HTTP/2, the authority for host.
fn values(proxy: &Proxy, head: &Head<'_>, name: &str) -> Vec<String> {
    if let ("host", Some(authority)) = (name, head.authority) {
        let is_lost = proxy.has(Fault::AuthorityNotHost);
        return vec![if is_lost { String::new() } else { authority.to_owned() }];
    }
    let values = head.headers.get_all(name).iter();
    let mut values = values.map(|value| {
        let words = value.as_bytes().split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        String::from_utf8_lossy(&words.collect::<Vec<_>>().join(&b' ')).into_owned()
    });
    if proxy.has(Fault::FirstSignedValueAlone) {
        values.next().into_iter().collect()
    } else {
        values.collect()
    }
}

/// The body's hash. A header that claims another one is a lie, whether it is signed or not.
fn payload_hash(proxy: &Proxy, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let truth = hex(&Sha256::digest(body));
    match headers.get("x-amz-content-sha256").map(|value| value.to_str()) {
        None => Some(truth),
        Some(Ok(claim)) if claim == truth => Some(truth),
        Some(Ok(claim)) if proxy.has(Fault::PayloadHashFromHeader) => Some(claim.to_owned()),
        Some(Ok(UNSIGNED)) if proxy.has(Fault::UnsignedPayload) => Some(UNSIGNED.to_owned()),
        Some(_) => None,
    }
}

fn canonical_request(
    proxy: &Proxy,
    head: &Head<'_>,
    authorization: &Authorization<'_>,
    payload_hash: &str,
) -> String {
    let signed = &authorization.signed_headers;
    let headers = signed.iter().map(|name| format!("{name}:{}\n", values(proxy, head, name).join(",")));
    let headers: String = headers.collect();
    // The query is empty: none gets here.
    format!("{}\n{}\n\n{headers}\n{}\n{payload_hash}", head.method, head.path, signed.join(";"))
}

/// The signatures that would be right: one, where the access key id is known.
fn expected_signatures(
    proxy: &Proxy,
    store: usize,
    authorization: &Authorization<'_>,
    string_to_sign: &str,
) -> Option<Vec<String>> {
    let day = parse_timestamp(&format!("{}T000000Z", authorization.date))?;
    let region = if proxy.has(Fault::RegionAssumed) { REGION } else { authorization.region };
    let is_named = |credential: &Credential| {
        proxy.has(Fault::AccessKeyIdIgnored) || credential.access_key_id == authorization.access_key_id
    };
    let sign = |credential: Credential| {
        let key = generate_signing_key(credential.secret_access_key, day, region, authorization.service);
        calculate_signature(key, string_to_sign.as_bytes())
    };
    Some(proxy.credentials(store).into_iter().filter(is_named).map(sign).collect())
}

fn signatures_match(proxy: &Proxy, expected: &str, given: &str) -> bool {
    if proxy.has(Fault::SignatureUnchecked) {
        return true;
    }
    if proxy.has(Fault::SignatureByPrefix) {
        return given.len() >= 8 && expected.starts_with(&given[..8]);
    }
    expected == given
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
