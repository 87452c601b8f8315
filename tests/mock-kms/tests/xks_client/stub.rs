//! A proxy that does exactly what a test tells it to, byte by byte over real TLS.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mock_kms::xks::{Client, ClientBuilder, HttpVersion, Proxy, RequestMetadata};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use xks_spec::framing::ciphertext_data_integrity_value;

/// The stub's name in its certificate; tests say where it is.
pub(crate) const NAME: &str = "xks.example.com";

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the stub read.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// Number of its connection, from 0.
    pub(crate) connection: usize,
    /// Number of the request, from 0.
    pub(crate) number: usize,
    /// Request line and headers; with HTTP/2, an imitation of them.
    pub(crate) head: String,
    /// Body.
    pub(crate) body: Vec<u8>,
}

impl Received {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the stub does next.
pub(crate) enum Step {
    /// Sends bytes.
    Send(Vec<u8>),
    /// Does nothing for ever.
    Stall,
    /// Pauses.
    Pause(Duration),
    /// Closes the connection as TLS wants it.
    Close,
    /// Drops the TCP connection.
    Drop,
}

/// How the stub treats connections before there is a request.
#[derive(Clone, Default)]
pub(crate) struct Manners {
    /// Never answers a ClientHello.
    pub(crate) stalls_in_handshake: bool,
    /// Pauses before TLS.
    pub(crate) pause_before_tls: Duration,
    /// Closes TCP at once.
    pub(crate) closes_at_once: bool,
    /// Sends bytes that are no TLS.
    pub(crate) babbles: bool,
    /// Demands a client certificate of the test CA.
    pub(crate) wants_client_certificate: bool,
    /// Only HTTP/2 is agreed on.
    pub(crate) is_http2: bool,
    /// Neither version is named in ALPN.
    pub(crate) has_no_alpn: bool,
    /// Sends these bytes, if any, in place of HTTP/2 frames, and then nothing.
    pub(crate) speaks_instead_of_http2: &'static [u8],
    /// Its certificate is for another name.
    pub(crate) has_wrong_name: bool,
    /// Shows a certificate for the name whose common name is another.
    pub(crate) has_wrong_common_name: bool,
}

type Script = dyn Fn(&Received) -> Vec<Step> + Send + Sync;

/// A running stub; it ends with the runtime of its test.
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    received: Arc<Mutex<Vec<Received>>>,
    client_names: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    /// Answers each request as `script` says.
    pub(crate) async fn start(script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start_with(Manners::default(), script).await
    }

    pub(crate) async fn start_with(
        manners: Manners,
        script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            received: Arc::default(),
            client_names: Arc::default(),
        };
        let acceptor = TlsAcceptor::from(Arc::new(Pki::shared().server(&manners)));
        let (connections, received) = (Arc::clone(&stub.connections), Arc::clone(&stub.received));
        let client_names = Arc::clone(&stub.client_names);
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::SeqCst);
                let served =
                    Served { connection, received: Arc::clone(&received), script: Arc::clone(&script) };
                let (acceptor, manners) = (acceptor.clone(), manners.clone());
                let client_names = Arc::clone(&client_names);
                tokio::spawn(async move {
                    if let Some(mut stream) = welcome(stream, &acceptor, &manners).await {
                        if !manners.speaks_instead_of_http2.is_empty() {
                            stream.write_all(manners.speaks_instead_of_http2).await.unwrap();
                            std::future::pending::<()>().await;
                        }
                        client_names.lock().unwrap().push(client_name(&stream));
                        served.serve(stream, manners.is_http2).await;
                    }
                });
            }
        });
        stub
    }

    /// TCP connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Common names of the client certificates shown so far, empty where there was none.
    pub(crate) fn client_names(&self) -> Vec<String> {
        self.client_names.lock().unwrap().clone()
    }

    /// A client that finds the stub, trusts it, and waits as long as need be.
    pub(crate) fn patient_client(&self) -> Client {
        self.builder().try_timeout(PATIENCE).build().unwrap()
    }

    /// The settings of a client that finds the stub and trusts it.
    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder()
            .without_system_roots()
            .trust_ca_pem(Pki::shared().ca.pem().as_bytes())
            .unwrap()
            .resolve(NAME, self.address)
            .http_versions(&[HttpVersion::Http2, HttpVersion::Http1])
    }
}

