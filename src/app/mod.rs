//! Wiring: from settings to a running proxy, and its orderly end.

mod files;
mod fixed;
mod loading;
mod reload;
mod resolution;
mod supervisor;
mod tokens;
mod versions;
mod watchdog;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use signal_hook::consts::signal::SIGXFSZ;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

pub use files::Snapshot;
pub use loading::load;
pub use reload::Surroundings;
pub use tokens::Tokens;
pub use versions::{stores_with_versions, unsafe_at_start};

use crate::admin::{self, Readiness};
use crate::audit::{Audit, AuditFault};
use crate::config::Config;
use crate::hsm::{Fleet, Modules};
use crate::iv_budget::{IvBudget, IvBudgetFault};
use crate::metrics::Metrics;
use crate::open_files;
use crate::server::{
    self, CurrentTls, Drain, Limits, Places, SmallTls, State, serve_admin, serve_ping, stranger_lines,
};
use crate::tls::show_chains;
use crate::version_records::{VersionRecords, VersionRecordsFault};

use fixed::Fixed;
use reload::Reloader;
use supervisor::Supervisor;
use tokens::Stores;

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
    /// What is known of key versions cannot be read.
    #[error("{0}")]
    VersionRecords(#[from] VersionRecordsFault),
    /// Versions would become primary that were not staged.
    #[error("the key versions of the configuration are not safe to serve:\n  {}", .0.join("\n  "))]
    UnsafeVersions(Vec<String>),
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

/// Serves until SIGTERM or SIGINT, then ends in order; reloads on SIGHUP, SIGUSR1 and when a file of the configuration
/// changes from what `files` says that they were when `config` was loaded. `dropped_lines` tells how many log lines were
/// dropped so far.
///
/// # Errors
/// [`AppError`] where it cannot start.
pub async fn run(
    (config, files): (Config, Snapshot),
    surroundings: Surroundings,
    dropped_lines: impl Fn() -> usize + Send + 'static,
) -> Result<Ended, AppError> {
    // Before anything is promised: a signal that comes during the start ends it in order too.
    let on = |kind| signal(kind).map_err(AppError::Signal);
    let signals = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let (hangup, force) = (on(SignalKind::hangup())?, on(SignalKind::user_defined1())?);
    let rotated = on(SignalKind::hangup())?;
    // A limit on the size of files is then like a full disk, and does not end the process.
    let _size_limit = on(SignalKind::from_raw(SIGXFSZ))?;
    let limits = within_open_files(config.limits);
    let supervisor = Arc::new(Supervisor::of_environment());
    let metrics = Arc::new(Metrics::new());
    reload::note_loaded(&metrics);
    let listener = listen(config.listen, "KMS").await?;
    let admin_listener = listen(config.admin.listen, "operators").await?;
    let ping_listener = match config.ping_listen {
        Some(address) => Some(listen(address, "load balancers").await?),
        None => None,
    };
    let fixed = Fixed::of(&config);
    let of_admin = config.admin.tls.as_ref().map(|tls| &tls.listener);
    show_chains(&config.tls, config.endpoint.as_deref(), of_admin, &metrics);
    let iv_budget = Arc::new(IvBudget::open(&config.iv_budget, &metrics)?);
    let records = Arc::new(VersionRecords::open(config.iv_budget.dir.as_deref(), &metrics)?);
    warn_of_versions(&config);
    let problems = unsafe_at_start(&config.stores, &records);
    if !problems.is_empty() {
        return Err(AppError::UnsafeVersions(problems));
    }
    let audit = config.audit.map(|settings| Audit::open(settings, &metrics)).transpose()?.map(Arc::new);
    tokio::spawn(tend_audit(audit.clone(), rotated));
    let tokens = Arc::new(Tokens::start(config.tokens, &metrics)?);
    let stores = Stores::build(config.stores, &tokens, (&iv_budget, &records), &metrics, None);
    stores.begin(&metrics, &iv_budget);
    versions::note_served(&records, &stores);
    let watch = |fleet| tokio::spawn(Fleet::watch(Arc::clone(fleet))).abort_handle();
    let watches = stores.fleets.values().map(watch).collect();
    let readiness = Readiness::new(stores.served(&tokens), audit.clone());
    let state = Arc::new(State {
        stores: ArcSwap::new(Arc::clone(&stores.stores)),
        tls: CurrentTls::new(config.tls),
        metrics: Arc::clone(&metrics),
        audit: audit.clone(),
        stranger_lines: stranger_lines(),
        proxy_protocol_from: config.proxy_protocol_from,
        readiness: Arc::clone(&readiness),
        limits,
        timeouts: config.timeouts,
        fleet: ArcSwap::from_pointee(config.fleet),
        places: Places::new(config.limits.max_in_flight),
    });
    let admin_router = admin::router(Arc::clone(&readiness), Arc::clone(&metrics));
    let admin_tls = SmallTls::new(config.admin.tls.map(|tls| tls.listener), &metrics);
    tokio::spawn(serve_admin(admin_listener, admin_router, Arc::clone(&admin_tls)));
    if let Some(listener) = ping_listener {
        tokio::spawn(serve_ping(listener, admin::ping_router(Arc::clone(&readiness))));
    }
    tokio::spawn(count_dropped_lines(metrics, dropped_lines));
    let (switch, drain) = Drain::channel();
    let modules = tokens.modules();
    let times = (config.timeouts.lame_duck, config.timeouts.drain);
    let parts = (Arc::clone(&readiness), Arc::clone(&supervisor));
    let end = tokio::spawn(shut_down(switch, signals, modules, parts, times));
    let reloader = Reloader {
        surroundings,
        supervisor: Arc::clone(&supervisor),
        state: Arc::clone(&state),
        tokens: Arc::clone(&tokens),
        iv_budget: Arc::clone(&iv_budget),
        records: Arc::clone(&records),
        current: stores,
        watches,
        fixed,
        tls_identity: config.tls_identity,
        admin_tls,
        watch_interval: config.watch_interval,
        files,
    };
    supervisor.ready(&readiness).await;
    tokio::spawn(reloader.run(hangup, force));
    watch_over(&supervisor, &readiness);
    let left = server::serve(state, listener, drain).await;
    if left > 0 {
        tracing::warn!(connections = left, "connections were still open at the end of the drain time");
    }
    let stop = move || {
        records.close();
        audit.iter().for_each(|audit| audit.close());
        let is_clean = tokens.stop();
        // A thread that is still there may draw more.
        iv_budget.close(is_clean);
        is_clean
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

/// What was served before is remembered in the state directory alone.
fn warn_of_versions(config: &Config) {
    let stores = stores_with_versions(&config.stores).join(", ");
    if config.iv_budget.dir.is_none() && !stores.is_empty() {
        tracing::warn!(
            %stores,
            "without a state directory ([state] dir) a start does not know which versions were staged before it makes one primary"
        );
    }
}

/// The limits with no more connections than the system lets this process have.
fn within_open_files(limits: Limits) -> Limits {
    let (wanted, possible) = (limits.max_connections, open_files::raise_limit());
    if possible < wanted {
        tracing::warn!(
            max_connections = wanted,
            possible,
            advice = open_files::ADVICE,
            "the system lets this process open too few files for max_connections: it takes fewer connections"
        );
    }
    Limits { max_connections: wanted.min(possible), ..limits }
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
    (readiness, supervisor): (Arc<Readiness>, Arc<Supervisor>),
    (lame_duck, drain): (Duration, Duration),
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
    supervisor.stopping(lame_duck, drain).await;
    tokio::select! {
        () = tokio::time::sleep(lame_duck) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    switch.send_replace(true);
    tracing::info!("draining: no new connections; those that are open are told to close");
    cause
}

/// Has the supervisor told how ready the process is, and, where it listens for that, that the process gets work done: what is
/// asked each time is what load balancers ask. An HSM that is absent is no reason to end the process.
fn watch_over(supervisor: &Arc<Supervisor>, readiness: &Arc<Readiness>) {
    tokio::spawn(Arc::clone(supervisor).show_status(Arc::clone(readiness)));
    let Some(timeout) = supervisor.watchdog_timeout() else { return };
    let (supervisor, readiness) = (Arc::clone(supervisor), Arc::clone(readiness));
    tokio::spawn(async move {
        let answers = move || drop(readiness.summary());
        watchdog::watch(timeout, answers, || supervisor.alive()).await;
    });
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
