//! The audit log: one record a request that was authenticated, each chained to the one before (docs/audit.md).
//!
//! A request hands its record over and never waits for the disk, unless the configuration wants every success to be on
//! record before it is answered. A thread of its own writes, in batches.

mod chain;
mod file;
mod record;
mod sink;
mod verify;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

pub use chain::{Hash, Hasher, Head};
pub use record::{MetadataText, RequestRecord};
pub use verify::{Expected, Verified, VerifyFault, verify};

use crate::clock::{self, Deadline};
use crate::metrics::Metrics;
use crate::secret::Secret;
use sink::{Message, Pending, Writer};

/// Records that may wait to be written.
const MAX_QUEUED_RECORDS: usize = 65_536;
/// And about how much memory they may take.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// A write that takes longer counts as failed while it lasts.
const HUNG_AFTER: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last records.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at the thread.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Between two tellings of the head.
const HEAD_INTERVAL: Duration = Duration::from_secs(60);

/// Where the audit log is, and what is done when it cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file; beside it one more that ends in `.head`.
    pub path: PathBuf,
    /// What then.
    pub on_failure: OnFailure,
    /// Whether each batch is synced to the device.
    pub is_synced: bool,
    /// Key of the chain.
    pub hmac_key: Option<Secret>,
}

/// What is done when a record cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Requests are served; records that cannot be kept are lost, and counted.
    Continue,
    /// No success is answered before its record is written.
    Refuse,
}

/// Why there is no audit log.
#[derive(Debug, Error)]
pub enum AuditFault {
    /// The file cannot be used.
    #[error("{action} the audit file {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process writes it.
    #[error("the audit file {} is in use by another process: each proxy needs a file of its own", .0.display())]
    InUse(PathBuf),
    /// It is a device, a pipe or a folder.
    #[error("the audit file {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// No record is found in it.
    #[error(
        "{} does not end with records of an audit log, or they are under another hmac_key: move it away, and the chain goes on in \
         a new file", .0.display()
    )]
    NotAnAuditFile(PathBuf),
    /// The file to change to is not new.
    #[error("the audit file {} holds records already: a new file must be new", .0.display())]
    NotEmpty(PathBuf),
    /// The head file is not what was written.
    #[error("{} is damaged: remove it once `xks-proxy audit verify` has accepted the audit files", .0.display())]
    HeadDamaged(PathBuf),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// The record was not written, or not in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the audit record is not written")]
pub struct NotWritten;

/// The audit log of this process.
pub struct Audit {
    shared: Arc<Shared>,
}

struct Shared {
    settings: AuditSettings,
    metrics: Arc<Metrics>,
    messages: flume::Sender<Message>,
    queued_bytes: AtomicUsize,
    /// Records that were never written.
    lost: AtomicU64,
    /// Records that were handed over and are not written yet.
    unwritten: AtomicU64,
    started_at: Instant,
    /// Milliseconds from the start to when the write began that has not ended, and 1; 0 where none is going on.
    busy_since_ms: AtomicU64,
    /// The same of when the oldest record was handed over that the thread has taken and not written; 0 where there is none.
    oldest_ms: AtomicU64,
    is_failing: AtomicBool,
    reopen_wanted: AtomicBool,
    close_wanted: AtomicBool,
    head: Mutex<Head>,
}

impl Audit {
    /// Opens the file, finds the chain's head and starts the thread.
    ///
    /// # Errors
    /// [`AuditFault`], in either mode: a file that cannot be opened now is a mistake.
    pub fn open(settings: AuditSettings, metrics: &Arc<Metrics>) -> Result<Self, AuditFault> {
        let (messages, waiting) = flume::bounded(MAX_QUEUED_RECORDS);
        let shared = Arc::new(Shared::new(settings, metrics, messages));
        let writer = Writer::open(Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || writer.run(&waiting)).map_err(AuditFault::Thread)?;
        Ok(Self { shared })
    }

    /// Whether a success must be on record before it is answered.
    #[must_use]
    pub fn must_be_written(&self) -> bool {
        self.shared.settings.on_failure == OnFailure::Refuse
    }

    /// Whether nothing may be served now: records cannot be written, and must be.
    #[must_use]
    pub fn is_refusing(&self) -> bool {
        self.must_be_written() && self.shared.is_failing_or_hung()
    }

    /// Hands a record over. Never waits; where too many are waiting, the record is lost and counted.
    pub fn push(&self, record: Box<RequestRecord>) {
        let _ = self.shared.send(record, None);
    }

    /// Hands a record over and waits until it is written.
    ///
    /// # Errors
    /// [`NotWritten`] by the deadline, or at once where writing fails. The record may still be written; it says then that
    /// its answer was withheld.
    pub async fn write(&self, record: Box<RequestRecord>, deadline: Deadline) -> Result<(), NotWritten> {
        let (written, mut is_written) = oneshot::channel();
        self.shared.send(record, Some(written))?;
        if let Ok(end) = timeout_at(deadline.instant().into(), &mut is_written).await {
            return end.map_err(|_| NotWritten);
        }
        // From here on the thread knows that nobody waits.
        is_written.close();
        is_written.try_recv().map_err(|_| NotWritten)
    }

