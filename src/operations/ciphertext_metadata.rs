//! The ciphertext metadata that goes out with every ciphertext and is bound into its authenticated data.
//!
//! Fixed for ever: a format byte, then, for format 1, the key version's number in four bytes, big-endian. On decrypt it
//! alone selects version and framing.

// SPEC(ENC-FRAME-004): SHOULD mark how the authenticated data was made.
/// The format byte of what this release makes: the specification's AAD framing.
const FORMAT: u8 = 1;

/// Format and key version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CiphertextMetadata {
    pub(super) key_version: u32,
}

impl CiphertextMetadata {
    pub(super) fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.key_version.to_be_bytes();
        [FORMAT, a, b, c, d]
    }

    /// `None` for bytes that this proxy has never made.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [FORMAT, version @ ..] => {
                Some(Self { key_version: u32::from_be_bytes(<[u8; 4]>::try_from(version).ok()?) })
            }
            _ => None,
        }
    }
}

/// Whether `bytes` could be ciphertext metadata that this proxy made.
#[must_use]
pub fn is_own_ciphertext_metadata(bytes: &[u8]) -> bool {
    CiphertextMetadata::from_bytes(bytes).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_fixed() {
        assert_eq!(CiphertextMetadata { key_version: 0x0102_0304 }.to_bytes(), [1, 1, 2, 3, 4]);
        assert_eq!(
            CiphertextMetadata::from_bytes(&[1, 0, 0, 0, 9]),
            Some(CiphertextMetadata { key_version: 9 })
        );
        for other in [&[][..], &[1], &[0, 0, 0, 0, 1], &[2, 0, 0, 0, 1], &[1, 0, 0, 1], &[1, 0, 0, 0, 1, 0]] {
            assert_eq!(CiphertextMetadata::from_bytes(other), None, "{other:?}");
        }
    }
}
