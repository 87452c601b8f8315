//! The OS threads that own sessions, and the bounded queue before them.
//!
//! A PKCS#11 call cannot be cancelled, so calls run on threads of their own while the asking side waits no longer than
//! its deadline.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::HsmError;
use super::lane::Lane;
use super::token::Shared;
use crate::clock;

/// How long a worker that gets no session leaves the work to others.
const NO_SESSION_PAUSE: Duration = Duration::from_millis(100);

/// Work for a session. Gets the reason where there is none.
pub(super) type Job = Box<dyn FnOnce(Result<&mut Lane, HsmError>) + Send>;

/// What a worker takes out of the queue.
pub(super) enum Task {
    /// Work.
    Job(Job),
    /// End; meant for one worker.
    Stop,
}

/// When each worker began the job that it is at.
pub(super) struct Board {
    base: Instant,
    /// Nanoseconds since `base`, 0 where the worker is idle.
    begun: Box<[AtomicU64]>,
    /// Workers whose last try to open a session failed.
    without_session: Box<[AtomicBool]>,
}

impl Board {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            base: clock::now(),
            begun: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            without_session: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn begin(&self, worker: usize) {
        let nanos = u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        self.begun[worker].store(nanos, Ordering::Relaxed);
    }

    fn end(&self, worker: usize) {
        self.begun[worker].store(0, Ordering::Relaxed);
    }

    /// Workers that have been at one job for longer than `limit`.
    pub(super) fn stalled(&self, limit: Duration) -> usize {
        let now = self.base.elapsed();
        let is_stalled = |begun: &&AtomicU64| match begun.load(Ordering::Relaxed) {
            0 => false,
            nanos => now.saturating_sub(Duration::from_nanos(nanos)) > limit,
        };
        self.begun.iter().filter(is_stalled).count()
    }

    /// A connection has been made: what failed on the one before says nothing of it.
    pub(super) fn begin_anew(&self) {
        self.without_session.iter().for_each(|lacks| lacks.store(false, Ordering::Relaxed));
    }

    /// Workers that could not open a session when they last tried.
    pub(super) fn without_session(&self) -> usize {
        self.without_session.iter().filter(|lacks| lacks.load(Ordering::Relaxed)).count()
    }

    pub(super) fn workers(&self) -> usize {
        self.begun.len()
    }
}

/// A worker's life: takes jobs until it is told to stop.
pub(super) fn run(worker: usize, shared: &Shared, tasks: &flume::Receiver<Task>) {
    let mut lane: Option<Lane> = None;
    while let Ok(Task::Job(job)) = tasks.recv() {
        shared.board.begin(worker);
        // A panic costs its request an answer and the worker its session, not the process its service.
        let done = catch_unwind(AssertUnwindSafe(|| perform(worker, &mut lane, shared, job)));
        if let Ok(Some(job)) = done {
            shared.board.end(worker);
            // Others have sessions: the job is theirs. This worker stays out of the way for a while.
            if let Err(
                flume::TrySendError::Full(Task::Job(job)) | flume::TrySendError::Disconnected(Task::Job(job)),
            ) = shared.tasks.try_send(Task::Job(job))
            {
                job(Err(HsmError::QueueFull));
            }
            std::thread::sleep(NO_SESSION_PAUSE);
            continue;
        }
        if done.is_err() {
            tracing::error!(token = %shared.settings.name, "a job on the token panicked; its session is replaced");
            lane = None;
        }
        shared.board.end(worker);
    }
}

/// Does the job, or gives it back where another worker can.
fn perform(worker: usize, lane: &mut Option<Lane>, shared: &Shared, job: Job) -> Option<Job> {
    let matched = match_connection(lane, shared);
    shared.board.without_session[worker].store(matched.is_err(), Ordering::Relaxed);
    if let Err(error) = matched {
        if matches!(error, HsmError::Device { .. }) && shared.board.without_session() < shared.board.workers()
        {
            return Some(job);
        }
        job(Err(error));
        return None;
    }
    let Some(open) = lane else {
        job(Err(HsmError::Worker));
        return None;
    };
    job(Ok(open));
    if let Some(meaning) = open.lost() {
        let epoch = open.connection.epoch;
        shared.lose(epoch, meaning);
        if let Some(lane) = lane.take() {
            lane.abandon();
        }
    }
    None
}

/// Makes the lane one of the connection that holds now.
fn match_connection(lane: &mut Option<Lane>, shared: &Shared) -> Result<(), HsmError> {
    let Some(connection) = shared.connection.load_full() else {
        return Err(shared.unavailable());
    };
    let is_current = lane.as_ref().is_some_and(|lane| Arc::ptr_eq(&lane.connection, &connection));
    if !is_current {
        if let Some(old) = lane.take() {
            old.abandon();
        }
        let opened = Lane::open(&connection, shared.settings.iv_source, &shared.ivs, &shared.metrics);
        *lane = Some(opened.map_err(|(error, lost)| {
            if let Some(meaning) = lost {
                shared.lose(connection.epoch, meaning);
            }
            error
        })?);
    }
    Ok(())
}
