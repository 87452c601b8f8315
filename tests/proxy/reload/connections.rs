//! How old a connection may grow, and what becomes of one whose client is trusted no more.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use xks_harness::pki::TestCa;
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, Setup, SoftHsm, XksRequest};

use super::rig::Reloading;

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

/// It would be admitted by rules that hold no more.
#[tokio::test]
async fn a_handshake_does_not_outlive_the_rules_that_it_began_under() {
    let token = SoftHsm::with_keys();
    let roots = token.configuration().parent().unwrap().join("clients.pem");
    std::fs::write(&roots, TestCa::new("old").pem()).unwrap();
    let server = format!(
        "lame_duck_secs = 0\nclient_certificates = {{ ca_file = {roots:?}, common_names = [\"tester\"] }}"
    );
    // Longer than a test waits.
    let timeouts = format!("{}\nhandshake_ms = 60000", Setup::default().timeouts);
    let reloading = Reloading::start_on(Setup { server, timeouts, ..Setup::default() }, token).await;
    let mut stream = TcpStream::connect(reloading.proxy.address).await.unwrap();
    // The head of a handshake record that announces a ClientHello of 512 bytes.
    stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await.unwrap();
    reloading.proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 1\n")).await;
    std::fs::write(&roots, TestCa::new("new").pem()).unwrap();
    assert_eq!(reloading.reload().await, "ok");
    let read = timeout(Duration::from_secs(30), stream.read(&mut [0; 64])).await;
    assert_eq!(read.expect("it goes on").unwrap_or(0), 0);
    let closed = "xks_connections_closed_total{reason=\"trust_changed\"} 1\n";
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(closed)).await;
}
