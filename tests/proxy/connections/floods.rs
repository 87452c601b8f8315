//! Floods of cheap frames and of requests whose answers nobody reads: they cost neither memory nor the other clients.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use xks_harness::client::{tls, tls_config};
use xks_harness::proxy::main_store;
use xks_harness::{Http, Proxy, Setup, XksRequest};

use super::frames::{
    self, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
};
use super::memory_bytes;

const MIB: usize = 1024 * 1024;
/// More than a proxy that keeps what it is sent, or what it owes, could hide.
const FLOOD_BYTES: usize = 8 * MIB;
/// What the memory of the proxy may grow by, its allocator's reserves included.
const GROWTH_BYTES: usize = 4 * MIB;
/// A writer that could send nothing for so long is being held back, which is as good as a close.
const STALL: Duration = Duration::from_secs(1);

/// Writes the same bytes until it has sent a flood, is held back, or the connection closes.
async fn flood(stream: &mut (impl AsyncWrite + Unpin), begin: &[u8], again: &[u8]) {
    let batch = again.repeat((16 * 1024 / again.len()).max(1));
    if stream.write_all(begin).await.is_err() {
        return;
    }
    for _ in 0..FLOOD_BYTES / batch.len() {
        match timeout(STALL, stream.write_all(&batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// A signed client on a connection of its own.
async fn serves_others(proxy: &Proxy, name: &str) {
    let mut connection = proxy.connect(Http::Two).await;
    assert_eq!(connection.send(&XksRequest::metadata(&main_store(), "demo")).await.status, 200, "{name}");
}

async fn wait_until_all_are_gone(proxy: &Proxy) {
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 0\n")).await;
}

/// Reads and throws away.
async fn drain(mut reader: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}

fn unsigned_request() -> XksRequest {
    XksRequest { signing: None, ..XksRequest::metadata(&main_store(), "demo") }
}

fn unsigned() -> Vec<u8> {
    frames::header_block(&unsigned_request(), "localhost")
}

#[tokio::test]
async fn frames_that_nobody_waits_for() {
    let head = unsigned();
    let open_stream = frame(HEADERS, END_HEADERS, 1, &head);
    let continuation = frame(CONTINUATION, 0, 1, &[&[0, 1, b'x', 127, 0][..], &[b'y'; 127]].concat());
    let cases: [(&str, &[u8], Vec<u8>); 8] = [
        ("PING", &[], frame(PING, 0, 0, &[1; 8])),
        ("SETTINGS", &[], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("empty SETTINGS", &[], frame(SETTINGS, 0, 0, &[])),
        ("WINDOW_UPDATE", &[], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", &[], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("an unknown kind", &[], frame(0xfa, 0, 0, &[1; 64])),
        ("CONTINUATION", &frame(HEADERS, 0, 1, &head), continuation),
        ("empty DATA", &open_stream, frame(DATA, 0, 1, &[])),
    ];
    let proxy = Proxy::start(&Setup::default()).await;
    serves_others(&proxy, "before").await;
    let before = memory_bytes(&proxy);
    for (name, begin, again) in cases {
        let mut stream = FrameConnection::open(proxy.address).await.into_stream();
        flood(&mut stream, begin, &again).await;
        let grown = memory_bytes(&proxy).saturating_sub(before);
        assert!(grown < GROWTH_BYTES, "{name}: {} MiB", grown / MIB);
        serves_others(&proxy, name).await;
        drop(stream);
    }
    wait_until_all_are_gone(&proxy).await;
}

/// CVE-2023-44487: each stream is opened and reset at once, so that the limit on streams is never reached.
#[tokio::test]
async fn rapid_resets() {
    const STREAMS: u32 = 5_000;
    let proxy = Proxy::start(&Setup::default()).await;
    serves_others(&proxy, "before").await;
    let before = memory_bytes(&proxy);
    let head = unsigned();
    let (reader, mut writer) = tokio::io::split(FrameConnection::open(proxy.address).await.into_stream());
    let reading = tokio::spawn(drain(reader));
    for stream in (1..2 * STREAMS).step_by(2) {
        let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
        let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        if writer.write_all(&[open, reset].concat()).await.is_err() {
            break;
        }
    }
    serves_others(&proxy, "rapid resets").await;
    let grown = memory_bytes(&proxy).saturating_sub(before);
    assert!(grown < GROWTH_BYTES, "{} MiB", grown / MIB);
    reading.abort();
    drop(writer);
    wait_until_all_are_gone(&proxy).await;
    // Whatever they were doing when they were reset, they are doing it no longer.
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 0\n")).await;
}

/// Answers with no window to go through are owed on each stream until the limit on streams stops it.
#[tokio::test]
async fn answers_without_a_window_to_go_through() {
    let limits = "max_streams_per_connection = 10".to_owned();
    // They are waited for.
    let timeouts = format!("{}\nheader_ms = 60000", Setup::default().timeouts);
    let proxy = Proxy::start(&Setup { limits, timeouts, ..Setup::default() }).await;
    let mut connection = FrameConnection::open(proxy.address).await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    connection.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    let head = unsigned();
    for stream in (1..40).step_by(2) {
        connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)).await;
    }
    let mut refused = 0;
    while refused < 10 {
        let reset = connection.next_of(RST_STREAM).await;
        assert_eq!(reset.error_code(), frames::REFUSED_STREAM);
        refused += 1;
    }
    serves_others(&proxy, "no window").await;
    // The ten answers are still to be had.
    connection.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])).await;
    for _ in 0..10 {
        let data = connection.next_of(DATA).await;
        assert!(String::from_utf8_lossy(&data.payload).contains("AuthenticationFailedException"));
    }
}

/// They are memory, and many connections could owe many of them: another answer now and then does not prolong that.
#[tokio::test]
async fn answers_that_nobody_lets_through_close_their_connection() {
    let timeouts = format!("{}\nheader_ms = 500\nidle_ms = 600000", Setup::default().timeouts);
    let proxy = Proxy::start(&Setup { timeouts, ..Setup::default() }).await;
    let mut connection = FrameConnection::open(proxy.address).await;
    connection.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &unsigned())).await;
    let head = frames::header_block(
        &XksRequest {
            method: http::Method::HEAD,
            path: "/ping".to_owned(),
            signing: None,
            ..unsigned_request()
        },
        "localhost",
    );
    let mut stream = 3;
    while connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)).await {
        assert!(stream < 2_000, "it is never closed");
        stream += 2;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let closed = "xks_connections_closed_total{reason=\"unread_answer\"} 1\n";
    proxy.wait_for("/metrics", |_, text| text.contains(closed)).await;
    wait_until_all_are_gone(&proxy).await;
}

/// Sends requests until the proxy takes no more, and looks at what that cost it.
pub(super) async fn requests_without_readers(mut stream: impl AsyncWrite + Unpin, proxy: &Proxy) {
    let before = memory_bytes(proxy);
    flood(&mut stream, b"", b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let grown = memory_bytes(proxy).saturating_sub(before);
    assert!(grown < GROWTH_BYTES, "{} MiB", grown / MIB);
}

#[tokio::test]
async fn pipelined_requests_whose_answers_nobody_reads_on_the_tls_listener() {
    let proxy = Proxy::start(&Setup::default()).await;
    requests_without_readers(tls(proxy.address, tls_config(Http::One)).await.unwrap(), &proxy).await;
    serves_others(&proxy, "unread answers").await;
    wait_until_all_are_gone(&proxy).await;
}
