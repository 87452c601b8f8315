//! Ends of connections that no network is needed for.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, duplex};
use tokio::task::{JoinHandle, coop};

use super::*;
use crate::metrics::Metrics;
use crate::server::admission::Connections;
use crate::server::service::tests::{peer, state, tls};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// The head of a frame of no known kind, and how long the frame is.
const UNKNOWN: &[u8] = &[0, 0x20, 0, 0xfa, 0, 0, 0, 0, 0];
const UNKNOWN_BYTES: usize = 0x2000;
const GOAWAY: u8 = 7;
const FRAME_HEAD_BYTES: usize = 9;

fn bytes<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

/// The rest is in boxes.
#[test]
fn a_connections_task_is_small() {
    assert!(bytes(serve) <= 256, "{}", bytes(serve));
}

fn server(timeouts: impl FnOnce(&mut crate::server::Timeouts)) -> Arc<State> {
    let mut state = state(Arc::new(Metrics::new()), None);
    timeouts(&mut state.timeouts);
    Arc::new(state)
}

fn spawn_http2(
    peer: Peer,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> JoinHandle<Option<&'static str>> {
    peer.activity.established(true);
    let peer = Arc::new(peer);
    let io = TokioIo::new(Watched::new(io, Arc::clone(&peer.activity)));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    tokio::spawn(drive(Box::pin(builder.serve_connection(io, service_fn(service(&peer)))), peer))
}

/// A client that sends as fast as it is read from, and reads everything.
struct Flood {
    unread: Vec<u8>,
}

impl AsyncRead for Flood {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // As a socket that always has something.
        let proceed = ready!(coop::poll_proceed(context));
        while self.unread.len() < buffer.remaining() {
            self.unread.extend_from_slice(UNKNOWN);
            let end = self.unread.len() + UNKNOWN_BYTES;
            self.unread.resize(end, 0);
        }
        let rest = self.unread.split_off(buffer.remaining());
        buffer.put_slice(&self.unread);
        self.unread = rest;
        proceed.made_progress();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Has time pass while something goes on that never waits for it.
async fn pass(time: Duration) {
    const STEP: Duration = Duration::from_millis(500);
    for _ in 0..time.as_millis() / STEP.as_millis() {
        tokio::time::advance(STEP).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_does_not_stop_the_clocks() {
    let state = server(|_| {});
    let (_switch, drain) = Drain::channel();
    let peer = peer(&state, Connections::new(1, None).admit().await, drain);
    let connection = spawn_http2(peer, Flood { unread: [PREFACE, SETTINGS].concat() });
    pass(Duration::from_secs(1)).await;
    assert!(!connection.is_finished());
    state.tls.publish(tls(), true);
    pass(Duration::from_secs(60)).await;
    assert!(connection.is_finished(), "it outlives what admitted it");
    assert_eq!(connection.await.unwrap(), Some("trust_changed"));
}

/// And that it must go.
#[tokio::test(start_paused = true)]
async fn a_flood_does_not_hide_the_end() {
    let connections = Connections::new(1, None);
    let (_switch, drain) = Drain::channel();
    let peer = peer(&server(|_| {}), connections.admit().await, drain);
    let connection = spawn_http2(peer, Flood { unread: [PREFACE, SETTINGS].concat() });
    pass(Duration::from_secs(1)).await;
    connections.cut();
    assert_eq!(connection.await.unwrap(), Some("drain_over"));
}

#[tokio::test(start_paused = true)]
async fn a_farewell_ends_when_the_place_is_given_away() {
    let state = server(|timeouts| timeouts.first_request = Duration::from_millis(10));
    let connections = Connections::new(1, None);
    let (_switch, drain) = Drain::channel();
    let (mut near, far) = duplex(65_536);
    let connection = spawn_http2(peer(&state, connections.admit().await, drain), far);
    near.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    // It says farewell.
    loop {
        let mut head = [0; FRAME_HEAD_BYTES];
        near.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        near.read_exact(&mut payload).await.unwrap();
        if head[3] == GOAWAY {
            break;
        }
    }
    let began_at = tokio::time::Instant::now();
    let _newcomer = connections.admit().await;
    assert_eq!(connection.await.unwrap(), Some("no_first_request"));
    assert!(began_at.elapsed() < FAREWELL, "{:?}", began_at.elapsed());
}

/// Its second half is on its way when the connection is to go.
#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_when_the_grace_ends_is_served() {
    let state = server(|_| {});
    let (_switch, drain) = Drain::channel();
    let peer = Arc::new(peer(&state, Connections::new(1, None).admit().await, drain));
    peer.activity.established(false);
    let (mut near, far) = duplex(65_536);
    let io = TokioIo::new(Watched::new(far, Arc::clone(&peer.activity)));
    let served = http1::Builder::new().serve_connection(io, service_fn(service(&peer)));
    let connection = tokio::spawn(drive(Box::pin(served), peer));
    state.tls.publish(tls(), true);
    pass(RETIREMENT_GRACE.saturating_sub(Duration::from_secs(1))).await;
    near.write_all(b"GET /ping HTTP/1.1\r\n").await.unwrap();
    pass(Duration::from_secs(3)).await;
    near.write_all(b"host: h\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection: close"), "{answer:?}");
    assert_eq!(connection.await.unwrap(), Some("trust_changed"));
}
