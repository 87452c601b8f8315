//! How long the calls of a token take of late: by this a call that hangs is told from one of a token that is slow.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clock::{self, Deadline};

/// Calls that are remembered.
const REMEMBERED: usize = 8;
/// A call that takes so many times what calls took of late is taken to hang.
const HANG_FACTOR: u32 = 3;
/// None is before it has taken this long.
const LEAST_HANG: Duration = Duration::from_millis(60);
/// The least that a call may be expected to take, answer included.
const LEAST_CALL: Duration = Duration::from_millis(1);

/// The times of the last calls that came back before they were given up. Those that came back later say nothing of what a
/// call takes: they may have hung.
#[derive(Default)]
pub(super) struct Pace {
    /// Microseconds and one more, 0 where none is remembered yet.
    last: [AtomicU64; REMEMBERED],
    next: AtomicUsize,
}

impl Pace {
    /// A call came back in time.
    pub(super) fn note(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        let place = self.next.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        self.last[place].store(micros, Ordering::Relaxed);
    }

    /// What half of the last calls took at most; zero before the first.
    pub(super) fn typical(&self) -> Duration {
        let known = |place: &AtomicU64| place.load(Ordering::Relaxed).checked_sub(1);
        let mut times: Vec<_> = self.last.iter().filter_map(known).collect();
        times.sort_unstable();
        times.get(times.len() / 2).map_or(Duration::ZERO, |micros| Duration::from_micros(*micros))
    }

    /// How long a call may take before it is taken to hang.
    pub(super) fn hang_after(&self) -> Duration {
        (HANG_FACTOR * self.typical()).max(LEAST_HANG)
    }

    /// How long a token that brings nothing back may be given: half as long again as one call of it takes.
    pub(super) fn silence_after(&self) -> Duration {
        (self.typical() * 3 / 2).max(LEAST_HANG)
    }

    /// Whether a call that has waited since `queued_at` would come back after its deadline. Never where it has not waited
    /// for most of its time, so that what is typical is measured anew.
    pub(super) fn is_too_late(&self, queued_at: Instant, deadline: Deadline) -> bool {
        let left = deadline.instant().saturating_duration_since(clock::now());
        let had = deadline.instant().saturating_duration_since(queued_at);
        left < had / 2 && left < self.typical().max(LEAST_CALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn what_hangs_is_judged_by_what_calls_take() {
        let pace = Pace::default();
        assert_eq!((pace.typical(), pace.hang_after()), (Duration::ZERO, LEAST_HANG));
        pace.note(ms(1));
        assert_eq!((pace.typical(), pace.hang_after()), (ms(1), LEAST_HANG));
        // A few that were slow make no slow token.
        (0..3).for_each(|_| pace.note(ms(1)));
        (0..3).for_each(|_| pace.note(ms(150)));
        assert_eq!(pace.hang_after(), LEAST_HANG);
        (0..8).for_each(|_| pace.note(ms(100)));
        assert_eq!((pace.typical(), pace.hang_after(), pace.silence_after()), (ms(100), ms(300), ms(150)));
        (0..5).for_each(|_| pace.note(ms(1)));
        assert_eq!(pace.typical(), ms(1), "what was is forgotten");
    }

    #[test]
    fn a_call_that_cannot_come_back_in_time_is_too_late() {
        let pace = Pace::default();
        (0..8).for_each(|_| pace.note(ms(10_000)));
        let now = clock::now();
        let (before, soon) = (now - ms(20_000), Deadline::after(now, ms(5_000)));
        assert!(pace.is_too_late(before, soon));
        assert!(!pace.is_too_late(now, soon), "it has not waited: it may show that calls have become faster");
        assert!(!pace.is_too_late(before, Deadline::after(now, ms(60_000))), "there is time enough");
        assert!(!Pace::default().is_too_late(before, soon), "nothing is known of a new token");
    }
}
