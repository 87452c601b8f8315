//! Authorization headers and times of every other form.

use xks_spec::ErrorName::AuthenticationFailedException;
use xks_spec::Operation;

use crate::case::{Case, Level, Section};
use crate::client::sigv4::ByHand;
use crate::wire::with_authorization;

/// The rest of the section.
#[must_use]
pub fn cases() -> Vec<Case> {
    headers().into_iter().chain(dates()).chain([signature_flips()]).collect()
}

type Form = fn(&ByHand, &str) -> String;

fn headers() -> Vec<Case> {
    let rows: [(&str, Form); 44] = [
        ("empty", |_, _| String::new()),
        ("algorithm-alone", |_, _| "AWS4-HMAC-SHA256".to_owned()),
        ("commas-alone", |_, _| "AWS4-HMAC-SHA256 ,,,".to_owned()),
        ("equals-alone", |_, _| "AWS4-HMAC-SHA256 =,=,=".to_owned()),
        ("empty-values", |_, _| "AWS4-HMAC-SHA256 Credential=, SignedHeaders=, Signature=".to_owned()),
        ("basic", |_, _| "Basic dXNlcjpwYXNzd29yZA==".to_owned()),
        ("bearer", |_, _| "Bearer token".to_owned()),
        ("null", |_, _| "null".to_owned()),
        ("format-string", |_, _| "%s%s%n".to_owned()),
        ("8000-slashes", |_, _| "/".repeat(8000)),
        ("8000-commas", |_, _| ",".repeat(8000)),
        ("not-ascii", |_, good| format!("{good}\u{e9}")),
        ("quoted", |_, good| format!("\"{good}\"")),
        ("no-credential", |s, _| {
            format!("AWS4-HMAC-SHA256 SignedHeaders={}, Signature={}", s.signed_headers(), s.signature())
        }),
        ("no-signed-headers", |s, _| {
            format!(
                "AWS4-HMAC-SHA256 Credential={}/{}, Signature={}",
                s.access_key_id,
                s.scope(),
                s.signature()
            )
        }),
        ("no-signature", |s, _| {
            format!(
                "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}",
                s.access_key_id,
                s.scope(),
                s.signed_headers()
            )
        }),
        ("signature-empty", |s, good| good.replace(&s.signature(), "")),
        ("signature-8-chars", |s, good| good.replace(&s.signature(), &s.signature()[..8])),
        ("signature-32-chars", |s, good| good.replace(&s.signature(), &s.signature()[..32])),
        ("signature-63-chars", |s, good| good.replace(&s.signature(), &s.signature()[..63])),
        ("signature-longer", |_, good| format!("{good}0")),
        ("signature-zeros", |s, good| good.replace(&s.signature(), &"0".repeat(64))),
        ("signature-right-start", |s, good| {
            good.replace(&s.signature(), &format!("{}{}", &s.signature()[..8], "0".repeat(56)))
        }),
        ("signature-right-end", |s, good| {
            good.replace(&s.signature(), &format!("{}{}", "0".repeat(32), &s.signature()[32..]))
        }),
        ("signature-not-hex", |s, good| good.replace(&s.signature(), &"z".repeat(64))),
        ("signature-upper-case-zeros", |s, good| good.replace(&s.signature(), &"F".repeat(64))),
        ("signature-0x", |_, good| good.replace("Signature=", "Signature=0x")),
        ("credential-id-alone", |s, good| good.replace(&format!("/{}", s.scope()), "")),
        ("credential-no-end", |_, good| good.replace("/aws4_request", "")),
        ("credential-no-service", |_, good| good.replace("/kms-xks-proxy", "")),
        ("credential-no-date", |s, good| good.replace(&format!("/{}", s.day), "")),
        ("credential-slash-behind", |_, good| good.replace("aws4_request,", "aws4_request/,")),
        ("credential-end-upper-case", |_, good| good.replace("aws4_request", "AWS4_REQUEST")),
        ("credential-short-date", |s, good| {
            good.replace(&format!("/{}/", s.day), &format!("/{}/", &s.day[2..]))
        }),
        ("credential-id-lower-case", |s, good| {
            good.replace(&s.access_key_id, &s.access_key_id.to_lowercase())
        }),
        ("credential-long-id", |s, good| good.replace(&s.access_key_id, &"A".repeat(3000))),
        ("credential-empty-id", |s, good| good.replace(&s.access_key_id, "")),
        ("signed-headers-empty", |_, good| good.replace("host;x-amz-date", "")),
        ("signed-headers-semicolon", |_, good| good.replace("host;x-amz-date", ";")),
        ("signed-headers-absent-one", |_, good| good.replace("host;x-amz-date", "host;x-absent;x-amz-date")),
        ("signed-headers-host-alone", |_, good| good.replace("host;x-amz-date", "host")),
        ("signed-headers-date-alone", |_, good| good.replace("host;x-amz-date", "x-amz-date")),
        ("signed-headers-comma", |_, good| good.replace("host;x-amz-date", "host,x-amz-date")),
        ("algorithm-exchanged", |_, good| good.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")),
    ];
    rows.into_iter()
        .map(|(name, form)| {
            Case::new(
                Section::Sigv4,
                format!("form-{name}"),
                Level::Must,
                format!("a malformed Authorization header: {}", name.replace('-', " ")),
                if is_for_the_server(name) {
                    "AuthenticationFailedException, or 400 or 431 of the HTTP server"
                } else {
                    "AuthenticationFailedException"
                },
                move |wire| async move {
                    let request = wire.request(Operation::GetKeyMetadata);
                    let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                    let header = form(&by_hand, &by_hand.authorization());
                    let seen = wire.send(&with_authorization(request, &by_hand.date, &header)).await?;
                    if is_for_the_server(name) && matches!(seen.answer.status, 400 | 431) {
                        return Ok(seen.status());
                    }
                    seen.refused(&[AuthenticationFailedException])
                },
            )
            .of(&form_requirements(name))
        })
        .collect()
}

/// Headers that a server may refuse before it knows what they are for: by their length (RFC 6585 section 5), or for bytes that
/// it does not take in a value (RFC 9110 section 5.5).
fn is_for_the_server(name: &str) -> bool {
    matches!(name, "8000-slashes" | "8000-commas" | "not-ascii")
}

fn form_requirements(name: &str) -> Vec<&'static str> {
    let more: &[_] = match name.split('-').next() {
        Some("algorithm") => &["AUTH-ALG-001"],
        Some("credential") => &["AUTH-SCOPE-001", "AUTH-KEY-002"],
        Some("signature") => &["AUTH-MATCH-001"],
        Some("signed") => &["AUTH-CANON-004"],
        _ => &[],
    };
    [&["AUTH-HEADER-002", "ERR-AUTH-001"], more].concat()
}

