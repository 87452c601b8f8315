//! What a proxy's certificate says of itself, beyond what TLS checks.

use x509_parser::prelude::{FromDer, X509Certificate};

/// Facts of the certificate that a proxy showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Common names of the subject, in their order.
    pub common_names: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub not_after_unix_secs: i64,
}

impl Certificate {
    /// `None` where the bytes are no certificate.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject().iter_common_name();
        let names = names.filter_map(|name| name.as_str().ok()).map(str::to_owned);
        let not_after_unix_secs = certificate.validity().not_after.timestamp();
        Some(Self { common_names: names.collect(), not_after_unix_secs })
    }

    /// Whether one of the common names is `host` itself or `*.` and the rest of it, which KMS documents that it wants.
    #[must_use]
    pub fn has_common_name_for(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.common_names.iter().any(|name| {
            let wildcard = name.strip_prefix("*.").zip(parent);
            name.eq_ignore_ascii_case(host)
                || wildcard.is_some_and(|(rest, parent)| rest.eq_ignore_ascii_case(parent))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_is_the_host_or_a_wildcard_one_label_deep() {
        let of = |name: &str| Certificate { common_names: vec![name.to_owned()], not_after_unix_secs: 0 };
        assert!(of("xks.example.com").has_common_name_for("XKS.example.com"));
        assert!(of("*.example.com").has_common_name_for("xks.example.com"));
        assert!(!of("*.example.com").has_common_name_for("a.xks.example.com"));
        assert!(!of("*.example.com").has_common_name_for("example.com"));
        assert!(!of("other").has_common_name_for("xks.example.com"));
        assert!(of("localhost").has_common_name_for("localhost"));
    }
}
