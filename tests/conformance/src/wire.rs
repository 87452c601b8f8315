//! What a case holds in hand: it sends, judges answers, and keeps a record for the report.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use mock_kms::xks::{Answer, Client, Failure, HttpVersion, Proxy, Report, Request};
use serde_json::{Value, json};
use xks_spec::{ErrorName, Operation};

use crate::case::{Stop, expect, fail};
use crate::client::paste;
use crate::client::raw::{Raw, RawAnswer, Transcript};
use crate::client::sigv4::ByHand;
use crate::target::{PATIENCE, Route, Target};

/// How often, and after which pause, a request is sent again that was refused for its rate.
const THROTTLED_TRIES: u32 = 20;
const THROTTLED_PAUSE: Duration = Duration::from_millis(250);

/// One answer of a run, for the cases that look at all of them and for the latency plot.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Case that sent the request.
    pub case: String,
    /// Method.
    pub method: Method,
    /// Last segment of the path.
    pub operation: String,
    /// Whether it came over a new connection.
    pub is_first: bool,
    /// TCP and TLS, where a connection was opened.
    pub connect: Duration,
    /// From the start, connecting included, to the last byte.
    pub total: Duration,
    /// Status.
    pub status: u16,
    /// Media type.
    pub content_type: String,
    /// Body, where the status is not 200.
    pub error_body: Vec<u8>,
    /// The request as a command line to paste, where the status is not 200.
    pub request: String,
}

/// All answers of a run.
pub type Journal = Arc<Mutex<Vec<Recorded>>>;

/// What to show where the case fails.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The last request.
    pub request: String,
    /// The last answer.
    pub answer: String,
}

/// What a case did last.
enum Last {
    /// As it is shown.
    Shown(Trace),
    /// Bytes on a connection, which may go on.
    Raw(Arc<Mutex<Transcript>>),
    /// Several things at once, each of which keeps its own record.
    AtOnce(Vec<Wire>),
}

/// What stands for the answer until there is one: a case that is given up shows what it was waiting for.
const NONE_YET: &str = "none yet";

/// What a case holds in hand.
#[derive(Clone)]
pub struct Wire {
    /// What is under test.
    pub target: Arc<Target>,
    case: Arc<str>,
    journal: Journal,
    last: Arc<Mutex<Last>>,
}

/// An answer to be judged.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The answer.
    pub answer: Answer,
    /// How it came.
    pub report: Report,
}

impl Wire {
    /// For one run of one case.
    #[must_use]
    pub fn new(target: Arc<Target>, case: &str, journal: Journal) -> Self {
        let last = Arc::new(Mutex::new(Last::Shown(Trace::default())));
        Self { target, case: case.into(), journal, last }
    }

