//! What operators and load balancers ask: liveness, readiness, metrics. Nothing here changes anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use tokio::task::spawn_blocking;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use crate::audit::Audit;
use crate::clock;
use crate::hsm::{Fleet, HealthStatus, Hsm};
use crate::metrics::Metrics;

/// The path that load balancers poll, on the TLS listener and on the plain one.
pub const PING_PATH: &str = "/ping";

/// Lines of one kind that a person is shown.
const MAX_LINES: usize = 20;

/// Whether this proxy should be sent requests.
pub struct Readiness {
    is_draining: AtomicBool,
    served: ArcSwap<Served>,
    configuration: ArcSwap<Configuration>,
    audit: Option<Arc<Audit>>,
}

/// What the configuration that holds has served.
#[derive(Default)]
pub struct Served {
    /// The tokens.
    pub tokens: Vec<Arc<dyn Hsm>>,
    /// The stores, by name.
    pub stores: Vec<(Arc<str>, Arc<Fleet>)>,
}

/// Which configuration holds, and what became of the last reload.
#[derive(Clone)]
pub struct Configuration {
    /// Number of the configuration, from 1.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: Instant,
    /// When a later one was refused, and why; `None` where the last one was not.
    pub refusal: Option<(Instant, Vec<String>)>,
}

impl Configuration {
    /// The one that the process began with.
    #[must_use]
    pub fn first() -> Self {
        Self { generation: 1, loaded_at: clock::now(), refusal: None }
    }

    fn describe(&self, text: &mut String) {
        let secs = self.loaded_at.elapsed().as_secs();
        text.push_str(&format!("configuration {} loaded {secs} s ago\n", self.generation));
        let Some((refused_at, reasons)) = &self.refusal else { return };
        let secs = refused_at.elapsed().as_secs();
        text.push_str(&format!("a later configuration was refused {secs} s ago\n"));
        for reason in reasons.iter().take(MAX_LINES) {
            text.push_str(&format!("  {reason}\n"));
        }
    }
}

impl Readiness {
    /// Ready once a token is, and every store's keys have been looked at once, as long as `audit` refuses nothing.
    #[must_use]
    pub fn new(served: Served, audit: Option<Arc<Audit>>) -> Arc<Self> {
        Arc::new(Self {
            is_draining: AtomicBool::new(false),
            served: ArcSwap::from_pointee(served),
            configuration: ArcSwap::from_pointee(Configuration::first()),
            audit,
        })
    }

    /// Another configuration has these served from now on.
    pub fn serve(&self, served: Served) {
        self.served.store(Arc::new(served));
    }

    /// Which configuration holds.
    #[must_use]
    pub fn configuration(&self) -> Arc<Configuration> {
        self.configuration.load_full()
    }

    /// What became of a reload.
    pub fn note_configuration(&self, configuration: Configuration) {
        self.configuration.store(Arc::new(configuration));
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
        let served = self.served.load();
        !self.is_draining.load(Ordering::Relaxed)
            && !self.is_refusing()
            && served.stores.iter().all(|(_, fleet)| fleet.is_prepared() || !fleet.is_connected())
            && served.tokens.iter().any(|token| token.health().iter().any(|health| can_serve(health.status)))
    }

    /// Readiness and configuration in one line, for a supervisor's status line.
    #[must_use]
    pub fn summary(&self) -> String {
        let word = if self.is_ready() { "ready" } else { "not ready (why: /readyz?verbose)" };
        let configuration = self.configuration.load();
        let refusal = configuration.refusal.as_ref().map_or("", |_| "; a later one was refused");
        format!("{word}, configuration {}{refusal}", configuration.generation)
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
        let served = self.served.load();
        for health in served.tokens.iter().flat_map(|token| token.health()) {
            let status = match health.status {
                None => "not measured yet",
                Some(HealthStatus::Unavailable) => "unavailable",
                Some(HealthStatus::Degraded) => "degraded",
                Some(HealthStatus::Active) => "active",
            };
            let reason = health.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            text.push_str(&format!("token {} {status}{reason}\n", health.name));
        }
        for (store, fleet) in &served.stores {
            let unresolved = fleet.unresolved();
            for locator in unresolved.iter().take(MAX_LINES) {
                text.push_str(&format!("store {store}: no token is known to hold the key with {locator}\n"));
            }
            if unresolved.len() > MAX_LINES {
                text.push_str(&format!("store {store}: and {} more\n", unresolved.len() - MAX_LINES));
            }
        }
        self.configuration.load().describe(&mut text);
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

/// The details name tokens and reasons: they are for somebody on this machine.
async fn readyz(
    State(state): State<AdminState>,
    Extension(peer): Extension<SocketAddr>,
    Query(query): Query<ReadyzQuery>,
) -> impl IntoResponse {
    let (status, text) = ping_answer(state.readiness.is_ready());
    let details = match query.verbose {
        None => String::new(),
        Some(_) if peer.ip().to_canonical().is_loopback() => state.readiness.describe(),
        Some(_) => "details are shown on loopback alone: ask on the proxy's own machine\n".to_owned(),
    };
    (status, format!("{text}{details}"))
}

async fn show_metrics(State(state): State<AdminState>) -> Result<impl IntoResponse, StatusCode> {
    /// Prometheus's text format.
    const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
    // Thousands of series take their time, which requests must not wait for.
    let text = spawn_blocking(move || state.render()).await;
    let text = text.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(http::header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

impl AdminState {
    /// The metrics; what is measured only when somebody asks is measured now.
    fn render(&self) -> String {
        let served = self.readiness.served.load();
        served.tokens.iter().for_each(|token| drop(token.health()));
        for (store, fleet) in &served.stores {
            let count = i64::try_from(fleet.unresolved().len()).unwrap_or(i64::MAX);
            self.metrics.keys_unresolved.with_label_values(&[store]).set(count);
        }
        self.metrics.show_keys_out(served.stores.iter().flat_map(|(_, fleet)| fleet.keys_out()));
        self.metrics.ready.set(i64::from(self.readiness.is_ready()));
        self.metrics.render()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::Service;

    use super::*;

    async fn verbose_readiness(peer: &str) -> String {
        let peer = SocketAddr::new(peer.parse::<IpAddr>().unwrap(), 1);
        let readiness = Readiness::new(Served::default(), None);
        readiness.drain();
        let mut router = router(readiness, Arc::new(Metrics::new())).layer(Extension(peer));
        let request = Request::get("/readyz?verbose").body(Body::empty()).unwrap();
        let answer = router.call(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn only_this_machine_is_shown_details() {
        for peer in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(verbose_readiness(peer).await.contains("draining"), "{peer}");
        }
        for peer in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            let text = verbose_readiness(peer).await;
            assert!(!text.contains("draining") && text.starts_with("not ready\n"), "{peer}: {text}");
        }
    }
}
