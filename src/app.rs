//! Wiring: from settings to a running proxy, and its orderly end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use signal_hook::consts::signal::SIGXFSZ;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::admin::{self, Readiness};
use crate::audit::{Audit, AuditFault};
use crate::config::{Config, StoreSettings};
use crate::hsm::{Fleet, Hsm, Modules, Token, TokenSettings};
use crate::iv_budget::{IvBudget, IvBudgetFault};
use crate::keystore::{KeyStore, KeyStores, StoreQuota};
use crate::metrics::{Metrics, TokenMetrics};
use crate::server::{self, Drain, State, serve_plain, stranger_lines};

/// How long threads have to leave the PKCS#11 modules when the process ends.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The tokens of a configuration, with their threads.
pub struct Tokens {
    by_name: HashMap<Arc<str>, Arc<Token>>,
    modules: Arc<Modules>,
}

impl Tokens {
    /// Starts every token; connecting goes on in the background.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(settings: Vec<TokenSettings>, metrics: &Metrics) -> Result<Self, AppError> {
        let modules = Arc::new(Modules::default());
        let start = |settings: TokenSettings| {
            let name = Arc::clone(&settings.name);
            let token = Token::start(settings, &modules, TokenMetrics::new(metrics, &name))?;
            Ok((name, Arc::new(token)))
        };
        let by_name = settings.into_iter().map(start).collect::<io::Result<_>>().map_err(AppError::Thread)?;
        Ok(Self { by_name, modules })
    }

    /// Every token as an [`Hsm`].
    #[must_use]
    pub fn all(&self) -> Vec<Arc<dyn Hsm>> {
        self.by_name.values().map(|token| Arc::clone(token) as Arc<dyn Hsm>).collect()
    }

    /// The token of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<dyn Hsm>> {
        self.by_name.get(name).map(|token| Arc::clone(token) as Arc<dyn Hsm>)
    }

    /// The key stores on these tokens, and what each asks of them.
    #[must_use]
    pub fn stores(&self, settings: Vec<StoreSettings>, iv_budget: &IvBudget) -> (KeyStores, Vec<Arc<Fleet>>) {
        let mut fleets = Vec::new();
        let stores = KeyStores::new(settings.into_iter().map(|store| {
            let tokens = store.tokens.iter().filter_map(|name| self.by_name.get(name).cloned()).collect();
            let fleet = Arc::new(Fleet::new(tokens, store.hedging, store.keys.materials()));
            fleets.push(Arc::clone(&fleet));
            KeyStore {
                iv_counts: iv_budget.of_store(&store.name),
                name: store.name,
                prefix: store.prefix,
                is_enabled: store.is_enabled,
                credentials: store.credentials,
                keys: store.keys,
                aws_sample: store.aws_sample,
                hsm: fleet,
                quota: StoreQuota::new(store.requests_per_second, store.burst),
            }
        }));
        (stores, fleets)
    }

    /// Ends the threads; false where one is stuck inside a module.
    #[must_use]
    pub fn stop(&self) -> bool {
        // Not short-circuited: each is to stop.
        self.by_name.values().filter(|token| !token.stop(STOP_PATIENCE)).count() == 0
    }
}

