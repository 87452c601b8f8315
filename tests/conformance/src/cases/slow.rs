//! Idle and slow connections: none may keep others waiting.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use xks_spec::Operation;

use super::transport::signed_bytes;
use crate::case::{Case, Level, Section, expect, fail};
use crate::target::PATIENCE;
use crate::wire::Wire;

/// How long others may have to wait: far above what is right, far below any time-out.
const NOT_KEPT_WAITING: Duration = Duration::from_secs(5);

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            Section::Slow,
            "silent-before-tls",
            Level::Must,
            "opens 20 TCP connections that say nothing, and asks on another",
            "an answer all the same",
            |wire| async move {
                let mut silent = Vec::new();
                for _ in 0..20 {
                    silent.push(
                        TcpStream::connect(wire.target.address)
                            .await
                            .or_else(|error| fail("a TCP connection", error.to_string()))?,
                    );
                }
                let finding = asks_on_a_new_connection(&wire).await;
                drop(silent);
                finding
            },
        )
        .of(&["HEALTH-TIME-001", "META-TIME-001"]),
        Case::new(
            Section::Slow,
            "silent-after-tls",
            Level::Must,
            "opens 20 TLS connections that say nothing, and asks on another",
            "an answer all the same",
            |wire| async move {
                let mut silent = Vec::new();
                for _ in 0..20 {
                    silent.push(wire.raw().await?);
                }
                let finding = asks_on_a_new_connection(&wire).await;
                drop(silent);
                finding
            },
        )
        .of(&["HEALTH-TIME-001", "META-TIME-001"]),
        Case::new(
            Section::Slow,
            "half-a-body",
            Level::Must,
            "sends half a body on 10 connections, and asks on another",
            "an answer all the same",
            |wire| async move {
                let bytes = signed_bytes(&wire, Operation::Encrypt, "");
                let mut slow = Vec::new();
                for _ in 0..10 {
                    let mut raw = wire.raw().await?;
                    raw.send(&bytes[..bytes.len() - 20]).await;
                    slow.push(raw);
                }
                let finding = asks_on_a_new_connection(&wire).await;
                drop(slow);
                finding
            },
        )
        .of(&["HEALTH-TIME-001", "ENC-TIME-001"]),
        Case::new(
            Section::Slow,
            "byte-by-byte",
            Level::Should,
            "sends a right request in pieces of 50 bytes",
            "200",
            |wire| async move {
                let mut raw = wire.raw().await?;
                for piece in signed_bytes(&wire, Operation::GetKeyMetadata, "").chunks(50) {
                    raw.send(piece).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                match raw.answer(PATIENCE).await {
                    Some(answer) if answer.status == 200 => Ok("200".to_owned()),
                    other => fail("200", format!("{:?}", other.map(|answer| answer.status))),
                }
            },
        )
        .of(&["META-TIME-001"])
        .source("RFC 9112 section 2.2: a request is a stream of bytes"),
        Case::new(
            Section::Slow,
            "idle-two-seconds",
            Level::Should,
            "is silent for two seconds between two requests",
            "the connection serves again: KMS keeps connections",
            |wire| async move {
                let mut raw = wire.raw().await?;
                for _ in 0..2 {
                    raw.send(&signed_bytes(&wire, Operation::GetKeyMetadata, "")).await;
                    match raw.answer(PATIENCE).await {
                        Some(answer) if answer.status == 200 => {}
                        other => return fail("200", format!("{:?}", other.map(|answer| answer.status))),
                    }
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                Ok("200 twice".to_owned())
            },
        )
        .of(&["META-TIME-001"])
        .source("RFC 9112 section 9.3"),
        Case::new(
            Section::Slow,
            "head-for-ever",
            Level::May,
            "sends half a head and then nothing for 60 seconds",
            "the connection is closed",
            |wire| async move {
                let mut raw = wire.raw().await?;
                raw.send(b"POST / HTTP/1.1\r\nhost: x\r\nx-more: ").await;
                let begin = Instant::now();
                expect(
                    raw.closes_within(Duration::from_secs(60)).await,
                    "closed",
                    "still open after 60 seconds",
                )?;
                Ok(format!("closed after {:.1} s", begin.elapsed().as_secs_f64()))
            },
        )
        .source("advice: CWE-400"),
    ]
}

async fn asks_on_a_new_connection(wire: &Wire) -> crate::case::Finding {
    let ask = async {
        let mut raw = wire.raw().await?;
        raw.send(&signed_bytes(wire, Operation::GetHealthStatus, "")).await;
        match raw.answer(PATIENCE).await {
            Some(answer) if answer.status == 200 => Ok("200".to_owned()),
            other => fail("200", format!("{:?}", other.map(|answer| answer.status))),
        }
    };
    match tokio::time::timeout(NOT_KEPT_WAITING, ask).await {
        Ok(finding) => finding,
        Err(_) => fail(format!("an answer within {NOT_KEPT_WAITING:?}"), "none"),
    }
}
