//! SigV4 that must authenticate, in every way that a right client may sign and send, and its twins that must not.

use mock_kms::xks::{HttpVersion, Request};
use xks_spec::ErrorName::AuthenticationFailedException;
use xks_spec::Operation;

use crate::case::{Case, Finding, Level, Section, fail};
use crate::client::sigv4::ByHand;
use crate::target::Need;
use crate::wire::Wire;

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let taken = |name: &'static str,
                 level: Level,
                 does: &'static str,
                 requirements: &[&'static str],
                 request: fn(&Wire) -> Request| {
        Case::new(Section::Sigv4, name, level, does, "200", move |wire| async move {
            wire.send(&request(&wire)).await?.ok()?;
            Ok("200".to_owned())
        })
        .of(requirements)
    };
    let mut all = vec![
        taken(
            "as-kms",
            Level::Must,
            "signs host and x-amz-date as KMS does",
            &["AUTH-SIGNED-004", "AUTH-MATCH-001", "AUTH-SIG-001", "AUTH-STS-001", "AUTH-HOST-001"],
            |wire| wire.request(Operation::GetKeyMetadata),
        ),
        taken(
            "as-curl",
            Level::Should,
            "signs content-type too, as curl does",
            &["AUTH-SIG-002", "AUTH-CANON-004"],
            |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| {
                    s.headers.insert(0, ("content-type".to_owned(), "application/json".to_owned()));
                })
            },
        ),
        taken(
            "other-region",
            Level::May,
            "signs for Region eu-west-3: a store may be pinned to one",
            &["AUTH-KEY-001"],
            |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| {
                    s.region = "eu-west-3".to_owned();
                })
            },
        ),
        taken("30-seconds-old", Level::Must, "a request of half a minute ago", &["AUTH-SKEW-001"], |wire| {
            wire.by_hand(wire.request(Operation::GetKeyMetadata), -30, |_| {})
        }),
        taken(
            "30-seconds-ahead",
            Level::Must,
            "a request of half a minute ahead",
            &["AUTH-SKEW-001"],
            |wire| wire.by_hand(wire.request(Operation::GetKeyMetadata), 30, |_| {}),
        ),
        taken("4-minutes-old", Level::Should, "a request of four minutes ago", &["AUTH-SKEW-002"], |wire| {
            wire.by_hand(wire.request(Operation::GetKeyMetadata), -240, |_| {})
        }),
        taken(
            "4-minutes-ahead",
            Level::Should,
            "a request of four minutes ahead",
            &["AUTH-SKEW-003"],
            |wire| wire.by_hand(wire.request(Operation::GetKeyMetadata), 240, |_| {}),
        ),
        taken(
            "body-hash-header",
            Level::Should,
            "sends and signs x-amz-content-sha256 of the body",
            &["AUTH-CANON-004", "AUTH-MATCH-001"],
            |wire| {
                let mut request = wire.request(Operation::GetKeyMetadata);
                let hash = ByHand::new(wire.proxy(), "", &request.body, 0).payload_hash;
                request.headers.push(("x-amz-content-sha256".to_owned(), hash.clone()));
                wire.by_hand(request, 0, |s| {
                    s.headers.insert(1, ("x-amz-content-sha256".to_owned(), hash.clone()));
                })
            },
        ),
        taken(
            "unsigned-extra-headers",
            Level::Must,
            "sends headers that are not signed",
            &["AUTH-MATCH-001"],
            |wire| {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.headers.extend([
                    ("user-agent".to_owned(), "x/1".to_owned()),
                    ("x-amzn-trace-id".to_owned(), "Root=1".to_owned()),
                ]);
                request
            },
        ),
    ];
    all.push(
        Case::new(
            Section::Sigv4,
            "http2-authority",
            Level::Must,
            "signs :authority as host over HTTP/2",
            "200",
            |wire| async move {
                wire.send_to(wire.proxy(), HttpVersion::Http2, &wire.request(Operation::GetKeyMetadata))
                    .await?
                    .ok()?;
                Ok("200".to_owned())
            },
        )
        .of(&["AUTH-CANON-005"])
        .needs(&[Need::Http2]),
    );
    all.push(
        Case::new(
            Section::Sigv4,
            "http2-wrong-signature",
            Level::Must,
            "a signature by another secret over HTTP/2",
            "AuthenticationFailedException",
            |wire| async move {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.signing.secret_access_key =
                    Some("wrong/secret+wrong/secret+wrong/secret+wrong".to_owned());
                wire.send_to(wire.proxy(), HttpVersion::Http2, &request)
                    .await?
                    .refused(&[AuthenticationFailedException])
            },
        )
        .of(&["AUTH-KEY-003", "AUTH-CANON-005"])
        .needs(&[Need::Http2]),
    );
    all.push(
        Case::new(
            Section::Sigv4,
            "chunked-body",
            Level::Must,
            "a body in chunks, signed as the body that they make",
            "200",
            |wire| async move { chunked(&wire, false).await },
        )
        .of(&["TRANS-HTTP-002", "AUTH-HASH-001"])
        .source("RFC 9112 section 7.1"),
    );
    all.push(
        Case::new(
            Section::Sigv4,
            "chunked-body-changed",
            Level::Must,
            "a body in chunks that was changed after signing",
            "AuthenticationFailedException",
            |wire| async move { chunked(&wire, true).await },
        )
        .of(&["AUTH-HASH-001"]),
    );
    all
}

async fn chunked(wire: &Wire, is_changed: bool) -> Finding {
    let request = wire.request(Operation::GetKeyMetadata);
    let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let body = if is_changed { body.replace("Alice", "Mallo") } else { body };
    let (first, second) = body.split_at(body.len() / 2);
    let bytes = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nx-amz-date: {}\r\nauthorization: {}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        request.path,
        wire.proxy().host,
        by_hand.date,
        by_hand.authorization(),
        first.len(),
        second.len()
    );
    let expected = if is_changed { 401 } else { 200 };
    match wire.exchange_raw(bytes.as_bytes()).await? {
        Some(answer) if answer.status == expected => Ok(expected.to_string()),
        Some(answer) => fail(expected.to_string(), answer.status.to_string()),
        None => fail(expected.to_string(), "no answer"),
    }
}
