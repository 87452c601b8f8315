//! When each credential of a store was last used: what an operator wants to know before removing one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::IntGauge;

use crate::metrics::Metrics;
use crate::sigv4::Authenticated;

/// When the credentials of one store were last used, in seconds since 1970; 0 for never since the process began.
///
/// The metric holds the time: a reload that keeps a credential keeps it.
pub struct CredentialUses {
    store: Arc<str>,
    metrics: Arc<Metrics>,
    created: HashMap<Box<str>, Option<i64>>,
    /// Nothing while no request can see them: a configuration may yet be refused.
    shown: OnceLock<Shown>,
}

/// The metrics of credentials that are served.
struct Shown {
    last: HashMap<Box<str>, IntGauge>,
    clock_skew_seconds: IntGauge,
}

impl CredentialUses {
    /// Of a store with the access key ids given, each with when its credential was made, in seconds since 1970.
    #[must_use]
    pub fn new<'a>(
        store: &Arc<str>,
        ages: impl Iterator<Item = (&'a str, Option<i64>)>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let created = ages.map(|(id, created)| (id.into(), created)).collect();
        Self { store: Arc::clone(store), metrics: Arc::clone(metrics), created, shown: OnceLock::new() }
    }

    /// The credentials are served from now on: their metrics begin, or go on as another configuration left them.
    pub fn begin(&self) {
        let show = |id: &str, created: Option<i64>| {
            let labels = [&*self.store, id];
            match created {
                Some(created) => self.metrics.credential_created.with_label_values(&labels).set(created),
                // Fails where it is not there, which is as good.
                None => drop(self.metrics.credential_created.remove_label_values(&labels)),
            }
            self.metrics.credential_last_used.with_label_values(&labels)
        };
        self.shown.get_or_init(|| Shown {
            last: self.created.iter().map(|(id, created)| (id.clone(), show(id, *created))).collect(),
            clock_skew_seconds: self.metrics.clock_skew_seconds.with_label_values(&[&*self.store]),
        });
    }

    /// A request was authenticated.
    pub fn note(&self, request: &Authenticated, now: SystemTime) {
        let access_key_id = &*request.access_key_id;
        let Some(Shown { last, clock_skew_seconds }) = self.shown.get() else { return };
        if clock_skew_seconds.get() != request.skew_secs {
            clock_skew_seconds.set(request.skew_secs);
        }
        let Some(last) = last.get(access_key_id) else { return };
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
        let is_kept = |id: &str| successor.is_some_and(|uses| uses.created.contains_key(id));
        let is_same = successor.is_some_and(|uses| uses.created.len() == self.created.len());
        if is_same && self.created.keys().all(|id| is_kept(id)) {
            return;
        }
        for (access_key_id, last) in self.shown.get().into_iter().flat_map(|shown| &shown.last) {
            let last_used_unix_secs = Some(last.get()).filter(|secs| *secs > 0);
            let is_kept = is_kept(access_key_id);
            tracing::info!(
                store = %self.store, %access_key_id, last_used_unix_secs, is_kept,
                "the credentials of the store change: last use of one until now"
            );
            if !is_kept {
                // Fails where it is not there, which is as good.
                let labels = [&*self.store, access_key_id];
                let _ = self.metrics.credential_last_used.remove_label_values(&labels);
                let _ = self.metrics.credential_created.remove_label_values(&labels);
            }
        }
    }
}
