//! What page and metrics say of a made-up state.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use xks_spec::Operation;

use super::{File, View};
use crate::kms::journal::{Entry, Journal, Layer, ProxyCall, ProxyFailure};
use crate::kms::name::Home;
use crate::kms::store::{ConnectionErrorCode, ConnectionState, Connectivity, ProxySettings, SecretText};
use crate::kms::{State, Timestamp};
use crate::xks::{Certificate, HttpVersion, Report};

const SECRET: &str = "a+secret+access+key/a+secret+access+key/a+sec";
const NOW: Timestamp = Timestamp { unix_ms: 1_800_000_000_000 };

fn state() -> State {
    let mut state = State::default();
    let proxy = ProxySettings {
        connectivity: Connectivity::PublicEndpoint,
        uri_endpoint: "https://xks.example.com".to_owned(),
        uri_path: "/p/kms/xks/v1".to_owned(),
        vpc_service_name: None,
        vpc_service_owner: None,
        access_key_id: "ABCDEFGHIJKLMNOPQRST".to_owned(),
        secret_access_key: SecretText::new(SECRET.to_owned()),
    };
    state.create_store("cks-1".to_owned(), "payments".to_owned(), proxy, NOW.plus_days(-3)).unwrap();
    state
}

fn call(number: u64, failure: Option<ProxyFailure>, common_name: &str) -> Entry {
    let common_names = vec![common_name.to_owned()];
    let certificate = Certificate { common_names, not_after_unix_secs: NOW.unix_ms / 1000 + 20 * 86_400 - 1 };
    let report = Report {
        tries: 2,
        total: Duration::from_millis(260),
        last_try: Duration::from_millis(10),
        is_reused: true,
        version: Some(HttpVersion::Http2),
        certificate: Some(Arc::new(certificate)),
        request_bytes: 500,
        answer_bytes: Some(300),
        ..Report::default()
    };
    Entry {
        number,
        at: NOW,
        kms_operation: "Encrypt".to_owned(),
        request_id: "4112f4d6-db54-4af4-ae30-c55a22a8dfae".to_owned(),
        caller: "arn:aws:iam::111122223333:root".to_owned(),
        failure: failure
            .as_ref()
            .map(|_| ("KMSInvalidStateException".to_owned(), Some("a message".to_owned()))),
        duration: Duration::from_millis(261),
        proxy_calls: vec![ProxyCall {
            store_id: "cks-1".to_owned(),
            operation: Operation::Encrypt,
            failure,
            report,
        }],
        layers: vec![Layer::secret("plaintext", 5), Layer::ciphertext("encrypted by KMS", &[0xab; 33])],
    }
}

fn text(file: File, state: &State, journal: &Journal) -> String {
    let home = Home { account_id: "111122223333".to_owned(), region: "eu-west-1".to_owned() };
    let view = View { state, journal, home: &home, now: NOW, endpoint: "http://127.0.0.1:4599" };
    String::from_utf8(file.content(&view).to_vec()).unwrap()
}

fn page(state: &State, journal: &Journal) -> Value {
    serde_json::from_str(&text(File::Data, state, journal)).unwrap()
}

#[test]
fn a_call_is_shown_with_layers_and_times() {
    let journal = Journal::default();
    journal.record(call(0, None, "xks.example.com"));
    let shown = page(&state(), &journal);
    assert_eq!(shown["endpoint"], "http://127.0.0.1:4599");
    assert_eq!(shown["timeoutMs"], 250.0);
    let call = &shown["calls"][0];
    assert_eq!(
        (&call["number"], &call["durationMs"], &call["exception"]),
        (&json!(1), &json!(261.0), &Value::Null)
    );
    let expected = json!([
        { "name": "plaintext", "bytes": 5, "startHex": "" },
        { "name": "encrypted by KMS", "bytes": 33, "startHex": "ab".repeat(16) },
    ]);
    assert_eq!(call["layers"], expected);
    let proxy_call = &call["proxyCalls"][0];
    assert_eq!((&proxy_call["tries"], &proxy_call["totalMs"]), (&json!(2), &json!(260.0)));
    assert_eq!((&proxy_call["httpVersion"], &proxy_call["tcpMs"]), (&json!("HTTP/2"), &Value::Null));
}

