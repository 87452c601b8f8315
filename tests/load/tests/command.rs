//! The command: exit status, report, plot and the comparison of two targets.

#![allow(clippy::unwrap_used, reason = "a test's support may panic")]
#![allow(missing_docs)]

#[allow(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, certificate_file, serve};
use xks_load::echo::{EchoServer, echo};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn xks_load(server: &EchoServer, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xks-load"))
        .env_clear()
        .env("XKS_PROXY_HOST", format!("localhost:{}", server.address.port()))
        .env("RESOLVE", format!("localhost={}", server.address))
        .env("URI_PREFIX", "tenant-a")
        .env("SIGV4_ACCESS_KEY_ID", ACCESS_KEY_ID)
        .env("SIGV4_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        .env("KEY_ID", "key-1")
        .env("CURL_CA_BUNDLE", certificate_file(server))
        .args(args)
        .output()
        .unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_reports_the_target_process_and_keeps_the_secret() {
    let server = serve(echo);
    let (json, plot) = (file("run.json"), file("run.svg"));
    let process_id = std::process::id().to_string();
    let output = xks_load(
        &server,
        &[
            "--rate",
            "200",
            "--duration-secs",
            "0.5",
            "--warmup-secs",
            "0.1",
            "--cdiv",
            "--check-ivs",
            "--presign",
            "--target-pid",
            &process_id,
            "--json",
            json.to_str().unwrap(),
            "--plot",
            plot.to_str().unwrap(),
        ],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("100 scheduled, 100 ok, 0 failed, 0 dropped"), "{text}");
    assert!(text.contains("pre-signed, renewed every 60 s"), "{text}");
    let report = read_json(&json);
    assert_eq!(report["summary"]["ok"], 100);
    assert_eq!(report["summary"]["latencyMs"]["count"], 100);
    assert_eq!(report["summary"]["ivs"]["repeated"], 0);
    assert_eq!(report["settings"]["signing"], "pre-signed, renewed every 60 s");
    assert!(report["summary"]["targetProcess"]["rssAfterBytes"].as_u64().unwrap() > 100_000);
    assert!(report["summary"]["targetProcess"]["threads"].as_u64().unwrap() >= 2);
    assert!(!report.to_string().contains(SECRET_ACCESS_KEY) && !text.contains(SECRET_ACCESS_KEY));
    assert!(std::fs::read_to_string(plot).unwrap().ends_with("</svg>\n"));
}

#[test]
fn the_exit_status_tells_a_broken_limit_from_a_run_that_did_not_come_about() {
    let server = serve(echo);
    let status = |args: &[&str]| {
        let closed = ["--closed", "--warmup-secs", "0", "--max-requests", "50", "--connections", "2"];
        xks_load(&server, &[&closed[..], args].concat()).status.code()
    };
    assert_eq!(status(&[]), Some(0));
    assert_eq!(status(&["--max-p99-ms", "0.000001"]), Some(1));
    assert_eq!(status(&["--trust-ca", "/nonexistent"]), Some(2));
    assert_eq!(status(&["--target-pid", "4294967295"]), Some(2));
    assert_eq!(status(&["--streams", "2"]), Some(2));
    assert_eq!(status(&["--rate", "1"]), Some(2));
}

#[test]
fn an_untrusted_certificate_is_refused() {
    let (server, other) = (serve(echo), serve(echo));
    let other_root = certificate_file(&other);
    let output = xks_load(
        &server,
        &[
            "--closed",
            "--warmup-secs",
            "0",
            "--max-requests",
            "1",
            "--trust-ca",
            other_root.to_str().unwrap(),
        ],
    );
    let fault = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(fault.contains("TLS handshake"), "{fault}");
}

#[test]
fn two_targets_are_compared_round_by_round() {
    let (first, second) = (serve(echo), serve(echo));
    let (names, json, plot) = (file("b.env"), file("versus.json"), file("versus.svg"));
    let port = second.address.port();
    let root = certificate_file(&second);
    let lines = format!(
        "export XKS_PROXY_HOST=localhost:{port}\nRESOLVE=localhost={}\nCURL_CA_BUNDLE='{}'\n",
        second.address,
        root.display()
    );
    std::fs::write(&names, lines).unwrap();
    let output = xks_load(
        &first,
        &[
            "--closed",
            "--warmup-secs",
            "0",
            "--max-requests",
            "100",
            "--connections",
            "2",
            "--rounds",
            "3",
            "--versus",
            names.to_str().unwrap(),
            "--json",
            json.to_str().unwrap(),
            "--plot",
            plot.to_str().unwrap(),
        ],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report = read_json(&json);
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 3);
    assert!(rounds.iter().all(|round| round["a"]["ok"] == 100 && round["b"]["ok"] == 100));
    assert_eq!(report["targets"]["b"]["host"], format!("localhost:{port}"));
    for ratio in report["comparison"].as_array().unwrap() {
        let figures = |name: &str| -> Vec<f64> {
            ratio[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
        };
        let (a, b, ratios) = (figures("a"), figures("b"), figures("ratios"));
        for round in 0..3 {
            assert!((b[round] / a[round] - ratios[round]).abs() < 1e-9, "{ratio}");
        }
        let [low, median, high] = ["low", "median", "high"].map(|name| ratio[name].as_f64().unwrap());
        assert!(low <= median && median <= high, "{ratio}");
        assert!((ratio["coverage"].as_f64().unwrap() - 0.75).abs() < 1e-9, "{ratio}");
    }
    assert!(text.contains("median B/A"), "{text}");
    assert!(std::fs::read_to_string(plot).unwrap().contains("B: localhost"));
}
