//! AAD and ciphertext metadata: bound, each on its own, and never one for the other.

use serde_json::{Value, json};
use xks_spec::ErrorName::InvalidCiphertextException;

use crate::case::{Case, Level, Section, Stop, expect};
use crate::wire::{Seen, Wire, b64, bytes_of, decrypt_body, encrypt_body, has_metadata};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    type Other = fn(&[u8]) -> Option<Vec<u8>>;
    let rows: [(&str, usize, Other); 10] = [
        ("missing", 33, |_| None),
        ("empty-instead", 33, |_| Some(Vec::new())),
        ("added", 0, |_| Some(b"x".to_vec())),
        ("longer", 33, |aad| Some([aad, &[0]].concat())),
        ("shorter", 33, |aad| Some(aad[..aad.len() - 1].to_vec())),
        ("zero-in-front", 33, |aad| Some([&[0], aad].concat())),
        ("reversed", 33, |aad| Some(aad.iter().rev().copied().collect())),
        ("other-last-of-2048", 2048, |aad| Some(flipped(aad, aad.len() - 1))),
        ("other-last-of-8192", 8192, |aad| Some(flipped(aad, aad.len() - 1))),
        ("other-middle-of-8192", 8192, |aad| Some(flipped(aad, aad.len() / 2))),
    ];
    for (name, length, other) in rows {
        all.push(
            Case::new(
                Section::Aad,
                name,
                Level::Must,
                format!(
                    "encrypts under {length} bytes of AAD and decrypts under other AAD: {}",
                    name.replace('-', " ")
                ),
                "InvalidCiphertextException",
                move |wire| async move {
                    let aad: Vec<u8> =
                        (0..length).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
                    let encrypted = wire
                        .encrypt(
                            wire.key(),
                            &encrypt_body(b"Hello World!", (length > 0).then_some(aad.as_slice()), false),
                        )
                        .await?;
                    wire.decrypt(wire.key(), &decrypt_body(&encrypted, other(&aad).as_deref()))
                        .await?
                        .refused(&[InvalidCiphertextException])
                },
            )
            .of(&["DEC-AAD-006", "ENC-AAD-004", "DEC-AAD-004"]),
        );
    }
    all.push(
        Case::new(
            Section::Aad,
            "empty-and-absent",
            Level::May,
            "encrypts without AAD and decrypts with an empty one",
            "either: the specification leaves it open",
            |wire| async move {
                let encrypted = wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
                let seen = wire.decrypt(wire.key(), &decrypt_body(&encrypted, Some(b""))).await?;
                Ok(if seen.answer.status == 200 {
                    "they are the same".to_owned()
                } else {
                    format!("they differ: {}", seen.status())
                })
            },
        )
        .noted()
        .of(&["ENC-FRAME-002"]),
    );
    let confusion = |name: &'static str,
                     does: &'static str,
                     change: fn(&mut Value, &[u8], &[u8]),
                     aad: &'static [u8]| {
        Case::new(Section::Aad, name, Level::Must, does, "a refusal", move |wire| async move {
            let encrypted = wire
                .encrypt(wire.key(), &encrypt_body(b"Hello World!", (!aad.is_empty()).then_some(aad), false))
                .await?;
            if !has_metadata(&encrypted) {
                return Err(Stop::NotApplicable("Encrypt returns no ciphertextMetadata".to_owned()));
            }
            let metadata = bytes_of(&encrypted, "ciphertextMetadata")?;
            let mut body = decrypt_body(&encrypted, (!aad.is_empty()).then_some(aad));
            wire.decrypt(wire.key(), &body).await?.ok()?;
            change(&mut body, aad, &metadata);
            wire.decrypt(wire.key(), &body).await?.refused_somehow()
        })
        .of(&["DEC-CTMD-003", "ENC-CTMD-004", "ENC-FRAME-003", "ENC-FRAME-002"])
    };
    all.extend([
        confusion(
            "metadata-removed",
            "decrypts without the ciphertextMetadata",
            |body, _, _| remove(body, "ciphertextMetadata"),
            b"",
        ),
        confusion(
            "metadata-removed-with-aad",
            "decrypts without the ciphertextMetadata, under AAD",
            |body, _, _| remove(body, "ciphertextMetadata"),
            b"some aad",
        ),
        confusion(
            "metadata-emptied",
            "decrypts with empty ciphertextMetadata",
            |body, _, _| body["ciphertextMetadata"] = json!(""),
            b"",
        ),
        confusion(
            "metadata-longer",
            "decrypts with a byte more of ciphertextMetadata",
            |body, _, metadata| set(body, "ciphertextMetadata", &[metadata, &[0]].concat()),
            b"",
        ),
        confusion(
            "metadata-shorter",
            "decrypts with a byte less of ciphertextMetadata",
            |body, _, metadata| {
                set(body, "ciphertextMetadata", &metadata[..metadata.len().saturating_sub(1)]);
            },
            b"",
        ),
        confusion(
            "metadata-as-aad",
            "decrypts with the ciphertextMetadata as AAD",
            |body, _, metadata| {
                set(body, "additionalAuthenticatedData", metadata);
                remove(body, "ciphertextMetadata");
            },
            b"",
        ),
        confusion(
            "metadata-behind-aad",
            "decrypts with the ciphertextMetadata moved behind the AAD",
            |body, aad, metadata| {
                set(body, "additionalAuthenticatedData", &[aad, metadata].concat());
                remove(body, "ciphertextMetadata");
            },
            b"some aad",
        ),
        confusion(
            "byte-moved-into-metadata",
            "decrypts with the AAD's last byte moved into the ciphertextMetadata",
            |body, aad, metadata| {
                set(body, "additionalAuthenticatedData", &aad[..aad.len() - 1]);
                set(body, "ciphertextMetadata", &[&aad[aad.len() - 1..], metadata].concat());
            },
            b"some aad",
        ),
        confusion(
            "byte-moved-into-aad",
            "decrypts with the metadata's first byte moved into the AAD",
            |body, aad, metadata| {
                set(body, "additionalAuthenticatedData", &[aad, &metadata[..1.min(metadata.len())]].concat());
                set(body, "ciphertextMetadata", &metadata[1.min(metadata.len())..]);
            },
            b"some aad",
        ),
        confusion(
            "framed-aad",
            "decrypts with the framing itself as AAD",
            |body, aad, metadata| {
                set(
                    body,
                    "additionalAuthenticatedData",
                    &xks_spec::framing::frame_aad(aad, metadata).unwrap_or_default(),
                );
                remove(body, "ciphertextMetadata");
            },
            b"some aad",
        ),
    ]);
    all.push(
        Case::new(
            Section::Aad,
            "metadata-added",
            Level::Must,
            "decrypts with ciphertextMetadata where Encrypt gave none",
            "a refusal",
            |wire: Wire| async move {
                let encrypted = wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
                if has_metadata(&encrypted) {
                    return Err(Stop::NotApplicable("Encrypt returns ciphertextMetadata".to_owned()));
                }
                let mut body = decrypt_body(&encrypted, None);
                set(&mut body, "ciphertextMetadata", b"v1");
                let seen: Seen = wire.decrypt(wire.key(), &body).await?;
                seen.refused_somehow()
            },
        )
        .of(&["DEC-CTMD-003"]),
    );
    all.push(Case::new(Section::Aad, "metadata-of-another", Level::Must, "takes everything but the ciphertextMetadata from one ciphertext and that from another under the same key", "the plaintext where both are the same, else a refusal", |wire: Wire| async move {
        let first = wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
        let second = wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
        let mut body = decrypt_body(&first, None);
        match (has_metadata(&first), has_metadata(&second)) {
            (_, true) => body["ciphertextMetadata"] = second["ciphertextMetadata"].clone(),
            (true, false) => remove(&mut body, "ciphertextMetadata"),
            (false, false) => {
                return Err(Stop::NotApplicable("Encrypt returns no ciphertextMetadata".to_owned()));
            }
        }
        let is_same = first.get("ciphertextMetadata") == second.get("ciphertextMetadata");
        let seen = wire.decrypt(wire.key(), &body).await?;
        let outcome: Result<(), Stop> = expect((seen.answer.status == 200) == is_same, "success exactly where they are the same", seen.status());
        outcome.map(|()| seen.status())
    }).of(&["DEC-CTMD-003"]));
    all
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes
}

fn set(body: &mut Value, field: &str, bytes: &[u8]) {
    body[field] = json!(b64(bytes));
}

fn remove(body: &mut Value, field: &str) {
    body.as_object_mut().map(|object| object.remove(field));
}
