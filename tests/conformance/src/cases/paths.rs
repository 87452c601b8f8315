//! Paths and methods.

use http::Method;
use mock_kms::xks::{HttpVersion, Request};
use xks_spec::ErrorName::{AuthenticationFailedException, InvalidUriPathException, KeyNotFoundException};
use xks_spec::{ErrorName, Operation};

use crate::case::{Case, Level, Section, expect};
use crate::target::Need;
use crate::wire::{Wire, body_of};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for operation in Operation::ALL {
        let requirement: &[&'static str] = match operation {
            Operation::GetKeyMetadata => &["META-METHOD-001"],
            Operation::Encrypt => &["ENC-METHOD-001"],
            Operation::Decrypt => &["DEC-METHOD-001"],
            Operation::GetHealthStatus => &["HEALTH-METHOD-001"],
        };
        for (version, needs) in [(HttpVersion::Http1, &[][..]), (HttpVersion::Http2, &[Need::Http2])] {
            for is_signed in [true, false] {
                let kind = format!(
                    "{}{}",
                    if version == HttpVersion::Http1 { "http1" } else { "http2" },
                    if is_signed { "" } else { "-unsigned" }
                );
                let level = if is_signed { Level::Must } else { Level::Should };
                all.push(
                    Case::new(
                        Section::Paths,
                        format!("get-{}-{kind}", operation.path_segment()),
                        level,
                        format!(
                            "GET on the path of {} over {version}, {}",
                            operation.name(),
                            if is_signed { "signed" } else { "unsigned" }
                        ),
                        "status 405",
                        move |wire| async move {
                            let mut request = wire.request(operation);
                            request.method = Method::GET;
                            request.body = bytes::Bytes::new();
                            request.signing.is_off = !is_signed;
                            let seen = wire.send_to(wire.proxy(), version, &request).await?;
                            let is_right =
                                seen.answer.status == 405 || (!is_signed && seen.answer.status == 401);
                            expect(is_right, "405", seen.status())?;
                            Ok(seen.status())
                        },
                    )
                    .of(requirement)
                    .needs(needs),
                );
            }
        }
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
            all.push(
                Case::new(
                    Section::Paths,
                    format!("{}-{}", method.to_lowercase(), operation.path_segment()),
                    Level::Should,
                    format!("{method} on the path of {}, signed", operation.name()),
                    "a refusal",
                    move |wire| async move {
                        let mut request = wire.request(operation);
                        request.method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::PUT);
                        let seen = wire.send(&request).await?;
                        expect((400..600).contains(&seen.answer.status), "a refusal", seen.status())?;
                        Ok(seen.status())
                    },
                )
                .source("RFC 9110 section 9.1"),
            );
        }
    }
    type Path = fn(&Wire) -> String;
    let path_and_key: &'static [ErrorName] = &[InvalidUriPathException, KeyNotFoundException];
    let path_alone: &'static [ErrorName] = &[InvalidUriPathException];
    let rows: [(&str, Path, &'static [ErrorName]); 21] = [
        ("root", |_| "/".to_owned(), path_alone),
        ("uri-path-alone", |wire| wire.proxy().uri_path.clone(), path_alone),
        ("uri-path-slash", |wire| format!("{}/", wire.proxy().uri_path), path_alone),
        ("unknown-word", |wire| format!("{}/no-such-operation", wire.proxy().uri_path), path_alone),
        ("keys-alone", |wire| format!("{}/keys", wire.proxy().uri_path), path_alone),
        ("key-alone", |wire| format!("{}/keys/{}", wire.proxy().uri_path, wire.key()), path_alone),
        (
            "unknown-operation",
            |wire| format!("{}/keys/{}/sign", wire.proxy().uri_path, wire.key()),
            path_alone,
        ),
        ("no-key-id", |wire| format!("{}/keys/encrypt", wire.proxy().uri_path), path_alone),
        ("empty-key-id", |wire| format!("{}/keys//metadata", wire.proxy().uri_path), path_and_key),
        (
            "operation-twice",
            |wire| format!("{}/keys/{}/metadata/metadata", wire.proxy().uri_path, wire.key()),
            path_alone,
        ),
        (
            "operation-slash",
            |wire| format!("{}/keys/{}/metadata/", wire.proxy().uri_path, wire.key()),
            path_alone,
        ),
        (
            "operation-upper-case",
            |wire| format!("{}/keys/{}/METADATA", wire.proxy().uri_path, wire.key()),
            path_alone,
        ),
        (
            "version-2",
            |wire| format!("{}/keys/{}/metadata", wire.proxy().uri_path.replace("/v1", "/v2"), wire.key()),
            path_alone,
        ),
        (
            "no-version",
            |wire| format!("{}/keys/{}/metadata", wire.proxy().uri_path.replace("/v1", ""), wire.key()),
            path_alone,
        ),
        (
            "other-prefix",
            |wire| format!("/no-such-prefix{}/keys/{}/metadata", xks_spec::path::VERSION_PATH, wire.key()),
            path_alone,
        ),
        (
            "prefix-and-more",
            |wire| {
                wire.path(wire.key(), Operation::GetKeyMetadata).replacen(
                    "/kms/xks/v1",
                    "/more/kms/xks/v1",
                    1,
                )
            },
            path_alone,
        ),
        (
            "prefix-with-letter",
            |wire| {
                wire.path(wire.key(), Operation::GetKeyMetadata).replacen("/kms/xks/v1", "x/kms/xks/v1", 1)
            },
            path_alone,
        ),
        (
            "something-before",
            |wire| format!("/before{}", wire.path(wire.key(), Operation::GetKeyMetadata)),
            path_alone,
        ),
        ("key-id-of-129", |wire| wire.path(&"k".repeat(129), Operation::GetKeyMetadata), path_and_key),
        ("key-id-with-tilde", |wire| wire.path("a~b", Operation::GetKeyMetadata), path_and_key),
        ("health-and-more", |wire| format!("{}/more", wire.proxy().health_path()), path_alone),
    ];
    for (name, path, names) in rows {
        let level =
            if name.starts_with("key-id") || name == "empty-key-id" { Level::Should } else { Level::Must };
        let requirements: &[&'static str] = if name.starts_with("key-id") || name == "empty-key-id" {
            &["URI-KEYID-006", "URI-KEYID-007"]
        } else {
            &["ERR-PATH-001", "URI-PATH-001"]
        };
        all.push(
            Case::new(
                Section::Paths,
                name,
                level,
                format!("a signed POST to a path that names no operation: {}", name.replace('-', " ")),
                "InvalidUriPathException",
                move |wire| async move {
                    let request = Request::post(path(&wire), body_of(Operation::GetKeyMetadata).to_string());
                    let seen = wire.send(&request).await?;
                    // Whose credential it would be cannot be told where the prefix is no store's.
                    if name.contains("prefix")
                        || matches!(name, "root" | "something-before" | "version-2" | "no-version")
                    {
                        return seen.refused(&[InvalidUriPathException, AuthenticationFailedException]);
                    }
                    seen.refused(names)
                },
            )
            .of(requirements),
        );
    }
    for (name, key) in [
        ("128", "k".repeat(128)),
        ("1", "k".to_owned()),
        ("every-kind", "aZ09-._aZ09-._".to_owned()),
        ("dot", ".".to_owned()),
        ("dots", "..".to_owned()),
        ("period", "a.b.c".to_owned()),
        ("health", "health".to_owned()),
    ] {
        all.push(
            Case::new(
                Section::Paths,
                format!("lawful-key-id-{name}"),
                if name.starts_with("dot") { Level::Should } else { Level::Must },
                format!("the metadata of an unknown key with a lawful id: {name}"),
                "KeyNotFoundException: the path is right",
                move |wire| {
                    let key = key.clone();
                    async move {
                        let request = Request::post(
                            wire.path(&key, Operation::GetKeyMetadata),
                            body_of(Operation::GetKeyMetadata).to_string(),
                        );
                        wire.send(&request).await?.refused(&[KeyNotFoundException])
                    }
                },
            )
            .of(&["URI-KEYID-006", "URI-KEYID-007", "ERR-KEY-001"]),
        );
    }
    all.push(
        Case::new(
            Section::Paths,
            "longest-uri",
            Level::Must,
            "a request URI of 256 characters, or as near as the prefix allows",
            "KeyNotFoundException: the path is right",
            |wire| async move {
                let around =
                    format!("https://{}{}", wire.proxy().host, wire.path("", Operation::GetKeyMetadata))
                        .len();
                let key = "k".repeat(256usize.saturating_sub(around).clamp(1, 128));
                let request = Request::post(
                    wire.path(&key, Operation::GetKeyMetadata),
                    body_of(Operation::GetKeyMetadata).to_string(),
                );
                wire.send(&request).await?.refused(&[KeyNotFoundException])
            },
        )
        .of(&["URI-SIZE-002"]),
    );
    all
}
