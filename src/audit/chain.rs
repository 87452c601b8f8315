//! The chain: a record is one line of JSON. It carries its number, the hash of the record before it, and as its last member
//! its own hash, over every byte of the line before that member. With a key the hash is an HMAC, which nobody can make anew
//! without the key.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::record::{Entry, OpenReason};
use crate::secret::Secret;

/// What stands before a record's own hash, and behind it.
const BEFORE_HASH: &[u8] = br#","hash":""#;
const BEHIND_HASH: &[u8] = br#""}"#;

/// SHA-256 or HMAC-SHA-256 of a record; in text 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the first record of a chain has in the place of a hash of the one before.
    pub const NONE: Self = Self([0; 32]);

    /// Of a text that is exactly as it is written.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(hash))
    }

    /// The plain SHA-256 of some bytes.
    pub(super) fn of(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How records are hashed.
#[derive(Clone)]
pub struct Hasher(Option<Box<Hmac<Sha256>>>);

impl Hasher {
    /// SHA-256, or HMAC-SHA-256 under the bytes of a key.
    #[must_use]
    pub fn new(key: Option<&Secret>) -> Self {
        // INVARIANT: an HMAC takes keys of any length.
        Self(key.and_then(|key| Hmac::new_from_slice(key.expose().as_bytes()).ok()).map(Box::new))
    }

    /// Whether there is a key.
    #[must_use]
    pub const fn is_keyed(&self) -> bool {
        self.0.is_some()
    }

    fn hash(&self, bytes: &[u8]) -> Hash {
        match &self.0 {
            Some(hmac) => Hash((**hmac).clone().chain_update(bytes).finalize().into_bytes().into()),
            None => Hash(Sha256::digest(bytes).into()),
        }
    }
}

/// The last record of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number, from 1; 0 where there is none yet.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Of a chain without records.
    pub const NONE: Self = Self { seq: 0, hash: Hash::NONE };

    // SPEC(LOG-INTEG-001): SHOULD protect the integrity of the log.
    /// Makes the next record and appends its line.
    pub(super) fn append(&mut self, hasher: &Hasher, entry: &Entry, lines: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line<'a> {
            seq: u64,
            prev: Hash,
            #[serde(flatten)]
            entry: &'a Entry,
        }
        let start = lines.len();
        let line = Line { seq: self.seq + 1, prev: self.hash, entry };
        // INVARIANT: an entry is made of texts and numbers, and writing into memory does not fail.
        let _ = serde_json::to_writer(&mut *lines, &line);
        // The brace that ends the object.
        lines.pop();
        let hash = hasher.hash(&lines[start..]);
        lines.extend_from_slice(BEFORE_HASH);
        lines.extend_from_slice(hash.to_string().as_bytes());
        lines.extend_from_slice(BEHIND_HASH);
        lines.push(b'\n');
        *self = Self { seq: self.seq + 1, hash };
    }
}

/// What of a record makes it part of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) head: Head,
    pub(super) prev: Hash,
    /// A process began with it.
    pub(super) is_start: bool,
    /// A process stopped in order behind it.
    pub(super) is_closing: bool,
    pub(super) torn: Option<Torn>,
}

/// What a crash left behind the last whole record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Torn {
    /// How many bytes, without the line break at their end.
    pub(super) bytes: u64,
    /// Their plain SHA-256.
    pub(super) sha256: String,
}

impl Link {
    /// Of a line without its line break; `None` where it is no record, or its own hash does not hold.
    pub(super) fn read(hasher: &Hasher, line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            seq: u64,
            prev: String,
            #[serde(rename = "type")]
            kind: String,
            reason: Option<String>,
            torn: Option<Torn>,
        }
        let rest = line.strip_suffix(BEHIND_HASH)?;
        let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
        let hash = Hash::parse(hash)?;
        if hasher.hash(rest.strip_suffix(BEFORE_HASH)?) != hash {
            return None;
        }
        let line: Line = serde_json::from_slice(line).ok()?;
        Some(Self {
            head: Head { seq: line.seq, hash },
            prev: Hash::parse(line.prev.as_bytes())?,
            is_start: line.kind == Entry::OPENED && line.reason.as_deref() == Some(OpenReason::START),
            is_closing: line.kind == Entry::CLOSED,
            torn: line.torn,
        })
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn line(hasher: &Hasher) -> Vec<u8> {
        let (mut head, mut lines) = (Head::NONE, Vec::new());
        head.append(hasher, &Entry::Lost { records: 3 }, &mut lines);
        assert_eq!(lines.pop(), Some(b'\n'));
        let link = Link::read(hasher, &lines).unwrap();
        assert_eq!((link.head, link.prev), (head, Hash::NONE));
        lines
    }

    /// Auditors verify with tools of their own: the form is fixed.
    #[test]
    fn a_record_is_its_line_and_the_sha_256_of_what_is_before_the_hash() {
        let line = String::from_utf8(line(&Hasher::new(None))).unwrap();
        let zeros = "0".repeat(64);
        let (rest, hash) = line.split_once(r#","hash":""#).unwrap();
        assert_eq!(rest, format!(r#"{{"seq":1,"prev":"{zeros}","type":"lost","records":3"#));
        assert_eq!(hash.strip_suffix("\"}").unwrap(), Hash(Sha256::digest(rest).into()).to_string());
    }

    #[test]
    fn a_keyed_record_holds_under_its_key_alone() {
        let keyed = |key: &str| Hasher::new(Some(&Secret::copy_of(key)));
        let line = line(&keyed("one"));
        assert!(Link::read(&keyed("two"), &line).is_none());
        assert!(Link::read(&Hasher::new(None), &line).is_none());
    }

    #[test]
    fn every_changed_byte_breaks_a_record() {
        let hasher = Hasher::new(None);
        let line = line(&hasher);
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert!(Link::read(&hasher, &changed).is_none(), "{}", String::from_utf8_lossy(&changed));
            }
        }
    }
}
