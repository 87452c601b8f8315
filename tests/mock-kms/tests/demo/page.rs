//! The page in headless Chromium, after a demo has filled it.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::scene::{Running, folder, text};

/// The page as a browser has it after its script has run, and what the browser complained of.
fn browse(url: &str) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser())
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
        .args(["--virtual-time-budget=3000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .output()
        .unwrap();
    let complaints =
        text(&output.stderr).lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (text(&output.stdout), complaints)
}

fn browser() -> &'static str {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let is_there = |name: &&str| {
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    names.into_iter().find(is_there).expect("Chromium is not installed (Debian: apt-get install chromium)")
}

fn curl(url: &str) -> String {
    Running::shell(&format!("curl -sSf '{url}'"))
}

#[test]
fn it_shows_stores_keys_calls_layers_and_times() {
    let running = Running::start(folder());
    let data: Value = serde_json::from_str(&curl(&format!("{}/page.json", running.url))).unwrap();
    let calls = data["calls"].as_array().unwrap();
    let made = calls.iter().find(|call| call["kmsOperation"] == "GenerateDataKey").unwrap();
    let (page, complaints) = browse(&format!("{}/#call-{}", running.url, made["number"]));
    assert_eq!(complaints, [""; 0]);
    let visible: String =
        page.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| format!("{text}|")).collect();
    let proxy_calls = calls.iter().flat_map(|call| call["proxyCalls"].as_array().unwrap()).count();
    let key_id = data["keys"][0]["id"].as_str().unwrap();
    for expected in [
        "CONNECTED|",
        "https://localhost/demo/kms/xks/v1|",
        "ACTIVE|",
        "1 × InvalidStateException|",
        key_id,
        "alias/demo|",
        "▾ GenerateDataKey|",
        "KMSInvalidStateException|",
        "plaintext|",
        "not shown|",
        "encrypted by KMS|",
        "60 bytes|",
        "encrypted again by the proxy|",
        "250 ms|",
        &format!("last {proxy_calls} calls, "),
    ] {
        assert!(visible.contains(expected), "{expected} is missing in\n{visible}");
    }
    assert_eq!(
        page.matches(r#"class="cross""#).count(),
        2,
        "the two calls that failed are crossed in the plot"
    );
    assert!(page.matches(r#"class="dot""#).count() >= 6, "the others are dots");
    let start = made["layers"][1]["startHex"].as_str().unwrap();
    assert_eq!(start.len(), 32);
    assert!(visible.contains(start), "{start} is missing in\n{visible}");
}

/// Names and descriptions are the callers', who may be anybody.
#[test]
fn what_callers_wrote_is_text_and_no_markup() {
    let running = Running::start(folder());
    let description = "<img src=x onerror=alert(1)>";
    let create = running.paste("# curl").replace("DescribeKey", "CreateKey");
    let create =
        create.replace(r#"{"KeyId": "alias/demo"}"#, &format!(r#"{{"Description": "{description}"}}"#));
    let made: Value = serde_json::from_str(&Running::shell(&create)).unwrap();
    assert_eq!(made["KeyMetadata"]["Description"], description);
    let (page, complaints) = browse(&format!("{}/", running.url));
    assert_eq!(complaints, [""; 0]);
    assert!(page.contains("title=\"&lt;img src=x") || page.contains("title=\"<img src=x"), "{page}");
    assert!(!page.replace(&format!("title=\"{description}\""), "").contains("<img"), "{page}");
}

#[test]
fn metrics_are_served_and_secrets_are_not() {
    let running = Running::start(folder());
    let metrics = curl(&format!("{}/metrics", running.url));
    for name in [
        "mock_kms_custom_key_store_connected{",
        "mock_kms_xks_proxy_errors_total{",
        "mock_kms_xks_proxy_latency_seconds_bucket{",
        "mock_kms_xks_external_key_manager_states{",
        "mock_kms_xks_proxy_certificate_expires_in_seconds{",
        "mock_kms_xks_proxy_credential_age_seconds{",
        "mock_kms_external_key_store_throttle_total{",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} is missing in\n{metrics}");
    }
    let secret = std::fs::read_to_string(folder().join("demo.secret")).unwrap();
    let page: String =
        ["", "page.json", "metrics"].map(|path| curl(&format!("{}/{path}", running.url))).concat();
    assert!(!page.contains(secret.trim()));
    let missing =
        Running::shell(&format!("curl -sS -o /dev/null -w '%{{http_code}}' {}/no-such-page", running.url));
    assert_eq!(missing, "404");
}
