//! HTTP/2 that is not well-formed is reset and never answered with success; what a stream cannot be is not smuggled
//! into another.

use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, Setup, XksRequest};

use super::frames::{
    DATA, END_HEADERS, END_STREAM, FrameConnection, GOAWAY, HEADERS, RST_STREAM, frame, header_block, literal,
};

fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"a plaintext", None, false))
}

/// Each is sent with a signature that holds for what an attacker would like to be read. Success would be an answer
/// that holds a ciphertext.
#[tokio::test]
async fn malformed_requests_are_not_served() {
    let proxy = Proxy::start(&Setup::default()).await;
    let authority = format!("localhost:{}", proxy.address.port());
    let request = encrypt();
    let good = header_block(&request, &authority);
    let with = |name: &str, value: &str| {
        let mut block = good.clone();
        literal(&mut block, name, value);
        block
    };
    let without_first = |count: usize| {
        // The pseudo-header fields come first: method, scheme, authority, path.
        let mut whole = Vec::new();
        let fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", &*authority),
            (":path", &*request.path),
        ];
        for (name, value) in &fields[..count] {
            literal(&mut whole, name, value);
        }
        good[whole.len()..].to_vec()
    };
    let length = request.body.len();
    let cases = [
        ("a longer content-length", with("content-length", &(length + 1).to_string())),
        ("a shorter content-length", with("content-length", &(length - 1).to_string())),
        ("a content-length that is no number", with("content-length", "x")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("connection", with("connection", "close")),
        ("upgrade", with("upgrade", "h2c")),
        ("a name in upper case", with("X-Upper", "x")),
        ("a name with a space", with("x y", "x")),
        ("a line end in a value", with("x", "a\r\nhost: other")),
        ("a NUL in a value", with("x", "a\0b")),
        ("a pseudo-header field behind the others", with(":path", "/main/kms/xks/v1/health")),
        ("an unknown pseudo-header field", with(":other", "x")),
        (
            "a second method",
            [
                &{
                    let mut twice = Vec::new();
                    literal(&mut twice, ":method", "GET");
                    twice
                },
                &good[..],
            ]
            .concat(),
        ),
        ("no method", without_first(1)),
        ("no method, scheme, authority and path", without_first(4)),
        ("a table index that does not exist", [&good[..], &[0xff, 0x80, 0x01]].concat()),
        ("no headers at all", Vec::new()),
    ];
    for (name, block) in cases {
        let mut connection = FrameConnection::open(proxy.address).await;
        connection.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        connection.send(&frame(DATA, END_STREAM, 1, &request.body)).await;
        loop {
            let Some(answer) = connection.next().await else { break };
            assert!(!String::from_utf8_lossy(&answer.payload).contains("ciphertext"), "{name}");
            let is_end = answer.stream == 1 && (answer.kind == RST_STREAM || answer.flags & END_STREAM != 0);
            if is_end || answer.kind == GOAWAY {
                break;
            }
        }
    }
    // The same without a fault is served, so that it was the fault each time.
    let mut connection = FrameConnection::open(proxy.address).await;
    let block = with("content-length", &length.to_string());
    connection.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
    connection.send_body(1, &request.body).await;
    assert!(connection.answer(1).await.unwrap().starts_with(b"{\"ciphertext\""));
}

/// A body may come in many frames, padded and with trailers behind it.
#[tokio::test]
async fn a_body_may_come_in_any_number_of_frames() {
    const PADDED: u8 = 0x8;
    let proxy = Proxy::start(&Setup::default()).await;
    let request = encrypt();
    let mut connection = FrameConnection::open(proxy.address).await;
    connection.send_head(1, &request).await;
    for piece in request.body.chunks(3) {
        let padded = [&[2], piece, &[0, 0]].concat();
        connection.send(&frame(DATA, PADDED, 1, &padded)).await;
    }
    let mut trailers = Vec::new();
    literal(&mut trailers, "x-trailer", "x");
    connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers)).await;
    assert!(connection.answer(1).await.unwrap().starts_with(b"{\"ciphertext\""));
}

/// Streams whose frames are mixed with each other's get their own answers.
#[tokio::test]
async fn interleaved_streams_are_not_mixed_up() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = FrameConnection::open(proxy.address).await;
    let requests: Vec<_> = (1..10_u8)
        .map(|number| {
            let body = encrypt_body(&vec![number; usize::from(number)], None, false);
            (u32::from(2 * number - 1), XksRequest::encrypt(&main_store(), "demo", &body))
        })
        .collect();
    for (stream, request) in &requests {
        connection.send_head(*stream, request).await;
        connection.send(&frame(DATA, 0, *stream, &request.body[..5])).await;
    }
    for (stream, request) in requests.iter().rev() {
        connection.send(&frame(DATA, 0, *stream, &request.body[5..10])).await;
    }
    for (stream, request) in &requests {
        connection.send_body(*stream, &request.body[10..]).await;
        let answer: serde_json::Value =
            serde_json::from_slice(&connection.answer(*stream).await.unwrap()).unwrap();
        let ciphertext = xks_harness::request::bytes_of(&answer["ciphertext"]);
        assert_eq!(ciphertext.len(), usize::try_from(stream.div_ceil(2)).unwrap());
    }
}

/// A header of 4 kB in the table, referred to 12,000 times by one byte each: 48 MB from 16 kB.
#[tokio::test]
async fn a_header_block_that_grows_when_it_is_decoded_is_refused() {
    let proxy = Proxy::start(&Setup::default()).await;
    let before = super::memory_bytes(&proxy);
    let mut block = header_block(&XksRequest { signing: None, ..encrypt() }, "localhost");
    let mut field = Vec::new();
    literal(&mut field, "x", &"y".repeat(3900));
    // With incremental indexing.
    field[0] = 0x40;
    block.extend(field);
    block.extend(std::iter::repeat_n(0xbe, 12_000));
    let mut connection = FrameConnection::open(proxy.address).await;
    connection.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
    loop {
        let Some(answer) = connection.next().await else { break };
        let is_of_the_stream = answer.stream == 1;
        // 431 without a body, or a reset.
        assert!(answer.kind != DATA, "{answer:?}");
        if is_of_the_stream {
            break;
        }
    }
    let grown = super::memory_bytes(&proxy).saturating_sub(before);
    assert!(grown < 16 * 1024 * 1024, "{grown}");
    let mut other = proxy.connect(Http::Two).await;
    assert_eq!(other.send(&encrypt()).await.status, 200);
}
