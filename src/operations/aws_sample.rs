//! The framing of AWS's sample proxy, to decrypt what it made.

use sha2::{Digest, Sha256};

/// The AAD input of AES-GCM as the sample makes it: 2-byte big-endian length of `aad` ‖ SHA-256 of `aad` ‖ 1-byte length of
/// `ciphertext_metadata` ‖ `ciphertext_metadata`. Where the field is absent there is no digest; where it is there and empty,
/// the digest of nothing.
///
/// `None` where `aad` is longer than 65,535 bytes or `ciphertext_metadata` longer than 255.
pub(super) fn frame_aad(aad: Option<&Vec<u8>>, ciphertext_metadata: &[u8]) -> Option<Vec<u8>> {
    let aad_length = u16::try_from(aad.map_or(0, Vec::len)).ok()?;
    let metadata_length = u8::try_from(ciphertext_metadata.len()).ok()?;
    let mut framed = aad_length.to_be_bytes().to_vec();
    if let Some(aad) = aad {
        framed.extend_from_slice(&Sha256::digest(aad));
    }
    framed.push(metadata_length);
    framed.extend_from_slice(ciphertext_metadata);
    Some(framed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of nothing.
    const OF_NOTHING: [u8; 32] = [
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
        0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ];

    #[test]
    fn an_absent_field_has_no_digest_and_an_empty_one_has() {
        assert_eq!(frame_aad(None, b"").unwrap(), [0, 0, 0]);
        assert_eq!(frame_aad(None, b"v1").unwrap(), [0, 0, 2, b'v', b'1']);
        assert_eq!(frame_aad(Some(&vec![]), b"v").unwrap(), [&[0, 0][..], &OF_NOTHING, &[1, b'v']].concat());
        let framed = frame_aad(Some(&vec![7; 258]), b"").unwrap();
        assert_eq!((framed.len(), &framed[..2], framed[34]), (35, &[1, 2][..], 0));
        assert_eq!(frame_aad(Some(&vec![7; 65_536]), b""), None);
    }
}
