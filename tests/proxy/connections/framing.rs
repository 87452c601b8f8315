//! Where a request ends must never be a matter of opinion: ambiguous HTTP/1.1 is refused or closes the connection, and
//! what one request's body holds is never taken for another request.

use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xks_harness::client::{raw_http1, tls, tls_config};
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Answer, Http, Proxy, RawConnection, Setup, XksRequest};

/// What an attacker would hide in the body of a request. It is the only request here that is answered with 200.
const HIDDEN: &str = "GET /ping HTTP/1.1\r\nhost: h\r\n\r\n";
const UNSIGNED: &str = "POST /main/kms/xks/v1/health HTTP/1.1\r\nhost: h\r\n";

fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

/// Sends bytes and reads all answers until the proxy closes or has answered a request that comes behind them.
async fn answers(proxy: &Proxy, bytes: &[u8]) -> Vec<Answer> {
    const LAST: &[u8] = b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(bytes).await;
    connection.send(LAST).await;
    let mut answers = Vec::new();
    while let Some(answer) = connection.answer().await {
        answers.push(answer);
    }
    answers
}

fn is_ping(answer: &Answer) -> bool {
    answer.status == StatusCode::OK && answer.body.starts_with(b"ready")
}

/// A head that can be read in two ways, and a body that is a request in one of them.
#[tokio::test]
async fn ambiguous_lengths_smuggle_nothing() {
    let length = HIDDEN.len();
    let chunked = |inside: &str| format!("{:x}\r\n{inside}\r\n0\r\n\r\n", inside.len());
    let ended = format!("0\r\n\r\n{HIDDEN}");
    let cases = [
        (
            "length and chunked: by the length it is all body",
            format!("content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n{ended}", ended.len()),
        ),
        (
            "chunked and length: by the length it is all body",
            format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n\r\n{ended}", ended.len()),
        ),
        (
            "length 0 and chunked",
            format!("content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n{}", chunked(HIDDEN)),
        ),
        (
            "two lengths, the first longer",
            format!("content-length: {length}\r\ncontent-length: 0\r\n\r\n{HIDDEN}"),
        ),
        (
            "two lengths, the second longer",
            format!("content-length: 0\r\ncontent-length: {length}\r\n\r\n{HIDDEN}"),
        ),
        ("a list of lengths", format!("content-length: 0, {length}\r\n\r\n{HIDDEN}")),
        ("a length with a sign", format!("content-length: +{length}\r\n\r\n{HIDDEN}")),
        ("a negative length", format!("content-length: -1\r\n\r\n{HIDDEN}")),
        ("a hexadecimal length", format!("content-length: 0x{length:x}\r\n\r\n{HIDDEN}")),
        ("a length beyond 64 bits", format!("content-length: 18446744073709551616\r\n\r\n{HIDDEN}")),
        ("an empty length", format!("content-length: \r\n\r\n{HIDDEN}")),
        ("a length with a vertical tab", format!("content-length: \x0b{length}\r\n\r\n{HIDDEN}")),
        ("a space before the colon", format!("content-length : {length}\r\n\r\n{HIDDEN}")),
        ("a tab before the colon", format!("transfer-encoding\t: chunked\r\n\r\n{}", chunked(HIDDEN))),
        ("a folded length", format!("content-length:\r\n {length}\r\n\r\n{HIDDEN}")),
        ("a folded encoding", format!("transfer-encoding:\r\n chunked\r\n\r\n{}", chunked(HIDDEN))),
        ("a length in a folded line", format!("x: y\r\n content-length: {length}\r\n\r\n{HIDDEN}")),
        ("an unknown encoding", format!("transfer-encoding: xchunked\r\n\r\n{}", chunked(HIDDEN))),
        (
            "an unknown encoding and a length",
            format!("content-length: {length}\r\ntransfer-encoding: xchunked\r\n\r\n{HIDDEN}"),
        ),
        (
            "identity and a length",
            format!("content-length: {length}\r\ntransfer-encoding: identity\r\n\r\n{HIDDEN}"),
        ),
        (
            "chunked that is not last",
            format!("transfer-encoding: chunked, identity\r\n\r\n{}", chunked(HIDDEN)),
        ),
        (
            "chunked and then identity",
            format!("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n{}", chunked(HIDDEN)),
        ),
        (
            "chunked with a control character",
            format!("transfer-encoding: \x0bchunked\r\n\r\n{}", chunked(HIDDEN)),
        ),
        ("chunked in quotes", format!("transfer-encoding: \"chunked\"\r\n\r\n{}", chunked(HIDDEN))),
        ("a NUL in a value", format!("x: a\0b\r\ncontent-length: {length}\r\n\r\n{HIDDEN}")),
        ("a lone CR in a value", format!("x: a\rcontent-length: {length}\r\n\r\n{HIDDEN}")),
        ("a lone CR that ends the head", format!("content-length: 0\r\n\r{HIDDEN}")),
        (
            "a chunk size beyond 64 bits",
            format!("transfer-encoding: chunked\r\n\r\n10000000000000000\r\n{HIDDEN}"),
        ),
        (
            "a chunk size with a sign",
            format!("transfer-encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n{HIDDEN}"),
        ),
        (
            "a chunk that is longer than its size",
            format!("transfer-encoding: chunked\r\n\r\n1\r\nxx{HIDDEN}"),
        ),
        (
            "a chunk without its line end",
            format!("transfer-encoding: chunked\r\n\r\n1\r\nx0\r\n\r\n{HIDDEN}"),
        ),
        ("a chunk size that ends in a lone LF", format!("transfer-encoding: chunked\r\n\r\n0\n\n{HIDDEN}")),
        (
            "a chunk extension with a lone LF",
            format!("transfer-encoding: chunked\r\n\r\n0;a\n\r\n\r\n{HIDDEN}"),
        ),
    ];
    let proxy = Proxy::start(&Setup::default()).await;
    for (name, rest) in cases {
        let answers = answers(&proxy, format!("{UNSIGNED}{rest}").as_bytes()).await;
        assert!(!answers.iter().any(is_ping), "{name}: the hidden request was answered: {answers:?}");
        assert!(answers.iter().all(|answer| answer.status.is_client_error()), "{name}: {answers:?}");
    }
}

