//! The client against the real proxy on SoftHSM2.

use std::sync::Arc;

use mock_kms::xks::{Client, Failure, HttpVersion, Proxy as Target, Request, RequestMetadata, Signing};
use xks_harness::proxy::main_store;
use xks_harness::{Pki, Proxy, Setup, SoftHsm};
use xks_spec::ErrorName;
use xks_spec::response::{HealthStatus, KeyStatus};

use crate::stub::{PATIENCE, metadata};

fn target() -> Target {
    let signing = main_store().signing;
    Target::new(
        "localhost",
        "/main/kms/xks/v1",
        &signing.access_key_id,
        &signing.secret_access_key,
        "us-east-1",
    )
}

fn client(proxy: &Proxy, version: HttpVersion) -> Client {
    Client::builder()
        .without_system_roots()
        .trust_ca_pem(Pki::shared().ca_pem().as_bytes())
        .unwrap()
        .resolve("localhost", proxy.address)
        .http_versions(&[version])
        .try_timeout(PATIENCE)
        .build()
        .unwrap()
}

#[tokio::test]
async fn the_four_operations_over_both_http_versions() {
    let proxy = Proxy::start(&Setup::default()).await;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let client = client(&proxy, version);
        let health = client.health_status(&target(), &metadata("ConnectCustomKeyStore")).await;
        assert_eq!(health.report.version, Some(version));
        assert_eq!(health.outcome.unwrap().ekm_fleet_details[0].health_status, HealthStatus::Active);
        let key = client.key_metadata(&target(), "demo", &metadata("CreateKey")).await.outcome.unwrap();
        assert_eq!((key.key_spec.as_str(), key.key_status), ("AES_256", KeyStatus::Enabled));
        for (plaintext, aad) in [(vec![7; 16], None), (vec![8; 4300], Some(vec![9; 8192]))] {
            let aad = aad.as_deref();
            let encrypt =
                client.encrypt(&target(), "demo", &metadata("GenerateDataKey"), &plaintext, aad).await;
            let ciphertext = encrypt.outcome.unwrap();
            assert_ne!(ciphertext.ciphertext, plaintext);
            let decrypt = client.decrypt(&target(), "demo", &metadata("Decrypt"), &ciphertext, aad).await;
            assert_eq!(*decrypt.outcome.unwrap(), plaintext);
            let mut damaged = ciphertext;
            damaged.tag[0] ^= 1;
            let decrypt = client.decrypt(&target(), "demo", &metadata("Decrypt"), &damaged, aad).await;
            assert_eq!(error_name(decrypt.outcome), ErrorName::InvalidCiphertextException);
        }
    }
}

#[tokio::test]
async fn the_proxys_refusals_are_read() {
    let token = Arc::new(SoftHsm::with_keys());
    let proxy = Proxy::start_on(&Setup::default(), token).await;
    let client = client(&proxy, HttpVersion::Http1);
    let outcome = client.key_metadata(&target(), "no-such-key", &metadata("CreateKey")).await.outcome;
    assert_eq!(error_name(outcome), ErrorName::KeyNotFoundException);
    let outcome = client.encrypt(&target(), "decrypt-only", &metadata("Encrypt"), b"x", None).await.outcome;
    assert_eq!(error_name(outcome), ErrorName::InvalidKeyUsageException);
    let outcome = client.encrypt(&target(), "demo", &RequestMetadata::default(), b"x", None).await.outcome;
    assert_eq!(error_name(outcome), ErrorName::ValidationException);
    let mut elsewhere = target();
    elsewhere.uri_path = "/nowhere/kms/xks/v1".to_owned();
    let outcome = client.health_status(&elsewhere, &metadata("KmsHealthCheck")).await.outcome;
    assert_eq!(error_name(outcome), ErrorName::InvalidUriPathException);
    for signing in [
        Signing { is_off: true, ..Signing::default() },
        Signing { skew_secs: 400, ..Signing::default() },
        Signing { service: Some("kms".to_owned()), ..Signing::default() },
        Signing { host: Some("other".to_owned()), ..Signing::default() },
        Signing { secret_access_key: Some("wrong".to_owned()), ..Signing::default() },
    ] {
        let mut request = Request::health_status(&target(), &metadata("KmsHealthCheck"));
        request.signing = signing.clone();
        let answer = client.send(&target(), &request).await.outcome.unwrap();
        let outcome = answer.read::<serde_json::Value>();
        assert_eq!(error_name(outcome), ErrorName::AuthenticationFailedException, "{signing:?}");
    }
}

fn error_name<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> ErrorName {
    match outcome {
        Err(Failure::Refused(refusal)) => refusal.error_name,
        other => panic!("{other:?}"),
    }
}
