//! What CloudWatch shows of an external key store, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use xks_spec::response::HealthStatus;

use super::View;
use crate::kms::journal::{LATENCY_BOUNDS_MS, StoreTotals};
use crate::kms::store::ConnectionState;

/// By store id.
type Totals = BTreeMap<String, StoreTotals>;

/// The metrics of `view`, each named after the one of CloudWatch that it stands for.
pub(super) fn text(view: &View<'_>) -> String {
    let mut totals = view.journal.totals();
    // Stores that are deleted have no series, and none that CreateCustomKeyStore asks about before they are there.
    totals.retain(|id, _| view.state.stores.contains_key(id));
    let mut text = Text::default();
    connections(view, &mut text);
    errors(&totals, &mut text);
    latency(&totals, &mut text);
    key_managers(&totals, &mut text);
    ages(view, &totals, &mut text);
    text.0
}

fn connections(view: &View<'_>, text: &mut Text) {
    text.family("custom_key_store_connected", "gauge", "Whether the store is CONNECTED.");
    for store in view.state.stores.values() {
        let is_connected = u8::from(store.connection == ConnectionState::Connected);
        text.sample("custom_key_store_connected", &[("store", &store.id)], is_connected);
    }
}

fn errors(totals: &Totals, text: &mut Text) {
    let name = "xks_proxy_errors_total";
    text.family(
        name,
        "counter",
        "XksProxyErrors: failed calls to the proxy, by kind and whether a retry may help.",
    );
    for (store, totals) in totals {
        for ((kind, is_retryable), count) in &totals.errors {
            let retryable = if *is_retryable { "true" } else { "false" };
            text.sample(name, &[("store", store), ("error", kind), ("retryable", retryable)], count);
        }
    }
    let name = "external_key_store_throttle_total";
    text.family(name, "counter", "ExternalKeyStoreThrottle: requests refused for the store's quota.");
    for (store, totals) in totals {
        text.sample(name, &[("store", store)], totals.throttled);
    }
}

fn latency(totals: &Totals, text: &mut Text) {
    let name = "xks_proxy_latency_seconds";
    text.family(name, "histogram", "XksProxyLatency: time until the proxy's answer, tries included.");
    for (store, totals) in totals {
        let mut below = 0;
        for (bound_ms, calls) in LATENCY_BOUNDS_MS.iter().zip(totals.latency) {
            below += calls;
            let bound = Duration::from_millis(u64::from(*bound_ms)).as_secs_f64().to_string();
            text.sample("xks_proxy_latency_seconds_bucket", &[("store", store), ("le", &bound)], below);
        }
        text.sample("xks_proxy_latency_seconds_bucket", &[("store", store), ("le", "+Inf")], totals.calls);
        text.sample("xks_proxy_latency_seconds_sum", &[("store", store)], totals.latency_sum.as_secs_f64());
        text.sample("xks_proxy_latency_seconds_count", &[("store", store)], totals.calls);
    }
}

fn key_managers(totals: &Totals, text: &mut Text) {
    let name = "xks_external_key_manager_states";
    text.family(
        name,
        "gauge",
        "XksExternalKeyManagerStates: key managers in each state, by the last health check.",
    );
    for (store, totals) in totals {
        let Some((_, health)) = &totals.health else { continue };
        for status in [HealthStatus::Active, HealthStatus::Degraded, HealthStatus::Unavailable] {
            let managers = health.ekm_fleet_details.iter().filter(|manager| manager.health_status == status);
            text.sample(name, &[("store", store), ("state", status.as_str())], managers.count());
        }
    }
}

fn ages(view: &View<'_>, totals: &Totals, text: &mut Text) {
    let name = "xks_proxy_certificate_expires_in_seconds";
    let help = "XksProxyCertificateDaysToExpire, in seconds: no value where the common name is a wildcard.";
    text.family(name, "gauge", help);
    for (store, totals) in totals {
        let certificate = totals
            .certificate
            .as_ref()
            .filter(|it| !it.common_names.iter().any(|name| name.starts_with("*.")));
        if let Some(certificate) = certificate {
            let left_secs = certificate.not_after_unix_secs.saturating_sub(view.now.unix_ms.div_euclid(1000));
            text.sample(name, &[("store", store)], left_secs);
        }
    }
    let name = "xks_proxy_credential_age_seconds";
    text.family(name, "gauge", "XksProxyCredentialAge: since the store got its present credential.");
    for store in view.state.stores.values() {
        text.sample(name, &[("store", &store.id)], view.now.secs_since(store.credential_since));
    }
}

/// Metrics in the text format. Names get the prefix `mock_kms_`, so that nobody takes them for the proxy's own.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP mock_kms_{name} {help}\n# TYPE mock_kms_{name} {kind}");
    }

    /// Label values are store ids, error names and numbers: nothing in them needs an escape.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let _ = writeln!(self.0, "mock_kms_{name}{{{}}} {value}", labels.join(","));
    }
}
