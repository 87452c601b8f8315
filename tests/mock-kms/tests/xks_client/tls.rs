//! Certificates on both sides.

use mock_kms::xks::{Client, Failure};

use crate::stub::{Manners, NAME, PATIENCE, Pki, Stub, healthy, metadata, proxy, says};

async fn stub(manners: Manners) -> Stub {
    Stub::start_with(manners, |_| says(200, &healthy())).await
}

#[tokio::test]
async fn the_certificate_is_told() {
    let stub = stub(Manners::default()).await;
    let client = stub.patient_client();
    for _ in 0..2 {
        let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        let certificate = exchange.report.certificate.unwrap();
        assert_eq!(certificate.common_names, [NAME]);
        assert!(certificate.has_common_name_for(NAME));
    }
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_or_another_name_is_refused() {
    let right = stub(Manners::default()).await;
    let strangers =
        Client::builder().without_system_roots().resolve(NAME, right.address).try_timeout(PATIENCE);
    let with_system_roots = Client::builder().resolve(NAME, right.address).try_timeout(PATIENCE);
    for client in [strangers.build().unwrap(), with_system_roots.build().unwrap()] {
        let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert!(matches!(exchange.outcome, Err(Failure::Tls(_))), "{:?}", exchange.outcome);
        assert_eq!(exchange.report.tries, 1);
        assert!(matches!(client.open_tls(&proxy()).await, Err(Failure::Tls(_))));
    }
    let wrong = stub(Manners { has_wrong_name: true, ..Manners::default() }).await;
    let outcome = wrong.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome;
    assert!(matches!(outcome, Err(Failure::Tls(_))), "{outcome:?}");
    assert_eq!(wrong.received().len() + right.received().len(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_common_name_is_refused_unless_any_will_do() {
    let stub = stub(Manners { has_wrong_common_name: true, ..Manners::default() }).await;
    let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    let Err(Failure::Tls(text)) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
    assert!(text.contains("other.example.com") && text.contains(NAME), "{text}");
    assert_eq!(exchange.report.certificate.unwrap().common_names, ["other.example.com"]);
    assert_eq!(stub.received().len(), 0);
    let lenient = stub.builder().try_timeout(PATIENCE).any_common_name().build().unwrap();
    assert!(lenient.health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome.is_ok());
}

#[tokio::test]
async fn what_is_no_tls_is_a_tls_failure() {
    for manners in [
        Manners { babbles: true, ..Manners::default() },
        Manners { closes_at_once: true, ..Manners::default() },
    ] {
        let stub = stub(manners).await;
        let outcome =
            stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome;
        assert!(matches!(outcome, Err(Failure::Tls(_))), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_whom_it_is_demanded() {
    let (chain, key) = &Pki::shared().client;
    for wants_client_certificate in [true, false] {
        let stub = stub(Manners { wants_client_certificate, ..Manners::default() }).await;
        let builder = stub.builder().try_timeout(PATIENCE);
        let client = builder.client_identity_pem(chain.as_bytes(), key.as_bytes()).unwrap().build().unwrap();
        let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert!(exchange.outcome.is_ok(), "{:?}", exchange.outcome);
        let expected = if wants_client_certificate { "cks.kms.us-east-1.amazonaws.com" } else { "" };
        assert_eq!(stub.client_names(), [expected]);
    }
}

/// In TLS 1.3 the refusal comes after the handshake, when the request is already on its way.
#[tokio::test]
async fn a_client_without_certificate_fails_in_tls_where_one_is_demanded() {
    for is_http2 in [false, true] {
        let stub = stub(Manners { wants_client_certificate: true, is_http2, ..Manners::default() }).await;
        let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        assert!(matches!(exchange.outcome, Err(Failure::Tls(_))), "{is_http2} {:?}", exchange.outcome);
        assert_eq!(stub.received().len(), 0);
    }
}
