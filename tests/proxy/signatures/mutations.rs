//! Every byte that a signature covers, changed: refused, wherever it stands.

use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use xks_harness::client::raw_http1;
use xks_harness::{Answer, Http, Proxy, RawConnection, Setup, XksRequest};

use super::{assert_not_authenticated, authority, encrypt};

/// A bit that changes a letter into another, and one that changes its case.
const MASKS: [u8; 2] = [0x01, 0x20];

fn signed_request() -> XksRequest {
    let mut request = encrypt();
    request.headers.push(("x-note", "some note".to_owned()));
    request
}

/// What may change: a change of path or method may leave the API, which is said before any signature is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Method,
    Path,
    KeyId,
    HeaderName,
    HeaderValue,
    Body,
}

fn assert_refused(part: Part, answer: &Answer, what: &str) {
    assert!(answer.headers.contains_key("content-type"), "{what}: {answer:?}");
    let refusal = answer.refusal();
    match part {
        Part::Method => assert_eq!(refusal, (405, "UnsupportedOperationException".to_owned()), "{what}"),
        Part::Path => assert_eq!(refusal, (404, "InvalidUriPathException".to_owned()), "{what}"),
        Part::KeyId => assert!([401, 404].contains(&refusal.0), "{what}: {refusal:?}"),
        Part::HeaderName | Part::HeaderValue | Part::Body => assert_not_authenticated(answer, what),
    }
}

/// Where the parts are in the bytes of an HTTP/1.1 request.
fn parts(bytes: &[u8]) -> Vec<(Part, Range<usize>)> {
    let text = std::str::from_utf8(bytes).unwrap();
    let head_end = text.find("\r\n\r\n").unwrap();
    let method_end = text.find(' ').unwrap();
    let path_end = method_end + 1 + text[method_end + 1..].find(' ').unwrap();
    let id_start = text.find("/keys/").unwrap() + "/keys/".len();
    let id_end = id_start + text[id_start..].find('/').unwrap();
    let mut parts = vec![
        (Part::Method, 0..method_end),
        // What does not begin with a slash is no target of HTTP.
        (Part::Path, method_end + 2..id_start),
        (Part::KeyId, id_start..id_end),
        (Part::Path, id_end..path_end),
        (Part::Body, head_end + 4..bytes.len()),
    ];
    let mut line_start = text.find("\r\n").unwrap() + 2;
    for line in text[line_start..head_end].split("\r\n") {
        let (name, _) = line.split_once(": ").unwrap();
        if name != "content-length" {
            let value_start = line_start + name.len() + 2;
            parts.push((Part::HeaderName, line_start..line_start + name.len()));
            parts.push((Part::HeaderValue, value_start..line_start + line.len()));
        }
        line_start += line.len() + 2;
    }
    parts
}

/// Whether a changed byte still makes an HTTP message. The case of a header's name means nothing.
fn is_sendable(part: Part, byte: u8, mask: u8) -> bool {
    match part {
        Part::Method => byte.is_ascii_alphabetic(),
        // The others that a URI cannot hold are no HTTP.
        Part::Path | Part::KeyId => {
            byte.is_ascii_alphanumeric() || b"/-._~%?#+:@!$&'()*,;=[]{}|".contains(&byte)
        }
        Part::HeaderName => mask != 0x20 && (byte.is_ascii_lowercase() || byte == b'-'),
        Part::HeaderValue => (0x20..0x7f).contains(&byte),
        Part::Body => true,
    }
}

#[tokio::test]
async fn every_changed_byte_is_refused_on_http1() {
    let proxy = Proxy::start(&Setup::default()).await;
    let original = raw_http1(&signed_request(), &authority(&proxy));
    let mut connection = RawConnection::open(proxy.address).await;
    let mut changes = 0;
    for (part, range) in parts(&original) {
        for (index, mask) in range.clone().flat_map(|index| MASKS.map(|mask| (index, mask))) {
            let mut bytes = original.clone();
            bytes[index] ^= mask;
            if !is_sendable(part, bytes[index], mask) {
                continue;
            }
            let what = format!(
                "{part:?} at {index}: {:?} for {:?}",
                char::from(bytes[index]),
                char::from(original[index])
            );
            let answer = connection.exchange(&bytes).await.unwrap_or_else(|| panic!("closed: {what}"));
            assert_refused(part, &answer, &what);
            changes += 1;
        }
    }
    assert!(changes > 1000, "{changes}");
    connection.exchange(&original).await.unwrap().ok();
}

