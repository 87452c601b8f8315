//! A null target: answers every XKS request at once, without verifying, encrypting or remembering anything.
//!
//! Its "ciphertext" is the plaintext and back, so that the generator's checks hold. It shows what the generator alone
//! can do, and a test can put faults into its answers.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::PrivateKeyDer;
use rustls::{HandshakeKind, ServerConfig};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// What the server does with a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: String,
    /// Not answered before this instant.
    pub not_before: Option<Instant>,
    /// Whether the connection is cut instead.
    pub hangs_up: bool,
}

impl Reply {
    /// An answer of `status` with `body`, at once.
    pub fn new(status: u16, body: String) -> Self {
        Self { status, body, not_before: None, hangs_up: false }
    }
}

/// The connection a request came on; in the extensions of the request's head.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The client's address, which tells connections apart.
    pub address: SocketAddr,
    /// Whether the TLS session was resumed.
    pub tls_resumed: bool,
}

/// Decides the reply to a request: its number from 0, its head and its body.
pub type Responder = dyn Fn(u64, &Parts, &[u8]) -> Reply + Send + Sync;

/// A server on a thread of its own. Dropping it ends it.
#[derive(Debug)]
pub struct EchoServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its certificate for `localhost` and 127.0.0.1, to be trusted by clients.
    pub certificate_pem: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked<'a> {
    #[serde(borrow, default)]
    plaintext: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    ciphertext: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    additional_authenticated_data: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    ciphertext_data_integrity_value_algorithm: Option<Cow<'a, str>>,
}

/// The honest reply to request number `number`: IVs count up, the tag is constant.
pub fn echo(number: u64, head: &Parts, body: &[u8]) -> Reply {
    let operation = head.uri.path().rsplit('/').next().unwrap_or_default();
    let asked: Option<Asked<'_>> = serde_json::from_slice(body).ok();
    let answer = match (operation, asked) {
        ("encrypt", Some(asked)) => encrypted(number, &asked),
        ("decrypt", Some(asked)) => json!({ "plaintext": asked.ciphertext }).to_string(),
        ("metadata", _) => {
            r#"{"keySpec":"AES_256","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"ENABLED"}"#.to_owned()
        }
        ("health", _) => json!({
            "xksProxyFleetSize": 1, "xksProxyVendor": "xks-load", "xksProxyModel": "echo", "ekmVendor": "none",
            "ekmFleetDetails": [{ "id": "1", "model": "none", "healthStatus": "ACTIVE" }],
        })
        .to_string(),
        _ => return Reply::new(404, r#"{"errorName":"InvalidUriPathException"}"#.to_owned()),
    };
    Reply::new(200, answer)
}

fn encrypted(number: u64, asked: &Asked<'_>) -> String {
    const TAG: [u8; 16] = [0x5a; 16];
    let mut iv = [0x11; 12];
    iv[4..].copy_from_slice(&number.to_be_bytes());
    let ciphertext = asked.plaintext.as_deref().unwrap_or_default();
    let (iv_b64, tag_b64) = (BASE64_STANDARD.encode(iv), BASE64_STANDARD.encode(TAG));
    let mut cdiv = String::new();
    if asked.ciphertext_data_integrity_value_algorithm.is_some() {
        let decode = |text: &str| BASE64_STANDARD.decode(text).unwrap_or_default();
        let digest = Sha256::new()
            .chain_update(decode(asked.additional_authenticated_data.as_deref().unwrap_or_default()))
            .chain_update(iv)
            .chain_update(decode(ciphertext))
            .chain_update(TAG)
            .finalize();
        cdiv = format!(r#","ciphertextDataIntegrityValue":"{}""#, BASE64_STANDARD.encode(digest));
    }
    format!(
        r#"{{"ciphertext":"{ciphertext}","initializationVector":"{iv_b64}","authenticationTag":"{tag_b64}"{cdiv}}}"#
    )
}

impl EchoServer {
    /// Starts a server that listens on `address` (port 0: any) and answers by `respond`.
    ///
    /// # Errors
    /// When the address cannot be bound or a certificate cannot be made.
    pub fn start(address: SocketAddr, respond: Arc<Responder>) -> io::Result<Self> {
        let (tls, certificate_pem) = server_tls()?;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("echo-server".to_owned()).spawn(move || {
            event_loop.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::spawn(accept(listener, tls, respond));
                let _ = stopped.await;
            });
        })?;
        Ok(Self { address, certificate_pem, stop: Some(stop), thread: Some(thread) })
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

fn server_tls() -> io::Result<(TlsAcceptor, String)> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    let certificate_pem = made.cert.pem();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.into()], key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), certificate_pem))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, respond: Arc<Responder>) {
    let requests = Arc::new(AtomicU64::new(0));
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, respond, requests) = (tls.clone(), Arc::clone(&respond), Arc::clone(&requests));
        tokio::spawn(async move {
            // A client that breaks off is its own affair.
            let _ = serve(stream, &tls, respond, requests).await;
        });
    }
}

async fn serve(
    stream: TcpStream,
    tls: &TlsAcceptor,
    respond: Arc<Responder>,
    requests: Arc<AtomicU64>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let (socket, session) = stream.get_ref();
    let tls_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let peer = Peer { address: socket.peer_addr()?, tls_resumed };
    let speaks_http2 = session.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (respond, requests) = (Arc::clone(&respond), Arc::clone(&requests));
        async move { answer(request, &*respond, &requests).await }
    });
    let io = TokioIo::new(stream);
    if speaks_http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(io, service).await.map_err(io::Error::other)?;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).serve_connection(io, service).await.map_err(io::Error::other)?;
    }
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    respond: &Responder,
    requests: &AtomicU64,
) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let number = requests.fetch_add(1, Ordering::Relaxed);
    let reply = respond(number, &head, &body);
    if let Some(instant) = reply.not_before {
        tokio::time::sleep_until(instant.into()).await;
    }
    if reply.hangs_up {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).map_err(io::Error::other)?;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
