//! The command line: what each option does, and why something cannot be started.

use std::process::Command;

use serde_json::json;

use crate::fake_proxy::FakeProxy;
use crate::mock::{AUTHORIZATION, Mock, store_members};

fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mock-kms")).arg("serve").args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn wrong_arguments_are_told_apart_from_what_cannot_be_done() {
    for (arguments, code, text) in [
        (&["--listen", "somewhere"][..], 2, "--listen"),
        (&["--resolve", "localhost"], 2, "NAME=ADDRESS:PORT"),
        (&["--resolve", "https://localhost=127.0.0.1:1"], 2, "without https://"),
        (
            &["--resolve", "localhost=127.0.0.1:1", "--resolve", "LOCALHOST=127.0.0.1:2"],
            2,
            "twice where LOCALHOST",
        ),
        (&["--tls-cert", "x"], 2, "--tls-key"),
        (&["--reset"], 2, "--state"),
        (&["--account-id", "1"], 2, "twelve digits"),
        (&["--region", "Frankfurt"], 2, "us-east-1"),
        (&["--region", "us-east"], 2, "us-east-1"),
        (&["--ca-file", "/nowhere/ca.pem"], 1, "/nowhere/ca.pem"),
        (
            &["--listen", "127.0.0.1:0", "--tls-cert", "/nowhere/a", "--tls-key", "/nowhere/b"],
            1,
            "/nowhere/a",
        ),
        (&["--credentials", "/nowhere/callers.toml"], 1, "/nowhere/callers.toml"),
        (&["--listen", "127.0.0.1:0", "--state", "/nowhere/state.json"], 1, "/nowhere/state.json"),
    ] {
        let (status, stderr) = refused(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    }
}

#[test]
fn files_that_are_wrong_are_named_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    for (flag, content) in [
        ("--state", "{\"s3cret\": 1}"),
        ("--credentials", "[[credentials]]\naccess_key_id = \"A\"\nsecret_key = \"s3cret\"\n"),
        ("--credentials", "credentials = []"),
        ("--ca-file", "s3cret"),
    ] {
        std::fs::write(&file, content).unwrap();
        let (status, stderr) = refused(&["--listen", "127.0.0.1:0", flag, file.to_str().unwrap()]);
        assert_eq!(status, Some(1), "{flag}: {stderr}");
        assert!(!stderr.contains("s3cret"), "{flag}: {stderr}");
    }
}

#[test]
fn a_state_that_cannot_be_saved_is_found_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    // In the way of the draft.
    std::fs::create_dir(folder.path().join("state.json.new")).unwrap();
    for more in [&[][..], &["--reset"]] {
        let arguments = [&["--listen", "127.0.0.1:0", "--state", file.to_str().unwrap()], more].concat();
        let (status, stderr) = refused(&arguments);
        assert_eq!(status, Some(1), "{stderr}");
        assert!(stderr.contains(&format!("{}: ", file.display())), "{stderr}");
    }
}

#[test]
fn a_taken_address_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (status, stderr) = refused(&["--listen", &address]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains(&address), "{stderr}");
}

#[test]
fn a_client_certificate_of_another_name_than_that_of_kms_is_warned_of() {
    // So that the process ends once it has read its files.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    for (name, is_warned_of) in
        [("cks.kms.us-east-1.amazonaws.com", false), ("cks.kms.eu-west-1.amazonaws.com", true)]
    {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(file("client.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(file("client.key"), key.serialize_pem()).unwrap();
        let identity = ["--client-cert", &file("client.pem"), "--client-key", &file("client.key")];
        let (status, stderr) = refused(&[&["--listen", &address], &identity[..]].concat());
        assert_eq!(status, Some(1), "{stderr}");
        assert_eq!(stderr.contains("warning") && stderr.contains(name), is_warned_of, "{stderr}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_proxy_that_wants_one() {
    let client =
        rcgen::generate_simple_self_signed(vec!["cks.kms.us-east-1.amazonaws.com".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(file("client.pem"), client.cert.pem()).unwrap();
    std::fs::write(file("client.key"), client.signing_key.serialize_pem()).unwrap();
    let proxy = FakeProxy::start_wanting(&client.cert.pem()).await;
    let without = Mock::start(proxy.address, &[]);
    let refused = without.fail("CreateCustomKeyStore", store_members("one")).await.0;
    assert_eq!(refused, "XksProxyUriUnreachableException");
    let identity = ["--client-cert", &file("client.pem"), "--client-key", &file("client.key")];
    let with = Mock::start(proxy.address, &identity);
    with.connected_store("one").await;
}

#[tokio::test]
async fn connecting_takes_as_long_as_the_option_says() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &["--connect-ms", "3600000"]);
    let store = mock.create_store("one").await;
    proxy.take_seen();
    mock.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": store })).await;
    assert_eq!(mock.store(&store).await["ConnectionState"], "CONNECTING");
    assert!(proxy.take_seen().is_empty());
}

#[tokio::test]
async fn account_and_region_stand_in_names() {
    let mock = Mock::start_with(&["--region", "eu-west-1", "--account-id", "000000000000"]);
    let authorization = AUTHORIZATION.replace("us-east-1", "eu-west-1");
    let headers = [("x-amz-target", "TrentService.CreateKey"), ("authorization", authorization.as_str())];
    let answer = mock.post("/", &headers, "{}").await.json();
    let arn = answer["KeyMetadata"]["Arn"].as_str().unwrap();
    assert!(arn.starts_with("arn:aws:kms:eu-west-1:000000000000:key/"), "{arn}");
    // A caller who takes this for another Region's KMS learns it, as from AWS.
    assert_eq!(mock.fail("CreateKey", json!({})).await.0, "InvalidSignatureException");
}

#[tokio::test]
async fn health_is_checked_again_and_again() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &["--health-check-secs", "1"]);
    mock.connected_store("one").await;
    let until = std::time::Instant::now() + xks_harness::proxy::PATIENCE;
    let mut checks = 0;
    while checks < 2 {
        assert!(std::time::Instant::now() < until);
        let seen = proxy.take_seen();
        let is_check = |body: &serde_json::Value| body["requestMetadata"]["kmsOperation"] == "KmsHealthCheck";
        checks += seen.iter().filter(|(_, body)| is_check(body)).count();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
