//! Every failure of a proxy × every KMS operation that calls it: exception and message.
//!
//! The messages are those of the specification's table. Exceptions differ from it in two places: the README says why.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;
use xks_harness::Pki;
use xks_spec::{ErrorName, Operation};

use crate::fake_proxy::{Behaviour, FakeProxy};
use crate::mock::{Mock, store_members, with, xks_key_members};

const UNINTERPRETABLE: &str = "AWS KMS cannot interpret the response from the external key store proxy. If you see this error \
     repeatedly, report it to your external key store proxy administrator.";
const NOT_ENABLED: &str = "The external key associated with this KMS key in an external key store is not enabled in the \
     external key manager. Enable the external key in the external key manager and retry the request.";
const REFUSED_CIPHERTEXT: &str = "The external key store proxy rejected the request because the specified ciphertext or encryption \
     context is corrupted, missing, or otherwise invalid.";
const WRONG_USAGE: &str = "The external key associated with this KMS key in an external key store does not support the \
     requested operation. Enable the operation on the key in your external key manager, and try the \
     request again.";
const NOT_AUTHENTICATED: &str = "The external key store proxy rejected the request because it could not authenticate AWS KMS. \
     Verify the XKS proxy authentication credentials for your external key store and update if \
     necessary.";
const ACCESS_DENIED: &str = "The external key store proxy denied access to the operation. Verify that the user and the external \
     key are both authorized for this operation, and try the request again.";
const KEY_NOT_FOUND: &str = "The external key associated with this KMS key in an external key store was not found in its \
     external key manager. If the external key ID associated with this KMS key is incorrect, create a \
     new KMS key with the correct external key ID.";
const WRONG_PATH: &str = "The external key store proxy rejected the request because of an invalid URI path. Verify the URI \
     path for your external key store and update if necessary.";
const NOT_SUPPORTED: &str = "The external key store proxy rejected the request because it does not support the requested \
     operation. If you see this error repeatedly, report it to your external key store proxy \
     administrator.";
const DEPENDENCY_TIMEOUT: &str = "The external key store proxy did not respond to the request in the time allotted. Retry the \
     request. If you see this error repeatedly, report it to your external key store proxy \
     administrator.";
const THROTTLED: &str = "The external key store proxy rejected the request due to a very high request rate. Reduce the \
     frequency of your calls using KMS keys in this external key store.";
const INTERNAL: &str = "The external key store proxy rejected the request because it cannot communicate with the external \
     key manager. Verify that the external key store proxy configuration is correct and that the \
     external key manager is available.";
const NO_TCP: &str = "AWS KMS cannot communicate with the external key store proxy. This might be a transient network \
     issue. If you see this error repeatedly, verify that your external key store proxy is active and \
     is connected to the network, and that its endpoint URI is correct in your external keystore.";
const NO_TLS: &str = "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify the TLS \
     configuration, including its certificate.";
const TIMED_OUT: &str = "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry \
     the request. If you see this error repeatedly, report it to your external key store proxy \
     administrator.";
/// The developer guide's: the specification has no row for a health check that says InvalidStateException.
const UNHEALTHY: &str = "The external key store proxy is in an unhealthy state. If you see this message repeatedly, notify your \
     external key store proxy administrator.";

/// What a failure becomes. `None` where the proxy may not show it: then KMS cannot interpret the answer.
struct Row {
    message: &'static str,
    /// CreateCustomKeyStore, UpdateCustomKeyStore.
    manage_store: Option<&'static str>,
    /// CreateKey.
    create_key: Option<&'static str>,
    /// Whether Encrypt, GenerateDataKey and the like have it.
    encrypts: bool,
    /// Whether Decrypt and the like have it.
    decrypts: bool,
    /// ConnectionErrorCode after ConnectCustomKeyStore.
    code: &'static str,
}

const STORE_STATE: Option<&str> = Some("CustomKeyStoreInvalidStateException");
const UNREACHABLE: Option<&str> = Some("XksProxyUriUnreachableException");
const INVALID_RESPONSE: Option<&str> = Some("XksProxyInvalidResponseException");

fn row(
    message: &'static str,
    manage_store: Option<&'static str>,
    create_key: Option<&'static str>,
    code: &'static str,
) -> Row {
    Row { message, manage_store, create_key, encrypts: true, decrypts: true, code }
}

