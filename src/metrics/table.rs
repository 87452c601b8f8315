//! Every metric: its name, type, unit, labels and help in this one file.
//!
//! [`metrics!`] makes the fields of [`Metrics`] of the rows, and [`TABLE`], which `docs/metrics.md` is written from. Labels are
//! operation, error name, store, token and short fixed words; key ids and ARNs are never among them.

use prometheus::{
    Counter, Gauge, GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::declaration::{Declared, Label, Row, Values, metrics};

const STORE: Label = Label { name: "store", values: Values::Open("a store's name, or `none`") };
const TOKEN: Label = Label { name: "token", values: Values::Open("a token's name") };
const ACCESS_KEY_ID: Label =
    Label { name: "access_key_id", values: Values::Open("an access key id, which is no secret") };
const CERTIFICATE: Label = Label {
    name: "certificate",
    values: Values::Open(
        "place of the certificate in the configuration, from 0; with `admin-` before it, of the admin listener's",
    ),
};
/// Open, though its values are known: of all that could be counted, most never are.
const ERROR: Label = Label {
    name: "error",
    values: Values::Open(
        "an errorName; `none`; `abandoned` by the client; `incomplete`, by one that was not authenticated yet; or `closed` without an answer",
    ),
};
/// The API's operations.
pub(super) const OPERATIONS: [&str; 4] = ["Encrypt", "Decrypt", "GetKeyMetadata", "GetHealthStatus"];
const OPERATION: Label = Label {
    name: "operation",
    values: Values::Known(&["Encrypt", "Decrypt", "GetKeyMetadata", "GetHealthStatus", "none"]),
};
const KIND: Label =
    Label { name: "kind", values: Values::Known(&["retryable", "non_retryable", "not_authenticated"]) };
const CALL: Label = Label { name: "call", values: Values::Known(&["encrypt", "decrypt"]) };
const PART: Label = Label { name: "part", values: Values::Known(&["leaf", "issuers"]) };

const fn known(name: &'static str, words: &'static [&'static str]) -> Label {
    Label { name, values: Values::Known(words) }
}

const WHAT_RAN_OUT: Label = known("reason", &["store_quota", "health_quota", "in_flight", "token"]);
const AUTHENTICATION_FAULT: Label = known(
    "reason",
    &[
        "header",
        "malformed",
        "scope",
        "clock_skew",
        "signed_headers",
        "access_key_id",
        "body_hash",
        "signature",
    ],
);
const CLIENT_CERTIFICATE_FAULT: Label = known(
    "reason",
    &[
        "none",
        "expired",
        "not_valid_yet",
        "unknown_issuer",
        "chain",
        "unreadable",
        "common_names",
        "common_name",
        "proof",
    ],
);
const POLICY_DENIAL: Label = known("reason", &["forbid", "no_permit", "evaluation_error"]);
const CLOSED_FOR: Label = known(
    "reason",
    &[
        "evicted",
        "no_proxy_header",
        "handshake_failed",
        "handshake_timeout",
        "no_first_request",
        "slow_header",
        "slow_body",
        "unread_answer",
        "idle",
        "max_age",
        "trust_changed",
        "drain_over",
    ],
);
const ODDITY: Label = known(
    "oddity",
    &[
        "broken_chain",
        "untrusted_root",
        "endpoint_not_in_san",
        "endpoint_not_common_name",
        "wildcard_common_name",
    ],
);
const MEANING: Label = known(
    "meaning",
    &[
        "bad_tag",
        "bad_tag_or_fault",
        "key_gone",
        "key_not_permitted",
        "session_lost",
        "login_lost",
        "token_lost",
        "fault",
    ],
);
const KEY_FAULT: Label =
    known("reason", &["missing", "ambiguous", "differs", "of_another_store", "unprovable"]);
const ASKED_SECOND: Label = known("reason", &["failed", "hung", "hedge"]);
const RETRIED: Label = known("reason", &["session_lost", "doubtful_tag"]);
const SEARCH: Label = known("outcome", &["found", "missed", "failed", "refused", "remembered_miss"]);
const RELOAD: Label =
    known("outcome", &["ok", "faulty", "needs_restart", "keys_lost", "unsafe_versions", "failed"]);

metrics! {
    // What KMS sees.
    requests: IntCounterVec = "xks_requests_total", "requests", [OPERATION, STORE, ERROR], None,
        "Requests by their end.";
    errors: IntCounterVec = "xks_errors_total", "requests", [STORE, KIND], Some("XksProxyErrors"),
        "Requests answered with an error, as KMS divides them: after `retryable` ones (InternalException, \
         DependencyTimeoutException, ThrottlingException) the caller's next try may succeed. `not_authenticated` are apart, \
         whatever is wrong with them: strangers can make them too.";
    request_seconds: HistogramVec = "xks_request_seconds", "seconds", [OPERATION, STORE], Some("XksProxyLatency"),
        "Time from a request's first byte to its answer, of those that were authenticated. KMS measures the network's part too.";
    requests_in_flight: IntGauge = "xks_requests_in_flight", "requests", [], None,
        "API requests being worked on.";
    throttled: IntCounterVec = "xks_throttled_total", "requests", [STORE, WHAT_RAN_OUT],
        Some("ExternalKeyStoreThrottle"),
        "Requests answered with ThrottlingException, by what ran out: store_quota, health_quota, in_flight (all stores \
         together) or token (its queue). KMS's own metric counts what KMS holds back before it asks.";

    // Who is let in.
    authentication_failures: IntCounterVec = "xks_authentication_failures_total", "requests", [AUTHENTICATION_FAULT],
        None,
        "Requests that were not authenticated.";
    clock_skew_seconds: IntGaugeVec = "xks_clock_skew_seconds", "seconds", [STORE], None,
        "Time of the store's last authenticated request less ours: positive where KMS's clock is ahead. Beyond 300 \
         either way requests are refused, and counted as authentication failures.";
    credential_created: IntGaugeVec = "xks_credential_created_timestamp_seconds", "seconds since 1970",
        [STORE, ACCESS_KEY_ID], Some("XksProxyCredentialAge"),
        "When the credential was made, where its `created` says so.";
    credential_last_used: IntGaugeVec = "xks_credential_last_used_timestamp_seconds", "seconds since 1970",
        [STORE, ACCESS_KEY_ID], None,
        "When the credential last authenticated a request; 0 for never since the start.";
    certificate_ends: IntGaugeVec = "xks_certificate_not_after_timestamp_seconds", "seconds since 1970",
        [CERTIFICATE, PART], Some("XksProxyCertificateDaysToExpire"),
        "When the server's certificate, or the first of those above it in its chain, ends to be valid.";
    certificate_oddities: IntGaugeVec = "xks_certificate_oddity", "0 or 1", [CERTIFICATE, ODDITY], None,
        "1 where KMS might take offence at a certificate of the server: xks-proxy check says what to do.";
    client_certificate_failures: IntCounterVec = "xks_client_certificate_failures_total", "clients",
        [CLIENT_CERTIFICATE_FAULT], None,
        "Clients cut off in the TLS handshake for their certificate, or for having none.";
    admin_client_certificate_failures: IntCounterVec = "xks_admin_client_certificate_failures_total", "clients",
        [CLIENT_CERTIFICATE_FAULT], None,
        "Clients of the admin listener cut off in the TLS handshake for their certificate, or for having none.";
    policy_denials: IntCounterVec = "xks_policy_denials_total", "requests", [STORE, POLICY_DENIAL], None,
        "Requests answered with AccessDeniedException: a policy forbids (`forbid`), none permits (`no_permit`), or one \
         cannot be evaluated (`evaluation_error`).";
    connections: IntGauge = "xks_connections", "connections", [], None,
        "Open connections on the TLS listener.";
    connections_closed: IntCounterVec = "xks_connections_closed_total", "connections", [CLOSED_FOR], None,
        "Connections closed by the proxy.";

    // The HSM.
    hsm_call_seconds: HistogramVec = "xks_hsm_call_seconds", "seconds", [TOKEN, CALL], None,
        "Time inside the PKCS#11 module.";
    hsm_queue_seconds: HistogramVec = "xks_hsm_queue_seconds", "seconds", [TOKEN], None,
        "Time a job waited for a session of the token.";
    hsm_queue_jobs: IntGaugeVec = "xks_hsm_queue_jobs", "jobs", [TOKEN], None,
        "Jobs that wait for a session of the token now.";
    hsm_failures: IntCounterVec = "xks_hsm_failures_total", "calls", [TOKEN, MEANING], None,
        "PKCS#11 calls that failed, by what their return code means.";
    token_connected: IntGaugeVec = "xks_token_connected", "0 or 1", [TOKEN], None,
        "1 where the token is connected and logged in.";
    token_health: IntGaugeVec = "xks_token_health", "0, 1 or 2", [TOKEN], Some("XksExternalKeyManagerStates"),
        "Health of the token as measured: 0 unavailable, 1 degraded, 2 active.";
    token_sessions: IntGaugeVec = "xks_token_sessions", "sessions", [TOKEN], None,
        "Sessions of the token that work at once, as configured.";
    token_sessions_busy: IntGaugeVec = "xks_token_sessions_busy", "sessions", [TOKEN], None,
        "Sessions that are in a job now; with those that are stuck and were replaced it may be more than there are.";
    token_sessions_stalled: IntGaugeVec = "xks_token_sessions_stalled", "sessions", [TOKEN], None,
        "Sessions stuck in a call for longer than any request waits.";
    token_threads_replaced: IntCounterVec = "xks_token_threads_replaced_total", "threads", [TOKEN], None,
        "Threads stuck in a call of the module that were replaced.";
    token_helper_restarts: IntCounterVec = "xks_token_helper_restarts_total", "processes", [TOKEN], None,
        "Helper processes of the token that were started in place of another.";
    token_helper_memory: IntGaugeVec = "xks_token_helper_memory_bytes", "bytes", [TOKEN], None,
        "Memory of the token's helper process that is in RAM, as it said last.";
    token_helper_memory_kills: IntCounterVec = "xks_token_helper_memory_kills_total", "processes", [TOKEN], None,
        "Helper processes of the token that were killed since they had more memory than `helper_memory_mib`.";
    token_breaker_open: IntGaugeVec = "xks_token_breaker_open", "0 or 1", [TOKEN], None,
        "1 where the token is asked no more until a probe succeeds.";
    token_second_attempts: IntCounterVec = "xks_token_second_attempts_total", "requests", [TOKEN, ASKED_SECOND], None,
        "Requests given to the token after another one: that had failed (`failed`), that hung (`hung`), or that was only \
         slow (`hedge`).";
    hsm_retries: IntCounterVec = "xks_hsm_retries_total", "calls", [TOKEN, RETRIED], None,
        "Calls done once more on the same token: on a new session, since the one before was lost (`session_lost`), or a \
         decrypt whose return code left open whether the tag or the token was bad (`doubtful_tag`).";
    token_keys_out: IntGaugeVec = "xks_token_keys_out", "keys", [TOKEN, KEY_FAULT], None,
        "Keys that the token lacks, has another value of, or cannot show to be the ones meant, of all stores together.";
    key_searches: IntCounterVec = "xks_key_searches_total", "searches", [TOKEN, SEARCH], None,
        "Searches in the token for keys that the index did not hold.";
    keys_unresolved: IntGaugeVec = "xks_keys_unresolved", "keys", [STORE], None,
        "Listed keys that no token of the store is known to hold.";
    integrity_failures: IntCounterVec = "xks_integrity_failures_total", "ciphertexts", [STORE], None,
        "Ciphertexts that an Encrypt with an integrity value threw away because they did not decrypt to their plaintext. \
         The plaintext is encrypted anew, by another token where the store has one; where that fails twice, so does the request.";
    unknown_key_versions: IntCounterVec = "xks_unknown_key_versions_total", "requests", [STORE], None,
        "Decrypts of ciphertexts whose metadata names a version that the external key does not have.";
    aws_sample_decrypts: IntCounterVec = "xks_aws_sample_decrypts_total", "requests", [STORE], None,
        "Ciphertexts of AWS's sample proxy that were decrypted.";
    iv_budget_used: GaugeVec = "xks_iv_budget_used_ratio", "share of 1", [STORE], None,
        "Part of this proxy's share of initialization vectors that a key version has drawn, the most of any that \
         encrypts. Which version that is, the log says at half and at all of the share, by its external key id: a store may \
         have ten thousand keys, too many for a label.";
    iv_budget_over_half: IntGaugeVec = "xks_iv_budget_over_half", "key versions", [STORE], None,
        "Key versions that encrypt and have drawn half of this proxy's share of initialization vectors.";
    iv_budget_write_failures: IntCounter = "xks_iv_budget_write_failures_total", "writes", [], None,
        "Counts of initialization vectors that could not be written to disk.";
    version_record_write_failures: IntCounter = "xks_version_record_write_failures_total", "writes", [], None,
        "Records of key versions that could not be written to disk: what each is, and which were served.";

    // The audit log.
    audit_records: IntCounter = "xks_audit_records_total", "records", [], None,
        "Requests that the audit log has a record of.";
    audit_records_lost: IntCounter = "xks_audit_records_lost_total", "records", [], None,
        "Audit records that were lost because they could not be written.";
    audit_write_failures: IntCounter = "xks_audit_write_failures_total", "writes", [], None,
        "Failures to write the audit log.";
    audit_failing: IntGauge = "xks_audit_failing", "0 or 1", [], None,
        "1 while the audit log cannot be written.";
    audit_lag_seconds: Gauge = "xks_audit_lag_seconds", "seconds", [], None,
        "How long the oldest record that is not written yet has been waiting; measured twice a second.";
    audit_head: IntGaugeVec = "xks_audit_head", "record number", [
        Label { name: "hash", values: Values::Open("the record's hash") }
    ], None,
        "Number of the last record of the audit log, told once a minute.";

    // The process.
    build_info: IntGaugeVec = "xks_build_info", "always 1", [
        Label { name: "version", values: Values::Open("the release") },
        Label { name: "commit", values: Values::Open("the source's commit, or `unknown`") }
    ], None,
        "What runs.";
    config_generation: IntGauge = "xks_config_generation", "number", [], None,
        "Which configuration of this process is served: 1 since the start, one more with each reload.";
    config_loaded: IntGauge = "xks_config_loaded_timestamp_seconds", "seconds since 1970", [], None,
        "When the configuration that is served was loaded.";
    config_refused: IntGauge = "xks_config_refused", "0 or 1", [], None,
        "1 where the last reload was refused: an older configuration is served than that on disk.";
    config_reloads: IntCounterVec = "xks_config_reloads_total", "reloads", [RELOAD], None,
        "Reloads of the configuration.";
    ready: IntGauge = "xks_ready", "0 or 1", [], None,
        "1 while `/ping` and `/readyz` say that this proxy should be sent requests.";
    log_lines_suppressed: IntCounter = "xks_log_lines_suppressed_total", "lines", [], None,
        "Log lines that strangers cause (requests that are not authenticated, connections that are not admitted), left out since there were too many.";
    log_lines_dropped: IntCounter = "xks_log_lines_dropped_total", "lines", [], None,
        "Log lines dropped because the log could not be written as fast as it came.";
    process_start: IntGauge = "process_start_time_seconds", "seconds since 1970", [], None,
        "When the process began.";
    process_memory: IntGauge = "process_resident_memory_bytes", "bytes", [], None,
        "Memory of the process that is in RAM.";
    process_cpu: Counter = "process_cpu_seconds_total", "seconds", [], None,
        "Processor time of the process, user and system.";
}
