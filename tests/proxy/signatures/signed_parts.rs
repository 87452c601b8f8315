//! Which parts of a request must be signed, and that the body is.

use sha2::{Digest, Sha256};
use xks_harness::client::raw_http1;
use xks_harness::{Http, Proxy, RawConnection, Setup};

use super::by_hand::{ByHand, hex};
use super::{assert_not_authenticated, authority, encrypt, logged_reason};

#[tokio::test]
async fn host_and_time_must_be_signed() {
    let proxy = Proxy::start(&Setup::default()).await;
    let cases: [(&[&str], &str); 4] = [
        (&["x-amz-date"], "host is not among"),
        (&["host"], "x-amz-date is not among"),
        (&["content-type", "x-amz-date"], "host is not among"),
        (&["content-type", "host"], "x-amz-date is not among"),
    ];
    for (names, reason) in cases {
        let mut by_hand = ByHand::new(&proxy);
        by_hand.add("content-type", "application/json").sign(names);
        let (answer, peer) = by_hand.send(&proxy).await;
        assert_not_authenticated(&answer, reason);
        assert!(logged_reason(&proxy, peer).contains(reason), "{names:?}");
    }
    let mut absent = ByHand::new(&proxy);
    absent.sign(&["host", "x-absent", "x-amz-date"]);
    let (answer, peer) = absent.send(&proxy).await;
    assert_not_authenticated(&answer, "a header that is not there");
    assert!(logged_reason(&proxy, peer).contains("not in the request"));
}

#[tokio::test]
async fn host_is_what_was_sent_port_and_all() {
    let proxy = Proxy::start(&Setup::default()).await;
    for host in
        ["localhost", "xks.example.com", "xks.example.com:443", "127.0.0.1:1", "[::1]:8443", "LOCALHOST"]
    {
        let mut by_hand = ByHand::new(&proxy);
        by_hand.set("host", host);
        by_hand.send(&proxy).await.0.ok();
        let authorization = by_hand.authorization();
        by_hand.set("host", &format!("{host}0"));
        let mut connection = RawConnection::open(proxy.address).await;
        assert_not_authenticated(&connection.exchange(&by_hand.raw(&authorization)).await.unwrap(), host);
    }
}

#[tokio::test]
async fn a_claimed_body_hash_that_is_true_is_accepted_signed_or_not() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut by_hand = ByHand::new(&proxy);
    let truth = hex(&Sha256::digest(&by_hand.body));
    by_hand.add("x-amz-content-sha256", &truth);
    by_hand.send(&proxy).await.0.ok();
    by_hand.sign(&["host", "x-amz-content-sha256", "x-amz-date"]).send(&proxy).await.0.ok();
}

#[tokio::test]
async fn a_claimed_body_hash_that_lies_is_refused_whatever_was_signed() {
    let proxy = Proxy::start(&Setup::default()).await;
    let other = hex(&Sha256::digest(b"another body"));
    let empty = hex(&Sha256::digest(b""));
    let claims = [
        other.as_str(),
        &empty,
        "UNSIGNED-PAYLOAD",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "",
        "0",
    ];
    for claim in claims {
        for is_listed in [false, true] {
            // The canonical request ends with the claim, and with the truth.
            for claimed_hash in [Some(claim.to_owned()), None] {
                let mut by_hand = ByHand::new(&proxy);
                by_hand.add("x-amz-content-sha256", claim);
                by_hand.claimed_hash.clone_from(&claimed_hash);
                if is_listed {
                    by_hand.sign(&["host", "x-amz-content-sha256", "x-amz-date"]);
                }
                let (answer, peer) = by_hand.send(&proxy).await;
                assert_not_authenticated(&answer, claim);
                let reason = logged_reason(&proxy, peer);
                assert!(
                    reason.contains("x-amz-content-sha256 is not"),
                    "{claim} {is_listed} {claimed_hash:?}: {reason}"
                );
            }
        }
    }
    // The truth beside a lie is a lie.
    let mut both = ByHand::new(&proxy);
    let truth = hex(&Sha256::digest(&both.body));
    both.add("x-amz-content-sha256", &truth).add("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    assert_not_authenticated(&both.send(&proxy).await.0, "two claims");
    // Without the header, too, the body is what was signed.
    let unsigned = ByHand { claimed_hash: Some("UNSIGNED-PAYLOAD".to_owned()), ..ByHand::new(&proxy) };
    assert_not_authenticated(&unsigned.send(&proxy).await.0, "UNSIGNED-PAYLOAD in the canonical request");
}

#[tokio::test]
async fn spaces_count_as_one_and_repeated_headers_as_a_list() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut by_hand = ByHand::new(&proxy);
    by_hand
        .add("x-many", "  one  ")
        .add("x-many", "two   words")
        .add("x-many", "")
        .add("x-note", " a   b    c ");
    by_hand.sign(&["host", "x-amz-date", "x-many", "x-note"]).send(&proxy).await.0.ok();
    let authorization = by_hand.authorization();
    let mut connection = RawConnection::open(proxy.address).await;
    // The same value in other spaces is the same value.
    by_hand.set("x-note", "a b  c");
    connection.exchange(&by_hand.raw(&authorization)).await.unwrap().ok();
    by_hand.set("x-note", "a bc");
    assert_not_authenticated(&connection.exchange(&by_hand.raw(&authorization)).await.unwrap(), "a bc");
    // The order in which they come counts.
    by_hand.set("x-note", "a b c").remove("x-many");
    by_hand.add("x-many", "two words").add("x-many", "one").add("x-many", "");
    assert_not_authenticated(
        &connection.exchange(&by_hand.raw(&authorization)).await.unwrap(),
        "another order",
    );
}