fn row_of(name: ErrorName) -> Row {
    match name {
        ErrorName::ValidationException => {
            row(UNINTERPRETABLE, INVALID_RESPONSE, STORE_STATE, "XKS_PROXY_INVALID_RESPONSE")
        }
        ErrorName::InvalidStateException => row(
            NOT_ENABLED,
            UNREACHABLE,
            Some("XksKeyInvalidConfigurationException"),
            "XKS_PROXY_NOT_REACHABLE",
        ),
        ErrorName::InvalidCiphertextException => {
            Row { encrypts: false, ..row(REFUSED_CIPHERTEXT, None, None, "XKS_PROXY_INVALID_RESPONSE") }
        }
        ErrorName::InvalidKeyUsageException => {
            row(WRONG_USAGE, None, Some("XksKeyInvalidConfigurationException"), "XKS_PROXY_INVALID_RESPONSE")
        }
        ErrorName::AuthenticationFailedException => row(
            NOT_AUTHENTICATED,
            Some("XksProxyIncorrectAuthenticationCredentialException"),
            STORE_STATE,
            "INVALID_CREDENTIALS",
        ),
        ErrorName::AccessDeniedException => {
            row(ACCESS_DENIED, INVALID_RESPONSE, STORE_STATE, "XKS_PROXY_ACCESS_DENIED")
        }
        ErrorName::KeyNotFoundException => {
            row(KEY_NOT_FOUND, None, Some("XksKeyNotFoundException"), "XKS_PROXY_INVALID_RESPONSE")
        }
        ErrorName::InvalidUriPathException => row(
            WRONG_PATH,
            Some("XksProxyInvalidConfigurationException"),
            STORE_STATE,
            "XKS_PROXY_INVALID_CONFIGURATION",
        ),
        ErrorName::UnsupportedOperationException => row(
            NOT_SUPPORTED,
            INVALID_RESPONSE,
            Some("UnsupportedOperationException"),
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        ErrorName::DependencyTimeoutException => {
            row(DEPENDENCY_TIMEOUT, UNREACHABLE, STORE_STATE, "XKS_PROXY_TIMED_OUT")
        }
        ErrorName::ThrottlingException => row(THROTTLED, UNREACHABLE, STORE_STATE, "XKS_PROXY_NOT_REACHABLE"),
        ErrorName::InternalException => {
            row(INTERNAL, INVALID_RESPONSE, STORE_STATE, "XKS_PROXY_INVALID_RESPONSE")
        }
    }
}

/// A KMS with two stores, a key in the first, which is connected, a key of its own, and a blob of each key.
struct World {
    mock: Mock,
    proxy: FakeProxy,
    state: TempDir,
    connected: String,
    disconnected: String,
    xks_key: String,
    plain_key: String,
    xks_blob: Value,
    plain_blob: Value,
}

impl World {
    async fn new() -> Self {
        let proxy = FakeProxy::start().await;
        let state = tempfile::tempdir().unwrap();
        let mock = Self::start_mock(proxy.address, &state, &[]);
        let connected = mock.connected_store("connected").await;
        let other = with(store_members("disconnected"), &json!({ "XksProxyUriPath": "/other/kms/xks/v1" }));
        let disconnected = mock.call("CreateCustomKeyStore", other).await["CustomKeyStoreId"].clone();
        let xks_key = mock.create_xks_key(&connected, "demo").await;
        let plain_key = mock.create_plain_key().await;
        let mut blobs = Vec::new();
        for key in [&xks_key, &plain_key] {
            let answer = mock.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })).await;
            blobs.push(answer["CiphertextBlob"].clone());
        }
        let [xks_blob, plain_blob] = blobs.try_into().unwrap();
        let disconnected = disconnected.as_str().unwrap().to_owned();
        Self { mock, proxy, state, connected, disconnected, xks_key, plain_key, xks_blob, plain_blob }
    }

    fn start_mock(proxy: SocketAddr, state: &TempDir, more: &[&str]) -> Mock {
        let file = state.path().join("state.json");
        Mock::start(proxy, &[&["--state", file.to_str().unwrap()], more].concat())
    }

    /// The same KMS in a new process that finds another proxy, or has less patience.
    fn restart(self, proxy: SocketAddr, more: &[&str]) -> Self {
        self.mock.kill();
        let mock = Self::start_mock(proxy, &self.state, more);
        Self { mock, ..self }
    }

    /// Calls everything that calls the proxy, which fails in the row's way.
    async fn check(&self, what: &str, row: &Row) {
        for (exception, message, answer) in
            [self.check_stores(row).await, self.check_crypto(row).await].concat()
        {
            assert_eq!(answer, (exception, message), "{what}");
        }
        let id = json!({ "CustomKeyStoreId": self.disconnected });
        self.mock.call("ConnectCustomKeyStore", id.clone()).await;
        let store = self.mock.settled_store(&self.disconnected).await;
        assert_eq!(store["ConnectionState"], "FAILED", "{what}");
        assert_eq!(store["ConnectionErrorCode"], row.code, "{what}");
        self.mock.call("DisconnectCustomKeyStore", id).await;
    }

    async fn check_stores(&self, row: &Row) -> Vec<Checked> {
        let new_store = with(store_members("new"), &json!({ "XksProxyUriPath": "/new/kms/xks/v1" }));
        let credential = store_members("")["XksProxyAuthenticationCredential"].clone();
        let update =
            json!({ "CustomKeyStoreId": self.connected, "XksProxyAuthenticationCredential": credential });
        let expected = |exception: Option<&str>, otherwise: &str| {
            let message = if exception.is_some() { row.message } else { UNINTERPRETABLE };
            (exception.unwrap_or(otherwise).to_owned(), message.to_owned())
        };
        let mut manage = expected(row.manage_store, "XksProxyInvalidResponseException");
        if row.message == NOT_ENABLED {
            UNHEALTHY.clone_into(&mut manage.1);
        }
        let create_key = expected(row.create_key, "CustomKeyStoreInvalidStateException");
        let mut checked = Vec::new();
        for (operation, body, (exception, message)) in [
            ("CreateCustomKeyStore", new_store, manage.clone()),
            ("UpdateCustomKeyStore", update, manage),
            ("CreateKey", xks_key_members(&self.connected, "new"), create_key),
        ] {
            checked.push((exception, message, self.mock.fail(operation, body).await));
        }
        checked
    }

    async fn check_crypto(&self, row: &Row) -> Vec<Checked> {
        let key = &self.xks_key;
        let re_encrypt = |blob: &Value, to: &str| json!({ "CiphertextBlob": blob, "DestinationKeyId": to });
        let mut checked = Vec::new();
        for (operation, body, is_in_row) in [
            ("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" }), row.encrypts),
            ("GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256" }), row.encrypts),
            ("GenerateDataKeyWithoutPlaintext", json!({ "KeyId": key, "KeySpec": "AES_256" }), row.encrypts),
            ("ReEncrypt", re_encrypt(&self.plain_blob, key), row.encrypts),
            ("Decrypt", json!({ "CiphertextBlob": self.xks_blob }), row.decrypts),
            ("ReEncrypt", re_encrypt(&self.xks_blob, &self.plain_key), row.decrypts),
            ("ReEncrypt", re_encrypt(&self.xks_blob, key), row.decrypts),
        ] {
            let message = if is_in_row { row.message } else { UNINTERPRETABLE };
            let answer = self.mock.fail(operation, body).await;
            checked.push(("KMSInvalidStateException".to_owned(), message.to_owned(), answer));
        }
        checked
    }
}

