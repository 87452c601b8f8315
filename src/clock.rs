//! The only place that reads a clock, and the one instant that bounds a request.

use std::time::{Duration, Instant, SystemTime};

/// The monotonic time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, for comparing with what clients and certificates say.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The instant by which a request is answered, or has failed. Queue, HSM calls, retries and the decrypt that an
/// integrity value costs all share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `timeout` after `start`.
    #[must_use]
    pub fn after(start: Instant, timeout: Duration) -> Self {
        Self(start + timeout)
    }

    /// The instant itself.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Whether it is over.
    #[must_use]
    pub fn has_passed(self) -> bool {
        now() >= self.0
    }
}
