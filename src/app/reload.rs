//! Another configuration while the proxy serves: loaded and checked whole as at the start, and only then published.
//!
//! What is wrong with the files blocks a reload, and nothing changes. What is wrong with the tokens does not, for it may be
//! over in a moment; but a key that can be used may not become one that cannot, unless the operator insists.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::signal::unix::Signal;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::files::Snapshot;
use super::fixed::Fixed;
use super::loading::load_whole;
use super::supervisor::Supervisor;
use super::tokens::{Stores, Tokens};
use super::{resolution, versions};
use crate::admin::Configuration;
use crate::clock;
use crate::config::{Config, ConfigError, LogLevel};
use crate::hsm::{Token, TokenSettings};
use crate::iv_budget::IvBudget;
use crate::metrics::Metrics;
use crate::secret;
use crate::server::{SmallTls, State};
use crate::tls::{TlsIdentity, show_chains};
use crate::version_records::VersionRecords;

/// How long tokens that are new are waited for, and then the keys of stores that are new.
const PREPARE_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at them.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long requests that began under an earlier configuration may keep a token that the present one lacks.
const TOKEN_RELEASE_PATIENCE: Duration = Duration::from_secs(60);
/// How long its threads then have to end.
const TOKEN_STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What a reload needs of the process around.
pub struct Surroundings {
    /// The configuration file.
    pub path: PathBuf,
    /// Has another level logged from now on.
    pub set_log_level: Box<dyn Fn(LogLevel) + Send + Sync>,
    /// Whether the process has the environment that the modules of these tokens want.
    pub has_environment: fn(&[TokenSettings]) -> bool,
}

/// Who wants a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    /// SIGHUP.
    Hangup,
    /// SIGUSR1: also where keys are lost by it.
    Forced,
    /// A file has changed.
    Files,
}

impl Trigger {
    const fn word(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Forced => "SIGUSR1",
            Self::Files => "files",
        }
    }
}

/// Why nothing has changed.
enum Refusal {
    Faulty(ConfigError),
    NeedsRestart(Vec<String>),
    KeysLost(Vec<String>),
    UnsafeVersions(Vec<String>),
    Failed(String),
}

impl Refusal {
    const fn label(&self) -> &'static str {
        match self {
            Self::Faulty(_) => "faulty",
            Self::NeedsRestart(_) => "needs_restart",
            Self::KeysLost(_) => "keys_lost",
            Self::UnsafeVersions(_) => "unsafe_versions",
            Self::Failed(_) => "failed",
        }
    }

    /// For the operator, line by line; no text of the configuration is in them but names.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Faulty(ConfigError::Faulty { faults, .. }) => {
                faults.iter().map(ToString::to_string).collect()
            }
            Self::Faulty(unreadable) => vec![unreadable.to_string()],
            Self::NeedsRestart(settings) => {
                settings.iter().map(|setting| format!("{setting}: a change needs a restart")).collect()
            }
            Self::KeysLost(problems) | Self::UnsafeVersions(problems) => problems.clone(),
            Self::Failed(problem) => vec![problem.clone()],
        }
    }

    const fn advice(&self) -> &'static str {
        match self {
            Self::Faulty(_) => "mend the faults; `xks-proxy check` shows them too",
            Self::NeedsRestart(_) => "restart the process, or take these changes back",
            Self::KeysLost(_) => {
                "these keys can be used now and could not be any more: mend it, or force it with SIGUSR1"
            }
            Self::UnsafeVersions(_) => {
                "what one proxy encrypts another could not decrypt: stage the version everywhere first, give another key \
                 another number, or force it with SIGUSR1"
            }
            Self::Failed(_) => "try again",
        }
    }
}

/// Who reloads, and what it must know of the configuration that holds.
pub(super) struct Reloader {
    pub(super) surroundings: Surroundings,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) state: Arc<State>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) iv_budget: Arc<IvBudget>,
    pub(super) records: Arc<VersionRecords>,
    pub(super) current: Stores,
    /// The tasks that prove the keys of the current stores.
    pub(super) watches: Vec<AbortHandle>,
    pub(super) fixed: Fixed,
    pub(super) tls_identity: TlsIdentity,
    pub(super) admin_tls: Arc<SmallTls>,
    pub(super) watch_interval: Option<Duration>,
    /// The files as they were when they were last loaded, whatever came of it.
    pub(super) files: Snapshot,
}

impl Reloader {
    /// Reloads whenever it is asked to, or a file changes. Ends never.
    pub(super) async fn run(mut self, mut hangup: Signal, mut force: Signal) {
        loop {
            let trigger = tokio::select! {
                biased;
                _ = force.recv() => Trigger::Forced,
                _ = hangup.recv() => Trigger::Hangup,
                () = changed(&self.files, self.watch_interval) => Trigger::Files,
            };
            self.supervisor.reloading().await;
            self.reload(trigger).await;
            self.supervisor.ready(&self.state.readiness).await;
        }
    }

