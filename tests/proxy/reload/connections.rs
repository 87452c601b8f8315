//! How old a connection may grow.

use std::time::{Duration, Instant};

use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, Setup, XksRequest};

/// A connection is used until it is retired: no request on it fails, and its end comes in order.
#[tokio::test]
async fn a_connection_makes_place_for_a_new_one_at_its_greatest_age() {
    let timeouts = format!("{}\nmax_age_secs = 1", Setup::default().timeouts);
    let proxy = Proxy::start(&Setup { timeouts, ..Setup::default() }).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "{http:?}: it is never retired");
            let body = encrypt_body(b"x", None, false);
            match connection.try_send(&XksRequest::encrypt(&main_store(), "demo", &body)).await {
                Ok(answer) if http == Http::One => {
                    assert_eq!(answer.status, 200);
                    if answer.headers.get("connection").is_some_and(|value| value == "close") {
                        break;
                    }
                }
                Ok(answer) => assert_eq!(answer.status, 200),
                // The client was told before it sent.
                Err(error) => {
                    let told = format!("{error:?}");
                    let is_told = error.is_canceled() || error.is_closed() || told.contains("GoAway");
                    assert!(http == Http::Two && is_told, "{http:?}: {told}");
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let closed = "xks_connections_closed_total{reason=\"max_age\"} 2\n";
    proxy.wait_for("/metrics", |_, text| text.contains(closed)).await;
}
