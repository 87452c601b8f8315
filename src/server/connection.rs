//! One connection: TLS handshake, HTTP/1.1 or HTTP/2 as agreed by ALPN, and the timer that bounds every silence.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::State;
use super::activity::{Activity, Watched};
use super::admission::Place;
use super::listener::Drain;
use super::proxy_protocol::{self, ClientAddress};
use super::retirement::Retirement;
use super::service::{Close, Peer, answer, begin};
use crate::clock;
use crate::tls::{ALPN_HTTP2, ClientFault, handshake_failure};

/// Once draining, how long an idle HTTP/1.1 connection stays open for a request that is already on its way: it is
/// answered and told to close.
const LINGER: Duration = Duration::from_millis(500);

/// Between finding a connection silent and closing it. Timers and bytes that are due at once are seen in either order, but
/// bytes before a timer that was set later.
const SECOND_LOOK: Duration = Duration::from_millis(5);

/// How long a silent connection has to take its close_notify, or its GOAWAY, and to finish what crossed that.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long a retired connection may wait for a request with whose answer it is told to close, so that none crosses the end.
const RETIREMENT_GRACE: Duration = Duration::from_secs(30);

/// How long what is then still being worked on may take: within a minute it is over, the farewell included.
const RETIREMENT_END: Duration = Duration::from_secs(20);

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    state: Arc<State>,
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
    drain: Drain,
) {
    // Each in a box of its own, that takes memory only as long as it lasts: thousands of connections idle.
    let admitted = Box::pin(admit(Arc::clone(&state), stream, address, place, drain)).await;
    let reason = match admitted {
        Ok(serving) => serving.await,
        Err(reason) => Some(reason),
    };
    if let Some(reason) = reason {
        state.metrics.connections_closed.with_label_values(&[reason]).inc();
    }
}

/// Serves the requests of an admitted connection; says at its end why, where it was not the client's doing.
type Serving = BoxFuture<'static, Option<&'static str>>;

/// Does the handshake. Fails with the reason why the connection is closed.
async fn admit(
    state: Arc<State>,
    mut stream: TcpStream,
    address: SocketAddr,
    place: Place,
    drain: Drain,
) -> Result<Serving, &'static str> {
    let activity = Arc::new(Activity::new(clock::now()));
    let admission = state.tls.admit();
    let max_age = state.timeouts.max_age;
    let retirement = Retirement::new(&state.tls, &admission, activity.accepted_at(), max_age, address);
    let acceptor = TlsAcceptor::from(Arc::clone(&admission.tls.server));
    let mut client = ClientAddress { client: address, balancer: None };
    let handshake = timeout(state.timeouts.handshake, async {
        client = proxy_protocol::client_address(&mut stream, address, &state.proxy_protocol_from).await?;
        Ok(acceptor.accept(stream).into_fallible().await?)
    });
    let stream = tokio::select! {
        stream = handshake => stream,
        reason = place.must_go() => return Err(reason),
        // It would be admitted by rules that hold no more; it has sent no request yet.
        () = retirement.trust_changed() => return Err("trust_changed"),
    };
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(HandshakeFault::ProxyProtocol(fault))) => {
            if state.has_line_for_stranger() {
                tracing::warn!(%address, error = %fault, "a connection from proxy_protocol_from has no PROXY header");
            }
            return Err("no_proxy_header");
        }
        Ok(Err(HandshakeFault::Tls(error, stream))) => {
            match ClientFault::of_handshake(&error) {
                Some(fault) => not_admitted(&state, client.client, fault),
                None if state.has_line_for_stranger() => {
                    tracing::info!(address = %client.client, %error, "the TLS handshake failed");
                }
                None => {}
            }
            leave_behind(stream, &[], &place).await;
            return Err("handshake_failed");
        }
        Err(_) => return Err("handshake_timeout"),
    };
    let certificate_subject = match admission.tls.admit(stream.get_ref().1) {
        Ok(subject) => subject,
        Err(fault) => {
            not_admitted(&state, client.client, &fault);
            let (stream, connection) = stream.into_inner();
            // An empty alert is a connection that closes without one.
            let alert = handshake_failure(connection).unwrap_or_default();
            leave_behind(stream, &alert, &place).await;
            return Err("handshake_failed");
        }
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
    activity.established(is_http2);
    let ClientAddress { client: address, balancer } = client;
    let peer = Peer {
        state: Arc::clone(&state),
        activity,
        place: Arc::new(place),
        address,
        balancer,
        certificate_subject,
        drain,
        retirement,
    };
    Ok(if is_http2 { serve_http2(peer, stream) } else { serve_http1(peer, stream) })
}

/// Why a connection never carried a request.
enum HandshakeFault {
    ProxyProtocol(proxy_protocol::HeaderFault),
    Tls(std::io::Error, TcpStream),
}

impl From<proxy_protocol::HeaderFault> for HandshakeFault {
    fn from(fault: proxy_protocol::HeaderFault) -> Self {
        Self::ProxyProtocol(fault)
    }
}

impl From<(std::io::Error, TcpStream)> for HandshakeFault {
    fn from((error, stream): (std::io::Error, TcpStream)) -> Self {
        Self::Tls(error, stream)
    }
}

/// Counts a client whose certificate is not accepted, and says why, as far as strangers may fill the log.
fn not_admitted(state: &State, address: SocketAddr, fault: &ClientFault) {
    state.metrics.client_certificate_failures.with_label_values(&[fault.label()]).inc();
    if state.has_line_for_stranger() {
        tracing::warn!(%address, reason = %fault, "a client was cut off in the TLS handshake");
    }
}

