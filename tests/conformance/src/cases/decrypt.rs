//! Decrypt: every altered part is refused, and by the right name.

use serde_json::{Value, json};
use xks_spec::ErrorName::{InvalidCiphertextException, UnsupportedOperationException, ValidationException};
use xks_spec::{ErrorName, Operation};

use super::disabled_store;
use super::encrypt::refused_key;
use crate::case::{Case, Level, Section, Stop};
use crate::target::Need;
use crate::wire::{b64, bytes_of, decrypt_body, encrypt_body, has_metadata};

const AAD: &[u8] = b"project=nile,department=marketing";
const EITHER: &[ErrorName] = &[ValidationException, InvalidCiphertextException];

/// What says that a ciphertext is of another key. Its metadata may name that key, and be no metadata for this one.
pub(super) fn names_for_another_key(encrypted: &Value) -> &'static [ErrorName] {
    if has_metadata(encrypted) { EITHER } else { &[InvalidCiphertextException] }
}

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        refused_key(
            "unknown-key",
            "an unknown key",
            None,
            |wire| format!("{}-x-unknown", wire.key().chars().take(100).collect::<String>()),
            &["ERR-KEY-001"],
            Operation::Decrypt,
        ),
        refused_key(
            "disabled-key",
            "a disabled key",
            Some(Need::DisabledKey),
            |wire| wire.target.args.disabled_key_id.clone().unwrap_or_default(),
            &["ERR-STATE-001"],
            Operation::Decrypt,
        ),
        refused_key(
            "encrypt-only-key",
            "a key that may not decrypt",
            Some(Need::EncryptOnlyKey),
            |wire| wire.target.args.encrypt_only_key_id.clone().unwrap_or_default(),
            &["ERR-USAGE-002"],
            Operation::Decrypt,
        ),
        refused_key(
            "impotent-key",
            "a key that may neither encrypt nor decrypt",
            Some(Need::ImpotentKey),
            |wire| wire.target.args.impotent_key_id.clone().unwrap_or_default(),
            &["ERR-USAGE-002"],
            Operation::Decrypt,
        ),
        Case::new(
            Section::Decrypt,
            "decrypt-only-key",
            Level::Must,
            "decrypts a made-up ciphertext with a key that may decrypt alone",
            "InvalidCiphertextException: the key's usage is no hindrance; ValidationException too where Encrypt gives metadata",
            |wire| async move {
                let body = wire.made_up().await?;
                let key = wire.target.args.decrypt_only_key_id.as_deref().unwrap_or_default();
                wire.decrypt(key, &body).await?.refused(names_for_another_key(&body))
            },
        )
        .of(&["ERR-CIPHERTEXT-001"])
        .needs(&[Need::DecryptOnlyKey]),
        Case::new(
            Section::Decrypt,
            "made-up",
            Level::Must,
            "decrypts a made-up ciphertext",
            "InvalidCiphertextException",
            |wire| async move {
                let body = wire.made_up().await?;
                wire.decrypt(wire.key(), &body).await?.refused(&[InvalidCiphertextException])
            },
        )
        .of(&["ERR-CIPHERTEXT-001"]),
        Case::new(
            Section::Decrypt,
            "again",
            Level::Must,
            "decrypts one ciphertext 20 times",
            "the plaintext each time",
            |wire| async move {
                let encrypted = wire.encrypt(wire.key(), &encrypt_body(b"again", Some(AAD), false)).await?;
                for _ in 0..20 {
                    let opened =
                        wire.decrypt(wire.key(), &decrypt_body(&encrypted, Some(AAD))).await?.ok()?;
                    crate::case::expect(
                        bytes_of(&opened, "plaintext")? == b"again",
                        "the plaintext back",
                        "another",
                    )?;
                }
                Ok("each time".to_owned())
            },
        )
        .of(&["DEC-RESP-002"]),
    ];
    all.push(disabled_store::asked(Operation::Decrypt));
    for (field, requirements) in [
        ("ciphertext", &["DEC-CIPHERTEXT-001", "ERR-CIPHERTEXT-001", "DEC-GCM-001"][..]),
        ("initializationVector", &["DEC-IV-001", "ERR-CIPHERTEXT-001"]),
        ("authenticationTag", &["DEC-TAG-002", "ERR-CIPHERTEXT-001"]),
        ("ciphertextMetadata", &["DEC-CTMD-003"]),
        ("additionalAuthenticatedData", &["DEC-AAD-006", "DEC-AAD-004", "ERR-CIPHERTEXT-001"]),
    ] {
        all.push(flips(field, requirements));
    }
    all.extend(wrong_lengths());
    all.extend(oversizes());
    all.extend(bad_bodies());
    all
}

