//! Clients that leave: before, during and after a request. The process lives, nothing leaks, and each request that had
//! begun has one line in the log.

use serde_json::Value;
use xks_harness::client::raw_http1;
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Faults, Function, Http, Proxy, RawConnection, Setup, XksRequest};

use super::frames::{self, CANCEL, FrameConnection, RST_STREAM};

/// How a request ends whose client leaves inside the body.
const BROKEN_IN_BODY: &[&str] = &["abandoned", "ValidationException"];

fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"a plaintext", None, false))
}

/// The one line of that client's one request. A line of a later request is waited for first, and then the end of all
/// connections, so that a second line would have come.
async fn only_line(proxy: &Proxy, peer: &str) -> Value {
    let line = proxy.wait_for_log(|line| line["peer"] == peer);
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 0\n")).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 0\n")).await;
    let mut later = RawConnection::open(proxy.address).await;
    let address = later.local_address().to_string();
    let answer = later.exchange(&raw_http1(&encrypt(), &authority(proxy))).await;
    assert_eq!(answer.unwrap().status, 200);
    let _ = proxy.wait_for_log(|line| line["peer"] == address.as_str());
    let lines = proxy.log_lines().into_iter().filter(|line| line["peer"] == peer).count();
    assert_eq!(lines, 1, "{}", proxy.all_output());
    line
}

#[tokio::test]
async fn on_http1_inside_the_body() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = encrypt();
    let bytes = raw_http1(&request, &authority(&proxy));
    let head_bytes = bytes.len() - request.body.len();
    for sent_bytes in [head_bytes, head_bytes + 1, bytes.len() - 1] {
        let mut connection = RawConnection::open(proxy.address).await;
        let peer = connection.local_address().to_string();
        connection.send(&bytes[..sent_bytes]).await;
        drop(connection);
        let line = only_line(&proxy, &peer).await;
        assert!(BROKEN_IN_BODY.contains(&line["outcome"].as_str().unwrap()), "{sent_bytes}: {line}");
        assert_eq!(line["operation"], "Encrypt");
    }
}

/// A client that runs out of patience while the proxy is too busy to look: the request is whole, and nobody waits for
/// the answer any more. It is the line that an operator will look for.
#[tokio::test]
async fn on_http1_behind_a_whole_request() {
    let proxy = Proxy::start(&Setup::default()).await;
    let bytes = raw_http1(&encrypt(), &authority(&proxy));
    let mut connection = RawConnection::open(proxy.address).await;
    assert_eq!(connection.exchange(b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap().status, 200);
    let peer = connection.local_address().to_string();
    proxy.signal("STOP");
    connection.send(&bytes).await;
    drop(connection);
    proxy.signal("CONT");
    let line = only_line(&proxy, &peer).await;
    assert!(["abandoned", "ok"].contains(&line["outcome"].as_str().unwrap()), "{line}");
}

#[tokio::test]
async fn before_a_head_is_complete_nothing_is_logged_as_a_request() {
    let proxy = Proxy::start(&Setup::default()).await;
    for begin in [&b""[..], b"P", b"POST /main/kms/xks/v1/health HTTP/1.1\r\n"] {
        let mut connection = RawConnection::open(proxy.address).await;
        connection.send(begin).await;
    }
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 0\n")).await;
    let requests = proxy.log_lines().into_iter().filter(|line| line["peer"].is_string()).count();
    assert_eq!(requests, 0, "{}", proxy.all_output());
}

#[tokio::test]
async fn on_http2_by_reset_inside_the_body() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = encrypt();
    for body_bytes in [0, 10, request.body.len() - 1] {
        let mut connection = FrameConnection::open(proxy.address).await;
        let peer = connection.local_address().to_string();
        connection.send_head(1, &request).await;
        connection.send(&frames::frame(frames::DATA, 0, 1, &request.body[..body_bytes])).await;
        // A stream that is reset before it was looked at is no request to anybody.
        proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 1\n")).await;
        connection.send(&frames::frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())).await;
        let line = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
        assert!(BROKEN_IN_BODY.contains(&line["outcome"].as_str().unwrap()), "{body_bytes}: {line}");
        // The connection serves on.
        connection.send_head(3, &request).await;
        connection.send_body(3, &request.body).await;
        connection.answer(3).await.unwrap();
    }
}

/// While the HSM works on the request: on HTTP/1.1 by closing, on HTTP/2 by resetting or closing.
#[tokio::test]
async fn while_the_request_is_in_the_hsm() {
    let faults = Faults::new();
    let proxy = Proxy::start(&faults.between(Setup::default())).await;
    let request = encrypt();
    let bytes = raw_http1(&request, &authority(&proxy));
    for way in ["close on HTTP/1.1", "reset", "close on HTTP/2"] {
        faults.set("C_Encrypt hang until_removed");
        let peer;
        if way == "close on HTTP/1.1" {
            let mut connection = RawConnection::open(proxy.address).await;
            peer = connection.local_address().to_string();
            connection.send(&bytes).await;
            faults.wait_until_inside(Function::Encrypt, 1).await;
        } else {
            let mut connection = FrameConnection::open(proxy.address).await;
            peer = connection.local_address().to_string();
            connection.send_head(1, &request).await;
            connection.send_body(1, &request.body).await;
            faults.wait_until_inside(Function::Encrypt, 1).await;
            if way == "reset" {
                connection.send(&frames::frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())).await;
            }
        }
        // The line is there at once, not when the HSM has ended.
        let line = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
        assert_eq!(line["outcome"], "abandoned", "{way}");
        assert!(faults.counts().inside(Function::Encrypt) >= 1, "{way}");
        faults.clear();
        assert_eq!(only_line(&proxy, &peer).await, line);
    }
}

/// Several requests of one connection at once, cut by its end: one line each.
#[tokio::test]
async fn a_connection_that_breaks_takes_all_its_streams_with_it() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = FrameConnection::open(proxy.address).await;
    let peer = connection.local_address().to_string();
    let requests: Vec<_> = (0..20_u32).map(|number| (2 * number + 1, encrypt())).collect();
    for (stream, request) in &requests {
        connection.send_head(*stream, request).await;
    }
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 20\n")).await;
    drop(connection);
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 0\n")).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 0\n")).await;
    let mut later = proxy.connect(Http::Two).await;
    assert_eq!(later.send(&encrypt()).await.status, 200);
    let _ = proxy.wait_for_log(|line| line["outcome"] == "ok");
    let lines = proxy.log_lines().into_iter().filter(|line| line["peer"] == peer.as_str()).count();
    assert_eq!(lines, 20);
}
