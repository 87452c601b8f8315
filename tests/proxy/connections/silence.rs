//! Every silence is bounded: after the TCP connect, after the handshake, inside a head, inside a body, after an answer.
//!
//! In each test one limit is short and all others are longer than a test waits, so that only the limit in question can
//! be what closes the connection. The clock starts before the proxy's can: a connection that lived for less than the
//! limit by this clock was closed early.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use xks_harness::client::{raw_http1, tls, tls_config};
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, RawConnection, Setup, XksRequest};

use super::frames::{self, FrameConnection};

/// The limit that a test is about.
const LIMIT: Duration = Duration::from_millis(600);
/// When it must have struck even on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(20);
/// Between two bytes of a client that dribbles.
const DRIBBLE: Duration = Duration::from_millis(50);

/// A proxy with one short limit.
async fn proxy(short: &str) -> Proxy {
    let timeouts = ["handshake_ms", "first_request_ms", "header_ms", "body_ms", "idle_ms"].map(|name| {
        let limit = if name == short { LIMIT } else { PATIENCE };
        format!("{name} = {}", limit.as_millis())
    });
    let timeouts = format!("{}\n{}", Setup::default().timeouts, timeouts.join("\n"));
    Proxy::start(&Setup { timeouts, ..Setup::default() }).await
}

/// A proxy with a short limit on idling, and a shorter one on heads, with which it looks up more often.
async fn idle_proxy() -> Proxy {
    proxy_with_idle_limit(LIMIT).await
}

async fn proxy_with_idle_limit(limit: Duration) -> Proxy {
    let limits = format!("idle_ms = {}\nheader_ms = 100\nfirst_request_ms = 60000", limit.as_millis());
    let timeouts = format!("{}\n{limits}", Setup::default().timeouts);
    Proxy::start(&Setup { timeouts, ..Setup::default() }).await
}

/// The connection that was begun at `began_at` has just been closed: neither early nor late, and for the right reason.
async fn assert_closed_in_time(proxy: &Proxy, began_at: Instant, reason: &str) {
    let lived = began_at.elapsed();
    assert!(lived >= LIMIT, "closed after {lived:?}");
    assert!(lived < SLACK, "open for {lived:?}");
    let counted = format!("xks_connections_closed_total{{reason=\"{reason}\"}} 1\n");
    proxy.wait_for("/metrics", |_, text| text.contains(&counted)).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 0\n")).await;
}

fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"a plaintext", None, false))
}

/// A signed request, split inside the body.
fn split_in_body(proxy: &Proxy) -> (Vec<u8>, Vec<u8>) {
    let request = encrypt();
    let mut begin = raw_http1(&request, &format!("localhost:{}", proxy.address.port()));
    let end = begin.split_off(begin.len() - request.body.len() / 2);
    (begin, end)
}

#[tokio::test]
async fn silent_after_the_tcp_connect() {
    let proxy = proxy("handshake_ms").await;
    let began_at = Instant::now();
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap_or(0), 0);
    assert_closed_in_time(&proxy, began_at, "handshake_timeout").await;
}

#[tokio::test]
async fn a_handshake_that_dribbles() {
    let proxy = proxy("handshake_ms").await;
    let began_at = Instant::now();
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    // The head of a handshake record that announces a ClientHello of 512 bytes.
    stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await.unwrap();
    while stream.write_all(&[0]).await.is_ok() && began_at.elapsed() < SLACK {
        tokio::time::sleep(DRIBBLE).await;
    }
    assert_closed_in_time(&proxy, began_at, "handshake_timeout").await;
}

#[tokio::test]
async fn silent_after_the_handshake() {
    for http in Http::BOTH {
        let proxy = proxy("first_request_ms").await;
        let began_at = Instant::now();
        let mut stream = tls(proxy.address, tls_config(http)).await.unwrap();
        // An HTTP/2 server speaks first: its SETTINGS, and perhaps a GOAWAY at the end.
        while stream.read(&mut [0; 1024]).await.unwrap_or(0) > 0 {}
        assert_closed_in_time(&proxy, began_at, "no_first_request").await;
    }
}

#[tokio::test]
async fn half_a_head_on_http1() {
    let proxy = proxy("header_ms").await;
    let began_at = Instant::now();
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(b"POST /main/kms/xks/v1/health HTTP/1.1\r\nhost: localh").await;
    connection.expect_close().await;
    assert_closed_in_time(&proxy, began_at, "slow_header").await;
}

