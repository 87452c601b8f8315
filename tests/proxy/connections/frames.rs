//! HTTP/2 by hand: frames in the order, number and shape that a test wants. Every figure is of RFC 9113.

use std::net::SocketAddr;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use xks_harness::client::{tls, tls_config};
use xks_harness::proxy::PATIENCE;
use xks_harness::{Http, XksRequest};

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const PRIORITY: u8 = 0x2;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
pub(crate) const CONTINUATION: u8 = 0x9;

/// Of HEADERS and DATA; on SETTINGS and PING the same bit is ACK.
pub(crate) const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY frame.
    pub(crate) fn error_code(&self) -> u32 {
        let offset = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[offset..offset + 4].try_into().unwrap())
    }

    fn is_ack(&self) -> bool {
        self.flags & ACK != 0
    }
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's headers in HPACK: literals that nobody indexes, without Huffman coding.
pub(crate) fn header_block(request: &XksRequest, authority: &str) -> Vec<u8> {
    let url = format!("https://{authority}{}", request.path);
    let headers: Vec<_> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut block = Vec::new();
    let pseudo = [
        (":method", request.method.as_str()),
        (":scheme", "https"),
        (":authority", authority),
        (":path", request.path.as_str()),
    ];
    for (name, value) in pseudo.iter().chain(&headers) {
        literal(&mut block, name, value);
    }
    if let Some(signing) = &request.signing {
        for (name, value) in signing.headers(request.method.as_str(), &url, &headers, &request.body) {
            literal(&mut block, name.as_str(), value.to_str().unwrap());
        }
    }
    block
}

/// Appends a literal header field without indexing.
pub(crate) fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        // An integer with a prefix of 7 bits (RFC 7541 section 5.1).
        match text.len() {
            length @ ..127 => block.push(u8::try_from(length).unwrap()),
            length => {
                block.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
        }
        block.extend_from_slice(text.as_bytes());
    }
}

/// An HTTP/2 connection that a test drives frame by frame.
pub(crate) struct FrameConnection {
    stream: TlsStream<TcpStream>,
    unread: Vec<u8>,
    pub(crate) authority: String,
    /// Whether PINGs are acknowledged. Who does not never lets an orderly end of the connection be completed.
    pub(crate) answers_pings: bool,
}

impl FrameConnection {
    /// Connects and begins: both sides have sent their SETTINGS, and the proxy's are acknowledged.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, tls_config(Http::Two)).await
    }

    /// The same with a TLS configuration, whose ALPN is to agree on HTTP/2.
    pub(crate) async fn open_with(address: SocketAddr, config: ClientConfig) -> Self {
        let stream = tls(address, config).await.unwrap();
        let authority = format!("localhost:{}", address.port());
        let mut connection = Self { stream, unread: Vec::new(), authority, answers_pings: true };
        connection.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        connection.next_of(SETTINGS).await;
        connection
    }

    /// This end's address, as the proxy logs it.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.stream.get_ref().0.local_addr().unwrap()
    }

    /// Sends bytes; false where the other side takes no more.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.is_ok()
    }

    /// Sends a request's HEADERS alone.
    pub(crate) async fn send_head(&mut self, stream: u32, request: &XksRequest) {
        let block = header_block(request, &self.authority);
        self.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
    }

    /// Sends the rest of a request's body.
    pub(crate) async fn send_body(&mut self, stream: u32, body: &[u8]) {
        self.send(&frame(DATA, END_STREAM, stream, body)).await;
    }

    /// The next frame, `None` at the connection's end. SETTINGS and PING are acknowledged, these where wanted.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let frame = timeout(PATIENCE, self.read_frame()).await.expect("no frame came in time")?;
        let is_answered = frame.kind == SETTINGS || frame.kind == PING && self.answers_pings;
        if is_answered && !frame.is_ack() {
            let payload = if frame.kind == PING { frame.payload.as_slice() } else { &[] };
            self.send(&self::frame(frame.kind, ACK, 0, payload)).await;
        }
        Some(frame)
    }

    /// The next frame of a kind; what comes before it is passed over.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection closed");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The answer's body on a stream, or the code with which the stream was reset.
    pub(crate) async fn answer(&mut self, stream: u32) -> Result<Vec<u8>, u32> {
        let mut body = Vec::new();
        loop {
            let frame = self.next().await.expect("the connection closed");
            match frame.kind {
                _ if frame.stream != stream => {}
                RST_STREAM => return Err(frame.error_code()),
                DATA => body.extend_from_slice(&frame.payload),
                _ => {}
            }
            if frame.stream == stream && frame.flags & END_STREAM != 0 {
                return Ok(body);
            }
        }
    }

    /// Everything that comes until the other side closes.
    pub(crate) async fn until_closed(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// The two directions, for a test that sends without reading.
    pub(crate) fn into_stream(self) -> TlsStream<TcpStream> {
        self.stream
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, rest)) = self.unread.split_first_chunk::<9>() {
                let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
                if rest.len() >= length {
                    let frame = Frame {
                        kind: head[3],
                        flags: head[4],
                        stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
                        payload: rest[..length].to_vec(),
                    };
                    self.unread.drain(..9 + length);
                    return Some(frame);
                }
            }
            let mut buffer = [0; 4096];
            // A reset is an end too: what came before it has been read.
            let count = self.stream.read(&mut buffer).await.unwrap_or(0);
            if count == 0 {
                return None;
            }
            self.unread.extend_from_slice(&buffer[..count]);
        }
    }
}
