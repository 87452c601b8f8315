//! The canonical request and the string to sign of SigV4, for requests to the KMS API.

use axum::http::request::Parts;
use sha2::{Digest as _, Sha256};

use crate::kms::name::hex;

/// The string to sign; `None` where a signed header is absent or twice there, or `host` or `x-amz-date` is not signed.
pub(super) fn string_to_sign(
    head: &Parts,
    body: &[u8],
    signed_headers: &str,
    date: &str,
    scope: &str,
) -> Option<String> {
    let names: Vec<_> = signed_headers.split(';').collect();
    if !["host", "x-amz-date"].iter().all(|needed| names.contains(needed)) {
        return None;
    }
    let headers: Option<String> =
        names.iter().map(|name| Some(format!("{name}:{}\n", header_value(head, name)?))).collect();
    let canonical_request = format!(
        "{}\n{}\n{}\n{}\n{signed_headers}\n{}",
        head.method,
        head.uri.path(),
        head.uri.query().unwrap_or_default(),
        headers?,
        hex(&Sha256::digest(body)),
    );
    let digest = hex(&Sha256::digest(canonical_request));
    Some(format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"))
}

fn header_value(head: &Parts, name: &str) -> Option<String> {
    let mut values = head.headers.get_all(name).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok()?,
        // HTTP/2 has an authority instead of a host.
        (None, None) if name == "host" => head.uri.authority()?.as_str(),
        _ => return None,
    };
    Some(value.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}
