//! URI paths: `[prefix]/kms/xks/v1/health` and `[prefix]/kms/xks/v1/keys/<externalKeyId>/<operation>`.
//!
//! Paths are compared byte by byte as they came. None of their characters needs an escape, so a path with `%` is not
//! one of ours, nor is one with an empty segment (`//`): signers disagree on how to normalise either.

use std::borrow::Borrow;
use std::fmt;

use thiserror::Error;

use crate::limits::{MAX_EXTERNAL_KEY_ID_CHARS, URI_PATH_CHARS};

/// What follows the prefix in every path of version 1.
pub const VERSION_PATH: &str = "/kms/xks/v1";

/// One of the four operations (section API operations).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Type, usage and status of an external key.
    GetKeyMetadata,
    /// AES-GCM encryption under an external key.
    Encrypt,
    /// AES-GCM decryption under an external key.
    Decrypt,
    /// Whether the external key managers can serve.
    GetHealthStatus,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 4] = [Self::GetKeyMetadata, Self::Encrypt, Self::Decrypt, Self::GetHealthStatus];

    /// The operation's name in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetKeyMetadata => "GetKeyMetadata",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::GetHealthStatus => "GetHealthStatus",
        }
    }

    /// The last segment of the operation's path.
    #[must_use]
    pub const fn path_segment(self) -> &'static str {
        match self {
            Self::GetKeyMetadata => "metadata",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::GetHealthStatus => "health",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The id of a key in the external key manager: 1 to 128 of `A-Z a-z 0-9 - . _` (section API operations).
///
/// `.` and `..` are legal ids; nothing that handles a path may resolve them as directories.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExternalKeyId(Box<str>);

impl ExternalKeyId {
    /// # Errors
    /// [`PathFault::ExternalKeyId`] unless the text is 1 to 128 of the permitted characters.
    pub fn parse(text: &str) -> Result<Self, PathFault> {
        // SPEC(URI-KEYID-006): MUST NOT be longer than 128 characters.
        // SPEC(URI-KEYID-007): MUST be of letters, digits, hyphen, period and underscore.
        let is_valid =
            (1..=MAX_EXTERNAL_KEY_ID_CHARS).contains(&text.len()) && text.bytes().all(is_key_id_byte);
        if is_valid { Ok(Self(text.into())) } else { Err(PathFault::ExternalKeyId) }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ExternalKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for ExternalKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ExternalKeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The part of a path before `/kms/xks/v1`: empty, or segments each led by a slash, such as `/tenants/a`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UriPathPrefix(Box<str>);

impl UriPathPrefix {
    /// # Errors
    /// [`PathFault`] where KMS would refuse `prefix` + `/kms/xks/v1` as an `XksProxyUriPath`, and where a segment is
    /// empty: KMS's pattern lets `//` pass, but signers disagree on how to sign it.
    pub fn parse(text: &str) -> Result<Self, PathFault> {
        // SPEC(URI-PATH-003): XksProxyUriPath MUST NOT be longer than 128 characters.
        if text.len() + VERSION_PATH.len() > *URI_PATH_CHARS.end() {
            return Err(PathFault::PrefixTooLong);
        }
        // SPEC(URI-PATH-004): MUST be of letters, digits, slash, dash and underscore.
        if !text.bytes().all(|byte| is_prefix_byte(byte) || byte == b'/') {
            return Err(PathFault::PrefixCharacter);
        }
        // SPEC(URI-PATH-002): the prefix MAY be empty.
        let is_well_formed = text.is_empty()
            || text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|segment| !segment.is_empty()));
        if is_well_formed { Ok(Self(text.into())) } else { Err(PathFault::PrefixSlashes) }
    }

    /// The prefix as text; empty, or led by a slash and without one at the end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `XksProxyUriPath` that KMS is told.
    #[must_use]
    pub fn uri_path(&self) -> String {
        format!("{}{VERSION_PATH}", self.0)
    }

    /// The path of GetHealthStatus below this prefix.
    #[must_use]
    pub fn health_path(&self) -> String {
        format!("{}{VERSION_PATH}/health", self.0)
    }

    /// The path of `operation` on the key `id` below this prefix.
    #[must_use]
    pub fn key_path(&self, id: &ExternalKeyId, operation: Operation) -> String {
        format!("{}{VERSION_PATH}/keys/{id}/{}", self.0, operation.path_segment())
    }
}

impl Borrow<str> for UriPathPrefix {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A request path taken apart. The prefix is whatever stood there: whether a key store has it is for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiPath<'a> {
    /// What stood before `/kms/xks/v1`.
    pub prefix: &'a str,
    /// What the path asks for.
    pub operation: Operation,
    /// The external key; `None` for GetHealthStatus alone.
    pub external_key_id: Option<ExternalKeyId>,
}

impl<'a> ApiPath<'a> {
    /// Reads a path from its end, since a prefix may itself contain `/kms/xks/v1`.
    ///
    /// # Errors
    /// [`PathFault`] for everything that is no path of the four operations; the wire answer is
    /// InvalidUriPathException, whichever it is.
    pub fn parse(path: &'a str) -> Result<Self, PathFault> {
        if path.contains("//") {
            return Err(PathFault::PrefixSlashes);
        }
        // SPEC(URI-PATH-001, META-PATH-001, ENC-PATH-001, DEC-PATH-001, HEALTH-PATH-001, URI-SIZE-002): the four paths, as long
        // as they may be.
        let (rest, last) = path.rsplit_once('/').ok_or(PathFault::NotAnApiPath)?;
        if last == Operation::GetHealthStatus.path_segment() {
            let prefix = rest.strip_suffix(VERSION_PATH).ok_or(PathFault::NotAnApiPath)?;
            return Ok(Self { prefix, operation: Operation::GetHealthStatus, external_key_id: None });
        }
        let operation = match last {
            "metadata" => Operation::GetKeyMetadata,
            "encrypt" => Operation::Encrypt,
            "decrypt" => Operation::Decrypt,
            _ => return Err(PathFault::NotAnApiPath),
        };
        let (rest, id) = rest.rsplit_once('/').ok_or(PathFault::NotAnApiPath)?;
        let prefix = rest
            .strip_suffix("/keys")
            .and_then(|rest| rest.strip_suffix(VERSION_PATH))
            .ok_or(PathFault::NotAnApiPath)?;
        Ok(Self { prefix, operation, external_key_id: Some(ExternalKeyId::parse(id)?) })
    }
}

/// Why a path, a prefix or a key id is refused. No variant carries the text that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathFault {
    /// Not one of the four operations' paths.
    #[error("is not a path of GetHealthStatus, GetKeyMetadata, Encrypt or Decrypt")]
    NotAnApiPath,
    /// An external key id of a wrong length or with a character that is not permitted.
    #[error("an external key id is 1 to 128 of A-Z a-z 0-9 - . _")]
    ExternalKeyId,
    /// A prefix that is too long for KMS.
    #[error("is too long: with /kms/xks/v1 behind it KMS takes at most 128 characters")]
    PrefixTooLong,
    /// A prefix with a character that KMS refuses.
    #[error("may hold only A-Z a-z 0-9 / - _")]
    PrefixCharacter,
    /// A prefix whose slashes are not each before a non-empty segment.
    #[error("is empty, or starts with a slash, ends without one and has no two in a row, such as /tenants/a")]
    PrefixSlashes,
}

