//! The OS threads that own sessions, and the bounded queue before them.
//!
//! A PKCS#11 call cannot be cancelled, so calls run on threads of their own while the asking side waits no longer than
//! its deadline.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::HsmError;
use super::ckr::Meaning;
use super::connection::Connection;
use super::gate::Shut;
use super::lane::Lane;
use super::shared::Shared;
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

/// Threads that may be stuck for ever, as a multiple of the sessions, before no more are replaced.
const MAX_STUCK_PER_SESSION: usize = 2;

/// What each worker is at. There are as many workers as sessions; one that is stuck in a call gives its place to another.
pub(super) struct Board {
    base: Instant,
    sessions: usize,
    places: Box<[Place]>,
    /// Nanoseconds since `base` when a job last came to its end.
    last_end: AtomicU64,
    /// The same of one that the token has served.
    last_served: AtomicU64,
    /// How long a job takes on a session, in nanoseconds: a moving mean. 0 before the first.
    mean_nanos: AtomicU64,
}

/// Jobs that the mean is of, more or less: few, so that a token that becomes slow is soon known to be.
const MEAN_OF_JOBS: u64 = 4;

/// A worker's place on the board.
#[derive(Default)]
struct Place {
    is_taken: AtomicBool,
    /// Nanoseconds since the board's `base` when the job began, 0 where the worker is idle.
    begun: AtomicU64,
    /// The last try to open a session failed.
    lacks_session: AtomicBool,
    /// Stuck in a call and replaced: ends when the call returns. Whoever takes it back decides, the worker or the watch.
    is_replaced: AtomicBool,
}

impl Board {
    pub(super) fn new(sessions: usize) -> Self {
        let places = sessions * (1 + MAX_STUCK_PER_SESSION);
        let places = (0..places).map(|_| Place::default()).collect();
        Self {
            base: clock::now(),
            sessions,
            places,
            last_end: AtomicU64::new(0),
            last_served: AtomicU64::new(0),
            mean_nanos: AtomicU64::new(0),
        }
    }

    /// Has a worker started for a free place; false where there is none. Where it cannot be started, the place stays free.
    pub(super) fn fill_place(&self, start: impl FnOnce(usize) -> io::Result<()>) -> io::Result<bool> {
        let is_free = |place: &Place| !place.is_taken.swap(true, Ordering::AcqRel);
        let Some(worker) = self.places.iter().position(is_free) else { return Ok(false) };
        start(worker).inspect_err(|_| self.leave_place(worker))?;
        Ok(true)
    }

    fn leave_place(&self, worker: usize) {
        let place = &self.places[worker];
        place.is_replaced.store(false, Ordering::Relaxed);
        place.lacks_session.store(false, Ordering::Relaxed);
        place.is_taken.store(false, Ordering::Release);
    }

    fn nanos_now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn begin(&self, worker: usize) {
        self.places[worker].begun.store(self.nanos_now(), Ordering::SeqCst);
    }

    fn end(&self, worker: usize) {
        self.places[worker].begun.store(0, Ordering::SeqCst);
    }

    fn is_stuck(&self, place: &Place, limit: Duration) -> bool {
        match place.begun.load(Ordering::SeqCst) {
            0 => false,
            nanos => self.base.elapsed().saturating_sub(Duration::from_nanos(nanos)) > limit,
        }
    }

    /// Places of workers that have been at one job for longer than `limit` and have no replacement yet.
    pub(super) fn newly_stuck(&self, limit: Duration) -> impl Iterator<Item = usize> {
        let is_new =
            move |place: &Place| !place.is_replaced.load(Ordering::Relaxed) && self.is_stuck(place, limit);
        self.places.iter().enumerate().filter(move |(_, place)| is_new(place)).map(|(worker, _)| worker)
    }

