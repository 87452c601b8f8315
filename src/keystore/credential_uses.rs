//! When each credential of a store was last used: what an operator wants to know before removing one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::IntGauge;

use crate::metrics::Metrics;

/// When the credentials of one store were last used, in seconds since 1970; 0 for never since the process began.
///
/// The metric holds the time: a reload that keeps a credential keeps it.
pub struct CredentialUses {
    store: Arc<str>,
    metrics: Arc<Metrics>,
    last: HashMap<Box<str>, IntGauge>,
}

impl CredentialUses {
    /// Of a store with the access key ids given.
    #[must_use]
    pub fn new<'a>(store: &Arc<str>, ids: impl Iterator<Item = &'a str>, metrics: &Arc<Metrics>) -> Self {
        let gauge = |id: &str| metrics.credential_last_used.with_label_values(&[&**store, id]);
        let last = ids.map(|id| (id.into(), gauge(id))).collect();
        Self { store: Arc::clone(store), metrics: Arc::clone(metrics), last }
    }

    /// A request of the credential was authenticated.
    pub fn note(&self, access_key_id: &str, now: SystemTime) {
        let Some(last) = self.last.get(access_key_id) else { return };
        let secs = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let secs = i64::try_from(secs).unwrap_or(i64::MAX);
        let before = last.get();
        if before != secs {
            last.set(secs);
        }
        if before == 0 {
            tracing::info!(store = %self.store, access_key_id, "first use of a credential since it is known here");
        }
    }

    /// Says of each credential when it was last used; those that `successor` lacks are forgotten.
    pub fn hand_over(&self, successor: Option<&Self>) {
        let is_kept = |id: &str| successor.is_some_and(|uses| uses.last.contains_key(id));
        let is_same = successor.is_some_and(|uses| uses.last.len() == self.last.len());
        if is_same && self.last.keys().all(|id| is_kept(id)) {
            return;
        }
        for (access_key_id, last) in &self.last {
            let last_used_unix_secs = Some(last.get()).filter(|secs| *secs > 0);
            let is_kept = is_kept(access_key_id);
            tracing::info!(
                store = %self.store, %access_key_id, last_used_unix_secs, is_kept,
                "the credentials of the store change: last use of one until now"
            );
            if !is_kept {
                // Fails where it is not there, which is as good.
                let _ = self.metrics.credential_last_used.remove_label_values(&[&*self.store, access_key_id]);
            }
        }
    }
}
