//! `x-amz-date`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::AuthenticationFault;

/// A time of the form `YYYYMMDDTHHMMSSZ`, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timestamp {
    text: [u8; 16],
    unix_secs: u64,
}

impl Timestamp {
    pub(super) fn parse(value: &str) -> Result<Self, AuthenticationFault> {
        let text: [u8; 16] = value.as_bytes().try_into().map_err(|_| AuthenticationFault::Timestamp)?;
        let unix_secs = unix_secs(&text).ok_or(AuthenticationFault::Timestamp)?;
        Ok(Self { text, unix_secs })
    }

    /// The whole text.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// `YYYYMMDD`.
    pub(super) fn date(&self) -> &str {
        std::str::from_utf8(&self.text[..8]).unwrap_or_default()
    }

    pub(super) fn system_time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.unix_secs)
    }

    /// This time less `now`, in seconds; positive where it is ahead.
    pub(super) fn skew_secs(&self, now: SystemTime) -> i64 {
        let now_secs = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        i64::try_from(i128::from(self.unix_secs) - i128::from(now_secs)).unwrap_or(i64::MAX)
    }
}

fn unix_secs(text: &[u8; 16]) -> Option<u64> {
    // SPEC(AUTH-DATE-001): YYYYMMDD'T'HHMMSS'Z', UTC.
    if text[8] != b'T' || text[15] != b'Z' {
        return None;
    }
    let month = time::Month::try_from(number(&text[4..6])?).ok()?;
    let date = time::Date::from_calendar_date(year(&text[..4])?, month, number(&text[6..8])?).ok()?;
    let time =
        time::Time::from_hms(number(&text[9..11])?, number(&text[11..13])?, number(&text[13..15])?).ok()?;
    u64::try_from(date.with_time(time).assume_utc().unix_timestamp()).ok()
}

fn year(digits: &[u8]) -> Option<i32> {
    Some(i32::from(number(&digits[..2])?) * 100 + i32::from(number(&digits[2..])?))
}

/// A number of two digits.
fn number(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + (digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        let timestamp = Timestamp::parse("20150830T123600Z").unwrap();
        assert_eq!(timestamp.date(), "20150830");
        assert_eq!(timestamp.system_time(), UNIX_EPOCH + Duration::from_secs(1_440_938_160));
        assert_eq!(timestamp.skew_secs(UNIX_EPOCH + Duration::from_secs(1_440_938_161)), -1);
    }

    #[test]
    fn refuses_what_is_no_time() {
        for bad in [
            "",
            "20150830T123600",
            "20150830 123600Z",
            "20151330T123600Z",
            "20150230T123600Z",
            "20150830T243600Z",
            "20150830T126000Z",
            "2015083AT123600Z",
            "19690101T000000Z",
            "2015-08-30T12:36:00Z",
        ] {
            assert_eq!(Timestamp::parse(bad), Err(AuthenticationFault::Timestamp), "{bad}");
        }
    }
}