/// Larger than a proxy must take. What was never encrypted cannot be decrypted, whatever its size.
fn oversizes() -> Vec<Case> {
    let rows = [
        ("ciphertext-4301", "ciphertext", 4301),
        ("ciphertext-64k", "ciphertext", 65_537),
        ("aad-8193", "additionalAuthenticatedData", 8193),
        ("aad-64k", "additionalAuthenticatedData", 65_536),
    ];
    let case = |(name, field, length): (&str, &'static str, usize)| {
        Case::new(
            Section::Decrypt,
            format!("beyond-{name}"),
            Level::Must,
            format!(
                "decrypts a made-up ciphertext with {length} bytes of {field}, more than a proxy must take"
            ),
            "UnsupportedOperationException or InvalidCiphertextException",
            move |wire| async move {
                let mut body = wire.made_up().await?;
                body[field] = json!(b64(&vec![7; length]));
                let names = &[UnsupportedOperationException, InvalidCiphertextException];
                wire.decrypt(wire.key(), &body).await?.refused(names)
            },
        )
        .of(&["ERR-UNSUPPORTED-002"])
    };
    rows.into_iter().map(case).collect()
}

/// One bit of each byte in turn.
fn flips(field: &'static str, requirements: &[&'static str]) -> Case {
    let names: &[_] = if field == "ciphertextMetadata" { EITHER } else { &[InvalidCiphertextException] };
    let expects = if field == "ciphertextMetadata" {
        "a refusal for each"
    } else {
        "InvalidCiphertextException for each"
    };
    Case::new(
        Section::Decrypt,
        format!("flip-{field}"),
        Level::Must,
        format!("decrypts with one bit flipped, in each byte of {field} in turn"),
        expects,
        move |wire| async move {
            let encrypted =
                wire.encrypt(wire.key(), &encrypt_body(b"sixteen bytes!!!", Some(AAD), false)).await?;
            let good = decrypt_body(&encrypted, Some(AAD));
            wire.decrypt(wire.key(), &good).await?.ok()?;
            if field == "ciphertextMetadata" && !has_metadata(&good) {
                return Err(Stop::NotApplicable(format!("Encrypt returns no {field}")));
            }
            let bytes = bytes_of(&good, field)?;
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                let mut body = good.clone();
                body[field] = json!(b64(&changed));
                let seen = wire.decrypt(wire.key(), &body).await?;
                if field == "ciphertextMetadata" {
                    // What the bytes mean is the vendor's; a version that is not there may be another refusal.
                    seen.refused_somehow()?;
                } else {
                    seen.refused(names)?;
                }
            }
            Ok(format!("{} flips refused", bytes.len()))
        },
    )
    .of(requirements)
}

