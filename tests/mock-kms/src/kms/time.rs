//! Instants as the KMS API shows them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const MS_PER_SEC: i64 = 1000;
const MS_PER_DAY: i64 = 86_400_000;

/// Milliseconds since 1970 on this KMS's clock, which tests may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp {
    /// Milliseconds since 1970.
    pub unix_ms: i64,
}

impl Timestamp {
    /// The machine's time, `ahead_secs` later.
    #[must_use]
    pub fn of(machine: SystemTime, ahead_secs: i64) -> Self {
        let since_1970 = machine.duration_since(UNIX_EPOCH).unwrap_or_default();
        let machine_ms = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        Self { unix_ms: machine_ms.saturating_add(ahead_secs.saturating_mul(MS_PER_SEC)) }
    }

    /// So many days later.
    #[must_use]
    pub const fn plus_days(self, days: i64) -> Self {
        Self { unix_ms: self.unix_ms.saturating_add(days.saturating_mul(MS_PER_DAY)) }
    }

    /// Milliseconds from `earlier` until this.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> i64 {
        self.unix_ms.saturating_sub(earlier.unix_ms)
    }

    /// Seconds from `earlier` until this.
    #[must_use]
    pub const fn secs_since(self, earlier: Self) -> i64 {
        self.ms_since(earlier) / MS_PER_SEC
    }

    /// As AWS JSON shows it: seconds since 1970 with a fraction.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "exact for the next 285,000 years")]
    pub fn as_epoch_secs(self) -> f64 {
        self.unix_ms as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_clock_can_be_ahead_and_behind() {
        let machine = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let now = Timestamp::of(machine, 0);
        assert!((now.as_epoch_secs() - 1_700_000_000.25).abs() < 1e-6);
        assert_eq!(Timestamp::of(machine, 60).secs_since(now), 60);
        assert_eq!(Timestamp::of(machine, -60).secs_since(now), -60);
        assert_eq!(now.plus_days(7).secs_since(now), 7 * 86_400);
        let beginning = Timestamp::of(machine, i64::MIN);
        assert_eq!(beginning.ms_since(now), i64::MIN);
        assert_eq!(now.ms_since(beginning), i64::MAX);
    }
}
