//! The admin listener over TLS: whom it admits, and that nobody keeps the others out.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use xks_harness::client::tls;
use xks_harness::pki::{PemPair, TestCa};
use xks_harness::proxy::PATIENCE;
use xks_harness::{Pki, Proxy, Setup, SoftHsm};

const CERTIFICATES: &str = "certificates = [{ chain_file = \"ecdsa.pem\", key_file = \"ecdsa.key\" }]\n";
const CLIENTS: &str =
    "client_certificates = { ca_file = \"operators.pem\", common_names = [\"prometheus\"] }\n";

/// A proxy whose admin listener has these lines, and the folder of its configuration; `ca` vouches for operators.
fn proxy(lines: &str, ca: &TestCa) -> (Proxy, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("operators.pem"), ca.pem()).unwrap();
    let token = Arc::new(SoftHsm::with_keys());
    let more = "[reload]\nwatch = false\n".to_owned();
    let config = Setup { more, ..Setup::default() }.write(folder.path(), &token);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen("[admin]\n", &format!("[admin]\n{lines}"), 1)).unwrap();
    (Proxy::start_in(folder.path(), token), folder)
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn config(shown: Option<&PemPair>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(Pki::shared().roots());
    let Some(pair) = shown else { return builder.with_no_client_auth() };
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    builder.with_client_auth_cert(vec![certificate], key).unwrap()
}

async fn ask(stream: &mut TlsStream<TcpStream>, path: &str, connection: &str) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: {connection}\r\n\r\n");
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    loop {
        let mut piece = [0; 64 * 1024];
        match stream.read(&mut piece).await {
            Ok(0) if connection == "close" => return Ok(String::from_utf8(answer).unwrap()),
            Ok(0) => return Err("closed".to_owned()),
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) => return Err(error.to_string()),
        }
        if connection != "close" && answer.ends_with(b"alive\n") {
            return Ok(String::from_utf8(answer).unwrap());
        }
    }
}

/// What the admin listener says to a client; the error that cut it off.
async fn get(proxy: &Proxy, config: &ClientConfig, path: &str) -> Result<String, String> {
    let mut stream = tls(proxy.admin, config.clone()).await.map_err(|error| error.to_string())?;
    ask(&mut stream, path, "close").await
}

