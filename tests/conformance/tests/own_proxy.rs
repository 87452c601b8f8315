//! Our own proxy passes the whole suite, on SoftHSM2, with everything that it has not yet declared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::Command;

use serde_json::Value;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::{Proxy, Setup};

#[tokio::test]
async fn our_proxy_passes_the_full_profile() {
    let disabled = "[[stores.keys]]\nexternal_key_id = \"disabled\"\nlabel = \"disabled\"\nenabled = false\n";
    let keys = Setup::default().keys + disabled;
    let token = std::sync::Arc::new(xks_harness::SoftHsm::with_keys());
    token.generate("disabled", &["--usage", "encrypt,decrypt"]);
    token.generate("nested-other", &["--usage", "encrypt,decrypt"]);
    let proxy = Proxy::start_on(&Setup { keys, ..Setup::default() }, token).await;
    let report = proxy.folder().join("report.json");
    let html = proxy.folder().join("report.html");
    let (main, nested) = (main_store(), nested_store());
    let output = Command::new(env!("CARGO_BIN_EXE_xks-conformance"))
        .args(["--endpoint", &format!("https://localhost:{}", proxy.address.port())])
        .args(["--resolve", &proxy.address.to_string(), "--uri-prefix", &main.prefix])
        .args(["--key-id", "demo", "--second-key-id", "demo-2", "--encrypt-only-key-id", "encrypt-only"])
        .args(["--decrypt-only-key-id", "decrypt-only", "--impotent-key-id", "no-usage"])
        .args(["--disabled-key-id", "disabled", "--second-uri-prefix", &nested.prefix])
        .args(["--second-store-key-id", "other", "--ping-path", "/ping"])
        .args([
            "--no-fqdn",
            "--no-port-443",
            "--no-mtls",
            "--no-rotation",
            "--no-hsm-hook",
            "--profile",
            "full",
        ])
        .arg("--trust-ca")
        .arg(proxy.folder().join("ca.pem"))
        .arg("--json")
        .arg(&report)
        .arg("--html")
        .arg(&html)
        .env("SIGV4_ACCESS_KEY_ID", &main.signing.access_key_id)
        .env("SIGV4_SECRET_ACCESS_KEY", &main.signing.secret_access_key)
        .env("SECOND_SIGV4_ACCESS_KEY_ID", &nested.signing.access_key_id)
        .env("SECOND_SIGV4_SECRET_ACCESS_KEY", &nested.signing.secret_access_key)
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if let Ok(folder) = std::env::var("KEEP_REPORT") {
        std::fs::copy(&html, std::path::Path::new(&folder).join("report.html")).unwrap();
        std::fs::write(std::path::Path::new(&folder).join("report.txt"), &text).unwrap();
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap_or_default())
        .unwrap_or_else(|_| panic!("{text}"));
    let wrong: Vec<_> = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| ["failed", "skipped"].contains(&case["outcome"].as_str().unwrap()))
        .map(|case| {
            format!(
                "{} {}: expected {}, seen {}{}",
                case["level"], case["id"], case["expected"], case["seen"], case["missing"]
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(output.status.success(), "{text}");
    let secret = &main.signing.secret_access_key;
    assert!(
        !text.contains(secret) && !std::fs::read_to_string(&html).unwrap().contains(secret.as_str()),
        "the secret is in the report"
    );
}
