//! The KMS on the network: AWS JSON 1.1 over HTTP or HTTPS, and a few paths that AWS does not have.

mod authentication;
mod callers;
mod canonical;
mod control;
mod tls;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub use callers::{Caller, Callers, CallersError};
pub use tls::{TlsError, acceptor};

use crate::api::Service;

/// Longest request body: an attestation document is the longest member, 256 KiB before Base64.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What every request needs.
#[derive(Clone)]
struct Shared {
    service: Arc<Service>,
    callers: Arc<Callers>,
}

/// The KMS API at `POST /`, the controls for tests under `/_mock/`, and whatever `pages` adds.
pub fn router(service: Arc<Service>, callers: Callers, pages: Router) -> Router {
    let shared = Shared { service, callers: Arc::new(callers) };
    Router::new()
        .route("/", post(wire::answer))
        .route("/_mock/clock", get(control::read_clock).post(control::move_clock))
        .route("/_mock/fail", post(control::fail_calls))
        .route("/_mock/health-check", post(control::check_health))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
        .merge(pages)
}

/// Serves connections until it is dropped.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: connections that end give some back.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            match tls {
                None => serve_connection(stream, router).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve_connection(stream, router).await;
                    }
                }
            }
        });
    }
}

/// Binds the address to serve at.
///
/// # Errors
/// When it is taken or not ours.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router) {
    let service = TowerToHyperService::new(router);
    // How a connection of a client ends is the client's affair.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}
