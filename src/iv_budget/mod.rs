//! How many initialization vectors each key version has drawn, counted durably.
//!
//! Random IVs of 12 bytes repeat by chance. NIST SP 800-38D (section 8.3) allows 2^32 of them under one key, which 1,800
//! encryptions a second use up in 27.6 days; a key is rotated before. The budget is the key's: proxies that share a key
//! share it, and each watches its own share. Nothing is ever refused for it.
//!
//! Drawing is one atomic addition. What is on disk is ahead of what has been drawn, by a block that a thread of its own
//! reserves in time: after a crash the count is too high, never too low.

mod ledger;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::Notify;

use crate::clock::{self, Deadline};
use crate::metrics::Metrics;
use crate::state_folder::StateFault;
use ledger::Ledger;
pub(crate) use ledger::VersionId;

/// Random 12-byte IVs that one key may have.
pub const IVS_PER_KEY: u64 = 1 << 32;

/// IVs reserved at once. A crash costs as many of the budget, a 65,536th.
const BLOCK: u64 = 1 << 16;
/// Where fewer than these are left of what was reserved, the next block is asked for: half a block lasts for 18 s at 1,800
/// encryptions a second.
const LOW_WATER: u64 = BLOCK / 2;
/// Between two looks at all counts.
const TICK: Duration = Duration::from_secs(1);
/// How long the first encryption under a key version since the start waits for its block to be on disk, at most.
const FIRST_BLOCK_PATIENCE: Duration = Duration::from_millis(50);
/// So much of the time that is left until its deadline, as a divisor.
const FIRST_BLOCK_SHARE: u32 = 4;
/// How long the end of the process may take to write exact counts; what is left over stays too high.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What is counted where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IvBudgetSettings {
    /// The state directory; without one, counts begin anew at each start.
    pub dir: Option<PathBuf>,
    /// IVs of each key version that are this proxy's share.
    pub share: u64,
}