/// A request in chunks, the last of them of size zero, with or without trailers.
fn chunked(head: &str, body: &[u8], chunk_bytes: usize, end: &str) -> Vec<u8> {
    let head = head.replace(&format!("content-length: {}", body.len()), "transfer-encoding: chunked");
    let mut bytes = head.into_bytes();
    for chunk in body.chunks(chunk_bytes) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(end.as_bytes());
    bytes
}

#[tokio::test]
async fn a_body_in_chunks_is_the_body_that_they_make() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = encrypt();
    let whole = raw_http1(&request, &authority(&proxy));
    let head = String::from_utf8(whole[..whole.len() - request.body.len()].to_vec()).unwrap();
    let mut connection = RawConnection::open(proxy.address).await;
    for chunk_bytes in [1, 7, 100_000] {
        for end in ["0\r\n\r\n", "0\r\nx-trailer: ignored\r\nx-amz-date: ignored\r\n\r\n"] {
            let bytes = chunked(&head, &request.body, chunk_bytes, end);
            connection.exchange(&bytes).await.unwrap().ok();
        }
    }
    let mut changed = request.body.clone();
    changed[10] ^= 1;
    let bytes = chunked(&head, &changed, 7, "0\r\n\r\n");
    assert_not_authenticated(&connection.exchange(&bytes).await.unwrap(), "another body in chunks");
}

/// What is no body leaves nothing to verify; whatever comes back, it is no success and names no key.
#[tokio::test]
async fn broken_chunks_are_answered_without_success() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = encrypt();
    let whole = raw_http1(&request, &authority(&proxy));
    let head = String::from_utf8(whole[..whole.len() - request.body.len()].to_vec()).unwrap();
    for end in ["zz\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "5\r\nabc\r\n\r\n\r\n"] {
        let mut connection = RawConnection::open(proxy.address).await;
        let answer = connection.exchange(&chunked(&head, &request.body, 100, end)).await;
        if let Some(answer) = answer {
            assert_eq!(answer.refusal().0, 400, "{end}");
            connection.expect_close().await;
        }
    }
    proxy.connect(Http::One).await.send(&encrypt()).await.ok();
}

/// Two ways to say how long a body is are an invitation to smuggle a second request behind it.
#[tokio::test]
async fn behind_a_body_with_two_lengths_nothing_is_answered() {
    let proxy = Proxy::start(&Setup::default()).await;
    let request = encrypt();
    let whole = raw_http1(&request, &authority(&proxy));
    let head = String::from_utf8(whole[..whole.len() - request.body.len()].to_vec()).unwrap();
    let smuggled = "GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let length = format!("content-length: {}", request.body.len());
    let in_chunks = String::from_utf8(chunked("", &request.body, 100, "0\r\n\r\n")).unwrap();
    let as_it_is = String::from_utf8(request.body.clone()).unwrap();
    for (lengths, body) in [
        (format!("{length}\r\ntransfer-encoding: chunked"), &in_chunks),
        (format!("transfer-encoding: chunked\r\n{length}"), &in_chunks),
        ("transfer-encoding: chunked\r\ncontent-length: 5".to_owned(), &in_chunks),
        (format!("{length}\r\ntransfer-encoding: chunked"), &as_it_is),
        (format!("{length}\r\ncontent-length: 5"), &as_it_is),
        (format!("content-length: 5\r\n{length}"), &as_it_is),
        (format!("{length}\r\ntransfer-encoding: identity"), &as_it_is),
        (format!("{length}\r\ntransfer-encoding: xchunked"), &as_it_is),
        (length.replace(": ", ": +"), &as_it_is),
    ] {
        let mut connection = RawConnection::open(proxy.address).await;
        let head = head.replace(&length, &lengths);
        connection.send(format!("{head}{body}{smuggled}").as_bytes()).await;
        // Served or refused; but then nothing more.
        let _ = connection.answer().await;
        connection.expect_close().await;
    }
}