fn wrong_lengths() -> Vec<Case> {
    type Change = fn(&[u8]) -> Vec<u8>;
    let rows: [(&str, &str, Change, &[&'static str]); 19] = [
        ("iv-with-a-byte-more", "initializationVector", |iv| [iv, &[0]].concat(), &["DEC-IV-002"]),
        ("iv-with-4-more", "initializationVector", |iv| [iv, &[0; 4]].concat(), &["DEC-IV-002"]),
        ("iv-cut-to-11", "initializationVector", |iv| iv[..11].to_vec(), &["DEC-IV-002"]),
        ("iv-cut-to-8", "initializationVector", |iv| iv[..8].to_vec(), &["DEC-IV-002"]),
        ("iv-of-17", "initializationVector", |iv| [iv, &[0; 5]].concat()[..17].to_vec(), &["DEC-IV-002"]),
        ("iv-of-32", "initializationVector", |_| vec![0; 32], &["DEC-IV-002"]),
        ("iv-empty", "initializationVector", |_| Vec::new(), &["DEC-IV-002"]),
        ("tag-cut-to-12", "authenticationTag", |tag| tag[..12].to_vec(), &["DEC-TAG-001"]),
        ("tag-cut-to-8", "authenticationTag", |tag| tag[..8].to_vec(), &["DEC-TAG-001"]),
        ("tag-cut-to-4", "authenticationTag", |tag| tag[..4].to_vec(), &["DEC-TAG-001"]),
        ("tag-cut-to-15", "authenticationTag", |tag| tag[..15].to_vec(), &["DEC-TAG-001"]),
        ("tag-with-a-byte-more", "authenticationTag", |tag| [tag, &[0]].concat(), &["DEC-TAG-001"]),
        ("tag-twice", "authenticationTag", |tag| [tag, tag].concat(), &["DEC-TAG-001"]),
        ("tag-empty", "authenticationTag", |_| Vec::new(), &["DEC-TAG-001"]),
        ("ciphertext-cut", "ciphertext", |text| text[..text.len() - 1].to_vec(), &["DEC-CIPHERTEXT-001"]),
        ("ciphertext-with-a-byte-more", "ciphertext", |text| [text, &[0]].concat(), &["DEC-CIPHERTEXT-001"]),
        ("ciphertext-twice", "ciphertext", |text| [text, text].concat(), &["DEC-CIPHERTEXT-001"]),
        ("metadata-of-21", "ciphertextMetadata", |_| vec![1; 21], &["DEC-CTMD-002"]),
        ("metadata-of-200", "ciphertextMetadata", |_| vec![1; 200], &["DEC-CTMD-002"]),
    ];
    rows.into_iter()
        .map(|(name, field, change, requirements)| {
            Case::new(
                Section::Decrypt,
                name,
                Level::Must,
                format!("decrypts with {field} of a wrong length: {}", name.replace('-', " ")),
                "a refusal",
                move |wire| async move {
                    let encrypted =
                        wire.encrypt(wire.key(), &encrypt_body(b"sixteen bytes!!!", None, false)).await?;
                    let mut body = decrypt_body(&encrypted, None);
                    let bytes = if body.get(field).is_some() { bytes_of(&body, field)? } else { Vec::new() };
                    if field == "initializationVector" && bytes.len() < 11 {
                        return crate::case::fail(
                            "an initializationVector of 12 or 16 bytes",
                            format!("{} bytes", bytes.len()),
                        );
                    }
                    if field == "authenticationTag" && bytes.len() != 16 {
                        return crate::case::fail(
                            "an authenticationTag of 16 bytes",
                            format!("{} bytes", bytes.len()),
                        );
                    }
                    let changed = change(&bytes);
                    if name.starts_with("iv-with") && matches!(changed.len(), 12 | 16) {
                        // A right length: then it is another IV, and refused all the same.
                        return wire
                            .decrypt(wire.key(), &with(&body, field, &changed))
                            .await?
                            .refused(EITHER);
                    }
                    body = with(&body, field, &changed);
                    let seen = wire.decrypt(wire.key(), &body).await?;
                    if field == "ciphertextMetadata" { seen.refused_somehow() } else { seen.refused(EITHER) }
                },
            )
            .of(requirements)
        })
        .collect()
}

fn with(body: &Value, field: &str, bytes: &[u8]) -> Value {
    let mut body = body.clone();
    body[field] = json!(b64(bytes));
    body
}

fn bad_bodies() -> Vec<Case> {
    let mut all = Vec::new();
    for (field, requirements, names) in [
        ("ciphertext", &["DEC-FIELD-001", "DEC-BASE64-001"][..], EITHER),
        ("initializationVector", &["DEC-FIELD-003", "DEC-BASE64-001"], EITHER),
        ("authenticationTag", &["DEC-FIELD-004", "DEC-BASE64-001"], EITHER),
        (
            "encryptionAlgorithm",
            &["DEC-FIELD-002", "DEC-ALG-001"],
            &[ValidationException, UnsupportedOperationException][..],
        ),
        ("additionalAuthenticatedData", &["DEC-AAD-003"], EITHER),
    ] {
        let values = [
            ("absent", None),
            ("number", Some(json!(5))),
            ("array", Some(json!(["x"]))),
            ("not-base64", Some(json!("*!"))),
            ("url-safe", Some(json!("-_-_-_-_-_-_-_-_"))),
            ("unpadded", Some(json!("AAAAA"))),
        ];
        for (kind, value) in values {
            if field == "additionalAuthenticatedData" && kind == "absent" {
                continue;
            }
            let is_absent_algorithm = field == "encryptionAlgorithm" && kind == "absent";
            let names = if is_absent_algorithm { &[ValidationException] } else { names };
            let does = format!("decrypts with {field}: {}", kind.replace('-', " "));
            all.push(
                Case::new(
                    Section::Decrypt,
                    format!("{field}-{kind}"),
                    Level::Must,
                    does,
                    "a refusal by the documented name",
                    move |wire| {
                        let value = value.clone();
                        async move {
                            let encrypted =
                                wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
                            let mut body = decrypt_body(&encrypted, None);
                            match value {
                                Some(value) => body[field] = value,
                                None => {
                                    body.as_object_mut().map(|object| object.remove(field));
                                }
                            }
                            wire.decrypt(wire.key(), &body).await?.refused(names)
                        }
                    },
                )
                .of(requirements),
            );
        }
    }
    all.push(
        Case::new(
            Section::Decrypt,
            "loose-base64",
            Level::Must,
            "decrypts a right ciphertext whose Base64 is without padding, or has a line break",
            "a refusal for each",
            |wire| async move {
                let encrypted =
                    wire.encrypt(wire.key(), &encrypt_body(b"Hello World!!", None, false)).await?;
                let good = decrypt_body(&encrypted, None);
                let text = good["ciphertext"].as_str().unwrap_or_default().to_owned();
                for loose in [
                    text.trim_end_matches('=').to_owned(),
                    format!("{}\n{}", &text[..4], &text[4..]),
                    format!(" {text}"),
                ] {
                    let mut body = good.clone();
                    body["ciphertext"] = json!(loose);
                    wire.decrypt(wire.key(), &body).await?.refused(EITHER)?;
                }
                Ok("refused".to_owned())
            },
        )
        .of(&["DEC-BASE64-001"]),
    );
    all.push(
        Case::new(
            Section::Decrypt,
            "url-safe-ciphertext",
            Level::Must,
            "decrypts a right ciphertext in the URL-safe alphabet",
            "a refusal",
            |wire| async move {
                for _ in 0..50 {
                    let encrypted = wire.encrypt(wire.key(), &encrypt_body(&[9; 48], None, false)).await?;
                    let mut body = decrypt_body(&encrypted, None);
                    let text = body["ciphertext"].as_str().unwrap_or_default().to_owned();
                    let changed = text.replace('+', "-").replace('/', "_");
                    if changed != text {
                        body["ciphertext"] = json!(changed);
                        return wire.decrypt(wire.key(), &body).await?.refused(EITHER);
                    }
                }
                crate::case::fail("ciphertexts that hold + or /", "none among 50")
            },
        )
        .of(&["DEC-BASE64-001"]),
    );
    all
}
