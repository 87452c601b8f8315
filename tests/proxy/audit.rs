//! The audit log of a running proxy: one record a request that was authenticated, whatever ends it; failures of the
//! disk; rotation, restart and verification. The chain itself is tested in `src/audit/tests.rs`.

mod disconnects;
mod drain;
mod failures;
mod proxy_protocol;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use xks_harness::binary::program;
use xks_harness::proxy::main_store;
use xks_harness::request::{decrypt_body, encrypt_body};
use xks_harness::{Http, Proxy, Setup, SoftHsm, XksRequest};

/// Where an audit log is, and what is in it.
struct AuditFolder(TempDir);

impl AuditFolder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("audit.log")
    }

    /// A proxy that writes here; `lines` are further ones of `[audit]`.
    fn setup(&self, lines: &str) -> Setup {
        self.setup_of(lines, Setup::default())
    }

    fn setup_of(&self, lines: &str, setup: Setup) -> Setup {
        let more = format!("{}\n[audit]\npath = {:?}\n{lines}\n", setup.more, self.path());
        Setup { more, ..setup }
    }

    /// The records of requests so far.
    fn requests(&self) -> Vec<Value> {
        requests(&self.path())
    }

    /// The records of requests once there are so many.
    async fn wait_for_requests(&self, count: usize) -> Vec<Value> {
        let until = std::time::Instant::now() + xks_harness::proxy::PATIENCE;
        loop {
            let requests = self.requests();
            if requests.len() >= count {
                return requests;
            }
            assert!(std::time::Instant::now() < until, "{count} records are not there: {requests:?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn requests(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    // The last line may be half written.
    let records = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let records = records.map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["type"] == "request").collect()
}

fn verify(arguments: &[&str], paths: &[PathBuf]) -> Output {
    Command::new(program("xks-proxy")).args(["audit", "verify"]).args(arguments).args(paths).output().unwrap()
}

fn accept(paths: &[PathBuf]) -> String {
    let output = verify(&[], paths);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text
}

/// Ends in order, while connections can hear that they are to close.
async fn end(mut proxy: Proxy) {
    proxy.signal("TERM");
    let ended = tokio::task::spawn_blocking(move || (proxy.wait_for_exit(), proxy.all_output()));
    let (status, output) = ended.await.unwrap();
    assert!(status.success(), "{output}");
}

fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"a plaintext", None, false))
}

