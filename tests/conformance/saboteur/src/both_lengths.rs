//! [`Fault::BothLengthsKeptAlive`](crate::Fault::BothLengthsKeptAlive): hyper ends a connection after a request with two
//! lengths, so the length that it does not go by is hidden from it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"\ntransfer-encoding:";
/// As long as the name that it stands for.
const HIDDEN: &[u8] = b"x-ignored-size:";

/// Renames Content-Length where Transfer-Encoding arrives along with it.
pub(crate) struct LengthHidden<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for LengthHidden<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        hide_length(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

fn hide_length(bytes: &mut [u8]) {
    let find = |bytes: &[u8], name: &[u8]| {
        bytes.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name))
    };
    if let (Some(at), Some(_)) = (find(bytes, LENGTH), find(bytes, ENCODING)) {
        bytes[at..at + LENGTH.len()].copy_from_slice(HIDDEN);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LengthHidden<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
