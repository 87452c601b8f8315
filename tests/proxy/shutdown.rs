//! The orderly end: not ready at once, new connections still served for the lame-duck time, then every connection told
//! to close, then exit code 0. Nothing that was accepted is lost.

pub(crate) mod traffic;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use xks_harness::client::{plain_get, raw_http1, tls, tls_config};
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::encrypt_body;
use xks_harness::token::{PIN, SO_PIN};
use xks_harness::{Faults, Function, Http, Proxy, RawConnection, Setup, SoftHsm, XksRequest};

use crate::connections::frames::{self, FrameConnection, GOAWAY};

const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n";
/// Longer than any test waits.
const FOR_EVER: &str = "lame_duck_secs = 900\ndrain_secs = 300";

async fn proxy(server: &str) -> Proxy {
    // No connection is to go because it is silent.
    let timeouts =
        ["handshake_ms = 60000", "first_request_ms = 600000", "header_ms = 60000", "body_ms = 60000"];
    let timeouts = format!("{}\n{}\nidle_ms = 600000", Setup::default().timeouts, timeouts.join("\n"));
    Proxy::start(&Setup { server: server.to_owned(), timeouts, ..Setup::default() }).await
}

fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"a plaintext", None, false))
}

fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

fn says(text: &'static str) -> impl Fn(&Value) -> bool {
    move |line| line["message"].as_str().is_some_and(|message| message.starts_with(text))
}

/// Waits until it has noticed the signal.
fn wait_until_stopping(proxy: &Proxy) {
    let _ = proxy.wait_for_log(says("stopping"));
}

/// Waits until it tells its connections to close.
fn wait_until_draining(proxy: &Proxy) {
    let _ = proxy.wait_for_log(says("draining"));
}

/// The end is the one that was wished for. Clients go on while it is waited for.
async fn assert_clean_exit(proxy: &mut Proxy) {
    let until = Instant::now() + PATIENCE;
    while proxy.is_running() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = proxy.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{}", proxy.all_output());
    let last = proxy.wait_for_log(says("stopped"));
    assert_eq!(last["clean"], true);
    assert_eq!(proxy.log_lines().last(), Some(&last), "{}", proxy.all_output());
}

#[tokio::test]
async fn each_signal_makes_it_not_ready_at_once_and_serve_on() {
    for signal in ["TERM", "INT"] {
        let mut proxy = proxy(FOR_EVER).await;
        let mut old = proxy.connect(Http::One).await;
        assert_eq!(old.send(&encrypt()).await.status, 200);
        proxy.signal(signal);
        wait_until_stopping(&proxy);
        assert_eq!(plain_get(proxy.admin, "/readyz").await.0, 503);
        assert_eq!(plain_get(proxy.ping, "/ping").await.0, 503);
        assert_eq!(plain_get(proxy.admin, "/livez").await.0, 200);
        let mut raw = RawConnection::open(proxy.address).await;
        assert_eq!(raw.exchange(PING).await.unwrap().status, 503);
        for http in Http::BOTH {
            let mut new = proxy.connect(http).await;
            assert_eq!(new.send(&encrypt()).await.status, 200, "{signal} {http:?}");
            assert_eq!(new.send(&encrypt()).await.status, 200, "{signal} {http:?}");
        }
        assert_eq!(old.send(&encrypt()).await.status, 200);
        assert!(proxy.is_running());
        // A second signal, of either kind, ends the waiting.
        drop((old, raw));
        proxy.signal(if signal == "TERM" { "INT" } else { "TERM" });
        assert_clean_exit(&mut proxy).await;
    }
}

#[tokio::test]
async fn the_lame_duck_time_is_served_out() {
    let mut proxy = proxy("lame_duck_secs = 1").await;
    let began_at = Instant::now();
    proxy.signal("TERM");
    wait_until_draining(&proxy);
    assert!(began_at.elapsed() >= Duration::from_secs(1));
    assert_clean_exit(&mut proxy).await;
    assert!(TcpStream::connect(proxy.address).await.is_err());
}

