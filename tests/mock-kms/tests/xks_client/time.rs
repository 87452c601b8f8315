//! Proxies that take too long: 250 ms a try from connect on, one more try after a network time-out.

use std::time::Duration;

use mock_kms::xks::{Failure, Malformed, Shaping};
use serde_json::json;

use crate::stub::{Manners, PATIENCE, Step, Stub, healthy, http, metadata, proxy, says};

/// A time that passes twice at most in a test, and within which a busy machine answers all the same.
const LONG_ENOUGH: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_silent_proxy_gets_two_tries_of_250_ms() {
    for is_http2 in [false, true] {
        let stub = Stub::start_with(Manners { is_http2, ..Manners::default() }, |_| vec![Step::Stall]).await;
        let exchange =
            stub.builder().build().unwrap().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert_eq!(exchange.outcome, Err(Failure::TimedOut));
        assert_eq!(exchange.report.tries, 2);
        assert_eq!(stub.connections(), 2, "a connection on which nothing came is not used again");
        assert!(exchange.report.total >= Duration::from_millis(500), "{:?}", exchange.report);
        assert!(exchange.report.last_try >= Duration::from_millis(250), "{:?}", exchange.report);
        assert!(exchange.report.total < PATIENCE, "{:?}", exchange.report);
    }
}

#[tokio::test]
async fn the_second_try_may_succeed() {
    for is_http2 in [false, true] {
        let stub =
            Stub::start_with(Manners { is_http2, ..Manners::default() }, |request| match request.number {
                0 => vec![Step::Stall],
                _ => says(200, &healthy()),
            })
            .await;
        let client = stub.builder().try_timeout(LONG_ENOUGH).build().unwrap();
        let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
        assert_eq!((exchange.report.tries, stub.connections()), (2, 2));
        assert!(exchange.report.total >= LONG_ENOUGH && exchange.report.last_try < exchange.report.total);
        let dates: Vec<_> =
            stub.received().iter().map(|request| request.header("x-amz-date").unwrap().to_owned()).collect();
        assert_ne!(dates[0], dates[1], "each try is signed anew");
    }
}

/// Neither 200 ms of a silent server nor 150 of a slow answer is 250 ms, but KMS counts both from the start.
#[tokio::test]
async fn time_runs_from_connect_on() {
    let manners = Manners { pause_before_tls: Duration::from_millis(150), ..Manners::default() };
    let stub = Stub::start_with(manners, |_| {
        let mut steps = vec![Step::Pause(Duration::from_millis(150))];
        steps.extend(says(200, &healthy()));
        steps
    })
    .await;
    let exchange =
        stub.builder().tries(1).build().unwrap().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert_eq!(exchange.outcome, Err(Failure::TimedOut));
    let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_a_time_out() {
    let stub =
        Stub::start_with(Manners { stalls_in_handshake: true, ..Manners::default() }, |_| Vec::new()).await;
    let client = stub.builder().build().unwrap();
    let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert_eq!((exchange.outcome, exchange.report.tries), (Err(Failure::TimedOut), 2));
    assert!(exchange.report.tcp.is_some() && exchange.report.tls.is_none());
    assert_eq!(client.open_tls(&proxy()).await.err(), Some(Failure::TimedOut));
}

#[tokio::test]
async fn an_answer_that_trickles_or_never_ends_is_a_time_out() {
    let whole = http(200, "application/json", healthy().to_string().as_bytes());
    for sent in [1, 20, whole.len() - 1] {
        let begin = whole[..sent].to_vec();
        let stub = Stub::start(move |_| vec![Step::Send(begin.clone()), Step::Stall]).await;
        let exchange =
            stub.builder().build().unwrap().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert_eq!((exchange.outcome, exchange.report.tries), (Err(Failure::TimedOut), 2), "{sent}");
    }
    let stub = Stub::start(move |_| {
        whole
            .iter()
            .flat_map(|byte| [Step::Send(vec![*byte]), Step::Pause(Duration::from_millis(5))])
            .collect()
    })
    .await;
    let exchange = stub.builder().build().unwrap().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert_eq!(exchange.outcome.err(), Some(Failure::TimedOut));
    let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
}

#[tokio::test]
async fn nothing_but_a_network_time_out_is_tried_again() {
    let errors = [
        says(503, &json!({ "errorName": "DependencyTimeoutException" })),
        says(429, &json!({ "errorName": "ThrottlingException" })),
        says(500, &json!({ "errorName": "InternalException" })),
    ];
    for error in errors {
        let [Step::Send(bytes)] = &error[..] else { panic!() };
        let bytes = bytes.clone();
        let stub = Stub::start(move |_| vec![Step::Send(bytes.clone())]).await;
        let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert!(matches!(exchange.outcome, Err(Failure::Refused(_))));
        assert_eq!((exchange.report.tries, stub.received().len()), (1, 1));
    }
    for (steps, is_broken) in [(vec![b"".to_vec()], true), (vec![b"nonsense\r\n\r\n".to_vec()], false)] {
        let stub = Stub::start(move |_| {
            let send = steps.iter().map(|bytes| Step::Send(bytes.clone()));
            send.chain([Step::Close]).collect()
        })
        .await;
        let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        let failure = exchange.outcome.unwrap_err();
        let is_malformed = matches!(failure, Failure::Malformed(Malformed::Http(_)));
        assert!(if is_broken { matches!(failure, Failure::Broken(_)) } else { is_malformed }, "{failure:?}");
        assert_eq!((exchange.report.tries, stub.received().len()), (1, 1));
    }
}

/// What the client itself delays counts too, so that tests can spend a try's time where they like.
#[tokio::test]
async fn pauses_of_our_own_count() {
    let stub = Stub::start(|_| says(200, &healthy())).await;
    let client = stub.builder().tries(1).build().unwrap();
    let pause = Duration::from_millis(251);
    for shaping in [
        Shaping { before_tls: pause, ..Shaping::default() },
        Shaping { before_request: pause, ..Shaping::default() },
        Shaping { before_reading: pause, ..Shaping::default() },
        Shaping { piece_bytes: Some(10), between_pieces: Duration::from_millis(20), ..Shaping::default() },
    ] {
        let mut request = mock_kms::xks::Request::health_status(&proxy(), &metadata("KmsHealthCheck"));
        request.shaping = shaping.clone();
        let exchange = client.send(&proxy(), &request).await;
        assert_eq!(exchange.outcome.err(), Some(Failure::TimedOut), "{shaping:?}");
        let exchange = stub.patient_client().send(&proxy(), &request).await;
        assert_eq!(exchange.outcome.unwrap().status, 200, "{shaping:?}");
    }
}
