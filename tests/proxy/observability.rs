//! Admin listener, metrics and the log: what operators see, and what they must never see.

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use xks_harness::proxy::main_store;
use xks_harness::request::{base64, bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Http, Proxy, Setup, XksRequest};

fn request_id(body: &Value) -> String {
    body["requestMetadata"]["kmsRequestId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_admin_listener_answers_and_changes_nothing() {
    let proxy = Proxy::start(&Setup::default()).await;
    assert_eq!(proxy.admin("/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(proxy.admin("/readyz").await, (200, "ready\n".to_owned()));
    let (status, text) = proxy.admin("/readyz?verbose").await;
    let lines: Vec<_> = text.lines().collect();
    let absent = "store main: no token is known to hold the key with label \"absent\"";
    assert_eq!((status, &lines[..3]), (200, &["ready", "token softhsm active", absent][..]));
    assert!(lines.len() == 4 && lines[3].starts_with("configuration 1 loaded "), "{text}");
    assert_eq!(proxy.admin("/nothing").await.0, 404);
    assert_eq!(proxy.admin("/ping").await.0, 404, "/ping is for the other listeners");
    let (status, metrics) = proxy.admin("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("xks_token_connected{token=\"softhsm\"} 1"), "{metrics}");
    assert!(metrics.contains("xks_token_health{token=\"softhsm\"} 2"), "{metrics}");
}

#[tokio::test]
async fn the_plain_listener_answers_ping_and_nothing_else() {
    let proxy = Proxy::start(&Setup::default()).await;
    let get = |path: &'static str| xks_harness::client::plain_get(proxy.ping, path);
    assert_eq!(get("/ping").await, (200, "ready\n".to_owned()));
    for path in ["/metrics", "/readyz", "/main/kms/xks/v1/health", "/"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn requests_are_counted_and_timed() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let store = main_store();
    let calls = r#"xks_hsm_call_seconds_count{call="encrypt",token="softhsm"}"#;
    // Health probes are rare, and keys are proven before the proxy is ready.
    let calls_before = proxy.metric(calls).await;
    for _ in 0..3 {
        connection.send(&XksRequest::encrypt(&store, "demo", &encrypt_body(b"x", None, false))).await.ok();
    }
    connection.send(&XksRequest::metadata(&store, "absent")).await;
    let mut unsigned = XksRequest::health(&store);
    unsigned.signing = None;
    connection.send(&unsigned).await;
    for (name, value) in [
        (r#"xks_requests_total{error="none",operation="Encrypt",store="main"}"#, 3.0),
        (r#"xks_requests_total{error="KeyNotFoundException",operation="GetKeyMetadata",store="main"}"#, 1.0),
        (r#"xks_authentication_failures_total{reason="header"}"#, 1.0),
        (r#"xks_request_seconds_count{operation="Encrypt",store="main"}"#, 3.0),
        (calls, calls_before + 3.0),
        ("xks_connections", 1.0),
    ] {
        assert_eq!(proxy.metric(name).await, value, "{name}");
    }
}

#[tokio::test]
async fn each_request_leaves_one_line_with_who_what_and_how_long() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::One).await;
    let store = main_store();
    let mut body = encrypt_body(b"x", Some(b"aad"), true);
    body["requestMetadata"]["awsSourceVpce"] = json!("vpce-1");
    body["requestMetadata"]["kmsRecipient"] = json!({ "nested": ["new"] });
    connection.send(&XksRequest::encrypt(&store, "demo", &body)).await.ok();
    let line = proxy.request_log(&request_id(&body));
    for (field, expected) in [
        ("operation", json!("Encrypt")),
        ("store", json!("main")),
        ("external_key_id", json!("demo")),
        ("outcome", json!("ok")),
        ("access_key_id", json!(store.signing.access_key_id)),
        ("kmsOperation", json!("Encrypt")),
        ("kmsKeyArn", body["requestMetadata"]["kmsKeyArn"].clone()),
        ("kmsViaService", json!("s3.us-east-1.amazonaws.com")),
        ("awsPrincipalArn", json!("arn:aws:iam::123456789012:user/Alice")),
        ("awsSourceVpce", json!("vpce-1")),
        ("other_metadata", json!(r#"{"kmsRecipient":{"nested":["new"]}}"#)),
        ("key_version", json!(1)),
        ("hsm_calls", json!(2)),
        ("http", json!("1.1")),
    ] {
        assert_eq!(line[field], expected, "{field} in {line}");
    }
    for field in ["total_us", "queue_us", "hsm_us"] {
        assert!(line[field].is_u64(), "{field} in {line}");
    }
    let (_, health) = proxy.admin("/readyz?verbose").await;
    assert!(health.contains("softhsm"));
    assert!(line["token_serial"].as_str().is_some_and(|serial| !serial.is_empty()), "{line}");
    let lines = proxy.log_lines();
    assert_eq!(lines.iter().filter(|line| line["kmsRequestId"] == request_id(&body)).count(), 1);
}

#[tokio::test]
async fn a_failed_request_leaves_its_error_and_the_true_reason() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let body = encrypt_body(b"x", None, false);
    let answer = connection.send(&XksRequest::encrypt(&main_store(), "decrypt-only", &body)).await;
    assert_eq!(answer.error().0, 400);
    let line = proxy.request_log(&request_id(&body));
    assert_eq!(line["outcome"], "InvalidKeyUsageException");
    assert_eq!(line["reason"], "the key lacks CKA_ENCRYPT");
}

/// Text that KMS or a stranger chooses cannot forge a line of the log.
#[tokio::test]
async fn line_breaks_in_metadata_stay_inside_their_line() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let mut body = encrypt_body(b"x", None, false);
    let id = "a\n{\"level\":\"ERROR\",\"message\":\"forged\"}\u{1b}[31m";
    body["requestMetadata"]["kmsRequestId"] = json!(id);
    connection.send(&XksRequest::encrypt(&main_store(), "demo", &body)).await.ok();
    assert_eq!(proxy.request_log(id)["outcome"], "ok");
    assert!(!proxy.log_lines().iter().any(|line| line["message"] == "forged"));
}

#[tokio::test]
async fn no_plaintext_and_no_secret_is_ever_logged_or_counted() {
    const MARKER: &[u8] = b"MARKER-PLAINTEXT-7b1f3c";
    let setup = Setup { more: "[log]\nlevel = \"trace\"".to_owned(), ..Setup::default() };
    let proxy = Proxy::start(&setup).await;
    let store = main_store();
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let body = encrypt_body(MARKER, Some(MARKER), true);
        let encrypted = connection.send(&XksRequest::encrypt(&store, "demo", &body)).await.ok();
        let body = decrypt_body(&encrypted, Some(MARKER));
        let decrypted = connection.send(&XksRequest::decrypt(&store, "demo", &body)).await.ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), MARKER);
        // Failures tempt to quote what failed.
        for (field, value) in
            [("plaintext", json!([base64(MARKER)])), ("encryptionAlgorithm", json!(base64(MARKER)))]
        {
            let mut bad = encrypt_body(MARKER, None, false);
            bad[field] = value;
            assert_eq!(connection.send(&XksRequest::encrypt(&store, "demo", &bad)).await.error().0, 400);
        }
        let mut broken = XksRequest::encrypt(&store, "demo", &encrypt_body(MARKER, None, false));
        broken.body.truncate(broken.body.len() - 2);
        assert_eq!(connection.send(&broken).await.error().0, 400);
        let _ = proxy.request_log(body["requestMetadata"]["kmsRequestId"].as_str().unwrap());
    }
    let output = proxy.all_output() + &proxy.admin("/metrics").await.1;
    let marker = String::from_utf8(MARKER.to_vec()).unwrap();
    let secrets = [&marker, &base64(MARKER), &store.signing.secret_access_key, xks_harness::token::PIN];
    for secret in secrets {
        assert!(!output.contains(secret), "{secret} is in the output");
    }
}

/// A log that nobody reads any more costs lines, which are counted, and no request.
#[tokio::test]
async fn a_log_that_cannot_be_written_delays_no_request() {
    // Each request has dozens of lines at this level. What may wait, and what fits into the pipe, are some 17,000.
    const MAX_REQUESTS: usize = 17_000;
    let setup = Setup { more: "[log]\nlevel = \"trace\"".to_owned(), ..Setup::default() };
    let proxy = Proxy::start(&setup).await;
    proxy.stop_reading_the_log();
    let mut connection = proxy.connect(Http::Two).await;
    let mut sent = 0;
    while proxy.metric("xks_log_lines_dropped_total").await == 0.0 {
        assert!(sent < MAX_REQUESTS, "no line was dropped");
        for _ in 0..100 {
            let request = Request::post("https://localhost/nowhere").body(Full::default()).unwrap();
            assert_eq!(connection.try_send_http(request).await.unwrap().status, 404);
        }
        sent += 100;
    }
    let mut connection = proxy.connect(Http::One).await;
    connection.send(&XksRequest::metadata(&main_store(), "demo")).await.ok();
}
