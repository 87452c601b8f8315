//! PROXY protocol version 2: what a load balancer says of the client before the client's own first byte.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2. Read from configured networks alone: from
//! anybody else it would be a way to choose one's own address.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;
/// Longest rest: addresses, and fields that nothing here needs.
const MAX_REST_BYTES: usize = 2048;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The client's own address.
    pub client: SocketAddr,
    /// Through which load balancer.
    pub balancer: Option<SocketAddr>,
}

/// Why a header is not taken.
#[derive(Debug, Error)]
pub enum HeaderFault {
    /// Something else came.
    #[error(
        "the connection does not begin with a PROXY protocol version 2 header: switch it on in the load balancer"
    )]
    NoHeader,
    /// Another version than 2.
    #[error("version {0} of the PROXY protocol is not known")]
    Version(u8),
    /// A command or an address family that means nothing here.
    #[error("the command or the address family of the PROXY header is not known")]
    Unknown,
    /// More than any balancer sends.
    #[error("the PROXY header is longer than {MAX_REST_BYTES} bytes")]
    TooLong,
    /// Less than its address family needs.
    #[error("the PROXY header is shorter than its addresses")]
    TooShort,
    /// The connection ended first.
    #[error("the PROXY header did not come whole: {0}")]
    Broken(#[from] io::Error),
}

/// The client's address: that of the connection, or what a load balancer says in a header, which is read then and nothing
/// behind it.
///
/// # Errors
/// [`HeaderFault`] where a load balancer sends none that is good.
pub async fn client_address(
    stream: &mut (impl AsyncRead + Unpin),
    address: SocketAddr,
    balancers: &[IpNet],
) -> Result<ClientAddress, HeaderFault> {
    // A listener on "::" sees IPv4 clients as IPv6 ones.
    let ip = address.ip().to_canonical();
    if !balancers.iter().any(|network| network.contains(&ip)) {
        return Ok(ClientAddress { client: address, balancer: None });
    }
    let mut fixed = [0; FIXED_BYTES];
    stream.read_exact(&mut fixed).await?;
    let rest_bytes = rest_bytes(&fixed)?;
    let mut rest = vec![0; rest_bytes];
    stream.read_exact(&mut rest).await?;
    // Without a client, such as for its own health checks, the load balancer speaks for itself.
    Ok(match parse(&fixed, &rest)? {
        Some(client) => ClientAddress { client, balancer: Some(address) },
        None => ClientAddress { client: address, balancer: None },
    })
}

/// Reads a header off the beginning of `stream` where there is one, and nothing otherwise.
///
/// For a listener to which the client's address means nothing, so that anybody may send one.
///
/// # Errors
/// [`HeaderFault`] where what begins as a header is none that is good.
pub(super) async fn skip_header(stream: &mut TcpStream) -> Result<(), HeaderFault> {
    let mut first = [0];
    // No HTTP request begins with the first byte of a header.
    if stream.peek(&mut first).await? == 0 || first[0] != SIGNATURE[0] {
        return Ok(());
    }
    let mut fixed = [0; FIXED_BYTES];
    stream.read_exact(&mut fixed).await?;
    let mut rest = vec![0; rest_bytes(&fixed)?];
    stream.read_exact(&mut rest).await?;
    parse(&fixed, &rest).map(drop)
}

fn rest_bytes(fixed: &[u8; FIXED_BYTES]) -> Result<usize, HeaderFault> {
    if fixed[..12] != SIGNATURE {
        return Err(HeaderFault::NoHeader);
    }
    if fixed[12] >> 4 != 2 {
        return Err(HeaderFault::Version(fixed[12] >> 4));
    }
    let bytes = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if bytes > MAX_REST_BYTES { Err(HeaderFault::TooLong) } else { Ok(bytes) }
}

