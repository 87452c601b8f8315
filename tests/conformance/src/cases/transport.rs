//! HTTP over TLS: versions, ALPN, content types, no cleartext.

use mock_kms::xks::{HttpVersion, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xks_spec::Operation;

use crate::case::{Case, Level, Section, expect, fail};
use crate::client::hello::{Hello, Reply, Version};
use crate::client::paste::netcat;
use crate::client::sigv4::ByHand;
use crate::target::{Need, PATIENCE};
use crate::wire::Wire;

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all: Vec<_> = Operation::ALL
        .into_iter()
        .filter(|operation| *operation != Operation::Decrypt)
        .map(|operation| {
            Case::new(
                Section::Transport,
                format!("json-{}", operation.path_segment()),
                Level::Must,
                format!("{} and looks at the answer's label", operation.name()),
                "application/json",
                move |wire| async move {
                    let seen = wire.send(&wire.request(operation)).await?;
                    seen.ok()?;
                    expect(
                        seen.answer.content_type().eq_ignore_ascii_case("application/json"),
                        "application/json",
                        seen.answer.content_type(),
                    )?;
                    Ok(seen.answer.content_type().to_owned())
                },
            )
            .of(&["TRANS-JSON-002"])
        })
        .collect();
    all.extend([
        Case::new(
            Section::Transport,
            "http1",
            Level::Must,
            "offers http/1.1 alone by ALPN",
            "HTTP/1.1",
            |wire| async move {
                let seen = wire.send(&wire.request(Operation::GetHealthStatus)).await?;
                seen.ok()?;
                Ok(seen.answer.version.to_string())
            },
        )
        .of(&["TRANS-ALPN-001", "TRANS-HTTP-002"]),
        Case::new(
            Section::Transport,
            "http2",
            Level::May,
            "offers h2 alone by ALPN",
            "HTTP/2",
            |wire| async move {
                let seen = wire
                    .send_to(wire.proxy(), HttpVersion::Http2, &wire.request(Operation::GetHealthStatus))
                    .await?;
                seen.ok()?;
                expect(seen.answer.version == HttpVersion::Http2, "HTTP/2", seen.answer.version.to_string())?;
                Ok("HTTP/2".to_owned())
            },
        )
        .of(&["TRANS-HTTP-002"])
        .needs(&[Need::Http2]),
        Case::new(
            Section::Transport,
            "no-alpn",
            Level::Must,
            "offers no protocol by ALPN and speaks HTTP/1.1",
            "200 over HTTP/1.1",
            |wire| async move { without_alpn(&wire).await },
        )
        .of(&["TRANS-ALPN-001"]),
        Case::new(
            Section::Transport,
            "alpn-unknown",
            Level::May,
            "offers an unknown protocol alone by ALPN",
            "alert 120, or a handshake without ALPN",
            |wire| async move {
                let hello = Hello {
                    version: Version::Tls12,
                    suites: &[0xc030, 0xc02c],
                    alpn: &[b"spdy/9"],
                    compressions: &[0],
                    host: &wire.target.host,
                };
                let reply = hello
                    .exchange(wire.target.address, PATIENCE)
                    .await
                    .or_else(|error| fail("a TCP connection", error.to_string()))?;
                wire.note(netcat(wire.target.address, &hello.bytes()), reply.to_string());
                expect(
                    !matches!(reply, Reply::Silent | Reply::Other(_)),
                    "an alert or a ServerHello",
                    reply.to_string(),
                )?;
                Ok(reply.to_string())
            },
        )
        .of(&["TRANS-ALPN-001"]),
        Case::new(
            Section::Transport,
            "cleartext",
            Level::Must,
            "sends a right request without TLS to the same port",
            "no HTTP answer of success",
            |wire| async move {
                let bytes = signed_bytes(&wire, Operation::GetHealthStatus, "connection: close\r\n");
                let text = plain(&wire, &bytes).await?;
                wire.note(netcat(wire.target.address, &bytes), &text);
                expect(
                    !text.starts_with("HTTP/1.1 2")
                        && !text.starts_with("HTTP/1.0 2")
                        && !text.contains("xksProxyFleetSize"),
                    "no success",
                    &text,
                )?;
                Ok(if text.is_empty() { "closed".to_owned() } else { "not served".to_owned() })
            },
        )
        .of(&["TRANS-HTTP-001"]),
        Case::new(
            Section::Transport,
            "keep-alive",
            Level::Should,
            "sends 50 requests on one connection",
            "200 each time",
            |wire| async move {
                let mut raw = wire.raw().await?;
                for number in 0..50 {
                    raw.send(&signed_bytes(&wire, Operation::GetKeyMetadata, "")).await;
                    match raw.answer(PATIENCE).await {
                        Some(answer) if answer.status == 200 => {}
                        other => {
                            return fail(
                                "200",
                                format!("request {number}: {:?}", other.map(|answer| answer.status)),
                            );
                        }
                    }
                }
                Ok("50 answers".to_owned())
            },
        )
        .of(&["META-TIME-001"])
        .source("RFC 9112 section 9.3: KMS keeps connections"),
        Case::new(
            Section::Transport,
            "expect-continue",
            Level::Should,
            "waits for 100 Continue before the body, as curl does",
            "200",
            |wire| async move {
                let bytes = signed_bytes(&wire, Operation::Encrypt, "expect: 100-continue\r\n");
                match wire.exchange_raw(&bytes).await? {
                    Some(answer) if answer.status == 200 => Ok("200".to_owned()),
                    other => fail("200", format!("{:?}", other.map(|answer| answer.status))),
                }
            },
        )
        .source("RFC 9110 section 10.1.1"),
        Case::new(
            Section::Transport,
            "header-names-in-any-case",
            Level::Must,
            "writes header names in capitals",
            "200",
            |wire| async move {
                let bytes = String::from_utf8_lossy(&signed_bytes(&wire, Operation::GetKeyMetadata, ""))
                    .replace("\r\nhost:", "\r\nHOST:")
                    .replace("authorization:", "AUTHORIZATION:")
                    .replace("x-amz-date:", "X-Amz-Date:");
                match wire.exchange_raw(bytes.as_bytes()).await? {
                    Some(answer) if answer.status == 200 => Ok("200".to_owned()),
                    other => fail("200", format!("{:?}", other.map(|answer| answer.status))),
                }
            },
        )
        .of(&["TRANS-HTTP-002"])
        .source("RFC 9110 section 5.1"),
        Case::new(
            Section::Transport,
            "ping",
            Level::Should,
            "GETs the load balancer's URL, unsigned",
            "200",
            |wire| async move {
                let mut request =
                    Request::post(wire.target.args.more.ping_path.clone().unwrap_or_default(), "");
                request.method = http::Method::GET;
                request.headers.clear();
                request.signing.is_off = true;
                let seen = wire.send(&request).await?;
                expect(seen.answer.status == 200, "200", seen.answer.status.to_string())?;
                Ok("200".to_owned())
            },
        )
        .of(&["OPS-LB-001", "OPS-LB-002"])
        .needs(&[Need::PingPath]),
    ]);
    all
}

