//! SigV4 by hand (specification, Appendix A): every part can be wrong on its own while the rest is right.

use std::time::SystemTime;

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use mock_kms::xks::{Proxy, SERVICE};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// A request as it is signed.
#[derive(Clone, Debug)]
pub struct ByHand {
    /// Access key id.
    pub access_key_id: String,
    secret: mock_secret::Secret,
    /// `x-amz-date`.
    pub date: String,
    /// Day of the scope.
    pub day: String,
    /// Region of the scope.
    pub region: String,
    /// Service of the scope.
    pub service: String,
    /// End of the scope.
    pub end: String,
    /// First word of the header, and first line of the string to sign.
    pub algorithm: String,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Canonical query.
    pub query: String,
    /// Signed headers with their canonical values, in order.
    pub headers: Vec<(String, String)>,
    /// Last line of the canonical request.
    pub payload_hash: String,
}

/// Keeps the secret out of Debug output.
mod mock_secret {
    #[derive(Clone)]
    pub(super) struct Secret(pub(super) String);
    impl std::fmt::Debug for Secret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Secret(..)")
        }
    }
}

impl ByHand {
    /// What KMS would sign for a POST of `body` to `path`, `skew_secs` ahead of now.
    #[must_use]
    pub fn new(proxy: &Proxy, path: &str, body: &[u8], skew_secs: i64) -> Self {
        let date = amz_date(OffsetDateTime::now_utc() + time::Duration::seconds(skew_secs));
        Self {
            access_key_id: proxy.access_key_id.clone(),
            secret: mock_secret::Secret(proxy.secret_access_key.to_string()),
            day: date[..8].to_owned(),
            region: proxy.region.clone(),
            service: SERVICE.to_owned(),
            end: "aws4_request".to_owned(),
            algorithm: "AWS4-HMAC-SHA256".to_owned(),
            method: "POST".to_owned(),
            path: path.to_owned(),
            query: String::new(),
            headers: vec![("host".to_owned(), proxy.host.clone()), ("x-amz-date".to_owned(), date.clone())],
            payload_hash: hex(&Sha256::digest(body)),
            date,
        }
    }

    /// The scope.
    #[must_use]
    pub fn scope(&self) -> String {
        format!("{}/{}/{}/{}", self.day, self.region, self.service, self.end)
    }

    /// The names of the signed headers.
    #[must_use]
    pub fn signed_headers(&self) -> String {
        self.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";")
    }

    /// The signature.
    #[must_use]
    pub fn signature(&self) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!(
            "{}\n{}\n{}\n{headers}\n{}\n{}",
            self.method,
            self.path,
            self.query,
            self.signed_headers(),
            self.payload_hash
        );
        let to_sign = format!(
            "{}\n{}\n{}\n{}",
            self.algorithm,
            self.date,
            self.scope(),
            hex(&Sha256::digest(canonical.as_bytes()))
        );
        // The signing key takes its day from a time; any time of the scope's day will do.
        let key = generate_signing_key(&self.secret.0, day_time(&self.day), &self.region, &self.service);
        calculate_signature(key, to_sign.as_bytes())
    }

    /// The `Authorization` header.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!(
            "{} Credential={}/{}, SignedHeaders={}, Signature={}",
            self.algorithm,
            self.access_key_id,
            self.scope(),
            self.signed_headers(),
            self.signature()
        )
    }
}

/// `YYYYMMDDTHHMMSSZ`.
#[must_use]
pub fn amz_date(at: OffsetDateTime) -> String {
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

fn day_time(day: &str) -> SystemTime {
    let part =
        |range: std::ops::Range<usize>| day.get(range).and_then(|text| text.parse::<u16>().ok()).unwrap_or(1);
    let month = u8::try_from(part(4..6)).ok().and_then(|month| time::Month::try_from(month).ok());
    let date = time::Date::from_calendar_date(
        i32::from(part(0..4)),
        month.unwrap_or(time::Month::January),
        u8::try_from(part(6..8)).unwrap_or(1),
    );
    date.map_or(SystemTime::UNIX_EPOCH, |date| date.midnight().assume_utc().into())
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mock-kms signs with AWS's own signer; the hand agrees with it.
    #[test]
    fn signs_as_the_aws_signer_does() {
        let proxy =
            Proxy::new("xks.example.com", "/p/kms/xks/v1", "AKIDAKIDAKIDAKIDAKID", "secret", "eu-west-1");
        let now = SystemTime::now();
        let made = mock_kms::xks::Signing::default().sign(&proxy, "POST", "/p/x", b"{}", now).unwrap();
        let mut by_hand = ByHand::new(&proxy, "/p/x", b"{}", 0);
        by_hand.date = made.date.to_str().unwrap().to_owned();
        by_hand.day = by_hand.date[..8].to_owned();
        by_hand.headers[1].1 = by_hand.date.clone();
        assert_eq!(by_hand.authorization(), made.authorization.to_str().unwrap());
        assert!(!format!("{by_hand:?}").contains("secret\""));
    }
}
