//! An external key store proxy that does what a test tells it to: answer well, refuse, lie, fall silent or go away.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use xks_harness::Pki;
use xks_harness::pki::PemPair;
use xks_spec::framing::{ciphertext_data_integrity_value, frame_aad};
use xks_spec::{ApiPath, ErrorName, Operation};

const METADATA: &[u8] = b"v1";
const KEY: [u8; 32] = [42; 32];

/// Changes a good answer.
pub(crate) type Lie = fn(&mut Value);

/// What the proxy does with requests.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// What it should.
    Good,
    /// Refuses with an `errorName`.
    Refuse(ErrorName),
    /// Answers this: status, content type, body.
    Answer(u16, &'static str, String),
    /// Answers well but for a change.
    Lie(Lie),
    /// Never answers.
    Silent,
    /// Closes the connection instead of answering.
    HangUp,
}

/// A running proxy at a free port, for the name `localhost`.
pub(crate) struct FakeProxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    rule: Mutex<(Option<Operation>, Behaviour)>,
    seen: Mutex<Vec<(Operation, Value)>>,
    is_held: watch::Sender<bool>,
}

impl FakeProxy {
    /// Starts one with a certificate of the test CA.
    pub(crate) async fn start() -> Self {
        Self::start_as(&Pki::shared().ecdsa).await
    }

    /// Starts one with a certificate of anybody.
    pub(crate) async fn start_as(identity: &PemPair) -> Self {
        Self::start_with(acceptor(identity, None)).await
    }

    /// Starts one that wants to see a client certificate of that CA.
    pub(crate) async fn start_wanting(client_ca: &str) -> Self {
        Self::start_with(acceptor(&Pki::shared().ecdsa, Some(client_ca))).await
    }

    async fn start_with(acceptor: TlsAcceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rule: Mutex::new((None, Behaviour::Good)),
            seen: Mutex::default(),
            is_held: watch::Sender::new(false),
        });
        let task = tokio::spawn(accept(listener, acceptor, Arc::clone(&shared))).abort_handle();
        Self { address, shared, task }
    }

    /// From now on, does this with every request.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.rule.lock().unwrap() = (None, behaviour);
    }

    /// From now on, does this with requests for `operation`, and what it should with all others.
    pub(crate) fn behave_for(&self, operation: Operation, behaviour: Behaviour) {
        *self.shared.rule.lock().unwrap() = (Some(operation), behaviour);
    }

    /// Holds every answer back, or lets them all go.
    pub(crate) fn hold(&self, is_held: bool) {
        self.shared.is_held.send_replace(is_held);
    }

    /// Closes the port and every connection.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }

    /// The requests since the last time, and their bodies.
    pub(crate) fn take_seen(&self) -> Vec<(Operation, Value)> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.stop();
    }
}

