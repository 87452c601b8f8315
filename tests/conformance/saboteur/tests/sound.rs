//! Without a fault the saboteur is a whole proxy, as KMS's imitation sees it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use mock_kms::xks::{Client, ClientBuilder, Exchange, Failure, HttpVersion, Proxy, Request, RequestMetadata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xks_saboteur::{
    Accepted, ClientIdentity, Credential, Fault, HOST, HsmState, STORES, Saboteur, keys, setup,
};
use xks_spec::response::{HealthStatus, KeyStatus};

/// Longer than anything takes on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn builder(saboteur: &Saboteur, address: std::net::SocketAddr) -> ClientBuilder {
    Client::builder()
        .resolve(HOST, address)
        .without_system_roots()
        .trust_ca_pem(saboteur.ca_pem().as_bytes())
        .unwrap()
        .try_timeout(PATIENCE)
}

fn client(saboteur: &Saboteur) -> Client {
    builder(saboteur, saboteur.addr()).build().unwrap()
}

fn signed_by(store: usize, credential: Credential) -> Proxy {
    let path = format!("{}/kms/xks/v1", STORES[store].uri_path_prefix);
    Proxy::new(HOST, &path, credential.access_key_id, credential.secret_access_key, "us-east-1")
}

fn store(index: usize) -> Proxy {
    signed_by(index, STORES[index].credential)
}

fn metadata() -> RequestMetadata {
    let text = |text: &str| Some(text.to_owned());
    RequestMetadata {
        aws_principal_arn: text("AWS Internal"),
        kms_key_arn: text("arn:aws:kms:us-east-1:123456789012:key/1234abcd"),
        kms_operation: text("SomethingNew"),
        kms_request_id: text("not a UUID"),
        ..RequestMetadata::default()
    }
}

/// Status and errorName of a refusal.
fn refusal<T: std::fmt::Debug>(exchange: Exchange<T>) -> (u16, String) {
    match exchange.outcome {
        Err(Failure::Refused(refusal)) => (refusal.status, refusal.error_name.to_string()),
        other => panic!("no refusal: {other:?}"),
    }
}

#[tokio::test]
async fn what_it_encrypts_it_decrypts_and_its_hsms_corrupt_ciphertexts_never_leave() {
    let saboteur = Saboteur::start(None).await;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let client = builder(&saboteur, saboteur.addr()).http_versions(&[version]).build().unwrap();
        for number in 0..60_u8 {
            let (plaintext, aad) = ([number; 33], [number; 7]);
            let key = [keys::USABLE, keys::EVERY_CHARACTER][usize::from(number % 2)];
            let sealed = client.encrypt(&store(0), key, &metadata(), &plaintext, Some(&aad)).await;
            let sealed = sealed.outcome.unwrap();
            let opened = client.decrypt(&store(0), key, &metadata(), &sealed, Some(&aad)).await;
            assert_eq!(opened.outcome.unwrap()[..], plaintext);
        }
    }
}

/// The flaw is there: a proxy that does not verify hands out what cannot be opened.
#[tokio::test]
async fn the_hsm_corrupts_a_ciphertext_now_and_then() {
    let saboteur = Saboteur::start(Some(Fault::IntegrityValueUnverified)).await;
    let client = client(&saboteur);
    let mut failures = 0;
    for _ in 0..100 {
        let sealed =
            client.encrypt(&store(0), keys::USABLE, &metadata(), b"text", None).await.outcome.unwrap();
        let opened = client.decrypt(&store(0), keys::USABLE, &metadata(), &sealed, None).await;
        failures += usize::from(opened.outcome.is_err());
    }
    assert_eq!(failures, 2);
}

#[tokio::test]
async fn the_longest_values_are_taken_and_longer_ones_refused() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    let encrypt = async |plaintext: usize, aad: usize| {
        client.encrypt(&store(0), keys::USABLE, &metadata(), &vec![7; plaintext], Some(&vec![9; aad])).await
    };
    let sealed = encrypt(4300, 8192).await.outcome.unwrap();
    let opened = client.decrypt(&store(0), keys::USABLE, &metadata(), &sealed, Some(&[9; 8192])).await;
    assert_eq!(opened.outcome.unwrap().len(), 4300);
    let unsupported = (501, "UnsupportedOperationException".to_owned());
    assert_eq!(refusal(encrypt(4301, 1).await), unsupported);
    assert_eq!(refusal(encrypt(1, 8193).await), unsupported);
    assert_eq!(refusal(encrypt(2 << 20, 1).await), unsupported);
}

