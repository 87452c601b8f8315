//! Requests whose bodies do not come: however many there are, and whoever sends them, others have their places.

use std::time::Duration;

use tokio::time::timeout;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::{Http, Proxy, Setup, Store, XksRequest};

use super::frames::{END_HEADERS, FrameConnection, HEADERS, RST_STREAM, frame, header_block};

/// For an answer, where that is what a test is about.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// A proxy that waits long for bodies.
async fn proxy(max_in_flight: usize, timeouts: &str) -> Proxy {
    let limits = format!("max_in_flight = {max_in_flight}");
    let timeouts = format!("body_ms = 60000\n{timeouts}");
    Proxy::start(&Setup { limits, timeouts, ..Setup::default() }).await
}

async fn wait_for_requests(proxy: &Proxy, count: usize) {
    let line = format!("\nxks_requests_in_flight {count}\n");
    proxy.wait_for("/metrics", |_, text| text.contains(&line)).await;
}

/// A head of somebody who knows the access key id and not the secret.
fn forged() -> XksRequest {
    let mut request = XksRequest::health(&main_store());
    request.signing.as_mut().unwrap().secret_access_key = "x".repeat(43);
    request
}

/// A client that has signed a request.
async fn known(proxy: &Proxy, store: &Store) -> FrameConnection {
    let mut connection = FrameConnection::open(proxy.address).await;
    let request = XksRequest::health(store);
    connection.send_head(1, &request).await;
    connection.send_body(1, &request.body).await;
    connection.answer(1).await.unwrap();
    connection
}

#[tokio::test]
async fn strangers_without_bodies_do_not_keep_a_signed_client_out() {
    let proxy = proxy(4, &Setup::default().timeouts).await;
    let mut strangers = FrameConnection::open(proxy.address).await;
    for round in 0..10 {
        // They come back whenever one of them has lost its place.
        for stream in [4 * round + 1, 4 * round + 3] {
            strangers.send_head(stream, &forged()).await;
            // Streams are served side by side: the second might be first.
            wait_for_requests(&proxy, 1).await;
        }
        if round == 0 {
            // The second has pushed the first out.
            strangers.answer(1).await.expect_err("no answer to half a request");
        }
        wait_for_requests(&proxy, 1).await;
        let http = Http::BOTH[usize::try_from(round).unwrap() % 2];
        let answer = proxy.connect(http).await.send(&XksRequest::health(&main_store())).await;
        assert_eq!(answer.status, 200, "round {round}");
    }
    let line = proxy.wait_for_log(|line| line["outcome"] == "closed");
    assert!(line["reason"].as_str().unwrap().contains("others needed the place"), "{line}");
    assert!(proxy.metric("xks_connections_closed_total{reason=\"slow_body\"}").await >= 1.0);
}

#[tokio::test]
async fn slow_bodies_of_one_store_do_not_starve_another() {
    let proxy = proxy(2, &Setup::default().timeouts).await;
    let mut main = known(&proxy, &main_store()).await;
    let mut nested = known(&proxy, &nested_store()).await;
    for stream in [3, 5] {
        nested.send_head(stream, &XksRequest::health(&nested_store())).await;
        wait_for_requests(&proxy, 1).await;
    }
    nested.answer(3).await.expect_err("no answer to half a request");
    wait_for_requests(&proxy, 1).await;
    let request = XksRequest::health(&main_store());
    main.send_head(3, &request).await;
    main.send_body(3, &request.body).await;
    let answer = main.answer(3).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("xksProxyFleetSize"));
}

/// It could not be answered any more, and could be sent again at once.
#[tokio::test]
async fn a_strangers_body_is_waited_for_no_longer_than_its_answer() {
    let proxy = proxy(4, "answer_ms = 1000\nfirst_answer_ms = 1000").await;
    let mut stranger = FrameConnection::open(proxy.address).await;
    stranger.send_head(1, &forged()).await;
    // The limit on bodies is longer than a test waits.
    timeout(Duration::from_secs(30), stranger.answer(1)).await.unwrap().expect_err("no answer");
    let mut client = known(&proxy, &main_store()).await;
    let request = XksRequest::health(&main_store());
    client.send_head(3, &request).await;
    wait_for_requests(&proxy, 1).await;
    tokio::time::sleep(ANSWER_TIME * 3 / 2).await;
    client.send_body(3, &request.body).await;
    let answer = client.answer(3).await.expect("a client that has signed before is waited for");
    assert!(!answer.is_empty());
}

/// What nobody will look at is read as far as there are places for it.
#[tokio::test]
async fn the_rest_of_refused_requests_is_not_waited_for_without_end() {
    let proxy = proxy(1, &Setup::default().timeouts).await;
    let mut connection = FrameConnection::open(proxy.address).await;
    let unsigned = XksRequest { signing: None, ..XksRequest::health(&main_store()) };
    for stream in [1, 3] {
        let head = header_block(&unsigned, "localhost");
        connection.send(&frame(HEADERS, END_HEADERS, stream, &head)).await;
        let answer = connection.answer(stream).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("AuthenticationFailedException"));
    }
    assert_eq!(connection.next_of(RST_STREAM).await.stream, 3);
}
