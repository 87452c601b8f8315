//! The instant by which a request is answered runs from its first byte; a connection's first request has less time,
//! since KMS's clock began with the connection, unless the connection was opened ahead of time.
//!
//! A request's time is used up from outside by holding back half of it.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use xks_harness::client::raw_http1;
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Answer, Proxy, RawConnection, Setup, XksRequest};

use super::frames::FrameConnection;

/// What has passed when the second half is sent: longer than the short limits below, shorter than the long ones.
const HELD_BACK: Duration = Duration::from_millis(100);
/// A client that opens a connection and waits for longer than this did not open it for the request that comes.
const KMS_TIMEOUT: Duration = Duration::from_millis(250);

const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n";

async fn proxy(answer_ms: u32, first_answer_ms: u32) -> Proxy {
    let timeouts = format!("answer_ms = {answer_ms}\nfirst_answer_ms = {first_answer_ms}");
    Proxy::start(&Setup { timeouts, ..Setup::default() }).await
}

fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"a plaintext", None, false))
}

/// Sends a request but for its last `late_bytes`, and those later.
async fn send_in_two(
    connection: &mut RawConnection,
    proxy: &Proxy,
    late_bytes: impl Fn(usize) -> usize,
) -> Answer {
    let bytes = raw_http1(&encrypt(), &format!("localhost:{}", proxy.address.port()));
    let (early, late) = bytes.split_at(bytes.len() - late_bytes(bytes.len()));
    connection.send(early).await;
    sleep(HELD_BACK).await;
    connection.exchange(late).await.unwrap()
}

fn timed_out(answer: &Answer) -> bool {
    if answer.status == 200 {
        return false;
    }
    assert_eq!(answer.error(), (503, "DependencyTimeoutException".to_owned()));
    true
}

/// Whoever sends it may be a stranger, and is not waited for beyond that time.
#[tokio::test]
async fn a_first_request_right_after_connecting_has_less_time() {
    let proxy = proxy(30_000, 10).await;
    let until = Instant::now() + xks_harness::proxy::PATIENCE;
    let bytes = raw_http1(&encrypt(), &format!("localhost:{}", proxy.address.port()));
    let (early, late) = bytes.split_at(bytes.len() - 10);
    loop {
        let mut connection = RawConnection::open(proxy.address).await;
        connection.send(early).await;
        sleep(HELD_BACK).await;
        if connection.exchange(late).await.is_none() {
            break;
        }
        // The machine was so busy that connecting alone took as long as a connection that is opened ahead of time.
        assert!(Instant::now() < until, "a first request never had less time");
    }
    // The second request is no first one.
    let mut connection = RawConnection::open(proxy.address).await;
    assert_eq!(connection.exchange(PING).await.unwrap().status, 200);
    assert!(!timed_out(&send_in_two(&mut connection, &proxy, |_| 10).await));
}

#[tokio::test]
async fn a_connection_opened_ahead_of_time_is_not_punished() {
    let proxy = proxy(30_000, 10).await;
    let mut connection = RawConnection::open(proxy.address).await;
    sleep(KMS_TIMEOUT).await;
    assert!(!timed_out(&send_in_two(&mut connection, &proxy, |_| 10).await), "HTTP/1.1");
    let mut connection = FrameConnection::open(proxy.address).await;
    sleep(KMS_TIMEOUT).await;
    let request = encrypt();
    connection.send_head(1, &request).await;
    sleep(HELD_BACK).await;
    connection.send_body(1, &request.body).await;
    let answer = connection.answer(1).await.unwrap();
    assert!(answer.starts_with(b"{\"ciphertext\""), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn the_clock_starts_with_the_first_byte_of_each_request() {
    let proxy = proxy(10, 30_000).await;
    let mut connection = RawConnection::open(proxy.address).await;
    assert_eq!(connection.exchange(PING).await.unwrap().status, 200);
    let all_but_one = |bytes| bytes - 1;
    assert!(
        timed_out(&send_in_two(&mut connection, &proxy, all_but_one).await),
        "the first byte came in time"
    );
}

/// Not with the end of the request before it, or with the connection.
#[tokio::test]
async fn idle_time_between_requests_does_not_count() {
    let proxy = proxy(3_000, 3_000).await;
    let mut connection = RawConnection::open(proxy.address).await;
    let bytes = raw_http1(&encrypt(), &format!("localhost:{}", proxy.address.port()));
    assert_eq!(connection.exchange(&bytes).await.unwrap().status, 200);
    sleep(Duration::from_millis(3_100)).await;
    assert_eq!(connection.exchange(&bytes).await.unwrap().status, 200);
}