    async fn reload(&mut self, trigger: Trigger) {
        let outcome = match self.load().await {
            Ok(config) => self.apply(config, trigger).await,
            Err(error) => Err(Refusal::Faulty(error)),
        };
        let metrics = &self.state.metrics;
        let label = outcome.as_ref().err().map_or("ok", Refusal::label);
        metrics.config_refused.set(i64::from(outcome.is_err()));
        let before = self.state.readiness.configuration();
        match outcome {
            Ok(()) => {
                let generation = before.generation + 1;
                tracing::info!(trigger = trigger.word(), generation, "the configuration is reloaded");
                note_loaded(metrics);
                let loaded = Configuration { generation, ..Configuration::first() };
                self.state.readiness.note_configuration(loaded);
            }
            Err(refusal) => {
                let lines = refusal.lines();
                for problem in &lines {
                    tracing::error!(%problem, "the configuration on disk is not right");
                }
                let (reason, advice) = (refusal.label(), refusal.advice());
                tracing::error!(
                    trigger = trigger.word(),
                    reason,
                    advice,
                    "the configuration is not reloaded: that of before is served on"
                );
                let refusal = Some((clock::now(), lines));
                self.state
                    .readiness
                    .note_configuration(Configuration { refusal, ..Configuration::clone(&before) });
            }
        }
        // Its secrets are read whatever came of it.
        secret::warn_if_unlocked();
        // Last: who has seen it sees everything else.
        self.state.metrics.config_reloads.with_label_values(&[label]).inc();
    }

    async fn load(&mut self) -> Result<Config, ConfigError> {
        let (path, known) = (self.surroundings.path.clone(), self.files.clone());
        let load = move || load_whole(&known, || Config::load_with_files(&path));
        let Ok((loaded, files)) = spawn_blocking(load).await else {
            let path = self.surroundings.path.clone();
            return Err(ConfigError::Unreadable { path, reason: std::io::ErrorKind::Other });
        };
        self.files = files;
        loaded
    }

    async fn apply(&mut self, config: Config, trigger: Trigger) -> Result<(), Refusal> {
        let changes = self.fixed.changes(&config, &self.tokens, self.surroundings.has_environment);
        if !changes.is_empty() {
            return Err(Refusal::NeedsRestart(changes));
        }
        let Config { tls, tls_identity, fleet, iv_budget, log_level, watch_interval, tokens, stores, .. } =
            config;
        let (endpoint, admin_tls) = (config.endpoint, config.admin.tls.map(|tls| tls.listener));
        let added = self.add_tokens(&tokens)?;
        let kept = (&*self.iv_budget, &self.records);
        let next = Stores::build(stores, &self.tokens, kept, &self.state.metrics, Some(&self.current));
        if trigger != Trigger::Forced {
            wait_until(|| added.iter().all(|token| token.is_indexed())).await;
            if let Some(refusal) = self.unsafe_keys(&next).await {
                drop(next);
                for token in added {
                    let name = Arc::clone(&token.settings().name);
                    drop(token);
                    self.release_token(&name);
                }
                return Err(refusal);
            }
        }
        self.prepare(&next).await;
        show_chains(&tls, endpoint.as_deref(), admin_tls.as_ref(), &self.state.metrics);
        if tls_identity != self.tls_identity {
            let trust_changes = tls_identity.trust != self.tls_identity.trust;
            self.state.tls.publish(tls, trust_changes);
            self.tls_identity = tls_identity;
        }
        self.admin_tls.publish(admin_tls);
        self.state.fleet.store(Arc::new(fleet));
        self.iv_budget.set_share(iv_budget.share);
        self.publish(next);
        self.keep_tokens(&tokens);
        (self.surroundings.set_log_level)(log_level);
        self.watch_interval = watch_interval;
        Ok(())
    }

    /// What the next stores would do to keys that are in use.
    async fn unsafe_keys(&self, next: &Stores) -> Option<Refusal> {
        let versions = versions::unsafe_versions(&self.current, next).await;
        if !versions.is_empty() {
            return Some(Refusal::UnsafeVersions(versions));
        }
        let losses = resolution::losses(&self.current, next).await;
        (!losses.is_empty()).then_some(Refusal::KeysLost(losses))
    }

