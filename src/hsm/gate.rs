//! Who is inside a module: C_Finalize may run only when nobody is, and what was had before it means nothing afterwards.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clock;

/// In the count of those inside: nobody else may enter.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// All have left, and whoever closed the door is at work.
const ALONE: usize = 1 << (usize::BITS - 2);
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

/// Why the door is shut to what is of some generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// For a while. What is of this generation may be as good as ever afterwards.
    Closed,
    /// Another generation has begun: it means nothing any more.
    Changed,
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

    /// Goes in with what is of that generation.
    pub(super) fn enter_with(&self, generation: Generation) -> Result<Inside<'_>, Shut> {
        // It cannot change while somebody is inside.
        let inside = self.enter();
        if self.generation() == generation { inside.ok_or(Shut::Closed) } else { Err(Shut::Changed) }
    }

    /// Goes in to give back what is of that generation, while whoever closed the door still waits as well; `None` where it
    /// means nothing any more, or is about to.
    pub(super) fn enter_to_give_back(&self, generation: Generation) -> Option<Inside<'_>> {
        let before = self.inside.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(self);
        (before & ALONE == 0 && self.generation() == generation).then_some(inside)
    }

    /// Lets nobody in, waits until all have left, and runs `work`; a new generation begins. `None` where somebody is still
    /// inside after `patience`: the door is open again.
    pub(super) fn alone<T>(&self, patience: Duration, work: impl FnOnce() -> T) -> Option<T> {
        let until: Instant = clock::now() + patience;
        self.inside.fetch_or(CLOSED, Ordering::AcqRel);
        let _open = Reopen(self);
        let is_alone = || {
            self.inside.compare_exchange(CLOSED, CLOSED | ALONE, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        while !is_alone() {
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
        self.0.inside.fetch_and(!(CLOSED | ALONE), Ordering::AcqRel);
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
        assert!(gate.enter_with(before).is_ok());
        gate.alone(NO_PATIENCE, || ()).unwrap();
        assert_eq!(gate.enter_with(before).err(), Some(Shut::Changed));
        assert!(gate.enter_to_give_back(before).is_none());
        assert!(gate.enter_with(gate.generation()).is_ok());
        assert!(gate.enter_to_give_back(gate.generation()).is_some());
    }

    #[test]
    fn a_door_that_was_closed_in_vain_takes_nothing_away() {
        let gate = Gate::default();
        let generation = gate.generation();
        std::thread::scope(|scope| {
            let inside = gate.enter().unwrap();
            let (done, is_done) = std::sync::mpsc::channel::<()>();
            let gate = &gate;
            let alone = scope.spawn(move || gate.alone(Duration::from_secs(60), || is_done.recv()));
            while gate.enter().is_some() {
                std::thread::yield_now();
            }
            assert_eq!(gate.enter_with(generation).err(), Some(Shut::Closed));
            // Whoever is inside keeps the module as it is: others may close their sessions too.
            assert!(gate.enter_to_give_back(generation).is_some());
            drop(inside);
            while gate.enter_to_give_back(generation).is_some() {
                std::thread::yield_now();
            }
            assert_eq!(gate.enter_with(generation).err(), Some(Shut::Closed), "not yet another");
            drop(done);
            assert!(alone.join().unwrap().is_some());
        });
        let _inside = gate.enter().unwrap();
        assert!(gate.alone(NO_PATIENCE, || ()).is_none());
        assert_eq!(gate.enter_with(generation).err(), Some(Shut::Changed));
        assert!(gate.enter_with(gate.generation()).is_ok());
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
