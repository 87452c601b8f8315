//! Every metric: name, unit and labels in one place.
//!
//! Labels are operation, error name, store, token and short fixed words. Key ids and ARNs never become labels.

use std::time::Duration;

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Upper bounds in seconds, dense where KMS's 250 ms and our 200 ms lie.
const LATENCY_BUCKETS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.145, 0.2, 0.25, 1.0];

/// The proxy's metrics and the registry that they are in.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests; `error` is the errorName, `none`, `abandoned` by the client, or `closed` without an answer.
    pub requests: IntCounterVec,
    /// Seconds from a request's first byte to its answer.
    pub request_seconds: HistogramVec,
    /// API requests being worked on.
    pub requests_in_flight: IntGauge,
    /// Requests that were throttled, by store and by what ran out.
    pub throttled: IntCounterVec,
    /// Requests that were not authenticated, by reason.
    pub authentication_failures: IntCounterVec,
    /// Requests that policies denied, by store and reason: `forbid`, `no_permit`, `evaluation_error`.
    pub policy_denials: IntCounterVec,
    /// When the server's own certificates end, in seconds since 1970, by place in the configuration (`admin-` and the place for those
    /// of the admin listener) and by part: `leaf`, or
    /// `issuers`, the first of those above it.
    pub certificate_ends: IntGaugeVec,
    /// 1 where KMS might take offence at a certificate of the server, by place in the configuration and by oddity.
    pub certificate_oddities: IntGaugeVec,
    /// Clients cut off in the TLS handshake for their certificate, by reason.
    pub client_certificate_failures: IntCounterVec,
    /// The same on the admin listener.
    pub admin_client_certificate_failures: IntCounterVec,
    /// Open connections on the TLS listener.
    pub connections: IntGauge,
    /// Connections closed by us, by reason.
    pub connections_closed: IntCounterVec,
    /// Seconds inside the PKCS#11 module, by token and call.
    pub hsm_call_seconds: HistogramVec,
    /// Seconds a job waited for a session of the token.
    pub hsm_queue_seconds: HistogramVec,
    /// PKCS#11 calls that failed, by token and meaning of the return code.
    pub hsm_failures: IntCounterVec,
    /// 1 where the token is connected and logged in.
    pub token_connected: IntGaugeVec,
    /// Health as last measured: 0 unavailable, 1 degraded, 2 active.
    pub token_health: IntGaugeVec,
    /// Sessions stuck in a call for longer than any request waits.
    pub token_sessions_stalled: IntGaugeVec,
    /// Threads stuck in a call that were replaced, by token.
    pub token_threads_replaced: IntCounterVec,
    /// Helper processes that were started in place of another, by token.
    pub token_helper_restarts: IntCounterVec,
    /// 1 where a token is asked no more until a probe succeeds.
    pub token_breaker_open: IntGaugeVec,
    /// Requests that were given to a token after another had failed, or was too slow.
    pub token_second_attempts: IntCounterVec,
    /// Keys that a token lacks or has another value of, by reason.
    pub token_keys_out: IntGaugeVec,
    /// Searches for keys that the index did not hold, by token and outcome.
    pub key_searches: IntCounterVec,
    /// Decrypts of ciphertexts whose metadata names a version that the key does not have, by store.
    pub unknown_key_versions: IntCounterVec,
    /// Ciphertexts of AWS's sample proxy that were decrypted, by store.
    pub aws_sample_decrypts: IntCounterVec,
    /// Of this proxy's share of a key version's initialization vectors, the part that is used up, by store: the most of any
    /// version that encrypts.
    pub iv_budget_used: GaugeVec,
    /// Key versions that encrypt and have used up half of the share, by store.
    pub iv_budget_over_half: IntGaugeVec,
    /// Counts of initialization vectors that could not be written to disk.
    pub iv_budget_write_failures: IntCounter,
    /// Requests that the audit log has a record of.
    pub audit_records: IntCounter,
    /// Audit records that were lost.
    pub audit_records_lost: IntCounter,
    /// Failures to write the audit log.
    pub audit_write_failures: IntCounter,
    /// 1 while the audit log cannot be written.
    pub audit_failing: IntGauge,
    /// Number of the audit log's last record, by its hash; told once a minute.
    pub audit_head: IntGaugeVec,
    /// Log lines of requests that were not authenticated that were left out since there were too many.
    pub log_lines_suppressed: IntCounter,
    /// Listed keys that no token of the store is known to hold, by store.
    pub keys_unresolved: IntGaugeVec,
    /// When a credential last authenticated a request, in seconds since 1970, by store and access key id: as many as are
    /// configured. An access key id is no secret.
    pub credential_last_used: IntGaugeVec,
    /// Which configuration of this process is served, from 1.
    pub config_generation: IntGauge,
    /// When it was loaded, in seconds since 1970.
    pub config_loaded: IntGauge,
    /// 1 where a later one was refused.
    pub config_refused: IntGauge,
    /// Reloads, by outcome.
    pub config_reloads: IntCounterVec,
    /// Log lines dropped because the log could not be written as fast as it came.
    pub log_lines_dropped: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Fresh metrics in a registry of their own.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        Self {
            requests: counters(
                r,
                "xks_requests_total",
                "Requests by their end.",
                &["operation", "store", "error"],
            ),
            request_seconds: histogram(
                r,
                "xks_request_seconds",
                "Time from a request's first byte to its answer.",
                &["operation", "store"],
            ),
            requests_in_flight: gauge(r, "xks_requests_in_flight", "API requests being worked on."),
            throttled: counters(
                r,
                "xks_throttled_total",
                "Requests answered with ThrottlingException, by what ran out: store_quota, health_quota, in_flight (all \
                 stores together) or token (its queue).",
                &["store", "reason"],
            ),
            authentication_failures: counters(
                r,
                "xks_authentication_failures_total",
                "Requests that were not authenticated.",
                &["reason"],
            ),
            policy_denials: counters(
                r,
                "xks_policy_denials_total",
                "Requests answered with AccessDeniedException: a policy forbids (forbid), none permits (no_permit), or one cannot \
                 be evaluated (evaluation_error).",
                &["store", "reason"],
            ),
            certificate_ends: gauges(
                r,
                "xks_certificate_not_after_timestamp_seconds",
                "When the server's certificate, or the first of those above it in its chain, ends to be valid, since 1970.",
                &["certificate", "part"],
            ),
            certificate_oddities: gauges(
                r,
                "xks_certificate_oddity",
                "1 where KMS might take offence at a certificate of the server: xks-proxy check says what to do.",
                &["certificate", "oddity"],
            ),
            client_certificate_failures: counters(
                r,
                "xks_client_certificate_failures_total",
                "Clients cut off in the TLS handshake for their certificate, or for having none.",
                &["reason"],
            ),
            admin_client_certificate_failures: counters(
                r,
                "xks_admin_client_certificate_failures_total",
                "Clients of the admin listener cut off in the TLS handshake for their certificate, or for having none.",
                &["reason"],
            ),
            connections: gauge(r, "xks_connections", "Open connections on the TLS listener."),
            connections_closed: counters(
                r,
                "xks_connections_closed_total",
                "Connections closed by the proxy.",
                &["reason"],
            ),
            hsm_call_seconds: histogram(
                r,
                "xks_hsm_call_seconds",
                "Time inside the PKCS#11 module.",
                &["token", "call"],
            ),
            hsm_queue_seconds: histogram(
                r,
                "xks_hsm_queue_seconds",
                "Time a job waited for a session of the token.",
                &["token"],
            ),
            hsm_failures: counters(
                r,
                "xks_hsm_failures_total",
                "PKCS#11 calls that failed.",
                &["token", "meaning"],
            ),
            token_connected: gauges(
                r,
                "xks_token_connected",
                "1 where the token is connected and logged in.",
                &["token"],
            ),
            token_health: gauges(
                r,
                "xks_token_health",
                "Health of the token as measured: 0 unavailable, 1 degraded, 2 active.",
                &["token"],
            ),
            token_sessions_stalled: gauges(
                r,
                "xks_token_sessions_stalled",
                "Sessions stuck in a call for longer than any request waits.",
                &["token"],
            ),
            token_threads_replaced: counters(
                r,
                "xks_token_threads_replaced_total",
                "Threads stuck in a call of the module that were replaced.",
                &["token"],
            ),
            token_helper_restarts: counters(
                r,
                "xks_token_helper_restarts_total",
                "Helper processes of the token that were started in place of another.",
                &["token"],
            ),
            token_breaker_open: gauges(
                r,
                "xks_token_breaker_open",
                "1 where the token is asked no more until a probe succeeds.",
                &["token"],
            ),
            token_second_attempts: counters(
                r,
                "xks_token_second_attempts_total",
                "Requests given to the token after another had failed or was slow.",
                &["token"],
            ),
            token_keys_out: gauges(
                r,
                "xks_token_keys_out",
                "Keys that the token lacks or has another value of.",
                &["token", "reason"],
            ),
            key_searches: counters(
                r,
                "xks_key_searches_total",
                "Searches in the token for keys that the index did not hold.",
                &["token", "outcome"],
            ),
            unknown_key_versions: counters(
                r,
                "xks_unknown_key_versions_total",
                "Decrypts of ciphertexts whose metadata names a version that the external key does not have.",
                &["store"],
            ),
            aws_sample_decrypts: counters(
                r,
                "xks_aws_sample_decrypts_total",
                "Ciphertexts of AWS's sample proxy that were decrypted.",
                &["store"],
            ),
            iv_budget_used: ratios(
                r,
                "xks_iv_budget_used_ratio",
                "Part of this proxy's share of initialization vectors that a key version has drawn, the most of any that \
                 encrypts.",
                &["store"],
            ),
            iv_budget_over_half: gauges(
                r,
                "xks_iv_budget_over_half",
                "Key versions that encrypt and have drawn half of this proxy's share of initialization vectors.",
                &["store"],
            ),
            iv_budget_write_failures: counter(
                r,
                "xks_iv_budget_write_failures_total",
                "Counts of initialization vectors that could not be written to disk.",
            ),
            audit_records: counter(
                r,
                "xks_audit_records_total",
                "Requests that the audit log has a record of.",
            ),
            audit_records_lost: counter(
                r,
                "xks_audit_records_lost_total",
                "Audit records that were lost because they could not be written.",
            ),
            audit_write_failures: counter(
                r,
                "xks_audit_write_failures_total",
                "Failures to write the audit log.",
            ),
            audit_failing: gauge(r, "xks_audit_failing", "1 while the audit log cannot be written."),
            audit_head: gauges(
                r,
                "xks_audit_head",
                "Number of the last record of the audit log; the label is its hash.",
                &["hash"],
            ),
            log_lines_suppressed: counter(
                r,
                "xks_log_lines_suppressed_total",
                "Log lines of requests that were not authenticated, left out since there were too many.",
            ),
            keys_unresolved: gauges(
                r,
                "xks_keys_unresolved",
                "Listed keys that no token of the store is known to hold.",
                &["store"],
            ),
            credential_last_used: gauges(
                r,
                "xks_credential_last_used_timestamp_seconds",
                "When the credential last authenticated a request, since 1970; 0 for never since the start.",
                &["store", "access_key_id"],
            ),
            config_generation: gauge(
                r,
                "xks_config_generation",
                "Which configuration of this process is served: 1 since the start, one more with each reload.",
            ),
            config_loaded: gauge(
                r,
                "xks_config_loaded_timestamp_seconds",
                "When the configuration that is served was loaded, since 1970.",
            ),
            config_refused: gauge(
                r,
                "xks_config_refused",
                "1 where the last reload was refused: an older configuration is served than that on disk.",
            ),
            config_reloads: counters(
                r,
                "xks_config_reloads_total",
                "Reloads of the configuration.",
                &["outcome"],
            ),
            log_lines_dropped: counter(
                r,
                "xks_log_lines_dropped_total",
                "Log lines dropped because the log could not be written as fast as it came.",
            ),
            registry,
        }
    }

    /// The configuration has no such token any more: what is shown of its state goes.
    pub fn forget_token(&self, token: &str) {
        let of_token = [
            &self.token_connected,
            &self.token_health,
            &self.token_sessions_stalled,
            &self.token_breaker_open,
        ];
        for gauges in of_token {
            // Fails where there is none, which is as good.
            let _ = gauges.remove_label_values(&[token]);
        }
    }

    /// All metrics in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
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
    /// Sessions stuck in a call.
    pub sessions_stalled: IntGauge,
    /// Threads that were replaced.
    pub threads_replaced: IntCounter,
    /// Helper processes that were started anew.
    pub helper_restarts: IntCounter,
    /// 1 where the token is asked no more.
    pub breaker_open: IntGauge,
    /// Requests that came here second.
    pub asked_second: IntCounter,
    keys_out: IntGaugeVec,
}

