//! What no token can be made to do to a request: a handler that panics.

use std::num::NonZeroU32;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_credential_types::Credentials as AwsCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use xks_spec::UriPathPrefix;
use xks_spec::credential::{AccessKeyId, SecretAccessKey};
use xks_spec::request::SizeLimits;

use super::*;
use crate::admin::{Readiness, Served};
use crate::audit::{Audit, AuditSettings, OnFailure};
use crate::clock::Deadline;
use crate::hsm::{
    Checked, Digest, Hsm, HsmFuture, KeyAttributes, KeyMaterial, Plaintext, Sealed, Terms, TokenHealth,
};
use crate::iv_budget::{IvBudget, IvBudgetSettings};
use crate::keystore::{CredentialUses, KeyMap, LatestKeys, StoreQuota};
use crate::metrics::Metrics;
use crate::operations::Fleet;
use crate::server::{Connections, CurrentTls, Limits, Places, Timeouts, stranger_lines};
use crate::sigv4::{Credential, Credentials};
use crate::tls::ListenerTls;

const ID: &str = "XKSTESTID234567ABCDEFGHIJK";
const SECRET: &str = "unit+test/secret+unit+test/secret+unit+test0";
const PATH: &str = "/a/kms/xks/v1/health";
const BODY: &[u8] = br#"{"requestMetadata":{"kmsOperation":"KmsHealthCheck","kmsRequestId":"an-id"}}"#;

/// Panics whatever it is asked.
struct Panics;

impl Hsm for Panics {
    fn encrypt<'a>(
        &'a self,
        _: &'a KeyMaterial,
        _: Plaintext,
        _: Arc<[u8]>,
        _: Terms,
    ) -> HsmFuture<'a, Sealed> {
        panic!("hunter2")
    }

    fn encrypt_checked<'a>(
        &'a self,
        _: &'a KeyMaterial,
        _: Plaintext,
        _: Arc<[u8]>,
        _: Digest,
        _: Terms,
    ) -> HsmFuture<'a, Checked> {
        panic!("hunter2")
    }

    fn decrypt<'a>(
        &'a self,
        _: &'a KeyMaterial,
        _: Arc<Sealed>,
        _: Arc<[u8]>,
        _: Terms,
    ) -> HsmFuture<'a, Plaintext> {
        panic!("hunter2")
    }

    fn key_attributes<'a>(&'a self, _: &'a KeyMaterial, _: Deadline) -> HsmFuture<'a, KeyAttributes> {
        panic!("hunter2")
    }

    fn health(&self) -> Vec<TokenHealth> {
        panic!("hunter2")
    }
}

/// A store without tokens, and limits that no test reaches.
pub(in crate::server) fn state(metrics: Arc<Metrics>, audit: Option<Arc<Audit>>) -> State {
    let number = NonZeroU32::MIN.saturating_add(999);
    let credential =
        Credential::new(AccessKeyId::parse(ID).unwrap(), &SecretAccessKey::parse(SECRET).unwrap(), None);
    let in_memory = IvBudgetSettings { dir: None, share: 1 };
    let keys = Arc::new(KeyMap::default());
    let store = KeyStore {
        iv_counts: Arc::new(IvBudget::open(&in_memory, &metrics).unwrap().of_store(&"a".into())),
        credential_uses: CredentialUses::new(&"a".into(), [(ID, None)].into_iter(), &metrics),
        latest: LatestKeys::new(true, Arc::clone(&keys)),
        name: "a".into(),
        prefix: UriPathPrefix::parse("/a").unwrap(),
        is_enabled: true,
        credentials: Credentials::new(vec![credential]).unwrap(),
        keys,
        policies: None,
        aws_sample: None,
        hsm: Arc::new(Panics),
        quota: Arc::new(StoreQuota::new(number, number)),
    };
    let long = Duration::from_secs(600);
    State {
        stores: ArcSwap::from_pointee(KeyStores::new([store])),
        tls: CurrentTls::new(tls()),
        metrics,
        audit,
        stranger_lines: stranger_lines(),
        proxy_protocol_from: Vec::new(),
        readiness: Readiness::new(Served::default(), None),
        limits: Limits {
            sizes: SizeLimits { max_plaintext_bytes: 4300, max_aad_bytes: 8192 },
            max_header_bytes: 16_384,
            max_connections: 1,
            max_streams_per_connection: 1,
            max_in_flight: 2,
        },
        timeouts: Timeouts {
            handshake: long,
            first_request: long,
            header: long,
            body: long,
            idle: long,
            max_age: long,
            request: long,
            first_request_answer: long,
            lame_duck: long,
            drain: long,
        },
        fleet: ArcSwap::from_pointee(Fleet { size: NonZeroU32::MIN }),
        places: Places::new(2),
    }
}

