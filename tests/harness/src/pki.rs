//! Certificates, made once a process.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use rustls::RootCertStore;

/// A private CA, and server certificates that it made for `localhost` and `127.0.0.1`.
pub struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    /// RSA certificate and key, PEM.
    pub rsa: PemPair,
    /// ECDSA certificate and key, PEM.
    pub ecdsa: PemPair,
}

/// A certificate and its private key.
#[derive(Clone)]
pub struct PemPair {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS#8.
    pub key: String,
}

impl Pki {
    /// The certificates of this process.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Pki> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters.distinguished_name.push(DnType::CommonName, "xks test CA");
        let ca = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let rsa = server_certificate(&ca, &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
        let ecdsa = server_certificate(&ca, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
        Self { ca, rsa, ecdsa }
    }

    /// Trusts the CA alone.
    #[must_use]
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        roots
    }

    /// One more ECDSA certificate of the same CA and for the same names.
    #[must_use]
    pub fn another(&self) -> PemPair {
        server_certificate(&self.ca, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// Writes ca.pem, rsa.pem, rsa.key, ecdsa.pem and ecdsa.key into `folder`.
    pub fn write(&self, folder: &Path) {
        let files = [
            ("ca.pem", self.ca_pem()),
            ("rsa.pem", self.rsa.certificate.clone()),
            ("rsa.key", self.rsa.key.clone()),
            ("ecdsa.pem", self.ecdsa.certificate.clone()),
            ("ecdsa.key", self.ecdsa.key.clone()),
        ];
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
    }
}

/// A private CA of a test's own.
pub struct TestCa(CertifiedIssuer<'static, KeyPair>);

impl TestCa {
    /// A new CA of that name.
    #[must_use]
    pub fn new(common_name: &str) -> Self {
        Self::named(&[(DnType::CommonName, common_name)])
    }

    /// A new CA that has the name of one of Amazon's roots.
    #[must_use]
    pub fn named_like_amazons() -> Self {
        Self::named(&[
            (DnType::CountryName, "US"),
            (DnType::OrganizationName, "Amazon"),
            (DnType::CommonName, "Amazon Root CA 1"),
        ])
    }

    fn named(name: &[(DnType, &str)]) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        parameters.distinguished_name = DistinguishedName::new();
        name.iter().for_each(|(kind, value)| parameters.distinguished_name.push(kind.clone(), *value));
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client certificate with these common names, valid from an hour ago until `not_after`.
    #[must_use]
    pub fn issue(&self, common_names: &[&str], not_after: SystemTime) -> PemPair {
        let key = KeyPair::generate().unwrap();
        let certificate = client_parameters(common_names, not_after).signed_by(&key, &self.0).unwrap();
        PemPair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl TestCa {
    /// A server certificate.
    #[must_use]
    pub fn issue_server(&self, common_name: &str, host: &str, not_after: SystemTime) -> PemPair {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        parameters.not_after = not_after.into();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        PemPair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A client certificate that nobody vouches for.
#[must_use]
pub fn self_signed_client(common_name: &str, not_after: SystemTime) -> PemPair {
    let key = KeyPair::generate().unwrap();
    let certificate = client_parameters(&[common_name], not_after).self_signed(&key).unwrap();
    PemPair { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn client_parameters(common_names: &[&str], not_after: SystemTime) -> CertificateParams {
    const HOUR: Duration = Duration::from_secs(3600);
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    // A DistinguishedName has one value of a type: a further common name goes in by its number.
    for (index, name) in common_names.iter().enumerate() {
        let kind = if index == 0 { DnType::CommonName } else { DnType::CustomDnType(vec![2, 5, 4, 3]) };
        parameters.distinguished_name.push(kind, *name);
    }
    parameters.not_before = (SystemTime::now() - HOUR).min(not_after - HOUR).into();
    parameters.not_after = not_after.into();
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

fn server_certificate(ca: &CertifiedIssuer<'static, KeyPair>, key: &KeyPair) -> PemPair {
    let mut parameters =
        CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, "localhost");
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.signed_by(key, ca).unwrap();
    PemPair { certificate: certificate.pem(), key: key.serialize_pem() }
}
