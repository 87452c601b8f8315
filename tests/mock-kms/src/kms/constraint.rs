//! What values of the KMS API must look like, from AWS's service model, and what AWS says of those that do not.

use std::sync::OnceLock;

use regex::Regex;

/// Length, and pattern where there is one, of a text or blob; length alone of a list.
pub struct Text {
    min: usize,
    max: usize,
    pattern: Option<&'static str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Text {
    /// Anything of `min` to `max` characters, bytes of a blob, or members of a list.
    #[must_use]
    pub const fn of_length(min: usize, max: usize) -> Self {
        Self { min, max, pattern: None, compiled: OnceLock::new() }
    }

    /// The same that also matches `pattern` as a whole.
    #[must_use]
    pub const fn matching(min: usize, max: usize, pattern: &'static str) -> Self {
        Self { min, max, pattern: Some(pattern), compiled: OnceLock::new() }
    }

    /// What AWS says of a value of `length` characters or bytes, if that is wrong.
    #[must_use]
    pub fn fault_of_length(&self, length: usize) -> Option<String> {
        if length < self.min {
            Some(format!("Member must have length greater than or equal to {}", self.min))
        } else if length > self.max {
            Some(format!("Member must have length less than or equal to {}", self.max))
        } else {
            None
        }
    }

    /// Everything that AWS says of `value`: one sentence a broken constraint.
    #[must_use]
    pub fn faults(&self, value: &str) -> Vec<String> {
        let length = self.fault_of_length(value.chars().count());
        let pattern = self
            .pattern
            .filter(|_| !self.matches(value))
            .map(|pattern| format!("Member must satisfy regular expression pattern: {pattern}"));
        length.into_iter().chain(pattern).collect()
    }

    fn matches(&self, value: &str) -> bool {
        let compile = || {
            // AWS matches with Java's regular expressions, whole values and ASCII classes.
            let pattern = self.pattern?.replace(r"\d", "[0-9]").replace(r"[\w]", "[A-Za-z0-9_]");
            Regex::new(&format!(r"\A(?:{pattern})\z")).ok()
        };
        self.compiled.get_or_init(compile).as_ref().is_some_and(|regex| regex.is_match(value))
    }
}

/// Smallest and largest value of a number.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// Smallest.
    pub min: i64,
    /// Largest.
    pub max: i64,
}

impl Number {
    /// What AWS says of `value`, if it is wrong.
    #[must_use]
    pub fn fault(self, value: i64) -> Option<String> {
        if value < self.min {
            Some(format!("Member must have value greater than or equal to {}", self.min))
        } else if value > self.max {
            Some(format!("Member must have value less than or equal to {}", self.max))
        } else {
            None
        }
    }
}

/// `KeyId` and every other name of a key.
pub static KEY_ID: Text = Text::of_length(1, 2048);
/// `AliasName`.
pub static ALIAS_NAME: Text = Text::matching(1, 256, r"^[a-zA-Z0-9:/_-]+$");
/// `Description`.
pub static DESCRIPTION: Text = Text::of_length(0, 8192);
/// `Policy`.
pub static POLICY: Text = Text::matching(1, 131_072, r"[\u0009\u000A\u000D\u0020-\u00FF]+");
/// `PolicyName`.
pub static POLICY_NAME: Text = Text::matching(1, 128, r"[\w]+");
/// `Marker`.
pub static MARKER: Text = Text::matching(1, 1024, r"[\u0020-\u00FF]*");
/// `TagKey`.
pub static TAG_KEY: Text = Text::of_length(1, 128);
/// `TagValue`.
pub static TAG_VALUE: Text = Text::of_length(0, 256);
/// A grant token.
pub static GRANT_TOKEN: Text = Text::of_length(1, 8192);
/// `GrantTokens`, their number.
pub static GRANT_TOKENS: Text = Text::of_length(0, 10);
/// `CustomKeyStoreId`.
pub static STORE_ID: Text = Text::of_length(1, 64);
/// `CustomKeyStoreName`.
pub static STORE_NAME: Text = Text::of_length(1, 256);
/// `CloudHsmClusterId`.
pub static CLUSTER_ID: Text = Text::matching(19, 24, r"cluster-[2-7a-zA-Z]{11,16}");
/// `TrustAnchorCertificate`.
pub static TRUST_ANCHOR: Text = Text::of_length(1, 5000);
/// `KeyStorePassword`.
pub static STORE_PASSWORD: Text = Text::of_length(7, 32);
/// `XksProxyUriEndpoint`.
pub static URI_ENDPOINT: Text = Text::matching(10, 128, r"^https://[a-zA-Z0-9.-]+$");
/// `XksProxyUriPath`.
pub static URI_PATH: Text =
    Text::matching(10, 128, r"^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$");
