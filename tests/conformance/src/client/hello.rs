//! ClientHello bytes by hand, since no modern library offers what must be refused, and the first record of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A protocol version as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// SSL 3.0.
    Ssl3,
    /// TLS 1.0.
    Tls10,
    /// TLS 1.1.
    Tls11,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ssl3 => "SSL 3.0",
            Self::Tls10 => "TLS 1.0",
            Self::Tls11 => "TLS 1.1",
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}

impl Version {
    const fn legacy(self) -> [u8; 2] {
        match self {
            Self::Ssl3 => [3, 0],
            Self::Tls10 => [3, 1],
            Self::Tls11 => [3, 2],
            Self::Tls12 | Self::Tls13 => [3, 3],
        }
    }

    fn from_wire(bytes: [u8; 2]) -> Option<Self> {
        Some(match bytes {
            [3, 0] => Self::Ssl3,
            [3, 1] => Self::Tls10,
            [3, 2] => Self::Tls11,
            [3, 3] => Self::Tls12,
            [3, 4] => Self::Tls13,
            _ => return None,
        })
    }
}

/// What the server made of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It goes on.
    Hello {
        /// Chosen version.
        version: Option<Version>,
        /// Chosen suite.
        suite: u16,
        /// Chosen compression.
        compression: u8,
    },
    /// An alert, by its number (RFC 8446 section 6).
    Alert(u8),
    /// The connection ended without a word.
    Closed,
    /// Nothing came in time.
    Silent,
    /// Something else, by its first bytes.
    Other(Vec<u8>),
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hello { version: Some(version), suite, .. } => {
                write!(f, "ServerHello: {version}, suite 0x{suite:04x}")
            }
            Self::Hello { version: None, suite, .. } => {
                write!(f, "ServerHello of an unknown version, suite 0x{suite:04x}")
            }
            Self::Alert(number) => write!(f, "alert {number}"),
            Self::Closed => f.write_str("connection closed"),
            Self::Silent => f.write_str("no answer"),
            Self::Other(bytes) => write!(f, "bytes {bytes:02x?}"),
        }
    }
}

/// A ClientHello.
#[derive(Clone, Debug)]
pub struct Hello<'a> {
    /// Highest version offered; alone where it is TLS 1.3.
    pub version: Version,
    /// Suites offered.
    pub suites: &'a [u16],
    /// Protocols offered by ALPN; none leaves the extension out.
    pub alpn: &'a [&'a [u8]],
    /// Compression methods offered.
    pub compressions: &'a [u8],
    /// Server name.
    pub host: &'a str,
}

