//! A circuit breaker: a token that fails again and again is asked no more, until a health probe of its own succeeds.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Failures in a row that open the breaker.
const MAX_FAILURES: u32 = 5;

/// Opened by requests that fail, closed by a probe that succeeds: no request is the guinea pig.
#[derive(Default)]
pub(super) struct Breaker {
    failures: AtomicU32,
    is_open: AtomicBool,
}

impl Breaker {
    /// A request was served.
    pub(super) fn note_success(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A request failed for the token's fault; true where that opens the breaker.
    pub(super) fn note_failure(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES && self.open()
    }

    /// Opens the breaker; true where it was closed.
    pub(super) fn open(&self) -> bool {
        !self.is_open.swap(true, Ordering::AcqRel)
    }

    /// Closes the breaker; true where it was open.
    pub(super) fn close(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.is_open.swap(false, Ordering::AcqRel)
    }

    /// Whether as many requests in a row as open it were the last ones to end, be it open or not.
    pub(super) fn fails(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= MAX_FAILURES
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let breaker = Breaker::default();
        for _ in 0..10 * MAX_FAILURES {
            assert!(!breaker.note_failure());
            breaker.note_success();
        }
        let opened: Vec<_> = (0..2 * MAX_FAILURES).map(|_| breaker.note_failure()).collect();
        assert_eq!(opened.iter().filter(|opened| **opened).count(), 1, "told once");
        assert!(breaker.fails());
        breaker.note_success();
        assert!(breaker.is_open(), "a straggler does not close it");
        assert!(!breaker.fails(), "though it was served");
        assert!(breaker.close() && !breaker.is_open() && !breaker.close());
    }
}