#[tokio::test]
async fn each_authenticated_request_has_one_record_and_nobody_else_has_any() {
    const MARKER: &[u8] = b"MARKER-PLAINTEXT-91c2";
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup("")).await;
    let mut connection = proxy.connect(Http::Two).await;
    let store = main_store();
    let mut body = encrypt_body(MARKER, Some(b"aad"), true);
    body["requestMetadata"]["awsSourceVpce"] = json!("vpce-1");
    body["requestMetadata"]["kmsNew"] = json!({ "nested": ["new"] });
    let encrypted = connection.send(&XksRequest::encrypt(&store, "demo", &body)).await;
    let decrypt = XksRequest::decrypt(&store, "demo", &decrypt_body(&encrypted.ok(), Some(b"aad")));
    connection.send(&decrypt).await.ok();
    connection.send(&XksRequest::metadata(&store, "demo")).await.ok();
    connection.send(&XksRequest::health(&store)).await.ok();
    assert_eq!(connection.send(&XksRequest::metadata(&store, "absent")).await.status, 404);
    let mut broken = encrypt();
    broken.body.truncate(9);
    assert_eq!(connection.send(&broken).await.status, 400);
    // Strangers.
    let mut forged = encrypt();
    forged.signing.as_mut().unwrap().secret_access_key = "another+secret/another+secret/another+sec+".into();
    assert_eq!(connection.send(&forged).await.status, 401);
    let mut nowhere = encrypt();
    nowhere.path = "/nowhere/kms/xks/v1/health".to_owned();
    assert_eq!(connection.send(&nowhere).await.status, 404);
    let peer = proxy.wait_for_log(|line| line["operation"] == "Decrypt")["peer"].clone();
    end(proxy).await;

    let records = folder.requests();
    let ends: Vec<_> = records.iter().map(|record| (&record["operation"], &record["outcome"])).collect();
    let expected = [
        ("Encrypt", "ok"),
        ("Decrypt", "ok"),
        ("GetKeyMetadata", "ok"),
        ("GetHealthStatus", "ok"),
        ("GetKeyMetadata", "KeyNotFoundException"),
        ("Encrypt", "ValidationException"),
    ];
    assert_eq!(
        ends,
        expected
            .map(|(operation, outcome)| (json!(operation), json!(outcome)))
            .iter()
            .map(|(a, b)| (a, b))
            .collect::<Vec<_>>()
    );
    let record = &records[0];
    for (field, expected) in [
        ("store", json!("main")),
        ("externalKeyId", json!("demo")),
        ("keyVersion", json!(1)),
        ("accessKeyId", json!(store.signing.access_key_id)),
        ("peer", peer),
        ("balancer", Value::Null),
        ("requestMetadata", body["requestMetadata"].clone()),
        ("isHedged", json!(false)),
        ("hsmCalls", json!(2)),
        ("http", json!("2")),
        ("requestBytes", json!(body.to_string().len())),
        ("answerBytes", json!(encrypted.body.len())),
    ] {
        assert_eq!(record[field], expected, "{field} in {record}");
    }
    assert!(record["tokenSerial"].as_str().is_some_and(|serial| !serial.is_empty()), "{record}");
    assert!(record["totalUs"].as_u64() >= record["hsmUs"].as_u64(), "{record}");
    let text = std::fs::read_to_string(folder.path()).unwrap();
    let encrypted = encrypted.json();
    let marker = xks_harness::request::base64(MARKER);
    let ciphertext = encrypted["ciphertext"].as_str().unwrap();
    for secret in
        [std::str::from_utf8(MARKER).unwrap(), &marker, ciphertext, &store.signing.secret_access_key]
    {
        assert!(!text.contains(secret), "{secret} is in the audit log");
    }
    assert!(accept(&[folder.path()]).contains("whole: records 1 to 8"));
}

/// Three lives, two files, one of them ended by kill -9 in the middle of its work.
#[tokio::test]
async fn the_chain_is_whole_over_kill_restart_and_rotation() {
    let folder = AuditFolder::new();
    let (setup, token) = (folder.setup(""), Arc::new(SoftHsm::with_keys()));
    let mut proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut connection = proxy.connect(Http::Two).await;
        clients.push(tokio::spawn(async move { while connection.try_send(&encrypt()).await.is_ok() {} }));
    }
    folder.wait_for_requests(30).await;
    proxy.signal("KILL");
    let _ = proxy.wait_for_exit();
    for client in clients {
        client.await.unwrap();
    }
    drop(proxy);
    let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
    let mut connection = proxy.connect(Http::Two).await;
    let before = folder.requests().len();
    connection.send(&encrypt()).await.ok();
    folder.wait_for_requests(before + 1).await;
    // While requests go on, logrotate comes by.
    let requests = tokio::spawn(async move {
        for _ in 0..50 {
            connection.send(&encrypt()).await.ok();
        }
    });
    let moved = folder.path().with_extension("1");
    std::fs::rename(folder.path(), &moved).unwrap();
    proxy.signal("HUP");
    requests.await.unwrap();
    let _ = proxy.wait_for_log(|line| line["message"] == "the audit log goes on in a new file");
    end(proxy).await;
    let after = requests_of(&[moved.clone(), folder.path()]);
    assert_eq!(after, before + 51);
    let files = [folder.path(), moved];
    let text = accept(&files);
    assert!(text.contains("ends with an orderly stop"), "{text}");
    // The last life alone does not tell what was before it.
    assert_eq!(verify(&[], &files[..1]).status.code(), Some(1));
}

fn requests_of(paths: &[PathBuf]) -> usize {
    paths.iter().map(|path| requests(path).len()).sum()
}

