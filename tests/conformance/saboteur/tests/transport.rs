//! What happens before HTTP: versions, suites and cleartext, by bytes that no TLS library would send.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xks_saboteur::{Fault, Saboteur};

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

const TLS_1_0: [u8; 2] = [3, 1];
const TLS_1_1: [u8; 2] = [3, 2];
const TLS_1_2: [u8; 2] = [3, 3];

/// TLS_RSA_WITH_AES_128_CBC_SHA.
const WEAK: [u8; 2] = [0x00, 0x2f];
/// TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384.
const STRONG: [u8; 2] = [0xc0, 0x30];

/// A ClientHello without extensions, in one record.
fn client_hello(version: [u8; 2], suites: &[[u8; 2]]) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let suites = suites.concat();
    let body = [&version[..], &[7; 32], &[0, 0, length(&suites)], &suites, &[1, 0]].concat();
    let message = [&[1, 0, 0, length(&body)], &body[..]].concat();
    [&[HANDSHAKE, 3, 1, 0, length(&message)], &message[..]].concat()
}

/// The first bytes of the answer, as many as there are up to 79.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 79];
    let mut count = 0;
    while let Ok(more @ 1..) = stream.read(&mut answer[count..]).await {
        count += more;
    }
    answer.truncate(count);
    answer
}

#[tokio::test]
async fn old_versions_and_weak_suites_get_a_server_hello_where_that_is_the_fault() {
    let rows = [
        (Fault::Tls10Accepted, client_hello(TLS_1_0, &[WEAK]), TLS_1_0),
        (Fault::Tls11Accepted, client_hello(TLS_1_1, &[WEAK]), TLS_1_1),
        (Fault::WeakSuiteAccepted, client_hello(TLS_1_2, &[WEAK]), TLS_1_2),
    ];
    let sound = Saboteur::start(None).await;
    for (fault, hello, version) in &rows {
        assert_eq!(exchange(sound.addr(), hello).await[0], ALERT, "{fault:?}");
        let faulty = Saboteur::start(Some(*fault)).await;
        let answer = exchange(faulty.addr(), hello).await;
        assert_eq!((answer[0], &answer[1..3], answer[5]), (HANDSHAKE, &version[..], 2), "{fault:?}");
        assert_eq!((&answer[9..11], &answer[44..46]), (&version[..], &WEAK[..]), "{fault:?}");
        // No fault takes what another one takes, nor a hello with a suite that the specification wants.
        for (_, other, _) in rows.iter().filter(|(row, ..)| row != fault) {
            assert_eq!(exchange(faulty.addr(), other).await[0], ALERT, "{fault:?}");
        }
        let strong = client_hello(TLS_1_2, &[WEAK, STRONG]);
        assert_ne!(exchange(faulty.addr(), &strong).await.get(44..46), Some(&WEAK[..]), "{fault:?}");
    }
}

#[tokio::test]
async fn http_in_the_clear_is_served_where_that_is_the_fault() {
    let ping = b"GET /ping HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let sound = Saboteur::start(None).await;
    assert!(!exchange(sound.addr(), ping).await.starts_with(b"HTTP"));
    let faulty = Saboteur::start(Some(Fault::CleartextServed)).await;
    assert!(exchange(faulty.addr(), ping).await.starts_with(b"HTTP/1.1 200"));
}