impl Hello<'_> {
    /// The record.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::from(self.version.legacy());
        body.extend([0x5a; 32]);
        // A session id as middleboxes expect it of TLS 1.3.
        let session_id: &[u8] = if self.version == Version::Tls13 { &[0x11; 32] } else { &[] };
        body.extend(sized8(session_id));
        body.extend(sized16(&self.suites.iter().flat_map(|suite| suite.to_be_bytes()).collect::<Vec<_>>()));
        body.extend(sized8(self.compressions));
        if self.version != Version::Ssl3 {
            body.extend(sized16(&self.extensions()));
        }
        let length = u32::try_from(body.len()).unwrap_or_default().to_be_bytes();
        let handshake = [&[1, length[1], length[2], length[3]], body.as_slice()].concat();
        let record_version = if self.version == Version::Ssl3 { [3, 0] } else { [3, 1] };
        [&[22, record_version[0], record_version[1]], sized16(&handshake).as_slice()].concat()
    }

    fn extensions(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut add = |number: u16, content: &[u8]| {
            all.extend(number.to_be_bytes());
            all.extend(sized16(content));
        };
        let name = [&[0], sized16(self.host.as_bytes()).as_slice()].concat();
        add(0, &sized16(&name));
        add(10, &sized16(&[0, 29, 0, 23, 0, 24]));
        add(11, &[1, 0]);
        add(13, &sized16(&[4, 3, 5, 3, 6, 3, 8, 4, 8, 5, 8, 6, 4, 1, 5, 1, 6, 1, 2, 1, 2, 3]));
        add(23, &[]);
        add(0xff01, &[0]);
        if !self.alpn.is_empty() {
            add(16, &sized16(&self.alpn.iter().flat_map(|name| sized8(name)).collect::<Vec<_>>()));
        }
        if self.version == Version::Tls13 {
            add(43, &[2, 3, 4]);
            add(45, &[1, 1]);
            // Any 32 bytes are a public key of X25519.
            let share = [&[0, 29], sized16(&[9; 32]).as_slice()].concat();
            add(51, &sized16(&share));
        }
        all
    }

    /// Sends it and reads the first record of the answer.
    ///
    /// # Errors
    /// When there is no TCP connection.
    pub async fn exchange(&self, address: SocketAddr, patience: Duration) -> std::io::Result<Reply> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&self.bytes()).await?;
        let mut head = [0; 5];
        match timeout(patience, stream.read_exact(&mut head)).await {
            Err(_) => return Ok(Reply::Silent),
            Ok(Err(_)) => return Ok(Reply::Closed),
            Ok(Ok(_)) => {}
        }
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if !matches!(head[0], 21 | 22) || length > 20_000 {
            return Ok(Reply::Other(head.to_vec()));
        }
        let mut record = vec![0; length];
        match timeout(patience, stream.read_exact(&mut record)).await {
            Ok(Ok(_)) => Ok(read_record(head[0], &record)),
            _ => Ok(Reply::Closed),
        }
    }
}

fn read_record(kind: u8, record: &[u8]) -> Reply {
    if kind == 21 {
        return record.get(1).map_or(Reply::Closed, |number| Reply::Alert(*number));
    }
    server_hello(record).unwrap_or_else(|| Reply::Other(record.iter().copied().take(8).collect()))
}

/// A ServerHello; a HelloRetryRequest has the same form and says as much of version and suite.
fn server_hello(record: &[u8]) -> Option<Reply> {
    if *record.first()? != 2 {
        return None;
    }
    let version = [*record.get(4)?, *record.get(5)?];
    let after_id = 39 + usize::from(*record.get(38)?);
    let suite = u16::from_be_bytes([*record.get(after_id)?, *record.get(after_id + 1)?]);
    let compression = *record.get(after_id + 2)?;
    let mut version = Version::from_wire(version);
    let mut rest = record.get(after_id + 5..).unwrap_or_default();
    while let [a, b, c, d, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let content = more.get(..length)?;
        if let ([0, 43], [x, y]) = ([*a, *b], content) {
            version = Version::from_wire([*x, *y]);
        }
        rest = &more[length..];
    }
    Some(Reply::Hello { version, suite, compression })
}

fn sized8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)], bytes].concat()
}

fn sized16(bytes: &[u8]) -> Vec<u8> {
    [u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().as_slice(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_has_the_lengths_that_it_says() {
        for version in [Version::Ssl3, Version::Tls12, Version::Tls13] {
            let hello = Hello {
                version,
                suites: &[0x1302, 0xc030],
                alpn: &[b"h2"],
                compressions: &[0],
                host: "h.example",
            };
            let bytes = hello.bytes();
            assert_eq!(usize::from(u16::from_be_bytes([bytes[3], bytes[4]])), bytes.len() - 5);
            assert_eq!(usize::from(u16::from_be_bytes([bytes[7], bytes[8]])), bytes.len() - 9);
        }
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(read_record(21, &[2, 70]), Reply::Alert(70));
        let mut hello = vec![2, 0, 0, 0, 3, 3];
        hello.extend([0; 32]);
        hello.extend([0, 0x13, 0x02, 0, 0, 6, 0, 43, 0, 2, 3, 4]);
        let expected = Reply::Hello { version: Some(Version::Tls13), suite: 0x1302, compression: 0 };
        assert_eq!(read_record(22, &hello), expected);
        assert!(matches!(read_record(22, &[2, 0]), Reply::Other(_)));
    }
}