const fn is_prefix_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

const fn is_key_id_byte(byte: u8) -> bool {
    is_prefix_byte(byte) || byte == b'.'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_four_operations() {
        let health = ApiPath::parse("/kms/xks/v1/health").unwrap();
        assert_eq!((health.prefix, health.operation), ("", Operation::GetHealthStatus));
        let encrypt = ApiPath::parse("/a/b/kms/xks/v1/keys/key-1/encrypt").unwrap();
        assert_eq!((encrypt.prefix, encrypt.operation), ("/a/b", Operation::Encrypt));
        assert_eq!(encrypt.external_key_id.unwrap().as_str(), "key-1");
    }

    #[test]
    fn a_prefix_may_contain_the_version_path() {
        let path = ApiPath::parse("/kms/xks/v1/keys/x/kms/xks/v1/keys/health/metadata").unwrap();
        assert_eq!(path.prefix, "/kms/xks/v1/keys/x");
        assert_eq!(path.external_key_id.unwrap().as_str(), "health");
    }

    #[test]
    fn dots_are_key_ids_and_no_directories() {
        for id in [".", "..", "...", "-", "_"] {
            let path = format!("/kms/xks/v1/keys/{id}/decrypt");
            assert_eq!(ApiPath::parse(&path).unwrap().external_key_id.unwrap().as_str(), id);
        }
    }

    #[test]
    fn refuses_what_is_no_api_path() {
        for path in [
            "",
            "/",
            "health",
            "/health",
            "/kms/xks/v1",
            "/kms/xks/v1/",
            "/kms/xks/v1/health/",
            "/kms/xks/v2/health",
            "/kms/xks/v1/keys/encrypt",
            "/kms/xks/v1/keys//encrypt",
            "//kms/xks/v1/health",
            "/kms/xks/v1/keys/a/b/encrypt",
            "/kms/xks/v1/keys/a/Encrypt",
            "/kms/xks/v1/keys/a/encrypt/",
            "/kms/xks/v1/keys/a%2Fb/encrypt",
            "/kms/xks/v1/keys/a+b/encrypt",
        ] {
            assert!(ApiPath::parse(path).is_err(), "{path}");
        }
        let longest = "k".repeat(128);
        assert!(ApiPath::parse(&format!("/kms/xks/v1/keys/{longest}/encrypt")).is_ok());
        assert!(ApiPath::parse(&format!("/kms/xks/v1/keys/{longest}k/encrypt")).is_err());
    }

    #[test]
    fn prefixes_are_those_that_kms_takes() {
        for good in ["", "/a", "/a/b", "/A-z_0/9", "/kms/xks/v1"] {
            assert!(UriPathPrefix::parse(good).is_ok(), "{good}");
        }
        for bad in ["/", "a", "/a/", "//a", "/a//b", "/a.b", "/a b", "/ä", "/a%2F"] {
            assert!(UriPathPrefix::parse(bad).is_err(), "{bad}");
        }
        assert!(UriPathPrefix::parse(&format!("/{}", "a".repeat(116))).is_ok());
        assert_eq!(UriPathPrefix::parse(&format!("/{}", "a".repeat(117))), Err(PathFault::PrefixTooLong));
    }

    proptest! {
        #[test]
        fn paths_that_are_built_are_read_back(
            prefix in "(/[a-zA-Z0-9_-]{1,20}){0,4}",
            id in "[a-zA-Z0-9._-]{1,128}",
            operation in prop::sample::select(&Operation::ALL[..3]),
        ) {
            let prefix = UriPathPrefix::parse(&prefix).unwrap();
            let id = ExternalKeyId::parse(&id).unwrap();
            let path = prefix.key_path(&id, operation);
            let read = ApiPath::parse(&path).unwrap();
            prop_assert_eq!(read.prefix, prefix.as_str());
            prop_assert_eq!(read.operation, operation);
            prop_assert_eq!(read.external_key_id, Some(id));
            let health = prefix.health_path();
            prop_assert_eq!(ApiPath::parse(&health).unwrap().prefix, prefix.as_str());
        }

        #[test]
        fn no_path_panics_and_every_accepted_one_is_canonical(path in "[/a-z.%keysmx1v]{0,60}|\\PC{0,40}") {
            if let Ok(read) = ApiPath::parse(&path) {
                let tail = match &read.external_key_id {
                    Some(id) => format!("/keys/{id}/{}", read.operation.path_segment()),
                    None => "/health".to_owned(),
                };
                prop_assert_eq!(format!("{}{VERSION_PATH}{tail}", read.prefix), path);
            }
        }
    }
}