/// Why IVs cannot be counted.
#[derive(Debug, Error)]
pub enum IvBudgetFault {
    /// A file or folder cannot be used.
    #[error(transparent)]
    State(#[from] StateFault),
    /// Another process counts here.
    #[error("{} is in use by another process: each proxy needs a state directory of its own", .0.display())]
    InUse(PathBuf),
    /// A count cannot be read. It is not taken for zero.
    #[error("{} is not a count of initialization vectors: restore it, or remove it to count from zero", .0.display())]
    Damaged(PathBuf),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// The counts of this proxy and the thread that keeps them on disk.
pub struct IvBudget {
    shared: Arc<Shared>,
}

/// Whether a version of a key is the one that encrypts: by store, external key id and number.
type Encrypts = dyn Fn(&str, &str, u32) -> bool + Send + Sync;

struct Shared {
    share: AtomicU64,
    encrypts: Mutex<Arc<Encrypts>>,
    counts: Mutex<HashMap<VersionId, Arc<IvCount>>>,
    messages: flume::Sender<Message>,
    metrics: Arc<Metrics>,
}

enum Message {
    Reserve(Arc<IvCount>),
    /// Answered when everything is written.
    Close {
        is_final: bool,
        done: flume::Sender<()>,
    },
}

impl IvBudget {
    /// Reads the counts and starts the thread.
    ///
    /// # Errors
    /// [`IvBudgetFault`]; a count that cannot be read is one.
    pub fn open(settings: &IvBudgetSettings, metrics: &Arc<Metrics>) -> Result<Self, IvBudgetFault> {
        let (messages, waiting) = flume::unbounded();
        let ledger = settings.dir.as_deref().map(Ledger::open).transpose()?;
        let mut counts = HashMap::new();
        if let Some(ledger) = &ledger {
            for (id, drawn) in ledger.read()? {
                counts.insert(id.clone(), Arc::new(IvCount::new(id, messages.clone(), drawn, drawn)));
            }
        }
        let counts = Mutex::new(counts);
        let shared = Arc::new(Shared {
            share: settings.share.into(),
            encrypts: Mutex::new(Arc::new(|_, _, _| true)),
            counts,
            messages,
            metrics: Arc::clone(metrics),
        });
        let writer = Writer { shared: Arc::clone(&shared), ledger, late: Vec::new(), shown: HashSet::new() };
        let thread = std::thread::Builder::new().name("iv-budget".to_owned());
        thread.spawn(move || writer.run(&waiting)).map_err(IvBudgetFault::Thread)?;
        Ok(Self { shared })
    }

    /// This proxy's share is another from now on.
    pub fn set_share(&self, share: u64) {
        self.shared.share.store(share, Ordering::Relaxed);
    }

    /// From now on these versions encrypt, by store, external key id and number: what others have drawn is kept, and shown no
    /// more.
    pub fn serve(&self, encrypts: impl Fn(&str, &str, u32) -> bool + Send + Sync + 'static) {
        *lock(&self.shared.encrypts) = Arc::new(encrypts);
    }

    /// The counts of one key store.
    #[must_use]
    pub fn of_store(&self, name: &Arc<str>) -> StoreIvCounts {
        StoreIvCounts {
            store: Arc::clone(name),
            shared: Arc::clone(&self.shared),
            current: RwLock::default(),
        }
    }

    /// Writes exact counts, where they are final since nothing draws any more, and ends the thread. Where they are not, what was
    /// reserved covers what is drawn from now on. A disk that hangs is not waited for: the counts stay too high.
    pub fn close(&self, is_final: bool) {
        let (done, is_done) = flume::bounded(1);
        if self.shared.messages.send(Message::Close { is_final, done }).is_ok() {
            let _ = is_done.recv_timeout(2 * CLOSE_PATIENCE);
        }
    }
}

/// The counts of one key store's keys, each that of the version that encrypts.
pub struct StoreIvCounts {
    store: Arc<str>,
    shared: Arc<Shared>,
    current: RwLock<HashMap<Box<str>, Arc<IvCount>>>,
}

impl StoreIvCounts {
    /// The count of a key's version, which is the one that encrypts now.
    #[must_use]
    pub fn of(&self, key: &str, version: u32) -> Arc<IvCount> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        match current.get(key) {
            Some(count) if count.id.version == version => Arc::clone(count),
            _ => {
                drop(current);
                self.begin(key, version)
            }
        }
    }

    #[cold]
    fn begin(&self, key: &str, version: u32) -> Arc<IvCount> {
        let id = VersionId { store: Arc::clone(&self.store), key: key.into(), version };
        let mut counts = lock(&self.shared.counts);
        let count = counts
            .entry(id.clone())
            .or_insert_with(|| Arc::new(IvCount::new(id, self.shared.messages.clone(), 0, 0)));
        let count = Arc::clone(count);
        count.is_current.store(true, Ordering::Relaxed);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = current.insert(key.into(), Arc::clone(&count))
            && before.id.version != version
        {
            before.is_current.store(false, Ordering::Relaxed);
        }
        count
    }

    /// Sees to it that initialization vectors can be drawn: the first time since the start it waits a moment for their
    /// block to be on disk.
    pub async fn prepare(&self, count: &Arc<IvCount>, deadline: Deadline) {
        if count.was_awaited.load(Ordering::Relaxed) {
            return;
        }
        // Registered before the look: what is reserved in between wakes it.
        let reserved = count.was_reserved.notified();
        count.draw(0);
        let patience = first_block_patience(deadline.instant().saturating_duration_since(clock::now()));
        if !patience.is_zero()
            && count.reserved.load(Ordering::Acquire) <= count.drawn.load(Ordering::Relaxed)
        {
            let _ = tokio::time::timeout(patience, reserved).await;
        }
        count.was_awaited.store(true, Ordering::Relaxed);
    }
}

/// How long who has so much time left waits for the first block.
fn first_block_patience(left: Duration) -> Duration {
    FIRST_BLOCK_PATIENCE.min(left / FIRST_BLOCK_SHARE)
}

/// The initialization vectors that one key version has drawn.
pub struct IvCount {
    id: VersionId,
    messages: flume::Sender<Message>,
    drawn: AtomicU64,
    /// What is on disk: not less than what was drawn, but for the first moments of a key version.
    reserved: AtomicU64,
    /// The thread has been asked for a block.
    is_asking: AtomicBool,
    was_reserved: Notify,
    was_awaited: AtomicBool,
    /// It is that of the version of its key that encrypted last.
    is_current: AtomicBool,
    /// What of the share has been told: 0 nothing, 1 half, 2 all.
    told: AtomicU64,
}

impl IvCount {
    fn new(id: VersionId, messages: flume::Sender<Message>, drawn: u64, reserved: u64) -> Self {
        Self {
            id,
            messages,
            drawn: AtomicU64::new(drawn),
            reserved: AtomicU64::new(reserved),
            is_asking: AtomicBool::new(false),
            was_reserved: Notify::new(),
            was_awaited: AtomicBool::new(false),
            is_current: AtomicBool::new(false),
            told: AtomicU64::new(0),
        }
    }

