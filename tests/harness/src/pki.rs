//! Certificates, made once a process.

use std::path::Path;
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
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

fn server_certificate(ca: &CertifiedIssuer<'static, KeyPair>, key: &KeyPair) -> PemPair {
    let mut parameters =
        CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, "localhost");
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.signed_by(key, ca).unwrap();
    PemPair { certificate: certificate.pem(), key: key.serialize_pem() }
}
