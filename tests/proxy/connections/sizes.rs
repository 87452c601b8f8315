//! What is too large: bodies, heads, numbers of streams; and what it costs the proxy.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use xks_harness::client::{raw_http1, tls, tls_config};
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, RawConnection, Setup, XksRequest};

use super::frames::{self, FrameConnection};
use super::memory_bytes;

/// The cap that follows from the default limits of 4300 bytes of plaintext and 8192 of AAD.
const BODY_CAP_BYTES: usize = 5736 + 10_924 + 40 * 1024;
const MIB: usize = 1024 * 1024;

fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

/// A valid request whose body has exactly that many bytes.
fn metadata_of(body_bytes: usize) -> XksRequest {
    let mut request = XksRequest::metadata(&main_store(), "demo");
    request.body.resize(body_bytes, b' ');
    request
}

/// The same with the body in chunks.
fn chunked(request: &XksRequest, authority: &str) -> Vec<u8> {
    let whole = raw_http1(request, authority);
    let head_bytes = whole.len() - request.body.len();
    let head = String::from_utf8(whole[..head_bytes].to_vec()).unwrap();
    let head = head.replace(&format!("content-length: {}", request.body.len()), "transfer-encoding: chunked");
    let mut all = head.into_bytes();
    for piece in request.body.chunks(4096) {
        all.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        all.extend_from_slice(piece);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}

#[tokio::test]
async fn a_body_of_the_cap_is_served_and_one_byte_more_is_not() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let answer = connection.send(&metadata_of(BODY_CAP_BYTES)).await;
        assert_eq!(answer.status, 200, "{http:?}");
        let answer = connection.send(&metadata_of(BODY_CAP_BYTES + 1)).await;
        assert_eq!(answer.refusal(), (501, "UnsupportedOperationException".to_owned()), "{http:?}");
    }
    let mut connection = RawConnection::open(proxy.address).await;
    let fits = chunked(&metadata_of(BODY_CAP_BYTES), &authority(&proxy));
    assert_eq!(connection.exchange(&fits).await.unwrap().status, 200);
    let answer =
        connection.exchange(&chunked(&metadata_of(BODY_CAP_BYTES + 1), &authority(&proxy))).await.unwrap();
    assert_eq!(answer.refusal(), (501, "UnsupportedOperationException".to_owned()));
    assert_eq!(answer.headers["connection"], "close");
    connection.expect_close().await;
}

/// Whoever sends all and reads then must still find the answer: what is not read of the body must not reset it away.
#[tokio::test]
async fn a_body_over_the_cap_is_refused_and_the_connection_closes() {
    let proxy = Proxy::start(&Setup::default()).await;
    for body_bytes in [BODY_CAP_BYTES + 1, 2 * BODY_CAP_BYTES, 200_000] {
        let request = metadata_of(body_bytes);
        for bytes in [raw_http1(&request, &authority(&proxy)), chunked(&request, &authority(&proxy))] {
            let mut connection = RawConnection::open(proxy.address).await;
            let answer = connection.exchange(&bytes).await;
            let answer = answer.unwrap_or_else(|| panic!("no answer to {body_bytes} bytes"));
            assert_eq!(answer.refusal(), (501, "UnsupportedOperationException".to_owned()));
            assert_eq!(answer.headers["connection"], "close");
            connection.expect_close().await;
        }
        // On HTTP/2 the stream ends and the connection serves on.
        let mut connection = proxy.connect(Http::Two).await;
        for _ in 0..3 {
            assert_eq!(connection.send(&request).await.error().0, 501);
        }
        assert_eq!(connection.send(&metadata_of(1000)).await.status, 200);
    }
}

/// Refused by the head already: a client that waits for leave to send sends nothing.
#[tokio::test]
async fn a_length_over_the_cap_is_refused_before_the_body_comes() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = metadata_of(BODY_CAP_BYTES + 1);
    let bytes = raw_http1(&request, &authority(&proxy));
    let mut connection = RawConnection::open(proxy.address).await;
    let answer = connection.exchange(&bytes[..bytes.len() - request.body.len()]).await.unwrap();
    assert_eq!(answer.error(), (501, "UnsupportedOperationException".to_owned()));
    let mut connection = FrameConnection::open(proxy.address).await;
    let mut block = frames::header_block(&request, &connection.authority);
    frames::literal(&mut block, "content-length", &request.body.len().to_string());
    connection.send(&frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &block)).await;
    let frame = connection.next_of(frames::DATA).await;
    assert!(String::from_utf8_lossy(&frame.payload).contains("UnsupportedOperationException"));
}