    /// The first store.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.target.proxy
    }

    /// The usable key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.target.key_id
    }

    /// What to show where the case fails.
    #[must_use]
    pub fn trace(&self) -> Trace {
        match &*lock(&self.last) {
            Last::Shown(trace) => trace.clone(),
            Last::Raw(transcript) => {
                let transcript = lock(transcript);
                let request = paste::openssl(&self.target, &self.target.route(), &transcript);
                Trace { request, answer: transcript.answers.clone() }
            }
            Last::AtOnce(parts) => {
                let mut traces: Vec<_> = parts.iter().map(Self::trace).collect();
                let waiting = traces.iter().position(|trace| trace.answer == NONE_YET);
                if traces.is_empty() { Trace::default() } else { traces.swap_remove(waiting.unwrap_or(0)) }
            }
        }
    }

    /// Does `work` so many times at once, with numbers from zero. Each has a record of its own; where one fails, the first
    /// failure and its record are those of the case.
    ///
    /// # Errors
    /// The first failure.
    pub async fn at_once<T, F>(&self, count: usize, work: impl Fn(Self, usize) -> F) -> Result<Vec<T>, Stop>
    where
        F: Future<Output = Result<T, Stop>>,
    {
        let nothing = || Arc::new(Mutex::new(Last::Shown(Trace::default())));
        let parts: Vec<_> = (0..count).map(|_| Self { last: nothing(), ..self.clone() }).collect();
        *lock(&self.last) = Last::AtOnce(parts.clone());
        let outcomes =
            join_all(parts.iter().cloned().enumerate().map(|(number, part)| work(part, number))).await;
        let failed = outcomes.iter().position(Result::is_err);
        if let Some(part) = failed.and_then(|at| parts.get(at)) {
            let Trace { request, answer } = part.trace();
            self.note(request, answer);
        }
        outcomes.into_iter().collect()
    }

    /// Shows this where the case fails.
    pub fn note(&self, request: impl Into<String>, answer: impl Into<String>) {
        *lock(&self.last) = Last::Shown(Trace { request: request.into(), answer: answer.into() });
    }

    /// Shows what goes over a connection where the case fails.
    pub fn note_raw(&self, raw: &Raw) {
        *lock(&self.last) = Last::Raw(raw.transcript());
    }

    /// All answers of the run so far.
    #[must_use]
    pub fn journal(&self) -> Vec<Recorded> {
        lock(&self.journal).clone()
    }

    /// Sends over HTTP/1.1 to the first store.
    ///
    /// # Errors
    /// [`Stop::Failed`] where there is no answer.
    pub async fn send(&self, request: &Request) -> Result<Seen, Stop> {
        self.send_to(self.proxy(), HttpVersion::Http1, request).await
    }

    /// Sends to a store over a version.
    ///
    /// # Errors
    /// [`Stop::Failed`] where there is no answer.
    pub async fn send_to(
        &self,
        proxy: &Proxy,
        version: HttpVersion,
        request: &Request,
    ) -> Result<Seen, Stop> {
        let sent = self.try_send(proxy, version, request).await;
        sent.or_else(|failure| fail("an HTTP answer", failure.to_string()))
    }

    /// The same where no answer may be right too.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn try_send(
        &self,
        proxy: &Proxy,
        version: HttpVersion,
        request: &Request,
    ) -> Result<Seen, Failure> {
        let client = if version == HttpVersion::Http1 { &self.target.http1 } else { &self.target.http2 };
        self.send_with((client, &self.target.route()), proxy, version, request).await
    }

    /// The same by a client of the case's own, and the route that it takes.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send_with(
        &self,
        (client, route): (&Client, &Route),
        proxy: &Proxy,
        version: HttpVersion,
        request: &Request,
    ) -> Result<Seen, Failure> {
        let line = paste::curl(&self.target, route, proxy, version, request);
        self.note(&*line, NONE_YET);
        let mut exchange = client.send(proxy, request).await;
        // A quota is lawful, and no finding of the case that happens to meet it.
        for _ in 0..THROTTLED_TRIES {
            if !exchange.outcome.as_ref().is_ok_and(|answer| answer.status == 429) {
                break;
            }
            tokio::time::sleep(THROTTLED_PAUSE).await;
            exchange = client.send(proxy, request).await;
        }
        self.note(&*line, exchange.outcome.as_ref().map_or_else(|failure| format!("none: {failure}"), shown));
        let report = exchange.report;
        let answer = exchange.outcome?;
        let is_error = answer.status != 200;
        lock(&self.journal).push(Recorded {
            case: self.case.to_string(),
            method: request.method.clone(),
            operation: request.path.rsplit('/').next().unwrap_or_default().to_owned(),
            is_first: !report.is_reused,
            connect: report.tcp.unwrap_or_default() + report.tls.unwrap_or_default(),
            total: report.last_try,
            status: answer.status,
            content_type: answer.content_type().to_owned(),
            error_body: if is_error { answer.body.to_vec() } else { Vec::new() },
            request: if is_error { line } else { String::new() },
        });
        Ok(Seen { answer, report })
    }

    /// Opens a connection for bytes.
    ///
    /// # Errors
    /// [`Stop::Failed`] where there is none.
    pub async fn raw(&self) -> Result<Raw, Stop> {
        let opened = Raw::open(&self.target.http1, self.proxy()).await;
        let raw = opened.or_else(|failure| fail("a TLS connection", failure.to_string()))?;
        self.note_raw(&raw);
        Ok(raw)
    }

    /// Sends bytes on a connection of their own and reads one answer; `None` where the connection closes or stays silent.
    ///
    /// # Errors
    /// [`Stop::Failed`] where there is no connection.
    pub async fn exchange_raw(&self, bytes: &[u8]) -> Result<Option<RawAnswer>, Stop> {
        let mut raw = self.raw().await?;
        raw.send(bytes).await;
        Ok(raw.answer(PATIENCE).await)
    }

    /// The path of an operation on a key of the first store.
    #[must_use]
    pub fn path(&self, key: &str, operation: Operation) -> String {
        if operation == Operation::GetHealthStatus {
            self.proxy().health_path()
        } else {
            self.proxy().key_path(key, operation)
        }
    }

    /// A right request of an operation on the usable key, or of GetHealthStatus. Decrypt's gets a made-up ciphertext.
    #[must_use]
    pub fn request(&self, operation: Operation) -> Request {
        Request::post(self.path(self.key(), operation), body_of(operation).to_string())
    }

    /// A right Encrypt request.
    #[must_use]
    pub fn encrypt_request(&self, key: &str, body: &Value) -> Request {
        Request::post(self.path(key, Operation::Encrypt), body.to_string())
    }

    /// A right Decrypt request.
    #[must_use]
    pub fn decrypt_request(&self, key: &str, body: &Value) -> Request {
        Request::post(self.path(key, Operation::Decrypt), body.to_string())
    }

    /// Encrypts and hands back the answer.
    ///
    /// # Errors
    /// [`Stop::Failed`] where it is no success.
    pub async fn encrypt(&self, key: &str, body: &Value) -> Result<Value, Stop> {
        self.send(&self.encrypt_request(key, body)).await?.ok()
    }

    /// The body of a Decrypt that must fail by its ciphertext alone: the ciphertextMetadata, where Encrypt gives any, is right.
    ///
    /// # Errors
    /// [`Stop::Failed`] where Encrypt fails.
    pub async fn made_up(&self) -> Result<Value, Stop> {
        let encrypted = self.encrypt(self.key(), &encrypt_body(b"Hello World!", None, false)).await?;
        let mut body = body_of(Operation::Decrypt);
        if has_metadata(&encrypted) {
            body["ciphertextMetadata"] = encrypted["ciphertextMetadata"].clone();
        }
        Ok(body)
    }

    /// Decrypts and hands back the answer, right or wrong.
    ///
    /// # Errors
    /// [`Stop::Failed`] where there is none.
    pub async fn decrypt(&self, key: &str, body: &Value) -> Result<Seen, Stop> {
        self.send(&self.decrypt_request(key, body)).await
    }

    /// A request that is signed by hand: `change` has the last word on what is signed, and the request is sent with the
    /// header that comes of it.
    #[must_use]
    pub fn by_hand(&self, request: Request, skew_secs: i64, change: impl FnOnce(&mut ByHand)) -> Request {
        let mut by_hand = ByHand::new(self.proxy(), &request.path, &request.body, skew_secs);
        by_hand.method = request.method.to_string();
        change(&mut by_hand);
        with_authorization(request, &by_hand.date, &by_hand.authorization())
    }
}