#[tokio::test]
async fn the_head_that_was_told_finds_a_tail_that_is_cut() {
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup("hmac_key = \"0123456789abcdef0123456789abcdef\"")).await;
    let mut connection = proxy.connect(Http::One).await;
    connection.send(&encrypt()).await.ok();
    folder.wait_for_requests(1).await;
    proxy
        .wait_for("/metrics", |_, text| {
            text.contains("\nxks_audit_records_total 1\n") && text.contains("xks_audit_head{hash=")
        })
        .await;
    proxy.signal("TERM");
    let line = proxy.wait_for_log(|line| line["message"] == "audit head" && line["records"] == 3);
    let head = line["hash"].as_str().unwrap().to_owned();
    drop(proxy);
    let key_file = folder.0.path().join("key");
    std::fs::write(&key_file, "0123456789abcdef0123456789abcdef\n").unwrap();
    let key = ["--hmac-key-file", key_file.to_str().unwrap()];
    let with_head = [&key[..], &["--expect-head", &head]].concat();
    assert_eq!(verify(&with_head, &[folder.path()]).status.code(), Some(0));
    assert_eq!(verify(&[], &[folder.path()]).status.code(), Some(1), "without the key nothing can be said");
    let text = std::fs::read_to_string(folder.path()).unwrap();
    let cut: String = text.split_inclusive('\n').take(2).collect();
    std::fs::write(folder.path(), cut).unwrap();
    assert_eq!(verify(&key, &[folder.path()]).status.code(), Some(0), "it does not show by itself");
    let output = verify(&with_head, &[folder.path()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("the tail was cut off"));
    assert_eq!(verify(&[], &[folder.path().with_extension("absent")]).status.code(), Some(2));
}

/// Rotation compresses what it moves away: that is no tampering, and no verdict either.
#[tokio::test]
async fn a_compressed_file_is_no_tampering() {
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup("")).await;
    proxy.connect(Http::Two).await.send(&encrypt()).await.ok();
    end(proxy).await;
    let rotated = folder.path().with_extension("log-20260131");
    std::fs::rename(folder.path(), &rotated).unwrap();
    accept(std::slice::from_ref(&rotated));
    assert!(Command::new("gzip").arg(&rotated).status().unwrap().success());
    let compressed = folder.path().with_extension("log-20260131.gz");
    let output = verify(&[], std::slice::from_ref(&compressed));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("{} is compressed: gunzip it first", compressed.display())), "{said}");
    assert!(output.stdout.is_empty(), "nothing is said of the chain");
    assert!(Command::new("gunzip").arg(&compressed).status().unwrap().success());
    accept(&[rotated]);
}

#[tokio::test]
async fn a_second_proxy_on_the_same_file_does_not_start() {
    let folder = AuditFolder::new();
    let setup = folder.setup("");
    let token = Arc::new(SoftHsm::with_keys());
    let first = Proxy::start_on(&setup, Arc::clone(&token)).await;
    let config = tempfile::tempdir().unwrap();
    let config = (setup.write(config.path(), &token), config);
    let output =
        Command::new(program("xks-proxy")).args(["serve", "--config"]).arg(&config.0).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("is in use by another process"), "{text}");
    first.connect(Http::Two).await.send(&encrypt()).await.ok();
}

/// Lines of requests that are not authenticated are limited, and counted. No record comes of them.
#[tokio::test]
async fn strangers_fill_neither_the_log_nor_the_audit_log() {
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup("")).await;
    let mut connection = proxy.connect(Http::Two).await;
    let mut unsigned = encrypt();
    unsigned.signing = None;
    let mut sent = 0_u32;
    while proxy.metric("xks_log_lines_suppressed_total").await == 0.0 {
        for _ in 0..500 {
            assert_eq!(connection.send(&unsigned).await.status, 401);
        }
        sent += 500;
        assert!(sent < 50_000, "nothing is left out");
    }
    assert_eq!(proxy.metric(r#"xks_authentication_failures_total{reason="header"}"#).await, f64::from(sent));
    // Who is known has a line nevertheless.
    let known = XksRequest::metadata(&main_store(), "demo");
    connection.send(&known).await.ok();
    let _ = proxy.wait_for_log(|line| line["outcome"] == "ok");
    end(proxy).await;
    assert_eq!(folder.requests().len(), 1);
}
