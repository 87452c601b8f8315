//! SigV4 that must not authenticate: no signature, or one that is right for something else.

use bytes::Bytes;
use mock_kms::xks::Request;
use xks_spec::ErrorName::{AuthenticationFailedException, InvalidUriPathException};
use xks_spec::Operation;

use crate::case::{Case, Level, Section};
use crate::client::sigv4::ByHand;
use crate::wire::{Wire, body_of, with_authorization};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [signed_otherwise(), of_other_parts(), unsigned()].concat()
}

type Change = fn(&mut ByHand);

/// Right signatures of a time, scope, algorithm or set of headers that is not to be accepted.
fn signed_otherwise() -> Vec<Case> {
    let rows: [(&str, Level, i64, Change, &[&'static str]); 22] = [
        (
            "host-not-signed",
            Level::Should,
            0,
            |s| s.headers.retain(|(name, _)| name != "host"),
            &["AUTH-SIGNED-002"],
        ),
        (
            "date-not-signed",
            Level::Should,
            0,
            |s| s.headers.retain(|(name, _)| name != "x-amz-date"),
            &["AUTH-SIGNED-003"],
        ),
        ("nothing-signed", Level::Should, 0, |s| s.headers.clear(), &["AUTH-SIGNED-002", "AUTH-SIGNED-003"]),
        ("6-minutes-old", Level::Should, -360, |_| {}, &["AUTH-SKEW-002"]),
        ("6-minutes-ahead", Level::Should, 360, |_| {}, &["AUTH-SKEW-003"]),
        ("14-minutes-old", Level::Should, -840, |_| {}, &["AUTH-SKEW-002"]),
        ("14-minutes-ahead", Level::Should, 840, |_| {}, &["AUTH-SKEW-003"]),
        ("an-hour-old", Level::Must, -3600, |_| {}, &["AUTH-SKEW-001"]),
        ("a-day-old", Level::Must, -86_400, |_| {}, &["AUTH-SKEW-001"]),
        ("a-year-old", Level::Must, -31_536_000, |_| {}, &["AUTH-SKEW-001"]),
        ("a-day-ahead", Level::Must, 86_400, |_| {}, &["AUTH-SKEW-001"]),
        (
            "scope-of-yesterday",
            Level::Should,
            0,
            |s| {
                s.day = crate::client::sigv4::amz_date(time::OffsetDateTime::now_utc() - time::Duration::DAY)
                    [..8]
                    .to_owned();
            },
            &["AUTH-SCOPE-003"],
        ),
        (
            "scope-of-tomorrow",
            Level::Should,
            0,
            |s| {
                s.day = crate::client::sigv4::amz_date(time::OffsetDateTime::now_utc() + time::Duration::DAY)
                    [..8]
                    .to_owned();
            },
            &["AUTH-SCOPE-003"],
        ),
        ("service-kms", Level::Must, 0, |s| s.service = "kms".to_owned(), &["AUTH-SCOPE-002"]),
        ("service-s3", Level::Must, 0, |s| s.service = "s3".to_owned(), &["AUTH-SCOPE-002"]),
        (
            "service-upper-case",
            Level::Must,
            0,
            |s| s.service = "KMS-XKS-PROXY".to_owned(),
            &["AUTH-SCOPE-002"],
        ),
        ("end-aws5", Level::Must, 0, |s| s.end = "aws5_request".to_owned(), &["AUTH-SCOPE-001"]),
        ("end-empty", Level::Must, 0, |s| s.end = String::new(), &["AUTH-SCOPE-001"]),
        (
            "algorithm-sha512",
            Level::Must,
            0,
            |s| s.algorithm = "AWS4-HMAC-SHA512".to_owned(),
            &["AUTH-ALG-001"],
        ),
        (
            "algorithm-lower-case",
            Level::Must,
            0,
            |s| s.algorithm = "aws4-hmac-sha256".to_owned(),
            &["AUTH-ALG-001"],
        ),
        (
            "unsigned-payload",
            Level::Must,
            0,
            |s| s.payload_hash = "UNSIGNED-PAYLOAD".to_owned(),
            &["AUTH-HASH-001"],
        ),
        (
            "hash-in-upper-case",
            Level::Should,
            0,
            |s| s.payload_hash = s.payload_hash.to_uppercase(),
            &["AUTH-HASH-001"],
        ),
    ];
    let mut all: Vec<_> = rows
        .into_iter()
        .map(|(name, level, skew, change, requirements)| {
            let does = format!("a signature that is right but for what it signs: {}", name.replace('-', " "));
            refused(name, level, does, requirements, move |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), skew, change)
            })
        })
        .collect();
    let on_health = [
        ("6-minutes-old-health", -360, Level::Should, &["AUTH-SKEW-002"]),
        ("an-hour-old-health", -3600, Level::Must, &["AUTH-SKEW-001"]),
    ]
    .into_iter()
    .map(|(name, skew, level, requirements)| {
        refused(name, level, "an old signature of GetHealthStatus".to_owned(), requirements, move |wire| {
            wire.by_hand(wire.request(Operation::GetHealthStatus), skew, |_| {})
        })
    });
    all.extend(on_health);
    all
}

