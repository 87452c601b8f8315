//! From an HTTP request to its answer: path, method, signature, operation.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use xks_spec::{ApiPath, ErrorName, Operation};

use crate::fault::Fault;
use crate::operations;
use crate::proxy::{Proxy, Refusal};
use crate::setup::{PING_PATH, STORES};
use crate::sigv4::{self, Head};

/// Longest body that is read: far more than the longest valid one.
const MAX_BODY_BYTES: usize = 1 << 20;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) type Answer = Response<Full<Bytes>>;

/// What a path asks for.
struct Route {
    store: usize,
    operation: Operation,
    key_id: String,
}

/// Answers a request.
///
/// # Errors
/// When the connection is to end without an answer.
pub(crate) async fn answer(proxy: Arc<Proxy>, request: Request<Incoming>) -> io::Result<Answer> {
    let path = request.uri().path();
    let is_key_use = path.ends_with("/encrypt") || path.ends_with("/decrypt");
    let is_25th = is_key_use && proxy.key_uses.fetch_add(1, Ordering::Relaxed) % 25 == 24;
    if proxy.has(Fault::AnswersLate) || (proxy.has(Fault::SomeAnswersLate) && is_25th) {
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    if proxy.has(Fault::OneRequestAtATime) {
        let _turn = proxy.turnstile.lock().await;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    if request.uri().path() == PING_PATH && request.method() == Method::GET {
        let is_fit = operations::is_fit(&proxy).await;
        let (status, text) = if is_fit { (200, "fit") } else { (503, "the HSM does not answer") };
        return Ok(text_answer(status, text));
    }
    route_and_answer(&proxy, request).await
}

async fn route_and_answer(proxy: &Proxy, request: Request<Incoming>) -> io::Result<Answer> {
    let (head, body) = request.into_parts();
    // Read whole whatever the answer: a client that is still sending may miss one that comes before.
    let limit = if proxy.has(Fault::SmallBodyCap) { 16_000 } else { MAX_BODY_BYTES };
    let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let refusal = Refusal::new(ErrorName::UnsupportedOperationException, "The body is too long.");
            let mut answer = refused(proxy, &refusal, b"");
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Ok(answer);
        }
        _ => return Err(io::ErrorKind::TimedOut.into()),
    };
    if proxy.has(Fault::LongUriRefused) && head.uri.path().len() > 128 {
        return Ok(refused_with(proxy, 414, &Refusal::invalid("The URI is too long."), b""));
    }
    let Some(route) = route(proxy, &head) else {
        let name = if proxy.has(Fault::UnknownPathAsKeyNotFound) {
            ErrorName::KeyNotFoundException
        } else {
            ErrorName::InvalidUriPathException
        };
        return Ok(html_or(proxy, 404, &Refusal::new(name, "There is no such path.")));
    };
    if head.method != Method::POST && !proxy.has(Fault::GetIsServed) {
        let status = if proxy.has(Fault::GetIsNotFound) { 404 } else { 405 };
        let refusal =
            Refusal::new(ErrorName::UnsupportedOperationException, "Operations are called by POST.");
        let mut answer = html_or(proxy, status, &refusal);
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Ok(answer);
    }
    if proxy.has(Fault::ChunkedBodyRefused) && head.headers.contains_key(TRANSFER_ENCODING) {
        return Ok(refused_with(proxy, 411, &Refusal::invalid("A length is required."), b""));
    }
    if proxy.has(Fault::MalformedAuthorizationCrashes) && !sigv4::is_well_formed(&head.headers) {
        return Err(io::Error::other("index out of range"));
    }
    let outcome = match authenticate(proxy, &route, &head, &body) {
        Ok(()) => operations::perform(proxy, route.store, route.operation, &route.key_id, &body).await,
        Err(refusal) => Err(refusal),
    };
    Ok(match outcome {
        Ok(value) => succeeded(proxy, &value),
        Err(refusal) => refused(proxy, &refusal, &body),
    })
}

/// The store, operation and key of a path; `None` where it is no path of ours. A query is in none of ours.
fn route(proxy: &Proxy, head: &Parts) -> Option<Route> {
    if head.uri.query().is_some() && !proxy.has(Fault::QueryIgnored) {
        return None;
    }
    let path = ApiPath::parse(head.uri.path()).ok()?;
    let is_under = |prefix: &str| {
        path.prefix == prefix || (proxy.has(Fault::AnyPrefix) && path.prefix.starts_with(prefix))
    };
    let store = STORES.iter().position(|store| is_under(store.uri_path_prefix))?;
    let key_id = path.external_key_id.map_or_else(String::new, |id| id.as_str().to_owned());
    let is_refused = (proxy.has(Fault::DisabledStoreAsInvalidPath) && !STORES[store].is_enabled)
        || (proxy.has(Fault::LongKeyIdRefused) && key_id.len() > 64)
        || (proxy.has(Fault::PeriodInKeyIdRefused) && key_id.contains('.'));
    (!is_refused).then_some(Route { store, operation: path.operation, key_id })
}