#[test]
fn a_store_is_shown_without_its_secret() {
    let (mut state, journal) = (state(), Journal::default());
    state.stores.get_mut("cks-1").unwrap().connection =
        ConnectionState::Failed(ConnectionErrorCode::XksProxyTimedOut);
    let failure = ProxyFailure { kind: "TimedOut", is_retryable: true, text: "no answer in time".to_owned() };
    journal.record(call(0, Some(failure), "xks.example.com"));
    let shown = page(&state, &journal);
    let store = &shown["stores"][0];
    assert_eq!(store["uri"], "https://xks.example.com/p/kms/xks/v1");
    assert_eq!(
        (&store["connectionState"], &store["connectionErrorCode"]),
        (&json!("FAILED"), &json!("XKS_PROXY_TIMED_OUT"))
    );
    assert_eq!((&store["credentialAgeDays"], &store["meanLatencyMs"]), (&json!(3), &json!(260.0)));
    assert_eq!(store["errors"], json!([{ "kind": "TimedOut", "isRetryable": true, "count": 1 }]));
    assert_eq!(store["certificate"], json!({ "commonNames": ["xks.example.com"], "daysToExpire": 19 }));
    assert_eq!(shown["calls"][0]["message"], "a message");
    for file in File::ALL {
        assert!(!text(file, &state, &journal).contains(SECRET), "{}", file.path());
    }
}

#[test]
fn metrics_say_what_cloudwatch_would() {
    let (mut state, journal) = (state(), Journal::default());
    state.stores.get_mut("cks-1").unwrap().connection = ConnectionState::Connected;
    let failure = ProxyFailure { kind: "TimedOut", is_retryable: true, text: String::new() };
    journal.record(call(0, None, "xks.example.com"));
    journal.record(call(0, Some(failure), "xks.example.com"));
    journal.count_throttled("cks-1");
    let health = json!({
        "xksProxyFleetSize": 1, "xksProxyVendor": "v", "xksProxyModel": "m", "ekmVendor": "v",
        "ekmFleetDetails": [
            { "id": "1", "model": "m", "healthStatus": "DEGRADED" },
            { "id": "2", "model": "m", "healthStatus": "DEGRADED" },
        ],
    });
    journal.note_health("cks-1", NOW, serde_json::from_value(health).unwrap());
    let text = text(File::Metrics, &state, &journal);
    for line in [
        r#"mock_kms_custom_key_store_connected{store="cks-1"} 1"#,
        r#"mock_kms_xks_proxy_errors_total{store="cks-1",error="TimedOut",retryable="true"} 1"#,
        r#"mock_kms_external_key_store_throttle_total{store="cks-1"} 1"#,
        r#"mock_kms_xks_proxy_latency_seconds_bucket{store="cks-1",le="0.25"} 0"#,
        r#"mock_kms_xks_proxy_latency_seconds_bucket{store="cks-1",le="0.5"} 2"#,
        r#"mock_kms_xks_proxy_latency_seconds_bucket{store="cks-1",le="+Inf"} 2"#,
        r#"mock_kms_xks_proxy_latency_seconds_sum{store="cks-1"} 0.52"#,
        r#"mock_kms_xks_proxy_latency_seconds_count{store="cks-1"} 2"#,
        r#"mock_kms_xks_external_key_manager_states{store="cks-1",state="ACTIVE"} 0"#,
        r#"mock_kms_xks_external_key_manager_states{store="cks-1",state="DEGRADED"} 2"#,
        r#"mock_kms_xks_proxy_certificate_expires_in_seconds{store="cks-1"} 1727999"#,
        r#"mock_kms_xks_proxy_credential_age_seconds{store="cks-1"} 259200"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_deleted_store_has_no_metrics() {
    let (mut state, journal) = (state(), Journal::default());
    journal.record(call(0, None, "xks.example.com"));
    journal.count_throttled("cks-1");
    assert!(text(File::Metrics, &state, &journal).contains("cks-1"));
    state.delete_store("cks-1").unwrap();
    assert!(!text(File::Metrics, &state, &journal).contains("cks-1"));
}

/// CloudWatch has no value then either.
#[test]
fn a_wildcard_certificate_has_no_expiry() {
    let journal = Journal::default();
    journal.record(call(0, None, "*.example.com"));
    assert!(!text(File::Metrics, &state(), &journal).contains("expires_in_seconds{"));
}
