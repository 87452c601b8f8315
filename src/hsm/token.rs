//! One PKCS#11 token as an [`Hsm`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::keeper::Message;
use super::keys::KeyEntry;
use super::lane::{self, Lane};
use super::module::Modules;
use super::settings::TokenSettings;
use super::shared::Shared;
use super::standing::{Standing, StoreId};
use super::threads::Threads;
use super::workers::{Job, Task};
use super::{
    CallReport, Checked, Digest, HealthStatus, Hsm, HsmError, HsmFuture, KeyAttributes, KeyLocator,
    KeyMaterial, Outcome, Plaintext, Sealed, Terms, TokenHealth,
};
use crate::clock::{self, Deadline};
use crate::metrics::TokenMetrics;
use crate::secret::SecretSource;

/// How long threads that were in a helper have after its end.
const HELPER_PATIENCE: Duration = Duration::from_secs(1);
/// Searches that may wait for the keeper.
const MAX_WAITING_SEARCHES: usize = 32;

/// The share of the time left that a job may take until its end, as a divisor: a third, so that jobs before it may be of twice
/// as many calls as those of late, as with an integrity value, and so that calls may become somewhat slower meanwhile.
const SHARE_OF_TIME_LEFT: u32 = 3;

/// Which keys may be worked with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'k> {
    /// Those that have proven to the store to be the ones meant, and are its own.
    Proven(StoreId, &'k KeyMaterial),
    /// All: for the proof itself, and for whoever examines a token.
    Any,
}

impl Trust<'_> {
    pub(super) fn allows(self, entry: &KeyEntry) -> Result<(), HsmError> {
        let Self::Proven(store, key) = self else { return Ok(()) };
        match entry.standing(store, key) {
            _ if !entry.is_of(store) => Err(HsmError::KeyOfAnotherStore),
            Standing::Unproven => Err(HsmError::KeyUnproven),
            Standing::Refused => Err(HsmError::KeyDiffers),
            Standing::Proven | Standing::Unprovable => Ok(()),
        }
    }
}

/// A token with its threads. As an [`Hsm`] it asks no key for a proof: stores go through a [`Fleet`](super::Fleet).
pub struct Token {
    shared: Arc<Shared>,
    tasks: flume::Sender<Task>,
    threads: Threads,
}

