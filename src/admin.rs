//! What operators and load balancers ask: liveness, readiness, metrics. Nothing here changes anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use crate::audit::Audit;
use crate::hsm::{Fleet, HealthStatus, Hsm};
use crate::metrics::Metrics;

/// The path that load balancers poll, on the TLS listener and on the plain one.
pub const PING_PATH: &str = "/ping";

/// Whether this proxy should be sent requests.
pub struct Readiness {
    is_draining: AtomicBool,
    tokens: Vec<Arc<dyn Hsm>>,
    fleets: Vec<Arc<Fleet>>,
    audit: Option<Arc<Audit>>,
}

impl Readiness {
    /// Ready once a token of `tokens` is, and every store's keys have been looked at once, as long as `audit` refuses
    /// nothing.
    #[must_use]
    pub fn new(tokens: Vec<Arc<dyn Hsm>>, fleets: Vec<Arc<Fleet>>, audit: Option<Arc<Audit>>) -> Arc<Self> {
        Arc::new(Self { is_draining: AtomicBool::new(false), tokens, fleets, audit })
    }

    /// From now on not ready, for good.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Not draining, at least one token can serve, no store is still looking for its keys, and records can be written
    /// where nothing is served without.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let can_serve =
            |status: Option<HealthStatus>| status.is_some_and(|status| status > HealthStatus::Unavailable);
        !self.is_draining.load(Ordering::Relaxed)
            && !self.is_refusing()
            && self.fleets.iter().all(|fleet| fleet.is_prepared() || !fleet.is_connected())
            && self.tokens.iter().any(|token| token.health().iter().any(|health| can_serve(health.status)))
    }

    fn is_refusing(&self) -> bool {
        self.audit.as_ref().is_some_and(|audit| audit.is_refusing())
    }

    /// Readiness line by line, for a person.
    fn describe(&self) -> String {
        let mut text = String::new();
        if self.is_draining.load(Ordering::Relaxed) {
            text.push_str("draining: the process is being stopped\n");
        }
        if self.is_refusing() {
            text.push_str("audit log: cannot be written, and nothing is served without\n");
        }
        for health in self.tokens.iter().flat_map(|token| token.health()) {
            let status = match health.status {
                None => "not measured yet",
                Some(HealthStatus::Unavailable) => "unavailable",
                Some(HealthStatus::Degraded) => "degraded",
                Some(HealthStatus::Active) => "active",
            };
            let reason = health.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            text.push_str(&format!("token {} {status}{reason}\n", health.name));
        }
        text
    }
}

/// Status and text of a `/ping` or `/readyz` answer.
#[must_use]
pub const fn ping_answer(is_ready: bool) -> (StatusCode, &'static str) {
    if is_ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

#[derive(Clone)]
struct AdminState {
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
}

/// `/livez`, `/readyz`, `/readyz?verbose` and `/metrics`, for the admin listener.
pub fn router(readiness: Arc<Readiness>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(AdminState { readiness, metrics })
        .layer(ServiceBuilder::new().layer(CatchPanicLayer::new()))
}

// SPEC(OPS-LB-001, OPS-LB-002): MUST implement the health checks of load balancers: an unsigned GET, 200 while fit to serve.
/// `/ping` and nothing else, for the plain listener of load balancers.
pub fn ping_router(readiness: Arc<Readiness>) -> Router {
    let ping = async |State(readiness): State<Arc<Readiness>>| ping_answer(readiness.is_ready());
    Router::new()
        .route(PING_PATH, get(ping))
        .with_state(readiness)
        .layer(ServiceBuilder::new().layer(CatchPanicLayer::new()))
}

#[derive(serde::Deserialize)]
struct ReadyzQuery {
    verbose: Option<String>,
}

async fn readyz(State(state): State<AdminState>, Query(query): Query<ReadyzQuery>) -> impl IntoResponse {
    let (status, text) = ping_answer(state.readiness.is_ready());
    let details = query.verbose.map(|_| state.readiness.describe()).unwrap_or_default();
    (status, format!("{text}{details}"))
}

async fn show_metrics(State(state): State<AdminState>) -> impl IntoResponse {
    /// Prometheus's text format.
    const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
    // What is measured only when somebody asks is measured now.
    state.readiness.tokens.iter().for_each(|token| drop(token.health()));
    ([(http::header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.render())
}