/// Times of another form, each signed as it is sent.
fn dates() -> Vec<Case> {
    type DateForm = fn(&str) -> String;
    let rows: [(&str, DateForm); 12] = [
        ("empty", |_| String::new()),
        ("day-alone", |date| date[..8].to_owned()),
        ("no-zone", |date| date[..15].to_owned()),
        ("lower-case", str::to_lowercase),
        ("extended-form", |date| {
            format!(
                "{}-{}-{}T{}:{}:{}Z",
                &date[..4],
                &date[4..6],
                &date[6..8],
                &date[9..11],
                &date[11..13],
                &date[13..15]
            )
        }),
        ("with-offset", |date| format!("{}+0000", &date[..15])),
        ("month-13", |date| format!("{}13{}", &date[..4], &date[6..])),
        ("hour-25", |date| format!("{}25{}", &date[..9], &date[11..])),
        ("minute-61", |date| format!("{}61{}", &date[..11], &date[13..])),
        ("letters", |_| "today".to_owned()),
        ("unix-time", |_| "1767323045".to_owned()),
        ("space-for-t", |date| date.replace('T', " ")),
    ];
    rows.into_iter()
        .map(|(name, form)| {
            Case::new(
                Section::Sigv4,
                format!("date-{name}"),
                Level::Must,
                format!("an x-amz-date of another form, signed so: {}", name.replace('-', " ")),
                "AuthenticationFailedException",
                move |wire| async move {
                    let request = wire.request(Operation::GetKeyMetadata);
                    let request = wire.by_hand(request, 0, |signed| {
                        signed.date = form(&signed.date);
                        signed.headers[1].1 = signed.date.clone();
                    });
                    wire.send(&request).await?.refused(&[AuthenticationFailedException])
                },
            )
            .of(&["AUTH-DATE-001", "ERR-AUTH-001"])
        })
        .collect()
}

/// Each character of the signature in turn.
fn signature_flips() -> Case {
    Case::new(
        Section::Sigv4,
        "signature-flips",
        Level::Must,
        "changes each of the signature's 64 characters in turn",
        "AuthenticationFailedException for each",
        |wire| async move {
            for at in 0..64 {
                let request = wire.request(Operation::GetHealthStatus);
                let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
                let right = by_hand.signature();
                let other = if right.as_bytes()[at] == b'0' { "1" } else { "0" };
                let changed = format!("{}{other}{}", &right[..at], &right[at + 1..]);
                let header = by_hand.authorization().replace(&right, &changed);
                wire.send(&with_authorization(request, &by_hand.date, &header))
                    .await?
                    .refused(&[AuthenticationFailedException])?;
            }
            Ok("64 refused".to_owned())
        },
    )
    .of(&["AUTH-MATCH-001", "ERR-AUTH-001"])
}
