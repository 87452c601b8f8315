//! Connections: reached or not, kept, shared, found stale, broken off.

use mock_kms::xks::{Client, Failure, HttpVersion, Proxy, Request, Shaping};
use tokio::net::TcpSocket;

use crate::stub::{Manners, NAME, PATIENCE, Step, Stub, encrypted, healthy, http, metadata, proxy, says};

#[tokio::test]
async fn nothing_there_is_unreachable_and_not_tried_again() {
    // Bound and not listening: the kernel refuses, and nobody else gets the port.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let client = Client::builder().resolve(NAME, address).try_timeout(PATIENCE).build().unwrap();
    let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert!(matches!(exchange.outcome, Err(Failure::Unreachable(_))), "{:?}", exchange.outcome);
    assert_eq!((exchange.report.tries, exchange.report.version), (1, None));
    assert!(matches!(client.open_tls(&proxy()).await, Err(Failure::Unreachable(_))));
}

#[tokio::test]
async fn a_name_without_an_address_is_unreachable() {
    let client = Client::builder().try_timeout(PATIENCE).build().unwrap();
    let nowhere = Proxy::new("xks.invalid", "/kms/xks/v1", "A", "s", "us-east-1");
    let outcome = client.health_status(&nowhere, &metadata("KmsHealthCheck")).await.outcome;
    assert!(matches!(outcome, Err(Failure::Unreachable(_))), "{outcome:?}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_sent() {
    let stub = Stub::start(|_| says(200, &healthy())).await;
    let client = stub.patient_client();
    let request = Request::health_status(&proxy(), &metadata("KmsHealthCheck"));
    let mut bad_path = request.clone();
    bad_path.path = "/a b".to_owned();
    let mut bad_header = request;
    bad_header.headers.push(("x-more".to_owned(), "line\nbreak".to_owned()));
    for request in [bad_path, bad_header] {
        let outcome = client.send(&proxy(), &request).await.outcome;
        assert!(matches!(outcome, Err(Failure::NotSent(_))), "{outcome:?}");
    }
    assert_eq!(stub.received().len(), 0);
}

#[tokio::test]
async fn one_connection_carries_request_after_request() {
    for is_http2 in [false, true] {
        let stub =
            Stub::start_with(Manners { is_http2, ..Manners::default() }, |_| says(200, &healthy())).await;
        let client = stub.patient_client();
        for number in 0..5 {
            let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
            assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
            let version = if is_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
            assert_eq!(exchange.report.version, Some(version));
            // An HTTP/1.1 connection is put back by a task of its own, so one more may have been opened meanwhile.
            if is_http2 {
                assert_eq!(exchange.report.is_reused, number > 0);
                assert_eq!(exchange.report.tcp.is_none(), number > 0);
            }
        }
        assert!(stub.connections() < 5, "{} connections", stub.connections());
        assert_eq!(stub.received().len(), 5);
    }
}

#[tokio::test]
async fn with_http2_the_host_is_the_authority() {
    let manners = Manners { is_http2: true, ..Manners::default() };
    let stub = Stub::start_with(manners, |request| says(200, &encrypted(&request.json()))).await;
    let exchange = stub
        .patient_client()
        .encrypt(&proxy(), "..", &metadata("Encrypt"), &[7; 4300], Some(&[1; 8192]))
        .await;
    assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
    let received = &stub.received()[0];
    let expected = "POST https://xks.example.com/stub/kms/xks/v1/keys/../encrypt HTTP/2.0";
    assert_eq!(received.head.lines().next(), Some(expected));
    assert_eq!(received.header("host"), None);
}

#[tokio::test]
async fn a_server_that_names_no_protocol_gets_http1() {
    let manners = Manners { has_no_alpn: true, ..Manners::default() };
    let stub = Stub::start_with(manners, |_| says(200, &healthy())).await;
    let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
    assert_eq!(exchange.report.version, Some(HttpVersion::Http1));
}

#[tokio::test]
async fn requests_at_once_share_http2_and_not_http1() {
    for is_http2 in [false, true] {
        let barrier = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let seen = std::sync::Arc::clone(&barrier);
        let manners = Manners { is_http2, ..Manners::default() };
        let stub = Stub::start_with(manners, move |_| {
            seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            says(200, &healthy())
        })
        .await;
        let client = stub.patient_client();
        // The first opens a connection; the others begin while it is there.
        assert!(client.health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome.is_ok());
        let calls: Vec<_> = (0..10)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.health_status(&proxy(), &metadata("KmsHealthCheck")).await })
            })
            .collect();
        for call in calls {
            let exchange = call.await.unwrap();
            assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
        }
        assert_eq!(barrier.load(std::sync::atomic::Ordering::SeqCst), 11);
        if is_http2 {
            assert_eq!(stub.connections(), 1);
        }
    }
}

/// A connection that the proxy closed while it was idle, or as the request came in, is no failure.
#[tokio::test]
async fn a_stale_connection_is_replaced_within_the_try() {
    let stub = Stub::start(|request| match (request.connection, request.number) {
        (0, 0) => says(200, &healthy()),
        (0, _) => vec![Step::Drop],
        _ => says(200, &healthy()),
    })
    .await;
    let client = stub.patient_client();
    for _ in 0..20 {
        let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
        assert_eq!(exchange.report.tries, 1);
    }
    assert!(stub.connections() >= 2);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_broken() {
    let whole = http(200, "application/json", healthy().to_string().as_bytes());
    for sent in [0, 1, 20, whole.len() - 1] {
        for close in [true, false] {
            let begin = whole[..sent].to_vec();
            let stub = Stub::start(move |_| {
                vec![Step::Send(begin.clone()), if close { Step::Close } else { Step::Drop }]
            })
            .await;
            let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
            let failure = exchange.outcome.unwrap_err();
            assert!(matches!(failure, Failure::Broken(_)), "{sent} {close}: {failure:?}");
            assert_eq!((exchange.report.tries, stub.connections()), (1, 1));
        }
    }
}

/// Without its close, an answer without a length could have been cut short by anybody.
#[tokio::test]
async fn an_answer_without_a_length_ends_with_the_close_of_tls() {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}", healthy());
    for close in [true, false] {
        let answer = answer.clone().into_bytes();
        let stub = Stub::start(move |_| {
            vec![Step::Send(answer.clone()), if close { Step::Close } else { Step::Drop }]
        })
        .await;
        let outcome =
            stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome;
        assert_eq!(outcome.is_ok(), close, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_request_can_have_a_connection_of_its_own() {
    let stub = Stub::start(|_| says(200, &healthy())).await;
    let client = stub.patient_client();
    let mut request = Request::health_status(&proxy(), &metadata("KmsHealthCheck"));
    request.shaping = Shaping { has_own_connection: true, ..Shaping::default() };
    for _ in 0..3 {
        let exchange = client.send(&proxy(), &request).await;
        assert!(!exchange.report.is_reused && exchange.report.tls.is_some());
    }
    assert_eq!(stub.connections(), 3);
    let frugal = stub.builder().try_timeout(PATIENCE).keep_alive(std::time::Duration::ZERO).build().unwrap();
    for _ in 0..3 {
        assert!(frugal.health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome.is_ok());
    }
    assert_eq!(stub.connections(), 6);
}
