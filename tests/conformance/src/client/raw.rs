//! HTTP/1.1 byte by byte over TLS, for what no HTTP library would send.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mock_kms::xks::{Client, Failure, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// One answer as it came.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// Status.
    pub status: u16,
    /// Head, status line included.
    pub head: String,
    /// Body, as far as its length was told or the connection went.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// Whether a header has a value, case aside.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.head.lines().filter_map(|line| line.split_once(':')).any(|(found, text)| {
            found.trim().eq_ignore_ascii_case(name) && text.trim().to_ascii_lowercase().contains(value)
        })
    }
}

/// What went over a connection, for the report.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    /// Whether the protocol was agreed on by ALPN.
    pub has_alpn: bool,
    /// Every byte sent.
    pub sent: Vec<u8>,
    /// The answers, and how the connection ended where somebody waited for that.
    pub answers: String,
}

/// A connection for bytes.
pub struct Raw {
    stream: TlsStream<TcpStream>,
    unread: Vec<u8>,
    transcript: Arc<Mutex<Transcript>>,
}

impl Raw {
    /// Connects and agrees on HTTP/1.1.
    ///
    /// # Errors
    /// When there is no TLS connection.
    pub async fn open(client: &Client, proxy: &Proxy) -> Result<Self, Failure> {
        let stream = client.open_tls(proxy).await?;
        let has_alpn = stream.get_ref().1.alpn_protocol().is_some();
        let transcript = Arc::new(Mutex::new(Transcript { has_alpn, ..Transcript::default() }));
        Ok(Self { stream, unread: Vec::new(), transcript })
    }

    /// What has gone over it so far, kept up to date.
    #[must_use]
    pub fn transcript(&self) -> Arc<Mutex<Transcript>> {
        Arc::clone(&self.transcript)
    }

    fn write_down(&self, change: impl FnOnce(&mut Transcript)) {
        change(&mut self.transcript.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sends bytes. A peer that has closed meanwhile is no failure: what it answered can still be read.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.write_down(|transcript| transcript.sent.extend_from_slice(bytes));
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next final answer; `None` where the connection closes, or nothing comes in time.
    pub async fn answer(&mut self, patience: Duration) -> Option<RawAnswer> {
        let answer = self.next_answer(patience).await;
        let text = answer.as_ref().map_or("no answer\n".to_owned(), |answer| {
            format!("{}{}\n", answer.head.replace("\r\n", "\n"), String::from_utf8_lossy(&answer.body))
        });
        self.write_down(|transcript| transcript.answers.push_str(&text));
        answer
    }

    async fn next_answer(&mut self, patience: Duration) -> Option<RawAnswer> {
        loop {
            let end = self.until(patience, |unread| find(unread, b"\r\n\r\n").map(|at| at + 4)).await?;
            let head = String::from_utf8_lossy(&self.unread.drain(..end).collect::<Vec<_>>()).into_owned();
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            if (100..200).contains(&status) {
                continue;
            }
            let mut answer = RawAnswer { status, head, body: Vec::new() };
            let length =
                answer.head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse::<usize>().ok())
                        .flatten()
                });
            if let Some(length) = length.filter(|length| *length <= 1_000_000) {
                let _ = self.until(patience, |unread| (unread.len() >= length).then_some(length)).await;
                let length = length.min(self.unread.len());
                answer.body = self.unread.drain(..length).collect();
            } else if answer.has("transfer-encoding", "chunked") {
                let _ = self.until(patience, |unread| find(unread, b"0\r\n\r\n").map(|at| at + 5)).await;
                let length = find(&self.unread, b"0\r\n\r\n").map_or(self.unread.len(), |at| at + 5);
                answer.body = self.unread.drain(..length).collect();
            }
            return Some(answer);
        }
    }

    /// Whether the other side closes within `patience`, whatever it sends before.
    pub async fn closes_within(&mut self, patience: Duration) -> bool {
        timeout(patience, async { while self.read().await {} }).await.is_ok()
    }

    async fn until(&mut self, patience: Duration, found: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
        let wait = async {
            loop {
                if let Some(at) = found(&self.unread) {
                    return Some(at);
                }
                if !self.read().await {
                    return None;
                }
            }
        };
        timeout(patience, wait).await.ok().flatten()
    }

    /// False at the end. A reset counts as an end: what came before it has been read.
    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
