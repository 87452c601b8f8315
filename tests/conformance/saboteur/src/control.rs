//! A plain listener by which hook commands change the saboteur, as an owner changes a real proxy or its HSM.
//!
//! `POST /credentials/first`, `/credentials/both`, `/credentials/next`, `/hsm/healthy`, `/hsm/failing`, `/hsm/silent`,
//! `/hsm/corrupting`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::hsm::HsmState;
use crate::proxy::Proxy;
use crate::setup::Accepted;

/// Serves one request a connection.
pub(crate) async fn listen(proxy: Arc<Proxy>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let service = service_fn(|request| {
            let answer = change(&proxy, &request);
            async { Ok::<_, Infallible>(answer) }
        });
        let _ = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
    }
}

fn change(proxy: &Proxy, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let status = match (request.method(), request.uri().path()) {
        (&Method::POST, path) if apply(proxy, path).is_some() => StatusCode::NO_CONTENT,
        (&Method::POST, _) => StatusCode::NOT_FOUND,
        _ => StatusCode::METHOD_NOT_ALLOWED,
    };
    let mut answer = Response::default();
    *answer.status_mut() = status;
    answer
}

fn apply(proxy: &Proxy, path: &str) -> Option<()> {
    match path {
        "/credentials/first" => proxy.accept(Accepted::First),
        "/credentials/both" => proxy.accept(Accepted::Both),
        "/credentials/next" => proxy.accept(Accepted::Next),
        "/hsm/healthy" => proxy.hsm.set_state(HsmState::Healthy),
        "/hsm/failing" => proxy.hsm.set_state(HsmState::Failing),
        "/hsm/corrupting" => proxy.hsm.set_state(HsmState::Corrupting),
        "/hsm/silent" => proxy.hsm.set_state(HsmState::Silent),
        _ => return None,
    }
    Some(())
}
