//! Names: account and Region, ids, Amazon resource names, and how a caller may name a key.

use aws_lc_rs::rand;

use super::{Exception, KmsError};

/// Where this KMS is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Twelve digits.
    pub account_id: String,
    /// Such as `us-east-1`.
    pub region: String,
}

impl Home {
    /// `arn:aws:kms:…:key/…`.
    #[must_use]
    pub fn key_arn(&self, key_id: &str) -> String {
        format!("{}key/{key_id}", self.arn_prefix())
    }

    /// `arn:aws:kms:…:alias/…`; `alias` begins with `alias/`.
    #[must_use]
    pub fn alias_arn(&self, alias: &str) -> String {
        format!("{}{alias}", self.arn_prefix())
    }

    fn arn_prefix(&self) -> String {
        format!("arn:aws:kms:{}:{}:", self.region, self.account_id)
    }

    /// Reads what a caller wrote as `KeyId`: id, key ARN, alias name or alias ARN.
    ///
    /// # Errors
    /// `NotFoundException` for other accounts, other Regions and names of no known form, `InvalidArnException` for an
    /// ARN that is none of KMS.
    pub fn parse<'a>(&self, text: &'a str) -> Result<KeyName<'a>, KmsError> {
        if !text.starts_with("arn:") {
            return Ok(if text.starts_with("alias/") { KeyName::Alias(text) } else { KeyName::Id(text) });
        }
        let parts: Vec<_> = text.splitn(6, ':').collect();
        let [_, partition, "kms", region, account_id, resource] = parts[..] else {
            return Err(KmsError::new(Exception::InvalidArnException, format!("Invalid arn {text}")));
        };
        if partition != "aws" || region != self.region {
            return Err(KmsError::new(Exception::NotFoundException, format!("Invalid arn {region}")));
        }
        let name = match resource.strip_prefix("key/") {
            Some(id) => KeyName::Id(id),
            None if resource.starts_with("alias/") => KeyName::Alias(resource),
            None => {
                return Err(KmsError::new(Exception::InvalidArnException, format!("Invalid arn {text}")));
            }
        };
        if account_id != self.account_id {
            return Err(match name {
                KeyName::Id(_) => {
                    KmsError::new(Exception::NotFoundException, format!("Key '{text}' does not exist"))
                }
                KeyName::Alias(_) => {
                    KmsError::new(Exception::NotFoundException, format!("Alias {text} is not found."))
                }
            });
        }
        Ok(name)
    }
}

/// How a caller named a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyName<'a> {
    /// By its id.
    Id(&'a str),
    /// By an alias, `alias/…`.
    Alias(&'a str),
}

/// Random bytes.
///
/// # Errors
/// `KMSInternalException` when the system has none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], KmsError> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Fills `bytes` at random.
///
/// # Errors
/// `KMSInternalException` when the system has no random bytes.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), KmsError> {
    rand::fill(bytes)
        .map_err(|_| KmsError::new(Exception::KMSInternalException, "The system has no random bytes."))
}

/// A new UUID, version 4, as keys and requests have.
///
/// # Errors
/// As [`random_bytes`].
pub fn new_uuid() -> Result<String, KmsError> {
    let mut bytes: [u8; 16] = random_bytes()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(uuid_text(bytes))
}

/// The usual text of 16 bytes.
#[must_use]
pub fn uuid_text(bytes: [u8; 16]) -> String {
    let digits = hex(&bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// The 16 bytes of a UUID's usual text, lower case.
#[must_use]
pub fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let digits = text.replace('-', "");
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (uuid_text(bytes) == text).then_some(bytes)
}

/// A new custom key store id: `cks-` and 17 hexadecimal digits.
///
/// # Errors
/// As [`random_bytes`].
pub fn new_store_id() -> Result<String, KmsError> {
    let bytes: [u8; 9] = random_bytes()?;
    Ok(format!("cks-{}", &hex(&bytes)[..17]))
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        Home { account_id: "111122223333".to_owned(), region: "us-east-1".to_owned() }
    }

    #[test]
    fn a_key_has_four_kinds_of_name() {
        let id = new_uuid().unwrap();
        let home = home();
        assert_eq!(home.parse(&id), Ok(KeyName::Id(&id)));
        assert_eq!(home.parse(&home.key_arn(&id)), Ok(KeyName::Id(&id)));
        assert_eq!(home.parse("alias/a"), Ok(KeyName::Alias("alias/a")));
        assert_eq!(home.parse(&home.alias_arn("alias/a:b")), Ok(KeyName::Alias("alias/a:b")));
    }

    #[test]
    fn arns_of_elsewhere_are_refused() {
        let cases = [
            (
                "arn:aws:kms:eu-west-1:111122223333:key/x",
                Exception::NotFoundException,
                "Invalid arn eu-west-1",
            ),
            (
                "arn:aws:kms:us-east-1:444455556666:key/x",
                Exception::NotFoundException,
                "Key 'arn:aws:kms:us-east-1:444455556666:key/x' does not exist",
            ),
            ("arn:aws:s3:::bucket", Exception::InvalidArnException, "Invalid arn arn:aws:s3:::bucket"),
            ("arn:aws:kms:us-east-1", Exception::InvalidArnException, "Invalid arn arn:aws:kms:us-east-1"),
        ];
        for (arn, exception, message) in cases {
            assert_eq!(home().parse(arn), Err(KmsError::new(exception, message)));
        }
    }

    #[test]
    fn uuids_survive_both_ways() {
        let text = new_uuid().unwrap();
        assert_eq!(text.len(), 36);
        assert_eq!(&text[14..15], "4");
        assert_eq!(uuid_text(uuid_bytes(&text).unwrap()), text);
        for wrong in ["", "a", &text.to_uppercase().replace(['1', '2'], "A"), &text.replace('-', "")] {
            assert_eq!(uuid_bytes(wrong), None, "{wrong}");
        }
        let id = new_store_id().unwrap();
        assert!(id.starts_with("cks-") && id.len() == 21);
    }
}
