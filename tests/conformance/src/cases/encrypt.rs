//! Encrypt: what must be taken, what must be refused, and the form of the answer.

use serde_json::{Value, json};
use xks_spec::ErrorName::{
    InvalidCiphertextException, InvalidKeyUsageException, InvalidStateException, KeyNotFoundException,
    UnsupportedOperationException, ValidationException,
};
use xks_spec::Operation;
use xks_spec::limits::{
    IV_BYTES, MAX_CIPHERTEXT_METADATA_BYTES, MIN_SUPPORTED_AAD_BYTES, MIN_SUPPORTED_PLAINTEXT_BYTES,
    TAG_BYTES,
};

use super::disabled_store;
use crate::case::{Case, Finding, Level, Section, Stop, expect};
use crate::target::Need;
use crate::wire::{Wire, bytes_of, decrypt_body, encrypt_body};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        form(
            "ciphertext-length",
            "ciphertext exactly as long as the plaintext",
            &["ENC-RESP-001", "ENC-SIZE-002", "ENC-TAG-002"],
            |answer| {
                let length = bytes_of(answer, "ciphertext")?.len();
                expect(length == 12, "12 bytes", format!("{length} bytes"))?;
                Ok("12 bytes".to_owned())
            },
        ),
        form(
            "iv-length",
            "an initializationVector of 12 or 16 bytes",
            &["ENC-RESP-002", "ENC-IV-001"],
            |answer| {
                let length = bytes_of(answer, "initializationVector")?.len();
                expect(IV_BYTES.contains(&length), "12 or 16 bytes", format!("{length} bytes"))?;
                Ok(format!("{length} bytes"))
            },
        ),
        form("tag-length", "an authenticationTag of 16 bytes", &["ENC-RESP-003", "ENC-TAG-001"], |answer| {
            let length = bytes_of(answer, "authenticationTag")?.len();
            expect(length == TAG_BYTES, "16 bytes", format!("{length} bytes"))?;
            Ok("16 bytes".to_owned())
        }),
        form(
            "metadata-length",
            "ciphertextMetadata, if any, of at most 20 bytes in Base64",
            &["ENC-CTMD-002", "ENC-CTMD-003", "ENC-CTMD-001"],
            |answer| {
                if answer.get("ciphertextMetadata").is_none_or(Value::is_null) {
                    return Err(Stop::NotApplicable("Encrypt returns no ciphertextMetadata".to_owned()));
                }
                let length = bytes_of(answer, "ciphertextMetadata")?.len();
                expect(
                    length <= MAX_CIPHERTEXT_METADATA_BYTES,
                    "at most 20 bytes",
                    format!("{length} bytes"),
                )?;
                Ok(format!("{length} bytes"))
            },
        ),
        base64_case(),
        Case::new(
            Section::Encrypt,
            "largest",
            Level::Must,
            "encrypts 4300 bytes under 8192 bytes of AAD, and decrypts them",
            "the plaintext back",
            |wire| async move {
                let (plaintext, aad) =
                    (vec![0xa5; MIN_SUPPORTED_PLAINTEXT_BYTES], vec![0x5a; MIN_SUPPORTED_AAD_BYTES]);
                round_trip(&wire, &plaintext, Some(&aad)).await
            },
        )
        .of(&["ENC-SIZE-001", "ENC-AAD-005", "DEC-SIZE-001", "DEC-AAD-005"]),
        refused_key(
            "unknown-key",
            "an unknown key",
            None,
            |wire| format!("{}-x-unknown", wire.key().chars().take(100).collect::<String>()),
            &["ERR-KEY-001"],
            Operation::Encrypt,
        ),
        refused_key(
            "disabled-key",
            "a disabled key",
            Some(Need::DisabledKey),
            |wire| wire.target.args.disabled_key_id.clone().unwrap_or_default(),
            &["ERR-STATE-001"],
            Operation::Encrypt,
        ),
        refused_key(
            "decrypt-only-key",
            "a key that may not encrypt",
            Some(Need::DecryptOnlyKey),
            |wire| wire.target.args.decrypt_only_key_id.clone().unwrap_or_default(),
            &["ERR-USAGE-001"],
            Operation::Encrypt,
        ),
        refused_key(
            "impotent-key",
            "a key that may neither encrypt nor decrypt",
            Some(Need::ImpotentKey),
            |wire| wire.target.args.impotent_key_id.clone().unwrap_or_default(),
            &["ERR-USAGE-001"],
            Operation::Encrypt,
        ),
        Case::new(
            Section::Encrypt,
            "encrypt-only-key",
            Level::Must,
            "encrypts with a key that may encrypt alone",
            "200",
            |wire| async move {
                let key = wire.target.args.encrypt_only_key_id.clone().unwrap_or_default();
                wire.encrypt(&key, &encrypt_body(b"Hello World!", None, false)).await?;
                Ok("200".to_owned())
            },
        )
        .of(&["ENC-API-001"])
        .needs(&[Need::EncryptOnlyKey]),
    ];
    all.push(disabled_store::asked(Operation::Encrypt));
    all.extend(round_trips());
    all.extend(bad_bodies());
    all.extend(oversizes());
    all
}

