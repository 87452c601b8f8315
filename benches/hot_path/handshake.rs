//! TLS 1.3 handshakes with an ECDSA certificate between two ends in memory: both ends' work, without the kernel's.

use std::sync::Arc;

use criterion::Criterion;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
};
use xks_harness::client::tls_config;
use xks_harness::{Http, Pki};
use xks_proxy::tls::{CertificateFiles, ListenerTls};

pub(crate) fn measure(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    Pki::shared().write(folder.path());
    let files = CertificateFiles {
        chain_file: folder.path().join("ecdsa.pem"),
        key_file: folder.path().join("ecdsa.key"),
    };
    let server = ListenerTls::new(&[files], None).unwrap().server;
    let (resuming, mut full) = (tls_config(Http::One), tls_config(Http::One));
    full.resumption = Resumption::disabled();
    let (resuming, full) = (Arc::new(resuming), Arc::new(full));
    // The first handshake brings the tickets for those that follow.
    shake_hands(&resuming, &server);
    let mut group = criterion.benchmark_group("tls_handshake");
    for (name, client, kind) in
        [("full", &full, HandshakeKind::Full), ("resumed", &resuming, HandshakeKind::Resumed)]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(shake_hands(client, &server), kind));
        });
    }
    group.finish();
}

/// A whole handshake, the tickets read too.
fn shake_hands(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> HandshakeKind {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut wire = Vec::new();
    while client.wants_write() || server.wants_write() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server.process_new_packets().unwrap();
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    server.handshake_kind().unwrap()
}
