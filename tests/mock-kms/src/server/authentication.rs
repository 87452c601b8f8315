//! SigV4 signatures of callers: the header, and whether it is right.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use axum::http::request::Parts;

use super::canonical::string_to_sign;
use crate::kms::{Exception, KmsError};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "kms";
const MAX_SKEW: Duration = Duration::from_secs(300);

/// The parts of an `authorization` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signature<'a> {
    pub(super) access_key_id: &'a str,
    pub(super) region: &'a str,
    date: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

/// A signature that is not right.
pub(super) fn refuse(message: &str) -> KmsError {
    KmsError::new(Exception::InvalidSignatureException, message)
}

impl<'a> Signature<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// `MissingAuthenticationTokenException` without one, `IncompleteSignatureException` for one that is not whole,
    /// `InvalidSignatureException` for one of another service.
    pub(super) fn parse(head: &'a Parts) -> Result<Self, KmsError> {
        let header =
            head.headers.get("authorization").and_then(|header| header.to_str().ok()).ok_or_else(|| {
                KmsError::new(Exception::MissingAuthenticationTokenException, "Missing Authentication Token")
            })?;
        let incomplete = |what: &str| {
            let message = format!("Authorization header requires {what}.");
            KmsError::new(Exception::IncompleteSignatureException, message)
        };
        let fields =
            header.strip_prefix(ALGORITHM).ok_or_else(|| incomplete(&format!("algorithm {ALGORITHM}")))?;
        let field = |name: &str| {
            let mut fields = fields.split(',').filter_map(|field| field.trim().split_once('='));
            fields.find(|(found, _)| *found == name).map(|(_, value)| value)
        };
        let credential = field("Credential").ok_or_else(|| incomplete("'Credential' parameter"))?;
        let parts: Vec<_> = credential.split('/').collect();
        let [access_key_id, date, region, service, "aws4_request"] = parts[..] else {
            return Err(incomplete("a Credential of key id, date, region, service and aws4_request"));
        };
        if !is_name(access_key_id) {
            return Err(incomplete("a Credential with an access key id"));
        }
        if service != SERVICE {
            return Err(refuse(&format!("Credential should be scoped to correct service: '{SERVICE}'.")));
        }
        Ok(Self {
            access_key_id,
            region,
            date,
            signed_headers: field("SignedHeaders").ok_or_else(|| incomplete("'SignedHeaders' parameter"))?,
            signature: field("Signature").ok_or_else(|| incomplete("'Signature' parameter"))?,
        })
    }

    /// Checks the signature against the secret.
    ///
    /// # Errors
    /// `InvalidSignatureException`, and `IncompleteSignatureException` where there is no date.
    pub(super) fn verify(
        &self,
        head: &Parts,
        body: &[u8],
        secret: &str,
        now: SystemTime,
    ) -> Result<(), KmsError> {
        let sent = head.headers.get("x-amz-date").and_then(|date| date.to_str().ok());
        let dated = sent.and_then(|text| Some((text, parse_date(text)?))).ok_or_else(|| {
            let message = "Authorization header requires existence of an 'X-Amz-Date' header.";
            KmsError::new(Exception::IncompleteSignatureException, message)
        })?;
        let (date_text, date) = dated;
        let skew = now.duration_since(date).unwrap_or_else(|ahead| ahead.duration());
        if skew > MAX_SKEW || !date_text.starts_with(self.date) {
            return Err(refuse(&format!("Signature expired or not yet current: {date_text}.")));
        }
        let scope = format!("{}/{}/{SERVICE}/aws4_request", self.date, self.region);
        let text = string_to_sign(head, body, self.signed_headers, date_text, &scope).ok_or_else(|| {
            refuse("'Host' and 'X-Amz-Date' must be among the signed headers, and all of these must be sent.")
        })?;
        let key = generate_signing_key(secret, date, self.region, SERVICE);
        // Only a development tool's access depends on it: the time that this takes is nobody's secret.
        if calculate_signature(key, text.as_bytes()) == self.signature {
            return Ok(());
        }
        Err(refuse(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access \
             Key and signing method. Consult the service documentation for details.",
        ))
    }
}

