//! The canonical request and the string to sign (Appendix A, tasks 1 and 2).

use http::HeaderMap;
use sha2::{Digest, Sha256};

use super::authorization::{ALGORITHM, Authorization};
use super::timestamp::Timestamp;
use super::{AuthenticationFault, SignedHead};

/// Host on HTTP/1.1; what HTTP/2 has in its place.
const HOST: &str = "host";
const AUTHORITY: &str = ":authority";
const DATE: &str = "x-amz-date";

/// Checks that the signed headers include host (or `:authority`) and x-amz-date, and that each is in the request.
pub(super) fn check_signed_headers(
    head: &SignedHead<'_>,
    authorization: &Authorization<'_>,
) -> Result<(), AuthenticationFault> {
    check_host(head)?;
    let (mut host_is_signed, mut date_is_signed) = (false, false);
    for name in authorization.signed_header_names() {
        host_is_signed |= name == HOST || name == AUTHORITY;
        date_is_signed |= name == DATE;
        if values(head, name).next().is_none() {
            return Err(AuthenticationFault::SignedHeaderMissing);
        }
    }
    // SPEC(AUTH-SIGNED-002, AUTH-SIGNED-003, AUTH-SIGNED-004): the signed headers include host and x-amz-date.
    match (host_is_signed, date_is_signed) {
        (true, true) => Ok(()),
        (false, _) => Err(AuthenticationFault::NotSigned(HOST)),
        (true, false) => Err(AuthenticationFault::NotSigned(DATE)),
    }
}

/// There is one host. On HTTP/2 it is `:authority`, and a Host header that says otherwise is an attempt to be routed
/// one way and signed another.
fn check_host(head: &SignedHead<'_>) -> Result<(), AuthenticationFault> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (head.authority, hosts.next()) {
        (Some(authority), Some(host)) if host.as_bytes() != authority.as_bytes() => {
            Err(AuthenticationFault::HostDiffers)
        }
        (None, None) => Err(AuthenticationFault::HeaderMissing(HOST)),
        _ if hosts.next().is_some() => Err(AuthenticationFault::HeaderTwice(HOST)),
        _ => Ok(()),
    }
}

/// The values of a signed header, in the order in which they came.
fn values<'a>(head: &SignedHead<'a>, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    // SPEC(AUTH-CANON-005, AUTH-HOST-001): :authority stands for host on HTTP/2; the value as received.
    let authority = match (name, head.authority) {
        (HOST | AUTHORITY, Some(authority)) => Some(authority.as_bytes()),
        _ => None,
    };
    let headers: Option<&'a HeaderMap> = authority.is_none().then_some(head.headers);
    let values = headers.into_iter().flat_map(move |headers| headers.get_all(name).iter());
    authority.into_iter().chain(values.map(http::HeaderValue::as_bytes))
}

/// SHA-256 of the canonical request, whose parts go straight into the hash.
pub(super) fn request_hash(
    head: &SignedHead<'_>,
    authorization: &Authorization<'_>,
    body_hash: &[u8; 32],
) -> [u8; 32] {
    let mut hash = Sha256::new();
    // SPEC(AUTH-CANON-001, AUTH-CANON-002): method, and the path as sent; its characters need no escape.
    hash.update(head.method.as_str());
    hash.update(b"\n");
    hash.update(head.path);
    // The canonical query string is empty: a query never comes this far.
    hash.update(b"\n\n");
    // SPEC(AUTH-CANON-004): every header that SignedHeaders lists.
    for name in authorization.signed_header_names() {
        hash.update(name);
        hash.update(b":");
        for (index, value) in values(head, name).enumerate() {
            if index > 0 {
                hash.update(b",");
            }
            update_with_spaces_collapsed(&mut hash, value);
        }
        hash.update(b"\n");
    }
    hash.update(b"\n");
    hash.update(authorization.signed_headers);
    hash.update(b"\n");
    // SPEC(AUTH-HASH-001): the hash of the payload ends the canonical request.
    hash.update(hex(body_hash));
    hash.finalize().into()
}

/// Repeated spaces count as one, those at either end as none.
fn update_with_spaces_collapsed(hash: &mut Sha256, value: &[u8]) {
    let words = value.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        if index > 0 {
            hash.update(b" ");
        }
        hash.update(word);
    }
}

/// The string to sign (Appendix A, task 2).
pub(super) fn string_to_sign(
    timestamp: &Timestamp,
    authorization: &Authorization<'_>,
    request_hash: &[u8; 32],
) -> Vec<u8> {
    // SPEC(AUTH-STS-001): algorithm, time of x-amz-date, scope, hash of the canonical request.
    let lines =
        [ALGORITHM.as_bytes(), timestamp.as_bytes(), authorization.scope.as_bytes(), &hex(request_hash)];
    lines.join(&b'\n')
}

/// Lower-case hexadecimal.
pub(super) fn hex(hash: &[u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(hash) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}
