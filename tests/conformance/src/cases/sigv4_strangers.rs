//! SigV4 in the hands of a stranger: headers replayed to something else, and what wrong ones teach.

use bytes::Bytes;
use http::HeaderValue;
use mock_kms::xks::{Failure, HttpVersion, Request};
use xks_spec::ErrorName::{AuthenticationFailedException, UnsupportedOperationException};
use xks_spec::Operation;

use super::disabled_store;
use crate::case::{Case, Level, Section, expect, fail};
use crate::client::sigv4::ByHand;
use crate::wire::{Wire, body_of, encrypt_body, with_authorization};

/// An id that no key has.
const NO_KEY: &str = "no-such-key-at-all";

/// Far more than any request of KMS has.
const LARGE_BYTES: usize = 1 << 20;

/// The last part of the section.
#[must_use]
pub fn cases() -> Vec<Case> {
    [replays(), oracles(), vec![disabled_store::no_state_oracle()]].concat()
}

/// A header that was right once, on something else.
fn replays() -> Vec<Case> {
    let replay = |name: &'static str, does: &'static str, other: fn(&Wire) -> Request| {
        Case::new(
            Section::Sigv4,
            name,
            Level::Must,
            does,
            "AuthenticationFailedException",
            move |wire| async move {
                let good = wire.request(Operation::GetKeyMetadata);
                let by_hand = ByHand::new(wire.proxy(), &good.path, &good.body, 0);
                wire.send(&with_authorization(good, &by_hand.date, &by_hand.authorization())).await?.ok()?;
                let replayed = with_authorization(other(&wire), &by_hand.date, &by_hand.authorization());
                wire.send(&replayed).await?.refused(&[AuthenticationFailedException])
            },
        )
        .of(&["AUTH-MATCH-001", "AUTH-CANON-002", "AUTH-HASH-001"])
    };
    vec![
        replay(
            "replayed-to-other-operation",
            "sends the headers of a right request to another operation",
            |wire| Request {
                path: wire.path(wire.key(), Operation::Encrypt),
                ..wire.request(Operation::GetKeyMetadata)
            },
        ),
        replay("replayed-to-other-key", "sends the headers of a right request to another key", |wire| {
            Request {
                path: wire.path("another-key", Operation::GetKeyMetadata),
                ..wire.request(Operation::GetKeyMetadata)
            }
        }),
        replay("replayed-to-health", "sends the headers of a right request to GetHealthStatus", |wire| {
            Request { path: wire.proxy().health_path(), ..wire.request(Operation::GetKeyMetadata) }
        }),
        replay(
            "replayed-with-other-body",
            "sends the headers of a right request with another body",
            |wire| Request {
                body: body_of(Operation::GetKeyMetadata).to_string().replace("Alice", "Mallo").into(),
                ..wire.request(Operation::GetKeyMetadata)
            },
        ),
        replay(
            "replayed-with-longer-body",
            "sends the headers of a right request with a space behind the body",
            |wire| Request {
                body: format!("{} ", body_of(Operation::GetKeyMetadata)).into(),
                ..wire.request(Operation::GetKeyMetadata)
            },
        ),
        replay("replayed-with-empty-body", "sends the headers of a right request without body", |wire| {
            Request { body: Bytes::new(), ..wire.request(Operation::GetKeyMetadata) }
        }),
    ]
}

/// The text without the words that have a digit in them: request ids and times, which no two answers share.
fn timeless(text: &str) -> String {
    let is_of_a_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '+' | '.');
    let words = text.split_inclusive(|c| !is_of_a_word(c));
    let masked = words.map(|word| {
        let has_digit = word.contains(|c: char| c.is_ascii_digit());
        if has_digit { word.chars().filter(|c| !is_of_a_word(*c)).collect() } else { word.to_owned() }
    });
    masked.collect()
}

