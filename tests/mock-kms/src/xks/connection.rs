//! One connection to a proxy: TCP, TLS, and the HTTP version that both ends agreed on.

use std::collections::HashMap;
use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::Certificate;
use super::failure::{Failure, Malformed};
use super::request::Proxy;
use super::shaping::{Shaped, Shaping};

/// An HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// Its name in ALPN.
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

impl std::fmt::Display for HttpVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// How far a try came, so that a time-out can be told from an unreachable host.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// TCP connect, where a connection was opened.
    pub(super) tcp: Option<Duration>,
    /// TLS handshake after it.
    pub(super) tls: Option<Duration>,
    /// Whether anything of an answer came.
    pub(super) has_answer: bool,
    /// Whether a kept connection was used.
    pub(super) is_reused: bool,
    /// What the proxy is, where TLS came about.
    pub(super) certificate: Option<Arc<Certificate>>,
    /// The version that was agreed on.
    pub(super) version: Option<HttpVersion>,
}

/// Opens connections.
pub(super) struct Connector {
    tls: TlsConnector,
    addresses: HashMap<String, SocketAddr>,
    checks_common_name: bool,
}

impl Connector {
    pub(super) fn new(
        tls: ClientConfig,
        addresses: HashMap<String, SocketAddr>,
        checks_common_name: bool,
    ) -> Self {
        Self { tls: TlsConnector::from(Arc::new(tls)), addresses, checks_common_name }
    }

    /// TCP and TLS.
    pub(super) async fn open_tls(
        &self,
        proxy: &Proxy,
        shaping: &Shaping,
        progress: &mut Progress,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let (name, port) = proxy.name_and_port();
        let server_name = ServerName::try_from(name.to_owned())
            .map_err(|_| Failure::NotSent(format!("{name:?} is no host name")))?;
        let begin = Instant::now();
        let stream = self.open_tcp(name, port).await?;
        stream.set_nodelay(true).map_err(|error| Failure::Unreachable(error.to_string()))?;
        progress.tcp = Some(begin.elapsed());
        tokio::time::sleep(shaping.before_tls).await;

        let begin = Instant::now();
        let connected = self.tls.connect(server_name, stream).await;
        let stream = connected.map_err(|error| Failure::Tls(error.to_string()))?;
        progress.tls = Some(begin.elapsed());
        let first = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        progress.certificate = first.and_then(|first| Certificate::from_der(first)).map(Arc::new);
        if self.checks_common_name {
            check_common_name(progress.certificate.as_deref(), name)?;
        }
        Ok(stream)
    }

    async fn open_tcp(&self, name: &str, port: u16) -> Result<TcpStream, Failure> {
        let unreachable = |error: std::io::Error| Failure::Unreachable(format!("{name}: {error}"));
        if let Some(address) = self.addresses.get(&name.to_ascii_lowercase()) {
            return TcpStream::connect(address).await.map_err(unreachable);
        }
        let found = tokio::net::lookup_host((name, port)).await.map_err(unreachable)?;
        // KMS speaks IPv4 alone.
        let addresses: Vec<_> = found.filter(SocketAddr::is_ipv4).collect();
        if addresses.is_empty() {
            return Err(Failure::Unreachable(format!("{name} has no IPv4 address")));
        }
        TcpStream::connect(addresses.as_slice()).await.map_err(unreachable)
    }

    /// A connection that can carry a request.
    pub(super) async fn open(
        &self,
        proxy: &Proxy,
        shaping: &Shaping,
        progress: &mut Progress,
    ) -> Result<Connection, Failure> {
        let stream = self.open_tls(proxy, shaping, progress).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HttpVersion::Http2.alpn());
        let certificate = progress.certificate.clone();
        let io = TokioIo::new(Shaped::new(stream, shaping));
        let (end, fault) = watch::channel(None);
        let sender = if is_http2 {
            let handshake = http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = handshake.map_err(|error| failure(&error))?;
            tokio::spawn(drive(connection, end));
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|error| failure(&error))?;
            tokio::spawn(drive(connection, end));
            Sender::Http1(sender)
        };
        Ok(Connection { sender, fault, certificate })
    }
}

