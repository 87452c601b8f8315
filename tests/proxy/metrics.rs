//! What /metrics shows agrees with the table, and with what has happened.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use xks_harness::client::raw_http1;
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, RawConnection, Setup, XksRequest};
use xks_proxy::metrics::{TABLE, Values};

/// Name and labels of every series in Prometheus's text format.
fn series(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parse = |line: &str| {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
        let pairs =
            labels.split_terminator("\",").filter_map(|pair| pair.trim_end_matches('"').split_once("=\""));
        (name.to_owned(), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    };
    lines.map(parse).collect()
}

#[tokio::test]
async fn every_series_is_one_of_the_table() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let store = main_store();
    connection.send(&XksRequest::encrypt(&store, "demo", &encrypt_body(b"x", None, true))).await.ok();
    connection.send(&XksRequest::metadata(&store, "absent")).await;
    let mut unsigned = XksRequest::health(&store);
    unsigned.signing = None;
    connection.send(&unsigned).await;
    let (_, text) = proxy.admin("/metrics").await;
    let mut shown = BTreeSet::new();
    for (name, labels) in series(&text) {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_row = |row: &&xks_proxy::metrics::Row| {
            row.name == name || (row.kind == "histogram" && Some(row.name) == of_histogram)
        };
        let row = TABLE.iter().find(is_row).unwrap_or_else(|| panic!("{name} is not in the table"));
        shown.insert(row.name);
        let names: BTreeSet<_> = labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
        assert_eq!(names, row.labels.iter().map(|label| label.name).collect(), "{name}");
        for label in row.labels {
            if let Values::Known(words) = label.values {
                let value = &labels[label.name];
                assert!(words.contains(&value.as_str()), "{name} has {}={value}", label.name);
            }
        }
    }
    let without_event = ["xks_credential_created_timestamp_seconds", "xks_audit_head"];
    let missing: Vec<_> = TABLE
        .iter()
        .map(|row| row.name)
        .filter(|name| !shown.contains(name) && !without_event.contains(name))
        .collect();
    assert!(missing.is_empty(), "not shown: {missing:?}\n{text}");
}

#[tokio::test]
async fn errors_are_counted_as_kms_divides_them() {
    let proxy = Proxy::start(&Setup::default()).await;
    let errors = |kind: &str| format!(r#"xks_errors_total{{kind="{kind}",store="main"}}"#);
    let (_, text) = proxy.admin("/metrics").await;
    for kind in ["retryable", "non_retryable", "not_authenticated"] {
        assert!(text.contains(&format!("{} 0\n", errors(kind))), "{kind} begins at 0: {text}");
    }
    let mut connection = proxy.connect(Http::One).await;
    let store = main_store();
    connection.send(&XksRequest::metadata(&store, "demo")).await.ok();
    connection.send(&XksRequest::metadata(&store, "absent")).await;
    let mut forged = XksRequest::health(&store);
    forged.signing.as_mut().unwrap().secret_access_key.push('x');
    connection.send(&forged).await;
    assert_eq!(proxy.metric(&errors("retryable")).await, 0.0);
    assert_eq!(proxy.metric(&errors("non_retryable")).await, 1.0);
    assert_eq!(proxy.metric(&errors("not_authenticated")).await, 1.0);
}

/// An alert that wakes somebody is about what is counted as KMS's: errors, requests given up, and how long they took.
#[tokio::test]
async fn what_strangers_send_is_not_counted_as_kms_own() {
    let proxy = Proxy::start(&Setup::default()).await;
    let store = main_store();
    let request = XksRequest::encrypt(&store, "demo", &encrypt_body(b"x", None, false));
    let mut connection = proxy.connect(Http::One).await;
    let mut elsewhere = request.clone();
    elsewhere.path = "/elsewhere".to_owned();
    let mut unsigned = request.clone();
    unsigned.signing = None;
    let mut got = unsigned.clone();
    got.method = Method::GET;
    for request in [&elsewhere, &unsigned, &got] {
        assert_ne!(connection.send(request).await.status, 200);
    }
    // And one who leaves in the middle of a body.
    let bytes = raw_http1(&request, &format!("localhost:{}", proxy.address.port()));
    let mut leaving = RawConnection::open(proxy.address).await;
    let peer = leaving.local_address().to_string();
    leaving.send(&bytes[..bytes.len() - 1]).await;
    drop(leaving);
    let _ = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
    let (_, text) = proxy.admin("/metrics").await;
    for (series, value) in [
        (r#"xks_errors_total{kind="not_authenticated",store="none"}"#, 1),
        (r#"xks_errors_total{kind="non_retryable",store="none"}"#, 0),
        (r#"xks_errors_total{kind="non_retryable",store="main"}"#, 0),
        (r#"xks_errors_total{kind="retryable",store="main"}"#, 0),
        (r#"xks_requests_total{error="abandoned",operation="Encrypt",store="main"}"#, 0),
    ] {
        assert!(text.contains(&format!("{series} {value}\n")), "{series} is not {value}\n{text}");
    }
    assert!(!text.contains("xks_request_seconds_count{operation=\"Encrypt\""), "{text}");
}

/// Only who is authenticated can say that the clocks differ.
#[tokio::test]
async fn the_clock_skew_of_authenticated_requests_is_shown() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::One).await;
    let store = main_store();
    let skew = r#"xks_clock_skew_seconds{store="main"}"#;
    let mut late = XksRequest::metadata(&store, "demo");
    late.signing.as_mut().unwrap().skew_secs = -200;
    connection.send(&late).await.ok();
    // Seconds may pass between signing and verifying.
    assert!((-260.0..=-200.0).contains(&proxy.metric(skew).await));
    let before = proxy.metric(skew).await;
    let mut forged = late.clone();
    forged.signing.as_mut().unwrap().skew_secs = 100;
    forged.signing.as_mut().unwrap().secret_access_key.push('x');
    connection.send(&forged).await;
    assert_eq!(proxy.metric(skew).await, before);
}
