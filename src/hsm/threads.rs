//! A token's threads and the one that watches them: whatever is stuck in a call that does not return is replaced.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::ckr::Meaning;
use super::isolation::HelperPlace;
use super::keeper::{self, Message};
use super::module::Modules;
use super::shared::Shared;
use super::workers::{self, Task};
use crate::clock;

/// Keepers that may be stuck for ever before no more are replaced.
const MAX_STUCK_KEEPERS: usize = 2;
/// Probe intervals that a keeper may be inside the module: longer than it takes any token to list its keys.
pub(super) const KEEPER_PATIENCE: u32 = 6;
/// Time between two looks at the threads.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// The same after the system has refused a thread.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// The threads of one token: workers with a session each, a keeper, and a watch over them.
pub(super) struct Threads(Arc<Crew>);

/// What the watch needs to replace a thread.
struct Crew {
    shared: Arc<Shared>,
    modules: Arc<Modules>,
    tasks: flume::Receiver<Task>,
    messages: flume::Receiver<Message>,
    stop_watching: flume::Sender<()>,
    /// Keepers that have not ended.
    keepers: AtomicUsize,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts them.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(
        shared: &Arc<Shared>,
        modules: &Arc<Modules>,
        tasks: flume::Receiver<Task>,
        messages: flume::Receiver<Message>,
    ) -> io::Result<Self> {
        let (stop_watching, watching) = flume::bounded(1);
        let crew = Arc::new(Crew {
            shared: Arc::clone(shared),
            modules: Arc::clone(modules),
            tasks,
            messages,
            stop_watching,
            keepers: AtomicUsize::new(0),
            handles: Mutex::default(),
        });
        let started = crew.start(&watching);
        if started.is_err() {
            // Those that there are must not work for a token that nobody has.
            let _ = shared.messages.try_send(Message::Stop);
            for _ in 0..shared.board.sessions() {
                let _ = shared.tasks.try_send(Task::Stop);
            }
        }
        started.map(|()| Self(crew))
    }