/// The bytes of a right request over HTTP/1.1, with more header lines.
pub(super) fn signed_bytes(wire: &Wire, operation: Operation, more: &str) -> Vec<u8> {
    let request = wire.request(operation);
    let by_hand = ByHand::new(wire.proxy(), &request.path, &request.body, 0);
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nx-amz-date: {}\r\nauthorization: {}\r\ncontent-length: {}\r\n{more}\r\n",
        request.path,
        wire.proxy().host,
        by_hand.date,
        by_hand.authorization(),
        request.body.len()
    );
    [head.as_bytes(), &request.body].concat()
}

async fn plain(wire: &Wire, bytes: &[u8]) -> Result<String, crate::case::Stop> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(wire.target.address).await?;
        stream.write_all(bytes).await?;
        let mut answer = vec![0; 4096];
        let count = stream.read(&mut answer).await.unwrap_or(0);
        std::io::Result::Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(text)) => Ok(text),
        _ => Ok(String::new()),
    }
}

async fn without_alpn(wire: &Wire) -> crate::case::Finding {
    // The suite's HTTP/1.1 client with its ALPN taken away.
    let client = wire.target.without_alpn().or_else(|error| fail("a TLS client", error.to_string()))?;
    let mut raw = crate::client::raw::Raw::open(&client, wire.proxy())
        .await
        .or_else(|failure| fail("a TLS connection", failure.to_string()))?;
    wire.note_raw(&raw);
    raw.send(&signed_bytes(wire, Operation::GetHealthStatus, "connection: close\r\n")).await;
    match raw.answer(PATIENCE).await {
        Some(answer) if answer.status == 200 => Ok("200".to_owned()),
        other => fail("200", format!("{:?}", other.map(|answer| answer.status))),
    }
}
