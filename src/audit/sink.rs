//! The thread that writes. It alone knows the chain's head.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::chain::{Hasher, Head, Torn};
use super::file::{AuditFile, Found, HeadFile};
use super::record::{Entry, OpenReason, RequestRecord};
use super::{AuditFault, OnFailure, Shared};
use crate::clock;

/// Records of one batch.
const MAX_BATCH_RECORDS: usize = 1024;
/// About how much memory a batch takes before another record.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Where records come faster than this one after the other, as many as come within it are waited for: a batch costs about the same
/// whatever its size, and each wake-up is paid for by the request that causes it.
const GATHERING: Duration = Duration::from_millis(1);
/// Between two looks at what is wanted besides records.
const TICK: Duration = Duration::from_secs(1);
/// Between two tries while writing fails.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// What the thread is told.
pub(super) enum Message {
    Record(Pending),
    /// Look at what is wanted.
    Wake,
}

/// A record that is to be written.
pub(super) struct Pending {
    pub(super) record: Box<RequestRecord>,
    /// Its share of the queue's memory.
    pub(super) bytes: usize,
    /// When it was handed over, as [`Shared::millis_now`] counts.
    pub(super) queued_ms: u64,
    /// Told once it is written; dropped where it is not.
    pub(super) written: Option<oneshot::Sender<()>>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    hasher: Hasher,
    head_file: HeadFile,
    /// `None` after a failure.
    file: Option<AuditFile>,
    /// Holds part of a batch that failed, which could not be taken back yet.
    broken: Option<AuditFile>,
    head: Head,
    /// The first thing to write.
    opening: Option<Opening>,
    backlog: Vec<Pending>,
    backlog_bytes: usize,
    /// Numbers of records that say that a request succeeded whose caller was not told so.
    withheld: Vec<u64>,
    /// Lost records that the chain tells of.
    lost_told: u64,
    /// Those of the process before that it could not tell of.
    lost_before: u64,
    retry_at: Option<Instant>,
    /// When records were last taken.
    taken_at: Instant,
}

struct Opening {
    reason: OpenReason,
    torn: Option<Torn>,
    needs_line_break: bool,
}

impl Writer {
    pub(super) fn open(shared: Arc<Shared>) -> Result<Self, AuditFault> {
        let path = &shared.settings.path;
        let hasher = Hasher::new(shared.settings.hmac_key.as_ref());
        let (head_file, known, lost_before) = HeadFile::open(path)?;
        let (file, found) = AuditFile::open(path, &hasher)?;
        let head = go_on_from(path, known, found.last);
        let opening = Some(Opening::new(OpenReason::Start, found));
        Ok(Self {
            shared,
            hasher,
            head_file,
            file: Some(file),
            broken: None,
            head,
            opening,
            backlog: Vec::new(),
            backlog_bytes: 0,
            withheld: Vec::new(),
            lost_told: 0,
            lost_before,
            retry_at: None,
            taken_at: clock::now(),
        })
    }

    pub(super) fn run(mut self, messages: &flume::Receiver<Message>) {
        self.write_out();
        loop {
            let is_closing = self.shared.close_wanted.load(Ordering::Acquire);
            self.collect(messages, is_closing);
            if self.shared.reopen_wanted.swap(false, Ordering::AcqRel) {
                self.while_busy(Self::reopen);
            }
            self.write_out();
            if is_closing && (messages.is_empty() || self.retry_at.is_some()) {
                return self.end(messages);
            }
        }
    }

    /// Takes what is waiting, up to a batch; waits for a moment where nothing is.
    fn collect(&mut self, messages: &flume::Receiver<Message>, is_closing: bool) {
        let patience = match self.retry_at {
            Some(at) => at.saturating_duration_since(clock::now()),
            None if is_closing || !self.withheld.is_empty() => Duration::ZERO,
            None => TICK,
        };
        if self.is_batch_full() {
            return std::thread::sleep(patience);
        }
        let mut next = messages.recv_timeout(patience).ok();
        // Where a success waits for its record, nothing waits for more.
        if next.is_some() && !is_closing && self.shared.settings.on_failure == OnFailure::Continue {
            if self.taken_at.elapsed() < GATHERING {
                std::thread::sleep(GATHERING);
            }
            self.taken_at = clock::now();
        }
        while let Some(message) = next {
            if let Message::Record(pending) = message {
                self.shared.queued_bytes.fetch_sub(pending.bytes, Ordering::Relaxed);
                self.backlog_bytes += pending.bytes;
                self.backlog.push(pending);
            }
            next = if self.is_batch_full() { None } else { messages.try_recv().ok() };
        }
        self.note_oldest();
    }