/// A lone LF ends a line of the head, as RFC 9112 (2.2) lets it, and then does so wherever it stands: what is a head and what
/// a body has one reading, and it is that of the signature too.
#[tokio::test]
async fn a_lone_lf_ends_a_line_wherever_it_stands() {
    let length = HIDDEN.len();
    let cases = [
        ("behind the line before the length", format!("x: y\ncontent-length: {length}\r\n\r\n{HIDDEN}")),
        ("behind the length", format!("content-length: {length}\nx: y\r\n\r\n{HIDDEN}")),
        ("at the end of the head", format!("content-length: {length}\r\n\n{HIDDEN}")),
        ("twice", format!("content-length: {length}\n\n{HIDDEN}")),
        (
            "before a second length that is the same",
            format!("content-length: {length}\ncontent-length: {length}\n\n{HIDDEN}"),
        ),
    ];
    let proxy = Proxy::start(&Setup::default()).await;
    for (name, rest) in cases {
        let answers = answers(&proxy, format!("{UNSIGNED}{rest}").as_bytes()).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        assert_eq!(statuses, [401, 404], "{name}: the hidden request is a body");
    }
    for (name, rest) in [
        ("between two lengths", format!("content-length: 0\ncontent-length: {length}\r\n\r\n{HIDDEN}")),
        (
            "before an encoding",
            format!(
                "content-length: 0\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n"
            ),
        ),
        ("before a folded line", format!("x: y\n content-length: {length}\r\n\r\n{HIDDEN}")),
    ] {
        let answers = answers(&proxy, format!("{UNSIGNED}{rest}").as_bytes()).await;
        assert!(!answers.iter().any(is_ping), "{name}: the hidden request was answered: {answers:?}");
        assert!(answers.iter().all(|answer| answer.status.is_client_error()), "{name}: {answers:?}");
    }
}

