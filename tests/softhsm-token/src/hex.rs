//! Hexadecimal text, for key ids and imported values.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Bytes written in hexadecimal: an even number of digits of either case, without prefix or separators.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl FromStr for Hex {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // The error does not repeat the text: it may be a key.
        let digits =
            text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>().ok_or(Error::Hex)?;
        let (pairs, []) = digits.as_chunks() else {
            return Err(Error::Hex);
        };
        pairs
            .iter()
            .map(|[high, low]| u8::try_from(high << 4 | low).map_err(|_| Error::Hex))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_and_written() {
        let hex: Hex = "00ff10aB".parse().unwrap();
        assert_eq!(hex.0, [0x00, 0xff, 0x10, 0xab]);
        assert_eq!(hex.to_string(), "00ff10ab");
        assert_eq!("".parse::<Hex>().unwrap().0, []);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["0", "0x00", "zz", "00:11", " 00", "éé"] {
            assert!(matches!(text.parse::<Hex>(), Err(Error::Hex)), "{text:?}");
        }
    }
}
