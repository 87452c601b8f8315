//! Searches for keys that the index lacks: one at a time for each key, however many ask, and what was not found is not
//! searched again for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::keys::KeyEntry;
use super::{HsmError, KeyLocator};
use crate::clock;

/// Misses remembered.
const MAX_MISSES: usize = 1024;

/// What a search ends with.
pub(super) type Found = Result<Arc<KeyEntry>, HsmError>;

/// Who waits for which search, and what was missed when.
pub(super) struct Searches {
    waiting: Mutex<HashMap<KeyLocator, Vec<oneshot::Sender<Found>>>>,
    misses: Mutex<HashMap<KeyLocator, Instant>>,
    miss_memory: Duration,
}

impl Searches {
    /// No search yet; a miss is remembered for `miss_memory`.
    pub(super) fn new(miss_memory: Duration) -> Self {
        Self { waiting: Mutex::default(), misses: Mutex::default(), miss_memory }
    }

    /// Waits for the search of a key; true where none is under way, so that it must be begun.
    pub(super) fn join(&self, locator: &KeyLocator) -> (oneshot::Receiver<Found>, bool) {
        let (reply, answer) = oneshot::channel();
        let mut searches = lock(&self.waiting);
        let is_first = !searches.contains_key(locator);
        let waiting = searches.entry(locator.clone()).or_default();
        waiting.retain(|reply| !reply.is_closed());
        waiting.push(reply);
        (answer, is_first)
    }

    /// Whether anybody still waits for a search; where nobody does, it is off.
    pub(super) fn is_awaited(&self, locator: &KeyLocator) -> bool {
        let mut searches = lock(&self.waiting);
        let is_awaited =
            searches.get(locator).is_some_and(|waiting| waiting.iter().any(|reply| !reply.is_closed()));
        if !is_awaited {
            searches.remove(locator);
        }
        is_awaited
    }

    /// Tells everybody who waits for a search how it ended.
    pub(super) fn end(&self, locator: &KeyLocator, found: &Found) {
        let waiting = lock(&self.waiting).remove(locator);
        for reply in waiting.into_iter().flatten() {
            // Whoever asked may have left by now.
            let _ = reply.send(found.clone());
        }
    }

    /// Ends all searches: who was to make them has been replaced.
    pub(super) fn end_all(&self, error: &HsmError) {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        for reply in waiting.into_values().flatten() {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Whether a search for the key ended in vain just now.
    pub(super) fn was_missed_just_now(&self, locator: &KeyLocator) -> bool {
        lock(&self.misses).get(locator).is_some_and(|at| at.elapsed() < self.miss_memory)
    }

    /// Remembers that the key is not there.
    pub(super) fn remember_miss(&self, locator: &KeyLocator) {
        let mut misses = lock(&self.misses);
        if misses.len() >= MAX_MISSES {
            misses.retain(|_, at| at.elapsed() < self.miss_memory);
        }
        if misses.len() < MAX_MISSES {
            misses.insert(locator.clone(), clock::now());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_of_a_keeper_that_was_replaced_is_begun_anew() {
        let searches = Searches::new(Duration::ZERO);
        let key = KeyLocator::Label("a".into());
        let (mut answer, is_first) = searches.join(&key);
        assert!(is_first);
        for _ in 0..100 {
            assert!(!searches.join(&key).1, "one is under way");
        }
        assert!(lock(&searches.waiting)[&key].len() <= 2, "nobody waits for those that have left");
        searches.end_all(&HsmError::Worker);
        assert!(matches!(answer.try_recv(), Ok(Err(HsmError::Worker))));
        assert!(searches.join(&key).1);
    }
}
