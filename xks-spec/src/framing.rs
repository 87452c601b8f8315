//! What AES-GCM authenticates, and the ciphertext data integrity value.

use sha2::{Digest, Sha256};

use crate::limits::{MAX_CIPHERTEXT_METADATA_BYTES, MAX_FRAMED_AAD_BYTES};

/// The AAD input of AES-GCM: 2-byte big-endian length of `aad` ‖ `aad` ‖ 1-byte length of `ciphertext_metadata` ‖
/// `ciphertext_metadata` (section Encrypt). Without the lengths, bytes could move from one field to the other.
///
/// An absent field and an empty one are the same. `None` where `aad` is longer than 65,535 bytes or
/// `ciphertext_metadata` longer than 20.
#[must_use]
pub fn frame_aad(aad: &[u8], ciphertext_metadata: &[u8]) -> Option<Vec<u8>> {
    // SPEC(ENC-FRAME-001, ENC-FRAME-003): each length before its field. SPEC(ENC-FRAME-002): zero where absent.
    if aad.len() > MAX_FRAMED_AAD_BYTES || ciphertext_metadata.len() > MAX_CIPHERTEXT_METADATA_BYTES {
        return None;
    }
    let aad_length = u16::try_from(aad.len()).ok()?;
    let metadata_length = u8::try_from(ciphertext_metadata.len()).ok()?;
    let mut framed = Vec::with_capacity(3 + aad.len() + ciphertext_metadata.len());
    framed.extend_from_slice(&aad_length.to_be_bytes());
    framed.extend_from_slice(aad);
    framed.push(metadata_length);
    framed.extend_from_slice(ciphertext_metadata);
    Some(framed)
}

/// The ciphertext data integrity value: SHA-256 over `aad` ‖ `ciphertext_metadata` ‖ `iv` ‖ `ciphertext_and_tag`, the
/// last being the ciphertext with its tag behind it (Appendix C). No lengths: it guards against accidents alone.
#[must_use]
pub fn ciphertext_data_integrity_value(
    aad: &[u8],
    ciphertext_metadata: &[u8],
    iv: &[u8],
    ciphertext_and_tag: &[u8],
) -> [u8; 32] {
    // SPEC(ENC-CDIV-005, ENC-CDIV-009, ENC-CDIV-010, ENC-CDIV-011, ENC-CDIV-012): these fields, decoded, in this order, bare.
    let mut hash = Sha256::new();
    for field in [aad, ciphertext_metadata, iv, ciphertext_and_tag] {
        hash.update(field);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_part_of_the_frame() {
        assert_eq!(frame_aad(b"", b"").unwrap(), [0, 0, 0]);
        assert_eq!(frame_aad(b"ab", b"c").unwrap(), [0, 2, b'a', b'b', 1, b'c']);
        let long = vec![7; 65_535];
        assert_eq!(frame_aad(&long, b"").unwrap()[..2], [0xff, 0xff]);
        assert_eq!(frame_aad(&vec![7; 65_536], b""), None);
        assert_eq!(frame_aad(b"", &[0; 21]), None);
    }

    proptest! {
        #[test]
        fn two_different_inputs_never_frame_alike(
            a in prop::collection::vec(0u8..4, 0..24), m in prop::collection::vec(0u8..4, 0..=20),
            b in prop::collection::vec(0u8..4, 0..24), n in prop::collection::vec(0u8..4, 0..=20),
        ) {
            prop_assert_eq!(frame_aad(&a, &m) == frame_aad(&b, &n), (&a, &m) == (&b, &n));
        }
    }
}