impl Token {
    /// Starts the token's threads. Returns at once: connecting goes on in the background, again and again if need be.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        settings: TokenSettings,
        modules: &Arc<Modules>,
        metrics: TokenMetrics,
    ) -> std::io::Result<Self> {
        let (tasks, waiting_tasks) = flume::bounded(settings.queue_depth);
        let (messages, waiting_messages) = flume::bounded(MAX_WAITING_SEARCHES);
        metrics.sessions.set(i64::try_from(settings.sessions).unwrap_or(i64::MAX));
        let shared = Arc::new(Shared::new(settings, metrics, messages, tasks.clone()));
        let threads = Threads::start(&shared, modules, waiting_tasks, waiting_messages)?;
        Ok(Self { shared, tasks, threads })
    }

    /// Whether the queue is so long already that a job could not end in good time. The queue is served in its order: what is
    /// let in and cannot end by its deadline takes the session from one that could, and under twice what the token can do
    /// every job would begin in time and end too late.
    fn is_overdue(&self, deadline: Deadline) -> bool {
        let (board, waiting) = (&self.shared.board, self.tasks.len());
        if waiting < board.usable_sessions() {
            return false;
        }
        let left = deadline.instant().saturating_duration_since(clock::now());
        board.time_to_end(waiting) > left / SHARE_OF_TIME_LEFT
    }

    /// Whether it is for calls that hang that the queue is full: one has been at work for as long as is never forgiven, or for far
    /// longer than calls take, and none has come back since it began.
    fn hangs(&self) -> bool {
        let Shared { board, pace, settings, .. } = &*self.shared;
        board.stuck(settings.stall_after) > 0 || board.is_silent(pace.hang_after())
    }

    /// Runs `work` on a session within the deadline.
    async fn submit<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&mut Lane) -> Result<T, HsmError> + Send + 'static,
    ) -> Outcome<T> {
        if self.shared.connection.load().is_none() {
            return Outcome::failed(self.shared.unavailable());
        }
        let (reply, answer) = oneshot::channel();
        let queued_at = clock::now();
        let taken_at = Arc::new(OnceLock::new());
        let for_job = Arc::clone(&taken_at);
        let shared = Arc::clone(&self.shared);
        let job: Job = Box::new(move |lane| {
            // Nobody waits for it any more: it never reaches the token.
            if reply.is_closed() || deadline.has_passed() {
                return;
            }
            let started_at = clock::now();
            if shared.pace.is_too_late(queued_at, deadline) {
                let _ = reply.send((Err(HsmError::TooLate), started_at, started_at));
                return;
            }
            let _ = for_job.set(started_at);
            let has_session = lane.is_ok();
            let result = lane.and_then(work);
            let ended_at = clock::now();
            if has_session {
                shared.board.note_job(ended_at - started_at);
            }
            if matches!(result, Ok(_) | Err(HsmError::BadCiphertext { .. })) {
                shared.board.note_served();
            }
            if result.is_ok() && !deadline.has_passed() {
                shared.pace.note(ended_at - started_at);
            }
            // The asking side may leave while the token works.
            let _ = reply.send((result, started_at, ended_at));
        });
        if self.is_overdue(deadline) || self.tasks.try_send(Task::Job(job)).is_err() {
            return Outcome::failed(if self.hangs() { HsmError::Stalled } else { HsmError::QueueFull });
        }
        let token_serial = self.shared.serial();
        match timeout_at(deadline.instant().into(), answer).await {
            Ok(Ok((result, started_at, ended_at))) => {
                let queue_time = started_at - queued_at;
                self.shared.metrics.queued(queue_time);
                let call_time = ended_at - started_at;
                let unverified = u32::from(matches!(result, Err(HsmError::Unverified)));
                // What does not verify was decrypted as well.
                let attempts = u32::from(!matches!(result, Err(HsmError::TooLate))) + unverified;
                let report = CallReport {
                    token_serial,
                    queue_time,
                    call_time,
                    attempts,
                    unverified,
                    is_hedged: false,
                };
                Outcome { result, report }
            }
            Ok(Err(_)) if !deadline.has_passed() => Outcome::failed(HsmError::Worker),
            Ok(Err(_)) | Err(_) => {
                // The longest waits of all are those that nothing came of.
                let waited =
                    taken_at.get().map_or_else(|| queued_at.elapsed(), |started_at| *started_at - queued_at);
                self.shared.metrics.queued(waited);
                let report = match taken_at.get() {
                    Some(started_at) => CallReport {
                        token_serial,
                        queue_time: waited,
                        call_time: started_at.elapsed(),
                        attempts: 1,
                        ..CallReport::default()
                    },
                    None => CallReport { token_serial, queue_time: waited, ..CallReport::default() },
                };
                Outcome { result: Err(HsmError::DeadlinePassed), report }
            }
        }
    }

    /// The key that answers to `locator`, searched in the token where the index holds none.
    pub(super) async fn entry(
        &self,
        locator: &KeyLocator,
        deadline: Deadline,
    ) -> Result<Arc<KeyEntry>, HsmError> {
        let Some(epoch) = self.shared.connection.load().as_ref().map(|connection| connection.epoch) else {
            return Err(self.shared.unavailable());
        };
        if matches!(locator, KeyLocator::Label(label) if *label == self.shared.settings.health_key_label) {
            return Err(HsmError::KeyNotFound);
        }
        match self.shared.keys.find(locator, epoch) {
            Some(found) => found,
            None => self.search(locator, deadline).await,
        }
    }

    async fn search(&self, locator: &KeyLocator, deadline: Deadline) -> Result<Arc<KeyEntry>, HsmError> {
        let searches = &self.shared.searches;
        if searches.was_missed_just_now(locator) {
            self.shared.metrics.searched("remembered_miss");
            return Err(HsmError::KeyNotFound);
        }
        let (answer, is_first) = searches.join(locator);
        if is_first && self.shared.messages.try_send(Message::Search(locator.clone())).is_err() {
            self.shared.metrics.searched("refused");
            searches.end(locator, &Err(HsmError::TooManySearches));
            return Err(HsmError::TooManySearches);
        }
        let found = match timeout_at(deadline.instant().into(), answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(self.shared.unavailable()),
            Err(_) => Err(HsmError::DeadlinePassed),
        };
        let outcome = match &found {
            Ok(_) => "found",
            Err(HsmError::KeyNotFound) => {
                searches.remember_miss(locator);
                "missed"
            }
            Err(_) => "failed",
        };
        // One search, however many wait for it.
        if is_first {
            self.shared.metrics.searched(outcome);
        }
        found
    }

    /// Whatever is known of a key is no longer believed: it is searched when it is next asked for.
    pub(super) fn doubt(&self, locator: &KeyLocator) {
        self.shared.keys.doubt(locator);
    }

    /// Whether it was doubted, and nobody has asked for it since.
    pub(super) fn is_doubted(&self, locator: &KeyLocator) -> bool {
        self.shared.keys.is_doubted(locator)
    }

    /// What the index says of a key; `None` where it knows none, or none that is believed.
    pub(super) fn indexed(&self, locator: &KeyLocator) -> Option<Result<Arc<KeyEntry>, HsmError>> {
        let connection = self.shared.connection.load();
        self.shared.keys.find(locator, connection.as_ref()?.epoch)
    }

    /// Has all keys listed anew, soon.
    pub(super) fn reindex(&self) {
        let _ = self.shared.messages.try_send(Message::Reindex);
    }

    /// Runs `work` on the key that answers to `locator`. A handle that the token no longer knows is looked up anew and
    /// the work done once more: the key may have been made anew.
    pub(super) async fn with_key<T: Send + 'static>(
        &self,
        locator: &KeyLocator,
        deadline: Deadline,
        trust: Trust<'_>,
        work: impl Fn(&mut Lane, &KeyEntry) -> Result<T, HsmError> + Clone + Send + 'static,
    ) -> Outcome<T> {
        let mut total = CallReport::default();
        for is_last in [false, true] {
            let entry = match self.entry(locator, deadline).await {
                Ok(entry) => entry,
                Err(error) => return Outcome { result: Err(error), report: total },
            };
            if let Err(error) = trust.allows(&entry) {
                return Outcome { result: Err(error), report: total };
            }
            let (work, for_job) = (work.clone(), Arc::clone(&entry));
            let Outcome { result, report } = self.submit(deadline, move |lane| work(lane, &for_job)).await;
            total.add(&report);
            match result {
                Err(HsmError::KeyNotFound) if !is_last => {
                    self.shared.keys.forget(&entry);
                    // Where one handle means nothing any more, others may not either.
                    self.reindex();
                }
                // The key is there, as a look has just shown: the token is at fault.
                Err(HsmError::KeyNotFound) => {
                    let error = HsmError::Device {
                        call: "every use of the key",
                        code: "CKR_KEY_HANDLE_INVALID".into(),
                    };
                    return Outcome { result: Err(error), report: total };
                }
                Err(error) => {
                    if matches!(error, HsmError::KeyNotPermitted { .. }) {
                        entry.doubt_attributes();
                    }
                    return Outcome { result: Err(error), report: total };
                }
                Ok(value) => return Outcome { result: Ok(value), report: total },
            }
        }
        Outcome { result: Err(HsmError::KeyNotFound), report: total }
    }

    /// How it was started.
    #[must_use]
    pub fn settings(&self) -> &TokenSettings {
        &self.shared.settings
    }

    /// From the next login on the PIN is there.
    pub fn set_pin(&self, pin: Option<SecretSource>) {
        self.shared.pin.store(Arc::new(pin));
    }

    /// Whether its keys have been listed since it was connected.
    #[must_use]
    pub fn is_indexed(&self) -> bool {
        self.indexed_generation().is_some()
    }

    /// Name in the configuration.
    pub(super) fn name(&self) -> &str {
        &self.shared.settings.name
    }

    pub(super) fn metrics(&self) -> &TokenMetrics {
        &self.shared.metrics
    }

    /// Whether a key has proven to a store to be the one meant; `None` where the index knows none.
    pub(super) fn standing(&self, store: StoreId, key: &KeyMaterial) -> Option<Standing> {
        self.indexed(&key.locator)?.ok().map(|entry| entry.standing(store, key))
    }

    /// Which state of the index it is; `None` while there is no connection, or its keys have not all been listed.
    pub(super) fn indexed_generation(&self) -> Option<u64> {
        self.shared.keys.generation(self.shared.connection.load().as_ref()?.epoch)
    }

    /// How often its keys have all been listed.
    pub(super) fn listings(&self) -> u64 {
        self.shared.keys.listings()
    }

    /// The labels of the keys in the index.
    pub(super) fn indexed_labels(&self) -> Vec<Box<str>> {
        self.shared.keys.labels()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.shared.connection.load().is_some()
    }

    /// Whether a probe has shown that it makes good ciphertexts on the connection that it has.
    pub(super) fn is_proven(&self) -> bool {
        self.shared.connection.load().as_ref().is_some_and(|connection| connection.is_proven())
    }

    /// Whether others are to be asked first.
    pub(super) fn is_out(&self) -> bool {
        let connection = self.shared.connection.load();
        let is_usable = connection
            .as_ref()
            .is_some_and(|connection| !connection.encrypts_wrongly.load(Ordering::Relaxed));
        !is_usable || self.shared.breaker.is_open()
    }

    /// Jobs at work and waiting, in thousandths of the sessions that there are.
    pub(super) fn load_permille(&self) -> usize {
        let board = &self.shared.board;
        (board.busy() + self.tasks.len()) * 1000 / board.usable_sessions()
    }

    /// Whether a hedge would disturb nobody: a session idles, and the queue is no more than half full.
    pub(super) fn has_room(&self) -> bool {
        !self.is_out() && self.has_idle_session() && self.tasks.len() <= self.shared.settings.queue_depth / 2
    }

    /// Whether a session is there and at nothing, which nothing in the queue is about to take: a worker between two jobs is
    /// not idle.
    pub(super) fn has_idle_session(&self) -> bool {
        let board = &self.shared.board;
        self.is_connected() && board.busy() + self.tasks.len() < board.usable_sessions()
    }

    /// Whether a call that begins now would come back by then, as calls go of late.
    pub(super) fn may_answer_by(&self, deadline: Deadline) -> bool {
        clock::now() + self.shared.pace.typical() < deadline.instant()
    }

    /// Whether what was asked then is stuck there: its call takes far longer than calls of this token do, whatever comes
    /// back from other sessions, or nothing has come back at all.
    pub(super) fn hangs_since(&self, since: Instant) -> bool {
        let limit = self.shared.pace.hang_after();
        let board = &self.shared.board;
        since.elapsed() >= limit && (board.has_hung_job(since, limit) || board.is_silent_since(since))
    }

    /// Whether no call has come back since then, though some should have.
    pub(super) fn is_silent_since(&self, since: Instant) -> bool {
        since.elapsed() >= self.shared.pace.silence_after() && self.shared.board.is_silent_since(since)
    }

    /// Takes the token out of rotation until a probe succeeds.
    pub(super) fn suspect(&self, reason: &str) {
        if self.shared.breaker.open() {
            self.shared.breaker_opened(reason);
        }
    }

    /// Learns from what came of a request.
    pub(super) fn note_outcome<T>(&self, outcome: &Outcome<T>) {
        let breaker = &self.shared.breaker;
        match &outcome.result {
            Ok(_) | Err(HsmError::BadCiphertext { .. }) => breaker.note_success(),
            Err(
                HsmError::Device { .. }
                | HsmError::Worker
                | HsmError::Unverified
                | HsmError::UnsafeIv
                | HsmError::Stalled,
            ) => {
                if breaker.note_failure() {
                    self.shared.breaker_opened("it failed several times in a row");
                }
            }
            Err(_) => {}
        }
    }

    /// Stops the threads, once they have done what is queued. True if all stopped within `patience`: one that is stuck
    /// in a call of the module is left behind.
    #[must_use]
    pub fn stop(&self, patience: Duration) -> bool {
        let until = clock::now() + patience;
        for _ in 0..self.shared.settings.sessions {
            let _ = self.tasks.send_deadline(Task::Stop, until);
        }
        let _ = self.shared.messages.send_deadline(Message::Stop, until);
        let have_ended = self.threads.wait(until.saturating_duration_since(clock::now()));
        // Only now: what was queued has been done. From here on its module serves one token less.
        self.shared.let_go();
        let Some(helper) = &self.shared.helper else { return have_ended };
        // Whatever is stuck in a helper comes back when that ends.
        helper.kill();
        self.threads.wait(HELPER_PATIENCE)
    }
}