/// What may stand in an ARN as a user's name.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.+=@".contains(&byte))
}

/// Reads `20221231T235959Z`.
fn parse_date(text: &str) -> Option<SystemTime> {
    if text.len() != 16 || text.as_bytes()[8] != b'T' || !text.ends_with('Z') {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    if year < 1970
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // The year is taken to begin in March, so that the leap day is its last.
    let march_year = if month > 2 { year } else { year - 1 };
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let days_since_0000 =
        march_year * 365 + march_year / 4 - march_year / 100 + march_year / 400 + day_of_year;
    let days_since_1970 = days_since_0000.checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::from_secs(days_since_1970 * 86_400 + hour * 3600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const SECRET: &str = "a-secret";
    const DATE: &str = "20221231T235959Z";

    fn head(authorization: &str) -> Parts {
        let request = Request::post("/").header("host", "localhost:4599").header("x-amz-date", DATE);
        let request =
            request.header("x-amz-target", "TrentService.ListKeys").header("authorization", authorization);
        request.body(()).unwrap().into_parts().0
    }

    fn signed(secret: &str, body: &[u8], signed_headers: &str) -> String {
        let now = parse_date(DATE).unwrap();
        let scope = "20221231/us-east-1/kms/aws4_request";
        let text = string_to_sign(&head(""), body, signed_headers, DATE, scope).unwrap();
        let signature =
            calculate_signature(generate_signing_key(secret, now, "us-east-1", "kms"), text.as_bytes());
        format!("{ALGORITHM} Credential=AKID/{scope}, SignedHeaders={signed_headers}, Signature={signature}")
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let secs = |text| parse_date(text).unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(secs("19700101T000000Z"), 0);
        assert_eq!(secs("20000229T000000Z"), 951_782_400);
        assert_eq!(secs("20221231T235959Z"), 1_672_531_199);
        for wrong in ["", "20221331T235959Z", "20221231 235959Z", "20221231T235959", "20221231T2a5959Z"] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_signature_holds_for_its_request_only() {
        let now = parse_date(DATE).unwrap();
        let check = |authorization: &str, body: &[u8], secret: &str, now| {
            let head = head(authorization);
            Signature::parse(&head).and_then(|signature| signature.verify(&head, body, secret, now))
        };
        let good = signed(SECRET, b"{}", "host;x-amz-date;x-amz-target");
        assert_eq!(check(&good, b"{}", SECRET, now), Ok(()));
        assert_eq!(check(&good, b"{}", SECRET, now + MAX_SKEW), Ok(()));
        assert!(check(&good, b"{ }", SECRET, now).is_err());
        assert!(check(&good, b"{}", "another", now).is_err());
        assert!(check(&good, b"{}", SECRET, now + MAX_SKEW + Duration::from_secs(1)).is_err());
        assert!(check(&good.replace(";x-amz-target", ""), b"{}", SECRET, now).is_err());
        assert!(check(&good.replace("host;", ""), b"{}", SECRET, now).is_err());
        assert!(check(&good.replace("us-east-1", "eu-west-1"), b"{}", SECRET, now).is_err());
    }

    #[test]
    fn headers_that_are_not_whole_are_told_apart() {
        let exception = |authorization: &str| Signature::parse(&head(authorization)).unwrap_err().exception;
        let good = signed(SECRET, b"{}", "host;x-amz-date");
        assert_eq!(exception("Bearer x"), Exception::IncompleteSignatureException);
        for field in ["Credential", "SignedHeaders", "Signature"] {
            assert_eq!(
                exception(&good.replace(field, "X")),
                Exception::IncompleteSignatureException,
                "{field}"
            );
        }
        assert_eq!(exception(&good.replace("/kms/", "/s3/")), Exception::InvalidSignatureException);
        assert_eq!(exception(&good.replace("AKID", "A\u{20}ID")), Exception::IncompleteSignatureException);
        let unsigned = Request::post("/").body(()).unwrap().into_parts().0;
        let exception = Signature::parse(&unsigned).unwrap_err().exception;
        assert_eq!(exception, Exception::MissingAuthenticationTokenException);
    }
}