/// What a stranger could learn.
fn oracles() -> Vec<Case> {
    let wrong = |mut request: Request| {
        request.signing.secret_access_key = Some("wrong/secret+wrong/secret+wrong/secret+wrong".to_owned());
        request
    };
    vec![
        Case::new(
            Section::Sigv4,
            "no-key-oracle",
            Level::Must,
            "badly signed requests for a key that exists and one that does not",
            "the same AuthenticationFailedException",
            move |wire| async move {
                for operation in [Operation::GetKeyMetadata, Operation::Encrypt, Operation::Decrypt] {
                    for key in [wire.key(), NO_KEY] {
                        let request = Request { path: wire.path(key, operation), ..wire.request(operation) };
                        wire.send(&wrong(request)).await?.refused(&[AuthenticationFailedException])?;
                    }
                }
                Ok("the same".to_owned())
            },
        )
        .of(&["ERR-AUTH-001", "AUTH-SIG-001"]),
        Case::new(
            Section::Sigv4,
            "no-key-oracle-in-message",
            Level::Should,
            "badly signed requests for a key that exists and one that does not, looking at all of the body",
            "the same body, but for the key id and what changes with every request",
            move |wire| async move {
                for operation in [Operation::GetKeyMetadata, Operation::Encrypt, Operation::Decrypt] {
                    let mut bodies = Vec::new();
                    for key in [wire.key(), NO_KEY] {
                        let request = Request { path: wire.path(key, operation), ..wire.request(operation) };
                        let seen = wire.send(&wrong(request)).await?;
                        bodies.push(timeless(&String::from_utf8_lossy(&seen.answer.body).replace(key, "KEY")));
                    }
                    let seen = format!("{} for one that exists, else {}", bodies[0], bodies[1]);
                    expect(bodies[0] == bodies[1], "one body", seen)?;
                }
                Ok("the same".to_owned())
            },
        )
        .of(&["ERR-AUTH-001", "AUTH-SIG-001"])
        .source("who cannot sign should not learn which keys exist"),
        Case::new(
            Section::Sigv4,
            "no-body-oracle",
            Level::Must,
            "badly signed requests whose bodies are no JSON, empty or too large",
            "AuthenticationFailedException; for the large one UnsupportedOperationException, 413 or a closed connection too",
            move |wire| async move {
                let mut large = wrong(wire.request(Operation::Encrypt));
                large.body = vec![b' '; LARGE_BYTES].into();
                match wire.try_send(wire.proxy(), HttpVersion::Http1, &large).await {
                    Ok(seen) if seen.answer.status == 413 => {}
                    Ok(seen) => {
                        seen.refused(&[AuthenticationFailedException, UnsupportedOperationException])?;
                    }
                    // A server that answers before the body has come may close, and the answer be lost.
                    Err(Failure::Broken(_)) => {}
                    Err(failure) => return fail("an answer", failure.to_string()),
                }
                for body in [
                    "no json".to_owned(),
                    String::new(),
                    "[".repeat(2000),
                    encrypt_body(&[1; 20], None, false).to_string().replace("AES_GCM", "X"),
                ] {
                    let mut request = wrong(wire.request(Operation::Encrypt));
                    request.body = body.into();
                    wire.send(&request).await?.refused(&[AuthenticationFailedException])?;
                }
                Ok("refused alike".to_owned())
            },
        )
        .of(&["ERR-AUTH-001", "AUTH-SIG-001"]),
        Case::new(
            Section::Sigv4,
            "no-signature-shown",
            Level::Must,
            "a wrong signature, looking for the right one in the answer",
            "an answer without the signature that would have been right",
            |wire| async move {
                let request = wire.request(Operation::GetKeyMetadata);
                let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                let right = by_hand.signature();
                let changed = by_hand.authorization().replace(&right, &"0".repeat(64));
                let seen = wire.send(&with_authorization(request, &by_hand.date, &changed)).await?;
                seen.refused(&[AuthenticationFailedException])?;
                let text = String::from_utf8_lossy(&seen.answer.body).to_lowercase();
                expect(!text.contains(&right), "an answer without it", "the right signature")?;
                Ok("not shown".to_owned())
            },
        )
        .of(&["ERR-AUTH-001", "AUTH-MATCH-001"]),
        Case::new(
            Section::Sigv4,
            "duplicate-date",
            Level::Should,
            "two x-amz-date headers, the signed one first",
            "AuthenticationFailedException or a bare 400",
            |wire| async move {
                let request = wire.request(Operation::GetKeyMetadata);
                let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                let sent = with_authorization(request, &by_hand.date, &by_hand.authorization());
                let first = sent.edit.clone();
                let sent = sent.edited(move |http| {
                    if let Some(first) = &first {
                        first(http);
                    }
                    http.headers_mut().append("x-amz-date", HeaderValue::from_static("20200101T000000Z"));
                });
                let seen = wire.send(&sent).await?;
                expect(matches!(seen.answer.status, 400 | 401), "a refusal", seen.status())?;
                Ok(seen.status())
            },
        )
        .of(&["AUTH-DATE-001"]),
    ]
}
