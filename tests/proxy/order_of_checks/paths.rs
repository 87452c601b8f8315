//! Which paths are of the API. Requests are not signed: one that is routed is answered 401, any other 404.

use http::Request;
use http_body_util::Full;
use serde_json::json;
use xks_harness::request::metadata;
use xks_harness::{Connection, Http, Proxy, RawConnection, Setup, Signing, XksRequest};

const ROUTED: (u16, &str) = (401, "AuthenticationFailedException");
const NOT_ROUTED: (u16, &str) = (404, "InvalidUriPathException");

fn long_ids() -> [String; 2] {
    ["k".repeat(128), "k".repeat(129)]
}

/// Paths and whether they are routed.
fn paths() -> Vec<(String, bool)> {
    let key = |id: &str| format!("/main/kms/xks/v1/keys/{id}/encrypt");
    let [longest, too_long] = long_ids();
    let mut paths = vec![(key(&longest), true), (key(&too_long), false)];
    for id in [".", "..", "...", "-", "_", "A", "0", "a.b-c_D", "keys", "health", "encrypt", "kms"] {
        paths.push((key(id), true));
    }
    for id in [
        "", "a b", "a%2Fb", "%61", "a+b", "a~b", "a:b", "a@b", "a;b", "a,b", "a=b", "a*b", "a\\b", "é",
        "a/b", "./a",
    ] {
        paths.push((key(id), false));
    }
    for routed in [
        "/main/kms/xks/v1/health",
        "/main/nested/kms/xks/v1/health",
        "/main/nested/kms/xks/v1/keys/k/metadata",
    ] {
        paths.push((routed.to_owned(), true));
    }
    let others = [
        "/",
        "/main",
        "/main/",
        "/main/kms/xks/v1",
        "/main/kms/xks/v1/",
        "/main/kms/xks/v1/keys",
        "/main/kms/xks/v1/keys/k",
        "/main/kms/xks/v1/keys/k/",
        "/main/kms/xks/v1/keys/encrypt",
        "/main/kms/xks/v1/keys/k/encrypt/",
        "/main/kms/xks/v1/keys/k/encrypt/decrypt",
        "/main/kms/xks/v1/keys/k/Encrypt",
        "/main/kms/xks/v1/keys/k/encrypt.",
        "/main/kms/xks/v1/keys/k/wrap",
        "/main/kms/xks/v1/keys/k/health",
        "/main/kms/xks/v1/health/",
        "/main/kms/xks/v1/Health",
        "/main/kms/xks/v1/metadata",
        "/main/kms/xks/v2/health",
        "/main/kms/xks/v1/health/..",
        "/main/kms/xks/./v1/health",
        "/main/kms/xks/v1/keys/../health",
        "/main/../main/kms/xks/v1/health",
        "/main/nested/../kms/xks/v1/health",
        "/main//kms/xks/v1/health",
        "//main/kms/xks/v1/health",
        "/main/kms//xks/v1/health",
        "/main/kms/xks/v1//health",
        "/main/kms/xks/v1/keys//encrypt",
        "/%6dain/kms/xks/v1/health",
        "/main%2Fkms/xks/v1/health",
        "/main/kms/xks/v1/health%00",
        "/main/kms/xks/v1/keys/k%/encrypt",
        "/main/kms/xks/v1/health?",
        "/main/kms/xks/v1/health?a=b",
        "/main/kms/xks/v1/keys/k/encrypt?X-Amz-Signature=0",
        "/main/kms/xks/v1/keys/k?/encrypt",
        // Prefixes of no store, some almost one.
        "/kms/xks/v1/health",
        "/kms/xks/v1/keys/k/encrypt",
        "/other/kms/xks/v1/health",
        "/Main/kms/xks/v1/health",
        "/mai/kms/xks/v1/health",
        "/main-/kms/xks/v1/health",
        "/mainnested/kms/xks/v1/health",
        "/nested/kms/xks/v1/health",
        "/nested/main/kms/xks/v1/health",
        "/main/nested/nested/kms/xks/v1/health",
        "/main/kms/xks/v1/kms/xks/v1/health",
        "/main/kms/xks/v1/nested/kms/xks/v1/health",
        "/main/kms/xks/v1/keys/k/kms/xks/v1/keys/k/encrypt",
        "/ping/kms/xks/v1/health",
        "/metrics",
        "/readyz",
        "/livez",
    ];
    paths.extend(others.map(|path| (path.to_owned(), false)));
    paths
}

#[tokio::test]
async fn paths_are_compared_byte_by_byte_on_http1() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = RawConnection::open(proxy.address).await;
    for (path, is_routed) in paths() {
        let request = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}");
        if path.contains(' ') {
            continue;
        }
        let (status, name) = connection.exchange(request.as_bytes()).await.unwrap().refusal();
        assert_eq!((status, name.as_str()), if is_routed { ROUTED } else { NOT_ROUTED }, "{path}");
    }
}

