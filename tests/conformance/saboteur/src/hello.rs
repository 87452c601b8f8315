//! Looks at a client's first bytes before TLS does, and answers by hand what rustls never would: old versions and weak
//! suites.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::fault::Fault;
use crate::hsm::random;
use crate::proxy::Proxy;

/// First byte of a TLS handshake record.
const HANDSHAKE: u8 = 22;
const TLS_1_0: u16 = 0x0301;
const TLS_1_1: u16 = 0x0302;
const TLS_1_2: u16 = 0x0303;

/// Whether a suite is of the past: RSA key exchange, CBC, RC4, 3DES, NULL.
fn is_weak(suite: u16) -> bool {
    /// No suite but a signal (RFC 5746).
    const EMPTY_RENEGOTIATION_INFO: u16 = 0x00ff;
    suite != EMPTY_RENEGOTIATION_INFO && (suite >> 8 == 0 || (0xc001..=0xc028).contains(&suite))
}

/// What comes of a connection's first bytes.
pub(crate) enum FirstBytes {
    /// TLS may go on as usual.
    Tls,
    /// The client speaks HTTP in the clear, and is served.
    Cleartext,
    /// The connection has had its answer.
    Answered,
}

/// Waits for the first record, and leaves it to be read.
pub(crate) async fn look(proxy: &Proxy, stream: &mut TcpStream) -> io::Result<FirstBytes> {
    let wants_hello = [Fault::Tls10Accepted, Fault::Tls11Accepted, Fault::WeakSuiteAccepted];
    let looks_at_hello = wants_hello.into_iter().any(|fault| proxy.has(fault));
    if !looks_at_hello && !proxy.has(Fault::CleartextServed) {
        return Ok(FirstBytes::Tls);
    }
    let record = peek_record(stream).await?;
    if record[0] != HANDSHAKE {
        let is_served = proxy.has(Fault::CleartextServed);
        return Ok(if is_served { FirstBytes::Cleartext } else { FirstBytes::Tls });
    }
    let chosen = ClientHello::parse(&record).and_then(|hello| choose(proxy, &hello));
    let Some((version, suite)) = chosen else { return Ok(FirstBytes::Tls) };
    stream.write_all(&server_hello(version, suite)).await?;
    stream.shutdown().await?;
    Ok(FirstBytes::Answered)
}

/// The first record, whole if it is one of TLS.
async fn peek_record(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 15];
    loop {
        let count = stream.peek(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let needed = match buffer[..count] {
            [HANDSHAKE, _, _, high, low, ..] => 5 + usize::from(u16::from_be_bytes([high, low])),
            [HANDSHAKE, ..] => 5,
            _ => 1,
        };
        if count >= needed.min(buffer.len()) {
            buffer.truncate(count);
            return Ok(buffer);
        }
        // Peeking does not wait for more than there is.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What the decision needs of a ClientHello.
struct ClientHello {
    version: u16,
    suites: Vec<u16>,
}

impl ClientHello {
    /// RFC 5246 section 7.4.1.2, behind the record's five bytes and the handshake's four.
    fn parse(record: &[u8]) -> Option<Self> {
        let mut rest = record.get(9..)?;
        let version = number(take(&mut rest, 2)?);
        take(&mut rest, 32)?;
        let session_id_bytes = usize::from(take(&mut rest, 1)?[0]);
        take(&mut rest, session_id_bytes)?;
        let suites_bytes = usize::from(number(take(&mut rest, 2)?));
        let suites = take(&mut rest, suites_bytes)?.chunks_exact(2).map(number).collect();
        Some(Self { version, suites })
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Version and suite that a server of the past would have chosen.
fn choose(proxy: &Proxy, hello: &ClientHello) -> Option<(u16, u16)> {
    let accepts_version = match hello.version {
        TLS_1_0 => proxy.has(Fault::Tls10Accepted),
        TLS_1_1 => proxy.has(Fault::Tls11Accepted),
        // The suites of TLS 1.3 begin with 0x13, those that the specification wants end a strong list.
        TLS_1_2 => {
            let is_strong = |suite: &u16| suite >> 8 == 0x13 || [0xc02c, 0xc030].contains(suite);
            proxy.has(Fault::WeakSuiteAccepted) && !hello.suites.iter().any(is_strong)
        }
        _ => false,
    };
    let weak = hello.suites.iter().copied().find(|suite| is_weak(*suite));
    weak.filter(|_| accepts_version).map(|suite| (hello.version, suite))
}

/// One record with a ServerHello that has no extensions.
fn server_hello(version: u16, suite: u16) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend(random::<32>());
    body.push(0);
    body.extend(suite.to_be_bytes());
    body.push(0);
    let handshake_length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[2], &handshake_length[1..], &body].concat();
    let record_length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[HANDSHAKE], &version.to_be_bytes()[..], &record_length, &message].concat()
}
