//! Connections to a target: TCP without delay, TLS, HTTP/1.1 or HTTP/2, and one exchange at a time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::Transport;
use crate::target::Target;

/// Longest answer read: the longest lawful one, a decrypt of 4,300 bytes, takes under 6 kB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The HTTP version of a run's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
pub enum HttpVersion {
    /// HTTP/1.1
    #[value(name = "1")]
    #[serde(rename = "1.1")]
    Http1,
    /// HTTP/2
    #[value(name = "2")]
    #[serde(rename = "2")]
    Http2,
}

/// A TLS client configuration that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub struct TlsError(String);

/// Opens connections to one target.
#[derive(Clone)]
pub struct Connector {
    address: SocketAddr,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    http: HttpVersion,
}

/// A connection able to send a request. Dropping it closes the connection (HTTP/2: when its last clone drops).
#[derive(Debug)]
pub enum Sender {
    /// One exchange at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Any number of streams.
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connector {
    /// A connector to `target`.
    ///
    /// Without `tls_resumption` every handshake is a full one, the dearer case for the target.
    ///
    /// # Errors
    /// When the trusted roots or the client certificate cannot be read.
    pub fn new(target: &Target, http: HttpVersion, tls_resumption: bool) -> Result<Self, TlsError> {
        let fault = |error: rustls::Error| TlsError(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(fault)?
            .with_root_certificates(roots(target.trust_ca.as_deref())?);
        let mut config = match &target.client_identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(
                    certificates(chain)?,
                    PrivateKeyDer::from_pem_file(key)
                        .map_err(|error| TlsError(format!("{}: {error}", key.display())))?,
                )
                .map_err(fault)?,
        };
        config.alpn_protocols = match http {
            HttpVersion::Http1 => vec![b"http/1.1".to_vec()],
            HttpVersion::Http2 => vec![b"h2".to_vec()],
        };
        if !tls_resumption {
            config.resumption = Resumption::disabled();
        }
        Ok(Self {
            address: target.address,
            server_name: target.server_name.clone(),
            tls: TlsConnector::from(Arc::new(config)),
            http,
        })
    }

    /// Opens a connection, TLS handshake included.
    ///
    /// # Errors
    /// When TCP, TLS or the HTTP version fails.
    pub async fn connect(&self) -> Result<Sender, Transport> {
        let stream =
            TcpStream::connect(self.address).await.map_err(|error| Transport::Connect(error.kind()))?;
        stream.set_nodelay(true).map_err(|error| Transport::Connect(error.kind()))?;
        let stream = self
            .tls
            .connect(self.server_name.clone(), stream)
            .await
            .map_err(|error| Transport::Tls(error.kind()))?;
        let negotiated_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        match self.http {
            HttpVersion::Http1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(|error| kind(&error))?;
                tokio::spawn(connection);
                Ok(Sender::Http1(sender))
            }
            HttpVersion::Http2 if !negotiated_http2 => Err(Transport::NoHttp2),
            HttpVersion::Http2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.map_err(|error| kind(&error))?;
                tokio::spawn(connection);
                Ok(Sender::Http2(sender))
            }
        }
    }
}

impl Sender {
    /// Waits until the connection can take a request.
    ///
    /// # Errors
    /// When it has been closed.
    pub async fn ready(&mut self) -> Result<(), Transport> {
        let ready = match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        };
        ready.map_err(|_| Transport::Closed)
    }

    /// A second handle to an HTTP/2 connection.
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    /// Sends `request` and reads the whole answer: its status and body.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), Transport> {
        let response: Response<Incoming> = match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        }
        .map_err(|error| kind(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        match body {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(Transport::Protocol),
            Err(_) => Err(Transport::Closed),
        }
    }
}

fn kind(error: &hyper::Error) -> Transport {
    if error.is_parse() { Transport::Protocol } else { Transport::Closed }
}

fn roots(trust_ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match trust_ca {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| TlsError(format!("{}: {error}", file.display())))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsError("no root certificate to trust; name one with --trust-ca".to_owned()));
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |error: &dyn std::fmt::Display| TlsError(format!("{}: {error}", file.display()));
    CertificateDer::pem_file_iter(file)
        .map_err(|error| fault(&error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(&error))
}

/// A place in the pool of kept connections: opens its connection when needed, and again when the target closed it.
pub struct Line {
    connector: Connector,
    held: tokio::sync::Mutex<Option<Sender>>,
}

/// A connection lent out by a [`Line`], and how long it took to open if it had to be.
pub struct Lease {
    /// The connection.
    pub sender: Sender,
    /// TCP and TLS handshake, where the connection was opened for this lease.
    pub handshake: Option<Duration>,
}

impl Line {
    /// A line that is not connected yet.
    pub fn new(connector: Connector) -> Self {
        Self { connector, held: tokio::sync::Mutex::new(None) }
    }

    /// Lends the connection. An HTTP/1.1 connection is to be given back after a complete exchange.
    ///
    /// # Errors
    /// When a connection has to be opened and cannot.
    pub async fn lease(&self) -> Result<Lease, Transport> {
        let mut held = self.held.lock().await;
        if let Some(mut sender) = held.take()
            && sender.ready().await.is_ok()
        {
            *held = sender.share();
            return Ok(Lease { sender, handshake: None });
        }
        let start = Instant::now();
        let mut sender = self.connector.connect().await?;
        sender.ready().await?;
        *held = sender.share();
        Ok(Lease { sender, handshake: Some(start.elapsed()) })
    }

    /// Takes an HTTP/1.1 connection back; a connection that is not given back is closed.
    pub async fn give_back(&self, sender: Sender) {
        if let Sender::Http1(_) = sender {
            *self.held.lock().await = Some(sender);
        }
    }
}
