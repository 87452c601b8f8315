//! One request to a proxy: tries, time, connection, answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, HeaderValue, Uri, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::answer::{Answer, MAX_ANSWER_BYTES};
use super::builder::ClientBuilder;
use super::certificate::Certificate;
use super::connection::{Connection, Connector, HttpVersion, Progress, failure};
use super::failure::{Failure, Malformed};
use super::pool::Pool;
use super::request::{Proxy, Request};
use super::shaping::Shaping;

/// Calls proxies as KMS does. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    connector: Connector,
    pool: Pool,
    try_timeout: Duration,
    tries: u32,
}

/// What came of a request, and how.
#[derive(Clone, Debug)]
pub struct Exchange<T> {
    /// The answer, or why there is none.
    pub outcome: Result<T, Failure>,
    /// How it went.
    pub report: Report,
}

impl<T> Exchange<T> {
    /// The same exchange with its answer judged further.
    pub(super) fn and_then<U>(self, judge: impl FnOnce(T) -> Result<U, Failure>) -> Exchange<U> {
        Exchange { outcome: self.outcome.and_then(judge), report: self.report }
    }
}

/// How an exchange went. Of several tries, everything but `tries` and `total` is the last one's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tries, at least one.
    pub tries: u32,
    /// From the start of the first try to the end of the last.
    pub total: Duration,
    /// The last try alone: what counts against the 250 ms.
    pub last_try: Duration,
    /// TCP connect, where a connection was opened.
    pub tcp: Option<Duration>,
    /// TLS handshake, where a connection was opened.
    pub tls: Option<Duration>,
    /// Whether a kept connection carried the request.
    pub is_reused: bool,
    /// HTTP version, where TLS came about.
    pub version: Option<HttpVersion>,
    /// The proxy's certificate, where TLS came about.
    pub certificate: Option<Arc<Certificate>>,
    /// Length of the request's body.
    pub request_bytes: usize,
    /// Length of the answer's body, where it came whole.
    pub answer_bytes: Option<usize>,
}

impl Client {
    /// Settings that are what KMS does until they are changed.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    pub(super) fn new(connector: Connector, try_timeout: Duration, tries: u32, keep_alive: Duration) -> Self {
        Self { inner: Arc::new(Inner { connector, pool: Pool::new(keep_alive), try_timeout, tries }) }
    }

    /// Sends any request and hands back the bare answer, of whatever status.
    ///
    /// Each try is signed anew. A try that ends in a network time-out is followed by another on a new connection, as
    /// long as there are tries left; no other failure is.
    pub async fn send(&self, proxy: &Proxy, request: &Request) -> Exchange<Answer> {
        let begin = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let try_begin = Instant::now();
            let mut progress = Progress::default();
            let attempt = timeout(self.inner.try_timeout, self.attempt(proxy, request, &mut progress)).await;
            let is_timeout = attempt.is_err();
            let outcome = attempt.unwrap_or_else(|_| Err(timed_out(&progress)));
            if is_timeout {
                self.inner.pool.forget(&proxy.host);
                if tries < self.inner.tries {
                    continue;
                }
            }
            let report = Report {
                tries,
                total: begin.elapsed(),
                last_try: try_begin.elapsed(),
                tcp: progress.tcp,
                tls: progress.tls,
                is_reused: progress.is_reused,
                version: progress.version,
                certificate: progress.certificate,
                request_bytes: request.body.len(),
                answer_bytes: outcome.as_ref().ok().map(|answer| answer.body.len()),
            };
            return Exchange { outcome, report };
        }
    }

    /// The bare TLS stream to a proxy, for bytes that no HTTP library would send. One try.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], [`Failure::Tls`] or [`Failure::TimedOut`].
    pub async fn open_tls(&self, proxy: &Proxy) -> Result<TlsStream<TcpStream>, Failure> {
        let mut progress = Progress::default();
        let shaping = Shaping::default();
        let opened =
            timeout(self.inner.try_timeout, self.inner.connector.open_tls(proxy, &shaping, &mut progress));
        opened.await.unwrap_or_else(|_| Err(timed_out(&progress)))
    }

    async fn attempt(
        &self,
        proxy: &Proxy,
        request: &Request,
        progress: &mut Progress,
    ) -> Result<Answer, Failure> {
        let kept =
            if request.shaping.needs_own_connection() { None } else { self.inner.pool.take(&proxy.host) };
        if let Some(connection) = kept {
            progress.is_reused = true;
            match self.exchange(proxy, request, connection, progress).await {
                // Proxies close idle connections, sometimes just when a request is on its way.
                Err(Failure::Broken(_)) if !progress.has_answer => *progress = Progress::default(),
                outcome => return outcome,
            }
        }
        let connection = self.inner.connector.open(proxy, &request.shaping, progress).await?;
        self.exchange(proxy, request, connection, progress).await
    }

    async fn exchange(
        &self,
        proxy: &Proxy,
        request: &Request,
        mut connection: Connection,
        progress: &mut Progress,
    ) -> Result<Answer, Failure> {
        let version = connection.version();
        progress.version = Some(version);
        progress.certificate.clone_from(&connection.certificate);
        let http_request = http_request(proxy, request, version)?;
        let may_keep = !request.shaping.needs_own_connection();
        let shared = if may_keep && !progress.is_reused { connection.share() } else { None };
        if let Some(shared) = shared {
            self.inner.pool.put(&proxy.host, shared);
        }
        let response = connection.send(http_request).await?;
        progress.has_answer = true;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| body_failure(&*error))?;
        if may_keep && version == HttpVersion::Http1 {
            self.keep(&proxy.host, connection);
        }
        Ok(Answer { version, status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
    }

    /// Puts an HTTP/1.1 connection back as soon as it could take another request, if it ever can.
    fn keep(&self, host: &str, mut connection: Connection) {
        let (inner, host) = (Arc::clone(&self.inner), host.to_owned());
        tokio::spawn(async move {
            if connection.is_ready().await {
                inner.pool.put(&host, connection);
            }
        });
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} tries of {:?})", self.inner.tries, self.inner.try_timeout)
    }
}