    fn note_oldest(&self) {
        let oldest_ms = self.backlog.first().map_or(0, |pending| pending.queued_ms);
        self.shared.oldest_ms.store(oldest_ms, Ordering::Release);
    }

    fn is_batch_full(&self) -> bool {
        self.backlog.len() >= MAX_BATCH_RECORDS || self.backlog_bytes >= MAX_BATCH_BYTES
    }

    /// Writes what there is, unless it failed a moment ago.
    fn write_out(&mut self) {
        if self.retry_at.is_some_and(|at| clock::now() < at) {
            return;
        }
        let is_idle = self.retry_at.is_none()
            && self.opening.is_none()
            && self.backlog.is_empty()
            && self.withheld.is_empty()
            && self.lost_told == self.shared.lost.load(Ordering::Relaxed);
        if !is_idle {
            self.while_busy(|writer| match writer.write_batch() {
                Ok(()) => writer.succeed(),
                Err(fault) => writer.fail(&fault),
            });
        }
    }

    /// Says meanwhile that a write is going on: it may hang.
    fn while_busy<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.shared.busy_since_ms.store(self.shared.millis_now(), Ordering::Release);
        let result = work(self);
        self.shared.busy_since_ms.store(0, Ordering::Release);
        result
    }

    fn write_batch(&mut self) -> Result<(), AuditFault> {
        let path = &self.shared.settings.path;
        let io = |source| AuditFault::Io { action: "cannot write", path: path.clone(), source };
        // A number must not be given twice; in a file that is not here any more it stays to be seen.
        if let Some(broken) = &self.broken {
            match broken.roll_back() {
                Err(source) if broken.is_at(path) => return Err(io(source)),
                _ => self.broken = None,
            }
        }
        if self.file.is_none() {
            let (file, found) = AuditFile::open(path, &self.hasher)?;
            let reason = self.opening.as_ref().map_or(OpenReason::Recovery, |opening| opening.reason);
            self.opening = Some(Opening::new(reason, found));
            self.file = Some(file);
        }
        let lost = self.shared.lost.load(Ordering::Relaxed);
        let (mut head, mut lines) = (self.head, Vec::new());
        if let Some(opening) = &self.opening {
            if opening.needs_line_break {
                lines.push(b'\n');
            }
            head.append(&self.hasher, &opening.entry(), &mut lines);
        }
        let untold = self.lost_before + lost - self.lost_told;
        if untold > 0 {
            head.append(&self.hasher, &Entry::Lost { records: untold }, &mut lines);
        }
        for record in &self.withheld {
            head.append(&self.hasher, &Entry::Withheld { record: *record }, &mut lines);
        }
        let mut answers = Vec::new();
        for mut pending in self.backlog.drain(..) {
            if pending.written.as_ref().is_some_and(oneshot::Sender::is_closed) {
                pending.record.withhold();
            }
            let entry = Entry::Request(pending.record);
            head.append(&self.hasher, &entry, &mut lines);
            let Entry::Request(record) = entry else { continue };
            answers.push((head.seq, Pending { record, ..pending }));
        }
        let records = answers.len() as u64;
        let file = self.file.as_mut();
        let appended = file.map_or(Ok(()), |file| file.append(&lines, self.shared.settings.is_synced));
        if let Err(source) = appended {
            self.backlog.extend(answers.into_iter().map(|(_, pending)| pending));
            return Err(io(source));
        }
        (self.head, self.lost_told, self.lost_before, self.opening) = (head, lost, 0, None);
        self.backlog_bytes = 0;
        self.withheld.clear();
        self.acknowledge(answers);
        self.shared.unwritten.fetch_sub(records, Ordering::Relaxed);
        self.shared.metrics.audit_records.inc_by(records);
        Ok(())
    }

    /// Tells whoever waits that the record of that number is written. Whoever does not wait any more has not answered, or
    /// with a failure.
    pub(super) fn acknowledge(&mut self, written: Vec<(u64, Pending)>) {
        for (seq, pending) in written {
            let is_late = pending.written.is_some_and(|written| written.send(()).is_err());
            if is_late && pending.record.outcome == "ok" {
                self.withheld.push(seq);
            }
        }
    }

    fn succeed(&mut self) {
        if self.retry_at.take().is_some() {
            tracing::info!("the audit log is written again");
        }
        self.shared.is_failing.store(false, Ordering::Release);
        self.note_oldest();
        *self.shared.head.lock().unwrap_or_else(PoisonError::into_inner) = self.head;
        self.keep_head(0);
    }

    fn keep_head(&self, lost: u64) {
        if let Err(error) = self.head_file.write(self.head, lost, self.shared.settings.is_synced) {
            tracing::warn!(%error, "the head of the audit log cannot be written beside it");
        }
    }

    /// Whoever waits for a record is told; the records are kept and say so.
    pub(super) fn fail(&mut self, fault: &AuditFault) {
        if self.retry_at.is_none() {
            tracing::error!(error = %fault, "the audit log cannot be written");
        }
        self.shared.is_failing.store(true, Ordering::Release);
        self.shared.metrics.audit_write_failures.inc();
        for pending in &mut self.backlog {
            if pending.written.take().is_some() {
                pending.record.withhold();
            }
        }
        self.broken =
            self.broken.take().or_else(|| self.file.take()).filter(|file| file.roll_back().is_err());
        self.file = None;
        self.retry_at = Some(clock::now() + RETRY_AFTER);
    }

    /// Changes to the file that has the configured name now. Where that cannot be had, the one before goes on.
    fn reopen(&mut self) {
        let path = &self.shared.settings.path;
        let Some(current) = &self.file else { return };
        if current.is_at(path) {
            return tracing::info!("the audit file was not moved away: writing goes on in it");
        }
        let opened = AuditFile::open(path, &self.hasher).and_then(|(file, found)| {
            let is_new = found.last.is_none() && found.torn.is_none();
            if is_new { Ok((file, found)) } else { Err(AuditFault::NotEmpty(path.clone())) }
        });
        match opened {
            Ok((file, found)) => {
                if let Err(error) = current.sync() {
                    tracing::warn!(%error, "the audit file that was moved away cannot be synced");
                }
                let records = self.head.seq;
                tracing::info!(records, hash = %self.head.hash, "the audit log goes on in a new file");
                self.file = Some(file);
                self.opening = Some(Opening::new(OpenReason::Rotation, found));
            }
            Err(fault) => {
                tracing::error!(error = %fault, "the audit log goes on in the file before");
            }
        }
    }

    pub(super) fn end(mut self, messages: &flume::Receiver<Message>) {
        // Once more, though the last try may have failed just now; then what was handed over meanwhile.
        self.retry_at = self.retry_at.map(|_| clock::now());
        loop {
            self.collect(messages, true);
            self.write_out();
            if self.retry_at.is_some() || messages.is_empty() {
                break;
            }
        }
        self.write_out();
        if let Some(file) = &mut self.file {
            let mut lines = Vec::new();
            let mut head = self.head;
            head.append(&self.hasher, &Entry::Closed { time: clock::wall_clock() }, &mut lines);
            if file.append(&lines, true).is_ok() {
                self.head = head;
                self.succeed();
            }
        }
        let unwritten = self.shared.unwritten.load(Ordering::Relaxed);
        self.shared.metrics.audit_records_lost.inc_by(unwritten);
        let lost = self.shared.lost.load(Ordering::Relaxed) - self.lost_told;
        let untold = self.lost_before + lost + unwritten;
        if untold > 0 {
            // The next process tells of them.
            self.keep_head(untold);
        }
    }
}

impl Opening {
    fn new(reason: OpenReason, found: Found) -> Self {
        Self { reason, torn: found.torn, needs_line_break: found.needs_line_break }
    }

    fn entry(&self) -> Entry {
        Entry::Opened {
            time: clock::wall_clock(),
            reason: self.reason,
            version: env!("CARGO_PKG_VERSION"),
            torn: self.torn.clone(),
        }
    }
}

/// The chain goes on from the last record known. Where the file ends before that, the gap stays to be seen.
fn go_on_from(path: &Path, known: Head, last: Option<Head>) -> Head {
    match last {
        // The process was killed between the two writes.
        Some(last) if last.seq > known.seq => last,
        Some(last) if last != known => {
            let path = path.display();
            tracing::error!(
                %path,
                last_record = last.seq,
                known_records = known.seq,
                "records at the end of the audit file are missing or were changed; `xks-proxy audit verify` tells more"
            );
            known
        }
        _ => known,
    }
}
