//! Encoding of answers.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use xks_spec::error::ErrorBody;

use crate::error::{Error, WireError};

/// Every answer on the TLS listener.
pub(super) type Answer = Response<Bytes>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A successful answer.
pub(super) fn ok(body: Vec<u8>) -> Answer {
    // SPEC(TRANS-JSON-002): answers MUST be JSON of Content-Type application/json.
    // SPEC(META-CODE-001, ENC-CODE-001, DEC-CODE-001, HEALTH-CODE-001): success is 200.
    let mut answer = Response::new(Bytes::from(body));
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}

/// The body of a successful answer.
pub(super) fn encode<T: serde::Serialize>(body: &T) -> Result<Vec<u8>, Error> {
    let mut encoded = Vec::with_capacity(512);
    serde_json::to_writer(&mut encoded, body).map_err(|_| Error::Panic)?;
    Ok(encoded)
}

/// The answer to a request that failed.
pub(super) fn error(error: &Error) -> Answer {
    let WireError { name, message } = error.to_wire();
    // SPEC(ERR-BODY-001): every error MUST be JSON with an errorName. SPEC(ERR-BODY-002): errorMessage MAY be there.
    let body = ErrorBody { error_name: name, error_message: Some(&message) };
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status(error, name.http_status());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    match error {
        Error::Method => drop(headers.insert(ALLOW, HeaderValue::from_static("POST"))),
        // What follows on the connection cannot be told from the rest of the body.
        Error::BodyTooLong { .. } | Error::BodyIncomplete => close(&mut answer),
        _ => {}
    }
    answer
}

/// 405 has no name in the specification's table; everything else has the status of its name.
fn status(error: &Error, of_the_name: u16) -> StatusCode {
    match error {
        // SPEC(META-METHOD-001, ENC-METHOD-001, DEC-METHOD-001, HEALTH-METHOD-001): GET MUST be refused with 405.
        Error::Method => StatusCode::METHOD_NOT_ALLOWED,
        // INVARIANT: the names' codes are constants between 400 and 503.
        _ => StatusCode::from_u16(of_the_name).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Takes the body out of an answer to HEAD; the header fields stay those of any other method (RFC 9110 section 9.3.2).
pub(super) fn without_body(answer: &mut Answer) {
    let length = std::mem::take(answer.body_mut()).len();
    answer.headers_mut().insert(CONTENT_LENGTH, length.into());
}

/// Makes an HTTP/1.1 connection close behind the answer.
pub(super) fn close(answer: &mut Answer) {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// The answer to `/ping`.
pub(super) fn ping(is_ready: bool) -> Answer {
    let (status, text) = crate::admin::ping_answer(is_ready);
    let mut answer = Response::new(Bytes::from_static(text.as_bytes()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}