    /// Waits until all have ended, at most `patience`; false where one is stuck in a call of the module.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let until = clock::now() + patience;
        let _ = self.0.stop_watching.try_send(());
        while self.0.handles().iter().any(|thread| !thread.is_finished()) {
            if clock::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Crew {
    fn handles(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, name: String, life: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let handle = Builder::new().name(name).spawn(life)?;
        let mut handles = self.handles();
        handles.retain(|handle| !handle.is_finished());
        handles.push(handle);
        Ok(())
    }

    fn start(self: &Arc<Self>, watching: &flume::Receiver<()>) -> io::Result<()> {
        self.start_keeper()?;
        for _ in 0..self.shared.board.sessions() {
            self.start_worker()?;
        }
        let (watched, watching) = (Arc::clone(self), watching.clone());
        self.spawn(format!("watch-{}", self.shared.settings.name), move || watched.watch(&watching))
    }

    /// Starts a keeper, which is the keeper from now on. Where the system refuses the thread, the one before stays it.
    fn start_keeper(self: &Arc<Self>) -> io::Result<()> {
        let crew = Arc::clone(self);
        let (begin, begun) = flume::bounded(1);
        self.spawn(format!("keeper-{}", self.shared.settings.name), move || {
            let Ok(term) = begun.recv() else { return };
            keeper::run(&crew.shared, term, &crew.modules, &crew.messages);
            crew.keepers.fetch_sub(1, Ordering::AcqRel);
        })?;
        self.keepers.fetch_add(1, Ordering::AcqRel);
        let _ = begin.send(self.shared.probe.begin_term());
        Ok(())
    }

    /// Starts a worker; false where every place is taken.
    fn start_worker(&self) -> io::Result<bool> {
        self.shared.board.fill_place(|worker| {
            let (shared, tasks) = (Arc::clone(&self.shared), self.tasks.clone());
            self.spawn(format!("hsm-{}-{worker}", self.shared.settings.name), move || {
                workers::run(worker, &shared, &tasks);
            })
        })
    }

    /// A helper that is gone, or that no call comes back from, gives its place to another: the keeper starts it.
    fn watch_helper(&self, helper: &HelperPlace) {
        let settings = &self.shared.settings;
        if let Some(status) = helper.ended() {
            tracing::error!(token = %settings.name, %status, "the helper process of the token has ended");
            self.shared.lose_current(Meaning::TokenLost);
            return;
        }
        let Some(started_at) = helper.started_at() else { return };
        let reason = if self.shared.board.hangs(settings.stall_after, started_at) {
            "a call does not return"
        } else if self.shared.board.stuck(settings.probe_interval * KEEPER_PATIENCE) > 0 {
            // Others do: it may only be slow, until it has been given its time.
            "a call does not return, though others do"
        } else if self.shared.probe.hangs_for(settings.probe_interval * KEEPER_PATIENCE) {
            "the health probe does not return"
        } else if self.has_too_much_memory(helper) {
            self.shared.metrics.helper_memory_kills.inc();
            "it has more memory than helper_memory_mib"
        } else {
            return;
        };
        tracing::error!(token = %settings.name, reason, "the helper process of the token is killed");
        self.shared.end_helper();
    }

    fn has_too_much_memory(&self, helper: &HelperPlace) -> bool {
        let Some(bytes) = helper.resident_bytes() else { return false };
        self.shared.metrics.helper_memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        bytes > self.shared.settings.helper_memory_bytes
    }

    /// Starts a worker for each that is stuck in a call, and for each that is `missing` since there was none for it.
    fn replace_stuck(&self, missing: &mut usize) -> io::Result<()> {
        let Shared { board, settings, metrics, .. } = &*self.shared;
        while *missing > 0 && self.start_worker()? {
            *missing -= 1;
        }
        let stuck: Vec<_> = board.newly_stuck(settings.stall_after).collect();
        // Told so before there is another: it may come back at any moment, and there are to be as many as sessions.
        for worker in stuck.into_iter().filter(|worker| board.replace(*worker, settings.stall_after)) {
            let started = self.start_worker();
            if matches!(started, Ok(true)) {
                metrics.threads_replaced.inc();
                tracing::error!(token = %settings.name, "a call does not return: its thread is replaced");
                continue;
            }
            *missing += usize::from(!board.keep(worker));
            if !started? {
                // No more places: the token is as stuck as it may get.
                self.shared.end_helper();
            }
            break;
        }
        Ok(())
    }

    fn watch(self: &Arc<Self>, stop: &flume::Receiver<()>) {
        let settings = &self.shared.settings;
        let mut interval = WATCH_INTERVAL;
        // Workers that have ended for others which could not be started.
        let mut missing = 0;
        while stop.recv_timeout(interval) == Err(flume::RecvTimeoutError::Timeout) {
            interval = WATCH_INTERVAL;
            if let Some(helper) = &self.shared.helper {
                self.watch_helper(helper);
            }
            if let Err(error) = self.replace_stuck(&mut missing) {
                tracing::error!(token = %settings.name, %error, "cannot start a thread");
                interval = REFUSED_INTERVAL;
            }
            let hangs = self.shared.helper.is_none()
                && self.shared.probe.hangs_for(settings.probe_interval * KEEPER_PATIENCE);
            if hangs && self.keepers.load(Ordering::Acquire) <= MAX_STUCK_KEEPERS {
                match self.start_keeper() {
                    Ok(()) => {
                        self.shared.metrics.threads_replaced.inc();
                        tracing::error!(token = %settings.name, "the health probe does not return: its thread is replaced");
                    }
                    Err(error) => {
                        tracing::error!(token = %settings.name, %error, "cannot start a thread");
                        interval = REFUSED_INTERVAL;
                    }
                }
            }
        }
    }
}
