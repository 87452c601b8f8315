//! TLS, version by version and suite by suite, and the certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::case::{Case, Level, Section, Stop, expect, fail};
use crate::client::hello::{Hello, Reply, Version};
use crate::client::paste::{netcat, quoted};
use crate::target::{Need, PATIENCE};
use crate::wire::Wire;

/// The suites that the specification names.
const TLS13: [(&str, u16); 2] =
    [("TLS_AES_256_GCM_SHA384", 0x1302), ("TLS_CHACHA20_POLY1305_SHA256", 0x1303)];
const TLS12: [(&str, u16); 2] =
    [("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", 0xc030), ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", 0xc02c)];
/// What old clients offer, so that a refusal is of the version and not for want of a suite.
const OLD: [u16; 10] = [0xc00a, 0xc014, 0xc009, 0xc013, 0x0035, 0x002f, 0x000a, 0x0005, 0x0004, 0x0039];
/// Suites that the specification does not name and others advise against, and who does.
const WEAK: [(&str, u16, &str); 26] = [
    ("TLS_RSA_WITH_NULL_MD5", 0x0001, NULL),
    ("TLS_RSA_WITH_NULL_SHA", 0x0002, NULL),
    ("TLS_RSA_WITH_NULL_SHA256", 0x003b, NULL),
    ("TLS_ECDHE_ECDSA_WITH_NULL_SHA", 0xc006, NULL),
    ("TLS_ECDHE_RSA_WITH_NULL_SHA", 0xc010, NULL),
    ("TLS_RSA_EXPORT_WITH_RC4_40_MD5", 0x0003, EXPORT),
    ("TLS_RSA_EXPORT_WITH_DES40_CBC_SHA", 0x0008, EXPORT),
    ("TLS_RSA_WITH_DES_CBC_SHA", 0x0009, EXPORT),
    ("TLS_DHE_RSA_EXPORT_WITH_DES40_CBC_SHA", 0x0014, EXPORT),
    ("TLS_RSA_WITH_RC4_128_MD5", 0x0004, RC4),
    ("TLS_RSA_WITH_RC4_128_SHA", 0x0005, RC4),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", 0xc007, RC4),
    ("TLS_ECDHE_RSA_WITH_RC4_128_SHA", 0xc011, RC4),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", 0x000a, TRIPLE_DES),
    ("TLS_DHE_RSA_WITH_3DES_EDE_CBC_SHA", 0x0016, TRIPLE_DES),
    ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", 0xc012, TRIPLE_DES),
    ("TLS_DH_anon_WITH_RC4_128_MD5", 0x0018, ANONYMOUS),
    ("TLS_DH_anon_WITH_AES_128_CBC_SHA", 0x0034, ANONYMOUS),
    ("TLS_DH_anon_WITH_AES_256_GCM_SHA384", 0x00a7, ANONYMOUS),
    ("TLS_ECDH_anon_WITH_AES_256_CBC_SHA", 0xc019, ANONYMOUS),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", 0x002f, RSA_TRANSPORT),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", 0x0035, RSA_TRANSPORT),
    ("TLS_RSA_WITH_AES_128_CBC_SHA256", 0x003c, RSA_TRANSPORT),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", 0x009c, RSA_TRANSPORT),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", 0x009d, RSA_TRANSPORT),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", 0xc014, CBC),
];
const NULL: &str = "RFC 9325 section 4.1: MUST NOT negotiate suites without encryption";
const EXPORT: &str = "RFC 9325 section 4.1: MUST NOT negotiate suites of less than 112 bits";
const RC4: &str = "RFC 7465; RFC 9325 section 4.1: MUST NOT negotiate RC4";
const TRIPLE_DES: &str = "RFC 9325 section 4.1: SHOULD NOT negotiate suites of less than 128 bits";
const ANONYMOUS: &str = "RFC 5246 appendix A.5: anonymous suites MUST NOT be used";
const RSA_TRANSPORT: &str = "RFC 9325 section 4.1: SHOULD NOT negotiate RSA key transport";
/// No document forbids it to a server of HTTP/1.1.
const CBC: &str =
    "advice: RFC 9325 section 4.2 recommends AEAD alone; RFC 9113 appendix A prohibits it for HTTP/2";

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new(
            Section::Tls,
            "a-suite",
            Level::Must,
            "offers the specification's four suites, each alone",
            "one at least is negotiated",
            |wire| async move {
                let mut found = Vec::new();
                for (version, (name, suite)) in TLS13
                    .map(|row| (Version::Tls13, row))
                    .into_iter()
                    .chain(TLS12.map(|row| (Version::Tls12, row)))
                {
                    if negotiates(&hello(&wire, version, &[suite], &[0]).await?, suite) {
                        found.push(name);
                    }
                }
                expect(!found.is_empty(), "one at least", "none")?;
                Ok(found.join(", "))
            },
        )
        .of(&["TRANS-CIPHER-001", "TRANS-TLS-001"]),
    ];
    for (version, suites) in [(Version::Tls13, TLS13), (Version::Tls12, TLS12)] {
        for (name, suite) in suites {
            all.push(
                Case::new(
                    Section::Tls,
                    format!("suite-{name}"),
                    Level::May,
                    format!("offers {name} alone"),
                    "either: one of the four is enough",
                    move |wire| async move { Ok(hello(&wire, version, &[suite], &[0]).await?.to_string()) },
                )
                .noted()
                .of(&["TRANS-CIPHER-001"]),
            );
        }
    }
    for (name, version, suites) in [
        ("ssl-3-0", Version::Ssl3, &OLD),
        ("tls-1-0", Version::Tls10, &OLD),
        ("tls-1-1", Version::Tls11, &OLD),
    ] {
        all.push(
            Case::new(
                Section::Tls,
                name,
                Level::Should,
                format!("offers {version} at best"),
                "an alert or a closed connection",
                move |wire| async move { not_negotiated(&hello(&wire, version, suites, &[0]).await?) },
            )
            .of(&["TRANS-TLS-001"])
            .source("RFC 8996, RFC 7568"),
        );
    }
    for (name, suite, source) in WEAK {
        all.push(
            Case::new(
                Section::Tls,
                format!("weak-{name}"),
                if source == CBC { Level::May } else { Level::Should },
                format!("offers {name} alone, with TLS 1.2"),
                "an alert or a closed connection",
                move |wire| async move {
                    not_negotiated(&hello(&wire, Version::Tls12, &[suite], &[0]).await?)
                },
            )
            .of(&["TRANS-CIPHER-001"])
            .source(source),
        );
    }
    all.push(
        Case::new(
            Section::Tls,
            "compression",
            Level::Should,
            "offers compression besides none",
            "none is chosen",
            |wire| async move {
                let reply = hello(&wire, Version::Tls12, &[0xc030, 0xc02c], &[1, 0]).await?;
                expect(!matches!(reply, Reply::Hello { compression: 1.., .. }), "none", reply.to_string())?;
                Ok(reply.to_string())
            },
        )
        .source("RFC 9325 section 3.3"),
    );
    all.extend(certificate_cases());
    all
}