/// Closes a connection behind an alert, and sends what is left of that. Closed with bytes unread, the system would reset the
/// connection, and the client could lose the alert to that: it may be about to send a request.
pub(super) async fn leave_behind(mut stream: TcpStream, alert: &[u8], place: &Place) {
    let farewell = async {
        stream.write_all(alert).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    tokio::select! {
        // A client that breaks off is no event.
        _ = timeout(FAREWELL, farewell) => {}
        _ = place.must_go() => {}
    }
}

fn serve_http1(peer: Peer, stream: TlsStream<TcpStream>) -> Serving {
    let mut builder = http1::Builder::new();
    // The connection's own timer bounds the head: hyper's would also end idle connections.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(peer.state.limits.max_header_bytes);
    let peer = Arc::new(peer);
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&peer.activity)));
    let connection = Box::pin(builder.serve_connection(io, service_fn(service(&peer))));
    drive(connection, peer).boxed()
}

fn serve_http2(peer: Peer, stream: TlsStream<TcpStream>) -> Serving {
    let limits = &peer.state.limits;
    let body_bytes = u32::try_from(limits.max_body_bytes()).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams_per_connection)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(body_bytes)
        .initial_connection_window_size(body_bytes.saturating_mul(4));
    let peer = Arc::new(peer);
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&peer.activity)));
    let connection = Box::pin(builder.serve_connection(io, service_fn(service(&peer))));
    drive(connection, peer).boxed()
}

/// Answers each request of a connection.
fn service(
    peer: &Arc<Peer>,
) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Full<Bytes>>, Close>> + use<> {
    let peer = Arc::clone(peer);
    move |request| {
        // Not inside the future, which may be dropped before it is polled, or be polled late.
        let begun = begin(&peer, &request);
        let peer = Arc::clone(&peer);
        async move { answer(&peer, request, begun).await }.boxed()
    }
}

/// Drives a connection to its end; says why, where it was not the client's doing.
///
/// What its client sends uses up the task's budget in the first branch, and clocks with a budget would then never be due.
async fn drive(mut connection: Pin<Box<impl GracefulConnection>>, peer: Arc<Peer>) -> Option<&'static str> {
    let Peer { activity, place, state, drain, retirement, .. } = &*peer;
    let mut is_draining = false;
    let mut retired: Option<Retired> = None;
    let reason = loop {
        tokio::select! {
            // What has arrived counts before any clock.
            biased;
            // A client that breaks off is no event.
            _ = connection.as_mut() => return retired.map(|retired| retired.reason),
            reason = place.must_go() => return Some(reason),
            reason = unconstrained(silent_for_too_long(activity, state)) => break reason,
            () = unconstrained(drain.begun()), if !is_draining => {
                is_draining = true;
                // GOAWAY: requests that are already on their way are still served. On HTTP/1.1 each answer says it.
                if activity.is_http2() {
                    connection.as_mut().graceful_shutdown();
                }
            }
            reason = unconstrained(retirement.due()), if retired.is_none() => {
                let is_told = activity.is_http2();
                retired = Some(Retired { reason, since: clock::now(), is_told });
                activity.retire();
                if is_told {
                    connection.as_mut().graceful_shutdown();
                }
            }
            reason = unconstrained(over(&retired)) => break reason,
            () = unconstrained(to_be_told(&retired, activity)) => {
                // Nothing has come that could have been answered with a farewell.
                retired = retired.map(|retired| Retired { is_told: true, ..retired });
                connection.as_mut().graceful_shutdown();
            }
            () = unconstrained(linger(activity)), if is_draining && !activity.is_http2() => {
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = timeout(FAREWELL, connection.as_mut()) => {}
        // Its place is given away meanwhile.
        _ = place.must_go() => {}
    }
    Some(reason)
}

/// A connection that has been told, or will be at its next answer, that it closes.
struct Retired {
    reason: &'static str,
    since: Instant,
    /// It takes no further request.
    is_told: bool,
}

/// Waits until a retired HTTP/1.1 connection has had its time for another request, and idles.
async fn to_be_told(retired: &Option<Retired>, activity: &Activity) {
    match retired {
        Some(Retired { since, is_told: false, .. }) => {
            sleep_until((*since + RETIREMENT_GRACE).into()).await;
            linger(activity).await;
        }
        _ => std::future::pending().await,
    }
}

/// Waits until a retired connection must end; returns why it was retired.
async fn over(retired: &Option<Retired>) -> &'static str {
    match retired {
        Some(retired) => {
            sleep_until((retired.since + RETIREMENT_GRACE + RETIREMENT_END).into()).await;
            retired.reason
        }
        None => std::future::pending().await,
    }
}

/// Returns once the connection has been silent for longer than its phase allows.
///
/// It looks again at the latest after the shortest timeout, since a phase may change to a shorter one meanwhile.
async fn silent_for_too_long(activity: &Activity, state: &State) -> &'static str {
    let timeouts = &state.timeouts;
    let mut has_looked = false;
    loop {
        let now = clock::now();
        let look_again = now + timeouts.header.min(timeouts.idle).min(timeouts.first_request);
        let wake = match activity.due(timeouts) {
            Some((due, reason)) if due <= now => {
                if has_looked {
                    return reason;
                }
                // After a pause bytes may have come in time that the runtime has not heard of yet.
                sleep(SECOND_LOOK).await;
                has_looked = true;
                continue;
            }
            Some((due, _)) => due.min(look_again),
            None => look_again,
        };
        sleep_until(wake.into()).await;
    }
}

/// Returns after [`LINGER`] if the connection idles then.
async fn linger(activity: &Activity) {
    loop {
        sleep(LINGER).await;
        if activity.is_idle() {
            sleep(SECOND_LOOK).await;
        }
        if activity.is_idle() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