    /// Another worker is to do the work of this one, which ends when its call returns. False where it has returned meanwhile and
    /// goes on.
    pub(super) fn replace(&self, worker: usize, limit: Duration) -> bool {
        let place = &self.places[worker];
        place.is_replaced.store(true, Ordering::SeqCst);
        // It says that it is idle before it looks whether it is replaced: one of the two sees what the other has said.
        self.is_stuck(place, limit) || !self.keep(worker)
    }

    /// There is no other worker: this one goes on after all. False where it has ended.
    pub(super) fn keep(&self, worker: usize) -> bool {
        self.places[worker].is_replaced.swap(false, Ordering::SeqCst)
    }

    /// Whether the worker, whose call has returned, is to end. Then it does.
    fn is_to_end(&self, worker: usize) -> bool {
        self.places[worker].is_replaced.swap(false, Ordering::SeqCst)
    }

    /// Workers that have been at one job for longer than `limit`, replaced or not.
    pub(super) fn stuck(&self, limit: Duration) -> usize {
        self.places.iter().filter(|place| self.is_stuck(place, limit)).count()
    }

    /// Workers that could take a job: neither stuck nor without a session. None where every session was tried, is
    /// stuck, and no call has come back since: a replacement has yet to show that it fares better.
    pub(super) fn serving(&self, limit: Duration) -> usize {
        let stuck: Vec<_> = self.places.iter().filter(|place| self.is_stuck(place, limit)).collect();
        let newest = stuck.iter().map(|place| place.begun.load(Ordering::Relaxed)).max();
        if stuck.len() >= self.sessions && newest > Some(self.last_end.load(Ordering::Relaxed)) {
            return 0;
        }
        self.sessions.saturating_sub(self.newly_stuck(limit).count() + self.without_session())
    }

    /// Whether a job has been at work for longer than `limit`, and none has come to its end since it began.
    pub(super) fn is_silent(&self, limit: Duration) -> bool {
        self.hangs(limit, self.base)
    }

    /// The same of one that began after `since`.
    pub(super) fn hangs(&self, limit: Duration, since: Instant) -> bool {
        let since = u64::try_from(since.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX);
        let last_end = self.last_end.load(Ordering::Relaxed);
        let is_silent = |begun: u64| begun >= since && begun > last_end;
        self.places
            .iter()
            .any(|place| is_silent(place.begun.load(Ordering::Relaxed)) && self.is_stuck(place, limit))
    }

    /// Whether a job that began after `since` has been at work for longer than `limit`, or every session is at one that
    /// has, so that what is queued waits in vain. That other sessions bring jobs back is no excuse.
    pub(super) fn has_hung_job(&self, since: Instant, limit: Duration) -> bool {
        let since = u64::try_from(since.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX);
        let began_since = |place: &Place| place.begun.load(Ordering::Relaxed) >= since;
        let has_own = self.places.iter().any(|place| began_since(place) && self.is_stuck(place, limit));
        has_own || self.newly_stuck(limit).count() >= self.sessions
    }

    /// Whether no job has come to its end since then.
    pub(super) fn is_silent_since(&self, since: Instant) -> bool {
        let last_end = Duration::from_nanos(self.last_end.load(Ordering::Relaxed));
        self.base + last_end < since
    }

    /// The token has done what it was asked.
    pub(super) fn note_served(&self) {
        self.last_served.store(self.nanos_now(), Ordering::Relaxed);
    }

    /// Whether it has, since so long ago.
    pub(super) fn has_served_within(&self, time: Duration) -> bool {
        let last_served = self.last_served.load(Ordering::Relaxed);
        last_served != 0 && self.base.elapsed().saturating_sub(Duration::from_nanos(last_served)) <= time
    }

    /// A job has been on a session for so long. One of those that end at the same moment may be forgotten: it is a mean.
    pub(super) fn note_job(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mean = match self.mean_nanos.load(Ordering::Relaxed) {
            0 => took,
            mean => mean - mean / MEAN_OF_JOBS + took / MEAN_OF_JOBS,
        };
        self.mean_nanos.store(mean, Ordering::Relaxed);
    }

