//! What all request bodies have in common: one JSON object, whose values are text, some of it Base64.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserializer;
use serde::de::{Deserialize, IgnoredAny, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

use crate::error::ErrorName;
use crate::path::Operation;

/// Why a body is refused. No variant carries anything that the body held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyFault {
    /// Not JSON in UTF-8, not an object, a known field twice, or a value of another type than text.
    #[error("the body is not a JSON object of the documented shape, seen at line {line} column {column}")]
    Json {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
    },
    /// A required field is absent or null.
    #[error("{0} is required")]
    Missing(&'static str),
    /// A field holds something else than text.
    #[error("{0} is not a string")]
    NotText(&'static str),
    /// A field is not standard Base64 (RFC 4648 section 4, padded).
    #[error("{0} is not standard Base64 with padding")]
    NotBase64(&'static str),
    /// A field is there but empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A field is of another length than the specification gives it.
    #[error("{field} is not {expected} long")]
    Length {
        /// The field.
        field: &'static str,
        /// Its lengths in words.
        expected: &'static str,
    },
    /// A field names something else than the one thing that version 1 knows.
    #[error("{field} is not {supported}")]
    NotSupported {
        /// The field.
        field: &'static str,
        /// The value that version 1 knows.
        supported: &'static str,
    },
    /// A field is longer than this proxy takes.
    #[error("{field} is longer than the {max_bytes} bytes that this proxy takes")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The limit in bytes before Base64.
        max_bytes: usize,
    },
}

impl BodyFault {
    /// The wire's name for the fault.
    #[must_use]
    pub fn error_name(self, operation: Operation) -> ErrorName {
        match self {
            // SPEC(ERR-UNSUPPORTED-002): a value over the supported size is UnsupportedOperationException.
            Self::TooLong { .. } => ErrorName::UnsupportedOperationException,
            // SPEC(ERR-CIPHERTEXT-001, ERR-CIPHERTEXT-002): a missing or invalid ciphertext, IV or tag, in Decrypt alone.
            Self::Missing(field)
            | Self::NotText(field)
            | Self::NotBase64(field)
            | Self::Empty(field)
            | Self::Length { field, .. }
                if operation == Operation::Decrypt && CIPHERTEXT_FIELDS.contains(&field) =>
            {
                ErrorName::InvalidCiphertextException
            }
            // SPEC(ERR-VALIDATION-001): any other invalid parameter.
            _ => ErrorName::ValidationException,
        }
    }
}

/// The fields of Decrypt that together are the ciphertext.
pub const CIPHERTEXT_FIELDS: [&str; 4] =
    ["ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata"];

/// Parses a body, which is one JSON object and nothing behind it.
///
/// # Errors
/// [`BodyFault::Json`] with the position; serde_json's own text would quote the body.
pub(crate) fn parse_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, BodyFault> {
    // serde would also fill a struct from an array.
    let is_object = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    // serde_json looks for UTF-8 only in the values that it keeps.
    let text = std::str::from_utf8(body).ok().filter(|_| is_object);
    let text = text.ok_or(BodyFault::Json { line: 1, column: 1 })?;
    serde_json::from_str(text).map_err(|error| BodyFault::Json { line: error.line(), column: error.column() })
}

/// A field's value before it is known to be of the right type: which error a wrong type is depends on the field.
#[derive(Debug, Default)]
pub(crate) enum Field<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    NotText,
}

impl Field<'_> {
    /// The text of a field, `None` where it is absent or null.
    pub(crate) fn text(&self, name: &'static str) -> Result<Option<&str>, BodyFault> {
        match self {
            Self::Absent => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::NotText => Err(BodyFault::NotText(name)),
        }
    }

    /// The bytes of a Base64 field, `None` where it is absent or null.
    pub(crate) fn bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, BodyFault> {
        // SPEC(ENC-BASE64-001, DEC-BASE64-001, ENC-AAD-003, DEC-AAD-003): standard Base64, RFC 4648 section 4, padded.
        let decode = |text| STANDARD.decode(text).map_err(|_| BodyFault::NotBase64(name));
        self.text(name)?.map(decode).transpose()
    }

    /// The bytes of a Base64 field that must be there and hold something.
    pub(crate) fn required_bytes(&self, name: &'static str) -> Result<Vec<u8>, BodyFault> {
        match self.bytes(name)? {
            // SPEC(ENC-FIELD-001, DEC-FIELD-001, DEC-FIELD-003, DEC-FIELD-004): REQUIRED.
            None => Err(BodyFault::Missing(name)),
            Some(bytes) if bytes.is_empty() => Err(BodyFault::Empty(name)),
            Some(bytes) => Ok(bytes),
        }
    }

    /// Checks a field that version 1 knows one value of.
    pub(crate) fn must_be(&self, name: &'static str, supported: &'static str) -> Result<(), BodyFault> {
        match self.text(name)? {
            None => Err(BodyFault::Missing(name)),
            Some(text) if text == supported => Ok(()),
            Some(_) => Err(BodyFault::NotSupported { field: name, supported }),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Absent)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field<'de>, E> {
        Ok(Field::NotText)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field<'de>, E> {
        Ok(Field::NotText)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Field<'de>, E> {
        Ok(Field::NotText)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field<'de>, E> {
        Ok(Field::NotText)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::NotText)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::NotText)
    }
}
