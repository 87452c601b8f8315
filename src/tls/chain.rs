//! What is to be said of the server's own certificates before KMS says it: their end, their links, their names, their root.

use std::sync::OnceLock;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::X509Name;

use super::{CertificateFiles, ListenerTls, TlsFault, read_chain};
use crate::metrics::Metrics;

/// A certificate that ends sooner deserves a word.
pub const NOTICE_DAYS: i64 = 30;
const DAY_SECS: i64 = 24 * 3600;
/// SHA-256 and subject of each root, and its end (see the file's first line for the source).
const KMS_TRUSTED_ROOTS: &str = include_str!("kms_trusted_roots.tsv");

/// What one chain file holds, as far as others judge it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerChain {
    /// When the server's certificate begins to be valid, in seconds since 1970.
    pub leaf_begins_unix_secs: i64,
    /// When it ends.
    pub leaf_ends_unix_secs: i64,
    /// When the first of the certificates above it ends; `None` where there are none.
    pub issuers_end_unix_secs: Option<i64>,
    /// What is odd about it.
    pub oddities: Vec<Oddity>,
}

/// Why KMS might refuse a chain, or show less of it. None keeps the proxy from serving: a private authority is enough for
/// tests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// A certificate is not issued by the one after it.
    #[error("the chain is broken: certificate {position} is not issued by the one after it")]
    Broken {
        /// From 1, the server's own.
        position: usize,
    },
    /// The end of the chain is of an authority that KMS does not trust.
    #[error(
        "the chain ends at {issuer:?}, which is not among the roots that KMS trusts: an intermediate certificate is missing, \
         or KMS will refuse it"
    )]
    NotTrusted {
        /// Who issued the last certificate.
        issuer: String,
    },
    /// The endpoint's name is no subject alternative name.
    #[error("{endpoint:?} is not among its subject alternative names")]
    NotInAlternativeNames {
        /// The endpoint.
        endpoint: String,
    },
    /// The endpoint's name is not the common name.
    #[error("{endpoint:?} is not its common name")]
    NotCommonName {
        /// The endpoint.
        endpoint: String,
    },
    /// The common name has a wildcard.
    #[error("its common name is a wildcard: KMS publishes no days to expire of such a certificate")]
    Wildcard,
}

impl Oddity {
    /// Every label, for the metric.
    pub const LABELS: [&str; 5] = [
        "broken_chain",
        "untrusted_root",
        "endpoint_not_in_san",
        "endpoint_not_common_name",
        "wildcard_common_name",
    ];

    /// Short word for the metric.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        let [broken, untrusted, not_in_san, not_common_name, wildcard] = Self::LABELS;
        match self {
            Self::Broken { .. } => broken,
            Self::NotTrusted { .. } => untrusted,
            Self::NotInAlternativeNames { .. } => not_in_san,
            Self::NotCommonName { .. } => not_common_name,
            Self::Wildcard => wildcard,
        }
    }
}

impl ServerChain {
    /// Looks at a chain file; `endpoint` is the name that KMS connects to, where it is known.
    ///
    /// # Errors
    /// [`TlsFault::Chain`] where the file holds no certificates.
    pub fn of(files: &CertificateFiles, endpoint: Option<&str>) -> Result<Self, TlsFault> {
        let chain = read_chain(&files.chain_file)?;
        Self::of_certificates(&chain, endpoint).ok_or_else(|| TlsFault::Chain(files.chain_file.clone()))
    }