async fn hello(wire: &Wire, version: Version, suites: &[u16], compressions: &[u8]) -> Result<Reply, Stop> {
    let hello = Hello { version, suites, alpn: &[b"h2", b"http/1.1"], compressions, host: &wire.target.host };
    let reply = hello.exchange(wire.target.address, PATIENCE).await;
    let reply = reply.or_else(|error| fail("a TCP connection", error.to_string()))?;
    wire.note(netcat(wire.target.address, &hello.bytes()), reply.to_string());
    Ok(reply)
}

fn negotiates(reply: &Reply, wanted: u16) -> bool {
    matches!(reply, Reply::Hello { suite, .. } if *suite == wanted)
}

fn not_negotiated(reply: &Reply) -> crate::case::Finding {
    expect(
        matches!(reply, Reply::Alert(_) | Reply::Closed),
        "an alert or a closed connection",
        reply.to_string(),
    )?;
    Ok(reply.to_string())
}

fn certificate_cases() -> Vec<Case> {
    vec![
        Case::new(
            Section::Tls,
            "chain-and-name",
            Level::Must,
            "verifies the certificate's chain and its names",
            "a trusted chain for the endpoint's host, in its time",
            |wire| async move {
                let chain = chain(&wire).await?;
                Ok(format!("{} certificates", chain.len()))
            },
        )
        .of(&["TRANS-CERT-001", "TRANS-CERT-002", "TRANS-CERT-003"]),
        Case::new(
            Section::Tls,
            "common-name",
            Level::Must,
            "looks for the host in the certificate's common name",
            "the host, or a wildcard for it: KMS looks there too",
            |wire| async move {
                let chain = chain(&wire).await?;
                let certificate = chain.first().and_then(|der| mock_kms::xks::Certificate::from_der(der));
                let names =
                    certificate.as_ref().map(|found| found.common_names.join(", ")).unwrap_or_default();
                expect(
                    certificate.is_some_and(|found| found.has_common_name_for(&wire.target.host)),
                    &wire.target.host,
                    &names,
                )?;
                Ok(names)
            },
        )
        .of(&["TRANS-CERT-002"])
        .needs(&[Need::CommonName]),
        Case::new(
            Section::Tls,
            "public-authority",
            Level::Must,
            "compares the chain's end with the roots that KMS trusts",
            "one of them",
            |wire| async move {
                let chain = chain(&wire).await?;
                let issuer = chain.last().map(|der| issuer(der)).unwrap_or_default();
                let roots = include_str!("../../data/kms-trusted-roots.tsv");
                let known = roots
                    .lines()
                    .filter_map(|line| line.split('\t').nth(1))
                    .any(|subject| parts(subject) == parts(&issuer));
                expect(known, "a root of KMS's list", &issuer)?;
                Ok(issuer)
            },
        )
        .of(&["TRANS-CERT-003"])
        .needs(&[Need::PublicCa]),
        Case::new(
            Section::Tls,
            "expiry",
            Level::May,
            "looks at the certificate's end",
            "14 days away at least",
            |wire| async move {
                let chain = chain(&wire).await?;
                let end = chain
                    .first()
                    .and_then(|der| mock_kms::xks::Certificate::from_der(der))
                    .map_or(0, |found| found.not_after_unix_secs);
                let days = (end - time::OffsetDateTime::now_utc().unix_timestamp()) / 86_400;
                expect(days >= 14, "14 days at least", format!("{days} days"))?;
                Ok(format!("{days} days"))
            },
        )
        .source("advice"),
        Case::new(
            Section::Tls,
            "fqdn",
            Level::Must,
            "looks at the endpoint's host",
            "a fully qualified domain name",
            |wire| async move {
                let host = &wire.target.host;
                expect(
                    host.contains('.') && host.parse::<std::net::IpAddr>().is_err(),
                    "a fully qualified domain name",
                    host,
                )?;
                Ok(host.clone())
            },
        )
        .of(&["URI-HOST-001"])
        .needs(&[Need::Fqdn]),
        Case::new(
            Section::Tls,
            "port",
            Level::Must,
            "looks at the endpoint's port",
            "443",
            |wire| async move {
                expect(wire.target.port == 443, "443", wire.target.port.to_string())?;
                Ok("443".to_owned())
            },
        )
        .of(&["URI-PORT-001"])
        .needs(&[Need::Port443]),
    ]
}

async fn chain(wire: &Wire) -> Result<Vec<CertificateDer<'static>>, Stop> {
    let opened = wire.target.http1.open_tls(wire.proxy()).await;
    wire.note(
        format!(
            "openssl s_client -connect {} -servername {} -showcerts </dev/null",
            wire.target.address,
            quoted(&wire.target.host)
        ),
        format!("{:?}", opened.as_ref().err()),
    );
    let stream = opened.or_else(|failure| fail("a TLS connection", failure.to_string()))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|der| der.clone().into_owned()).collect())
}

fn issuer(der: &[u8]) -> String {
    X509Certificate::from_der(der).map(|(_, found)| found.issuer().to_string()).unwrap_or_default()
}

/// A distinguished name as a set, since writers differ in order and spaces.
fn parts(name: &str) -> std::collections::BTreeSet<String> {
    name.split(',').map(|part| part.trim().replace('"', "").to_lowercase()).collect()
}
