//! The knobs: what a test changes is what the proxy sees.

use bytes::Bytes;
use http::{HeaderValue, Method};
use mock_kms::xks::{Failure, Request, Shaping, Signing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stub::{Stub, healthy, metadata, proxy, says};

fn health() -> Request {
    Request::health_status(&proxy(), &metadata("KmsHealthCheck"))
}

#[tokio::test]
async fn what_is_sent_can_differ_from_what_is_signed() {
    let stub = Stub::start(|_| says(200, &healthy())).await;
    let client = stub.patient_client();
    let mut request = health();
    request.method = Method::PUT;
    request.path = "/elsewhere?x=1".to_owned();
    request.body = Bytes::from_static(b"{}");
    request.headers = vec![("x-twice".to_owned(), "1".to_owned()), ("x-twice".to_owned(), "2".to_owned())];
    request.signing.is_off = true;
    client.send(&proxy(), &request).await.outcome.unwrap();
    let edited = health().edited(|request| {
        request.headers_mut().insert("host", HeaderValue::from_static("evil.example.com"));
        *request.body_mut() = Bytes::from_static(b"tampered");
    });
    client.send(&proxy(), &edited).await.outcome.unwrap();
    let mut skewed = health();
    skewed.signing = Signing { skew_secs: -3600, ..Signing::default() };
    client.send(&proxy(), &skewed).await.outcome.unwrap();

    let received = stub.received();
    assert_eq!(received[0].head.lines().next(), Some("PUT /elsewhere?x=1 HTTP/1.1"));
    assert_eq!(received[0].head.matches("x-twice: ").count(), 2);
    assert_eq!((received[0].header("authorization"), received[0].header("x-amz-date")), (None, None));
    assert_eq!(received[0].body, b"{}");
    assert_eq!(received[1].header("host"), Some("evil.example.com"));
    assert_eq!(received[1].body, b"tampered");
    let hour = |index: usize| received[index].header("x-amz-date").unwrap()[..11].to_owned();
    assert_ne!(hour(1), hour(2));
}

#[tokio::test]
async fn a_request_can_be_cut_in_pieces_or_off() {
    let stub = Stub::start(|_| says(200, &healthy())).await;
    let client = stub.patient_client();
    let mut pieces = health();
    pieces.shaping = Shaping { piece_bytes: Some(1), ..Shaping::default() };
    client.send(&proxy(), &pieces).await.outcome.unwrap();
    assert_eq!(stub.received()[0].body, pieces.body);
    for bytes in [0, 1, 100] {
        let mut dropped = health();
        dropped.shaping = Shaping { drop_after_bytes: Some(bytes), ..Shaping::default() };
        let outcome = client.send(&proxy(), &dropped).await.outcome;
        assert!(matches!(outcome, Err(Failure::Broken(_))), "{bytes}: {outcome:?}");
    }
    assert_eq!(stub.received().len(), 1, "what was cut off never came whole");
}

#[tokio::test]
async fn any_bytes_can_be_sent_over_tls() {
    let stub = Stub::start(|_| says(200, &healthy())).await;
    let mut stream = stub.patient_client().open_tls(&proxy()).await.unwrap();
    stream.write_all(b"BREW /pot HTCPCP/1.0\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(stub.received()[0].head, "BREW /pot HTCPCP/1.0\r\n\r\n");
}
