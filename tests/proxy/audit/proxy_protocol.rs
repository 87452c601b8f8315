//! PROXY protocol version 2 before TLS: from configured networks required, from nobody else taken.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use xks_harness::client::{raw_http1, tls_config};
use xks_harness::{Http, Proxy, Setup};

use super::{AuditFolder, encrypt, end};

/// TCP over IPv4 from 203.0.113.7:40000.
const HEADER: [u8; 28] =
    *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x9c\x40\x01\xbb";

fn behind_a_balancer(network: &str) -> Setup {
    let server = format!("lame_duck_secs = 0\nproxy_protocol_from = [\"{network}\"]");
    Setup { server, ..Setup::default() }
}

/// The answer to a request behind `header`; `None` where the connection is closed instead.
async fn send(proxy: &Proxy, header: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(header).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(tls_config(Http::One))).connect(name, stream).await.ok()?;
    let authority = format!("localhost:{}", proxy.address.port());
    stream.write_all(&raw_http1(&encrypt(), &authority)).await.ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.ok()?;
    Some(String::from_utf8(answer.to_vec()).unwrap())
}

#[tokio::test]
async fn behind_a_load_balancer_log_and_record_name_the_client() {
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup_of("", behind_a_balancer("127.0.0.0/8"))).await;
    assert_eq!(send(&proxy, &HEADER).await.as_deref(), Some("HTTP/1.1 200"));
    let line = proxy.wait_for_log(|line| line["peer"] == "203.0.113.7:40000");
    assert!(line["balancer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    // Without a header, or with one that is not good, there is no connection.
    let mut of_version_3 = HEADER;
    of_version_3[12] = 0x31;
    let mut endless = HEADER;
    endless[14] = 0xff;
    for header in [&b""[..], b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 443\r\n", &of_version_3, &endless] {
        assert_eq!(send(&proxy, header).await, None, "{header:?}");
    }
    let closed = r#"xks_connections_closed_total{reason="no_proxy_header"} 4"#;
    proxy.wait_for("/metrics", |_, text| text.contains(closed)).await;
    end(proxy).await;
    let records = folder.requests();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((&records[0]["peer"], &records[0]["balancer"]), (&line["peer"], &line["balancer"]));
}

#[tokio::test]
async fn from_elsewhere_a_header_is_no_header() {
    let proxy = Proxy::start(&behind_a_balancer("10.0.0.0/16")).await;
    assert_eq!(send(&proxy, b"").await.as_deref(), Some("HTTP/1.1 200"));
    assert_eq!(send(&proxy, &HEADER).await, None);
}

#[tokio::test]
async fn a_header_that_does_not_come_is_not_waited_for() {
    let setup = behind_a_balancer("127.0.0.0/8");
    let timeouts = format!("{}\nhandshake_ms = 200", setup.timeouts);
    let proxy = Proxy::start(&Setup { timeouts, ..setup }).await;
    for sent in [0, 1, 16, HEADER.len() - 1] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(&HEADER[..sent]).await.unwrap();
        // Closed by the proxy; a reset is a close too.
        let _ = stream.read(&mut [0]).await;
    }
    let closed = r#"xks_connections_closed_total{reason="handshake_timeout"} 4"#;
    proxy.wait_for("/metrics", |_, text| text.contains(closed)).await;
}