#[tokio::test]
async fn without_a_lame_duck_time_it_drains_at_once() {
    let mut proxy = proxy("lame_duck_secs = 0").await;
    proxy.signal("INT");
    assert_clean_exit(&mut proxy).await;
}

/// As soon as it says that it listens: an orchestrator may change its mind.
#[tokio::test]
async fn it_ends_in_order_before_it_is_ready() {
    for signal in ["TERM", "INT"] {
        let mut proxy = Proxy::start_without_waiting(&Setup::default(), Arc::new(SoftHsm::with_keys()));
        proxy.signal(signal);
        assert_clean_exit(&mut proxy).await;
    }
}

#[tokio::test]
async fn http1_connections_are_told_by_connection_close() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
    // In flight: its body is being waited for.
    let bytes = raw_http1(&encrypt(), &authority(&proxy));
    let (early, late) = bytes.split_at(bytes.len() - 10);
    let mut connection = RawConnection::open(proxy.address).await;
    assert!(connection.exchange(PING).await.unwrap().headers.get("connection").is_none());
    connection.send(early).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 1\n")).await;
    proxy.signal("TERM");
    wait_until_draining(&proxy);
    let answer = connection.exchange(late).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["connection"], "close");
    connection.expect_close().await;
    assert_clean_exit(&mut proxy).await;
}

#[tokio::test]
async fn http2_connections_are_told_by_goaway_and_their_streams_are_served_to_the_end() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
    let mut connection = FrameConnection::open(proxy.address).await;
    let requests = [1, 3].map(|stream| (stream, encrypt()));
    for (stream, request) in &requests {
        connection.send_head(*stream, request).await;
    }
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 2\n")).await;
    proxy.signal("TERM");
    let goaway = connection.next_of(GOAWAY).await;
    assert_eq!(goaway.error_code(), frames::NO_ERROR);
    for (stream, request) in &requests {
        connection.send_body(*stream, &request.body).await;
        assert!(connection.answer(*stream).await.unwrap().starts_with(b"{\"ciphertext\""));
    }
    let rest = connection.until_closed().await;
    assert!(
        rest.iter().all(|frame| frame.kind != GOAWAY || frame.error_code() == frames::NO_ERROR),
        "{rest:?}"
    );
    assert_clean_exit(&mut proxy).await;
}

/// What the client sent before it could know is served: between the first GOAWAY and the second.
#[tokio::test]
async fn a_stream_that_crossed_the_goaway_is_served() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
    let mut connection = FrameConnection::open(proxy.address).await;
    proxy.signal("TERM");
    // From here on the client has not read anything: its request crosses the GOAWAY.
    wait_until_draining(&proxy);
    let request = encrypt();
    connection.send_head(1, &request).await;
    connection.send_body(1, &request.body).await;
    assert!(connection.answer(1).await.unwrap().starts_with(b"{\"ciphertext\""));
    drop(connection);
    assert_clean_exit(&mut proxy).await;
}

/// The same on HTTP/1.1, where the connection was idle: it stays for a while.
#[tokio::test]
async fn a_request_that_comes_on_an_idle_connection_as_draining_begins_is_served() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
    let bytes = raw_http1(&encrypt(), &authority(&proxy));
    let mut connections = Vec::new();
    for has_history in [false, true] {
        let mut connection = RawConnection::open(proxy.address).await;
        if has_history {
            assert_eq!(connection.exchange(&bytes).await.unwrap().status, 200);
        }
        connections.push(connection);
    }
    proxy.signal("TERM");
    wait_until_draining(&proxy);
    for mut connection in connections {
        let answer = connection.exchange(&bytes).await.expect("closed before a request that was on its way");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["connection"], "close");
    }
    assert_clean_exit(&mut proxy).await;
}

