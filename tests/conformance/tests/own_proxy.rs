//! Our own proxy passes the whole suite, on SoftHSM2, with everything that it has not yet declared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::{Faults, Proxy, Setup, Signing, SoftHsm};

/// Does what the suite asks of a target's owner.
const HOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/own_proxy/hook.sh");

/// Long enough for a busy machine, and short enough for a key manager that is silent.
const TIMEOUTS: &str = "answer_ms = 2000\nfirst_answer_ms = 2000";

/// A proxy that reloads when the hook says so, with a module that misbehaves when the hook says so.
async fn start(faults: &Faults) -> Proxy {
    let disabled = "[[stores.keys]]\nexternal_key_id = \"disabled\"\nlabel = \"disabled\"\nenabled = false\n";
    let setup = faults.between(Setup {
        keys: Setup::default().keys + disabled,
        timeouts: TIMEOUTS.to_owned(),
        more: "[reload]\nwatch = false\n".to_owned(),
        ..Setup::default()
    });
    let token = Arc::new(SoftHsm::with_keys());
    token.generate("disabled", &["--usage", "encrypt,decrypt"]);
    token.generate("nested-other", &["--usage", "encrypt,decrypt"]);
    Proxy::start_on(&setup, token).await
}

/// The credential that a rotation brings.
fn next_signing() -> Signing {
    Signing::new("NEXTTESTKEYID234567ABCDEFG", "next+test+secret/next+test+secret/next+test+1")
}

/// Lays out beside the configuration what each action of the hook puts in place, and returns the hook's command.
fn hook(proxy: &Proxy, faults: &Faults) -> String {
    let (first, next) = (main_store().signing, next_signing());
    let configuration = fs::read_to_string(proxy.folder().join("xks-proxy.toml")).unwrap();
    let replaced = configuration
        .replace(&first.access_key_id, &next.access_key_id)
        .replace(&first.secret_access_key, &next.secret_access_key);
    let second = format!(
        "[[stores.credentials]]\naccess_key_id = {:?}\nsecret_access_key = {:?}\n[[stores.keys]]",
        next.access_key_id, next.secret_access_key
    );
    for (action, content) in [
        ("credentials-first", &*configuration),
        ("credentials-both", &configuration.replacen("[[stores.keys]]", &second, 1)),
        ("credentials-next", &replaced),
        ("hsm-failing", "* fail=CKR_DEVICE_ERROR\n"),
        ("hsm-silent", "* hang until_removed\n"),
        ("hsm-healthy", ""),
    ] {
        fs::write(proxy.folder().join(action), content).unwrap();
    }
    let (folder, control) = (proxy.folder().display(), faults.control().display());
    format!("sh {HOOK} {} {} {folder} {control}", proxy.pid(), proxy.admin)
}

#[tokio::test]
async fn our_proxy_passes_the_full_profile() {
    let faults = Faults::new();
    let proxy = start(&faults).await;
    let next = next_signing();
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
        .args(["--no-fqdn", "--no-port-443", "--no-mtls", "--profile", "full"])
        .args(["--hook", &hook(&proxy, &faults)])
        .arg("--trust-ca")
        .arg(proxy.folder().join("ca.pem"))
        .arg("--json")
        .arg(&report)
        .arg("--html")
        .arg(&html)
        .env("SIGV4_ACCESS_KEY_ID", &main.signing.access_key_id)
        .env("SIGV4_SECRET_ACCESS_KEY", &main.signing.secret_access_key)
        .env("NEXT_SIGV4_ACCESS_KEY_ID", &next.access_key_id)
        .env("NEXT_SIGV4_SECRET_ACCESS_KEY", &next.secret_access_key)
        .env("SECOND_SIGV4_ACCESS_KEY_ID", &nested.signing.access_key_id)
        .env("SECOND_SIGV4_SECRET_ACCESS_KEY", &nested.signing.secret_access_key)
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if let Ok(folder) = std::env::var("KEEP_REPORT") {
        fs::copy(&html, std::path::Path::new(&folder).join("report.html")).unwrap();
        fs::write(std::path::Path::new(&folder).join("report.txt"), &text).unwrap();
    }
    let report: Value =
        serde_json::from_slice(&fs::read(&report).unwrap_or_default()).unwrap_or_else(|_| panic!("{text}"));
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
        !text.contains(secret) && !fs::read_to_string(&html).unwrap().contains(secret.as_str()),
        "the secret is in the report"
    );
}