/// KMS wants the host in the subject's common name too, where TLS looks at the subject alternative names alone.
fn check_common_name(certificate: Option<&Certificate>, host: &str) -> Result<(), Failure> {
    if certificate.is_some_and(|certificate| certificate.has_common_name_for(host)) {
        return Ok(());
    }
    let names = certificate.map_or_else(String::new, |certificate| certificate.common_names.join(", "));
    Err(Failure::Tls(format!("the certificate's common name is {names:?} instead of {host:?}")))
}

/// Runs a connection to its end and keeps why it ended, since the requests on it are told less.
async fn drive(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    end: watch::Sender<Option<Failure>>,
) {
    if let Err(error) = connection.await {
        end.send_replace(Some(failure(&error)));
    }
}

/// A connection that can carry requests; closed when dropped, HTTP/2 with its last clone.
pub(super) struct Connection {
    sender: Sender,
    fault: watch::Receiver<Option<Failure>>,
    pub(super) certificate: Option<Arc<Certificate>>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub(super) const fn version(&self) -> HttpVersion {
        match self.sender {
            Sender::Http1(_) => HttpVersion::Http1,
            Sender::Http2(_) => HttpVersion::Http2,
        }
    }

    /// Whether the other side has not closed it.
    pub(super) fn is_open(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    /// A second handle to an HTTP/2 connection; HTTP/1.1 carries one request at a time.
    pub(super) fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => {
                let sender = Sender::Http2(sender.clone());
                Some(Self { sender, fault: self.fault.clone(), certificate: self.certificate.clone() })
            }
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let sent = match &mut self.sender {
            Sender::Http1(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(error) => Err(error),
            },
            Sender::Http2(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(error) => Err(error),
            },
        };
        match sent {
            Ok(response) => Ok(response),
            // The connection has ended, or is about to, and knows better why.
            Err(error) if error.is_canceled() || error.is_closed() => {
                let fault = self.fault.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
                Err(fault.unwrap_or_else(|| failure(&error)))
            }
            Err(error) => Err(failure(&error)),
        }
    }

    /// Waits until an HTTP/1.1 connection could take another request; false where it is at its end.
    pub(super) async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }
}

/// What an error of the HTTP library means to KMS.
pub(super) fn failure(error: &hyper::Error) -> Failure {
    let causes: Vec<_> = std::iter::successors(Some(error as &dyn Error), |&cause| cause.source()).collect();
    let words = causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    // In TLS 1.3 a refused client certificate shows at the first read.
    if causes.iter().any(|cause| is_tls_alert(*cause)) {
        return Failure::Tls(words);
    }
    let is_malformed = error.is_parse() || causes.iter().any(|cause| is_bad_frame(*cause));
    if is_malformed { Malformed::Http(words).into() } else { Failure::Broken(words) }
}

/// Bytes that HTTP does not have: bad chunks are reported as I/O errors, bad frames of HTTP/2 by the h2 library, whose
/// error type hyper does not show, with these words.
fn is_bad_frame(cause: &(dyn Error + 'static)) -> bool {
    let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(io, Some(ErrorKind::InvalidInput | ErrorKind::InvalidData))
        || cause.to_string().contains("error detected: ")
}

fn is_tls_alert(cause: &(dyn Error + 'static)) -> bool {
    // By its words, which are all that the h2 library leaves of rustls's error.
    cause.to_string().starts_with("received fatal alert: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_without_ipv4_address_is_unreachable_unless_it_is_said_where_it_is() {
        let tls = || {
            let roots = rustls::RootCertStore::empty();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            builder.unwrap().with_root_certificates(roots).with_no_client_auth()
        };
        // An address is its own name, whatever names this machine knows.
        let connector = Connector::new(tls(), HashMap::new(), true);
        let refused = connector.open_tcp("::1", 1).await.unwrap_err();
        assert_eq!(refused, Failure::Unreachable("::1 has no IPv4 address".to_owned()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = HashMap::from([("::1".to_owned(), listener.local_addr().unwrap())]);
        Connector::new(tls(), place, true).open_tcp("::1", 1).await.unwrap();
    }
}