#[tokio::test]
async fn keys_do_what_they_are_for() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    // This client always asks for a CDIV, for which a key must decrypt too.
    let rows = [
        (keys::USABLE, KeyStatus::Enabled, &["ENCRYPT", "DECRYPT"][..], None),
        (keys::ENCRYPT_ONLY, KeyStatus::Enabled, &["ENCRYPT"], Some("InvalidKeyUsageException")),
        (keys::DECRYPT_ONLY, KeyStatus::Enabled, &["DECRYPT"], Some("InvalidKeyUsageException")),
        (keys::IMPOTENT, KeyStatus::Enabled, &[], Some("InvalidKeyUsageException")),
        (keys::DISABLED, KeyStatus::Disabled, &["ENCRYPT", "DECRYPT"], Some("InvalidStateException")),
    ];
    for (key, status, usage, error) in rows {
        let described = client.key_metadata(&store(0), key, &metadata()).await.outcome.unwrap();
        assert_eq!((described.key_status, described.key_spec.as_str()), (status, "AES_256"), "{key}");
        assert_eq!(described.key_usage, usage, "{key}");
        let encrypted = client.encrypt(&store(0), key, &metadata(), b"text", None).await;
        match error {
            None => drop(encrypted.outcome.unwrap()),
            Some(error) => assert_eq!(refusal(encrypted), (400, error.to_owned()), "{key}"),
        }
    }
    let sealed = client.encrypt(&store(0), keys::USABLE, &metadata(), b"text", None).await.outcome.unwrap();
    let opened = client.decrypt(&store(0), keys::ENCRYPT_ONLY, &metadata(), &sealed, None).await;
    assert_eq!(refusal(opened), (400, "InvalidKeyUsageException".to_owned()));
    let opened = client.decrypt(&store(0), keys::SECOND, &metadata(), &sealed, None).await;
    assert_eq!(refusal(opened), (400, "InvalidCiphertextException".to_owned()));
    for key in [keys::UNKNOWN, keys::OTHER_STORE, "health-test-key"] {
        let described = client.key_metadata(&store(0), key, &metadata()).await;
        assert_eq!(refusal(described), (404, "KeyNotFoundException".to_owned()), "{key}");
    }
    assert!(client.key_metadata(&store(1), keys::OTHER_STORE, &metadata()).await.outcome.is_ok());
}

#[tokio::test]
async fn a_disabled_store_describes_its_keys_and_uses_none() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    let (disabled, key) = (store(2), keys::OF_DISABLED_STORE);
    assert!(client.health_status(&disabled, &metadata()).await.outcome.is_ok());
    let described = client.key_metadata(&disabled, key, &metadata()).await.outcome.unwrap();
    assert_eq!(described.key_status, KeyStatus::Disabled);
    let refused = (400, "InvalidStateException".to_owned());
    assert_eq!(refusal(client.encrypt(&disabled, key, &metadata(), b"text", None).await), refused);
    let sealed = client.encrypt(&store(0), keys::USABLE, &metadata(), b"text", None).await.outcome.unwrap();
    assert_eq!(refusal(client.decrypt(&disabled, key, &metadata(), &sealed, None).await), refused);
}

#[tokio::test]
async fn the_policy_refuses_one_key_to_one_caller() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    let denied = RequestMetadata { aws_principal_arn: Some(setup::DENIED_CALLER.to_owned()), ..metadata() };
    let refused = (403, "AccessDeniedException".to_owned());
    assert!(client.health_status(&store(0), &denied).await.outcome.is_ok());
    for (key, caller, is_served) in [
        (keys::RESTRICTED, metadata(), true),
        (keys::RESTRICTED, denied.clone(), false),
        (keys::USABLE, denied.clone(), true),
    ] {
        let sealed = client.encrypt(&store(0), key, &metadata(), b"text", None).await.outcome.unwrap();
        let described = client.key_metadata(&store(0), key, &caller).await;
        let encrypted = client.encrypt(&store(0), key, &caller, b"text", None).await;
        let opened = client.decrypt(&store(0), key, &caller, &sealed, None).await;
        if is_served {
            assert!(
                described.outcome.is_ok() && encrypted.outcome.is_ok() && opened.outcome.is_ok(),
                "{key}"
            );
        } else {
            assert_eq!(
                [refusal(described), refusal(encrypted), refusal(opened)],
                [(); 3].map(|()| refused.clone())
            );
        }
    }
}

#[tokio::test]
async fn credentials_rotate_and_open_their_own_store_alone() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    let is_open = async |proxy: Proxy| {
        let outcome = client.health_status(&proxy, &metadata()).await;
        outcome.outcome.is_ok() || {
            assert_eq!(refusal(outcome), (401, "AuthenticationFailedException".to_owned()));
            false
        }
    };
    let (first, next) = (STORES[0].credential, STORES[0].next_credential);
    let rows = [(Accepted::First, true, false), (Accepted::Both, true, true), (Accepted::Next, false, true)];
    for (accepted, takes_first, takes_next) in rows {
        saboteur.accept(accepted);
        assert_eq!(is_open(signed_by(0, first)).await, takes_first, "{accepted:?}");
        assert_eq!(is_open(signed_by(0, next)).await, takes_next, "{accepted:?}");
        assert!(!is_open(signed_by(1, next)).await);
        assert!(!is_open(signed_by(1, first)).await);
        let mixed = Credential { secret_access_key: next.secret_access_key, ..first };
        assert!(!is_open(signed_by(0, mixed)).await);
    }
}

