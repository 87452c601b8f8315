//! Encryption contexts.

use std::collections::BTreeMap;

/// Longest encryption context, written as JSON, in bytes.
pub const MAX_CONTEXT_JSON_BYTES: usize = 8192;

/// Version of [`EncryptionContext::canonical`].
const CANONICAL_FORMAT: u8 = 1;

/// Pairs that must be the same in Encrypt and Decrypt. Their order does not matter, their case does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionContext {
    pairs: BTreeMap<String, String>,
}

impl EncryptionContext {
    /// Takes the pairs; `None` where they are longer than [`MAX_CONTEXT_JSON_BYTES`].
    #[must_use]
    pub fn new(pairs: BTreeMap<String, String>) -> Option<Self> {
        let json_bytes = serde_json::to_string(&pairs).map_or(usize::MAX, |json| json.len());
        (json_bytes <= MAX_CONTEXT_JSON_BYTES).then_some(Self { pairs })
    }

    /// One text for each context, and no two contexts the same: a format byte, then each pair in the order of the keys,
    /// key and value each after its length in two bytes. Never longer than 8192 bytes, which every proxy must take.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = vec![CANONICAL_FORMAT];
        for text in self.pairs.iter().flat_map(|(key, value)| [key, value]) {
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            bytes.extend(length.to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        EncryptionContext::new(pairs.collect()).unwrap()
    }

    #[test]
    fn order_does_not_matter_and_all_else_does() {
        let base = context(&[("a", "1"), ("b", "2")]);
        assert_eq!(base.canonical(), context(&[("b", "2"), ("a", "1")]).canonical());
        for other in [
            &[("A", "1"), ("b", "2")][..],
            &[("a", "1")],
            &[("a", "1b"), ("", "2")],
            &[("a1", ""), ("b", "2")],
            &[("a", "2"), ("b", "1")],
            &[],
        ] {
            assert_ne!(base.canonical(), context(other).canonical(), "{other:?}");
        }
    }

    #[test]
    fn the_longest_context_fits_into_what_a_proxy_must_take() {
        // {"k":"v…"} is seven characters and the value.
        let longest = "v".repeat(MAX_CONTEXT_JSON_BYTES - 8);
        assert!(context(&[("k", &longest)]).canonical().len() <= xks_spec::limits::MIN_SUPPORTED_AAD_BYTES);
        let too_long = BTreeMap::from([("k".to_owned(), format!("{longest}v"))]);
        assert!(EncryptionContext::new(too_long).is_none());
        let many: BTreeMap<_, _> = (0..700).map(|n| (format!("{n:04}"), "x".to_owned())).collect();
        let many = EncryptionContext::new(many).unwrap();
        assert!(many.canonical().len() <= xks_spec::limits::MIN_SUPPORTED_AAD_BYTES);
    }
}
