//! A caller of KMS: AWS JSON 1.1 over HTTP, signed as an SDK signs.

use std::fmt;
use std::net::SocketAddr;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::Stop;

/// The caller's credential. The KMS takes any, and calls the caller after its id.
pub(super) const ACCESS_KEY_ID: &str = "AKIADEMODEMODEMODEMO";
pub(super) const SECRET_ACCESS_KEY: &str = "demo";

/// Calls the KMS at one address.
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    pub(super) region: String,
}

/// What came of a call.
pub(super) struct Called {
    pub(super) request_id: String,
    pub(super) outcome: Result<Value, Refusal>,
}

/// An exception of KMS.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) exception: String,
    pub(super) message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.exception, self.message)
    }
}

impl Caller {
    /// Calls an operation that must succeed.
    pub(super) async fn call(&self, operation: &'static str, body: &Value) -> Result<Value, Stop> {
        let called = self.try_call(operation, body).await?;
        called.outcome.map_err(|refusal| Stop::Refused { operation, refusal })
    }

    /// Calls an operation that must fail, and says how it did.
    pub(super) async fn refused(&self, operation: &'static str, body: &Value) -> Result<Refusal, Stop> {
        match self.try_call(operation, body).await?.outcome {
            Err(refusal) => Ok(refusal),
            Ok(_) => Err(Stop::NotProven(format!("{operation} succeeded, which it must not"))),
        }
    }

    pub(super) async fn try_call(&self, operation: &str, body: &Value) -> Result<Called, Stop> {
        let fault = |error: &dyn fmt::Display| Stop::Setup(format!("KMS at {}: {error}", self.address));
        let request = self.request(operation, body.to_string()).map_err(|error| fault(&error))?;
        let stream = TcpStream::connect(self.address).await.map_err(|error| fault(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| fault(&error))?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| fault(&error))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| fault(&error))?.to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let request_id = head.headers.get("x-amzn-requestid").and_then(|id| id.to_str().ok());
        let request_id = request_id.unwrap_or_default().to_owned();
        if head.status.is_success() {
            return Ok(Called { request_id, outcome: Ok(json) });
        }
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        Ok(Called {
            request_id,
            outcome: Err(Refusal { exception: text("__type"), message: text("message") }),
        })
    }

    fn request(
        &self,
        operation: &str,
        body: String,
    ) -> Result<Request<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let target = format!("TrentService.{operation}");
        let host = self.address.to_string();
        let headers = [
            ("host", host.as_str()),
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", &target),
        ];
        let identity = Credentials::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY, None, None, "demo").into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("kms")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let signable =
            SignableRequest::new("POST", "/", headers.into_iter(), SignableBody::Bytes(body.as_bytes()))?;
        let (instructions, _) = sign(signable, &params)?.into_parts();
        let mut request = Request::post("/");
        for (name, value) in headers.into_iter().chain(instructions.headers()) {
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(Bytes::from(body)))?)
    }
}
