//! How old a connection may grow, and what becomes of one whose client is trusted no more.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use xks_harness::client::{raw_http1, tls_config_showing};
use xks_harness::pki::{PemPair, TestCa};
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, RawConnection, Setup, SoftHsm, XksRequest};

use super::rig::Reloading;
use crate::connections::frames::{self, FrameConnection, GOAWAY};

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

/// A proxy that admits `tester` by certificates of `ca`, and the file of its roots.
async fn admitting(ca: &TestCa) -> (Reloading, PathBuf) {
    let token = SoftHsm::with_keys();
    let roots = token.configuration().parent().unwrap().join("clients.pem");
    std::fs::write(&roots, ca.pem()).unwrap();
    let server = format!(
        "lame_duck_secs = 0\nclient_certificates = {{ ca_file = {roots:?}, common_names = [\"tester\"] }}"
    );
    // Longer than a test waits.
    let timeouts = format!("{}\nhandshake_ms = 60000\nidle_ms = 60000", Setup::default().timeouts);
    let reloading = Reloading::start_on(Setup { server, timeouts, ..Setup::default() }, token).await;
    (reloading, roots)
}

async fn serve(connection: &mut FrameConnection, stream: u32, request: &XksRequest) {
    connection.send_head(stream, request).await;
    connection.send_body(stream, &request.body).await;
    assert!(connection.answer(stream).await.unwrap().starts_with(b"{\"ciphertext\""));
}

/// Though the new rules would admit it too: whom they admit is found out by a handshake.
#[tokio::test]
async fn whoever_was_admitted_by_rules_that_hold_no_more_is_asked_to_leave() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let (reloading, roots) = admitting(&old).await;
    let shown: PemPair = old.issue(&["tester"], SystemTime::now() + Duration::from_secs(3600));
    let address = reloading.proxy.address;
    let request = XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"x", None, false));
    let bytes = raw_http1(&request, &format!("localhost:{}", address.port()));
    let mut one = RawConnection::open_with(address, tls_config_showing(Http::One, Some(&shown))).await;
    let mut two = FrameConnection::open_with(address, tls_config_showing(Http::Two, Some(&shown))).await;
    let answer = one.exchange(&bytes).await.unwrap();
    assert!(answer.status == 200 && !answer.headers.contains_key("connection"), "{answer:?}");
    serve(&mut two, 1, &request).await;

    std::fs::write(&roots, old.pem() + &new.pem()).unwrap();
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(two.next_of(GOAWAY).await.error_code(), frames::NO_ERROR);
    let rest = two.until_closed().await;
    assert!(
        rest.iter().all(|frame| frame.kind != GOAWAY || frame.error_code() == frames::NO_ERROR),
        "{rest:?}"
    );
    // Its next request is served, and told.
    let answer = one.exchange(&bytes).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.headers["connection"]), (200, &"close".parse().unwrap()));
    one.expect_close().await;
    let closed = "xks_connections_closed_total{reason=\"trust_changed\"} 2\n";
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(closed)).await;
}

/// It would be admitted by rules that hold no more.
#[tokio::test]
async fn a_handshake_does_not_outlive_the_rules_that_it_began_under() {
    let (reloading, roots) = admitting(&TestCa::new("old")).await;
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
