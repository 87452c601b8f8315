//! Every method but POST, on paths of the API and on others.

use http::{Method, Request};
use http_body_util::Full;
use xks_harness::proxy::main_store;
use xks_harness::{Http, Proxy, RawConnection, Setup, XksRequest};

const METHODS: [&str; 14] = [
    "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND", "M-SEARCH", "FOO",
    "post", "POSTX", "POS",
];

fn api_paths() -> [String; 5] {
    let key = |id: &str, operation| format!("/main/kms/xks/v1/keys/{id}/{operation}");
    [
        key("demo", "encrypt"),
        key("absent", "decrypt"),
        key("unlisted", "metadata"),
        key("..", "encrypt"),
        "/main/kms/xks/v1/health".to_owned(),
    ]
}

#[tokio::test]
async fn other_methods_are_not_allowed_on_api_paths_over_http1() {
    let proxy = Proxy::start(&Setup::default()).await;
    for path in api_paths() {
        for method in METHODS.into_iter().filter(|method| *method != "HEAD") {
            // Some of these methods end the connection, in one way or another.
            let mut connection = RawConnection::open(proxy.address).await;
            let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            let answer = connection.exchange(request.as_bytes()).await.unwrap();
            assert_eq!(
                answer.refusal(),
                (405, "UnsupportedOperationException".to_owned()),
                "{method} {path}"
            );
            assert_eq!(answer.headers["allow"], "POST", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn other_methods_are_not_allowed_on_api_paths_over_http2() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    for path in api_paths() {
        // CONNECT has no path on HTTP/2.
        for method in METHODS.into_iter().filter(|method| !["HEAD", "CONNECT"].contains(method)) {
            let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
            let answer = connection.try_send_http(request.body(Full::default()).unwrap()).await.unwrap();
            assert_eq!(
                answer.refusal(),
                (405, "UnsupportedOperationException".to_owned()),
                "{method} {path}"
            );
            assert_eq!(answer.headers["allow"], "POST", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_signed_get_is_not_allowed_either() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        for request in [XksRequest::metadata(&main_store(), "demo"), XksRequest::health(&main_store())] {
            for body in [request.body.clone(), Vec::new()] {
                let request = XksRequest { method: Method::GET, body, ..request.clone() };
                let answer = connection.send(&request).await;
                assert_eq!(answer.refusal(), (405, "UnsupportedOperationException".to_owned()));
                assert_eq!(answer.headers["allow"], "POST");
            }
        }
    }
}

/// An answer to HEAD has the head of any other and no body, and the connection goes on.
#[tokio::test]
async fn head_is_answered_without_a_body() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let others =
            [("/nowhere".to_owned(), 404, "application/json"), ("/ping".to_owned(), 200, "text/plain")];
        let of_the_api = api_paths().map(|path| (path, 405, "application/json"));
        for (path, status, content_type) in of_the_api.into_iter().chain(others) {
            let mut request = Request::head(format!("https://localhost{path}"));
            if http == Http::One {
                request = Request::head(&path).header("host", "localhost");
            }
            let answer = connection.try_send_http(request.body(Full::default()).unwrap()).await;
            let answer = answer.unwrap_or_else(|error| panic!("{http:?} {path}: {error:?}"));
            assert_eq!((answer.status.as_u16(), answer.body.len()), (status, 0), "{http:?} {path}");
            assert_eq!(answer.headers["content-type"], content_type);
        }
        connection.send(&XksRequest::health(&main_store())).await.ok();
    }
}

#[tokio::test]
async fn the_path_is_looked_at_before_the_method() {
    let proxy = Proxy::start(&Setup::default()).await;
    for method in METHODS.into_iter().filter(|method| *method != "HEAD") {
        for path in [
            "/nowhere",
            "/main/kms/xks/v1/keys/a%20b/encrypt",
            "/kms/xks/v1/health",
            "/main/kms/xks/v1/health?x",
        ] {
            let mut connection = RawConnection::open(proxy.address).await;
            let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            let answer = connection.exchange(request.as_bytes()).await.unwrap();
            assert_eq!(answer.refusal(), (404, "InvalidUriPathException".to_owned()), "{method} {path}");
        }
    }
    let mut connection = RawConnection::open(proxy.address).await;
    let answer =
        connection.exchange(b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(answer.refusal(), (404, "InvalidUriPathException".to_owned()));
}