    /// Counts initialization vectors that are about to be drawn.
    pub fn draw(self: &Arc<Self>, ivs: u64) {
        let drawn = self.drawn.fetch_add(ivs, Ordering::Relaxed) + ivs;
        if drawn + LOW_WATER > self.reserved.load(Ordering::Acquire)
            && !self.is_asking.swap(true, Ordering::AcqRel)
        {
            // The thread ends after the last request; what is drawn then is covered by what was reserved.
            let _ = self.messages.send(Message::Reserve(Arc::clone(self)));
        }
    }
}

/// Keeps the counts on disk and the operator informed.
struct Writer {
    shared: Arc<Shared>,
    /// `None` where nothing is kept on disk.
    ledger: Option<Ledger>,
    /// Counts of which the last write failed.
    late: Vec<Arc<IvCount>>,
    /// Stores that have metrics.
    shown: HashSet<Arc<str>>,
}

impl Writer {
    fn run(mut self, waiting: &flume::Receiver<Message>) {
        let mut looked_at: Option<Instant> = None;
        loop {
            match waiting.recv_timeout(TICK) {
                Ok(Message::Reserve(count)) => self.reserve(count),
                Err(flume::RecvTimeoutError::Timeout) => {}
                Ok(Message::Close { is_final, done }) => {
                    if is_final {
                        self.settle();
                    }
                    // The lock goes before whoever waits goes on.
                    drop(self);
                    let _ = done.send(());
                    return;
                }
                Err(flume::RecvTimeoutError::Disconnected) => return,
            }
            if looked_at.is_none_or(|at| at.elapsed() >= TICK) {
                looked_at = Some(clock::now());
                for count in std::mem::take(&mut self.late) {
                    self.reserve(count);
                }
                self.look();
            }
        }
    }

    fn reserve(&mut self, count: Arc<IvCount>) {
        let Some(ledger) = &self.ledger else {
            count.reserved.store(u64::MAX, Ordering::Release);
            count.was_reserved.notify_waiters();
            return;
        };
        let reserved = count.drawn.load(Ordering::Relaxed) + BLOCK;
        match ledger.write(&count.id, reserved) {
            Ok(()) => {
                count.reserved.store(reserved, Ordering::Release);
                count.is_asking.store(false, Ordering::Release);
                count.was_reserved.notify_waiters();
            }
            Err(fault) => {
                self.shared.metrics.iv_budget_write_failures.inc();
                tracing::error!(%fault, "cannot keep the count of initialization vectors; trying again");
                self.late.push(count);
            }
        }
    }

    /// Sets the metrics, and says once of each count that half of the share, or all of it, is used up.
    fn look(&mut self) {
        let share = self.shared.share.load(Ordering::Relaxed);
        let encrypts = Arc::clone(&lock(&self.shared.encrypts));
        let mut stores: HashMap<Arc<str>, (u64, i64)> = HashMap::new();
        for count in lock(&self.shared.counts).values() {
            let VersionId { store, key, version } = &count.id;
            if !count.is_current.load(Ordering::Relaxed) || !encrypts(store, key, *version) {
                continue;
            }
            let drawn = count.drawn.load(Ordering::Relaxed);
            let (most, over_half) = stores.entry(Arc::clone(store)).or_default();
            *most = drawn.max(*most);
            *over_half += i64::from(drawn >= share / 2);
            let used = if drawn >= share { 2 } else { u64::from(drawn >= share / 2) };
            if count.told.fetch_max(used, Ordering::Relaxed) < used {
                let advice = if used == 2 {
                    "the key version has drawn all initialization vectors of this proxy's share: rotate the key now"
                } else {
                    "the key version has drawn half of the initialization vectors of this proxy's share: rotate the key"
                };
                tracing::warn!(%store, external_key_id = %key, key_version = version, drawn, share, "{advice}");
            }
        }
        let (used, many) = (&self.shared.metrics.iv_budget_used, &self.shared.metrics.iv_budget_over_half);
        for store in self.shown.iter().filter(|store| !stores.contains_key(*store)) {
            // Fail where there is none any more, which is as good.
            let _ = (used.remove_label_values(&[&**store]), many.remove_label_values(&[&**store]));
        }
        self.shown = stores.keys().cloned().collect();
        for (store, (most, over_half)) in stores {
            #[expect(clippy::cast_precision_loss, reason = "a ratio to look at")]
            let ratio = most as f64 / share as f64;
            used.with_label_values(&[&*store]).set(ratio);
            many.with_label_values(&[&*store]).set(over_half);
        }
    }

    /// Gives back what was reserved and not drawn.
    fn settle(&self) {
        let Some(ledger) = &self.ledger else { return };
        let until = clock::now() + CLOSE_PATIENCE;
        for count in lock(&self.shared.counts).values() {
            let drawn = count.drawn.load(Ordering::Relaxed);
            let is_exact = count.reserved.load(Ordering::Relaxed) == drawn;
            if !is_exact
                && clock::now() < until
                && let Err(fault) = ledger.write(&count.id, drawn)
            {
                tracing::error!(%fault, "the count of initialization vectors on disk may be wrong");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
