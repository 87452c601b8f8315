//! A request from its head to its answer. The steps of [`steps`] are the order of checks (docs/order-of-checks.md).

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::request::Parts;
use http::{Method, Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use xks_spec::{ApiPath, Operation};

use super::State;
use super::activity::{Activity, InFlight};
use super::admission::Place;
use super::answer::{self, Answer};
use super::body::{self, BodyEnd, DISPLACED};
use super::listener::Drain;
use super::record::Record;
use super::retirement::Retirement;
use crate::admin::PING_PATH;
use crate::clock;
use crate::error::Error;
use crate::keystore::{KeyStore, KeyStores};
use crate::operations::{self, Context};
use crate::sigv4::{self, SignedHead};

/// What a request knows of its connection.
pub(super) struct Peer {
    pub(super) state: Arc<State>,
    pub(super) activity: Arc<Activity>,
    pub(super) place: Arc<Place>,
    /// The client's address, which with PROXY protocol is not that of the connection.
    pub(super) address: SocketAddr,
    /// The load balancer's, with PROXY protocol.
    pub(super) balancer: Option<SocketAddr>,
    /// Subject of the client's certificate.
    pub(super) certificate_subject: Option<Arc<str>>,
    pub(super) drain: Drain,
    pub(super) retirement: Retirement,
}

/// The connection closes without an answer.
#[derive(Debug)]
pub(super) struct Close;

impl std::fmt::Display for Close {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is closed without an answer")
    }
}

impl std::error::Error for Close {}

/// A request that is in flight, and has its line in the log whatever becomes of it.
pub(super) struct Begun {
    in_flight: InFlight,
    /// `None` for the load balancer's `/ping`.
    record: Option<Record>,
}

/// The head of a request has come.
pub(super) fn begin(peer: &Peer, request: &Request<Incoming>) -> Begun {
    let in_flight = peer.activity.begin_request();
    let is_http2 = request.version() == Version::HTTP_2;
    let record =
        (request.uri().path() != PING_PATH).then(|| Record::begin(peer, in_flight.first_byte_at, is_http2));
    Begun { in_flight, record }
}

/// Answers one request.
pub(super) async fn answer(
    peer: &Peer,
    request: Request<Incoming>,
    begun: Begun,
) -> Result<Response<Full<Bytes>>, Close> {
    let is_head = request.method() == Method::HEAD;
    let mut answer = match begun.record {
        None => answer::ping(peer.state.readiness.is_ready()),
        Some(record) => api(peer, begun.in_flight, request, record).await?,
    };
    if is_head {
        answer::without_body(&mut answer);
    }
    let is_leaving = peer.drain.has_begun() || peer.activity.is_retired();
    if is_leaving && !peer.activity.is_http2() {
        answer::close(&mut answer);
    }
    Ok(answer.map(|body| Full::new(peer.activity.until_sent(body))))
}

async fn api(
    peer: &Peer,
    in_flight: InFlight,
    request: Request<Incoming>,
    mut record: Record,
) -> Result<Answer, Close> {
    let (head, mut body) = request.into_parts();
    let steps = steps(peer, &in_flight, &head, &mut body, &mut record);
    // A panic becomes an answer like any other: it ends neither the connection nor the process.
    let end = AssertUnwindSafe(steps).catch_unwind().await;
    if !matches!(end, Ok(Err(BodyEnd::TooSlow(_)))) {
        body::discard(body, peer.state.timeouts.body, in_flight, &peer.state.places);
    }
    match end.unwrap_or(Err(BodyEnd::Refused(Error::Panic))) {
        Ok(body) => Ok(answer::ok(body)),
        Err(BodyEnd::Refused(error)) => {
            let answer = answer::error(&error);
            if matches!(error, Error::Authentication(_)) {
                record.claimed_access_key_id = sigv4::claimed_access_key_id(&head.headers);
            }
            record.fail(error);
            Ok(answer)
        }
        Err(BodyEnd::TooSlow(reason)) => {
            record.close(reason);
            peer.state.metrics.connections_closed.with_label_values(&["slow_body"]).inc();
            Err(Close)
        }
    }
}