/// The request with these headers instead of a signature of its own.
#[must_use]
pub fn with_authorization(mut request: Request, date: &str, authorization: &str) -> Request {
    request.signing.is_off = true;
    let header = |text: &str| http::HeaderValue::from_bytes(text.as_bytes()).ok();
    let (date, authorization) = (header(date), header(authorization));
    request.edited(move |sent| {
        for (name, value) in [("x-amz-date", &date), ("authorization", &authorization)] {
            if let Some(value) = value {
                sent.headers_mut().insert(name, value.clone());
            }
        }
    })
}

/// A right body of an operation.
#[must_use]
pub fn body_of(operation: Operation) -> Value {
    match operation {
        Operation::GetHealthStatus => {
            json!({ "requestMetadata": { "kmsRequestId": "c0ffee00-0000-4000-8000-000000000001", "kmsOperation": "KmsHealthCheck" } })
        }
        Operation::GetKeyMetadata => json!({ "requestMetadata": metadata("CreateKey") }),
        Operation::Encrypt => encrypt_body(b"Hello World!", None, false),
        Operation::Decrypt => json!({
            "requestMetadata": metadata("Decrypt"), "encryptionAlgorithm": "AES_GCM",
            "ciphertext": b64(&[7; 12]), "initializationVector": b64(&[8; 12]), "authenticationTag": b64(&[9; 16]),
        }),
    }
}

/// Who calls KMS, as every request of the suite says that does not try another caller.
pub const CALLER: &str = "arn:aws:iam::123456789012:user/Alice";

/// The caller to whom a policy refuses the denied key.
pub const DENIED_CALLER: &str = "arn:aws:iam::777788889999:user/Mallory";

/// Request metadata as KMS sends it.
#[must_use]
pub fn metadata(kms_operation: &str) -> Value {
    json!({
        "awsPrincipalArn": CALLER,
        "kmsKeyArn": "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "kmsOperation": kms_operation,
        "kmsRequestId": "c0ffee00-0000-4000-8000-000000000001",
        "kmsViaService": "ebs",
    })
}