    /// How long a job that comes now will take until its end, behind so many that wait, if the token goes on as it did.
    pub(super) fn time_to_end(&self, waiting: usize) -> Duration {
        let turns = (waiting / self.usable_sessions()) as u64 + 1;
        Duration::from_nanos(self.mean_nanos.load(Ordering::Relaxed).saturating_mul(turns))
    }

    /// A call has come back.
    pub(super) fn note_sign_of_life(&self) {
        self.last_end.store(self.nanos_now(), Ordering::Relaxed);
    }

    /// Workers that are at a job.
    pub(super) fn busy(&self) -> usize {
        let is_busy = |place: &&Place| {
            place.begun.load(Ordering::Relaxed) != 0 && !place.is_replaced.load(Ordering::Relaxed)
        };
        self.places.iter().filter(is_busy).count()
    }

    /// A connection has been made: what failed on the one before says nothing of it.
    pub(super) fn begin_anew(&self) {
        self.places.iter().for_each(|place| place.lacks_session.store(false, Ordering::Relaxed));
    }

    /// Workers that could not open a session when they last tried.
    pub(super) fn without_session(&self) -> usize {
        self.places.iter().filter(|place| place.lacks_session.load(Ordering::Relaxed)).count()
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions
    }

    /// Sessions that work is done on: a token may give fewer than it was asked for. At least one, which is tried for.
    pub(super) fn usable_sessions(&self) -> usize {
        self.sessions.saturating_sub(self.without_session()).max(1)
    }
}

/// A worker's life: takes jobs until it is told to stop, or finds itself replaced.
pub(super) fn run(worker: usize, shared: &Shared, tasks: &flume::Receiver<Task>) {
    let mut lane: Option<Lane> = None;
    while let Ok(Task::Job(job)) = tasks.recv() {
        shared.board.begin(worker);
        // A panic costs its request an answer and the worker its session, not the process its service.
        let done = catch_unwind(AssertUnwindSafe(|| perform(worker, &mut lane, shared, job)));
        // What a helper's end has thrown back has not come back from the token.
        if lane.is_some() || shared.helper.is_none() {
            shared.board.note_sign_of_life();
        }
        shared.board.end(worker);
        match done {
            Ok(None) => {}
            Ok(Some(job)) => hand_on(shared, job),
            Err(_) => {
                tracing::error!(token = %shared.settings.name, "a job on the token panicked; its session is replaced");
                lane = None;
            }
        }
        if shared.board.is_to_end(worker) {
            tracing::warn!(token = %shared.settings.name, "a call that was stuck has returned");
            break;
        }
    }
    drop(lane);
    shared.board.leave_place(worker);
}

/// Others have sessions: the job is theirs. This worker stays out of the way for a while.
fn hand_on(shared: &Shared, job: Job) {
    if let Err(
        flume::TrySendError::Full(Task::Job(job)) | flume::TrySendError::Disconnected(Task::Job(job)),
    ) = shared.tasks.try_send(Task::Job(job))
    {
        job(Err(HsmError::QueueFull));
    }
    std::thread::sleep(NO_SESSION_PAUSE);
}