#[tokio::test]
async fn health_and_errors_tell_of_the_hsm() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    let rows = [
        (HsmState::Healthy, HealthStatus::Active, None),
        (HsmState::Failing, HealthStatus::Unavailable, Some((500, "InternalException"))),
        (HsmState::Silent, HealthStatus::Unavailable, Some((503, "DependencyTimeoutException"))),
        (HsmState::Healthy, HealthStatus::Active, None),
    ];
    for (state, status, error) in rows {
        saboteur.set_hsm(state);
        let health = client.health_status(&store(0), &metadata()).await.outcome.unwrap();
        assert_eq!(health.ekm_fleet_details[0].health_status, status, "{state:?}");
        let encrypted = client.encrypt(&store(0), keys::USABLE, &metadata(), b"text", None).await;
        match error {
            None => drop(encrypted.outcome.unwrap()),
            Some((code, name)) => assert_eq!(refusal(encrypted), (code, name.to_owned()), "{state:?}"),
        }
    }
}

#[tokio::test]
async fn mtls_takes_kms_alone() {
    let saboteur = Saboteur::start(None).await;
    for which in ClientIdentity::ALL {
        assert_eq!(is_let_in(&saboteur, Some(which)).await, which == ClientIdentity::Kms, "{which:?}");
    }
    assert!(!is_let_in(&saboteur, None).await);
}

/// Each fault of mTLS lets in exactly whom its description says, besides KMS.
#[tokio::test]
async fn faults_of_mtls_let_in_whom_they_say() {
    use ClientIdentity as Id;
    let rows = [
        (Fault::ClientCertificateOptional, &[][..]),
        (Fault::ClientNameUnchecked, &[Id::OtherName, Id::LongerName, Id::OtherRegion, Id::TwoNames]),
        (Fault::ClientNameByEnding, &[Id::LongerName]),
        (Fault::ClientNameOfAnyRegion, &[Id::OtherRegion]),
        (Fault::AnyClientNameOfSeveral, &[Id::TwoNames]),
        (Fault::ClientIssuerUnchecked, &[Id::OtherIssuer, Id::SelfSigned]),
        (Fault::ExpiredClientAccepted, &[Id::Expired]),
    ];
    for (fault, strangers) in rows {
        let saboteur = Saboteur::start(Some(fault)).await;
        for which in Id::ALL {
            let expected = which == Id::Kms || strangers.contains(&which);
            assert_eq!(is_let_in(&saboteur, Some(which)).await, expected, "{fault:?}: {which:?}");
        }
        assert_eq!(is_let_in(&saboteur, None).await, fault == Fault::ClientCertificateOptional, "{fault:?}");
    }
}

async fn is_let_in(saboteur: &Saboteur, which: Option<ClientIdentity>) -> bool {
    let mut builder = builder(saboteur, saboteur.mtls_addr());
    if let Some(which) = which {
        let identity = saboteur.client_identity(which);
        let key = identity.key_pem.as_bytes();
        builder = builder.client_identity_pem(identity.chain_pem.as_bytes(), key).unwrap();
    }
    builder.build().unwrap().health_status(&store(0), &metadata()).await.outcome.is_ok()
}

#[tokio::test]
async fn paths_methods_and_queries_are_refused_before_the_signature() {
    let saboteur = Saboteur::start(None).await;
    let client = client(&saboteur);
    let unsigned = async |method: &str, path: &str| {
        let mut request = Request::post(path.to_owned(), "{}");
        request.method = method.parse().unwrap();
        request.signing.is_off = true;
        client.send(&store(0), &request).await.outcome.unwrap().status
    };
    assert_eq!(unsigned("POST", "/alpha/kms/xks/v1/health").await, 401);
    assert_eq!(unsigned("GET", "/alpha/kms/xks/v1/health").await, 405);
    assert_eq!(unsigned("POST", "/alpha/kms/xks/v1/health?x=1").await, 404);
    assert_eq!(unsigned("POST", "/alpha/more/kms/xks/v1/health").await, 404);
    assert_eq!(unsigned("POST", "/alpha/kms/xks/v1/keys/unknown-key/metadata").await, 401);
    assert_eq!(unsigned("GET", setup::PING_PATH).await, 200);
}

/// Two lengths, and a second request that one of them takes for a part of the first.
#[tokio::test]
async fn a_connection_with_two_lengths_ends_unless_that_is_the_fault() {
    for (fault, expected) in [(None, 1), (Some(Fault::BothLengthsKeptAlive), 2)] {
        let saboteur = Saboteur::start(fault).await;
        let client =
            builder(&saboteur, saboteur.addr()).http_versions(&[HttpVersion::Http1]).build().unwrap();
        let mut stream = client.open_tls(&store(0)).await.unwrap();
        let smuggler = b"POST /alpha/kms/xks/v1/health HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\
            Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        stream.write_all(smuggler).await.unwrap();
        let mut answers = String::new();
        // The server may end without TLS's farewell.
        let _ = stream.read_to_string(&mut answers).await;
        assert_eq!(answers.matches("HTTP/1.1 ").count(), expected, "{fault:?}: {answers}");
    }
}
