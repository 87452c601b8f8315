//! What is counted and measured. Every name, unit and label is in one file, the table.

mod declaration;
mod process;
mod table;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, TextEncoder};

pub use declaration::{Label, Row, Values};
pub(crate) use process::resident_bytes;
pub use table::{Metrics, TABLE};

/// The release.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, where the build says so.
const COMMIT: Option<&str> = option_env!("XKS_PROXY_COMMIT");
/// The store of requests that name none.
const NO_STORE: &str = "none";

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Fresh metrics in a registry of their own.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self::declare();
        metrics.begin(None);
        metrics.begin_store(NO_STORE);
        metrics.build_info.with_label_values(&[VERSION, COMMIT.unwrap_or("unknown")]).set(1);
        metrics.note_process_start();
        metrics
    }

    /// The configuration has this store: its counters begin at 0.
    pub fn begin_store(&self, store: &str) {
        self.begin(Some(("store", store)));
        for operation in table::OPERATIONS {
            for error in ["none", "abandoned"] {
                let _ = self.requests.with_label_values(&[operation, store, error]);
            }
        }
    }

    /// The configuration has no such store any more: what is shown of its state goes.
    pub fn forget_store(&self, store: &str) {
        self.forget(("store", store));
    }

    /// The configuration has no such token any more: what is shown of its state goes.
    pub fn forget_token(&self, token: &str) {
        self.forget(("token", token));
    }

    /// So many keys of each store are out of use on a token, and why: stores that share one are added up.
    pub fn show_keys_out(&self, of_stores: impl IntoIterator<Item = (Arc<str>, &'static str, usize)>) {
        let mut counts = HashMap::new();
        for (token, reason, count) in of_stores {
            *counts.entry((token, reason)).or_insert(0) += count;
        }
        for ((token, reason), count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.token_keys_out.with_label_values(&[&*token, reason]).set(count);
        }
    }

    /// All metrics in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.note_process();
        // INVARIANT: encoding into a String fails on nothing but malformed metric families, which the tests exclude.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// The handles of one token, so that the hot path looks up no labels.
#[derive(Clone, Debug)]
pub struct TokenMetrics {
    encrypt_seconds: prometheus::Histogram,
    decrypt_seconds: prometheus::Histogram,
    queue_seconds: prometheus::Histogram,
    failures: IntCounterVec,
    searches: IntCounterVec,
    token: Box<str>,
    /// 1 where the token is connected and logged in.
    pub connected: IntGauge,
    /// 0 unavailable, 1 degraded, 2 active.
    pub health: IntGauge,
    /// Jobs that wait for a session.
    pub queue_jobs: IntGauge,
    /// Sessions as configured.
    pub sessions: IntGauge,
    /// Sessions in a job.
    pub sessions_busy: IntGauge,
    /// Sessions stuck in a call.
    pub sessions_stalled: IntGauge,
    /// Threads that were replaced.
    pub threads_replaced: IntCounter,
    /// Helper processes that were started anew.
    pub helper_restarts: IntCounter,
    /// Memory of the helper process.
    pub helper_memory: IntGauge,
    /// Helper processes that had too much memory.
    pub helper_memory_kills: IntCounter,
    /// 1 where the token is asked no more.
    pub breaker_open: IntGauge,
    asked_second: IntCounterVec,
    retries: IntCounterVec,
}

impl TokenMetrics {
    /// The handles of the token of that name.
    #[must_use]
    pub fn new(metrics: &Metrics, token: &str) -> Self {
        metrics.begin(Some(("token", token)));
        Self {
            encrypt_seconds: metrics.hsm_call_seconds.with_label_values(&[token, "encrypt"]),
            decrypt_seconds: metrics.hsm_call_seconds.with_label_values(&[token, "decrypt"]),
            queue_seconds: metrics.hsm_queue_seconds.with_label_values(&[token]),
            failures: metrics.hsm_failures.clone(),
            searches: metrics.key_searches.clone(),
            connected: metrics.token_connected.with_label_values(&[token]),
            health: metrics.token_health.with_label_values(&[token]),
            queue_jobs: metrics.hsm_queue_jobs.with_label_values(&[token]),
            sessions: metrics.token_sessions.with_label_values(&[token]),
            sessions_busy: metrics.token_sessions_busy.with_label_values(&[token]),
            sessions_stalled: metrics.token_sessions_stalled.with_label_values(&[token]),
            threads_replaced: metrics.token_threads_replaced.with_label_values(&[token]),
            helper_restarts: metrics.token_helper_restarts.with_label_values(&[token]),
            helper_memory: metrics.token_helper_memory.with_label_values(&[token]),
            helper_memory_kills: metrics.token_helper_memory_kills.with_label_values(&[token]),
            breaker_open: metrics.token_breaker_open.with_label_values(&[token]),
            asked_second: metrics.token_second_attempts.clone(),
            retries: metrics.hsm_retries.clone(),
            token: token.into(),
        }
    }

    /// An AES-GCM encryption took so long.
    pub fn encrypted(&self, took: Duration) {
        self.encrypt_seconds.observe(took.as_secs_f64());
    }

    /// An AES-GCM decryption took so long.
    pub fn decrypted(&self, took: Duration) {
        self.decrypt_seconds.observe(took.as_secs_f64());
    }

    /// A job waited so long for a session.
    pub fn queued(&self, waited: Duration) {
        self.queue_seconds.observe(waited.as_secs_f64());
    }

    /// A PKCS#11 call failed.
    pub fn failed(&self, meaning: &str) {
        self.failures.with_label_values(&[&self.token, meaning]).inc();
    }

    /// A request came here after another token was asked.
    pub fn asked_second(&self, reason: &str) {
        self.asked_second.with_label_values(&[&self.token, reason]).inc();
    }

    /// A call is done once more on this token.
    pub fn retried(&self, reason: &str) {
        self.retries.with_label_values(&[&self.token, reason]).inc();
    }

    /// A key was searched in the token.
    pub fn searched(&self, outcome: &str) {
        self.searches.with_label_values(&[&self.token, outcome]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_says_what_it_is() {
        let names: std::collections::BTreeSet<_> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            assert!(row.name.starts_with("xks_") || row.name.starts_with("process_"), "{}", row.name);
            assert_eq!(row.kind == "counter", row.name.ends_with("_total"), "{}", row.name);
            assert_eq!(row.name.contains("_seconds"), row.unit.starts_with("seconds"), "{}", row.name);
            assert!(row.help.ends_with('.') && !row.unit.is_empty(), "{}", row.name);
        }
    }

    /// Prometheus sees the first event only where the series was there before.
    #[test]
    fn counters_begin_at_zero() {
        let metrics = Metrics::new();
        metrics.begin_store("a");
        let _token = TokenMetrics::new(&metrics, "main");
        let text = metrics.render();
        for series in [
            r#"xks_requests_total{error="none",operation="Decrypt",store="a"}"#,
            r#"xks_errors_total{kind="retryable",store="a"}"#,
            r#"xks_throttled_total{reason="token",store="none"}"#,
            r#"xks_authentication_failures_total{reason="clock_skew"}"#,
            r#"xks_hsm_failures_total{meaning="token_lost",token="main"}"#,
            r#"xks_hsm_retries_total{reason="doubtful_tag",token="main"}"#,
            r#"xks_integrity_failures_total{store="a"}"#,
            r#"xks_config_reloads_total{outcome="faulty"}"#,
            "xks_audit_records_lost_total",
        ] {
            assert!(text.contains(&format!("\n{series} 0\n")), "{series}\n{text}");
        }
        assert!(text.contains("\nxks_build_info{commit="), "{text}");
    }

    #[test]
    fn what_is_gone_is_shown_no_more() {
        let metrics = Metrics::new();
        let _token = TokenMetrics::new(&metrics, "main");
        metrics.show_keys_out([("main".into(), "missing", 3)]);
        metrics.keys_unresolved.with_label_values(&["a"]).set(1);
        metrics.forget_token("main");
        metrics.forget_store("a");
        let text = metrics.render();
        for name in ["xks_token_connected", "xks_token_keys_out", "xks_token_sessions", "xks_keys_unresolved"]
        {
            assert!(!text.contains(&format!("\n{name}{{")), "{name}\n{text}");
        }
        assert!(
            text.contains("xks_token_second_attempts_total{reason=\"hung\",token=\"main\"} 0"),
            "counters stay\n{text}"
        );
    }

    #[test]
    fn the_process_shows_itself() {
        let text = Metrics::new().render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_default().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_start_time_seconds") > 1.7e9, "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0, "{text}");
    }

    #[test]
    fn every_metric_renders() {
        let metrics = Metrics::new();
        metrics.requests.with_label_values(&["Encrypt", "a", "none"]).inc();
        let token = TokenMetrics::new(&metrics, "main");
        token.encrypted(Duration::from_millis(1));
        token.failed("busy");
        token.searched("found");
        let text = metrics.render();
        assert!(
            text.contains(r#"xks_requests_total{error="none",operation="Encrypt",store="a"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"xks_hsm_call_seconds_count{call="encrypt",token="main"} 1"#), "{text}");
        assert!(text.contains(r#"xks_hsm_failures_total{meaning="busy",token="main"} 1"#), "{text}");
    }
}
