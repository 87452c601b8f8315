//! Which connections are open. At the cap the oldest that never carried an authenticated request goes first, so that
//! strangers who hold connections open cannot keep KMS out.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use rustix::io::Errno;
use tokio::sync::{Notify, watch};
use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};

/// Pause after a failure to accept: it would come again at once.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The open connections of one listener.
pub struct Connections {
    cap: usize,
    open: AtomicUsize,
    table: Mutex<Table>,
    place_free: Notify,
    all_closed: Notify,
    /// Nobody may stay.
    is_over: watch::Sender<bool>,
    gauge: Option<IntGauge>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// Connections without an authenticated request, the oldest first.
    strangers: BTreeMap<u64, Arc<Notify>>,
}

impl Connections {
    /// No connection yet, at most `cap`; a gauge that shows how many, where somebody wants to know.
    #[must_use]
    pub fn new(cap: usize, gauge: Option<IntGauge>) -> Arc<Self> {
        Arc::new(Self {
            cap,
            open: AtomicUsize::new(0),
            table: Mutex::default(),
            place_free: Notify::new(),
            all_closed: Notify::new(),
            is_over: watch::Sender::new(false),
            gauge,
        })
    }

    /// A place for a connection that has just been accepted. At the cap the oldest stranger is told to go; where there
    /// is none, waits until a connection closes.
    pub(super) async fn admit(self: &Arc<Self>) -> Place {
        loop {
            let freed = self.place_free.notified();
            if let Some(place) = self.try_admit() {
                return place;
            }
            freed.await;
        }
    }

    fn try_admit(self: &Arc<Self>) -> Option<Place> {
        let mut table = self.lock();
        // The stranger's place is given away before it has left: it leaves at once.
        if self.open.load(Ordering::Acquire) >= self.cap && !table.evict_oldest() {
            return None;
        }
        let id = table.next_id;
        table.next_id += 1;
        let evicted = Arc::new(Notify::new());
        table.strangers.insert(id, Arc::clone(&evicted));
        self.open.fetch_add(1, Ordering::AcqRel);
        self.gauge.iter().for_each(IntGauge::inc);
        Some(Place { id, evicted, connections: Arc::clone(self) })
    }

    /// Pauses after a failure to accept. Where no more files can be opened the oldest stranger goes, whatever the cap, and its
    /// end ends the pause.
    pub(super) async fn recover(&self, failure: &io::Error) {
        if !is_out_of_files(failure) {
            return sleep(ACCEPT_PAUSE).await;
        }
        let closed = self.place_free.notified();
        self.lock().evict_oldest_of_several();
        let _ = timeout(ACCEPT_PAUSE, closed).await;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no connection is open.
    pub(super) async fn wait_until_none(&self) {
        loop {
            let closed = self.all_closed.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Tells every connection to go at once.
    pub(super) fn cut(&self) {
        self.is_over.send_replace(true);
    }

    pub(super) fn count(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

impl Table {
    /// The system is out of files though nobody may be waiting: the newest is not turned out for nobody.
    fn evict_oldest_of_several(&mut self) {
        if self.strangers.len() > 1 {
            self.evict_oldest();
        }
    }

    /// False where there is no stranger.
    fn evict_oldest(&mut self) -> bool {
        let oldest = self.strangers.pop_first();
        oldest.iter().for_each(|(_, stranger)| stranger.notify_one());
        oldest.is_some()
    }
}

/// Of this process, or of the machine.
fn is_out_of_files(failure: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].into_iter().any(|errno| failure.raw_os_error() == Some(errno.raw_os_error()))
}

/// A connection's place, free again when dropped.
pub(super) struct Place {
    id: u64,
    evicted: Arc<Notify>,
    connections: Arc<Connections>,
}

impl Place {
    /// The connection carried an authenticated request: it is no stranger any more.
    pub(super) fn is_no_stranger(&self) {
        self.connections.lock().strangers.remove(&self.id);
    }

    /// Waits until the connection must go; returns why. Whatever its client sends does not delay that.
    pub(super) async fn must_go(&self) -> &'static str {
        let mut is_over = self.connections.is_over.subscribe();
        unconstrained(async {
            tokio::select! {
                () = self.evicted.notified() => "evicted",
                _ = is_over.wait_for(|is_over| *is_over) => "drain_over",
            }
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        table.strangers.remove(&self.id);
        self.connections.gauge.iter().for_each(IntGauge::dec);
        if self.connections.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connections.all_closed.notify_waiters();
        }
        self.connections.place_free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(cap: usize) -> Arc<Connections> {
        Connections::new(cap, None)
    }

    async fn is_evicted(place: &Place) -> bool {
        timeout(Duration::ZERO, place.must_go()).await == Ok("evicted")
    }

    #[tokio::test]
    async fn the_oldest_stranger_goes_first() {
        let connections = connections(3);
        let known = connections.admit().await;
        known.is_no_stranger();
        let older = connections.admit().await;
        let newer = connections.admit().await;
        let newest = connections.admit().await;
        assert!(is_evicted(&older).await);
        assert!(!is_evicted(&known).await && !is_evicted(&newer).await && !is_evicted(&newest).await);
    }

    #[tokio::test]
    async fn where_files_run_out_the_oldest_stranger_goes_below_the_cap() {
        let connections = connections(10);
        let known = connections.admit().await;
        known.is_no_stranger();
        let (older, newer) = (connections.admit().await, connections.admit().await);
        let newest = connections.admit().await;
        for failure in [Errno::CONNABORTED, Errno::MFILE, Errno::NFILE] {
            connections.recover(&failure.into()).await;
            let evicted = (is_evicted(&older).await, is_evicted(&newer).await);
            let expected = (failure == Errno::MFILE, failure == Errno::NFILE);
            assert_eq!(evicted, expected, "{failure:?}");
        }
        connections.recover(&Errno::MFILE.into()).await;
        assert!(!is_evicted(&known).await && !is_evicted(&newest).await);
    }

    #[tokio::test]
    async fn at_the_end_all_go_whoever_they_are() {
        let connections = connections(2);
        let known = connections.admit().await;
        known.is_no_stranger();
        let stranger = connections.admit().await;
        connections.cut();
        assert_eq!((known.must_go().await, stranger.must_go().await), ("drain_over", "drain_over"));
        drop((known, stranger));
        connections.wait_until_none().await;
    }

    #[tokio::test]
    async fn where_all_are_known_a_newcomer_waits_for_a_place() {
        let connections = connections(1);
        let known = connections.admit().await;
        known.is_no_stranger();
        let mut waiting = Box::pin(connections.admit());
        assert!(timeout(Duration::ZERO, &mut waiting).await.is_err());
        drop(known);
        let _place = waiting.await;
        assert_eq!(connections.count(), 1);
    }
}
