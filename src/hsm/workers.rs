//! The OS threads that own sessions, and the bounded queue before them.
//!
//! A PKCS#11 call cannot be cancelled, so calls run on threads of their own while the asking side waits no longer than
//! its deadline.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::HsmError;
use super::ckr::Meaning;
use super::lane::Lane;
use super::token::Shared;
use crate::clock;

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
}

impl Board {
    pub(super) fn new(workers: usize) -> Self {
        Self { base: clock::now(), begun: (0..workers).map(|_| AtomicU64::new(0)).collect() }
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
        let done = catch_unwind(AssertUnwindSafe(|| perform(&mut lane, shared, job)));
        if done.is_err() {
            tracing::error!(token = %shared.settings.name, "a job on the token panicked; its session is replaced");
            lane = None;
        }
        shared.board.end(worker);
    }
}

fn perform(lane: &mut Option<Lane>, shared: &Shared, job: Job) {
    if let Err(error) = match_connection(lane, shared) {
        return job(Err(error));
    }
    let Some(open) = lane else { return job(Err(HsmError::Worker)) };
    job(Ok(open));
    if let Some(meaning) = open.lost() {
        let epoch = open.connection.epoch;
        if let Some(lane) = lane.take() {
            retire(lane, meaning);
        }
        shared.lose(epoch, meaning);
    }
}

/// Makes the lane one of the connection that holds now.
fn match_connection(lane: &mut Option<Lane>, shared: &Shared) -> Result<(), HsmError> {
    let Some(connection) = shared.connection.load_full() else {
        return Err(shared.unavailable());
    };
    let is_current = lane.as_ref().is_some_and(|lane| Arc::ptr_eq(&lane.connection, &connection));
    if !is_current {
        if let Some(old) = lane.take() {
            // Its connection ended: so did its session, or the token's keeper could not tell.
            old.abandon();
        }
        *lane = Some(Lane::open(&connection, shared.settings.iv_source, &shared.metrics)?);
    }
    Ok(())
}

/// A lost login leaves sessions open, which are closed; with a lost token they are gone already.
fn retire(lane: Lane, meaning: Meaning) {
    if meaning == Meaning::TokenLost { lane.abandon() } else { drop(lane) }
}