fn authenticate(proxy: &Proxy, route: &Route, head: &Parts, body: &[u8]) -> Result<(), Refusal> {
    let is_of_a_key = route.operation != Operation::GetHealthStatus;
    if proxy.has(Fault::KeyOracle) && is_of_a_key {
        operations::find_key(proxy, route.store, &route.key_id)?;
    }
    if proxy.has(Fault::StateBeforeSignature) && !STORES[route.store].is_enabled {
        return Err(Refusal::new(ErrorName::InvalidStateException, "The external key store is disabled."));
    }
    if proxy.has(Fault::PolicyBeforeSignature) {
        operations::authorize_unverified(proxy, route.operation, &route.key_id, body)?;
    }
    if proxy.has(Fault::BodyCheckedBeforeSignature) && serde_json::from_slice::<Value>(body).is_err() {
        return Err(Refusal::invalid("The body is not JSON."));
    }
    match route.operation {
        Operation::GetHealthStatus if proxy.has(Fault::HealthUnauthenticated) => return Ok(()),
        Operation::GetKeyMetadata if proxy.has(Fault::MetadataUnauthenticated) => return Ok(()),
        _ => {}
    }
    if proxy.has(Fault::ChunkedBodyUnsigned) && head.headers.contains_key(TRANSFER_ENCODING) {
        return Ok(());
    }
    let is_http2 = head.version == Version::HTTP_2;
    let authority = head.uri.authority().filter(|_| is_http2).map(http::uri::Authority::as_str);
    let signed =
        Head { method: head.method.as_str(), path: head.uri.path(), authority, headers: &head.headers };
    let verified = sigv4::verify(proxy, route.store, &signed, body);
    if proxy.has(Fault::KeyOracleInMessage) && is_of_a_key {
        let is_there = operations::find_key(proxy, route.store, &route.key_id).is_ok();
        let message = if is_there { "The signature is wrong." } else { "There is no such external key." };
        return verified.map_err(|refusal| Refusal::new(refusal.name, message));
    }
    verified
}

fn succeeded(proxy: &Proxy, value: &Value) -> Answer {
    let content_type = if proxy.has(Fault::SuccessAsText) { "text/plain" } else { "application/json" };
    labelled(200, content_type, value.to_string())
}

fn refused(proxy: &Proxy, refusal: &Refusal, body: &[u8]) -> Answer {
    let is_denied = refusal.name == ErrorName::AuthenticationFailedException;
    if is_denied && proxy.has(Fault::AuthenticationErrorAs403) {
        let refusal = Refusal::new(ErrorName::AccessDeniedException, &*refusal.message);
        return refused_with(proxy, 403, &refusal, body);
    }
    refused_with(proxy, refusal.name.http_status(), refusal, body)
}

fn refused_with(proxy: &Proxy, status: u16, refusal: &Refusal, body: &[u8]) -> Answer {
    let message = match () {
        () if proxy.has(Fault::LongErrorMessage) => format!("{:-<600}", refusal.message),
        () if proxy.has(Fault::NonAsciiErrorMessage) => format!("\u{201c}{}\u{201d}\n", refusal.message),
        () if proxy.has(Fault::RequestInErrorMessage) => {
            format!("{} {:.400}", refusal.message, String::from_utf8_lossy(body).escape_debug())
        }
        () => refusal.message.clone(),
    };
    let value = if proxy.has(Fault::ErrorNameMissing) {
        json!({ "type": refusal.name.as_str(), "message": message })
    } else {
        json!({ "errorName": refusal.name.as_str(), "errorMessage": message })
    };
    let status = if proxy.has(Fault::ErrorsWithStatus200) { 200 } else { status };
    let content_type = if proxy.has(Fault::ErrorAsText) { "text/plain" } else { "application/json" };
    labelled(status, content_type, value.to_string())
}

fn html_or(proxy: &Proxy, status: u16, refusal: &Refusal) -> Answer {
    if proxy.has(Fault::HtmlErrors) {
        return labelled(status, "text/html", format!("<html><body><h1>{status}</h1></body></html>"));
    }
    refused_with(proxy, status, refusal, b"")
}

fn text_answer(status: u16, text: &str) -> Answer {
    labelled(status, "text/plain", text.to_owned())
}

fn labelled(status: u16, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
