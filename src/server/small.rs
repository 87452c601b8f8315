//! The small listeners, HTTP/1.1 alone: the operator's, with TLS where it is wanted, and the load balancer's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::{Extension, Router};
use governor::DefaultDirectRateLimiter;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::{ACCEPT_PAUSE, Connections, Place};
use super::connection::leave_behind;
use super::proxy_protocol::skip_header;
use super::record::stranger_lines;
use crate::metrics::Metrics;
use crate::tls::{ClientFault, ListenerTls, handshake_failure};

/// Most connections at once: pollers hold one each.
const MAX_CONNECTIONS: usize = 256;
/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence before a request's head is complete.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection, whatever its client does or leaves undone: so long may one last, too, whose client's
/// certificate is trusted no more.
const MAX_LIFE: Duration = Duration::from_secs(30);
/// Longest head of a request.
const MAX_HEADER_BYTES: usize = 8192;

/// How a small listener speaks TLS and whom it admits, as the configuration has it now; plain HTTP where it has nothing.
pub struct SmallTls {
    current: ArcSwapOption<ListenerTls>,
    metrics: Arc<Metrics>,
    /// How many lines of the log clients may have that are cut off.
    lines: DefaultDirectRateLimiter,
}

impl SmallTls {
    /// The first configuration.
    #[must_use]
    pub fn new(tls: Option<ListenerTls>, metrics: &Arc<Metrics>) -> Arc<Self> {
        let current = ArcSwapOption::from_pointee(tls);
        Arc::new(Self { current, metrics: Arc::clone(metrics), lines: stranger_lines() })
    }

    /// New connections get this configuration.
    pub fn publish(&self, tls: Option<ListenerTls>) {
        self.current.store(tls.map(Arc::new));
    }

    /// The stream behind the handshake of a client that is admitted.
    async fn admit(
        &self,
        tls: &ListenerTls,
        stream: TcpStream,
        address: SocketAddr,
        place: &Place,
    ) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.server));
        let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream).into_fallible()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => {
                ClientFault::of_handshake(&error).into_iter().for_each(|fault| self.refused(address, fault));
                leave_behind(stream, &[], place).await;
                return None;
            }
            Err(_) => return None,
        };
        match tls.admit(stream.get_ref().1) {
            Ok(subject) => {
                if subject.is_some() {
                    place.is_no_stranger();
                }
                Some(stream)
            }
            Err(fault) => {
                self.refused(address, &fault);
                let (stream, connection) = stream.into_inner();
                leave_behind(stream, &handshake_failure(connection).unwrap_or_default(), place).await;
                None
            }
        }
    }

    /// Counts a client whose certificate is not accepted, and says why, as far as strangers may fill the log.
    fn refused(&self, address: SocketAddr, fault: &ClientFault) {
        self.metrics.admin_client_certificate_failures.with_label_values(&[fault.label()]).inc();
        if self.lines.check().is_ok() {
            tracing::warn!(%address, reason = %fault, "a client of the admin listener was cut off in the TLS handshake");
        } else {
            self.metrics.log_lines_suppressed.inc();
        }
    }
}

/// What a small listener's connections begin with.
enum Front {
    /// TLS where the configuration has it now.
    Tls(Arc<SmallTls>),
    /// A PROXY protocol header, or none.
    ProxyHeader,
}

/// Serves operators until the process ends, behind TLS where `tls` has it.
pub async fn serve_admin(listener: TcpListener, router: Router, tls: Arc<SmallTls>) {
    serve(listener, router, Front::Tls(tls)).await;
}

/// Serves the health checks of load balancers until the process ends.
///
/// A load balancer that sends PROXY protocol headers sends them with its health checks too: they are read and ignored, from
/// whomever they come.
pub async fn serve_ping(listener: TcpListener, router: Router) {
    serve(listener, router, Front::ProxyHeader).await;
}

async fn serve(listener: TcpListener, router: Router, front: Front) {
    let front = Arc::new(front);
    // Who shows no certificate is a stranger: the oldest of them goes first.
    let connections = Connections::new(MAX_CONNECTIONS, None);
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let place = connections.admit().await;
        // What a handler may ask for as `Extension<SocketAddr>`.
        let router = router.clone().layer(Extension(address));
        let front = Arc::clone(&front);
        tokio::spawn(async move {
            tokio::select! {
                () = front.serve(stream, address, router, &place) => {}
                _ = place.must_go() => {}
                () = sleep(MAX_LIFE) => {}
            }
        });
    }
}

impl Front {
    async fn serve(&self, mut stream: TcpStream, address: SocketAddr, router: Router, place: &Place) {
        match self {
            Self::ProxyHeader => {
                if let Ok(Ok(())) = timeout(HEADER_TIMEOUT, skip_header(&mut stream)).await {
                    serve_http(stream, router).await;
                }
            }
            Self::Tls(tls) => match tls.current.load_full() {
                None => serve_http(stream, router).await,
                Some(current) => {
                    if let Some(stream) = tls.admit(&current, stream, address, place).await {
                        serve_http(stream, router).await;
                    }
                }
            },
        }
    }
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
    // A poller that breaks off is no event.
    let _ = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
}
