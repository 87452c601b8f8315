//! The places of requests in flight. A request that waits for its body may lose its place: an access key id is no secret,
//! and whoever knows one can send heads without bodies.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// A request's place, free again when dropped.
pub(super) type RequestPlace = OwnedSemaphorePermit;

/// Places for API requests, and for what is left of the bodies of those that were refused.
pub struct Places {
    free: Arc<Semaphore>,
    /// Bodies that are read only to be thrown away.
    discards: Arc<Semaphore>,
    /// How many places requests may hold that wait for their bodies; strangers half of these.
    max_waiting: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// Requests that wait for their bodies on connections without an authenticated request, the oldest first.
    strangers: BTreeMap<u64, Waiter>,
    /// The same of other connections.
    known: BTreeMap<u64, Waiter>,
}

/// Dropped, it gives its place back and tells its request.
struct Waiter {
    place: RequestPlace,
    _displaced: oneshot::Sender<()>,
}

impl Places {
    /// `max_in_flight` places, half of them for requests that wait for their bodies.
    #[must_use]
    pub fn new(max_in_flight: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max_in_flight)),
            discards: Arc::new(Semaphore::new(max_in_flight)),
            max_waiting: max_in_flight.div_ceil(2),
            table: Mutex::default(),
        }
    }

    /// A place for a request, if one is free.
    pub(super) fn take(&self) -> Option<RequestPlace> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// A place for the rest of a refused request's body, if one is free.
    pub(super) fn for_a_discard(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.discards).try_acquire_owned().ok()
    }

    /// Has a body read. `None` where others needed the place before it came: too many waited, and this one for longest.
    pub(super) async fn keep_while<T>(
        &self,
        place: RequestPlace,
        is_stranger: bool,
        reading: impl Future<Output = T>,
    ) -> Option<(T, RequestPlace)> {
        let mut reading = pin!(reading);
        // Nearly every body comes with its head.
        if let Some(read) = reading.as_mut().now_or_never() {
            return Some((read, place));
        }
        let mut waiting = self.wait(place, is_stranger);
        tokio::select! {
            biased;
            read = reading => waiting.over().map(|place| (read, place)),
            _ = &mut waiting.displaced => None,
        }
    }

    fn wait(&self, place: RequestPlace, is_stranger: bool) -> Waiting<'_> {
        let (sender, displaced) = oneshot::channel();
        let mut table = self.lock();
        let id = table.next_id;
        table.next_id += 1;
        table.make_room(is_stranger, self.max_waiting);
        table.of(is_stranger).insert(id, Waiter { place, _displaced: sender });
        Waiting { places: self, id, is_stranger, displaced }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn of(&mut self, is_stranger: bool) -> &mut BTreeMap<u64, Waiter> {
        if is_stranger { &mut self.strangers } else { &mut self.known }
    }

    /// The oldest goes; of strangers, where these would be too many.
    fn make_room(&mut self, for_stranger: bool, max_waiting: usize) {
        if for_stranger && self.strangers.len() >= max_waiting.div_ceil(2) {
            self.strangers.pop_first();
        } else if self.strangers.len() + self.known.len() >= max_waiting {
            let is_stranger = match (self.strangers.first_key_value(), self.known.first_key_value()) {
                (Some((stranger, _)), Some((known, _))) => stranger < known,
                (stranger, _) => stranger.is_some(),
            };
            self.of(is_stranger).pop_first();
        }
    }
}

/// A request that waits for its body.
struct Waiting<'a> {
    places: &'a Places,
    id: u64,
    is_stranger: bool,
    displaced: oneshot::Receiver<()>,
}

impl Waiting<'_> {
    /// Takes the place back, if it is still there.
    fn over(&self) -> Option<RequestPlace> {
        let waiter = self.places.lock().of(self.is_stranger).remove(&self.id);
        waiter.map(|waiter| waiter.place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        drop(self.over());
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::Pin;

    use super::*;

    type Body<'a> = Pin<Box<dyn Future<Output = Option<((), RequestPlace)>> + 'a>>;

    /// A request that begins to wait for a body that never comes.
    fn begin(places: &Places, is_stranger: bool) -> Body<'_> {
        let place = places.take().expect("a place is free");
        let mut body: Body<'_> = Box::pin(places.keep_while(place, is_stranger, pending()));
        assert!(body.as_mut().now_or_never().is_none());
        body
    }

    fn is_displaced(body: &mut Body<'_>) -> bool {
        body.as_mut().now_or_never().is_some_and(|end| end.is_none())
    }

    fn free(places: &Places) -> usize {
        places.free.available_permits()
    }

    #[test]
    fn strangers_have_a_quarter_and_the_oldest_of_them_goes() {
        let places = Places::new(8);
        let mut known = begin(&places, false);
        let mut strangers: Vec<_> = (0..5).map(|_| begin(&places, true)).collect();
        let displaced: Vec<_> = strangers.iter_mut().map(is_displaced).collect();
        assert_eq!(displaced, [true, true, true, false, false]);
        assert!(!is_displaced(&mut known));
        assert_eq!(free(&places), 5);
    }

    #[test]
    fn half_of_the_places_are_never_held_by_requests_that_wait() {
        let places = Places::new(8);
        let mut stranger = begin(&places, true);
        let mut known: Vec<_> = (0..6).map(|_| begin(&places, false)).collect();
        // At once, and not only when the displaced have noticed.
        assert_eq!(free(&places), 4);
        assert!(is_displaced(&mut stranger));
        let displaced: Vec<_> = known.iter_mut().map(is_displaced).collect();
        assert_eq!(displaced, [true, true, false, false, false, false]);
        drop((stranger, known));
        assert_eq!(free(&places), 8);
    }

    #[test]
    fn a_body_that_is_there_waits_for_nothing() {
        let places = Places::new(1);
        let place = places.take().unwrap();
        let kept = places.keep_while(place, true, ready(7)).now_or_never().flatten();
        assert!(kept.is_some_and(|(read, _)| read == 7));
        assert_eq!(free(&places), 1);
    }
}
