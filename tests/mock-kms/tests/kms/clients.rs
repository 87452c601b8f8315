//! Stock clients, unchanged, through KMS and a real proxy to SoftHSM2. What each does is in `clients/`.
//!
//! boto3 and aws-cli are part of every run. The others take minutes the first time: `clients/run-all.sh` runs all.

use std::process::Command;

use xks_harness::binary::profile_folder;
use xks_harness::proxy::main_store;
use xks_harness::{Pki, Proxy, Setup};

use crate::installed::{clients, installed, python_environment, succeed};
use crate::mock::Mock;

const ACCESS_KEY_ID: &str = "AKIDCLIENT";
const SECRET_ACCESS_KEY: &str = "a-secret-of-the-client";
const PRINCIPAL: &str = "arn:aws:iam::111122223333:role/payments";

/// What every client finds in its environment.
fn with_environment<'a>(command: &'a mut Command, mock: &Mock) -> &'a mut Command {
    let store = main_store();
    command
        .env("AWS_ENDPOINT_URL_KMS", &mock.url)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("XKS_URI_PATH", format!("{}/kms/xks/v1", store.prefix))
        .env("XKS_ACCESS_KEY_ID", &store.signing.access_key_id)
        .env("XKS_SECRET_ACCESS_KEY", &store.signing.secret_access_key)
}

async fn proxy() -> Proxy {
    Proxy::start(&Setup::default()).await
}

#[tokio::test]
async fn boto3_over_https_with_its_signatures_checked() {
    let python = python_environment("requirements.txt").join("python");
    let proxy = proxy().await;
    let folder = tempfile::tempdir().unwrap();
    Pki::shared().write(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    write_callers(&file("callers.toml"));
    let mock = Mock::start(
        proxy.address,
        &[
            "--tls-cert",
            &file("ecdsa.pem"),
            "--tls-key",
            &file("ecdsa.key"),
            "--credentials",
            &file("callers.toml"),
        ],
    );
    assert!(mock.url.starts_with("https://"));
    let mut command = Command::new(python);
    command.arg(clients().join("boto3_client.py")).env("AWS_CA_BUNDLE", file("ca.pem"));
    let output = succeed(with_environment(&mut command, &mock));
    assert!(output.ends_with("is served\n"), "{output}");
    // The configured principal is what the proxy is told.
    let _ = proxy.wait_for_log(|line| line["awsPrincipalArn"] == PRINCIPAL);
}

/// curl signs as AWS does but shares no code with the SDKs, and speaks HTTP/2, which has no Host header.
#[tokio::test]
async fn curl_over_http_2_with_its_signatures_checked() {
    let folder = tempfile::tempdir().unwrap();
    Pki::shared().write(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    write_callers(&file("callers.toml"));
    let tls = [
        "--tls-cert",
        &file("rsa.pem"),
        "--tls-key",
        &file("rsa.key"),
        "--credentials",
        &file("callers.toml"),
    ];
    let mock = Mock::start_with(&tls);
    for (http, secret, expected) in [
        ("--http2", SECRET_ACCESS_KEY, "2 200"),
        ("--http1.1", SECRET_ACCESS_KEY, "1.1 200"),
        ("--http2", "wrong", "2 400"),
        ("--http1.1", "wrong", "1.1 400"),
    ] {
        let output = succeed(
            Command::new("curl")
                .args(["--silent", "--show-error", "--aws-sigv4", "aws:amz:us-east-1:kms", "--user"])
                .arg(format!("{ACCESS_KEY_ID}:{secret}"))
                .args(["--cacert", &file("ca.pem"), "--header", "X-Amz-Target: TrentService.ListKeys"])
                .args(["--header", "Content-Type: application/x-amz-json-1.1", "--data", "{}", http])
                .args(["--output", &file("body"), "--write-out", "%{http_version} %{http_code}"])
                .arg(format!("{}/", mock.url)),
        );
        let body = std::fs::read_to_string(file("body")).unwrap();
        assert_eq!(output, expected, "{body}");
        assert!(
            body.contains(if secret == "wrong" { "InvalidSignatureException" } else { "\"Keys\":[]" }),
            "{body}"
        );
    }
}

fn write_callers(file: &str) {
    let caller = format!("access_key_id = {ACCESS_KEY_ID:?}\nsecret_access_key = {SECRET_ACCESS_KEY:?}\n");
    let principal = format!("principal_arn = {PRINCIPAL:?}\n");
    std::fs::write(file, format!("[[credentials]]\n{caller}{principal}")).unwrap();
}

#[tokio::test]
async fn aws_cli() {
    let programs = python_environment("requirements.txt");
    let proxy = proxy().await;
    let mock = Mock::start(proxy.address, &[]);
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(clients().join("aws_cli.sh"));
    let output = succeed(with_environment(&mut command, &mock).env("PATH", path));
    assert!(output.ends_with("is served\n"), "{output}");
}

#[tokio::test]
#[ignore = "downloads a package: clients/run-all.sh"]
async fn the_aws_encryption_sdk_for_python() {
    let python = python_environment("requirements-encryption-sdk.txt").join("python");
    let proxy = proxy().await;
    let mock = Mock::start(proxy.address, &[]);
    let mut command = Command::new(python);
    command.arg(clients().join("encryption_sdk_client.py"));
    let output = succeed(with_environment(&mut command, &mock));
    assert!(output.ends_with("is served\n"), "{output}");
}

#[tokio::test]
#[ignore = "downloads packages: clients/run-all.sh"]
async fn aws_sdk_client_kms_for_javascript() {
    let folder = installed("client-kms", |place| {
        std::fs::copy(clients().join("client-kms/package.json"), place.join("package.json")).unwrap();
        succeed(
            Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund"]).current_dir(place),
        );
    });
    // Packages are looked for beside the program.
    std::fs::copy(clients().join("client-kms/client.mjs"), folder.join("client.mjs")).unwrap();
    let proxy = proxy().await;
    let mock = Mock::start(proxy.address, &[]);
    let mut command = Command::new("node");
    command.arg(folder.join("client.mjs"));
    let output = succeed(with_environment(&mut command, &mock));
    assert!(output.ends_with("is served\n"), "{output}");
}

#[tokio::test]
#[ignore = "builds for minutes: clients/run-all.sh"]
async fn aws_sdk_kms_for_rust() {
    let manifest = clients().join("aws-sdk-kms/Cargo.toml");
    let target = profile_folder().join("mock-kms-clients/aws-sdk-kms");
    let proxy = proxy().await;
    let mock = Mock::start(proxy.address, &[]);
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--quiet", "--locked", "--manifest-path"])
        .arg(manifest)
        .env("CARGO_TARGET_DIR", target);
    let output = succeed(with_environment(&mut command, &mock));
    assert!(output.ends_with("is served\n"), "{output}");
}