/// The body of Encrypt.
#[must_use]
pub fn encrypt_body(plaintext: &[u8], aad: Option<&[u8]>, wants_cdiv: bool) -> Value {
    let mut body = json!({
        "requestMetadata": metadata("Encrypt"), "plaintext": b64(plaintext), "encryptionAlgorithm": "AES_GCM",
    });
    if let Some(aad) = aad {
        body["additionalAuthenticatedData"] = json!(b64(aad));
    }
    if wants_cdiv {
        body["ciphertextDataIntegrityValueAlgorithm"] = json!("SHA_256");
    }
    body
}

/// The body of Decrypt for what Encrypt answered.
#[must_use]
pub fn decrypt_body(encrypted: &Value, aad: Option<&[u8]>) -> Value {
    let mut body = json!({ "requestMetadata": metadata("Decrypt"), "encryptionAlgorithm": "AES_GCM" });
    for field in ["ciphertext", "ciphertextMetadata", "initializationVector", "authenticationTag"] {
        if let Some(value) = encrypted.get(field).filter(|value| !value.is_null()) {
            body[field] = value.clone();
        }
    }
    if let Some(aad) = aad {
        body["additionalAuthenticatedData"] = json!(b64(aad));
    }
    body
}

/// Standard Base64.
#[must_use]
pub fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Whether Encrypt answered with ciphertextMetadata. An empty one says no more than none.
#[must_use]
pub fn has_metadata(encrypted: &Value) -> bool {
    encrypted["ciphertextMetadata"].as_str().is_some_and(|text| !text.is_empty())
}

/// The bytes of a Base64 field.
///
/// # Errors
/// [`Stop::Failed`] where it is none.
pub fn bytes_of(answer: &Value, field: &str) -> Result<Vec<u8>, Stop> {
    let text = answer[field].as_str();
    let bytes = text.and_then(|text| STANDARD.decode(text).ok());
    bytes.map_or_else(
        || fail(format!("{field} in standard Base64 with padding"), format!("{}", answer[field])),
        Ok,
    )
}

impl Seen {
    /// The JSON object of a success.
    ///
    /// # Errors
    /// [`Stop::Failed`] where it is none.
    pub fn ok(&self) -> Result<Value, Stop> {
        expect(self.answer.status == 200, "200 with a JSON object", self.status())?;
        self.object()
    }

    fn object(&self) -> Result<Value, Stop> {
        match serde_json::from_slice::<Value>(&self.answer.body) {
            Ok(value) if value.is_object() => Ok(value),
            _ => fail("a JSON object as body", self.status()),
        }
    }

    /// `errorName`, where there is one.
    #[must_use]
    pub fn error_name(&self) -> Option<String> {
        serde_json::from_slice::<Value>(&self.answer.body).ok()?["errorName"].as_str().map(str::to_owned)
    }

    /// Status and errorName, for people.
    #[must_use]
    pub fn status(&self) -> String {
        let name = self.error_name();
        match (self.answer.status, name) {
            (200, _) => "200".to_owned(),
            (status, Some(name)) => format!("{status} {name}"),
            (status, None) => format!("{status} without errorName"),
        }
    }

    /// A refusal with one of `names`, under its own status.
    ///
    /// # Errors
    /// [`Stop::Failed`] where it is another answer.
    pub fn refused(&self, names: &[ErrorName]) -> Result<String, Stop> {
        let one_of: Vec<_> = names.iter().map(|name| format!("{} {name}", name.http_status())).collect();
        let found = self.error_name();
        let is_right = names
            .iter()
            .any(|name| found.as_deref() == Some(name.as_str()) && name.http_status() == self.answer.status);
        expect(is_right, one_of.join(" or "), self.status())?;
        Ok(self.status())
    }

    /// Anything but success, with an errorName of the specification's and never a server fault.
    ///
    /// # Errors
    /// [`Stop::Failed`] where it is another answer.
    pub fn refused_somehow(&self) -> Result<String, Stop> {
        let name = self
            .error_name()
            .and_then(|found| ErrorName::ALL.into_iter().find(|name| name.as_str() == found));
        let is_right = (400..500).contains(&self.answer.status) || self.answer.status == 501;
        expect(
            is_right && name.is_some(),
            "a refusal with an errorName of the specification, not 500 or 503",
            self.status(),
        )?;
        Ok(self.status())
    }
}

fn shown(answer: &Answer) -> String {
    let mut text = format!("{} {}\n", answer.version, answer.status);
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    let body = String::from_utf8_lossy(&answer.body);
    text.push('\n');
    text.extend(body.chars().take(4000));
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
