//! AWS JSON 1.1: one operation a request, named in a header.

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value, json};

use super::{MAX_BODY_BYTES, Shared};
use crate::api::{Answer, Operation};
use crate::kms::name::new_uuid;
use crate::kms::{Exception, KmsError};

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET_PREFIX: &str = "TrentService.";

/// Answers a call to the KMS API.
pub(super) async fn answer(State(shared): State<Shared>, request: axum::extract::Request) -> Response<Body> {
    let request_id = new_uuid().unwrap_or_default();
    let (head, body) = request.into_parts();
    let answer = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => answered(&shared, &head, &body.to_bytes(), &request_id).await,
        Err(_) => Err(KmsError::new(
            Exception::SerializationException,
            "The request's body is too long or incomplete.",
        )),
    };
    response(answer, &request_id)
}

async fn answered(shared: &Shared, head: &Parts, body: &Bytes, request_id: &str) -> Answer {
    let operation = operation(head)?;
    let principal = shared.callers.authenticate(head, body)?;
    let body: Value = serde_json::from_slice(body)
        .map_err(|_| KmsError::new(Exception::SerializationException, "The request's body is not JSON."))?;
    shared.service.call(operation, &principal, request_id, &body).await
}

fn operation(head: &Parts) -> Result<Operation, KmsError> {
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let name = target.and_then(|target| target.strip_prefix(TARGET_PREFIX));
    name.and_then(Operation::parse).ok_or_else(|| KmsError::bare(Exception::UnknownOperationException))
}

fn response(answer: Answer, request_id: &str) -> Response<Body> {
    let (status, body) = match answer {
        Ok(Some(value)) => (StatusCode::OK, Body::from(value.to_string())),
        Ok(None) => (StatusCode::OK, Body::empty()),
        Err(error) => {
            let status = StatusCode::from_u16(error.exception.http_status());
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Body::from(error_body(&error).to_string()))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate, private"),
    );
    if let Ok(request_id) = HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-requestid", request_id);
    }
    response
}

fn error_body(error: &KmsError) -> Value {
    let mut body = Map::from_iter([("__type".to_owned(), json!(error.exception.name()))]);
    if let Some(message) = &error.message {
        body.insert("message".to_owned(), json!(message));
    }
    Value::Object(body)
}