fn acceptor(identity: &PemPair, client_ca: Option<&str>) -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = match client_ca {
        None => config.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            config.with_client_cert_verifier(verifier)
        }
    };
    TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| answer(Arc::clone(&shared), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// A service's error closes the connection.
#[derive(Debug, thiserror::Error)]
#[error("hangs up")]
struct HangUp;

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, HangUp> {
    let path = request.uri().path().to_owned();
    let operation = ApiPath::parse(&path).unwrap().operation;
    let body: Value =
        serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    shared.seen.lock().unwrap().push((operation, body.clone()));
    shared.is_held.subscribe().wait_for(|is_held| !is_held).await.unwrap();
    let (only, behaviour) = shared.rule.lock().unwrap().clone();
    let behaviour = if only.is_none_or(|only| only == operation) { behaviour } else { Behaviour::Good };
    let json = "application/json";
    let (status, content_type, text) = match behaviour {
        Behaviour::Good => {
            let answer = good_answer(operation, &body);
            let status = if answer["errorName"].is_null() { 200 } else { 400 };
            (status, json, answer.to_string())
        }
        Behaviour::Lie(change) => {
            let mut answer = good_answer(operation, &body);
            change(&mut answer);
            (200, json, answer.to_string())
        }
        Behaviour::Refuse(name) => {
            (name.http_status(), json, json!({ "errorName": name.as_str() }).to_string())
        }
        Behaviour::Answer(status, content_type, body) => (status, content_type, body),
        Behaviour::Silent => std::future::pending::<Infallible>().await.into_answer(),
        Behaviour::HangUp => return Err(HangUp),
    };
    let response = Response::builder().status(status).header("content-type", content_type);
    Ok(response.body(Full::new(text.into())).unwrap())
}

trait Never {
    fn into_answer(self) -> (u16, &'static str, String);
}

impl Never for Infallible {
    fn into_answer(self) -> (u16, &'static str, String) {
        match self {}
    }
}

fn good_answer(operation: Operation, body: &Value) -> Value {
    let bytes = |name: &str| STANDARD.decode(body[name].as_str().unwrap_or_default()).unwrap();
    let aad = bytes("additionalAuthenticatedData");
    match operation {
        Operation::GetHealthStatus => json!({
            "xksProxyFleetSize": 1, "xksProxyVendor": "v", "xksProxyModel": "m", "ekmVendor": "e",
            "ekmFleetDetails": [{ "id": "1", "model": "m", "healthStatus": "ACTIVE" }],
        }),
        Operation::GetKeyMetadata => {
            json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED" })
        }
        Operation::Encrypt => {
            let mut text = bytes("plaintext");
            let mut iv = [0; 12];
            aws_lc_rs::rand::fill(&mut iv).unwrap();
            let framed = Aad::from(frame_aad(&aad, METADATA).unwrap());
            let nonce = Nonce::assume_unique_for_key(iv);
            cipher().seal_in_place_append_tag(nonce, framed, &mut text).unwrap();
            encrypt_answer(&aad, &iv, &text)
        }
        Operation::Decrypt => {
            let mut text = [bytes("ciphertext"), bytes("authenticationTag")].concat();
            let nonce = Nonce::try_assume_unique_for_key(&bytes("initializationVector")).unwrap();
            let framed = Aad::from(frame_aad(&aad, &bytes("ciphertextMetadata")).unwrap());
            let opened = cipher().open_in_place(nonce, framed, &mut text);
            opened.map_or_else(
                |_| json!({ "errorName": "InvalidCiphertextException" }),
                |plaintext| json!({ "plaintext": STANDARD.encode(plaintext) }),
            )
        }
    }
}

fn encrypt_answer(aad: &[u8], iv: &[u8], ciphertext_and_tag: &[u8]) -> Value {
    let (ciphertext, tag) = ciphertext_and_tag.split_at(ciphertext_and_tag.len() - 16);
    json!({
        "ciphertext": STANDARD.encode(ciphertext),
        "ciphertextMetadata": STANDARD.encode(METADATA),
        "initializationVector": STANDARD.encode(iv),
        "authenticationTag": STANDARD.encode(tag),
        "ciphertextDataIntegrityValue":
            STANDARD.encode(ciphertext_data_integrity_value(aad, METADATA, iv, ciphertext_and_tag)),
    })
}

fn cipher() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap())
}

/// Changes an Encrypt answer and makes its integrity value fit again, for a request without encryption context.
pub(crate) fn forged(answer: &mut Value, field: &str, bytes: &[u8]) {
    answer[field] = json!(STANDARD.encode(bytes));
    let bytes = |name: &str| STANDARD.decode(answer[name].as_str().unwrap_or_default()).unwrap();
    let text = [bytes("ciphertext"), bytes("authenticationTag")].concat();
    // What an empty encryption context is on the wire: see kms::context.
    let aad = [1];
    let value = ciphertext_data_integrity_value(
        &aad,
        &bytes("ciphertextMetadata"),
        &bytes("initializationVector"),
        &text,
    );
    answer["ciphertextDataIntegrityValue"] = json!(STANDARD.encode(value));
}