    fn add_tokens(&self, settings: &[TokenSettings]) -> Result<Vec<Arc<Token>>, Refusal> {
        let mut added = Vec::new();
        for settings in settings.iter().filter(|settings| self.tokens.named(&settings.name).is_none()) {
            match self.tokens.add(settings.clone(), &self.state.metrics) {
                Ok(token) => added.push(token),
                Err(error) => {
                    added.iter().for_each(|token: &Arc<Token>| self.release_token(&token.settings().name));
                    return Err(Refusal::Failed(error.to_string()));
                }
            }
        }
        Ok(added)
    }

    /// Has the keys of the next stores proven, and waits for those of stores that are new: the proxy stays ready.
    async fn prepare(&mut self, next: &Stores) {
        for watch in self.watches.drain(..) {
            watch.abort();
        }
        let watch = |fleet| tokio::spawn(crate::hsm::Fleet::watch(Arc::clone(fleet))).abort_handle();
        self.watches = next.fleets.values().map(watch).collect();
        wait_until(|| next.fleets.values().all(|fleet| fleet.is_prepared() || !fleet.is_connected())).await;
    }

    /// From here on requests see the next stores, all of them at once.
    // SPEC(AUTH-ROT-002): SHOULD change credentials without disconnecting anybody. SPEC(AUTH-ROT-004): one that is removed
    // no longer authenticates.
    fn publish(&mut self, next: Stores) {
        next.begin(&self.state.metrics, &self.iv_budget);
        // First what is permitted: a request under the next stores must find its key switched on. One under the stores before
        // whose key is switched off is refused a moment sooner.
        for store in next.stores.iter() {
            store.latest.replace(store.is_enabled, Arc::clone(&store.keys));
        }
        let before = self.state.stores.swap(Arc::clone(&next.stores));
        for store in before.iter() {
            let successor = next.stores.of_name(&store.name);
            store.credential_uses.hand_over(successor.map(|store| &store.credential_uses));
            if successor.is_none() {
                store.latest.withdraw();
                self.state.metrics.forget_store(&store.name);
            }
        }
        for (name, fleet) in &next.fleets {
            let unresolved = fleet.unresolved();
            let known = self.current.fleets.get(name).map(|fleet| fleet.unresolved()).unwrap_or_default();
            for locator in unresolved.into_iter().filter(|locator| !known.contains(locator)) {
                tracing::warn!(store = %name, %locator, "no token is known to hold this key: it is not resolved");
            }
        }
        versions::note_served(&self.records, &next);
        self.current = next;
    }

    /// New PINs are for the next login; tokens that the configuration lacks go once nobody uses them any more.
    fn keep_tokens(&self, settings: &[TokenSettings]) {
        for token in self.tokens.each() {
            let name = &token.settings().name;
            match settings.iter().find(|settings| settings.name == *name) {
                Some(settings) => token.set_pin(settings.pin.clone()),
                None => {
                    let name = Arc::clone(name);
                    drop(token);
                    self.release_token(&name);
                }
            }
        }
        self.state.readiness.serve(self.current.served(&self.tokens));
    }

    fn release_token(&self, name: &str) {
        let Some(token) = self.tokens.remove(name) else { return };
        self.state.metrics.forget_token(name);
        let tokens = Arc::clone(&self.tokens);
        tokio::spawn(async move {
            let until = Instant::now() + TOKEN_RELEASE_PATIENCE;
            while Arc::strong_count(&token) > 1 && Instant::now() < until {
                sleep(LOOK_AGAIN).await;
            }
            let name = Arc::clone(&token.settings().name);
            let stop = move || tokens.end(&token, TOKEN_STOP_PATIENCE);
            let has_stopped = spawn_blocking(stop).await.unwrap_or(false);
            tracing::info!(token = %name, has_stopped, "the token is no longer in the configuration: let go");
        });
    }
}

/// A configuration has been loaded just now.
pub(super) fn note_loaded(metrics: &Metrics) {
    let since_epoch = clock::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics.config_loaded.set(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
    metrics.config_generation.inc();
}

/// Waits until the files have another content than in `known`, and have stayed the same for one interval since.
async fn changed(known: &Snapshot, interval: Option<Duration>) {
    let Some(interval) = interval else { return std::future::pending().await };
    let mut last = known.clone();
    loop {
        sleep(interval).await;
        let before = last.clone();
        let Ok(now) = spawn_blocking(move || before.look_again()).await else { continue };
        let stays = now == last;
        last = now;
        if stays && last != *known {
            return;
        }
    }
}

/// Waits until it is so, at most [`PREPARE_PATIENCE`].
pub(super) async fn wait_until(is_so: impl Fn() -> bool) {
    let until = Instant::now() + PREPARE_PATIENCE;
    while !is_so() && Instant::now() < until {
        sleep(LOOK_AGAIN).await;
    }
}