/// Expected exception and message, and what came.
type Checked = (String, String, (String, String));

#[tokio::test]
async fn every_error_name_becomes_what_the_table_says() {
    let world = World::new().await;
    for name in ErrorName::ALL {
        world.proxy.behave(Behaviour::Refuse(name));
        world.check(name.as_str(), &row_of(name)).await;
    }
}

#[tokio::test]
async fn the_second_half_of_re_encrypt_is_judged_as_encrypt() {
    let world = World::new().await;
    for name in ErrorName::ALL {
        world.proxy.behave_for(Operation::Encrypt, Behaviour::Refuse(name));
        let body = json!({ "CiphertextBlob": world.xks_blob, "DestinationKeyId": world.xks_key });
        let row = row_of(name);
        let message = if row.encrypts { row.message } else { UNINTERPRETABLE };
        assert_eq!(
            world.mock.fail("ReEncrypt", body).await,
            ("KMSInvalidStateException".into(), message.into())
        );
    }
}

#[tokio::test]
async fn answers_that_are_none_cannot_be_interpreted() {
    let world = World::new().await;
    let uninterpretable = row(UNINTERPRETABLE, INVALID_RESPONSE, STORE_STATE, "XKS_PROXY_INVALID_RESPONSE");
    let json = "application/json";
    let answers = [
        (500, json, String::new()),
        (503, "text/html", "<html>Service unavailable</html>".to_owned()),
        (200, "text/html", "<html>Welcome</html>".to_owned()),
        (200, json, "{".to_owned()),
        (200, json, "{}".to_owned()),
        (200, json, "[]".to_owned()),
        (400, json, r#"{"errorName":"SomethingElseException"}"#.to_owned()),
        (400, json, r#"{"errorMessage":"no name"}"#.to_owned()),
        (204, json, String::new()),
        (200, json, format!("{{\"padding\":\"{}\"}}", "x".repeat(1 << 20))),
    ];
    for (status, content_type, body) in answers {
        let what = format!("{status} {content_type} {body:.40}");
        world.proxy.behave(Behaviour::Answer(status, content_type, body));
        world.check(&what, &uninterpretable).await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_one_that_there_is_not() {
    let world = World::new().await;
    world.proxy.behave(Behaviour::HangUp);
    world.check("hangs up", &row(NO_TCP, UNREACHABLE, STORE_STATE, "NETWORK_ERRORS")).await;
}

#[tokio::test]
async fn a_proxy_that_is_gone_is_unreachable() {
    let world = World::new().await;
    world.proxy.stop();
    // A new process keeps no connection.
    let address = world.proxy.address;
    let world = world.restart(address, &[]);
    world.check("gone", &row(NO_TCP, UNREACHABLE, STORE_STATE, "XKS_PROXY_NOT_REACHABLE")).await;
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_is_no_tls() {
    let world = World::new().await;
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let identity = xks_harness::pki::PemPair {
        certificate: stranger.cert.pem(),
        key: stranger.signing_key.serialize_pem(),
    };
    let proxy = FakeProxy::start_as(&identity).await;
    let world = world.restart(proxy.address, &[]);
    world
        .check("stranger", &row(NO_TLS, UNREACHABLE, STORE_STATE, "XKS_PROXY_INVALID_TLS_CONFIGURATION"))
        .await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_no_tls() {
    let proxy = FakeProxy::start_as(&Pki::shared().rsa).await;
    let resolve = format!("other.example.com={}", proxy.address);
    let mock = Mock::start_with(&["--resolve", &resolve, "--proxy-timeout-ms", "30000"]);
    let members =
        with(store_members("other"), &json!({ "XksProxyUriEndpoint": "https://other.example.com" }));
    let (exception, message) = mock.fail("CreateCustomKeyStore", members).await;
    assert_eq!((exception.as_str(), message.as_str()), ("XksProxyUriUnreachableException", NO_TLS));
}

#[tokio::test]
async fn a_certificate_of_another_common_name_is_no_tls() {
    let world = World::new().await;
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "xks.example.com");
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap().pem();
    // Its own CA, and trusted: nothing else is wrong with it.
    let ca_file = world.state.path().join("ca.pem").display().to_string();
    std::fs::write(&ca_file, &certificate).unwrap();
    let identity = xks_harness::pki::PemPair { certificate, key: key.serialize_pem() };
    let proxy = FakeProxy::start_as(&identity).await;
    let world = world.restart(proxy.address, &["--ca-file", &ca_file]);
    world
        .check("common name", &row(NO_TLS, UNREACHABLE, STORE_STATE, "XKS_PROXY_INVALID_TLS_CONFIGURATION"))
        .await;
}

#[tokio::test]
async fn a_silent_proxy_is_timed_out() {
    let world = World::new().await;
    world.proxy.behave(Behaviour::Silent);
    let address = world.proxy.address;
    let world = world.restart(address, &["--proxy-timeout-ms", "300"]);
    world.check("silent", &row(TIMED_OUT, UNREACHABLE, STORE_STATE, "XKS_PROXY_TIMED_OUT")).await;
}