    /// `None` where there are no certificates, or one is not one.
    fn of_certificates(ders: &[CertificateDer<'_>], endpoint: Option<&str>) -> Option<Self> {
        let parse = |der| x509_parser::parse_x509_certificate(der).map(|(_, certificate)| certificate);
        let certificates: Vec<_> = ders.iter().map(|der| parse(der)).collect::<Result<_, _>>().ok()?;
        let ((leaf, issuers), (last, last_der)) =
            certificates.split_first().zip(certificates.last().zip(ders.last()))?;
        let links = certificates.iter().zip(issuers).enumerate();
        let broken = links.filter(|(_, (issued, issuer))| issued.issuer() != issuer.subject());
        let mut oddities: Vec<_> = broken.map(|(index, _)| Oddity::Broken { position: index + 1 }).collect();
        if !is_trusted_by_kms(last, last_der) {
            oddities.push(Oddity::NotTrusted { issuer: last.issuer().to_string() });
        }
        oddities.extend(oddities_of_names(leaf, endpoint));
        Some(Self {
            leaf_begins_unix_secs: leaf.validity().not_before.timestamp(),
            leaf_ends_unix_secs: ends(leaf),
            issuers_end_unix_secs: issuers.iter().map(ends).min(),
            oddities,
        })
    }

    fn show_ends(&self, name: &str, metrics: &Metrics) {
        let ends = [("leaf", Some(self.leaf_ends_unix_secs)), ("issuers", self.issuers_end_unix_secs)];
        for (part, end) in ends {
            if let Some(end) = end {
                metrics.certificate_ends.with_label_values(&[name, part]).set(end);
            }
        }
    }

    fn show_oddities(&self, name: &str, metrics: &Metrics) {
        for label in Oddity::LABELS {
            let is_so = self.oddities.iter().any(|oddity| oddity.label() == label);
            metrics.certificate_oddities.with_label_values(&[name, label]).set(is_so.into());
        }
    }
}

/// Shows the chains that listeners present as metrics, and nothing any more of those of others: of those that KMS sees all, of the
/// admin listener's when they end.
pub fn show_chains(
    listener: &ListenerTls,
    endpoint: Option<&str>,
    of_admin: Option<&ListenerTls>,
    metrics: &Metrics,
) {
    metrics.certificate_ends.reset();
    metrics.certificate_oddities.reset();
    for (index, chain) in listener.chains.iter().enumerate() {
        if let Some(chain) = ServerChain::of_certificates(chain, endpoint) {
            chain.show_ends(&index.to_string(), metrics);
            chain.show_oddities(&index.to_string(), metrics);
        }
    }
    for (index, chain) in of_admin.iter().flat_map(|listener| &listener.chains).enumerate() {
        if let Some(chain) = ServerChain::of_certificates(chain, None) {
            chain.show_ends(&format!("admin-{index}"), metrics);
        }
    }
}

/// Whole days until an instant, negative behind it.
#[must_use]
pub const fn days_until(end_unix_secs: i64, now_unix_secs: i64) -> i64 {
    (end_unix_secs - now_unix_secs).div_euclid(DAY_SECS)
}

fn ends(certificate: &X509Certificate<'_>) -> i64 {
    certificate.validity().not_after.timestamp()
}

fn oddities_of_names(leaf: &X509Certificate<'_>, endpoint: Option<&str>) -> Vec<Oddity> {
    let common_names: Vec<_> =
        leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let mut oddities = Vec::new();
    if let Some(endpoint) = endpoint {
        let alternative_names = leaf.subject_alternative_name().ok().flatten();
        let is_alternative_name = alternative_names.is_some_and(|names| {
            names.value.general_names.iter().any(|name| match name {
                GeneralName::DNSName(name) => names_host(name, endpoint),
                _ => false,
            })
        });
        if !is_alternative_name {
            oddities.push(Oddity::NotInAlternativeNames { endpoint: endpoint.to_owned() });
        }
        if !common_names.iter().any(|name| names_host(name, endpoint)) {
            oddities.push(Oddity::NotCommonName { endpoint: endpoint.to_owned() });
        }
    }
    if common_names.iter().any(|name| name.contains('*')) {
        oddities.push(Oddity::Wildcard);
    }
    oddities
}

/// Whether a certificate's name is that of a host; `*` stands for exactly one label, the first.
fn names_host(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name.eq_ignore_ascii_case(host),
        Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
    }
}

/// Whether the end of a chain is a root of the list, or issued by one. The list has subjects as text, in several orders, so
/// names are the same where their parts are: no proof, but KMS is the one to verify signatures.
fn is_trusted_by_kms(last: &X509Certificate<'_>, der: &[u8]) -> bool {
    let digest: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    let issuer = parts_of(last.issuer());
    trusted_roots().iter().any(|(fingerprint, subject)| *fingerprint == digest || *subject == issuer)
}

fn trusted_roots() -> &'static [(&'static str, Vec<String>)] {
    static ROOTS: OnceLock<Vec<(&'static str, Vec<String>)>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let lines = KMS_TRUSTED_ROOTS.lines().filter(|line| !line.starts_with('#')).skip(1);
        let columns = lines.filter_map(|line| line.split_once('\t'));
        columns
            .map(|(fingerprint, rest)| {
                (fingerprint, parts_of_text(rest.split('\t').next().unwrap_or_default()))
            })
            .collect()
    })
}

/// The values of a name, sorted.
fn parts_of(name: &X509Name<'_>) -> Vec<String> {
    let values = name.iter_attributes().filter_map(|attribute| attribute.as_str().ok());
    sorted(values.map(str::to_owned).collect())
}

/// The same of its text, such as `CN=A, O="B, Inc.", C=US`.
fn parts_of_text(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_quoted = false;
    for character in text.chars() {
        match character {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => parts.push(String::new()),
            _ => parts.last_mut().into_iter().for_each(|part| part.push(character)),
        }
    }
    let value = |part: &String| part.trim().split_once('=').map(|(_, value)| value.to_owned());
    sorted(parts.iter().filter_map(value).collect())
}

fn sorted(mut parts: Vec<String>) -> Vec<String> {
    parts.sort_unstable();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_roots_is_whole() {
        let roots = trusted_roots();
        assert_eq!(roots.len(), 130);
        for (fingerprint, subject) in roots {
            assert!(fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert!(!subject.is_empty(), "{fingerprint}");
        }
    }

    #[test]
    fn names_are_read_from_text_with_quotes_and_commas() {
        assert_eq!(parts_of_text(r#"CN=A root, O="B, Inc.", C=US"#), ["A root", "B, Inc.", "US"]);
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (name, host, is_named) in [
            ("xks.example.com", "xks.example.com", true),
            ("XKS.example.com", "xks.EXAMPLE.com", true),
            ("*.example.com", "xks.example.com", true),
            ("*.example.com", "a.xks.example.com", false),
            ("*.example.com", "example.com", false),
            ("example.com", "xks.example.com", false),
        ] {
            assert_eq!(names_host(name, host), is_named, "{name} {host}");
        }
    }

    #[test]
    fn days_are_whole() {
        assert_eq!(days_until(NOTICE_DAYS * DAY_SECS - 1, 0), NOTICE_DAYS - 1);
        assert_eq!(days_until(0, 1), -1);
    }
}