fn form(
    name: &'static str,
    expects: &'static str,
    requirements: &[&'static str],
    judge: fn(&Value) -> Finding,
) -> Case {
    Case::new(Section::Encrypt, name, Level::Must, "encrypts 12 bytes", expects, move |wire| async move {
        judge(&wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, true)).await?)
    })
    .of(requirements)
}

/// Enough answers to hold each of the characters in which the two alphabets differ.
fn base64_case() -> Case {
    Case::new(
        Section::Encrypt,
        "base64",
        Level::Must,
        "encrypts 40 plaintexts of 49 bytes, and decrypts what gives every Base64 character",
        "standard Base64 with padding everywhere",
        |wire| async move {
            let plaintext: Vec<u8> =
                [[0xfb, 0xef, 0xbe], [0xff, 0xff, 0xff]].concat().into_iter().cycle().take(49).collect();
            for _ in 0..40 {
                let answer = wire.encrypt(wire.key(), &encrypt_body(&plaintext, None, true)).await?;
                for field in [
                    "ciphertext",
                    "initializationVector",
                    "authenticationTag",
                    "ciphertextDataIntegrityValue",
                ] {
                    bytes_of(&answer, field)?;
                }
                let opened = wire.decrypt(wire.key(), &decrypt_body(&answer, None)).await?.ok()?;
                expect(bytes_of(&opened, "plaintext")? == plaintext, "the plaintext back", "another")?;
            }
            Ok("always".to_owned())
        },
    )
    .of(&["ENC-BASE64-002", "DEC-BASE64-002"])
}

/// Encrypts and decrypts.
pub(super) async fn round_trip(wire: &Wire, plaintext: &[u8], aad: Option<&[u8]>) -> Finding {
    let encrypted = wire.encrypt(wire.key(), &encrypt_body(plaintext, aad, true)).await?;
    let seen = wire.decrypt(wire.key(), &decrypt_body(&encrypted, aad)).await?;
    let opened = bytes_of(&seen.ok()?, "plaintext")?;
    expect(opened == plaintext, "the plaintext back", format!("{} other bytes", opened.len()))?;
    Ok("the plaintext back".to_owned())
}

