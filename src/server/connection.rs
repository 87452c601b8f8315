//! One connection: TLS handshake, HTTP/1.1 or HTTP/2 as agreed by ALPN, and the timer that bounds every silence.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::State;
use super::activity::{Activity, Watched};
use super::admission::Place;
use super::listener::Drain;
use super::service::{Peer, answer};
use crate::clock;
use crate::tls::ALPN_HTTP2;

/// Once draining, how long an idle HTTP/1.1 connection stays open for a request that is already on its way: it is
/// answered and told to close.
const LINGER: Duration = Duration::from_millis(500);

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    state: Arc<State>,
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
    drain: Drain,
) {
    let activity = Arc::new(Activity::new(clock::now()));
    let acceptor = TlsAcceptor::from(state.tls.load_full());
    let handshake = timeout(state.timeouts.handshake, acceptor.accept(stream));
    let stream = tokio::select! {
        stream = handshake => stream,
        () = place.evicted() => return closed(&state, "evicted"),
    };
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "the TLS handshake failed");
            return closed(&state, "handshake_failed");
        }
        Err(_) => return closed(&state, "handshake_timeout"),
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
    activity.established(is_http2);
    let peer = Peer { state: Arc::clone(&state), activity, place: Arc::new(place), address };
    let reason = if is_http2 {
        serve_http2(peer, stream, drain).await
    } else {
        serve_http1(peer, stream, drain).await
    };
    if let Some(reason) = reason {
        closed(&state, reason);
    }
}

fn closed(state: &State, reason: &'static str) {
    state.metrics.connections_closed.with_label_values(&[reason]).inc();
}

async fn serve_http1(peer: Peer, stream: TlsStream<TcpStream>, drain: Drain) -> Option<&'static str> {
    let state = Arc::clone(&peer.state);
    let (activity, place) = (Arc::clone(&peer.activity), Arc::clone(&peer.place));
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let peer = Arc::new(peer);
    let service = service_fn(move |request| {
        let peer = Arc::clone(&peer);
        async move { answer(&peer, request).await }
    });
    let mut builder = http1::Builder::new();
    // The connection's own timer bounds the head: hyper's would also end idle connections.
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(state.limits.max_header_bytes);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut is_draining = false;
    loop {
        tokio::select! {
            // A client that breaks off is no event.
            _ = connection.as_mut() => return None,
            reason = silent_for_too_long(&activity, &state) => return Some(reason),
            () = place.evicted() => return Some("evicted"),
            () = drain.begun(), if !is_draining => {
                is_draining = true;
                activity.close_after_answer();
            }
            () = linger(&activity), if is_draining => connection.as_mut().graceful_shutdown(),
        }
    }
}

async fn serve_http2(peer: Peer, stream: TlsStream<TcpStream>, drain: Drain) -> Option<&'static str> {
    let state = Arc::clone(&peer.state);
    let (activity, place) = (Arc::clone(&peer.activity), Arc::clone(&peer.place));
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let peer = Arc::new(peer);
    let service = service_fn(move |request| {
        let peer = Arc::clone(&peer);
        async move { answer(&peer, request).await }
    });
    let limits = &state.limits;
    let body_bytes = u32::try_from(limits.max_body_bytes()).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams_per_connection)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(body_bytes)
        .initial_connection_window_size(4 * body_bytes);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut is_draining = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return None,
            reason = silent_for_too_long(&activity, &state) => return Some(reason),
            () = place.evicted() => return Some("evicted"),
            () = drain.begun(), if !is_draining => {
                is_draining = true;
                // GOAWAY: requests that are already on their way are still served.
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Returns once the connection has been silent for longer than its phase allows.
///
/// It looks again at the latest after the shortest timeout, since a phase may change to a shorter one meanwhile.
async fn silent_for_too_long(activity: &Activity, state: &State) -> &'static str {
    let timeouts = &state.timeouts;
    loop {
        let now = clock::now();
        let look_again = now + timeouts.header;
        let wake = match activity.due(timeouts) {
            Some((due, reason)) if due <= now => return reason,
            Some((due, _)) => due.min(look_again),
            None => look_again,
        };
        sleep_until(wake.into()).await;
    }
}

/// Returns after [`LINGER`] if the connection idles then.
async fn linger(activity: &Activity) {
    loop {
        tokio::time::sleep(LINGER).await;
        if activity.is_idle() {
            return;
        }
    }
}
