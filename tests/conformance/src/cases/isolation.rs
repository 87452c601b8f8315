//! Isolation: one key from another, one store from another.

use serde_json::json;
use xks_spec::ErrorName::{AuthenticationFailedException, KeyNotFoundException};
use xks_spec::Operation;

use mock_kms::xks::{HttpVersion, Proxy, Request};

use super::decrypt::names_for_another_key;
use crate::case::{Case, Level, Section, Stop, expect, fail};
use crate::target::Need;
use crate::wire::{Wire, body_of, bytes_of, decrypt_body, encrypt_body};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let second =
        |name: &str, does: &str, expects: &str| (name.to_owned(), does.to_owned(), expects.to_owned());
    let (unknown_key, unknown_does, unknown_expects) = second(
        "keys-of-the-other-store",
        "uses the second store's key under the first store's path",
        "KeyNotFoundException for each operation",
    );
    vec![
        Case::new(
            Section::Isolation,
            "other-key",
            Level::Must,
            "decrypts with another key of the store, in both directions",
            "InvalidCiphertextException; ValidationException too where Encrypt gives metadata",
            |wire| async move {
                let other = wire.target.args.second_key_id.clone().unwrap_or_default();
                for (from, to) in [(wire.key(), other.as_str()), (other.as_str(), wire.key())] {
                    let encrypted = wire.encrypt(from, &encrypt_body(b"Hello World!", None, false)).await?;
                    wire.decrypt(to, &decrypt_body(&encrypted, None))
                        .await?
                        .refused(names_for_another_key(&encrypted))?;
                }
                Ok("refused".to_owned())
            },
        )
        .of(&["ENC-GCM-001", "DEC-GCM-001", "URI-KEYID-005"])
        .needs(&[Need::SecondKey]),
        Case::new(
            Section::Isolation,
            "case-of-key-id",
            Level::Must,
            "asks for the key with upper and lower case exchanged",
            "KeyNotFoundException",
            |wire| async move {
                let swapped: String =
                    wire.key()
                        .chars()
                        .map(|c| {
                            if c.is_ascii_lowercase() {
                                c.to_ascii_uppercase()
                            } else {
                                c.to_ascii_lowercase()
                            }
                        })
                        .collect();
                if swapped == wire.key() {
                    return Err(Stop::NotApplicable("the key id has no letters".to_owned()));
                }
                key_not_found(&wire, &swapped).await
            },
        )
        .of(&["URI-KEYID-005", "ERR-KEY-001"]),
        Case::new(
            Section::Isolation,
            "longer-key-id",
            Level::Must,
            "asks for the key id with more behind it, and with less",
            "KeyNotFoundException for each",
            |wire| async move {
                let key = wire.key().to_owned();
                let mut others = vec![format!("{key}x"), format!("{key}.1"), format!("{key}-2")];
                others.extend(
                    key.get(..key.len() - 1).filter(|shorter| !shorter.is_empty()).map(str::to_owned),
                );
                let args = &wire.target.args;
                let exist = [
                    &args.second_key_id,
                    &args.encrypt_only_key_id,
                    &args.decrypt_only_key_id,
                    &args.impotent_key_id,
                    &args.disabled_key_id,
                    &args.denied_key_id,
                ];
                for other in others {
                    if !exist.into_iter().flatten().any(|id| *id == other) {
                        key_not_found(&wire, &other).await?;
                    }
                }
                Ok("not found".to_owned())
            },
        )
        .of(&["URI-KEYID-005", "ERR-KEY-001"]),
        Case::new(
            Section::Isolation,
            unknown_key,
            Level::Must,
            unknown_does,
            unknown_expects,
            |wire| async move {
                let key = second_key(&wire);
                for operation in [Operation::GetKeyMetadata, Operation::Encrypt, Operation::Decrypt] {
                    let body = if operation == Operation::Decrypt {
                        wire.made_up().await?
                    } else {
                        body_of(operation)
                    };
                    let request = Request::post(wire.path(&key, operation), body.to_string());
                    wire.send(&request).await?.refused(&[KeyNotFoundException])?;
                }
                Ok("not found".to_owned())
            },
        )
        .of(&["URI-PREFIX-001"])
        .source("section API operations: customers who share a proxy are isolated")
        .needs(&[Need::SecondStore]),
        Case::new(
            Section::Isolation,
            "credential-of-the-other-store",
            Level::Must,
            "signs for the first store with the second store's credential, and the other way round",
            "AuthenticationFailedException",
            |wire| async move {
                let second = second_store(&wire)?;
                for (path_of, credential_of) in [(wire.proxy(), &second), (&second, wire.proxy())] {
                    let mut request =
                        Request::post(path_of.health_path(), body_of(Operation::GetHealthStatus).to_string());
                    request.signing.access_key_id = Some(credential_of.access_key_id.clone());
                    request.signing.secret_access_key = Some(credential_of.secret_access_key.to_string());
                    wire.send_to(path_of, HttpVersion::Http1, &request)
                        .await?
                        .refused(&[AuthenticationFailedException])?;
                }
                Ok("refused".to_owned())
            },
        )
        .of(&["AUTH-CRED-010", "AUTH-KEY-002", "URI-PREFIX-001"])
        .needs(&[Need::SecondStore]),
        Case::new(
            Section::Isolation,
            "secrets-exchanged",
            Level::Must,
            "signs with the first store's access key id and the second store's secret",
            "AuthenticationFailedException",
            |wire| async move {
                let mut request = wire.request(Operation::GetHealthStatus);
                request.signing.secret_access_key = Some(second_store(&wire)?.secret_access_key.to_string());
                wire.send(&request).await?.refused(&[AuthenticationFailedException])
            },
        )
        .of(&["AUTH-ROT-003", "AUTH-KEY-003"])
        .needs(&[Need::SecondStore]),
        Case::new(
            Section::Isolation,
            "ciphertext-of-the-other-store",
            Level::Must,
            "decrypts in the first store what the second one encrypted, its metadata included",
            "InvalidCiphertextException",
            |wire| async move {
                let (second, key) = (second_store(&wire)?, second_key(&wire));
                let request = Request::post(
                    second.key_path(&key, Operation::Encrypt),
                    encrypt_body(b"Hello World!", None, false).to_string(),
                );
                let encrypted = wire.send_to(&second, HttpVersion::Http1, &request).await?.ok()?;
                let mut body = decrypt_body(&encrypted, None);
                wire.decrypt(wire.key(), &body).await?.refused_somehow()?;
                body["requestMetadata"]["kmsOperation"] = json!("ReEncrypt");
                wire.decrypt(wire.key(), &body).await?.refused_somehow()
            },
        )
        .of(&["DEC-GCM-001", "URI-PREFIX-001"])
        .needs(&[Need::SecondStore]),
        Case::new(
            Section::Isolation,
            "second-store-serves",
            Level::Must,
            "encrypts and decrypts in the second store",
            "the plaintext back",
            |wire| async move {
                let (second, key) = (second_store(&wire)?, second_key(&wire));
                let request = Request::post(
                    second.key_path(&key, Operation::Encrypt),
                    encrypt_body(b"Hello World!", None, true).to_string(),
                );
                let encrypted = wire.send_to(&second, HttpVersion::Http1, &request).await?.ok()?;
                let request = Request::post(
                    second.key_path(&key, Operation::Decrypt),
                    decrypt_body(&encrypted, None).to_string(),
                );
                let opened = wire.send_to(&second, HttpVersion::Http1, &request).await?.ok()?;
                expect(bytes_of(&opened, "plaintext")? == b"Hello World!", "the plaintext back", "another")?;
                Ok("the plaintext back".to_owned())
            },
        )
        .of(&["URI-PREFIX-001"])
        .source("section API operations: customers who share a proxy are isolated")
        .needs(&[Need::SecondStore]),
    ]
}

fn second_store(wire: &Wire) -> Result<Proxy, Stop> {
    wire.target.second.clone().map_or_else(|| fail("a second store", "none"), Ok)
}

fn second_key(wire: &Wire) -> String {
    wire.target.args.more.second_store_key_id.clone().unwrap_or_default()
}

async fn key_not_found(wire: &Wire, key: &str) -> crate::case::Finding {
    let request = Request::post(
        wire.path(key, Operation::GetKeyMetadata),
        body_of(Operation::GetKeyMetadata).to_string(),
    );
    wire.send(&request).await?.refused(&[KeyNotFoundException])
}
