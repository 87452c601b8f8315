//! Accepts connections, does TLS, speaks HTTP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::both_lengths::LengthHidden;
use crate::fault::Fault;
use crate::hello::{self, FirstBytes};
use crate::proxy::Proxy;
use crate::service::answer;

/// How long a handshake, and then the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a listener until it is dropped, and its connections with it.
pub(crate) async fn listen(proxy: Arc<Proxy>, listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let handshake = handshake(Arc::clone(&proxy), stream, acceptor.clone());
        if proxy.has(Fault::HandshakeInAcceptLoop) {
            if let Ok(established) = handshake.await {
                connections.spawn(serve(Arc::clone(&proxy), established));
            }
            continue;
        }
        let proxy = Arc::clone(&proxy);
        connections.spawn(async move {
            if let Ok(established) = handshake.await {
                serve(proxy, established).await;
            }
        });
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is ready for HTTP.
struct Established {
    stream: Box<dyn Stream>,
    is_http2: bool,
}

async fn handshake(
    proxy: Arc<Proxy>,
    mut stream: TcpStream,
    acceptor: TlsAcceptor,
) -> io::Result<Established> {
    stream.set_nodelay(true)?;
    let established = async {
        match hello::look(&proxy, &mut stream).await? {
            FirstBytes::Answered => return Err(io::ErrorKind::ConnectionAborted.into()),
            FirstBytes::Cleartext => return Ok(Established { stream: Box::new(stream), is_http2: false }),
            FirstBytes::Tls => {}
        }
        let stream = acceptor.accept(stream).await?;
        let is_http2 = match stream.get_ref().1.alpn_protocol() {
            Some(protocol) => protocol == b"h2",
            None => proxy.has(Fault::Http2WithoutAlpn),
        };
        Ok(Established { stream: Box::new(stream), is_http2 })
    };
    tokio::time::timeout(PATIENCE, established).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn serve(proxy: Arc<Proxy>, established: Established) {
    let hides_length = proxy.has(Fault::BothLengthsKeptAlive);
    let keeps_alive = !proxy.has(Fault::ConnectionForOneAnswer);
    let service = service_fn(move |request| answer(Arc::clone(&proxy), request));
    let stream: Box<dyn Stream> = match established.stream {
        stream if hides_length => Box::new(LengthHidden(stream)),
        stream => stream,
    };
    let io = TokioIo::new(stream);
    // How a connection ends is the client's business.
    if established.is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let _ = builder.timer(TokioTimer::new()).serve_connection(io, service).await;
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(keeps_alive);
        let _ = builder.serve_connection(io, service).await;
    }
}
