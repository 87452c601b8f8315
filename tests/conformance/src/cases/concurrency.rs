//! Many requests at once: nobody gets another's answer.

use mock_kms::xks::HttpVersion;

use crate::case::{Case, Level, Section, expect};
use crate::target::Need;
use crate::wire::{Wire, bytes_of, decrypt_body, encrypt_body};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let one = |name: &'static str, version: HttpVersion, at_once: usize, needs: &[Need]| {
        Case::new(
            Section::Concurrency,
            name,
            Level::Must,
            format!("encrypts and decrypts {at_once} different plaintexts at once over {version}"),
            "to each its own plaintext",
            move |wire| async move {
                let round_trip = |wire: Wire, number| async move {
                    let plaintext = format!("plaintext of request {number:08}").into_bytes();
                    let aad = format!("aad {number}").into_bytes();
                    let request =
                        wire.encrypt_request(wire.key(), &encrypt_body(&plaintext, Some(&aad), true));
                    let encrypted = wire.send_to(wire.proxy(), version, &request).await?.ok()?;
                    let request = wire.decrypt_request(wire.key(), &decrypt_body(&encrypted, Some(&aad)));
                    let opened = wire.send_to(wire.proxy(), version, &request).await?.ok()?;
                    expect(bytes_of(&opened, "plaintext")? == plaintext, "its own plaintext", "another's")
                };
                wire.at_once(at_once, round_trip).await?;
                Ok(format!("{at_once} round trips"))
            },
        )
        .of(&["DEC-RESP-002", "ENC-API-001", "DEC-API-001"])
        .needs(needs)
    };
    vec![
        one("http1", HttpVersion::Http1, 32, &[]),
        one("http2-streams", HttpVersion::Http2, 50, &[Need::Http2]),
    ]
}