    /// From now on writes to the file that has the configured name: the one before was moved away.
    pub fn reopen(&self) {
        self.shared.reopen_wanted.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Writes what is waiting and ends the thread. A disk that hangs is not waited for.
    pub fn close(&self) {
        self.shared.close_wanted.store(true, Ordering::Release);
        self.shared.wake();
        let until = clock::now() + CLOSE_PATIENCE;
        while !self.shared.messages.is_disconnected() && clock::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let records = self.shared.unwritten.load(Ordering::Relaxed);
        if records > 0 {
            tracing::error!(records, "audit records are lost: they could not be written before the end");
        }
        self.shared.tell_head();
    }

    /// Tells the operator of failures at once and of the head every minute, until the process ends.
    pub async fn watch(self: Arc<Self>) {
        let mut was_failing = false;
        let mut told_at: Option<Instant> = None;
        let mut lost_told = 0;
        loop {
            let is_failing = self.shared.is_failing_or_hung();
            self.shared.metrics.audit_failing.set(i64::from(is_failing));
            self.shared.metrics.audit_lag_seconds.set(self.shared.lag().as_secs_f64());
            if is_failing && !was_failing {
                let path = self.shared.settings.path.display();
                tracing::error!(%path, refusing = self.must_be_written(), "the audit log cannot be written");
            }
            was_failing = is_failing;
            let lost = self.shared.lost.load(Ordering::Relaxed);
            if lost > lost_told {
                tracing::error!(
                    records = lost - lost_told,
                    "audit records were lost: more came than could be kept"
                );
                lost_told = lost;
            }
            if told_at.is_none_or(|at| at.elapsed() >= HEAD_INTERVAL) && self.shared.tell_head() {
                told_at = Some(clock::now());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

/// Looks at the audit file as [`Audit::open`] would, but makes and changes nothing: its last record, if it has any.
///
/// # Errors
/// [`AuditFault`]
pub fn examine(settings: &AuditSettings) -> Result<Option<Head>, AuditFault> {
    file::examine(&settings.path, &Hasher::new(settings.hmac_key.as_ref()))
}

impl Shared {
    fn new(settings: AuditSettings, metrics: &Arc<Metrics>, messages: flume::Sender<Message>) -> Self {
        Self {
            settings,
            metrics: Arc::clone(metrics),
            messages,
            queued_bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            started_at: clock::now(),
            busy_since_ms: AtomicU64::new(0),
            oldest_ms: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            reopen_wanted: AtomicBool::new(false),
            close_wanted: AtomicBool::new(false),
            head: Mutex::new(Head::NONE),
        }
    }

    fn send(
        &self,
        record: Box<RequestRecord>,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), NotWritten> {
        let bytes = record.size_bytes();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let message = Message::Record(Pending { record, bytes, queued_ms: self.millis_now(), written });
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        if queued <= MAX_QUEUED_BYTES && self.messages.try_send(message).is_ok() {
            return Ok(());
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.metrics.audit_records_lost.inc();
        Err(NotWritten)
    }

    /// Where the queue is full, the thread is awake.
    fn wake(&self) {
        let _ = self.messages.try_send(Message::Wake);
    }

    fn is_failing_or_hung(&self) -> bool {
        if self.is_failing.load(Ordering::Acquire) {
            return true;
        }
        match self.busy_since_ms.load(Ordering::Acquire) {
            0 => false,
            since => self.millis_now() >= since + u64::try_from(HUNG_AFTER.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// How long the oldest record has been waiting that is not written. While the thread writes or fails it keeps what it
    /// has taken, so that what is still in the queue is younger. Where it has taken none and is busy, what is in the queue has come
    /// since: it has waited for no longer than the thread has been busy.
    fn lag(&self) -> Duration {
        let since = match self.oldest_ms.load(Ordering::Acquire) {
            0 if !self.messages.is_empty() => self.busy_since_ms.load(Ordering::Acquire),
            oldest => oldest,
        };
        match since {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.millis_now().saturating_sub(since)),
        }
    }

    fn millis_now(&self) -> u64 {
        1 + u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// In the log and as a metric, so that it is kept where who could change the file cannot reach. False while there is
    /// none.
    fn tell_head(&self) -> bool {
        let head = *self.head.lock().unwrap_or_else(PoisonError::into_inner);
        if head == Head::NONE {
            return false;
        }
        let hash = head.hash.to_string();
        tracing::info!(records = head.seq, hash, "audit head");
        let gauge = &self.metrics.audit_head;
        gauge.reset();
        gauge.with_label_values(&[&hash]).set(i64::try_from(head.seq).unwrap_or(i64::MAX));
        true
    }
}

#[cfg(test)]
mod tests;
