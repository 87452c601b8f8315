//! What happened lately, for people who look: the last calls, and totals of each store since the start.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use xks_spec::Operation;
use xks_spec::response::GetHealthStatusResponse;

use super::Timestamp;
use crate::xks::{Certificate, Report};

/// Calls that are remembered.
pub const MAX_ENTRIES: usize = 500;
/// Upper bounds of the latency classes, in milliseconds; one more class has no bound.
pub const LATENCY_BOUNDS_MS: [u32; 9] = [5, 10, 25, 50, 100, 150, 200, 250, 500];

/// One KMS call, or one periodic health check.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counts calls from one on.
    pub number: u64,
    /// When it ended.
    pub at: Timestamp,
    /// KMS operation, or `KmsHealthCheck`.
    pub kms_operation: String,
    /// `x-amzn-RequestId`, and `kmsRequestId` at the proxy.
    pub request_id: String,
    /// Principal; empty for what KMS does by itself.
    pub caller: String,
    /// Exception and message, where it failed.
    pub failure: Option<(String, Option<String>)>,
    /// How long it took.
    pub duration: Duration,
    /// Calls to proxies that it made.
    pub proxy_calls: Vec<ProxyCall>,
    /// The layers of encryption, from the outside of the request to the outside of the answer.
    pub layers: Vec<Layer>,
}

/// One call to a proxy.
#[derive(Clone, Debug)]
pub struct ProxyCall {
    /// Id of the store.
    pub store_id: String,
    /// XKS operation.
    pub operation: Operation,
    /// What went wrong.
    pub failure: Option<ProxyFailure>,
    /// Tries and times.
    pub report: Report,
}

/// Why a call to a proxy failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyFailure {
    /// A short name, such as an `errorName`, `TimedOut` or `MalformedResponse`.
    pub kind: &'static str,
    /// Whether KMS counts it among the retryable errors.
    pub is_retryable: bool,
    /// The whole story.
    pub text: String,
}

/// One text of bytes on its way through the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub name: &'static str,
    /// Its length.
    pub bytes: usize,
    /// Its first bytes, of ciphertext only.
    pub start: Vec<u8>,
}

impl Layer {
    /// A text that nobody but the caller may see.
    #[must_use]
    pub const fn secret(name: &'static str, bytes: usize) -> Self {
        Self { name, bytes, start: Vec::new() }
    }

    /// A ciphertext.
    #[must_use]
    pub fn ciphertext(name: &'static str, bytes: &[u8]) -> Self {
        Self { name, bytes: bytes.len(), start: bytes.iter().take(16).copied().collect() }
    }
}

/// What one store's proxy did since the start.
#[derive(Clone, Debug, Default)]
pub struct StoreTotals {
    /// Calls.
    pub calls: u64,
    /// Calls that failed, by kind and whether a retry may help.
    pub errors: BTreeMap<(&'static str, bool), u64>,
    /// Calls refused for the store's quota; none of them reached the proxy.
    pub throttled: u64,
    /// Calls in each class of [`LATENCY_BOUNDS_MS`], and above.
    pub latency: [u64; LATENCY_BOUNDS_MS.len() + 1],
    /// Sum of all latencies.
    pub latency_sum: Duration,
    /// The answer to the last health check, and when it came; none where that failed, or the store is disconnected.
    pub health: Option<(Timestamp, GetHealthStatusResponse)>,
    /// The certificate that the proxy showed last.
    pub certificate: Option<Arc<Certificate>>,
}

/// The last calls and the totals.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    count: u64,
    entries: VecDeque<Entry>,
    totals: BTreeMap<String, StoreTotals>,
}

impl Journal {
    /// Remembers a call; its number is set here.
    pub fn record(&self, mut entry: Entry) {
        let mut inner = self.lock();
        inner.count += 1;
        entry.number = inner.count;
        for call in &entry.proxy_calls {
            inner.totals.entry(call.store_id.clone()).or_default().add(call);
        }
        if inner.entries.len() == MAX_ENTRIES {
            inner.entries.pop_front();
        }
        inner.entries.push_back(entry);
    }

    /// Counts a call that the store's quota refused.
    pub fn count_throttled(&self, store_id: &str) {
        self.lock().totals.entry(store_id.to_owned()).or_default().throttled += 1;
    }

    /// Remembers a good answer to a health check.
    pub fn note_health(&self, store_id: &str, at: Timestamp, health: GetHealthStatusResponse) {
        self.lock().totals.entry(store_id.to_owned()).or_default().health = Some((at, health));
    }

    /// Forgets what the last good answer said, since nobody knows whether it is still so.
    pub fn forget_health(&self, store_id: &str) {
        if let Some(totals) = self.lock().totals.get_mut(store_id) {
            totals.health = None;
        }
    }

    /// The last calls, the latest first.
    #[must_use]
    pub fn latest(&self, limit: usize) -> Vec<Entry> {
        self.lock().entries.iter().rev().take(limit).cloned().collect()
    }

    /// The totals of each store that was ever called, by store id: of deleted ones too.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, StoreTotals> {
        self.lock().totals.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreTotals {
    fn add(&mut self, call: &ProxyCall) {
        self.calls += 1;
        let duration = call.report.total;
        let class =
            LATENCY_BOUNDS_MS.iter().position(|bound| duration <= Duration::from_millis(u64::from(*bound)));
        self.latency[class.unwrap_or(LATENCY_BOUNDS_MS.len())] += 1;
        self.latency_sum += duration;
        if let Some(failure) = &call.failure {
            *self.errors.entry((failure.kind, failure.is_retryable)).or_default() += 1;
        }
        if let Some(certificate) = &call.report.certificate {
            self.certificate = Some(Arc::clone(certificate));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(total_ms: u64, failure: Option<ProxyFailure>) -> Entry {
        let report = Report { total: Duration::from_millis(total_ms), tries: 1, ..Report::default() };
        Entry {
            number: 0,
            at: Timestamp { unix_ms: 0 },
            kms_operation: "Encrypt".to_owned(),
            request_id: String::new(),
            caller: String::new(),
            failure: None,
            duration: report.total,
            proxy_calls: vec![ProxyCall {
                store_id: "cks-1".to_owned(),
                operation: Operation::Encrypt,
                failure,
                report,
            }],
            layers: Vec::new(),
        }
    }

    #[test]
    fn the_last_calls_are_kept_and_all_are_counted() {
        let journal = Journal::default();
        for turn in 0..=MAX_ENTRIES {
            let failure = (turn % 2 == 0).then(|| ProxyFailure {
                kind: "TimedOut",
                is_retryable: true,
                text: String::new(),
            });
            journal.record(entry(if turn == 0 { 900 } else { 7 }, failure));
        }
        let latest = journal.latest(usize::MAX);
        assert_eq!(latest.len(), MAX_ENTRIES);
        assert_eq!(latest[0].number, MAX_ENTRIES as u64 + 1);
        let totals = &journal.totals()["cks-1"];
        assert_eq!(totals.calls, MAX_ENTRIES as u64 + 1);
        assert_eq!(totals.errors[&("TimedOut", true)], MAX_ENTRIES as u64 / 2 + 1);
        assert_eq!(totals.latency[1], MAX_ENTRIES as u64);
        assert_eq!(totals.latency[LATENCY_BOUNDS_MS.len()], 1);
    }
}