/// Why the proxy does not run.
#[derive(Debug, Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {purpose}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Which listener.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The initialization vectors cannot be counted.
    #[error("{0}")]
    IvBudget(#[from] IvBudgetFault),
    /// Requests cannot be recorded.
    #[error("{0}")]
    Audit(#[from] AuditFault),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The system gives no signal.
    #[error("cannot wait for signals: {0}")]
    Signal(io::Error),
}

/// Serves until SIGTERM or SIGINT, then ends in order. `dropped_lines` tells how many log lines were dropped so far.
///
/// # Errors
/// [`AppError`] where it cannot start.
pub async fn run(
    config: Config,
    dropped_lines: impl Fn() -> usize + Send + 'static,
) -> Result<Ended, AppError> {
    // Before anything is promised: a signal that comes during the start ends it in order too.
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [terminate, interrupt] = signals;
    let signals = (terminate.map_err(AppError::Signal)?, interrupt.map_err(AppError::Signal)?);
    let hangup = signal(SignalKind::hangup()).map_err(AppError::Signal)?;
    // A limit on the size of files is then like a full disk, and does not end the process.
    let _size_limit = signal(SignalKind::from_raw(SIGXFSZ)).map_err(AppError::Signal)?;
    let metrics = Arc::new(Metrics::new());
    let listener = listen(config.listen, "KMS").await?;
    let admin_listener = listen(config.admin_listen, "operators").await?;
    let ping_listener = match config.ping_listen {
        Some(address) => Some(listen(address, "load balancers").await?),
        None => None,
    };
    let iv_budget = IvBudget::open(&config.iv_budget, &metrics)?;
    let audit = config.audit.map(|settings| Audit::open(settings, &metrics)).transpose()?.map(Arc::new);
    tokio::spawn(tend_audit(audit.clone(), hangup));
    let tokens = Tokens::start(config.tokens, &metrics)?;
    let (stores, fleets) = tokens.stores(config.stores, &iv_budget);
    for fleet in &fleets {
        tokio::spawn(Arc::clone(fleet).watch());
    }
    let readiness = Readiness::new(tokens.all(), fleets, audit.clone());
    let state = Arc::new(State {
        stores: ArcSwap::from_pointee(stores),
        tls: ArcSwap::from_pointee(config.tls),
        metrics: Arc::clone(&metrics),
        audit: audit.clone(),
        stranger_lines: stranger_lines(),
        proxy_protocol_from: config.proxy_protocol_from,
        readiness: Arc::clone(&readiness),
        limits: config.limits,
        timeouts: config.timeouts,
        fleet: config.fleet,
        in_flight: Semaphore::new(config.limits.max_in_flight),
        strangers_in_flight: Semaphore::new(config.limits.max_in_flight.div_ceil(2)),
    });
    let admin_router = admin::router(Arc::clone(&readiness), Arc::clone(&metrics));
    tokio::spawn(serve_plain(admin_listener, admin_router));
    if let Some(listener) = ping_listener {
        tokio::spawn(serve_plain(listener, admin::ping_router(Arc::clone(&readiness))));
    }
    tokio::spawn(count_dropped_lines(metrics, dropped_lines));
    let (switch, drain) = Drain::channel();
    let modules = Arc::clone(&tokens.modules);
    let end = tokio::spawn(shut_down(switch, signals, modules, readiness, config.timeouts.lame_duck));
    let left = server::serve(state, listener, drain).await;
    if left > 0 {
        tracing::warn!(connections = left, "connections were still open at the end of the drain time");
    }
    let stop = move || {
        iv_budget.close();
        audit.iter().for_each(|audit| audit.close());
        tokens.stop()
    };
    let is_clean = tokio::task::spawn_blocking(stop).await.unwrap_or(false);
    tracing::info!(clean = is_clean, "stopped");
    Ok(match (end.await.unwrap_or(Cause::Signal), is_clean) {
        (Cause::ModuleStuck, _) => Ended::ToBeRestarted,
        (Cause::Signal, true) => Ended::Clean,
        (Cause::Signal, false) => Ended::ThreadStuck,
    })
}

/// How a proxy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing was left behind.
    Clean,
    /// A thread is stuck inside a PKCS#11 module, whose destructors must not run.
    ThreadStuck,
    /// The same, and nothing but a new process brings its tokens back.
    ToBeRestarted,
}

/// Why a proxy ends.
#[derive(Clone, Copy)]
enum Cause {
    /// SIGTERM or SIGINT.
    Signal,
    /// [`Modules::stuck`].
    ModuleStuck,
}

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, AppError> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| AppError::Listen { address, purpose, source })?;
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, purpose, "listening");
    Ok(listener)
}

/// On SIGTERM or SIGINT, or where only a new process helps: not ready at once, new connections still served while load balancers notice, then drain. A
/// second signal ends the waiting.
async fn shut_down(
    switch: watch::Sender<bool>,
    (mut terminate, mut interrupt): (Signal, Signal),
    modules: Arc<Modules>,
    readiness: Arc<Readiness>,
    lame_duck: Duration,
) -> Cause {
    let cause = tokio::select! {
        _ = terminate.recv() => Cause::Signal,
        _ = interrupt.recv() => Cause::Signal,
        () = modules.stuck() => Cause::ModuleStuck,
    };
    readiness.drain();
    tracing::info!(
        lame_duck_secs = lame_duck.as_secs(),
        "stopping: not ready any more; new connections are still served for the lame-duck time"
    );
    tokio::select! {
        () = tokio::time::sleep(lame_duck) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    switch.send_replace(true);
    tracing::info!("draining: no new connections; those that are open are told to close");
    cause
}

/// Watches over the audit log; on SIGHUP it changes to a new file, where the one before was moved away.
async fn tend_audit(audit: Option<Arc<Audit>>, mut hangup: Signal) {
    if let Some(audit) = &audit {
        tokio::spawn(Arc::clone(audit).watch());
    }
    while hangup.recv().await.is_some() {
        audit.iter().for_each(|audit| audit.reopen());
    }
}

async fn count_dropped_lines(metrics: Arc<Metrics>, dropped_lines: impl Fn() -> usize + Send) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let total = u64::try_from(dropped_lines()).unwrap_or(u64::MAX);
        metrics.log_lines_dropped.inc_by(total.saturating_sub(metrics.log_lines_dropped.get()));
    }
}