fn parse(fixed: &[u8; FIXED_BYTES], rest: &[u8]) -> Result<Option<SocketAddr>, HeaderFault> {
    const LOCAL: u8 = 0;
    const PROXY: u8 = 1;
    match (fixed[12] & 0x0f, fixed[13]) {
        // Whatever family it names is to be ignored.
        (LOCAL, _) | (PROXY, 0x00) => Ok(None),
        // TCP over IPv4: two addresses, two ports.
        (PROXY, 0x11) => {
            let addresses: &[u8; 12] = rest.first_chunk().ok_or(HeaderFault::TooShort)?;
            let [a, b, c, d, _, _, _, _, high, low, ..] = *addresses;
            Ok(Some((IpAddr::from([a, b, c, d]), u16::from_be_bytes([high, low])).into()))
        }
        // TCP over IPv6.
        (PROXY, 0x21) => {
            let addresses: &[u8; 36] = rest.first_chunk().ok_or(HeaderFault::TooShort)?;
            let source: &[u8; 16] = addresses.first_chunk().ok_or(HeaderFault::TooShort)?;
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            Ok(Some((IpAddr::from(*source), port).into()))
        }
        _ => Err(HeaderFault::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use ppp::v2;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const BALANCER: &str = "10.0.3.4:1234";

    /// What comes of bytes, and how many were read of those that follow.
    fn read(bytes: &[u8], address: &str) -> (Result<ClientAddress, HeaderFault>, usize) {
        let networks = ["10.0.0.0/16".parse().unwrap()];
        let mut unread = bytes;
        let read = client_address(&mut unread, address.parse().unwrap(), &networks);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(read);
        (read, bytes.len() - unread.len())
    }

    fn header(addresses: impl Into<v2::Addresses>) -> Vec<u8> {
        let command = v2::Version::Two | v2::Command::Proxy;
        v2::Builder::with_addresses(command, v2::Protocol::Stream, addresses).build().unwrap()
    }

    fn v4(source: &str, destination: &str) -> Vec<u8> {
        let [source, destination]: [std::net::SocketAddrV4; 2] =
            [source, destination].map(|a| a.parse().unwrap());
        header(v2::IPv4::new(*source.ip(), *destination.ip(), source.port(), destination.port()))
    }

    #[test]
    fn the_client_is_who_the_balancer_says() {
        let bytes = [v4("203.0.113.7:40000", "10.0.0.1:443"), b"TLS".to_vec()].concat();
        let (client, read_bytes) = read(&bytes, BALANCER);
        let client = client.unwrap();
        assert_eq!(client.client, "203.0.113.7:40000".parse().unwrap());
        assert_eq!(client.balancer, Some(BALANCER.parse().unwrap()));
        assert_eq!(read_bytes, bytes.len() - 3, "what follows belongs to TLS");
        let (mapped, _) = read(&bytes, "[::ffff:10.0.3.4]:1234");
        assert_eq!(mapped.unwrap().client, "203.0.113.7:40000".parse().unwrap());
    }

    #[test]
    fn nobody_else_is_asked() {
        let (client, read_bytes) = read(&v4("203.0.113.7:40000", "10.0.0.1:443"), "192.0.2.1:5");
        assert_eq!(client.unwrap(), ClientAddress { client: "192.0.2.1:5".parse().unwrap(), balancer: None });
        assert_eq!(read_bytes, 0);
    }

    #[test]
    fn a_balancer_may_speak_for_itself() {
        let local = v2::Builder::new(v2::Version::Two | v2::Command::Local, 0).build().unwrap();
        let unspecified = v2::Builder::new(v2::Version::Two | v2::Command::Proxy, 0).build().unwrap();
        for bytes in [local, unspecified] {
            let client = read(&bytes, BALANCER).0.unwrap();
            assert_eq!(client, ClientAddress { client: BALANCER.parse().unwrap(), balancer: None });
        }
    }

    #[test]
    fn what_is_no_good_header_is_refused() {
        let good = v4("203.0.113.7:40000", "10.0.0.1:443");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes, BALANCER).0.unwrap_err()
        };
        assert!(matches!(with(0, b'P'), HeaderFault::NoHeader));
        assert!(matches!(with(12, 0x11), HeaderFault::Version(1)));
        assert!(matches!(with(12, 0x22), HeaderFault::Unknown), "a command that is not known");
        assert!(matches!(with(13, 0x12), HeaderFault::Unknown), "UDP");
        assert!(matches!(with(13, 0x31), HeaderFault::Unknown), "a Unix socket");
        assert!(matches!(with(14, 0xff), HeaderFault::TooLong));
        assert!(matches!(with(15, 11), HeaderFault::TooShort));
        let version_1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 443\r\n";
        assert!(matches!(read(version_1, BALANCER).0, Err(HeaderFault::NoHeader)));
        for cut in 0..good.len() {
            assert!(matches!(read(&good[..cut], BALANCER).0, Err(HeaderFault::Broken(_))), "{cut}");
        }
    }

    #[tokio::test]
    async fn a_header_may_come_in_pieces() {
        let bytes = v4("203.0.113.7:40000", "10.0.0.1:443");
        let (mut near, mut far) = tokio::io::duplex(1);
        let networks = ["10.0.0.0/16".parse().unwrap()];
        let reading = client_address(&mut far, BALANCER.parse().unwrap(), &networks);
        let (written, client) = tokio::join!(near.write_all(&bytes), reading);
        written.unwrap();
        assert_eq!(client.unwrap().client, "203.0.113.7:40000".parse().unwrap());
    }

    proptest! {
        /// Another implementation's headers are understood, with whatever fields they carry.
        #[test]
        fn headers_of_others_are_understood(
            source: SocketAddr,
            destination_v4: std::net::Ipv4Addr,
            destination_v6: std::net::Ipv6Addr,
            fields in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..50)), 0..10),
        ) {
            let addresses: v2::Addresses = match source {
                SocketAddr::V4(source) => v2::IPv4::new(*source.ip(), destination_v4, source.port(), 443).into(),
                SocketAddr::V6(source) => v2::IPv6::new(*source.ip(), destination_v6, source.port(), 443).into(),
            };
            let command = v2::Version::Two | v2::Command::Proxy;
            let mut builder = v2::Builder::with_addresses(command, v2::Protocol::Stream, addresses);
            for (kind, value) in &fields {
                builder = builder.write_tlv(*kind, value).unwrap();
            }
            let bytes = builder.build().unwrap();
            let (client, read_bytes) = read(&bytes, BALANCER);
            let client = client.unwrap().client;
            prop_assert_eq!((client.ip(), client.port()), (source.ip(), source.port()));
            prop_assert_eq!(read_bytes, bytes.len());
        }

        /// Whatever comes, nothing panics, and nothing behind what the header says is read.
        #[test]
        fn hostile_headers_are_bounded(
            has_signature: bool,
            bytes in prop::collection::vec(any::<u8>(), 0..4096),
        ) {
            let start = if has_signature { &SIGNATURE[..] } else { &[] };
            let bytes = [start, &bytes].concat();
            let (client, read_bytes) = read(&bytes, BALANCER);
            prop_assert!(read_bytes <= FIXED_BYTES + MAX_REST_BYTES);
            if let Ok(client) = client {
                let said = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
                prop_assert_eq!(read_bytes, FIXED_BYTES + said);
                prop_assert!(client.balancer.is_none() || client.balancer == Some(BALANCER.parse().unwrap()));
            }
        }
    }
}
