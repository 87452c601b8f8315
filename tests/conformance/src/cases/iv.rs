//! Initialization vectors: unique, not zero, and the one that was used. AES-GCM gives everything away otherwise.

use std::collections::HashSet;

use crate::case::{Case, Level, Section, fail};
use crate::wire::{bytes_of, encrypt_body};

/// Encrypts in one case; the profile `load` has 100,000.
const ENCRYPTS: usize = 1200;

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            Section::Iv,
            "unique",
            Level::Must,
            format!("encrypts one plaintext {ENCRYPTS} times"),
            "as many IVs, none of zeros",
            |wire| async move {
                let mut seen = HashSet::new();
                for number in 0..ENCRYPTS {
                    let answer =
                        wire.encrypt(wire.key(), &encrypt_body(b"sixteen bytes!!!", None, false)).await?;
                    let iv = bytes_of(&answer, "initializationVector")?;
                    if iv.iter().all(|byte| *byte == 0) {
                        return fail("an IV that is not all zeros", format!("zeros at encrypt {number}"));
                    }
                    if !seen.insert(iv) {
                        return fail(
                            "an IV that was not there before",
                            format!("a repeated one at encrypt {number}"),
                        );
                    }
                }
                Ok(format!("{ENCRYPTS} IVs"))
            },
        )
        .of(&["ENC-GCM-001"])
        .source("NIST SP 800-38D section 8"),
        Case::new(
            Section::Iv,
            "ciphertexts-differ",
            Level::Must,
            "encrypts one plaintext twice",
            "two ciphertexts",
            |wire| async move {
                let body = encrypt_body(b"sixteen bytes!!!", None, false);
                let first = wire.encrypt(wire.key(), &body).await?;
                let second = wire.encrypt(wire.key(), &body).await?;
                if first["ciphertext"] == second["ciphertext"] {
                    fail("two ciphertexts", "the same twice")
                } else {
                    Ok("two".to_owned())
                }
            },
        )
        .of(&["ENC-GCM-001"])
        .source("NIST SP 800-38D section 8"),
    ]
}