/// `XksProxyVpcEndpointServiceName`.
pub static VPC_SERVICE_NAME: Text =
    Text::matching(20, 64, r"^(com|eu)\.amazonaws\.vpce\.([a-z]+-){2,3}\d+\.vpce-svc-[0-9a-z]+$");
/// A Region.
pub static REGION: Text = Text::matching(1, 32, r"([a-z]+-){2,3}\d+");
/// An account id.
pub static ACCOUNT_ID: Text = Text::matching(12, 12, r"[0-9]{12}");
/// `XksProxyAuthenticationCredential.AccessKeyId`.
pub static ACCESS_KEY_ID: Text = Text::matching(20, 30, r"^[A-Z2-7]+$");
/// `XksProxyAuthenticationCredential.RawSecretAccessKey`.
pub static SECRET_ACCESS_KEY: Text = Text::matching(43, 64, r"^[a-zA-Z0-9\/+=]+$");
/// `XksKeyId`.
pub static XKS_KEY_ID: Text = Text::matching(1, 128, r"^[a-zA-Z0-9-_.]+$");
/// `Plaintext`, in bytes.
pub static PLAINTEXT: Text = Text::of_length(1, 4096);
/// `CiphertextBlob`, in bytes.
pub static CIPHERTEXT_BLOB: Text = Text::of_length(1, 6144);
/// `Limit`.
pub const LIMIT: Number = Number { min: 1, max: 1000 };
/// `NumberOfBytes`.
pub const NUMBER_OF_BYTES: Number = Number { min: 1, max: 1024 };
/// `PendingWindowInDays`: the service model says 1 to 365, documentation and service 7 to 30.
pub const PENDING_WINDOW_DAYS: Number = Number { min: 7, max: 30 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_whole_values() {
        let valid = [
            (&URI_ENDPOINT, "https://xks.example.com"),
            (&URI_PATH, "/kms/xks/v1"),
            (&URI_PATH, "/a/b-c_d/kms/xks/v10"),
            (&VPC_SERVICE_NAME, "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"),
            (&VPC_SERVICE_NAME, "com.amazonaws.vpce.us-gov-east-1.vpce-svc-0123456789abcdef0"),
            (&XKS_KEY_ID, "a-b_c.D9"),
            (&ALIAS_NAME, "alias/a:b/c_d-e"),
            (&POLICY_NAME, "default"),
            (&POLICY, "{\n\t\"é\": 1\r}"),
            (&ACCESS_KEY_ID, "ABCDEFGHIJKLMNOPQR27"),
        ];
        for (text, value) in valid {
            assert_eq!(text.faults(value), Vec::<String>::new(), "{value}");
        }
        let invalid = [
            (&URI_ENDPOINT, "https://xks.example.com:8443"),
            (&URI_ENDPOINT, "http://xks.example.com"),
            (&URI_ENDPOINT, "https://xks.example.com/\n"),
            (&URI_PATH, "/kms/xks/v1/"),
            (&URI_PATH, "/a b/kms/xks/v1"),
            (&URI_PATH, "/kms/xks/v٣"),
            (&XKS_KEY_ID, "a/b"),
            (&ACCESS_KEY_ID, "ABCDEFGHIJKLMNOPQR01"),
            (&POLICY_NAME, "a-b"),
            (&POLICY, "\u{0}"),
        ];
        for (text, value) in invalid {
            assert_eq!(text.faults(value).len(), 1, "{value}");
        }
    }

    #[test]
    fn lengths_count_characters() {
        assert!(STORE_NAME.faults(&"é".repeat(256)).is_empty());
        assert_eq!(
            STORE_NAME.faults(&"é".repeat(257)),
            ["Member must have length less than or equal to 256"]
        );
        assert_eq!(XKS_KEY_ID.faults("").len(), 2);
        assert_eq!(NUMBER_OF_BYTES.fault(0).unwrap(), "Member must have value greater than or equal to 1");
    }
}
