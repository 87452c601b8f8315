//! curl, which signs by itself: a client that we did not write.

use std::fs;
use std::process::Command;

use serde_json::Value;
use xks_harness::proxy::main_store;
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Http, Proxy, Setup};

use super::authority;

/// What curl printed of one answer.
#[derive(Debug)]
struct CurlAnswer {
    status: u16,
    /// `1.1` or `2`.
    http: String,
    body: String,
}

/// Between a body and what curl says of its transfer, and between transfers.
const MARK: &str = "\u{1}";

/// Runs curl, signing with the secret of store `main`, and returns one answer for each URL.
///
/// # Panics
/// If curl itself fails: then an answer did not arrive whole.
fn curl(proxy: &Proxy, http: Http, secret: &str, body: &str, path: &str, more: &[&str]) -> Vec<CurlAnswer> {
    let store = main_store();
    let body_file = proxy.folder().join("body");
    fs::write(&body_file, body).unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail-early", "--globoff"])
        .arg(match http {
            Http::One => "--http1.1",
            Http::Two => "--http2",
        })
        .arg("--cacert")
        .arg(proxy.folder().join("ca.pem"))
        .args(["--aws-sigv4", "aws:amz:us-east-1:kms-xks-proxy"])
        .args(["--user", &format!("{}:{secret}", store.signing.access_key_id)])
        .args(["--header", "content-type: application/json"])
        .args(["--write-out", &format!("{MARK}%{{http_code}} %{{http_version}}{MARK}")])
        .arg("--data-binary")
        .arg(format!("@{}", body_file.display()))
        .args(more)
        .arg(format!("https://{}{path}", authority(proxy)))
        .output()
        .expect("curl 7.75 or later must be installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    let what = format!("{http:?} {path}, {} bytes", body.len());
    assert!(output.status.success(), "{what}: {}: {errors}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<_> = text.split(MARK).collect();
    let answer = |pair: &[&str]| {
        let (status, http) = pair[1].split_once(' ').unwrap();
        CurlAnswer { status: status.parse().unwrap(), http: http.to_owned(), body: pair[0].to_owned() }
    };
    parts.chunks_exact(2).map(answer).collect()
}

impl CurlAnswer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// One request on the key `demo`, signed rightly.
fn call(proxy: &Proxy, http: Http, operation: &str, body: &Value, more: &[&str]) -> CurlAnswer {
    let secret = main_store().signing.secret_access_key;
    let path = format!("/main/kms/xks/v1/keys/demo/{operation}");
    curl(proxy, http, &secret, &body.to_string(), &path, more).pop().unwrap()
}

#[tokio::test]
async fn curl_encrypts_and_decrypts_over_http1_and_http2() {
    let proxy = Proxy::start(&Setup::default()).await;
    for (http, version) in [(Http::One, "1.1"), (Http::Two, "2")] {
        let body = encrypt_body(b"Hello World!", Some(b"project=nile"), true);
        let encrypted = call(&proxy, http, "encrypt", &body, &[]);
        assert_eq!((encrypted.status, encrypted.http.as_str()), (200, version), "{encrypted:?}");
        let body = decrypt_body(&encrypted.json(), Some(b"project=nile"));
        let decrypted = call(&proxy, http, "decrypt", &body, &[]);
        assert_eq!(bytes_of(&decrypted.json()["plaintext"]), b"Hello World!");
    }
}

#[tokio::test]
async fn curl_may_sign_more_headers_and_wait_for_100_continue() {
    let proxy = Proxy::start(&Setup::default()).await;
    let long = encrypt_body(&[7; 4300], Some(&[8; 8192]), true);
    for http in Http::BOTH {
        for more in [
            &["--header", "x-note: a note"][..],
            &["--header", "accept: application/json", "--header", "x-z: 1", "--header", "x-a: 2"],
            &["--header", "Expect: 100-continue"],
            &["--header", "Transfer-Encoding: chunked"],
            &["--user-agent", "AWS Key Management Service"],
            &["--compressed"],
        ] {
            // Chunks are for HTTP/1.1; on HTTP/2 curl signs that header and leaves it out.
            if http == Http::Two && more.concat().contains("Transfer-Encoding") {
                continue;
            }
            let answer = call(&proxy, http, "encrypt", &long, more);
            assert_eq!(answer.status, 200, "{http:?} {more:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn curl_with_a_wrong_secret_is_told_so() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let body = encrypt_body(b"x", None, false).to_string();
        let secret = "x".repeat(43);
        let answers = curl(&proxy, http, &secret, &body, "/main/kms/xks/v1/keys/demo/encrypt", &[]);
        assert_eq!(
            (answers[0].status, &answers[0].json()["errorName"]),
            (401, &"AuthenticationFailedException".into())
        );
    }
}

#[tokio::test]
async fn curl_reaches_keys_called_dot_and_dot_dot() {
    let proxy = Proxy::start(&Setup::default()).await;
    let secret = main_store().signing.secret_access_key;
    let body = encrypt_body(b"x", None, false).to_string();
    for http in Http::BOTH {
        for id in [".", "..", "..."] {
            let path = format!("/main/kms/xks/v1/keys/{id}/encrypt");
            let answers = curl(&proxy, http, &secret, &body, &path, &["--path-as-is"]);
            assert_eq!(
                (answers[0].status, &answers[0].json()["errorName"]),
                (404, &"KeyNotFoundException".into())
            );
        }
    }
}

/// An answer that comes while the client still sends must reach it whole: a reset of stream or connection would take it
/// away.
#[tokio::test]
async fn an_early_answer_arrives_whole_every_time() {
    const ENCRYPT: &str = "/main/kms/xks/v1/keys/demo/encrypt";
    let proxy = Proxy::start(&Setup::default()).await;
    let secret = main_store().signing.secret_access_key;
    // Nearly as long as any valid one, so that it is on its way for as long as possible; and one that nobody reads.
    let (long, too_long) = (" ".repeat(56_000), " ".repeat(300_000));
    let unknown_id = ["--user", "AAAAAAAAAAAAAAAAAAAAAAAAAA:x"];
    for http in Http::BOTH {
        for (path, body, more, times, status, name) in [
            ("/nowhere", &long, &[][..], 200, 404, "InvalidUriPathException"),
            (ENCRYPT, &long, &unknown_id, 200, 401, "AuthenticationFailedException"),
            ("/nowhere", &too_long, &[], 50, 404, "InvalidUriPathException"),
            (ENCRYPT, &too_long, &unknown_id, 50, 401, "AuthenticationFailedException"),
            (ENCRYPT, &too_long, &[], 50, 501, "UnsupportedOperationException"),
        ] {
            // One command, one connection where it stays open, many requests.
            let url = format!("https://{}{path}", authority(&proxy));
            let more = [more, &vec![url.as_str(); times - 1]].concat();
            let answers = curl(&proxy, http, &secret, body, path, &more);
            assert_eq!(answers.len(), times);
            for answer in answers {
                assert_eq!(
                    (answer.status, &answer.json()["errorName"]),
                    (status, &name.into()),
                    "{http:?} {path}"
                );
            }
        }
    }
}
