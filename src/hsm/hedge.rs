//! When a second token is asked though the first has not failed.

use crate::clock::{self, Deadline};
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests for each that may be hedged: 5 %.
const REQUESTS_PER_HEDGE: u32 = 20;
/// Most hedges saved up.
const MAX_SAVED: u32 = 10;

/// How several tokens share the work of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgeSettings {
    /// Share of the time left until the deadline, in percent, after which a second token is asked.
    pub after_percent: u32,
    /// Whether a second token is asked though the first has only not answered yet. One that brings nothing back at all, or
    /// fails, is never waited for.
    pub hedges: bool,
}

/// Pays for hedges out of requests that needed none.
pub(super) struct Hedging {
    settings: HedgeSettings,
    /// Requests saved up.
    credit: AtomicU32,
}

impl Hedging {
    pub(super) fn new(settings: HedgeSettings) -> Self {
        Self { settings, credit: AtomicU32::new(REQUESTS_PER_HEDGE) }
    }

    /// Whether these are the settings.
    pub(super) fn is_by(&self, settings: HedgeSettings) -> bool {
        self.settings == settings
    }

    /// A request was served, and pays in. One that was not does not: tokens that are overloaded are not loaded more.
    pub(super) fn note_served(&self) {
        let saved = self.credit.load(Ordering::Relaxed);
        if saved < MAX_SAVED * REQUESTS_PER_HEDGE {
            self.credit.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long one token is waited for while another could be asked.
    pub(super) fn patience(&self, deadline: Deadline) -> Deadline {
        let now = clock::now();
        let left = deadline.instant().saturating_duration_since(now);
        Deadline::after(now, left * self.settings.after_percent.min(100) / 100)
    }

    /// Pays for a hedge; false where there were too many.
    pub(super) fn pay(&self) -> bool {
        if !self.settings.hedges {
            return false;
        }
        let pay = |credit: u32| credit.checked_sub(REQUESTS_PER_HEDGE);
        self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_request_in_twenty_is_hedged_at_most() {
        let hedging = Hedging::new(HedgeSettings { after_percent: 40, hedges: true });
        let hedged = (0..2000).filter(|_| {
            hedging.note_served();
            hedging.pay()
        });
        let hedged = hedged.count();
        assert!((100..=101).contains(&hedged), "{hedged}");
        for _ in 0..10_000 {
            hedging.note_served();
        }
        assert_eq!((0..100).filter(|_| hedging.pay()).count(), 10, "a calm hour pays for no storm");
    }

    #[test]
    fn none_is_hedged_where_that_is_switched_off() {
        let hedging = Hedging::new(HedgeSettings { after_percent: 40, hedges: false });
        assert!(!hedging.pay());
    }

    #[test]
    fn the_second_is_asked_in_time_to_answer() {
        let hedging = Hedging::new(HedgeSettings { after_percent: 40, hedges: true });
        let now = clock::now();
        let at = hedging.patience(Deadline::after(now, Duration::from_millis(200)));
        let after = at.instant() - now;
        assert!(after > Duration::from_millis(70) && after <= Duration::from_millis(81), "{after:?}");
    }
}
