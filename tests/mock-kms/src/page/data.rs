//! What the page's script gets: a view of the model in which nothing is secret.

use bytes::Bytes;
use serde::Serialize;
use xks_spec::limits::KMS_TIMEOUT;
use xks_spec::response::GetHealthStatusResponse;

use super::View;
use crate::kms::journal::{Entry, Layer, ProxyCall, StoreTotals};
use crate::kms::key::Key;
use crate::kms::name::hex;
use crate::kms::store::{ConnectionState, Store};
use crate::xks::Certificate;

/// Calls that the page shows.
const SHOWN_CALLS: usize = 200;
const MS_PER_DAY: i64 = 86_400_000;

/// The JSON document.
pub(super) fn json(view: &View<'_>) -> Bytes {
    let totals = view.journal.totals();
    let of = |id: &str| totals.get(id).cloned().unwrap_or_default();
    let page = Page {
        endpoint: view.endpoint,
        region: &view.home.region,
        account_id: &view.home.account_id,
        now_unix_ms: view.now.unix_ms,
        timeout_ms: KMS_TIMEOUT.as_secs_f64() * 1000.0,
        stores: view.state.stores.values().map(|store| StoreView::new(view, store, &of(&store.id))).collect(),
        keys: view.state.keys.values().map(|key| KeyView::new(view, key)).collect(),
        calls: view.journal.latest(SHOWN_CALLS).iter().map(CallView::new).collect(),
    };
    // INVARIANT: numbers, text and lists always serialise.
    serde_json::to_vec(&page).unwrap_or_default().into()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    endpoint: &'a str,
    region: &'a str,
    account_id: &'a str,
    now_unix_ms: i64,
    timeout_ms: f64,
    stores: Vec<StoreView<'a>>,
    keys: Vec<KeyView<'a>>,
    calls: Vec<CallView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StoreView<'a> {
    id: &'a str,
    name: &'a str,
    uri: String,
    connectivity: &'static str,
    connection_state: &'static str,
    connection_error_code: Option<&'static str>,
    access_key_id: &'a str,
    credential_age_days: i64,
    keys: usize,
    calls: u64,
    errors: Vec<ErrorCount>,
    throttled: u64,
    mean_latency_ms: Option<f64>,
    certificate: Option<CertificateView>,
    health: Option<HealthView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorCount {
    kind: &'static str,
    is_retryable: bool,
    count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateView {
    common_names: Vec<String>,
    days_to_expire: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthView {
    at_unix_ms: i64,
    #[serde(flatten)]
    answer: GetHealthStatusResponse,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyView<'a> {
    id: &'a str,
    arn: String,
    state: &'static str,
    origin: &'static str,
    store_id: Option<&'a str>,
    xks_key_id: Option<&'a str>,
    aliases: Vec<&'a str>,
    description: &'a str,
    created_unix_ms: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallView {
    number: u64,
    at_unix_ms: i64,
    kms_operation: String,
    request_id: String,
    caller: String,
    exception: Option<String>,
    message: Option<String>,
    duration_ms: f64,
    proxy_calls: Vec<ProxyCallView>,
    layers: Vec<LayerView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyCallView {
    store_id: String,
    operation: &'static str,
    failure: Option<String>,
    tries: u32,
    total_ms: f64,
    last_try_ms: f64,
    tcp_ms: Option<f64>,
    tls_ms: Option<f64>,
    is_reused: bool,
    http_version: Option<String>,
    request_bytes: usize,
    answer_bytes: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LayerView {
    name: &'static str,
    bytes: usize,
    start_hex: String,
}

impl<'a> StoreView<'a> {
    fn new(view: &View<'_>, store: &'a Store, totals: &StoreTotals) -> Self {
        let errors = totals.errors.iter();
        let keys = view.state.keys.values().filter(|key| key.origin.store_id() == Some(&store.id));
        let mean =
            (totals.calls > 0).then(|| totals.latency_sum.as_secs_f64() * 1000.0 / as_f64(totals.calls));
        let certificate = totals.certificate.as_ref().map(|certificate| CertificateView {
            common_names: certificate.common_names.clone(),
            days_to_expire: days_to_expire(certificate, view.now.unix_ms),
        });
        Self {
            id: &store.id,
            name: &store.name,
            uri: format!("{}{}", store.proxy.uri_endpoint, store.proxy.uri_path),
            connectivity: store.proxy.connectivity.as_str(),
            connection_state: store.connection.as_str(),
            connection_error_code: match store.connection {
                ConnectionState::Failed(code) => Some(code.as_str()),
                _ => None,
            },
            access_key_id: &store.proxy.access_key_id,
            credential_age_days: view.now.ms_since(store.credential_since) / MS_PER_DAY,
            keys: keys.count(),
            calls: totals.calls,
            errors: errors
                .map(|((kind, is_retryable), count)| ErrorCount {
                    kind,
                    is_retryable: *is_retryable,
                    count: *count,
                })
                .collect(),
            throttled: totals.throttled,
            mean_latency_ms: mean,
            certificate,
            health: totals.health.clone().map(|(at, answer)| HealthView { at_unix_ms: at.unix_ms, answer }),
        }
    }
}

impl<'a> KeyView<'a> {
    fn new(view: &View<'a>, key: &'a Key) -> Self {
        let (store_id, xks_key_id) = key.origin.external_key().unzip();
        let aliases = view.state.aliases.values().filter(|alias| alias.target_key_id == key.id);
        Self {
            id: &key.id,
            arn: view.home.key_arn(&key.id),
            state: view.state.key_state(key).as_str(),
            origin: key.origin.as_str(),
            store_id,
            xks_key_id,
            aliases: aliases.map(|alias| alias.name.as_str()).collect(),
            description: &key.description,
            created_unix_ms: key.created.unix_ms,
        }
    }
}

impl CallView {
    fn new(entry: &Entry) -> Self {
        let (exception, message) = entry.failure.clone().unzip();
        Self {
            number: entry.number,
            at_unix_ms: entry.at.unix_ms,
            kms_operation: entry.kms_operation.clone(),
            request_id: entry.request_id.clone(),
            caller: entry.caller.clone(),
            exception,
            message: message.flatten(),
            duration_ms: entry.duration.as_secs_f64() * 1000.0,
            proxy_calls: entry.proxy_calls.iter().map(ProxyCallView::new).collect(),
            layers: entry.layers.iter().map(LayerView::new).collect(),
        }
    }
}

impl ProxyCallView {
    fn new(call: &ProxyCall) -> Self {
        let report = &call.report;
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
        Self {
            store_id: call.store_id.clone(),
            operation: call.operation.name(),
            failure: call.failure.as_ref().map(|failure| failure.text.clone()),
            tries: report.tries,
            total_ms: ms(report.total),
            last_try_ms: ms(report.last_try),
            tcp_ms: report.tcp.map(ms),
            tls_ms: report.tls.map(ms),
            is_reused: report.is_reused,
            http_version: report.version.map(|version| version.to_string()),
            request_bytes: report.request_bytes,
            answer_bytes: report.answer_bytes,
        }
    }
}

impl LayerView {
    fn new(layer: &Layer) -> Self {
        Self { name: layer.name, bytes: layer.bytes, start_hex: hex(&layer.start) }
    }
}

/// Whole days until the certificate ends, negative afterwards.
const fn days_to_expire(certificate: &Certificate, now_unix_ms: i64) -> i64 {
    certificate.not_after_unix_secs.saturating_mul(1000).saturating_sub(now_unix_ms).div_euclid(MS_PER_DAY)
}

#[allow(clippy::cast_precision_loss, reason = "a count of calls, for a mean")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