async fn steps(
    peer: &Peer,
    in_flight: &InFlight,
    head: &Parts,
    body: &mut Incoming,
    record: &mut Record,
) -> Result<Vec<u8>, BodyEnd> {
    let state = &*peer.state;
    let path = parse_path(head)?;
    let at_first = find(&state.stores.load(), &path, record)?;
    require_post(&head.method)?;
    let place = state.places.take().ok_or(Error::TooManyInFlight)?;
    let gauge = state.metrics.requests_in_flight.clone();
    gauge.inc();
    let _count = scopeguard(move || gauge.dec());
    let come_at = clock::wall_clock();
    let signature = sigv4::check_head(signed_head(head), &at_first.credentials, come_at)?;
    let deadline = in_flight.deadline(&state.timeouts);
    let is_stranger = !peer.activity.is_authenticated();
    let in_time = clock::now() + state.timeouts.body;
    // Whoever may be a stranger is not waited for in vain: later there is no answer but a failure.
    let until = if is_stranger { in_time.min(deadline.instant()) } else { in_time };
    let reading = body::read(body, state.limits.max_body_bytes(), until);
    let (body, _place) = state.places.keep_while(place, is_stranger, reading).await.ok_or(DISPLACED)?;
    let body = body?;
    record.request_bytes = body.len();
    // Whom a reload has shut out meanwhile is shut out, however long the body was waited for.
    let store = find(&state.stores.load(), &path, record)?;
    let signature = if Arc::ptr_eq(&store, &at_first) {
        signature
    } else {
        sigv4::check_head(signed_head(head), &store.credentials, come_at)?
    };
    let authenticated = signature.verify(&body)?;
    store.credential_uses.note(&authenticated, clock::wall_clock());
    record.access_key_id = Some(authenticated.access_key_id);
    if peer.activity.authenticated() {
        peer.place.is_no_stranger();
    }
    require_quota(&store, path.operation)?;
    let is_health = path.operation == Operation::GetHealthStatus;
    if !is_health && state.audit.as_ref().is_some_and(|audit| audit.is_refusing()) {
        // No key is used that could not be accounted for.
        return Err(Error::Audit.into());
    }
    let mut context =
        Context { store: &store, deadline, limits: state.limits.sizes, trace: &mut record.trace };
    let answer = perform(&mut context, state, &path, &body).await?;
    record.succeed(answer.len());
    if !is_health {
        // Health uses no key, and has to say what is wrong.
        record.be_written(deadline).await?;
    }
    Ok(answer)
}

/// 404 for everything that is no path of the API.
fn parse_path(head: &Parts) -> Result<ApiPath<'_>, Error> {
    // SPEC(ERR-PATH-001): an invalid path is InvalidUriPathException. A query belongs to no path of ours, and a target
    // that names a host of its own on HTTP/1.1 is for proxies of another kind.
    let names_a_host = head.version != Version::HTTP_2 && head.uri.authority().is_some();
    if head.uri.query().is_some() || names_a_host {
        return Err(Error::UnknownPath);
    }
    ApiPath::parse(head.uri.path()).map_err(|_| Error::UnknownPath)
}

/// The store of a path; 404 where none has its prefix.
fn find(stores: &KeyStores, path: &ApiPath<'_>, record: &mut Record) -> Result<Arc<KeyStore>, Error> {
    // SPEC(URI-PREFIX-001): MAY serve several customers, isolated by their prefixes.
    let store = stores.find(path.prefix).ok_or(Error::UnknownPath)?;
    record.operation = Some(path.operation);
    record.external_key_id.clone_from(&path.external_key_id);
    record.store = Some(Arc::clone(store));
    Ok(Arc::clone(store))
}

fn require_post(method: &Method) -> Result<(), Error> {
    if *method == Method::POST { Ok(()) } else { Err(Error::Method) }
}

fn require_quota(store: &KeyStore, operation: Operation) -> Result<(), Error> {
    let is_health = operation == Operation::GetHealthStatus;
    if store.quota.admits(is_health) { Ok(()) } else { Err(Error::OverQuota) }
}

fn signed_head(head: &Parts) -> SignedHead<'_> {
    let authority = (head.version == Version::HTTP_2).then(|| head.uri.authority()).flatten();
    SignedHead {
        method: &head.method,
        path: head.uri.path(),
        headers: &head.headers,
        authority: authority.map(http::uri::Authority::as_str),
    }
}

async fn perform(
    context: &mut Context<'_>,
    state: &State,
    path: &ApiPath<'_>,
    body: &Bytes,
) -> Result<Vec<u8>, Error> {
    // SPEC(META-API-001, ENC-API-001, DEC-API-001, HEALTH-API-001): all four operations.
    match (path.operation, &path.external_key_id) {
        (Operation::Encrypt, Some(id)) => answer::encode(&operations::encrypt(context, id, body).await?),
        (Operation::Decrypt, Some(id)) => answer::encode(&operations::decrypt(context, id, body).await?),
        (Operation::GetKeyMetadata, Some(id)) => {
            answer::encode(&operations::get_key_metadata(context, id, body).await?)
        }
        (Operation::GetHealthStatus, _) => {
            let is_refusing = state.audit.as_ref().is_some_and(|audit| audit.is_refusing());
            let fleet = **state.fleet.load();
            answer::encode(&operations::get_health_status(context, fleet, is_refusing, body)?)
        }
        (_, None) => Err(Error::UnknownPath),
    }
}

impl From<Error> for BodyEnd {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<sigv4::AuthenticationFault> for BodyEnd {
    fn from(fault: sigv4::AuthenticationFault) -> Self {
        Self::Refused(fault.into())
    }
}

/// Runs `end` when dropped.
fn scopeguard<F: FnOnce()>(end: F) -> impl Drop {
    struct Guard<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Guard<F> {
        fn drop(&mut self) {
            if let Some(end) = self.0.take() {
                end();
            }
        }
    }
    Guard(Some(end))
}

#[cfg(test)]
pub(super) mod tests;
