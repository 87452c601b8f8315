//! The cap on connections: strangers give way to newcomers, the oldest first; whoever has carried an authenticated
//! request stays.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use xks_harness::client::{tls, tls_config};
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::{Connection, Http, Proxy, RawConnection, Setup, XksRequest};

const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n";
const UNSIGNED: &[u8] = b"POST /main/kms/xks/v1/health HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}";

/// A proxy that takes `cap` connections and waits for long on each.
async fn proxy(cap: usize) -> Proxy {
    let limits = format!("max_connections = {cap}");
    let timeouts = ["handshake_ms", "first_request_ms", "header_ms", "body_ms", "idle_ms"]
        .map(|name| format!("{name} = {}", PATIENCE.as_millis()));
    let timeouts = format!("{}\n{}", Setup::default().timeouts, timeouts.join("\n"));
    Proxy::start(&Setup { limits, timeouts, ..Setup::default() }).await
}

/// A connection that has carried an authenticated request.
async fn known(proxy: &Proxy, http: Http) -> Connection {
    let mut connection = proxy.connect(http).await;
    serve(&mut connection).await;
    connection
}

async fn serve(connection: &mut Connection) {
    assert_eq!(connection.send(&XksRequest::metadata(&main_store(), "demo")).await.status, 200);
}

async fn silent(proxy: &Proxy, http: Http) -> TlsStream<TcpStream> {
    tls(proxy.address, tls_config(http)).await.unwrap()
}

/// Waits until the proxy has accepted that many connections and has room for them.
async fn wait_for_connections(proxy: &Proxy, count: usize) {
    let line = format!("\nxks_connections {count}\n");
    proxy.wait_for("/metrics", |_, text| text.contains(&line)).await;
}

async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let until_end = async { while stream.read(&mut [0; 1024]).await.unwrap_or(0) > 0 {} };
    timeout(Duration::from_millis(200), until_end).await.is_ok()
}

/// Strangers of each kind, who stay for as long as they may.
#[derive(Default)]
struct Strangers {
    tcp: Vec<TcpStream>,
    handshaken: Vec<TlsStream<TcpStream>>,
    unsigned: Vec<RawConnection>,
}

impl Strangers {
    async fn come(&mut self, proxy: &Proxy, number: usize) {
        match number % 3 {
            0 => self.tcp.push(TcpStream::connect(proxy.address).await.unwrap()),
            1 => self.handshaken.push(silent(proxy, Http::BOTH[number % 2]).await),
            _ => {
                let mut connection = RawConnection::open(proxy.address).await;
                assert_eq!(connection.exchange(UNSIGNED).await.unwrap().status, 401);
                assert_eq!(connection.exchange(PING).await.unwrap().status, 200);
                self.unsigned.push(connection);
            }
        }
    }
}

/// KMS gives up after 250 ms, connection and handshake included. The quickest of several that is in time is proof, however
/// busy the machine.
#[tokio::test]
async fn strangers_who_hold_the_cap_do_not_keep_a_signed_client_out() {
    const CAP: usize = 300;
    const ROUNDS: usize = 12;
    const KMS_PATIENCE: Duration = Duration::from_millis(250);
    let proxy = proxy(CAP).await;
    let mut strangers = Strangers::default();
    let mut quickest = [Duration::MAX; 2];
    for round in 0..ROUNDS {
        // At first they fill it; then they come back whenever one of them was turned out, and some more.
        let newcomers = if round == 0 { CAP } else { 4 };
        for number in 0..newcomers {
            timeout(PATIENCE, strangers.come(&proxy, number)).await.expect("a stranger waits");
        }
        wait_for_connections(&proxy, CAP).await;
        // On a new connection each time, as the worst client would.
        let began_at = Instant::now();
        let client = known(&proxy, Http::BOTH[round % 2]);
        let client = timeout(PATIENCE, client).await.expect("a signed client is kept out");
        quickest[round % 2] = quickest[round % 2].min(began_at.elapsed());
        drop(client);
        wait_for_connections(&proxy, CAP - 1).await;
    }
    assert!(quickest.iter().all(|quickest| *quickest < KMS_PATIENCE), "{quickest:?}");
    let evicted = proxy.metric("xks_connections_closed_total{reason=\"evicted\"}").await;
    assert!(evicted >= ROUNDS as f64, "{evicted}");
}

#[tokio::test]
async fn the_oldest_stranger_goes_first_and_is_told_by_a_close() {
    let proxy = proxy(3).await;
    let mut older = silent(&proxy, Http::One).await;
    wait_for_connections(&proxy, 1).await;
    let mut newer = silent(&proxy, Http::One).await;
    wait_for_connections(&proxy, 2).await;
    let _newest = silent(&proxy, Http::One).await;
    wait_for_connections(&proxy, 3).await;
    let _newcomer = silent(&proxy, Http::One).await;
    timeout(PATIENCE, async { while older.read(&mut [0; 64]).await.unwrap_or(0) > 0 {} }).await.unwrap();
    assert!(!is_closed(&mut newer).await);
}

#[tokio::test]
async fn a_connection_that_was_authenticated_is_never_evicted_for_a_stranger() {
    let proxy = proxy(4).await;
    // The oldest of all.
    let mut first = known(&proxy, Http::One).await;
    let mut second = known(&proxy, Http::Two).await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(silent(&proxy, Http::Two).await);
    }
    serve(&mut first).await;
    serve(&mut second).await;
    assert!(
        (proxy.metric("xks_connections_closed_total{reason=\"evicted\"}").await - 18.0).abs() < f64::EPSILON
    );
}

#[tokio::test]
async fn where_all_are_authenticated_a_newcomer_waits_for_a_place_and_gets_it() {
    let proxy = proxy(2).await;
    let mut first = known(&proxy, Http::One).await;
    let second = known(&proxy, Http::Two).await;
    let address = proxy.address;
    let newcomer = tokio::spawn(async move { Connection::open(address, Http::One).await });
    sleep(Duration::from_millis(300)).await;
    assert!(!newcomer.is_finished(), "a third connection at a cap of two");
    serve(&mut first).await;
    drop(second);
    let mut newcomer = timeout(PATIENCE, newcomer).await.unwrap().unwrap();
    serve(&mut newcomer).await;
    serve(&mut first).await;
}

#[tokio::test]
async fn every_place_is_given_back() {
    const CAP: usize = 3;
    let proxy = proxy(CAP).await;
    for round in 0..30 {
        match round % 4 {
            0 => drop(TcpStream::connect(proxy.address).await.unwrap()),
            1 => drop(silent(&proxy, Http::Two).await),
            2 => drop(known(&proxy, Http::One).await),
            _ => drop(known(&proxy, Http::Two).await),
        }
    }
    wait_for_connections(&proxy, 0).await;
    // As many as ever are still possible, and none more.
    let mut all = Vec::new();
    for _ in 0..CAP {
        all.push(known(&proxy, Http::Two).await);
    }
    let newcomer = timeout(Duration::from_millis(300), Connection::open(proxy.address, Http::Two)).await;
    assert!(newcomer.is_err(), "one more than the cap");
    for connection in &mut all {
        serve(connection).await;
    }
}