#[tokio::test]
async fn a_head_on_http1_that_dribbles_for_ever() {
    let proxy = proxy("header_ms").await;
    let began_at = Instant::now();
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(b"POST /main/kms/xks/v1/health HTTP/1.1\r\n").await;
    while connection.is_silent_for(DRIBBLE).await && began_at.elapsed() < SLACK {
        connection.send(b"a: b\r\n").await;
    }
    assert_closed_in_time(&proxy, began_at, "slow_header").await;
}

#[tokio::test]
async fn half_a_head_on_http1_behind_an_answered_request() {
    let proxy = proxy("header_ms").await;
    let mut connection = RawConnection::open(proxy.address).await;
    assert_eq!(connection.exchange(b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap().status, 200);
    let began_at = Instant::now();
    connection.send(b"G").await;
    connection.expect_close().await;
    assert_closed_in_time(&proxy, began_at, "slow_header").await;
}

/// The half came in one piece with the request before it. It is bounded as silence after an answer is.
#[tokio::test]
async fn half_a_head_on_http1_pipelined_behind_a_request() {
    let proxy = idle_proxy().await;
    let began_at = Instant::now();
    let mut connection = RawConnection::open(proxy.address).await;
    let both = b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\nGET /ping HTTP/1.1\r\nho";
    assert_eq!(connection.exchange(both).await.unwrap().status, 200);
    connection.expect_close().await;
    assert_closed_in_time(&proxy, began_at, "idle").await;
}

#[tokio::test]
async fn half_a_body_on_http1_closes_without_an_answer_and_is_logged() {
    let proxy = proxy("body_ms").await;
    let (begin, _) = split_in_body(&proxy);
    let began_at = Instant::now();
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(&begin).await;
    connection.expect_close().await;
    assert_closed_in_time(&proxy, began_at, "slow_body").await;
    let peer = connection.local_address().to_string();
    let line = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
    assert_eq!(line["outcome"], "closed", "{line}");
    assert_eq!(line["operation"], "Encrypt", "{line}");
}

#[tokio::test]
async fn a_body_on_http1_that_dribbles_closes_too() {
    let proxy = proxy("body_ms").await;
    let (begin, end) = split_in_body(&proxy);
    let began_at = Instant::now();
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(&begin).await;
    for byte in &end {
        if !connection.is_silent_for(DRIBBLE).await {
            break;
        }
        connection.send(&[*byte]).await;
    }
    connection.expect_close().await;
    assert_closed_in_time(&proxy, began_at, "slow_body").await;
}

/// The answer does not wait for the body, but the connection must not wait for it for ever either.
#[tokio::test]
async fn half_a_body_behind_a_refusal() {
    let proxy = proxy("body_ms").await;
    let began_at = Instant::now();
    let mut connection = RawConnection::open(proxy.address).await;
    let head = b"POST /main/kms/xks/v1/health HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{";
    assert_eq!(connection.exchange(head).await.unwrap().error().0, 401);
    connection.expect_close().await;
    let lived = began_at.elapsed();
    assert!(lived >= LIMIT && lived < SLACK, "{lived:?}");
}

#[tokio::test]
async fn half_a_body_on_http2_resets_the_stream_without_an_answer_and_is_logged() {
    let proxy = proxy("body_ms").await;
    let began_at = Instant::now();
    let mut connection = FrameConnection::open(proxy.address).await;
    connection.send_head(1, &encrypt()).await;
    connection.send(&frames::frame(frames::DATA, 0, 1, b"{")).await;
    let reset = connection.answer(1).await.expect_err("no answer to half a request");
    assert_ne!(reset, frames::NO_ERROR);
    let lived = began_at.elapsed();
    assert!(lived >= LIMIT && lived < SLACK, "{lived:?}");
    let peer = connection.local_address().to_string();
    let line = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
    assert_eq!(line["outcome"], "closed", "{line}");
    // The other streams are not to suffer.
    let request = encrypt();
    connection.send_head(3, &request).await;
    connection.send_body(3, &request.body).await;
    assert!(connection.answer(3).await.unwrap().starts_with(b"{\"ciphertext\""));
}

#[tokio::test]
async fn idle_after_an_answer() {
    for http in Http::BOTH {
        idle_after_an_answer_is_bounded(idle_proxy().await, http).await;
    }
}

#[tokio::test]
async fn idle_after_an_answer_where_every_other_limit_is_longer() {
    for http in Http::BOTH {
        idle_after_an_answer_is_bounded(proxy("idle_ms").await, http).await;
    }
}

async fn idle_after_an_answer_is_bounded(proxy: Proxy, http: Http) {
    let began_at = Instant::now();
    let mut connection = proxy.connect(http).await;
    assert_eq!(connection.send(&encrypt()).await.status, 200);
    while !connection.is_closed() && began_at.elapsed() < SLACK {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_closed_in_time(&proxy, began_at, "idle").await;
}

/// The limit is on the client's silence and not on how busy the machine is: what has arrived counts before the clock.
#[tokio::test]
async fn a_request_that_came_in_time_is_served_by_a_proxy_that_looks_late() {
    // Longer than a busy machine takes to open the connections: none may idle out before the proxy looks away.
    const LONG: Duration = Duration::from_secs(3);
    let proxy = proxy_with_idle_limit(LONG).await;
    for http in Http::BOTH {
        let mut connections = Vec::new();
        for _ in 0..4 {
            let mut connection = proxy.connect(http).await;
            assert_eq!(connection.send(&encrypt()).await.status, 200);
            connections.push(connection);
        }
        proxy.signal("STOP");
        let mut answers: Vec<_> = connections
            .into_iter()
            .map(|mut connection| tokio::spawn(async move { connection.try_send(&encrypt()).await }))
            .collect();
        // The clients send, and the limit passes while the proxy looks away.
        tokio::time::sleep(LONG + LONG / 2).await;
        proxy.signal("CONT");
        let mut lost = 0;
        for answer in &mut answers {
            lost += usize::from(!answer.await.unwrap().is_ok_and(|answer| answer.status == 200));
        }
        assert_eq!(lost, 0, "lost of 4 requests over {http:?}");
    }
}

/// TLS has an end of its own, which tells an end from an attack.
#[tokio::test]
async fn an_idle_http1_connection_is_closed_with_close_notify() {
    let proxy = idle_proxy().await;
    let mut stream = tls(proxy.address, tls_config(Http::One)).await.unwrap();
    stream.write_all(b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(end.is_ok(), "{end:?}");
}

/// So that a client knows that what it sent just then was not processed and may be sent again elsewhere
/// (RFC 9113 section 6.8).
#[tokio::test]
async fn an_idle_http2_connection_is_closed_with_goaway() {
    let proxy = idle_proxy().await;
    let mut connection = FrameConnection::open(proxy.address).await;
    let request = encrypt();
    connection.send_head(1, &request).await;
    connection.send_body(1, &request.body).await;
    connection.answer(1).await.unwrap();
    let end = connection.until_closed().await;
    let goaway = end.iter().find(|frame| frame.kind == frames::GOAWAY);
    let goaway = goaway.unwrap_or_else(|| panic!("closed without GOAWAY: {end:?}"));
    assert_eq!(goaway.error_code(), frames::NO_ERROR);
}

/// Frames that belong to no request are no reason to keep a connection.
#[tokio::test]
async fn half_a_headers_frame_and_other_frames_than_requests_on_http2() {
    let block = frames::header_block(&encrypt(), "localhost");
    let whole = frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &block);
    let pings = frames::frame(frames::PING, 0, 0, &[7; 8]);
    let cases: [(&str, &[u8], &[u8]); 4] = [
        ("nothing but preface and SETTINGS", &[], &[]),
        ("half a HEADERS frame", &whole[..whole.len() / 2], &[]),
        ("HEADERS without its CONTINUATION", &frames::frame(frames::HEADERS, 0, 1, &block), &[]),
        ("a PING again and again", &[], &pings),
    ];
    let proxy = proxy("first_request_ms").await;
    for (name, begin, again) in cases {
        let began_at = Instant::now();
        let mut connection = FrameConnection::open(proxy.address).await;
        connection.send(begin).await;
        let mut is_open = true;
        while is_open && !again.is_empty() && began_at.elapsed() < SLACK {
            is_open = connection.send(again).await;
            tokio::time::sleep(DRIBBLE).await;
        }
        connection.until_closed().await;
        let lived = began_at.elapsed();
        assert!(lived >= LIMIT && lived < SLACK, "{name}: {lived:?}");
    }
    let closed = proxy.metric("xks_connections_closed_total{reason=\"no_first_request\"}").await;
    assert!((closed - 4.0).abs() < f64::EPSILON, "{closed}");
}

/// Answers that nobody takes must not keep a connection open either.
#[tokio::test]
async fn a_client_that_sends_requests_and_reads_no_answers() {
    let proxy = idle_proxy().await;
    let began_at = Instant::now();
    let stream = tls(proxy.address, tls_config(Http::One)).await.unwrap();
    let (_unread, mut writer) = tokio::io::split(stream);
    let many = b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n".repeat(100);
    while writer.write_all(&many).await.is_ok() && began_at.elapsed() < SLACK {}
    let lived = began_at.elapsed();
    assert!(lived < SLACK, "still served after {lived:?}");
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 0\n")).await;
}
