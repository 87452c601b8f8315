//! The plain HTTP/1.1 listeners: the operator's and the load balancer's.

use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::admission::Connections;
use super::proxy_protocol::skip_header;

/// Most connections at once: pollers hold one each.
const MAX_CONNECTIONS: usize = 256;
/// Longest silence before a request's head is complete.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection, whatever its client does or leaves undone.
const MAX_LIFE: Duration = Duration::from_secs(30);
/// Longest head of a request.
const MAX_HEADER_BYTES: usize = 8192;
/// Pause after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves operators until the process ends.
pub async fn serve_plain(listener: TcpListener, router: Router) {
    serve(listener, router, false).await;
}

/// Serves the health checks of load balancers until the process ends.
///
/// A load balancer that sends PROXY protocol headers sends them with its health checks too: they are read and ignored, from
/// whomever they come.
pub async fn serve_ping(listener: TcpListener, router: Router) {
    serve(listener, router, true).await;
}

async fn serve(listener: TcpListener, router: Router, may_have_proxy_header: bool) {
    // Everybody is a stranger here: the oldest connection goes first.
    let connections = Connections::new(MAX_CONNECTIONS, None);
    loop {
        let Ok((mut stream, address)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let place = connections.admit().await;
        // What a handler may ask for as `Extension<SocketAddr>`.
        let service = TowerToHyperService::new(router.clone().layer(Extension(address)));
        tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES);
            let connection = async move {
                if may_have_proxy_header {
                    let skipped = tokio::time::timeout(HEADER_TIMEOUT, skip_header(&mut stream)).await;
                    skipped.ok()?.ok()?;
                }
                builder.serve_connection(TokioIo::new(stream), service).await.ok()
            };
            // A poller that breaks off is no event.
            tokio::select! {
                _ = connection => {}
                () = place.evicted() => {}
                () = tokio::time::sleep(MAX_LIFE) => {}
            }
        });
    }
}