async fn welcome(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
    manners: &Manners,
) -> Option<TlsStream<TcpStream>> {
    tokio::time::sleep(manners.pause_before_tls).await;
    if manners.stalls_in_handshake {
        std::future::pending::<()>().await;
    }
    if manners.babbles {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    }
    if manners.closes_at_once {
        return None;
    }
    acceptor.accept(stream).await.ok()
}

fn client_name(stream: &TlsStream<TcpStream>) -> String {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = chain.first().and_then(|first| mock_kms::xks::Certificate::from_der(first));
    certificate.map_or_else(String::new, |certificate| certificate.common_names.concat())
}

struct Served {
    connection: usize,
    received: Arc<Mutex<Vec<Received>>>,
    script: Arc<Script>,
}

impl Served {
    async fn serve(self, stream: TlsStream<TcpStream>, is_http2: bool) {
        if is_http2 { self.serve_http2(stream).await } else { self.serve_http1(stream).await }
    }

    fn record(&self, head: String, body: Vec<u8>) -> Received {
        let mut received = self.received.lock().unwrap();
        let request = Received { connection: self.connection, number: received.len(), head, body };
        received.push(request.clone());
        request
    }

    async fn serve_http1(self, mut stream: TlsStream<TcpStream>) {
        let mut unread = Vec::new();
        while let Some((head, body)) = read_request(&mut stream, &mut unread).await {
            for step in (self.script)(&self.record(head, body)) {
                match step {
                    Step::Send(bytes) => {
                        if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                    }
                    Step::Stall => std::future::pending().await,
                    Step::Pause(pause) => tokio::time::sleep(pause).await,
                    Step::Close => {
                        let _ = stream.shutdown().await;
                        return;
                    }
                    Step::Drop => return,
                }
            }
        }
    }

    /// With HTTP/2 the bytes of [`Step::Send`] are read as an HTTP/1.1 answer and translated.
    async fn serve_http2(self, stream: TlsStream<TcpStream>) {
        let served = Arc::new(self);
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let served = Arc::clone(&served);
            async move {
                let (head, body) = request.into_parts();
                let mut text = format!("{} {} {:?}\r\n", head.method, head.uri, head.version);
                for (name, value) in &head.headers {
                    text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
                }
                let body = body.collect().await?.to_bytes().to_vec();
                for step in (served.script)(&served.record(text, body)) {
                    match step {
                        Step::Send(bytes) => return Ok(translated(&bytes)),
                        Step::Pause(pause) => tokio::time::sleep(pause).await,
                        _ => std::future::pending().await,
                    }
                }
                std::future::pending::<Result<_, hyper::Error>>().await
            }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

async fn read_request(stream: &mut TlsStream<TcpStream>, unread: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let head_end = loop {
        if let Some(start) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break start + 4;
        }
        read_more(stream, unread).await?;
    };
    let head = String::from_utf8(unread.drain(..head_end).collect()).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    while unread.len() < length.unwrap_or(0) {
        read_more(stream, unread).await?;
    }
    let body = unread.drain(..length.unwrap_or(0)).collect();
    Some((head, body))
}

async fn read_more(stream: &mut TlsStream<TcpStream>, unread: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
    unread.extend_from_slice(&buffer[..count]);
    Some(())
}

fn translated(bytes: &[u8]) -> http::Response<Full<Bytes>> {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..split]).unwrap();
    let mut response = http::Response::builder().status(&head[9..12]);
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::copy_from_slice(&bytes[split + 4..]))).unwrap()
}