/// And while the proxy is too busy to look: what has arrived counts before the clock.
#[tokio::test]
async fn a_request_that_came_before_an_idle_connection_was_closed_is_served() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
    let bytes = raw_http1(&encrypt(), &authority(&proxy));
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut connection = RawConnection::open(proxy.address).await;
        assert_eq!(connection.exchange(&bytes).await.unwrap().status, 200);
        connections.push(connection);
    }
    proxy.signal("TERM");
    wait_until_draining(&proxy);
    proxy.signal("STOP");
    for connection in &mut connections {
        connection.send(&bytes).await;
    }
    // Longer than idle connections are given.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    proxy.signal("CONT");
    let mut lost = 0;
    for mut connection in connections {
        lost += usize::from(connection.answer().await.is_none_or(|answer| answer.status != 200));
    }
    assert_eq!(lost, 0, "lost of 8 requests");
    assert_clean_exit(&mut proxy).await;
}

/// Half of a request has come on a connection that was used before: it is in flight as well.
#[tokio::test]
async fn a_head_that_has_begun_when_draining_begins_is_served() {
    for has_history in [false, true] {
        let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
        let bytes = raw_http1(&encrypt(), &authority(&proxy));
        let mut connection = RawConnection::open(proxy.address).await;
        if has_history {
            assert_eq!(connection.exchange(&bytes).await.unwrap().status, 200);
        }
        connection.send(&bytes[..30]).await;
        proxy.signal("TERM");
        wait_until_draining(&proxy);
        // Longer than an idle connection is given.
        let is_open = connection.is_silent_for(Duration::from_millis(1500)).await;
        assert!(is_open, "cut inside a head, has_history = {has_history}");
        assert_eq!(connection.exchange(&bytes[30..]).await.unwrap().status, 200);
        assert_clean_exit(&mut proxy).await;
    }
}

#[tokio::test]
async fn requests_in_the_hsm_are_answered() {
    let faults = Faults::new();
    let setup = Setup { server: "lame_duck_secs = 0\ndrain_secs = 300".to_owned(), ..Setup::default() };
    let mut proxy = Proxy::start(&faults.between(setup)).await;
    faults.set("C_Encrypt hang until_removed");
    let mut answers = Vec::new();
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        answers.push(tokio::spawn(async move { connection.try_send(&encrypt()).await }));
    }
    faults.wait_until_inside(Function::Encrypt, 2).await;
    proxy.signal("TERM");
    wait_until_draining(&proxy);
    faults.clear();
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
    assert_clean_exit(&mut proxy).await;
}

/// Sooner than any of the long limits, and told properly: by close_notify, which TLS demands before a close.
#[tokio::test]
async fn idle_connections_close_soon() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 300").await;
    let mut fresh = tls(proxy.address, tls_config(Http::One)).await.unwrap();
    let mut two = FrameConnection::open(proxy.address).await;
    let mut used = proxy.connect(Http::One).await;
    assert_eq!(used.send(&encrypt()).await.status, 200);
    proxy.signal("TERM");
    let read = timeout(PATIENCE, fresh.read(&mut [0; 64])).await.unwrap();
    assert_eq!(read.expect("an orderly end"), 0);
    two.until_closed().await;
    assert_clean_exit(&mut proxy).await;
}

/// Clients that will not let go: a body that never comes, a connection without a handshake, one that takes no answers,
/// one that does not acknowledge a PING.
#[tokio::test]
async fn nobody_delays_the_exit_beyond_the_drain_time() {
    let mut proxy = proxy("lame_duck_secs = 0\ndrain_secs = 1").await;
    let _silent = TcpStream::connect(proxy.address).await.unwrap();
    let bytes = raw_http1(&encrypt(), &authority(&proxy));
    let mut without_body = RawConnection::open(proxy.address).await;
    without_body.send(&bytes[..bytes.len() - 1]).await;
    let mut unread = FrameConnection::open(proxy.address).await;
    unread.send_head(1, &encrypt()).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 2\n")).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 3\n")).await;
    let began_at = Instant::now();
    proxy.signal("TERM");
    let status = proxy.wait_for_exit();
    let took = began_at.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(status.code(), Some(0), "{}", proxy.all_output());
    let warning = proxy.wait_for_log(|line| line["connections"].is_u64());
    assert_eq!((&warning["level"], &warning["connections"]), (&"WARN".into(), &3.into()));
    let _ = proxy.wait_for_log(says("stopped"));
}