/// A key id that is changed into another one is still routed: the signature must tell.
#[tokio::test]
async fn a_signature_is_for_one_key_one_operation_and_one_store() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let original = connection.http_request(&signed_request());
    for path in [
        "/main/kms/xks/v1/keys/demp/encrypt",
        "/main/kms/xks/v1/keys/Demo/encrypt",
        "/main/kms/xks/v1/keys/demo-2/encrypt",
        "/main/kms/xks/v1/keys/demo/decrypt",
        "/main/kms/xks/v1/keys/demo/metadata",
        "/main/kms/xks/v1/health",
        "/main/nested/kms/xks/v1/keys/demo/encrypt",
    ] {
        let mut request = original.clone();
        *request.uri_mut() = format!("https://{}{path}", authority(&proxy)).parse().unwrap();
        assert_not_authenticated(&connection.try_send_http(request).await.unwrap(), path);
    }
    connection.try_send_http(original).await.unwrap().ok();
}

fn changed(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len()).flat_map(|index| MASKS.map(|mask| (index, mask))).map(|(index, mask)| {
        let mut bytes = bytes.to_vec();
        bytes[index] ^= mask;
        bytes
    })
}

/// Every request that differs from `original` by one byte and that the HTTP library agrees to send.
fn changed_requests(original: &Request<Full<Bytes>>, body: &[u8]) -> Vec<(Part, Request<Full<Bytes>>)> {
    let mut requests = Vec::new();
    for method in changed(original.method().as_str().as_bytes()) {
        if let Ok(method) = Method::from_bytes(&method) {
            let mut request = original.clone();
            *request.method_mut() = method;
            requests.push((Part::Method, request));
        }
    }
    let uri = original.uri().to_string();
    let (_, path_start) = (uri.find("//").unwrap(), uri.find("/main").unwrap());
    for (index, uri) in
        changed(uri.as_bytes()).enumerate().filter(|(index, _)| *index >= 2 * "https://".len())
    {
        // The authority stands for host; where the path begins, a byte may move into it.
        let part = if index / 2 < path_start { Part::HeaderValue } else { Part::Path };
        let is_key_id = original
            .uri()
            .path()
            .find("demo")
            .is_some_and(|at| (at..at + 4).contains(&(index / 2).wrapping_sub(path_start)));
        let part = if is_key_id { Part::KeyId } else { part };
        if let Ok(uri) = Uri::try_from(uri)
            && uri.authority().is_some_and(|authority| authority.port().is_some())
            && uri.path_and_query().is_some_and(|path| path.as_str().len() == original.uri().path().len())
        {
            let mut request = original.clone();
            *request.uri_mut() = uri;
            requests.push((part, request));
        }
    }
    for (name, value) in original.headers() {
        for value in changed(value.as_bytes()) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut request = original.clone();
                request.headers_mut().insert(name, value);
                requests.push((Part::HeaderValue, request));
            }
        }
        for (index, other) in changed(name.as_str().as_bytes()).enumerate() {
            if index % 2 == 0
                && let Ok(other) = HeaderName::from_lowercase(&other)
            {
                let mut request = original.clone();
                let value = request.headers_mut().remove(name).unwrap();
                request.headers_mut().insert(other, value);
                requests.push((Part::HeaderName, request));
            }
        }
    }
    for body in changed(body) {
        let mut request = original.clone();
        *request.body_mut() = Full::from(body);
        requests.push((Part::Body, request));
    }
    requests
}

#[tokio::test]
async fn every_changed_byte_is_refused_on_http2() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let request = signed_request();
    let original = connection.http_request(&request);
    let requests = changed_requests(&original, &request.body);
    assert!(requests.len() > 1000, "{}", requests.len());
    for (part, request) in requests {
        let what = format!("{part:?}: {} {} {:?}", request.method(), request.uri(), request.headers());
        let answer =
            connection.try_send_http(request).await.unwrap_or_else(|error| panic!("{error:?}: {what}"));
        assert_refused(part, &answer, &what);
    }
    connection.try_send_http(original).await.unwrap().ok();
}

/// Bytes put in and taken out, which no flip is.
#[tokio::test]
async fn longer_and_shorter_parts_are_refused() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let request = signed_request();
    let original = connection.http_request(&request);
    let mut bodies =
        vec![Vec::new(), request.body[1..].to_vec(), request.body[..request.body.len() - 1].to_vec()];
    bodies.extend([
        [&request.body[..], b" "].concat(),
        [b" ", &request.body[..]].concat(),
        request.body.repeat(2),
    ]);
    for body in bodies {
        let mut changed = original.clone();
        *changed.body_mut() = Full::from(body);
        assert_not_authenticated(&connection.try_send_http(changed).await.unwrap(), "body");
    }
    for (name, value) in original.headers() {
        let value = value.to_str().unwrap();
        for other in [&value[1..], &value[..value.len() - 1], &format!("{value}x"), &format!("x{value}"), ""]
        {
            let mut changed = original.clone();
            changed.headers_mut().insert(name, other.parse().unwrap());
            let answer = connection.try_send_http(changed).await.unwrap();
            assert_not_authenticated(&answer, &format!("{name}: {other}"));
        }
        let mut twice = original.clone();
        twice.headers_mut().append(name, value.parse().unwrap());
        assert_not_authenticated(&connection.try_send_http(twice).await.unwrap(), &format!("{name} twice"));
    }
}
