//! The request quota of a custom key store.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Exception, KmsError};

/// Cryptographic requests a second that a store takes unless AWS raises its quota.
pub const DEFAULT_REQUESTS_PER_SECOND: u32 = 1800;

/// Counts the requests of each store: a bucket that holds one second's worth and fills up evenly.
#[derive(Debug)]
pub struct Quota {
    requests_per_second: f64,
    buckets: BTreeMap<String, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Quota {
    /// A quota for every store.
    #[must_use]
    pub fn new(requests_per_second: u32) -> Self {
        Self { requests_per_second: f64::from(requests_per_second), buckets: BTreeMap::new() }
    }

    /// Counts one request at `now`.
    ///
    /// # Errors
    /// `ThrottlingException` when the store has had its share.
    pub fn take(&mut self, store_id: &str, now: Instant) -> Result<(), KmsError> {
        let full = self.requests_per_second;
        let bucket = self.buckets.entry(store_id.to_owned()).or_insert(Bucket { left: full, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * full;
        bucket.left = (bucket.left + gained).min(full);
        bucket.at = bucket.at.max(now);
        if bucket.left < 1.0 {
            let message =
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
            return Err(KmsError::new(Exception::ThrottlingException, message));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_store_has_its_share_each_second() {
        let mut quota = Quota::new(DEFAULT_REQUESTS_PER_SECOND);
        let start = Instant::now();
        for _ in 0..1800 {
            quota.take("cks-1", start).unwrap();
        }
        let refused = quota.take("cks-1", start).unwrap_err();
        assert_eq!(refused.exception, Exception::ThrottlingException);
        assert!(quota.take("cks-2", start).is_ok());
        let half_a_second_later = start + Duration::from_millis(500);
        let granted = (0..1800).filter(|_| quota.take("cks-1", half_a_second_later).is_ok()).count();
        assert!((899..=901).contains(&granted), "{granted}");
        assert!(quota.take("cks-1", half_a_second_later).is_err());
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..5000).filter(|_| quota.take("cks-1", much_later).is_ok()).count(), 1800);
    }
}