/// Waits until a line of the metrics is there, asking as that client.
async fn wait_for_metric(proxy: &Proxy, config: &ClientConfig, line: &str) {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let metrics = get(proxy, config, "/metrics").await.unwrap();
        if metrics.lines().any(|found| found == line) {
            return;
        }
        assert!(std::time::Instant::now() < until, "no {line} in {metrics}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn with_certificates_it_is_tls_and_nothing_else() {
    let (proxy, _folder) = proxy(CERTIFICATES, &TestCa::new("operators"));
    let metrics = get(&proxy, &config(None), "/metrics").await.unwrap();
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    for name in ["0", "1", "admin-0"] {
        let series =
            format!("xks_certificate_not_after_timestamp_seconds{{certificate=\"{name}\",part=\"leaf\"}} ");
        assert!(metrics.contains(&series), "{series}");
    }
    assert!(!metrics.contains("xks_certificate_oddity{certificate=\"admin-0\""), "KMS never sees it");
    assert!(get(&proxy, &config(None), "/readyz?verbose").await.unwrap().contains("configuration 1 loaded"));
    let mut http2 = config(None);
    http2.alpn_protocols = vec![b"h2".to_vec()];
    assert!(tls(proxy.admin, http2).await.is_err(), "HTTP/1.1 alone");
    let mut plain = TcpStream::connect(proxy.admin).await.unwrap();
    plain.write_all(b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/"), "{answer:?}");
}

#[tokio::test]
async fn only_clients_of_the_authority_and_the_names_are_admitted() {
    let ca = TestCa::new("operators");
    let (proxy, _folder) = proxy(&format!("{CERTIFICATES}{CLIENTS}"), &ca);
    let operator = config(Some(&ca.issue(&["prometheus"], in_an_hour())));
    assert!(get(&proxy, &operator, "/livez").await.unwrap().ends_with("alive\n"));
    let other = TestCa::new("others");
    for (shown, reason) in [
        (None, "none"),
        (Some(other.issue(&["prometheus"], in_an_hour())), "unknown_issuer"),
        (Some(ca.issue(&["grafana"], in_an_hour())), "common_name"),
        (Some(ca.issue(&["prometheus", "prometheus"], in_an_hour())), "common_names"),
        (Some(ca.issue(&["prometheus"], SystemTime::now() - Duration::from_secs(60))), "expired"),
    ] {
        let config = config(shown.as_ref());
        // Once more with what a session that was resumed would have.
        for round in 1..=2 {
            let error = get(&proxy, &config, "/metrics").await.unwrap_err();
            assert!(error.contains("HandshakeFailure"), "{reason}: {error}");
            let line = format!("xks_admin_client_certificate_failures_total{{reason=\"{reason}\"}} {round}");
            wait_for_metric(&proxy, &operator, &line).await;
        }
    }
    let line = proxy.wait_for_log(|line| {
        line["message"] == "a client of the admin listener was cut off in the TLS handshake"
    });
    assert!(line["reason"].as_str().unwrap().contains("showed no certificate"), "{line}");
    assert!(line["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
}

#[tokio::test]
async fn its_certificate_and_its_roots_are_reloaded() {
    let (ca, next) = (TestCa::new("operators"), TestCa::new("next"));
    let (proxy, folder) = proxy(&format!("{CERTIFICATES}{CLIENTS}"), &ca);
    let of = |ca: &TestCa| config(Some(&ca.issue(&["prometheus"], in_an_hour())));
    let (operator, successor) = (of(&ca), of(&next));
    let presented = async |config: &ClientConfig| {
        let stream = tls(proxy.admin, config.clone()).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = presented(&operator).await;
    let reloaded = async |config: &ClientConfig, count: u32| {
        wait_for_metric(&proxy, config, &format!("xks_config_reloads_total{{outcome=\"ok\"}} {count}")).await;
    };
    let another = Pki::shared().another();
    fs::write(folder.path().join("ecdsa.pem"), &another.certificate).unwrap();
    fs::write(folder.path().join("ecdsa.key"), &another.key).unwrap();
    proxy.signal("HUP");
    reloaded(&operator, 1).await;
    assert_ne!(presented(&of(&ca)).await, before);
    fs::write(folder.path().join("operators.pem"), next.pem()).unwrap();
    proxy.signal("HUP");
    let until = std::time::Instant::now() + PATIENCE;
    while get(&proxy, &successor, "/livez").await.is_err() {
        assert!(std::time::Instant::now() < until, "the next operator is never admitted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = get(&proxy, &operator, "/livez").await.unwrap_err();
    assert!(error.contains("HandshakeFailure"), "{error}");
}

/// At the cap, whoever has shown a certificate stays, and a newcomer is served.
#[tokio::test]
async fn silent_strangers_keep_no_operator_out() {
    const CAP: usize = 256;
    let ca = TestCa::new("operators");
    let (proxy, _folder) = proxy(&format!("{CERTIFICATES}{CLIENTS}"), &ca);
    let operator = config(Some(&ca.issue(&["prometheus"], in_an_hour())));
    let mut first = tls(proxy.admin, operator.clone()).await.unwrap();
    ask(&mut first, "/livez", "keep-alive").await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..CAP + 50 {
        strangers.push(TcpStream::connect(proxy.admin).await.unwrap());
    }
    assert!(get(&proxy, &operator, "/livez").await.unwrap().ends_with("alive\n"));
    assert!(
        ask(&mut first, "/livez", "keep-alive").await.unwrap().ends_with("alive\n"),
        "it was there before"
    );
}