fn timed_out(progress: &Progress) -> Failure {
    if progress.tcp.is_none() && !progress.is_reused {
        return Failure::Unreachable("no TCP connection in time".to_owned());
    }
    Failure::TimedOut
}

fn body_failure(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Failure {
    if error.is::<LengthLimitError>() {
        return Malformed::TooLong(MAX_ANSWER_BYTES).into();
    }
    error.downcast_ref().map_or_else(|| Failure::Broken(error.to_string()), failure)
}

fn http_request(
    proxy: &Proxy,
    request: &Request,
    version: HttpVersion,
) -> Result<http::Request<Full<Bytes>>, Failure> {
    let fault = |error: &dyn fmt::Display| Failure::NotSent(error.to_string());
    let uri = match version {
        HttpVersion::Http1 => request.path.parse::<Uri>().map_err(|error| fault(&error))?,
        // Becomes :scheme, :authority and :path.
        HttpVersion::Http2 => {
            let builder = Uri::builder().scheme("https").authority(proxy.host.as_str());
            builder.path_and_query(request.path.as_str()).build().map_err(|error| fault(&error))?
        }
    };
    let mut http_request = http::Request::new(request.body.clone());
    *http_request.method_mut() = request.method.clone();
    *http_request.uri_mut() = uri;
    let headers = http_request.headers_mut();
    if version == HttpVersion::Http1 {
        headers.insert(HOST, HeaderValue::from_str(&proxy.host).map_err(|error| fault(&error))?);
    }
    for (name, value) in &request.headers {
        let name: HeaderName = name.parse().map_err(|error| fault(&error))?;
        headers.append(name, HeaderValue::from_str(value).map_err(|error| fault(&error))?);
    }
    if !request.signing.is_off {
        let (method, path, now) = (request.method.as_str(), request.path.as_str(), SystemTime::now());
        let signature = request.signing.sign(proxy, method, path, &request.body, now)?;
        headers.insert("x-amz-date", signature.date);
        headers.insert(AUTHORIZATION, signature.authorization);
    }
    if version == HttpVersion::Http2 {
        *http_request.version_mut() = Version::HTTP_2;
    }
    if let Some(edit) = &request.edit {
        edit(&mut http_request);
    }
    Ok(http_request.map(Full::new))
}
