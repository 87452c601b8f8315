//! HTTP/1.1 by hand: a TLS connection that sends whatever bytes a test wants and reads the answers to them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::client::{Answer, Http, tls, tls_config};
use crate::proxy::PATIENCE;

/// A connection for bytes that no HTTP library would send.
pub struct RawConnection {
    stream: TlsStream<TcpStream>,
    unread: Vec<u8>,
}

impl RawConnection {
    /// Connects and agrees on HTTP/1.1.
    ///
    /// # Panics
    /// If that fails.
    pub async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, tls_config(Http::One)).await
    }

    /// The same with a TLS configuration.
    ///
    /// # Panics
    /// If that fails.
    pub async fn open_with(address: SocketAddr, config: ClientConfig) -> Self {
        Self { stream: tls(address, config).await.unwrap(), unread: Vec::new() }
    }

    /// This end's address, as the proxy logs it.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.stream.get_ref().0.local_addr().unwrap()
    }

    /// Sends bytes. A peer that has closed meanwhile is no failure: what it answered before can still be read.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next answer to a request that is not HEAD, informational ones included; `None` where the connection closes
    /// instead.
    ///
    /// # Panics
    /// If it does not come in time, or is no HTTP/1.1 answer with a content-length.
    pub async fn answer(&mut self) -> Option<Answer> {
        let head_end = loop {
            if let Some(start) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break start + 4;
            }
            if !self.read_more().await {
                assert!(self.unread.is_empty(), "half an answer: {:?}", Bytes::copy_from_slice(&self.unread));
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..head_end).collect()).unwrap();
        let (status_line, header_lines) = head.trim_end().split_once("\r\n").unwrap_or((head.trim_end(), ""));
        let status = status_line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse::<StatusCode>().unwrap();
        let headers: HeaderMap = header_lines.split_terminator("\r\n").map(header).collect();
        let body_bytes =
            headers.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
        assert!(status.is_informational() || headers.contains_key("content-length"), "{head}");
        while self.unread.len() < body_bytes {
            assert!(self.read_more().await, "the connection closed inside a body: {head}");
        }
        let body = Bytes::from_iter(self.unread.drain(..body_bytes));
        Some(Answer { status, headers, body })
    }

    /// Sends a request and reads its answer.
    pub async fn exchange(&mut self, request: &[u8]) -> Option<Answer> {
        self.send(request).await;
        self.answer().await
    }

    /// Waits until the other side closes without sending anything more.
    ///
    /// # Panics
    /// If it sends something, or does not close in time.
    pub async fn expect_close(&mut self) {
        while self.read_more().await {}
        assert!(self.unread.is_empty(), "not a close: {:?}", Bytes::copy_from_slice(&self.unread));
    }

    /// Whether nothing comes, and no close either, for as long as `quiet`.
    pub async fn is_silent_for(&mut self, quiet: Duration) -> bool {
        self.unread.is_empty() && timeout(quiet, self.read_some()).await.is_err()
    }

    async fn read_more(&mut self) -> bool {
        timeout(PATIENCE, self.read_some()).await.expect("nothing came in time")
    }

    /// False at the end. A reset counts as an end: what came before it has been read.
    async fn read_some(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read: io::Result<usize> = self.stream.read(&mut buffer).await;
        let count = read.unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

fn header(line: &str) -> (HeaderName, HeaderValue) {
    let (name, value) = line.split_once(": ").unwrap();
    (name.parse().unwrap(), value.parse().unwrap())
}
