//! TLS and what is spoken through it: versions, suites, certificates, ALPN, resumption.

mod admin;
mod certificates;
mod chains;
mod latency;
mod mtls;
mod refusals;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use xks_harness::client::{plain_get, tls, tls_config};
use xks_harness::proxy::main_store;
use xks_harness::{Http, Pki, Proxy, Setup, XksRequest};

const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

/// What a client is able to do.
#[derive(Clone)]
struct Abilities {
    suites: Vec<SupportedCipherSuite>,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<&'static [u8]>,
}

impl Default for Abilities {
    fn default() -> Self {
        Self {
            suites: aws_lc_rs::ALL_CIPHER_SUITES.to_vec(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            alpn: Vec::new(),
        }
    }
}

impl Abilities {
    /// A client that has nothing but this suite and its version.
    fn of_suite(suite: SupportedCipherSuite) -> Self {
        let version = match suite {
            SupportedCipherSuite::Tls12(_) => &rustls::version::TLS12,
            SupportedCipherSuite::Tls13(_) => &rustls::version::TLS13,
        };
        Self { suites: vec![suite], versions: vec![version], ..Self::default() }
    }

    fn config(&self) -> ClientConfig {
        let provider = CryptoProvider { cipher_suites: self.suites.clone(), ..aws_lc_rs::default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(Pki::shared().roots())
            .with_no_client_auth();
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        tls(address, self.config()).await
    }
}

/// Asks for `/ping` by HTTP/1.1 and returns the answer.
async fn ping(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(PING).await.unwrap();
    let mut answer = String::new();
    // Some servers leave out the close_notify behind "connection: close".
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

/// The key of the certificate that the proxy presented.
fn key_of(stream: &TlsStream<TcpStream>) -> &'static str {
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let pem_of = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let pki = Pki::shared();
    match certificate {
        _ if certificate == pem_of(&pki.rsa.certificate) => "RSA",
        _ if certificate == pem_of(&pki.ecdsa.certificate) => "ECDSA",
        _ => "neither",
    }
}

/// ChaCha20 is left out of a build in FIPS mode, since NIST does not approve it.
const HAS_CHACHA20: bool = !cfg!(feature = "fips");

/// What this build serves, with the version and the key that it goes with.
fn served_suites() -> Vec<(SupportedCipherSuite, ProtocolVersion, &'static str)> {
    let chacha20 = (cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, ProtocolVersion::TLSv1_3, "ECDSA");
    let mut suites = vec![
        (cipher_suite::TLS13_AES_256_GCM_SHA384, ProtocolVersion::TLSv1_3, "ECDSA"),
        (cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, ProtocolVersion::TLSv1_2, "ECDSA"),
        (cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, ProtocolVersion::TLSv1_2, "RSA"),
    ];
    suites.extend(HAS_CHACHA20.then_some(chacha20));
    suites
}

#[tokio::test]
async fn each_suite_of_the_specification_is_negotiated_and_serves() {
    let proxy = Proxy::start(&Setup::default()).await;
    for (suite, version, key) in served_suites() {
        let abilities = Abilities::of_suite(suite);
        let mut stream = abilities.connect(proxy.address).await.unwrap();
        let connection = stream.get_ref().1;
        assert_eq!(connection.negotiated_cipher_suite().unwrap().suite(), suite.suite());
        assert_eq!(connection.protocol_version(), Some(version));
        assert_eq!(key_of(&stream), key, "{:?}", suite.suite());
        assert!(ping(&mut stream).await.starts_with("HTTP/1.1 200"), "{:?}", suite.suite());
    }
}

#[tokio::test]
async fn the_protocol_is_what_alpn_agrees_on_and_http1_without_it() {
    let proxy = Proxy::start(&Setup::default()).await;
    for (offered, agreed) in [
        (&[&b"h2"[..]][..], Some(&b"h2"[..])),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[b"h2", b"http/1.1"], Some(b"h2")),
        (&[b"http/1.1", b"h2"], Some(b"h2")),
        (&[b"spdy/3", b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let abilities = Abilities { alpn: offered.to_vec(), ..Abilities::default() };
        let mut stream = abilities.connect(proxy.address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        if agreed == Some(b"h2") {
            let mut first = [0; 9];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(first[3], 4, "HTTP/2 begins with SETTINGS");
        } else {
            assert!(ping(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
    }
    for offered in [&b"spdy/3"[..], b"http/1.0", b"h3", b"H2"] {
        let abilities = Abilities { alpn: vec![offered], ..Abilities::default() };
        let refusal = abilities.connect(proxy.address).await.unwrap_err().to_string();
        assert!(refusal.contains("NoApplicationProtocol"), "{refusal}");
    }
}

#[tokio::test]
async fn a_session_is_resumed_and_serves() {
    let proxy = Proxy::start(&Setup::default()).await;
    for version in rustls::ALL_VERSIONS {
        // Clones share the store of tickets.
        let config = Abilities { versions: vec![version], ..Abilities::default() }.config();
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut stream = tls(proxy.address, config.clone()).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
            // With the answer the next ticket has been read.
            assert!(ping(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
    }
    let config = tls_config(Http::Two);
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut stream = tls(proxy.address, config.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
        stream.read_exact(&mut [0; 9]).await.unwrap();
    }
}

#[tokio::test]
async fn a_signed_request_is_served_over_both_protocols() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let answer = connection.send(&XksRequest::metadata(&main_store(), "demo")).await;
        assert_eq!(answer.ok()["keySpec"], "AES_256");
    }
}

/// Unsigned, on the TLS listener by both protocols and on the plain one.
#[tokio::test]
async fn ping_is_answered_on_both_listeners() {
    let proxy = Proxy::start(&Setup::default()).await;
    let ping = XksRequest {
        method: http::Method::GET,
        path: "/ping".to_owned(),
        body: Vec::new(),
        headers: Vec::new(),
        signing: None,
    };
    for http in Http::BOTH {
        let answer = proxy.connect(http).await.send(&ping).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"ready\n"[..]), "{http:?}");
    }
    assert_eq!(plain_get(proxy.ping, "/ping").await, (200, "ready\n".to_owned()));
}