/// Work whose output is to verify: where it does not, the token has failed, and another may do better.
pub(super) fn verified<T>(
    work: impl Fn(&mut Lane, &KeyEntry) -> Result<Option<T>, HsmError> + Clone,
) -> impl Fn(&mut Lane, &KeyEntry) -> Result<T, HsmError> + Clone {
    move |lane, key| work(lane, key)?.ok_or(HsmError::Unverified)
}

impl Hsm for Token {
    fn encrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        plaintext: Plaintext,
        aad: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Sealed> {
        let deadline = terms.deadline;
        let work = lane::encrypting(plaintext, aad, terms);
        Box::pin(self.with_key(&key.locator, deadline, Trust::Any, work))
    }

    fn encrypt_checked<'a>(
        &'a self,
        key: &'a KeyMaterial,
        plaintext: Plaintext,
        aad: Arc<[u8]>,
        digest: Digest,
        terms: Terms,
    ) -> HsmFuture<'a, Checked> {
        let deadline = terms.deadline;
        let work = verified(lane::encrypting_checked(plaintext, aad, digest, terms));
        Box::pin(
            async move { self.with_key(&key.locator, deadline, Trust::Any, work).await.with_decryption() },
        )
    }

    fn decrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        sealed: Arc<Sealed>,
        aad: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Plaintext> {
        let deadline = terms.deadline;
        let work = lane::decrypting(sealed, aad, terms);
        Box::pin(self.with_key(&key.locator, deadline, Trust::Any, work))
    }

    fn key_attributes<'a>(
        &'a self,
        key: &'a KeyMaterial,
        deadline: Deadline,
    ) -> HsmFuture<'a, KeyAttributes> {
        Box::pin(async move {
            let entry = match self.entry(&key.locator, deadline).await {
                Ok(entry) => entry,
                Err(error) => return Outcome::failed(error),
            };
            if let Some(attributes) = entry.fresh_attributes(self.shared.settings.attributes_max_age) {
                return Outcome { result: Ok(attributes), report: CallReport::default() };
            }
            let _claim = match entry.claim_reading() {
                Ok(claim) => claim,
                Err(aged) => return Outcome { result: Ok(aged), report: CallReport::default() },
            };
            self.with_key(&key.locator, deadline, Trust::Any, |lane, key| {
                let attributes = lane.read_attributes(key)?;
                key.set_attributes(attributes);
                Ok(attributes)
            })
            .await
        })
    }

    fn health(&self) -> Vec<TokenHealth> {
        let settings = &self.shared.settings;
        let measured = self.shared.probe.result(settings.probe_max_age, 2 * settings.probe_interval);
        let board = &self.shared.board;
        let stuck = board.stuck(settings.stall_after);
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.shared.metrics.sessions_stalled.set(count(stuck));
        self.shared.metrics.sessions_busy.set(count(board.stuck(Duration::ZERO)));
        self.shared.metrics.queue_jobs.set(count(self.tasks.len()));
        let (mut status, mut reason) = match measured {
            Some(measurement) => (Some(measurement.status), measurement.reason),
            None => (None, None),
        };
        let without_session = board.without_session();
        if stuck + without_session > 0 && status > Some(HealthStatus::Unavailable) {
            let serves = board.serving(settings.stall_after) > 0;
            status = Some(if serves { HealthStatus::Degraded } else { HealthStatus::Unavailable });
            reason = Some(if stuck > 0 {
                format!("{stuck} sessions hang in a call").into()
            } else {
                format!("{without_session} sessions cannot be opened").into()
            });
        }
        if status > Some(HealthStatus::Unavailable) && self.shared.connection.load().is_none() {
            status = Some(HealthStatus::Unavailable);
            reason = Some(self.shared.reason());
        }
        self.shared.metrics.health.set(match status {
            None | Some(HealthStatus::Unavailable) => 0,
            Some(HealthStatus::Degraded) => 1,
            Some(HealthStatus::Active) => 2,
        });
        vec![TokenHealth {
            name: Arc::clone(&settings.name),
            identity: self.shared.identity.load_full(),
            status,
            reason,
        }]
    }
}