impl TokenMetrics {
    /// The handles of the token of that name.
    #[must_use]
    pub fn new(metrics: &Metrics, token: &str) -> Self {
        Self {
            encrypt_seconds: metrics.hsm_call_seconds.with_label_values(&[token, "encrypt"]),
            decrypt_seconds: metrics.hsm_call_seconds.with_label_values(&[token, "decrypt"]),
            queue_seconds: metrics.hsm_queue_seconds.with_label_values(&[token]),
            failures: metrics.hsm_failures.clone(),
            searches: metrics.key_searches.clone(),
            connected: metrics.token_connected.with_label_values(&[token]),
            health: metrics.token_health.with_label_values(&[token]),
            sessions_stalled: metrics.token_sessions_stalled.with_label_values(&[token]),
            threads_replaced: metrics.token_threads_replaced.with_label_values(&[token]),
            helper_restarts: metrics.token_helper_restarts.with_label_values(&[token]),
            breaker_open: metrics.token_breaker_open.with_label_values(&[token]),
            asked_second: metrics.token_second_attempts.with_label_values(&[token]),
            keys_out: metrics.token_keys_out.clone(),
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

    /// So many keys are out of use on the token.
    pub fn keys_out(&self, reason: &str, count: usize) {
        self.keys_out
            .with_label_values(&[&*self.token, reason])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A key was searched in the token.
    pub fn searched(&self, outcome: &str) {
        self.searches.with_label_values(&[&self.token, outcome]).inc();
    }
}

// INVARIANT for the `expect`s below: names and labels are constants of this file, valid and unique; the test renders
// every one of them.
const VALID: &str = "a metric of this file has a valid name that no other has";

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), labels).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let metric = IntGaugeVec::new(Opts::new(name, help), labels).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn ratios(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    let metric = GaugeVec::new(Opts::new(name, help), labels).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let metric = IntGauge::new(name, help).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    let metric = HistogramVec::new(options, labels).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

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
