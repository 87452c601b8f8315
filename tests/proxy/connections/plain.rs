//! The plain listener of load balancers: `/ping` alone, and always for them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use xks_harness::client::plain_get;
use xks_harness::proxy::PATIENCE;
use xks_harness::{Proxy, Setup};

use super::floods::requests_without_readers;

/// `/ping` and nothing else, however it is asked.
#[tokio::test]
async fn the_plain_listener_serves_ping_alone() {
    let proxy = Proxy::start(&Setup::default()).await;
    let ask = async |request: &str| {
        let mut stream = TcpStream::connect(proxy.ping).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer[9..12].parse::<u16>().unwrap()
    };
    assert_eq!(ask("GET /ping HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await, 200);
    assert_eq!(ask("GET /ping HTTP/1.0\r\n\r\n").await, 200);
    assert_eq!(ask("HEAD /ping HTTP/1.0\r\n\r\n").await, 200);
    for target in [
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/ping/",
        "/ping/x",
        "/kms/xks/v1/health",
        "/main/kms/xks/v1/health",
        "/main/kms/xks/v1/keys/demo/encrypt",
    ] {
        for method in ["GET", "POST"] {
            let status = ask(&format!(
                "{method} {target} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
            ))
            .await;
            assert_eq!(status, 404, "{method} {target}");
        }
    }
    assert_eq!(
        ask("POST /ping HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await,
        405
    );
}

#[tokio::test]
async fn the_plain_listener_closes_silent_connections() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut streams = Vec::new();
    for begin in [&b""[..], b"GET /pi", b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n"] {
        let mut stream = TcpStream::connect(proxy.ping).await.unwrap();
        stream.write_all(begin).await.unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        let mut all = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut all)).await;
        assert!(end.is_ok(), "still open: {all:?}");
    }
}

/// There are few places on that listener, so that whoever keeps one for ever keeps a load balancer out.
#[tokio::test]
async fn the_plain_listener_closes_on_a_client_that_reads_no_answers() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut stream = TcpStream::connect(proxy.ping).await.unwrap();
    let many = b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n".repeat(100);
    // First it is held back, since nothing more fits into any buffer; the close then fails its write.
    let until_closed = async { while stream.write_all(&many).await.is_ok() {} };
    assert!(timeout(PATIENCE, until_closed).await.is_ok(), "still open");
}

#[tokio::test]
async fn pipelined_requests_whose_answers_nobody_reads_on_the_plain_listener() {
    let proxy = Proxy::start(&Setup::default()).await;
    requests_without_readers(TcpStream::connect(proxy.ping).await.unwrap(), &proxy).await;
    assert_eq!(plain_get(proxy.ping, "/ping").await.0, 200);
}

/// Load balancers must get through to the plain listener whatever others do there.
#[tokio::test]
async fn strangers_do_not_keep_load_balancers_from_the_plain_listener() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut strangers = Vec::new();
    for _ in 0..300 {
        strangers.push(TcpStream::connect(proxy.ping).await.unwrap());
    }
    let answer = timeout(Duration::from_secs(5), plain_get(proxy.ping, "/ping")).await;
    assert_eq!(answer.expect("no answer while strangers hold connections").0, 200);
}

/// A load balancer that sends PROXY protocol headers sends them with its health checks too, and without an address.
#[tokio::test]
async fn a_health_check_may_come_behind_a_proxy_header() {
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    const WITH_ADDRESSES: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x9c\x40\x01\xbb";
    const REQUEST: &[u8] = b"GET /ping HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let proxy = Proxy::start(&Setup::default()).await;
    let ask = async |pieces: &[&[u8]]| {
        let mut stream = TcpStream::connect(proxy.ping).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in pieces {
            // What was closed on is of no interest here: the answer is.
            let _ = stream.write_all(piece).await;
        }
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("still open");
        String::from_utf8(answer).unwrap()
    };
    for header in [LOCAL, WITH_ADDRESSES] {
        assert!(ask(&[header, REQUEST]).await.starts_with("HTTP/1.1 200"));
        assert!(
            ask(&[&header[..1], &header[1..14], &header[14..], REQUEST]).await.starts_with("HTTP/1.1 200")
        );
    }
    let mut of_version_3 = LOCAL.to_vec();
    of_version_3[12] = 0x30;
    let mut endless = LOCAL.to_vec();
    endless[14] = 0xff;
    for no_header in [&of_version_3[..], &endless, &[LOCAL, LOCAL].concat(), b"\r\n", b"\r"] {
        let answer = ask(&[no_header, REQUEST]).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{no_header:?}: {answer}");
    }
    // Half a header and then nothing keeps no place for ever.
    assert_eq!(ask(&[&LOCAL[..7]]).await, "");
}
