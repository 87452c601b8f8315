//! A client over real TLS: HTTP/1.1 and HTTP/2, and raw bytes for what no HTTP library would send.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::{PemPair, Pki};
use crate::request::XksRequest;

/// Which HTTP to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

impl Http {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::One, Self::Two];
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {:?}", self.status, self.body))
    }

    /// Status and errorName.
    #[must_use]
    pub fn error(&self) -> (u16, String) {
        let name = self.json()["errorName"].as_str().unwrap_or("no errorName").to_owned();
        (self.status.as_u16(), name)
    }

    /// Status and errorName of an error whose form is the documented one.
    ///
    /// # Panics
    /// If it is no JSON object of errorName and errorMessage alone, labelled as JSON, or if the message is too long or
    /// not printable ASCII.
    #[must_use]
    pub fn refusal(&self) -> (u16, String) {
        assert_eq!(self.headers.get("content-type").unwrap(), "application/json", "{self:?}");
        let body = self.json();
        // In whatever order.
        let mut fields: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["errorMessage", "errorName"], "{body}");
        let message = body["errorMessage"].as_str().unwrap();
        assert!(message.len() < 512 && message.bytes().all(|byte| (0x20..=0x7e).contains(&byte)), "{body}");
        assert!(body["errorName"].as_str().unwrap().ends_with("Exception"), "{body}");
        self.error()
    }

    /// The body of a successful answer.
    ///
    /// # Panics
    /// If it is none.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{:?}", self.body);
        self.json()
    }
}

/// A TLS configuration that trusts the test CA and offers one protocol.
#[must_use]
pub fn tls_config(http: Http) -> ClientConfig {
    tls_config_showing(http, None)
}

/// The same of a client that shows a certificate, where there is one.
#[must_use]
pub fn tls_config_showing(http: Http, shown: Option<&PemPair>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(Pki::shared().roots());
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = vec![match http {
        Http::One => b"http/1.1".to_vec(),
        Http::Two => b"h2".to_vec(),
    }];
    config
}

/// A TLS stream to the proxy.
///
/// # Errors
/// When the connection or the handshake fails.
pub async fn tls(address: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// A connection that carries requests.
pub struct Connection {
    sender: Sender,
    /// What the `host` header, or `:authority`, says.
    pub authority: String,
}

impl Connection {
    /// Connects and agrees on `http`.
    ///
    /// # Panics
    /// If that fails.
    pub async fn open(address: SocketAddr, http: Http) -> Self {
        Self::try_open(address, http).await.unwrap()
    }

    /// The same, for tests that expect failure.
    ///
    /// # Errors
    /// When the connection or the handshake fails.
    pub async fn try_open(address: SocketAddr, http: Http) -> std::io::Result<Self> {
        Self::open_with(address, http, tls_config(http)).await
    }

    /// The same with a TLS configuration, whose ALPN is to agree on `http`.
    ///
    /// # Errors
    /// When the connection or the handshake fails.
    pub async fn open_with(address: SocketAddr, http: Http, config: ClientConfig) -> std::io::Result<Self> {
        let io = TokioIo::new(tls(address, config).await?);
        let sender = match http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await.map_err(std::io::Error::other)?;
                tokio::spawn(connection);
                Sender::One(sender)
            }
            Http::Two => {
                let handshake = http2::handshake(TokioExecutor::new(), io).await;
                let (sender, connection) = handshake.map_err(std::io::Error::other)?;
                tokio::spawn(connection);
                Sender::Two(sender)
            }
        };
        Ok(Self { sender, authority: format!("localhost:{}", address.port()) })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Panics
    /// If there is none.
    pub async fn send(&mut self, request: &XksRequest) -> Answer {
        self.try_send(request).await.unwrap()
    }

    /// The same, for tests that expect failure.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn try_send(&mut self, request: &XksRequest) -> hyper::Result<Answer> {
        self.try_send_http(self.http_request(request)).await
    }

    /// The request as it would be sent, signed.
    #[must_use]
    pub fn http_request(&self, request: &XksRequest) -> Request<Full<Bytes>> {
        let url = format!("https://{}{}", self.authority, request.path);
        let mut built = Request::builder().method(request.method.clone());
        match &self.sender {
            Sender::One(_) => {
                built = built.uri(request.path.as_str()).header("host", &self.authority);
            }
            Sender::Two(_) => built = built.uri(&url),
        }
        let headers: Vec<_> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for (name, value) in &headers {
            built = built.header(*name, *value);
        }
        if let Some(signing) = &request.signing {
            for (name, value) in signing.headers(request.method.as_str(), &url, &headers, &request.body) {
                built = built.header(name, value);
            }
        }
        built.body(Full::new(Bytes::from(request.body.clone()))).unwrap()
    }

    /// Sends what a test has built.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn try_send_http(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let answer = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Whether the connection has been closed by the other side.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_closed(),
            Sender::Two(sender) => sender.is_closed(),
        }
    }
}

/// A body that goes on for ever after its first bytes, without more of them.
struct Unfinished(Full<Bytes>);

impl Body for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match Pin::new(&mut self.0).poll_frame(context) {
            Poll::Ready(None) => Poll::Pending,
            frame => frame,
        }
    }
}

/// Sends a request over HTTP/2 on a connection of its own, without ever ending its body, and reads the answer.
///
/// # Errors
/// When there is no answer.
///
/// # Panics
/// If the connection fails.
pub async fn http2_with_unfinished_body(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Answer> {
    let io = TokioIo::new(tls(address, tls_config(Http::Two)).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await?;
    let (head, body) = sender.send_request(request.map(Unfinished)).await?.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
}

/// The bytes of an HTTP/1.1 request, signed, for tests that send it piece by piece.
#[must_use]
pub fn raw_http1(request: &XksRequest, authority: &str) -> Vec<u8> {
    let url = format!("https://{authority}{}", request.path);
    let headers: Vec<_> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut text = format!("{} {} HTTP/1.1\r\nhost: {authority}\r\n", request.method, request.path);
    for (name, value) in &headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(signing) = &request.signing {
        for (name, value) in signing.headers(request.method.as_str(), &url, &headers, &request.body) {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", request.body.len()));
    [text.into_bytes(), request.body.clone()].concat()
}

/// GET over plain HTTP.
///
/// # Panics
/// If there is no answer.
pub async fn plain_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