/// Signatures by another secret, or of a request of which a part was changed.
fn of_other_parts() -> Vec<Case> {
    vec![
        refused(
            "wrong-secret",
            Level::Must,
            "a signature by another secret",
            &["AUTH-KEY-003", "ERR-AUTH-001"],
            |wire| {
                let mut request = wire.request(Operation::Encrypt);
                request.signing.secret_access_key =
                    Some("wrong/secret+wrong/secret+wrong/secret+wrong".to_owned());
                request
            },
        ),
        refused(
            "unknown-access-key-id",
            Level::Must,
            "a signature under an access key id that is nobody's",
            &["AUTH-KEY-002", "AUTH-ROT-003"],
            |wire| {
                let mut request = wire.request(Operation::Encrypt);
                request.signing.access_key_id = Some("NOBODYSACCESSKEYID2345".to_owned());
                request
            },
        ),
        refused(
            "access-key-id-exchanged",
            Level::Must,
            "a right signature with another access key id put in",
            &["AUTH-KEY-002", "AUTH-ROT-003"],
            |wire| {
                let request = wire.request(Operation::GetKeyMetadata);
                let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                let changed =
                    by_hand.authorization().replace(&by_hand.access_key_id, "NOBODYSACCESSKEYID2345");
                with_authorization(request, &by_hand.date, &changed)
            },
        ),
        refused(
            "other-method-signed",
            Level::Must,
            "a signature for GET on a POST",
            &["AUTH-CANON-001"],
            |wire| wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| s.method = "GET".to_owned()),
        ),
        refused(
            "other-path-signed",
            Level::Must,
            "the signature of another key's path",
            &["AUTH-CANON-002"],
            |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| {
                    s.path = s.path.replace("/metadata", "/encrypt");
                })
            },
        ),
        refused(
            "other-host-signed",
            Level::Must,
            "the signature for another host",
            &["AUTH-HOST-001", "AUTH-CANON-004"],
            |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| {
                    s.headers[0].1 = "other.example.com".to_owned();
                })
            },
        ),
        refused(
            "other-date-signed",
            Level::Must,
            "the signature of another second than x-amz-date tells",
            &["AUTH-DATE-001", "AUTH-CANON-004", "AUTH-STS-001"],
            |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| {
                    s.headers[1].1 = crate::client::sigv4::amz_date(
                        time::OffsetDateTime::now_utc() - time::Duration::SECOND * 7,
                    );
                })
            },
        ),
        refused(
            "other-body-signed",
            Level::Must,
            "the signature of another body",
            &["AUTH-HASH-001"],
            |wire| {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.signing.body = Some(Bytes::from_static(b"{}"));
                request
            },
        ),
        refused(
            "body-hash-from-header",
            Level::Must,
            "another body than the one whose hash x-amz-content-sha256 tells and the signature covers",
            &["AUTH-HASH-001"],
            |wire| {
                let signed = body_of(Operation::GetKeyMetadata).to_string();
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.body = signed.replace("Alice", "Mallo").into();
                let hash = ByHand::new(wire.proxy(), "", signed.as_bytes(), 0).payload_hash;
                request.headers.push(("x-amz-content-sha256".to_owned(), hash.clone()));
                wire.by_hand(request, 0, |s| {
                    s.payload_hash.clone_from(&hash);
                    s.headers.insert(1, ("x-amz-content-sha256".to_owned(), hash.clone()));
                })
            },
        ),
        refused(
            "unsigned-payload-header",
            Level::Must,
            "x-amz-content-sha256 of UNSIGNED-PAYLOAD, signed so",
            &["AUTH-HASH-001"],
            |wire| {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.headers.push(("x-amz-content-sha256".to_owned(), "UNSIGNED-PAYLOAD".to_owned()));
                wire.by_hand(request, 0, |s| {
                    s.payload_hash = "UNSIGNED-PAYLOAD".to_owned();
                    s.headers.insert(1, ("x-amz-content-sha256".to_owned(), "UNSIGNED-PAYLOAD".to_owned()));
                })
            },
        ),
        refused(
            "region-exchanged",
            Level::Must,
            "a right signature with another Region put into the scope",
            &["AUTH-KEY-001", "AUTH-STS-001"],
            |wire| {
                let request = wire.request(Operation::GetKeyMetadata);
                let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                let changed =
                    by_hand.authorization().replace(&format!("/{}/", by_hand.region), "/xx-nowhere-9/");
                with_authorization(request, &by_hand.date, &changed)
            },
        ),
        refused(
            "signed-header-changed",
            Level::Must,
            "a signed header with another value than was signed",
            &["AUTH-CANON-004"],
            |wire| {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.headers.push(("x-more".to_owned(), "changed".to_owned()));
                wire.by_hand(request, 0, |s| s.headers.push(("x-more".to_owned(), "signed".to_owned())))
            },
        ),
        refused(
            "signed-header-missing",
            Level::Must,
            "a signed header that is not sent",
            &["AUTH-CANON-004"],
            |wire| {
                wire.by_hand(wire.request(Operation::GetKeyMetadata), 0, |s| {
                    s.headers.push(("x-more".to_owned(), "signed".to_owned()));
                })
            },
        ),
        refused(
            "second-value-added",
            Level::Must,
            "a signed header with a second value that was not signed",
            &["AUTH-CANON-004"],
            |wire| {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.headers.extend([
                    ("x-more".to_owned(), "signed".to_owned()),
                    ("x-more".to_owned(), "added".to_owned()),
                ]);
                wire.by_hand(request, 0, |s| s.headers.push(("x-more".to_owned(), "signed".to_owned())))
            },
        ),
        Case::new(
            Section::Sigv4,
            "query-added",
            Level::Must,
            "a right signature, and a query that was not signed",
            "a refusal",
            |wire| async move {
                let request = wire.request(Operation::GetKeyMetadata);
                let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                let mut sent = with_authorization(request, &by_hand.date, &by_hand.authorization());
                sent.path.push_str("?a=b");
                wire.send(&sent).await?.refused(&[
                    AuthenticationFailedException,
                    InvalidUriPathException,
                    xks_spec::ErrorName::ValidationException,
                ])
            },
        )
        .of(&["AUTH-MATCH-001", "AUTH-CANON-002"]),
    ]
}

fn refused(
    name: &str,
    level: Level,
    does: impl Into<String>,
    requirements: &[&'static str],
    request: impl Fn(&Wire) -> Request + Send + Sync + Copy + 'static,
) -> Case {
    Case::new(Section::Sigv4, name, level, does, "AuthenticationFailedException", move |wire| async move {
        wire.send(&request(&wire)).await?.refused(&[AuthenticationFailedException])
    })
    .of(requirements)
}

/// Each operation without a signature.
fn unsigned() -> Vec<Case> {
    Operation::ALL
        .into_iter()
        .map(|operation| {
            Case::new(
                Section::Sigv4,
                format!("unsigned-{}", operation.path_segment()),
                Level::Must,
                format!("{} without any signature", operation.name()),
                "AuthenticationFailedException",
                move |wire| async move {
                    let mut request = wire.request(operation);
                    request.signing.is_off = true;
                    wire.send(&request).await?.refused(&[AuthenticationFailedException])
                },
            )
            .of(&["AUTH-SIG-001", "AUTH-HEADER-002", "ERR-AUTH-001"])
        })
        .collect()
}