/// Bodies whose end is beyond doubt: the connection goes on behind them, and the request behind them is the next.
#[tokio::test]
async fn bodies_with_a_clear_end_are_skipped_whole() {
    let length = HIDDEN.len();
    let cases = [
        ("a length", format!("content-length: {length}\r\n\r\n{HIDDEN}")),
        (
            "the same length twice",
            format!("content-length: {length}\r\ncontent-length: {length}\r\n\r\n{HIDDEN}"),
        ),
        ("a chunk", format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n")),
        (
            "a chunk with an extension",
            format!("transfer-encoding: Chunked\r\n\r\n{length:X};a=b\r\n{HIDDEN}\r\n0\r\n\r\n"),
        ),
        ("trailers", format!("transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: {length}\r\n\r\n")),
        ("no body", "\r\n".to_owned()),
    ];
    let proxy = Proxy::start(&Setup::default()).await;
    for (name, rest) in cases {
        let bytes = format!("{UNSIGNED}{rest}{HIDDEN}");
        let answers = answers(&proxy, bytes.as_bytes()).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        assert_eq!(statuses, [401, 200, 404], "{name}");
    }
}

#[tokio::test]
async fn request_lines_that_are_none_of_ours() {
    let cases = [
        ("HTTP/0.9", "GET /ping\r\n\r\n", &[][..]),
        ("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[]),
        ("HTTP/3", "GET /ping HTTP/3.0\r\nhost: h\r\n\r\n", &[]),
        ("a TLS record inside TLS", "\x16\x03\x01\x02\x00\x01", &[]),
        ("a target without a slash", "GET ping HTTP/1.1\r\nhost: h\r\n\r\n", &[404, 404]),
        (
            "a target for a proxy of another kind",
            "POST https://h/main/kms/xks/v1/health HTTP/1.1\r\nhost: h\r\n\r\n",
            &[404, 404],
        ),
        ("OPTIONS of the server", "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n", &[404, 404]),
        (
            "an upgrade to HTTP/2",
            "GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
            &[404, 404],
        ),
    ];
    let proxy = Proxy::start(&Setup::default()).await;
    for (name, bytes, expected) in cases {
        let answers = answers(&proxy, bytes.as_bytes()).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        if expected.is_empty() {
            assert!(statuses.is_empty() || statuses == [400], "{name}: {statuses:?}");
        } else {
            assert_eq!(statuses, expected, "{name}");
        }
    }
    assert_eq!(answers(&proxy, b"CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n").await[0].status, 404);
    // HTTP/1.0 closes behind the answer unless it is asked not to.
    let mut stream = tls(proxy.address, tls_config(Http::One)).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 404"), "{answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let proxy = Proxy::start(&Setup::default()).await;
    let store = main_store();
    let mut all = Vec::new();
    let plaintexts: Vec<_> = (1..20_u8).map(|length| vec![length; usize::from(length)]).collect();
    for plaintext in &plaintexts {
        let request = XksRequest::encrypt(&store, "demo", &encrypt_body(plaintext, None, false));
        all.extend(raw_http1(&request, &authority(&proxy)));
        let unsigned = XksRequest { signing: None, ..request };
        all.extend(raw_http1(&unsigned, &authority(&proxy)));
    }
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(&all).await;
    for plaintext in &plaintexts {
        let encrypted = connection.answer().await.unwrap().ok();
        let ciphertext = xks_harness::request::bytes_of(&encrypted["ciphertext"]);
        assert_eq!(ciphertext.len(), plaintext.len());
        assert_eq!(connection.answer().await.unwrap().error().0, 401);
    }
}

#[tokio::test]
async fn a_signed_body_may_come_in_chunks() {
    let proxy = Proxy::start(&Setup::default()).await;
    let body = json!({ "requestMetadata": xks_harness::request::metadata("CreateKey") });
    let mut request = XksRequest::metadata(&main_store(), "demo");
    request.body = body.to_string().into_bytes();
    let whole = raw_http1(&request, &authority(&proxy));
    let whole = String::from_utf8(whole).unwrap();
    let (head, body) = whole.split_once("\r\n\r\n").unwrap();
    let head = head.replace(&format!("content-length: {}", body.len()), "transfer-encoding: chunked");
    let mut connection = RawConnection::open(proxy.address).await;
    connection.send(format!("{head}\r\n\r\n").as_bytes()).await;
    for piece in body.as_bytes().chunks(7) {
        connection.send(format!("{:x}\r\n", piece.len()).as_bytes()).await;
        connection.send(piece).await;
        connection.send(b"\r\n").await;
    }
    let answer = connection.exchange(b"0\r\n\r\n").await.unwrap();
    assert_eq!(answer.ok()["keySpec"], "AES_256");
}

/// curl asks before it sends a long body. 100 belongs before the answer or nowhere.
#[tokio::test]
async fn expect_100_continue_is_honoured_before_the_answer_only() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = XksRequest::encrypt(&main_store(), "demo", &encrypt_body(&[0; 4300], None, false));
    let whole = String::from_utf8(raw_http1(&request, &authority(&proxy))).unwrap();
    let (head, body) = whole.split_once("\r\n\r\n").unwrap();
    let head = format!("{head}\r\nexpect: 100-continue\r\n\r\n");
    let mut connection = RawConnection::open(proxy.address).await;
    assert_eq!(connection.exchange(head.as_bytes()).await.unwrap().status, 100);
    assert_eq!(connection.exchange(body.as_bytes()).await.unwrap().status, 200);
    let unsigned = format!("{UNSIGNED}content-length: 2\r\nexpect: 100-continue\r\n\r\n");
    for _ in 0..20 {
        let mut statuses = vec![connection.exchange(unsigned.as_bytes()).await.unwrap().status.as_u16()];
        if statuses == [100] {
            statuses.push(connection.answer().await.unwrap().status.as_u16());
        }
        assert_eq!(*statuses.last().unwrap(), 401);
        // The body is still owed; the next answer is that to the next request.
        connection.send(b"{}").await;
        assert_eq!(connection.exchange(HIDDEN.as_bytes()).await.unwrap().status, 200);
    }
}