/// An HTTP/1.1 answer.
pub(crate) fn http(status: u16, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// One step: an answer with a JSON body.
pub(crate) fn says(status: u16, body: &Value) -> Vec<Step> {
    vec![Step::Send(http(status, "application/json", body.to_string().as_bytes()))]
}

/// A right answer of GetHealthStatus.
pub(crate) fn healthy() -> Value {
    json!({
        "xksProxyFleetSize": 1,
        "xksProxyVendor": "v",
        "xksProxyModel": "m",
        "ekmVendor": "v",
        "ekmFleetDetails": [{ "id": "1", "model": "m", "healthStatus": "ACTIVE" }],
    })
}

/// A right answer to an Encrypt request, as far as a client can tell: the plaintext comes back as ciphertext.
pub(crate) fn encrypted(request: &Value) -> Value {
    let bytes = |name: &str| STANDARD.decode(request[name].as_str().unwrap_or_default()).unwrap();
    let (iv, tag, metadata) = ([1; 12], [2; 16], [3; 20]);
    let ciphertext = bytes("plaintext");
    let ciphertext_and_tag = [ciphertext.as_slice(), &tag].concat();
    let aad = bytes("additionalAuthenticatedData");
    let integrity = ciphertext_data_integrity_value(&aad, &metadata, &iv, &ciphertext_and_tag);
    json!({
        "ciphertext": STANDARD.encode(ciphertext),
        "ciphertextMetadata": STANDARD.encode(metadata),
        "initializationVector": STANDARD.encode(iv),
        "authenticationTag": STANDARD.encode(tag),
        "ciphertextDataIntegrityValue": STANDARD.encode(integrity),
    })
}

/// The stub as KMS would name it.
pub(crate) fn proxy() -> Proxy {
    let secret = "stub+secret/stub+secret/stub+secret/stub+secr";
    Proxy::new(NAME, "/stub/kms/xks/v1", "STUBSTUBSTUBSTUBSTUB", secret, "us-east-1")
}

/// Request metadata with all that is required of any operation.
pub(crate) fn metadata(kms_operation: &str) -> RequestMetadata {
    RequestMetadata {
        aws_principal_arn: Some("arn:aws:iam::123456789012:user/alice".to_owned()),
        kms_key_arn: Some("arn:aws:kms:us-east-1:123456789012:key/1234".to_owned()),
        kms_operation: Some(kms_operation.to_owned()),
        kms_request_id: Some("4112f4d6-db54-4af4-ae30-c55a22a8dfae".to_owned()),
        ..RequestMetadata::default()
    }
}

/// A CA, the stub's certificates and a client certificate such as KMS has.
pub(crate) struct Pki {
    pub(crate) ca: CertifiedIssuer<'static, KeyPair>,
    right: (String, String),
    wrong: (String, String),
    wrong_common_name: (String, String),
    /// Chain and key of a client with the common name `cks.kms.us-east-1.amazonaws.com`.
    pub(crate) client: (String, String),
}

impl Pki {
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Pki> = OnceLock::new();
        SHARED.get_or_init(|| {
            let mut parameters = CertificateParams::default();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(DnType::CommonName, "stub CA");
            let ca = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
            let issued = |name: &str, common_name: &str, purpose| {
                let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
                parameters.distinguished_name.push(DnType::CommonName, common_name);
                parameters.extended_key_usages = vec![purpose];
                let key = KeyPair::generate().unwrap();
                (parameters.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
            };
            let server = ExtendedKeyUsagePurpose::ServerAuth;
            let right = issued(NAME, NAME, server.clone());
            let wrong = issued("other.example.com", "other.example.com", server.clone());
            let wrong_common_name = issued(NAME, "other.example.com", server);
            let kms = "cks.kms.us-east-1.amazonaws.com";
            let client = issued(kms, kms, ExtendedKeyUsagePurpose::ClientAuth);
            Self { ca, right, wrong, wrong_common_name, client }
        })
    }

    fn server(&self, manners: &Manners) -> ServerConfig {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if manners.wants_client_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(self.ca.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = match manners {
            Manners { has_wrong_name: true, .. } => &self.wrong,
            Manners { has_wrong_common_name: true, .. } => &self.wrong_common_name,
            _ => &self.right,
        };
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = match manners {
            Manners { has_no_alpn: true, .. } => Vec::new(),
            Manners { is_http2: true, .. } => vec![b"h2".to_vec()],
            _ => vec![b"http/1.1".to_vec()],
        };
        config
    }
}