/// Of 64 MiB each, several at once, with and without a length, unsigned and with a signed head.
#[tokio::test]
async fn huge_bodies_cost_no_memory() {
    const PIECE: &[u8] = &[b' '; 64 * 1024];
    const COUNT: usize = 64 * MIB / PIECE.len();
    let proxy = Proxy::start(&Setup::default()).await;
    let before = memory_bytes(&proxy);
    let signed = metadata_of(64 * MIB);
    let unsigned = XksRequest { signing: None, ..metadata_of(0) };
    let chunk = [b"10000\r\n", PIECE, b"\r\n"].concat();
    let mut clients = JoinSet::new();
    for request in [signed, unsigned] {
        let head = raw_http1(&XksRequest { body: Vec::new(), ..request.clone() }, &authority(&proxy));
        let head = String::from_utf8(head).unwrap();
        let length = head.replace("content-length: 0", &format!("content-length: {}", 64 * MIB));
        let chunked = head.replace("content-length: 0", "transfer-encoding: chunked");
        for (head, piece) in [(length, PIECE.to_vec()), (chunked, chunk.clone())] {
            clients.spawn(answer_to_endless(proxy.address, head.clone(), piece.clone(), COUNT));
            clients.spawn(answer_to_endless(proxy.address, head, piece, COUNT));
        }
        let mut connection = proxy.connect(Http::Two).await;
        let mut whole = connection.http_request(&XksRequest { body: Vec::new(), ..request });
        *whole.body_mut() = Full::new(Bytes::from(vec![b' '; 64 * MIB]));
        clients.spawn(async move {
            let answer = connection.try_send_http(whole).await.unwrap();
            format!("HTTP/1.1 {}", answer.status)
        });
    }
    let mut highest = before;
    let until = Instant::now() + PATIENCE;
    while !clients.is_empty() {
        assert!(Instant::now() < until);
        highest = highest.max(memory_bytes(&proxy));
        let Ok(answer) = timeout(Duration::from_millis(2), clients.join_next()).await else { continue };
        let answer = answer.unwrap().unwrap();
        // A client that still sends when the connection closes may lose its answer to a reset.
        let is_refusal = answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 501");
        assert!(is_refusal || answer.is_empty(), "{answer}");
    }
    let grown = highest.saturating_sub(before);
    assert!(grown < 16 * MIB, "{} MiB more for ten bodies", grown / MIB);
}

/// Sends a head and then the same bytes again and again, as often as is asked or until the connection closes; returns
/// what was answered.
async fn answer_to_endless(address: SocketAddr, head: String, piece: Vec<u8>, count: usize) -> String {
    let stream = tls(address, tls_config(Http::One)).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    });
    writer.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..count {
        if writer.write_all(&piece).await.is_err() {
            break;
        }
    }
    timeout(PATIENCE, reading).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_and_one_below_is_served() {
    const LIMIT_BYTES: usize = 8192;
    let limits = format!("max_header_bytes = {LIMIT_BYTES}");
    let proxy = Proxy::start(&Setup { limits, ..Setup::default() }).await;
    let with_header = |bytes: usize| {
        let mut request = XksRequest::metadata(&main_store(), "demo");
        request.headers.push(("x-long", "x".repeat(bytes)));
        request
    };
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        assert_eq!(connection.send(&with_header(LIMIT_BYTES - 2000)).await.status, 200, "{http:?}");
        match connection.try_send(&with_header(2 * LIMIT_BYTES)).await {
            Ok(answer) => assert_eq!(answer.status, 431, "{http:?}"),
            Err(_) => assert_eq!(http, Http::Two, "an HTTP/2 stream may be reset instead"),
        }
    }
    // Many headers are as much as a long one.
    let many: String = (0..1000).map(|number| format!("x-{number}: y\r\n")).collect();
    let mut connection = RawConnection::open(proxy.address).await;
    let answer = connection.exchange(format!("GET /ping HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.is_none_or(|answer| answer.status == 431));
    connection.expect_close().await;
    // One that never ends is not read for ever.
    let head = "GET /ping HTTP/1.1\r\nx-long: ".to_owned();
    let answer = answer_to_endless(proxy.address, head, vec![b'x'; 4096], usize::MAX).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_stream_over_the_limit_is_refused_and_the_others_go_on() {
    let limits = "max_streams_per_connection = 2".to_owned();
    let proxy = Proxy::start(&Setup { limits, ..Setup::default() }).await;
    let mut connection = FrameConnection::open(proxy.address).await;
    let requests = [1, 3, 5].map(|stream| (stream, metadata_of(1000)));
    for (stream, request) in &requests {
        connection.send_head(*stream, request).await;
    }
    assert_eq!(connection.answer(5).await.unwrap_err(), frames::REFUSED_STREAM);
    for (stream, request) in &requests[..2] {
        connection.send_body(*stream, &request.body).await;
        let answer = connection.answer(*stream).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("AES_256"));
    }
    // There is room again.
    connection.send_head(7, &requests[2].1).await;
    connection.send_body(7, &requests[2].1.body).await;
    connection.answer(7).await.unwrap();
}

/// The longest values that can be configured, both ways, over both protocols.
#[tokio::test]
async fn the_longest_values_that_can_be_configured_are_served() {
    let limits = "max_plaintext_bytes = 65536\nmax_aad_bytes = 65535".to_owned();
    let proxy = Proxy::start(&Setup { limits, ..Setup::default() }).await;
    let body = encrypt_body(&[7; 65_536], Some(&[8; 65_535]), true);
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let encrypted = connection.send(&XksRequest::encrypt(&main_store(), "demo", &body)).await.ok();
        let body = xks_harness::request::decrypt_body(&encrypted, Some(&[8; 65_535]));
        let decrypted = connection.send(&XksRequest::decrypt(&main_store(), "demo", &body)).await.ok();
        assert_eq!(decrypted["plaintext"], json!(xks_harness::request::base64(&[7; 65_536])));
    }
}
