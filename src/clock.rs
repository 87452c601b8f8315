//! The only place that reads a clock, and the one instant that bounds a request.

use std::time::{Duration, Instant, SystemTime};

/// The monotonic time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Microseconds of the system's monotonic clock (CLOCK_MONOTONIC), which is one for all processes.
#[must_use]
pub fn monotonic_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (secs, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    secs.saturating_mul(1_000_000).saturating_add(nanos / 1000)
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