async fn send_over_http2(connection: &mut Connection, path: &str) -> Option<(u16, String)> {
    let uri: http::Uri = format!("https://localhost{path}").parse().ok()?;
    let request = Request::post(uri).body(Full::from("{}")).unwrap();
    Some(connection.try_send_http(request).await.unwrap().refusal())
}

#[tokio::test]
async fn paths_are_compared_byte_by_byte_on_http2() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let mut sent = 0;
    for (path, is_routed) in paths() {
        let Some((status, name)) = send_over_http2(&mut connection, &path).await else { continue };
        assert_eq!((status, name.as_str()), if is_routed { ROUTED } else { NOT_ROUTED }, "{path}");
        sent += 1;
    }
    assert!(sent > 60, "{sent}");
}

#[tokio::test]
async fn targets_that_are_no_path_are_not_found() {
    let proxy = Proxy::start(&Setup::default()).await;
    let health = "/main/kms/xks/v1/health";
    for target in [
        format!("https://localhost{health}"),
        format!("http://localhost{health}"),
        format!("https://elsewhere{health}"),
        format!("https://localhost@elsewhere{health}"),
        "*".to_owned(),
    ] {
        let mut connection = RawConnection::open(proxy.address).await;
        let request = format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}");
        let (status, name) = connection.exchange(request.as_bytes()).await.unwrap().refusal();
        assert_eq!((status, name.as_str()), NOT_ROUTED, "{target}");
    }
}

/// The HTTP library cuts a fragment off before anybody sees it. No client sends one; what matters is that nothing
/// behind `#` is ever routed.
#[tokio::test]
async fn what_stands_behind_a_number_sign_is_no_path() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = RawConnection::open(proxy.address).await;
    for target in
        ["/nowhere#/main/kms/xks/v1/health", "/#/main/kms/xks/v1/health", "/main/kms/xks/v1/keys#/k/encrypt"]
    {
        let request = format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}");
        let (status, name) = connection.exchange(request.as_bytes()).await.unwrap().refusal();
        assert_eq!((status, name.as_str()), NOT_ROUTED, "{target}");
    }
}

/// Prefixes are found whatever other prefixes there are: one may go on where another ends, and one may be empty.
#[tokio::test]
async fn the_empty_prefix_is_a_prefix_like_any_other() {
    let more = "[[stores]]\nname = \"root\"\nuri_path_prefix = \"\"\ntokens = [\"softhsm\"]\nauthorization = \"none\"\n\
                key_rule = { label_prefix = \"root-\" }\n\
                [[stores.credentials]]\naccess_key_id = \"ROOTTESTKEYID234567ABCDEFG\"\n\
                secret_access_key = \"root+test+secret/root+test+secret/root+test+1\"\n";
    let proxy = Proxy::start(&Setup { more: more.to_owned(), ..Setup::default() }).await;
    let mut connection = proxy.connect(Http::Two).await;
    for (path, expected) in [
        ("/kms/xks/v1/health", ROUTED),
        ("/kms/xks/v1/keys/k/encrypt", ROUTED),
        ("/main/kms/xks/v1/health", ROUTED),
        ("/main/nested/kms/xks/v1/health", ROUTED),
        ("/other/kms/xks/v1/health", NOT_ROUTED),
        ("//kms/xks/v1/health", NOT_ROUTED),
        ("/kms/xks/v1/kms/xks/v1/health", NOT_ROUTED),
    ] {
        let (status, name) = send_over_http2(&mut connection, path).await.unwrap();
        assert_eq!((status, name.as_str()), expected, "{path}");
    }
}

/// A prefix of 117 characters is the longest that leaves room for `/kms/xks/v1` in KMS's 128, a key id of 128 the longest.
#[tokio::test]
async fn the_longest_path_that_kms_can_make_is_served() {
    let prefix = format!("/{}", "p".repeat(116));
    let longest = format!("{prefix}/kms/xks/v1/keys/{}/metadata", "k".repeat(128));
    assert!(longest.len() > 256);
    let more = format!(
        "[[stores]]\nname = \"long\"\nuri_path_prefix = \"{prefix}\"\ntokens = [\"softhsm\"]\n\
         authorization = \"none\"\nkey_rule = {{ label_prefix = \"long-\" }}\n\
         [[stores.credentials]]\naccess_key_id = \"LONGTESTKEYID234567ABCDEFG\"\n\
         secret_access_key = \"long+test+secret/long+test+secret/long+test+1\"\n"
    );
    let proxy = Proxy::start(&Setup { more, ..Setup::default() }).await;
    let signing = Signing::new("LONGTESTKEYID234567ABCDEFG", "long+test+secret/long+test+secret/long+test+1");
    let body = json!({ "requestMetadata": metadata("DescribeKey") });
    for http in Http::BOTH {
        let request = XksRequest::new(&signing, longest.clone(), &body);
        let answer = proxy.connect(http).await.send(&request).await;
        assert_eq!(answer.refusal(), (404, "KeyNotFoundException".to_owned()));
    }
}
