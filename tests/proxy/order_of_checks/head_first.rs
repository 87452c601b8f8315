//! What can be told from a request's head is told before its body comes, and strangers learn nothing of keys.

use http_body_util::Full;
use xks_harness::client::{http2_with_unfinished_body, raw_http1};
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Answer, Http, Proxy, RawConnection, Setup, Store, XksRequest};

use super::checks::{BODY_CAP_BYTES, Check};

fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

/// A proxy that waits for bodies longer than any test does.
async fn patient_proxy() -> Proxy {
    let timeouts = "answer_ms = 30000\nfirst_answer_ms = 30000\nbody_ms = 60000".to_owned();
    Proxy::start(&Setup { timeouts, ..Setup::default() }).await
}

fn encrypt(store: &Store) -> XksRequest {
    XksRequest::encrypt(store, "demo", &encrypt_body(b"secret", None, false))
}

/// Requests whose head alone decides, and the check that does.
fn refused_by_their_heads() -> Vec<(Check, XksRequest)> {
    let store = main_store();
    let signed_otherwise = |change: fn(&mut Store)| {
        let mut store = store.clone();
        change(&mut store);
        encrypt(&store)
    };
    vec![
        (Check::Path, signed_otherwise(|store| store.prefix = "/nowhere".to_owned())),
        (Check::Method, XksRequest { method: http::Method::PUT, ..encrypt(&store) }),
        (Check::Head, XksRequest { signing: None, ..encrypt(&store) }),
        (Check::Head, signed_otherwise(|store| store.signing.skew_secs = 400)),
        (Check::Head, signed_otherwise(|store| store.signing.service = "kms".to_owned())),
        (Check::Head, signed_otherwise(|store| store.signing.access_key_id = "A".repeat(26))),
        (Check::BodySize, XksRequest { body: vec![b'x'; BODY_CAP_BYTES + 1], ..encrypt(&store) }),
    ]
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_before_its_body_comes() {
    let proxy = patient_proxy().await;
    for (check, request) in refused_by_their_heads() {
        let mut connection = RawConnection::open(proxy.address).await;
        let bytes = raw_http1(&request, &authority(&proxy));
        let (head, body) = bytes.split_at(bytes.len() - request.body.len());
        let answer = connection.exchange(head).await.unwrap();
        let (status, name) = check.answer().unwrap();
        assert_eq!(answer.refusal(), (status, name.to_owned()), "{check:?}");
        // The body comes all the same, and where the connection stays open, the next request is understood.
        connection.send(body).await;
        if check == Check::BodySize {
            continue;
        }
        let next = raw_http1(&encrypt(&main_store()), &authority(&proxy));
        connection.exchange(&next).await.unwrap().ok();
    }
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_on_http2_before_its_body_ends() {
    let proxy = patient_proxy().await;
    let connection = proxy.connect(Http::Two).await;
    for (check, request) in refused_by_their_heads() {
        let mut request = connection.http_request(&request);
        if check == Check::BodySize {
            request.headers_mut().insert("content-length", (BODY_CAP_BYTES + 1).into());
            *request.body_mut() = Full::from("only this much");
        }
        let answer = http2_with_unfinished_body(proxy.address, request).await.unwrap();
        let (status, name) = check.answer().unwrap();
        assert_eq!(answer.refusal(), (status, name.to_owned()), "{check:?}");
    }
}

#[tokio::test]
async fn a_body_that_never_ends_resets_its_stream_on_http2() {
    let timeouts = "answer_ms = 30000\nfirst_answer_ms = 30000\nbody_ms = 200".to_owned();
    let proxy = Proxy::start(&Setup { timeouts, ..Setup::default() }).await;
    let request = proxy.connect(Http::Two).await.http_request(&encrypt(&main_store()));
    let answer = http2_with_unfinished_body(proxy.address, request).await;
    assert!(answer.is_err(), "{answer:?}");
    let line = proxy.wait_for_log(|line| line["outcome"] == "closed");
    assert!(line["reason"].as_str().unwrap().contains(Check::BodyTime.reason()), "{line}");
}

#[tokio::test]
async fn a_body_of_the_cap_is_read_and_one_byte_more_is_not() {
    let proxy = patient_proxy().await;
    for (body_bytes, name) in
        [(BODY_CAP_BYTES, "ValidationException"), (BODY_CAP_BYTES + 1, "UnsupportedOperationException")]
    {
        let request = XksRequest { body: vec![b' '; body_bytes], ..encrypt(&main_store()) };
        let mut connection = RawConnection::open(proxy.address).await;
        let answer = connection.exchange(&raw_http1(&request, &authority(&proxy))).await.unwrap();
        assert_eq!(answer.refusal().1, name, "{body_bytes}");
        assert_eq!(proxy.connect(Http::Two).await.send(&request).await.refusal().1, name, "{body_bytes}");
    }
}

/// Chunks do not say how much is to come: the answer comes as soon as it is too much.
#[tokio::test]
async fn a_body_without_a_length_is_refused_once_it_is_too_long() {
    let proxy = patient_proxy().await;
    let request = XksRequest { body: Vec::new(), ..encrypt(&main_store()) };
    let head = String::from_utf8(raw_http1(&request, &authority(&proxy))).unwrap();
    let head = head.replace("content-length: 0", "transfer-encoding: chunked");
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(head.as_bytes()).await;
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    for _ in 0..=BODY_CAP_BYTES / 0x1000 {
        connection.send(chunk.as_bytes()).await;
    }
    let answer = connection.answer().await.unwrap();
    assert_eq!(answer.refusal(), (501, "UnsupportedOperationException".to_owned()));
    assert_eq!(answer.headers["connection"], "close");
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_only_where_its_head_is_right() {
    let proxy = patient_proxy().await;
    for (check, request) in refused_by_their_heads() {
        let bytes = raw_http1(&request, &authority(&proxy));
        let head = String::from_utf8(bytes[..bytes.len() - request.body.len()].to_vec()).unwrap();
        let mut connection = RawConnection::open(proxy.address).await;
        let head = head.replace("content-length", "expect: 100-continue\r\ncontent-length");
        let answer = connection.exchange(head.as_bytes()).await.unwrap();
        assert_eq!(Some(answer.status.as_u16()), check.answer().map(|(status, _)| status), "{check:?}");
    }
    let request = encrypt(&main_store());
    let bytes = raw_http1(&request, &authority(&proxy));
    let (head, body) = bytes.split_at(bytes.len() - request.body.len());
    let head = String::from_utf8(head.to_vec()).unwrap();
    let head = head.replace("content-length", "expect: 100-continue\r\ncontent-length");
    let mut connection = RawConnection::open(proxy.address).await;
    assert_eq!(connection.exchange(head.as_bytes()).await.unwrap().status, 100);
    connection.exchange(body).await.unwrap().ok();
}

type HeaderFields = Vec<(String, Vec<u8>)>;

/// Everything of an answer but its date.
fn visible(mut answer: Answer) -> (u16, HeaderFields, Vec<u8>) {
    answer.headers.remove("date");
    let headers = answer.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    (answer.status.as_u16(), headers.collect(), answer.body.to_vec())
}

#[tokio::test]
async fn no_answer_to_a_stranger_depends_on_a_key() {
    let keys = super::checks::KEYS.to_owned();
    let proxy = Proxy::start(&Setup { keys, ..Setup::default() }).await;
    let ids = [
        "good",
        "absent",
        "disabled",
        "useless-to-encrypt",
        "disabled-useless",
        "unlisted",
        "xks-health",
        "..",
        "demo",
    ];
    let strangers: [fn(&mut XksRequest); 5] = [
        |request| request.signing = None,
        |request| request.signing.as_mut().unwrap().secret_access_key = "x".repeat(43),
        |request| request.signing.as_mut().unwrap().access_key_id = "A".repeat(26),
        |request| request.signing.as_mut().unwrap().skew_secs = -1000,
        |request| request.method = http::Method::GET,
    ];
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        for (index, stranger) in strangers.into_iter().enumerate() {
            let mut seen = Vec::new();
            for id in ids {
                let store = main_store();
                let body = encrypt_body(b"secret", None, false);
                for mut request in [
                    XksRequest::encrypt(&store, id, &body),
                    XksRequest::decrypt(&store, id, &body),
                    XksRequest::metadata(&store, id),
                ] {
                    stranger(&mut request);
                    seen.push(visible(connection.send(&request).await));
                }
            }
            seen.dedup();
            assert_eq!(seen.len(), 1, "{http:?}, stranger {index}: {seen:?}");
        }
    }
}

/// The same of a disabled store beside one that serves.
#[tokio::test]
async fn no_answer_to_a_stranger_depends_on_whether_a_store_is_enabled() {
    let mut seen = Vec::new();
    for store_lines in ["enabled = true", "enabled = false"] {
        let proxy = Proxy::start(&Setup { store: store_lines.to_owned(), ..Setup::default() }).await;
        let mut connection = proxy.connect(Http::One).await;
        let mut store = main_store();
        store.signing.secret_access_key = "x".repeat(43);
        for request in [XksRequest::health(&store), XksRequest::metadata(&store, "demo"), encrypt(&store)] {
            seen.push(visible(connection.send(&request).await));
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
}
