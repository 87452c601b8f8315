//! The accept loop and its end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::admission::Connections;
use super::{State, connection};

/// How long connections that are cut at the end of the drain, and their requests, have to be gone.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// Tells connections that the listener drains.
#[derive(Clone)]
pub struct Drain(watch::Receiver<bool>);

impl Drain {
    /// A switch and what it switches.
    #[must_use]
    pub fn channel() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Whether draining has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until draining begins. A dropped switch counts as one that was thrown.
    pub async fn begun(&self) {
        let mut receiver = self.0.clone();
        let _ = receiver.wait_for(|is_draining| *is_draining).await;
    }
}

// SPEC(TRANS-HTTP-001): the operations are served over TLS alone: every connection of this listener begins with it.
/// Accepts and serves connections until `drain` begins, then waits for those that are open, at most as long as the
/// drain timeout, and cuts those that are left: nothing is answered any more when it returns how many these were.
pub async fn serve(state: Arc<State>, listener: TcpListener, drain: Drain) -> usize {
    let connections = Connections::new(state.limits.max_connections, Some(state.metrics.connections.clone()));
    let accepting = accept(&state, &listener, &connections, &drain);
    tokio::select! {
        () = accepting => {}
        () = drain.begun() => {}
    }
    accept_waiting(&state, listener, &connections, &drain).await;
    let _ = timeout(state.timeouts.drain, connections.wait_until_none()).await;
    let left = connections.count();
    connections.cut();
    let _ = timeout(CUT_PATIENCE, connections.wait_until_none()).await;
    left
}

async fn accept(state: &Arc<State>, listener: &TcpListener, connections: &Arc<Connections>, drain: &Drain) {
    loop {
        if let Err(error) = accept_one(state, listener, connections, drain).await {
            // Strangers can bring it about.
            if state.has_line_for_stranger() {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            connections.recover(&error).await;
        }
    }
}

async fn accept_one(
    state: &Arc<State>,
    listener: &TcpListener,
    connections: &Arc<Connections>,
    drain: &Drain,
) -> io::Result<()> {
    let (stream, address) = listener.accept().await?;
    begin(state, stream, address, connections, drain).await
}

async fn begin(
    state: &Arc<State>,
    stream: TcpStream,
    address: SocketAddr,
    connections: &Arc<Connections>,
    drain: &Drain,
) -> io::Result<()> {
    // Small answers must not wait for the client's acknowledgement of the one before. Fails on none but a dead connection.
    let _ = stream.set_nodelay(true);
    let place = connections.admit().await;
    tokio::spawn(connection::serve(Arc::clone(state), stream, address, place, drain.clone()));
    Ok(())
}

/// The system has completed these connections already: whoever opened one may have sent a request. The system is
/// asked itself, since the runtime may not have heard of the last of them.
async fn accept_waiting(
    state: &Arc<State>,
    listener: TcpListener,
    connections: &Arc<Connections>,
    drain: &Drain,
) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, address)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        let Ok(stream) = stream else { continue };
        let beginning = begin(state, stream, address, connections, drain);
        if timeout(state.timeouts.drain, beginning).await.is_err() {
            return;
        }
    }
}
