//! Where a request ends must never be a matter of opinion.

use std::time::Duration;

use xks_spec::Operation;

use super::transport::signed_bytes;
use crate::case::{Case, Level, Section, expect, fail};
use crate::target::PATIENCE;

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let rows: [(&str, &str, bool); 19] = [
        ("length-and-chunked", "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", true),
        ("chunked-and-length", "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", true),
        ("two-lengths", "content-length: 0\r\ncontent-length: 5\r\n\r\nGET /", true),
        ("two-lengths-reversed", "content-length: 5\r\ncontent-length: 0\r\n\r\nGET /", true),
        ("list-of-lengths", "content-length: 0, 5\r\n\r\nGET /", true),
        ("length-with-sign", "content-length: +5\r\n\r\nGET /", true),
        ("negative-length", "content-length: -1\r\n\r\nGET /", true),
        ("hexadecimal-length", "content-length: 0x5\r\n\r\nGET /", true),
        ("length-beyond-64-bits", "content-length: 18446744073709551616\r\n\r\nGET /", true),
        ("space-before-colon", "content-length : 5\r\n\r\nGET /", true),
        ("unknown-encoding", "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", true),
        ("chunked-not-last", "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", true),
        ("chunked-with-control", "transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", true),
        ("chunk-size-with-sign", "transfer-encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n", true),
        (
            "chunk-size-beyond-64-bits",
            "transfer-encoding: chunked\r\n\r\n10000000000000000\r\nx\r\n0\r\n\r\n",
            true,
        ),
        ("chunk-longer-than-size", "transfer-encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n", true),
        ("nul-in-value", "x: a\0b\r\ncontent-length: 0\r\n\r\n", true),
        ("folded-line", "x: y\r\n content-length: 5\r\n\r\n", false),
        ("no-host", "content-length: 0\r\n\r\n", false),
    ];
    let mut all: Vec<_> = rows
        .into_iter()
        .map(|(name, rest, must_close)| {
            let (level, source) = if matches!(name, "length-and-chunked" | "chunked-and-length") {
                (Level::Must, "RFC 9112 section 6.1")
            } else {
                (Level::Should, "RFC 9112 sections 5, 6.3 and 7.1")
            };
            Case::new(
                Section::Smuggling,
                name,
                level,
                format!(
                    "an unsigned request whose end is ambiguous ({}), and a right request behind it",
                    name.replace('-', " ")
                ),
                if must_close {
                    "the connection ends before the second request is answered"
                } else {
                    "a refusal of the first"
                },
                move |wire| async move {
                    let host = if name == "no-host" {
                        String::new()
                    } else {
                        format!("host: {}\r\n", wire.proxy().host)
                    };
                    let first = format!("POST {} HTTP/1.1\r\n{host}{rest}", wire.proxy().health_path());
                    let bytes =
                        [first.as_bytes(), &signed_bytes(&wire, Operation::GetHealthStatus, "")].concat();
                    let mut raw = wire.raw().await?;
                    raw.send(&bytes).await;
                    let mut statuses = Vec::new();
                    while let Some(answer) = raw.answer(Duration::from_secs(5)).await {
                        statuses.push(answer.status);
                        if statuses.len() > 3 {
                            break;
                        }
                    }
                    let first_refused = statuses.first().is_none_or(|status| *status >= 400);
                    expect(first_refused, "a refusal of the first", format!("{statuses:?}"))?;
                    if must_close {
                        expect(
                            !statuses.contains(&200),
                            "no answer to what comes behind",
                            format!("statuses {statuses:?}"),
                        )?;
                    }
                    Ok(format!("statuses {statuses:?}"))
                },
            )
            .of(&["TRANS-HTTP-002"])
            .source(source)
        })
        .collect();
    all.push(
        Case::new(
            Section::Smuggling,
            "request-in-body",
            Level::Must,
            "a right request inside the body of an unsigned one",
            "one answer alone: 401",
            |wire| async move {
                let hidden = signed_bytes(&wire, Operation::GetHealthStatus, "");
                let head = format!(
                    "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    wire.proxy().health_path(),
                    wire.proxy().host,
                    hidden.len()
                );
                let mut raw = wire.raw().await?;
                raw.send(&[head.as_bytes(), &hidden].concat()).await;
                let first = raw.answer(PATIENCE).await.map(|answer| answer.status);
                let second = raw.answer(Duration::from_secs(2)).await.map(|answer| answer.status);
                expect(
                    first == Some(401) && second.is_none(),
                    "401 alone",
                    format!("{first:?}, then {second:?}"),
                )?;
                Ok("401 alone".to_owned())
            },
        )
        .of(&["TRANS-HTTP-002", "AUTH-SIG-001"])
        .source("RFC 9112 section 6.3"),
    );
    all.push(
        Case::new(
            Section::Smuggling,
            "pipelined",
            Level::Should,
            "three right requests sent at once on one connection",
            "three answers in order",
            |wire| async move {
                let one = signed_bytes(&wire, Operation::GetKeyMetadata, "");
                let mut raw = wire.raw().await?;
                raw.send(&[one.as_slice(), &one, &one].concat()).await;
                for number in 0..3 {
                    match raw.answer(PATIENCE).await {
                        Some(answer) if answer.status == 200 => {}
                        other => {
                            return fail(
                                "200",
                                format!("answer {number}: {:?}", other.map(|answer| answer.status)),
                            );
                        }
                    }
                }
                Ok("three".to_owned())
            },
        )
        .of(&["TRANS-HTTP-002"])
        .source("RFC 9112 section 9.3.2"),
    );
    all
}