/// A thread inside the HSM cannot be called back, and must not keep the process.
#[tokio::test]
async fn a_call_that_hangs_in_the_hsm_does_not_keep_the_process() {
    let faults = Faults::new();
    let setup = Setup {
        server: "lame_duck_secs = 0\ndrain_secs = 1".to_owned(),
        timeouts: "answer_ms = 1000\nfirst_answer_ms = 1000".to_owned(),
        ..Setup::default()
    };
    let mut proxy = Proxy::start(&faults.between(setup)).await;
    faults.set("C_Encrypt hang forever");
    let mut connection = proxy.connect(Http::Two).await;
    // On a busy machine a request may run out of time before it reaches the HSM.
    while faults.counts().inside(Function::Encrypt) == 0 {
        assert_eq!(connection.send(&encrypt()).await.error(), (503, "DependencyTimeoutException".to_owned()));
    }
    proxy.signal("TERM");
    assert_eq!(proxy.wait_for_exit().code(), Some(0), "{}", proxy.all_output());
    let last = proxy.wait_for_log(says("stopped"));
    assert_eq!(last["clean"], false);
}

/// Nor do many tokens that hang keep it for longer than one: the supervisor was told how long it may take.
#[tokio::test]
async fn tokens_that_hang_are_waited_for_together() {
    const MORE_TOKENS: usize = 9;
    /// Two seconds each, one after the other, would be twenty.
    const MARGIN: Duration = Duration::from_secs(15);
    let token = SoftHsm::with_keys();
    let mut setup = Setup { server: "lame_duck_secs = 0\ndrain_secs = 1".to_owned(), ..Setup::default() };
    for number in 0..MORE_TOKENS {
        let label = format!("another-{number}");
        token.tool(&["init", "--label", &label, "--so-pin", SO_PIN, "--pin", PIN]);
        token.tool(&["generate", "--token", &label, "--label", "xks-health"]);
        let module = Faults::module().display().to_string();
        setup.more += &format!(
            "[[tokens]]\nname = \"{label}\"\nmodule = {module:?}\nlabel = \"{label}\"\npin = \"{PIN}\"\nsessions = 1\n"
        );
    }
    let faults = Faults::new();
    faults.set("");
    let mut proxy = Proxy::start_on(&faults.between(setup), Arc::new(token)).await;
    // Their keepers probe them every ten seconds.
    faults.set("C_Encrypt hang forever");
    faults.wait_until_inside(Function::Encrypt, 1 + MORE_TOKENS as u64).await;
    let began_at = Instant::now();
    proxy.signal("TERM");
    assert_eq!(proxy.wait_for_exit().code(), Some(0), "{}", proxy.all_output());
    assert!(began_at.elapsed() < MARGIN, "{:?}", began_at.elapsed());
    let last = proxy.wait_for_log(says("stopped"));
    assert_eq!(last["clean"], false);
}

#[tokio::test]
async fn the_log_tells_the_end_and_the_address_is_free_for_the_next_process() {
    let mut proxy = proxy("lame_duck_secs = 0").await;
    let mut connection = proxy.connect(Http::Two).await;
    assert_eq!(connection.send(&encrypt()).await.status, 200);
    proxy.signal("TERM");
    assert_clean_exit(&mut proxy).await;
    let lines = proxy.log_lines();
    let position = |text| lines.iter().position(says(text)).unwrap();
    assert!(position("stopping") < position("draining") && position("draining") < position("stopped"));
    let _ = TcpListener::bind(proxy.address).unwrap();
}