fn round_trips() -> Vec<Case> {
    type Row = (&'static str, Vec<u8>, Option<Vec<u8>>);
    let rows: [Row; 9] = [
        ("12-bytes", b"Hello World!".to_vec(), None),
        ("1-byte", vec![0], None),
        ("16-bytes-of-zero", vec![0; 16], None),
        ("every-byte", (0..=255).collect(), Some(b"aad".to_vec())),
        ("not-utf8", vec![0xff, 0xfe, 0xc0, 0x80, 0xed, 0xa0, 0x80], None),
        ("4096-bytes", vec![1; 4096], None),
        ("4300-bytes", vec![2; MIN_SUPPORTED_PLAINTEXT_BYTES], None),
        ("aad-of-8192", vec![3; 32], Some(vec![4; MIN_SUPPORTED_AAD_BYTES])),
        ("aad-binary", vec![5; 32], Some((0..=255).rev().collect())),
    ];
    rows.into_iter()
        .map(|(name, plaintext, aad)| {
            let aad_text =
                aad.as_ref().map_or("no AAD".to_owned(), |aad| format!("{} bytes of AAD", aad.len()));
            let does = format!("encrypts {} bytes with {aad_text}, and decrypts them", plaintext.len());
            Case::new(
                Section::Encrypt,
                format!("round-trip-{name}"),
                Level::Must,
                does,
                "the plaintext back",
                move |wire| {
                    let (plaintext, aad) = (plaintext.clone(), aad.clone());
                    async move { round_trip(&wire, &plaintext, aad.as_deref()).await }
                },
            )
            .of(&[
                "ENC-API-001",
                "DEC-API-001",
                "ENC-GCM-001",
                "ENC-AAD-002",
                "DEC-AAD-002",
                "DEC-RESP-001",
                "DEC-RESP-002",
                "DEC-SIZE-002",
                "ENC-CODE-001",
                "DEC-CODE-001",
                "ENC-IV-002",
                "ENC-SIZE-001",
                "ENC-AAD-005",
                "ENC-PATH-001",
                "DEC-PATH-001",
            ])
        })
        .collect()
}

/// Bodies that are wrong in one field.
fn bad_bodies() -> Vec<Case> {
    let set = |field: &'static str, value: Value| move |body: &mut Value| body[field] = value.clone();
    type Change = Box<dyn Fn(&mut Value) + Send + Sync>;
    let without = |field: &'static str| -> Change {
        Box::new(move |body: &mut Value| {
            if let Some(object) = body.as_object_mut() {
                object.remove(field);
            }
        })
    };
    let rows: Vec<(&str, Change, &[&'static str])> = vec![
        ("no-plaintext", without("plaintext"), &["ENC-FIELD-001", "ERR-VALIDATION-001"]),
        ("plaintext-null", Box::new(set("plaintext", Value::Null)), &["ENC-FIELD-001"]),
        ("plaintext-number", Box::new(set("plaintext", json!(12))), &["ENC-FIELD-001"]),
        ("plaintext-array", Box::new(set("plaintext", json!([1, 2]))), &["ENC-FIELD-001"]),
        ("plaintext-object", Box::new(set("plaintext", json!({}))), &["ENC-FIELD-001"]),
        ("plaintext-not-base64", Box::new(set("plaintext", json!("!!!!"))), &["ENC-BASE64-001"]),
        ("plaintext-url-safe", Box::new(set("plaintext", json!("-_-_"))), &["ENC-BASE64-001"]),
        ("plaintext-unpadded", Box::new(set("plaintext", json!("SGVsbG8"))), &["ENC-BASE64-001"]),
        ("plaintext-with-line-break", Box::new(set("plaintext", json!("SGVs\nbG8h"))), &["ENC-BASE64-001"]),
        ("plaintext-with-space", Box::new(set("plaintext", json!("SGVs bG8h"))), &["ENC-BASE64-001"]),
        ("no-algorithm", without("encryptionAlgorithm"), &["ENC-FIELD-002"]),
        ("algorithm-null", Box::new(set("encryptionAlgorithm", Value::Null)), &["ENC-FIELD-002"]),
        ("aad-not-base64", Box::new(set("additionalAuthenticatedData", json!("*"))), &["ENC-AAD-003"]),
        ("aad-url-safe", Box::new(set("additionalAuthenticatedData", json!("-_-_"))), &["ENC-AAD-003"]),
        ("aad-unpadded", Box::new(set("additionalAuthenticatedData", json!("YQ"))), &["ENC-AAD-003"]),
        ("aad-number", Box::new(set("additionalAuthenticatedData", json!(7))), &["ENC-AAD-003"]),
        ("no-request-metadata", without("requestMetadata"), &["ERR-VALIDATION-001"]),
        ("request-metadata-text", Box::new(set("requestMetadata", json!("x"))), &["ERR-VALIDATION-001"]),
    ];
    let refused = rows.into_iter().map(|(name, change, requirements)| {
        let mut body = encrypt_body(b"Hello World!", None, false);
        change(&mut body);
        let level = if name.contains("request-metadata") || name.ends_with("-null") {
            Level::Should
        } else {
            Level::Must
        };
        bad(name, level, body.to_string(), requirements)
    });
    let good = encrypt_body(b"Hello World!", None, false).to_string();
    let texts = [
        ("json-empty", String::new()),
        ("json-cut-short", good[..good.len() - 1].to_owned()),
        ("json-trailing-object", format!("{good}{{}}")),
        ("json-trailing-text", format!("{good} x")),
        ("json-array", format!("[{good}]")),
        ("json-null", "null".to_owned()),
        ("json-text", "\"x\"".to_owned()),
        ("json-number", "1".to_owned()),
        ("json-single-quotes", good.replace('"', "'")),
        ("json-nested", "[".repeat(5000)),
    ];
    let texts = texts.into_iter().map(|(name, body)| bad(name, Level::Must, body, &["ERR-VALIDATION-001"]));
    let algorithms = ["AES_CBC", "aes_gcm", "AES_GCM ", "", "AES_GCM_256", "NONE"]
        .into_iter()
        .enumerate()
        .map(|(number, text)| {
            let mut body = encrypt_body(b"Hello World!", None, false);
            body["encryptionAlgorithm"] = json!(text);
            Case::new(
                Section::Encrypt,
                format!("other-algorithm-{number}"),
                Level::Must,
                format!("encrypts with encryptionAlgorithm {text:?}"),
                "ValidationException or UnsupportedOperationException",
                move |wire| {
                    let body = body.clone();
                    async move {
                        wire.send(&wire.encrypt_request(wire.key(), &body))
                            .await?
                            .refused(&[ValidationException, UnsupportedOperationException])
                    }
                },
            )
            .of(&["ENC-ALG-001"])
        });
    refused.chain(texts).chain(algorithms).collect()
}

fn bad(name: &str, level: Level, body: String, requirements: &[&'static str]) -> Case {
    let does = format!("encrypts with a wrong body: {}", name.replace('-', " "));
    Case::new(Section::Encrypt, name, level, does, "ValidationException", move |wire| {
        let body = body.clone();
        async move {
            let mut request = wire.request(Operation::Encrypt);
            request.body = body.into();
            wire.send(&request).await?.refused(&[ValidationException])
        }
    })
    .of(requirements)
}

/// Larger than a proxy must take: it may take it, but then it must be right.
fn oversizes() -> Vec<Case> {
    let rows = [
        ("plaintext-64k", 65_537, 0),
        ("aad-64k", 12, 65_536),
        ("plaintext-4301", 4301, 0),
        ("aad-8193", 12, 8193),
    ];
    rows.into_iter()
        .map(|(name, plaintext_bytes, aad_bytes)| {
            let does = format!(
                "encrypts {plaintext_bytes} bytes under {aad_bytes} bytes of AAD, more than a proxy must take"
            );
            Case::new(
                Section::Encrypt,
                format!("beyond-{name}"),
                Level::Must,
                does,
                "UnsupportedOperationException, or success with all of it",
                move |wire| async move { taken_whole(&wire, plaintext_bytes, aad_bytes).await },
            )
            .of(&["ERR-UNSUPPORTED-002"])
        })
        .collect()
}

/// What is taken is taken whole: it comes back, and no part of the AAD stands for all of it.
async fn taken_whole(wire: &Wire, plaintext_bytes: usize, aad_bytes: usize) -> Finding {
    let (plaintext, aad) = (vec![2; plaintext_bytes], vec![1; aad_bytes]);
    let aad = (aad_bytes > 0).then_some(aad.as_slice());
    let seen = wire.send(&wire.encrypt_request(wire.key(), &encrypt_body(&plaintext, aad, false))).await?;
    if seen.answer.status != 200 {
        return seen.refused(&[UnsupportedOperationException]);
    }
    let encrypted = seen.ok()?;
    if let Some((_, shorter)) = aad.and_then(<[u8]>::split_last) {
        let body = decrypt_body(&encrypted, Some(shorter));
        wire.decrypt(wire.key(), &body).await?.refused(&[InvalidCiphertextException])?;
    }
    let opened = wire.decrypt(wire.key(), &decrypt_body(&encrypted, aad)).await?.ok()?;
    let back = bytes_of(&opened, "plaintext")?;
    expect(back == plaintext, "the plaintext back", format!("{} other bytes", back.len()))?;
    Ok("taken whole".to_owned())
}

/// A key that must be refused.
pub(super) fn refused_key(
    name: &'static str,
    what: &str,
    need: Option<Need>,
    key: fn(&Wire) -> String,
    requirements: &[&'static str],
    operation: Operation,
) -> Case {
    let section = if operation == Operation::Encrypt { Section::Encrypt } else { Section::Decrypt };
    let names: &[_] = match name {
        "unknown-key" => &[KeyNotFoundException],
        "disabled-key" => &[InvalidStateException],
        _ => &[InvalidKeyUsageException],
    };
    let expects = names[0].as_str();
    let needs: Vec<_> = need.into_iter().collect();
    Case::new(
        section,
        name,
        Level::Must,
        format!("{} with {what}", operation.name()),
        expects,
        move |wire| async move {
            let mut request = wire.request(operation);
            if operation == Operation::Decrypt {
                request.body = wire.made_up().await?.to_string().into();
            }
            request.path = wire.path(&key(&wire), operation);
            wire.send(&request).await?.refused(names)
        },
    )
    .of(requirements)
    .needs(&needs)
}
