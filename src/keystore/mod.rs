//! Key stores: path prefix → store → external key → key version.

mod credential_uses;
mod keys;
mod latest;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use xks_spec::UriPathPrefix;

pub use credential_uses::CredentialUses;
pub use keys::{ExternalKey, FIRST_VERSION, KeyMap, KeyRule, KeyVersion, VERSION_MARK, VersionState};
pub use latest::LatestKeys;

use crate::hsm::Hsm;
use crate::iv_budget::StoreIvCounts;
use crate::policy::Policies;
use crate::sigv4::Credentials;

/// Requests a second and burst of GetHealthStatus, which KMS calls every few minutes: apart from the store's own
/// quota, so that a flood of encryptions cannot make a store look dead.
const HEALTH_REQUESTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// All key stores of this proxy.
#[derive(Default)]
pub struct KeyStores {
    by_prefix: HashMap<UriPathPrefix, Arc<KeyStore>>,
}

impl KeyStores {
    /// The stores by their prefixes; the configuration has seen to it that no two are the same.
    #[must_use]
    pub fn new(stores: impl IntoIterator<Item = KeyStore>) -> Self {
        Self { by_prefix: stores.into_iter().map(|store| (store.prefix.clone(), Arc::new(store))).collect() }
    }

    /// The store whose path prefix is exactly `prefix`.
    #[must_use]
    pub fn find(&self, prefix: &str) -> Option<&Arc<KeyStore>> {
        self.by_prefix.get(prefix)
    }

    /// The store of that name.
    #[must_use]
    pub fn of_name(&self, name: &str) -> Option<&Arc<KeyStore>> {
        self.iter().find(|store| *store.name == *name)
    }

    /// Every store.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeyStore>> {
        self.by_prefix.values()
    }
}

/// One key store: what KMS sees as a custom key store of its own.
pub struct KeyStore {
    /// Name in the configuration, logs and metrics.
    pub name: Arc<str>,
    /// The path prefix.
    pub prefix: UriPathPrefix,
    /// Whether its keys may be used.
    pub is_enabled: bool,
    /// Who may ask.
    pub credentials: Credentials,
    /// When they were last used.
    pub credential_uses: CredentialUses,
    /// What they may do beyond that, for whom; everything where there are none.
    pub policies: Option<Arc<Policies>>,
    /// Its keys.
    pub keys: Arc<KeyMap>,
    /// Which of them the configuration that holds now has switched on.
    pub latest: Arc<LatestKeys>,
    /// How what AWS's sample proxy encrypted is known, where this store is to decrypt it.
    pub aws_sample: Option<AwsSample>,
    /// Where they are.
    pub hsm: Arc<dyn Hsm>,
    /// How many initialization vectors its keys have drawn.
    pub iv_counts: Arc<StoreIvCounts>,
    /// How much may be asked.
    pub quota: Arc<StoreQuota>,
}

/// What AWS's sample proxy made and this store is to decrypt; nothing is ever encrypted so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsSample {
    /// The static ciphertext metadata that the sample was configured with, each value that it ever had; an empty one where
    /// it had none. None of them is ciphertext metadata of this proxy.
    pub ciphertext_metadata: Vec<Box<[u8]>>,
    /// The version of each key that the sample used.
    pub key_version: u32,
}

/// The request quota of a store.
#[derive(Debug)]
pub struct StoreQuota {
    per_second: NonZeroU32,
    burst: NonZeroU32,
    requests: DefaultDirectRateLimiter,
    health: DefaultDirectRateLimiter,
}

impl StoreQuota {
    /// `per_second` requests a second in the long run, `burst` at once.
    #[must_use]
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self {
            per_second,
            burst,
            requests: RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)),
            health: RateLimiter::direct(Quota::per_second(HEALTH_REQUESTS_PER_SECOND)),
        }
    }

    /// Whether it is a quota of so much.
    #[must_use]
    pub fn is_of(&self, per_second: NonZeroU32, burst: NonZeroU32) -> bool {
        (self.per_second, self.burst) == (per_second, burst)
    }

    /// Whether one more request is within the quota; counts it if so.
    #[must_use]
    pub fn admits(&self, is_health: bool) -> bool {
        // SPEC(URI-QUOTA-001): MAY have independent quotas on each path prefix.
        let bucket = if is_health { &self.health } else { &self.requests };
        bucket.check().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a bucket is empty before so many requests that no machine could refill it as fast as they come.
    fn runs_out(quota: &StoreQuota, is_health: bool) -> bool {
        (0..1_000_000).any(|_| !quota.admits(is_health))
    }

    #[test]
    fn health_and_the_rest_have_buckets_of_their_own() {
        let per_second = NonZeroU32::new(1).unwrap();
        let quota = StoreQuota::new(per_second, NonZeroU32::new(5).unwrap());
        assert!((0..5).all(|_| quota.admits(false)), "the burst is served");
        assert!(runs_out(&quota, false));
        assert!(quota.admits(true), "an empty store still says that it lives");
        let quota = StoreQuota::new(per_second, per_second);
        assert!(runs_out(&quota, true), "health is bounded too");
        assert!(quota.admits(false));
    }
}
