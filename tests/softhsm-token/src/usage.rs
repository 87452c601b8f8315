//! What a key may be used for.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use cryptoki::object::Attribute;
use serde::Serialize;

use crate::error::{Error, Result};

/// One of the operations that a key's attributes allow or forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the PKCS#11 attribute of its name")]
pub enum Usage {
    Encrypt,
    Decrypt,
    Wrap,
    Unwrap,
    Sign,
    Verify,
    Derive,
}

impl Usage {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Encrypt, Self::Decrypt, Self::Wrap, Self::Unwrap, Self::Sign, Self::Verify, Self::Derive];

    /// The name on the command line and in listings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::Derive => "derive",
        }
    }

    pub(crate) fn attribute(self, allowed: bool) -> Attribute {
        match self {
            Self::Encrypt => Attribute::Encrypt(allowed),
            Self::Decrypt => Attribute::Decrypt(allowed),
            Self::Wrap => Attribute::Wrap(allowed),
            Self::Unwrap => Attribute::Unwrap(allowed),
            Self::Sign => Attribute::Sign(allowed),
            Self::Verify => Attribute::Verify(allowed),
            Self::Derive => Attribute::Derive(allowed),
        }
    }
}

/// A set of usages: `encrypt,decrypt`, or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Usages(pub BTreeSet<Usage>);

impl Usages {
    /// Every usage attribute, true for the members and false for all others: no default of a module decides.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = Attribute> {
        Usage::ALL.into_iter().map(|usage| usage.attribute(self.0.contains(&usage)))
    }
}

impl FromStr for Usages {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "none" {
            return Ok(Self::default());
        }
        let usage = |name: &str| {
            Usage::ALL
                .into_iter()
                .find(|usage| usage.name() == name)
                .ok_or_else(|| Error::Usage(name.to_owned()))
        };
        text.split(',').map(usage).collect::<Result<_>>().map(Self)
    }
}

impl fmt::Display for Usages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let names: Vec<_> = self.0.iter().map(|usage| usage.name()).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usages_are_read_and_written() {
        for text in ["none", "encrypt", "encrypt,decrypt", "encrypt,decrypt,wrap,unwrap,sign,verify,derive"] {
            assert_eq!(text.parse::<Usages>().unwrap().to_string(), text);
        }
        assert_eq!("decrypt,encrypt,decrypt".parse::<Usages>().unwrap().to_string(), "encrypt,decrypt");
    }

    #[test]
    fn unknown_usages_are_refused() {
        for text in ["", "Encrypt", "encrypt,", "encrypt, decrypt", "encrypt,none"] {
            assert!(matches!(text.parse::<Usages>(), Err(Error::Usage(_))), "{text:?}");
        }
    }

    #[test]
    fn every_usage_is_set_explicitly() {
        let attributes: Vec<_> = Usages(BTreeSet::from([Usage::Decrypt])).attributes().collect();
        assert_eq!(
            attributes,
            [
                Attribute::Encrypt(false),
                Attribute::Decrypt(true),
                Attribute::Wrap(false),
                Attribute::Unwrap(false),
                Attribute::Sign(false),
                Attribute::Verify(false),
                Attribute::Derive(false),
            ]
        );
    }
}