/// Does the job, or gives it back where another worker can.
fn perform(worker: usize, lane: &mut Option<Lane>, shared: &Shared, job: Job) -> Option<Job> {
    let matched = match_connection(lane, shared);
    // Where there is no connection, or the module's door is closed for a moment, none was tried to be opened.
    let lacks_session = matched.as_ref().is_err_and(|error| !matches!(error, HsmError::Unavailable(_)));
    shared.board.places[worker].lacks_session.store(lacks_session, Ordering::Relaxed);
    if let Err(error) = matched {
        if matches!(error, HsmError::Device { .. })
            && shared.board.without_session() < shared.board.sessions()
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
    let connection = Arc::clone(&open.connection);
    let _inside = match connection.module.gate().enter_with(connection.generation) {
        Ok(inside) => inside,
        Err(shut) => {
            job(Err(shut_out(shared, &connection, shut)));
            return None;
        }
    };
    job(Ok(open));
    if let Some(meaning) = open.confirm_loss() {
        let epoch = open.connection.epoch;
        shared.lose(epoch, meaning);
        if let Some(lane) = lane.take() {
            lane.abandon();
        }
    }
    None
}

/// What it means that the module's door is shut to a connection: only another generation is a loss.
fn shut_out(shared: &Shared, connection: &Connection, shut: Shut) -> HsmError {
    match shut {
        Shut::Closed => HsmError::Unavailable("its module may be about to be initialised anew".into()),
        Shut::Changed => {
            shared.lose(connection.epoch, Meaning::TokenLost);
            shared.unavailable()
        }
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
            old.abandon();
        }
        let inside = connection.module.gate().enter_with(connection.generation);
        let _inside = inside.map_err(|shut| shut_out(shared, &connection, shut))?;
        let opened = Lane::open(&connection, &shared.ivs, &shared.metrics);
        *lane = Some(opened.map_err(|(error, lost)| {
            if let Some(meaning) = lost {
                shared.lose(connection.epoch, meaning);
            }
            error
        })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_no_thread_was_had_for_stays_free() {
        let board = Board::new(1);
        let places = 1 + MAX_STUCK_PER_SESSION;
        for _ in 0..10 * places {
            let refused = board.fill_place(|_| Err(io::ErrorKind::WouldBlock.into()));
            assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        }
        for wanted in 0..places {
            let mut given = None;
            assert!(
                board
                    .fill_place(|worker| {
                        given = Some(worker);
                        Ok(())
                    })
                    .unwrap()
            );
            assert_eq!(given, Some(wanted));
        }
        assert!(!board.fill_place(|_| Ok(())).unwrap(), "there is no place");
    }

    #[test]
    fn a_worker_ends_only_where_another_takes_its_place() {
        let limit = Duration::from_nanos(1);
        let board = Board::new(1);
        let is_stuck = |board: &Board| board.newly_stuck(limit).count() == 1;
        let begin = |board: &Board| {
            board.begin(0);
            while !is_stuck(board) {}
        };
        board.fill_place(|_| Ok(())).unwrap();
        // Still in its call.
        begin(&board);
        assert!(board.replace(0, limit) && !is_stuck(&board) && board.stuck(limit) == 1);
        board.end(0);
        assert!(board.is_to_end(0));
        // Its call has returned before anybody could be started for it.
        assert!(!board.replace(0, limit));
        assert!(!board.is_to_end(0), "it goes on");
        // Nobody could be started, and the call returned before that was known, or after.
        begin(&board);
        assert!(board.replace(0, limit) && board.keep(0) && is_stuck(&board), "it is looked at again");
        board.end(0);
        assert!(!board.is_to_end(0), "it goes on");
        begin(&board);
        assert!(board.replace(0, limit));
        board.end(0);
        assert!(board.is_to_end(0) && !board.keep(0), "its place is to be taken");
    }

    #[test]
    fn sessions_that_a_token_does_not_give_are_none_that_idle() {
        let board = Board::new(4);
        board.note_job(Duration::from_millis(10));
        assert_eq!((board.usable_sessions(), board.time_to_end(3)), (4, Duration::from_millis(10)));
        board.places[..3].iter().for_each(|place| place.lacks_session.store(true, Ordering::Relaxed));
        assert_eq!((board.usable_sessions(), board.time_to_end(3)), (1, Duration::from_millis(40)));
        board.places[3].lacks_session.store(true, Ordering::Relaxed);
        assert_eq!(board.usable_sessions(), 1, "one is tried for");
        board.begin_anew();
        assert_eq!(board.usable_sessions(), 4);
    }
}