/// TLS that no client is admitted by.
pub(in crate::server) fn tls() -> ListenerTls {
    let resolver = rustls::server::ResolvesServerCertUsingSni::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    tls.into()
}

/// A client that has just been admitted.
pub(in crate::server) fn peer(state: &Arc<State>, place: Place, drain: Drain) -> Peer {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let (tls, max_age) = (&state.tls, state.timeouts.max_age);
    Peer {
        state: Arc::clone(state),
        activity: Arc::new(Activity::new(clock::now())),
        place: Arc::new(place),
        address,
        balancer: None,
        certificate_subject: None,
        drain,
        retirement: Retirement::new(tls, &tls.admit(), clock::now(), max_age, address),
    }
}

fn signed() -> Request<Full<Bytes>> {
    let identity = AwsCredentials::new(ID, SECRET, None, None, "test").into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name("kms-xks-proxy")
        .time(clock::wall_clock())
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let mut request = Request::post(PATH).header("host", "localhost").body(Full::from(BODY)).unwrap();
    let headers = [("host", "localhost")].into_iter();
    let signable =
        SignableRequest::new("POST", format!("https://localhost{PATH}"), headers, SignableBody::Bytes(BODY));
    let (instructions, _) = sign(signable.unwrap(), &params).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    request
}

#[tokio::test]
async fn a_panic_is_an_answer_and_a_record_like_any_other_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let metrics = Arc::new(Metrics::new());
    let settings = AuditSettings {
        path: path.clone(),
        on_failure: OnFailure::Continue,
        is_synced: false,
        hmac_key: None,
    };
    let audit = Arc::new(Audit::open(settings, &metrics).unwrap());
    let state = Arc::new(state(metrics, Some(Arc::clone(&audit))));
    let place = Connections::new(1, None).admit().await;
    let peer = Arc::new(peer(&state, place, Drain::channel().1));
    let (near, far) = tokio::io::duplex(65_536);
    let service = service_fn(move |request| {
        let peer = Arc::clone(&peer);
        let begun = begin(&peer, &request);
        async move { answer(&peer, request, begun).await }
    });
    tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(far), service));
    let (mut sender, connection) = client::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    // Twice: the connection, and the places in flight, have survived the first.
    for _ in 0..2 {
        sender.ready().await.unwrap();
        let answer = sender.send_request(signed()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.headers()["content-type"], "application/json");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errorName"], "InternalException");
        assert!(!body.to_string().contains("hunter2"), "{body}");
    }
    let metrics = state.metrics.render();
    let line = r#"xks_requests_total{error="InternalException",operation="GetHealthStatus",store="a"} 2"#;
    assert!(metrics.contains(line), "{metrics}");
    audit.close();
    let records = std::fs::read_to_string(&path).unwrap();
    let records: Vec<serde_json::Value> =
        records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let requests: Vec<_> = records.iter().filter(|record| record["type"] == "request").collect();
    assert_eq!(requests.len(), 2, "{records:?}");
    for record in requests {
        assert_eq!((&record["outcome"], &record["accessKeyId"]), (&"InternalException".into(), &ID.into()));
        assert_eq!(record["requestMetadata"]["kmsRequestId"], "an-id");
        assert!(!record.to_string().contains("hunter2"), "{record}");
    }
}
