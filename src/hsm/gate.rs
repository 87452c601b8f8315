//! Who is inside a module: C_Finalize may run only when nobody is, and what was had before it means nothing afterwards.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clock;

/// In the count of those inside: nobody else may enter.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// How often is looked whether all have left.
const LOOK: Duration = Duration::from_millis(2);

/// Counts initialisations of a module: sessions, logins and handles of one mean nothing in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// The door of a module. Passing it costs two atomic additions.
#[derive(Default)]
pub(super) struct Gate {
    inside: AtomicUsize,
    generation: AtomicU64,
}

/// Somebody is inside the module, until this is dropped.
#[must_use]
pub(super) struct Inside<'g>(&'g Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Release);
    }
}

impl Gate {
    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Goes in, whichever generation it is; `None` while the door is closed.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        let before = self.inside.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(self);
        (before & CLOSED == 0).then_some(inside)
    }

    /// Goes in with what is of that generation; `None` where it means nothing any more.
    pub(super) fn enter_with(&self, generation: Generation) -> Option<Inside<'_>> {
        // It cannot change while somebody is inside.
        self.enter().filter(|_| self.generation() == generation)
    }

    /// Lets nobody in, waits until all have left, and runs `work`; a new generation begins. `None` where somebody is still
    /// inside after `patience`: the door is open again.
    pub(super) fn alone<T>(&self, patience: Duration, work: impl FnOnce() -> T) -> Option<T> {
        let until: Instant = clock::now() + patience;
        self.inside.fetch_or(CLOSED, Ordering::AcqRel);
        let _open = Reopen(self);
        while self.inside.load(Ordering::Acquire) != CLOSED {
            if clock::now() >= until {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        let done = work();
        self.generation.fetch_add(1, Ordering::AcqRel);
        Some(done)
    }
}

/// Opens the door, whatever happened behind it.
struct Reopen<'g>(&'g Gate);

impl Drop for Reopen<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_and(!CLOSED, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_PATIENCE: Duration = Duration::ZERO;

    #[test]
    fn nobody_is_inside_with_who_is_alone() {
        let gate = Gate::default();
        let first = gate.enter().unwrap();
        let second = gate.enter_with(gate.generation()).unwrap();
        assert!(gate.alone(NO_PATIENCE, || ()).is_none());
        drop(first);
        assert!(gate.alone(NO_PATIENCE, || ()).is_none());
        drop(second);
        assert!(gate.alone(NO_PATIENCE, || assert!(gate.enter().is_none())).is_some());
        assert!(gate.enter().is_some(), "the door is open again");
    }

    #[test]
    fn what_was_had_before_means_nothing_afterwards() {
        let gate = Gate::default();
        let before = gate.generation();
        assert!(gate.enter_with(before).is_some());
        gate.alone(NO_PATIENCE, || ()).unwrap();
        assert!(gate.enter_with(before).is_none());
        assert!(gate.enter_with(gate.generation()).is_some());
    }

    #[test]
    fn who_is_alone_waits_until_all_have_left() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let inside = gate.enter().unwrap();
            let alone = scope.spawn(|| gate.alone(Duration::from_secs(60), || ()));
            while gate.enter().is_some() {
                std::thread::yield_now();
            }
            assert!(!alone.is_finished());
            drop(inside);
            assert!(alone.join().unwrap().is_some());
        });
    }
}
