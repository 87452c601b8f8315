//! Connections that are slow, cut in pieces or dropped, for tests of a proxy.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How a request's connection differs from KMS's. A request with any of it has a connection of its own.
///
/// Bytes are those inside TLS. All of it counts towards the time of a try.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shaping {
    /// Whether a new connection is opened, and closed afterwards, even if one is idle.
    pub has_own_connection: bool,
    /// Pause between TCP and TLS.
    pub before_tls: Duration,
    /// Pause between TLS and the request's first byte.
    pub before_request: Duration,
    /// Most bytes sent at once.
    pub piece_bytes: Option<usize>,
    /// Pause between pieces.
    pub between_pieces: Duration,
    /// Drops the connection, without a goodbye of TLS, after so many bytes were sent.
    pub drop_after_bytes: Option<usize>,
    /// Pause before the first byte of the answer is read.
    pub before_reading: Duration,
}

impl Shaping {
    /// Whether a connection is needed that no other request uses.
    #[must_use]
    pub fn needs_own_connection(&self) -> bool {
        *self != Self::default()
    }
}

/// A stream under a [`Shaping`].
pub(super) struct Shaped<S> {
    stream: S,
    shaping: Shaping,
    sent_bytes: usize,
    read_pause: Pin<Box<Sleep>>,
    write_pause: Pin<Box<Sleep>>,
}

impl<S> Shaped<S> {
    /// Begins the pauses of a stream that has just been opened.
    pub(super) fn new(stream: S, shaping: &Shaping) -> Self {
        let pause = |duration| Box::pin(sleep_until(Instant::now() + duration));
        Self {
            stream,
            shaping: shaping.clone(),
            sent_bytes: 0,
            read_pause: pause(shaping.before_request + shaping.before_reading),
            write_pause: pause(shaping.before_request),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Shaped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.read_pause.as_mut().poll(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Shaped<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.write_pause.as_mut().poll(context));
        let until_drop = self.shaping.drop_after_bytes.map_or(usize::MAX, |limit| limit - self.sent_bytes);
        if until_drop == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "dropped on purpose")));
        }
        let most = bytes.len().min(until_drop).min(self.shaping.piece_bytes.unwrap_or(usize::MAX).max(1));
        let this = &mut *self;
        let sent = std::task::ready!(Pin::new(&mut this.stream).poll_write(context, &bytes[..most]))?;
        this.sent_bytes += sent;
        this.write_pause.as_mut().reset(Instant::now() + this.shaping.between_pieces);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shaping.drop_after_bytes.is_some_and(|limit| limit == self.sent_bytes) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
