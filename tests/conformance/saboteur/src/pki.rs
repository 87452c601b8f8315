//! Certificates, made once a process: of the server, and of clients for mTLS, right and wrong ones.

use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

use crate::setup::{HOST, REGION};

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, and what stands between it and the root.
    pub chain_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

/// What a client shows to the mTLS listener, which takes [`ClientIdentity::Kms`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientIdentity {
    /// KMS's common name, of the right authority.
    Kms,
    /// The same, but it ran out a day ago.
    Expired,
    /// The same, but it is valid from tomorrow.
    NotYetValid,
    /// A name that is none of KMS's.
    OtherName,
    /// KMS's name with something before it.
    LongerName,
    /// KMS's name in another Region.
    OtherRegion,
    /// Two common names, one of them KMS's.
    TwoNames,
    /// KMS's name, of another authority.
    OtherIssuer,
    /// KMS's name, signed by itself.
    SelfSigned,
}

impl ClientIdentity {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Kms,
        Self::Expired,
        Self::NotYetValid,
        Self::OtherName,
        Self::LongerName,
        Self::OtherRegion,
        Self::TwoNames,
        Self::OtherIssuer,
        Self::SelfSigned,
    ];

    /// The name of its files, in kebab case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kms => "kms",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::OtherName => "other-name",
            Self::LongerName => "longer-name",
            Self::OtherRegion => "other-region",
            Self::TwoNames => "two-names",
            Self::OtherIssuer => "other-issuer",
            Self::SelfSigned => "self-signed",
        }
    }
}

/// The common name that KMS's certificate has in a Region.
pub(crate) fn kms_name(region: &str) -> String {
    format!("cks.kms.{region}.amazonaws.com")
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// All certificates of this process.
pub(crate) struct Pki {
    pub(crate) root_pem: String,
    pub(crate) rsa: Identity,
    pub(crate) ecdsa: Identity,
    pub(crate) without_intermediate: Identity,
    pub(crate) expired: Identity,
    pub(crate) of_another_name: Identity,
    pub(crate) self_signed: Identity,
    clients: Vec<(ClientIdentity, Identity)>,
}

impl Pki {
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Pki> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    pub(crate) fn client(&self, which: ClientIdentity) -> &Identity {
        // INVARIANT: `new` makes every one.
        &self.clients.iter().find(|(made, _)| *made == which).unwrap().1
    }

    fn new() -> Self {
        let root = Issuer::self_signed(authority("xks-saboteur root"), KeyPair::generate().unwrap()).unwrap();
        let intermediate =
            Issuer::signed_by(authority("xks-saboteur CA"), KeyPair::generate().unwrap(), &root).unwrap();
        let stranger =
            Issuer::self_signed(authority("xks-saboteur stranger"), KeyPair::generate().unwrap()).unwrap();
        let ecdsa =
            |parameters: CertificateParams| signed(&parameters, &intermediate, &PKCS_ECDSA_P256_SHA256);
        let mut without_intermediate = ecdsa(server(HOST));
        without_intermediate.chain_pem = first_certificate(&without_intermediate.chain_pem);
        let clients = ClientIdentity::ALL.map(|which| (which, client(which, &root, &stranger)));
        Self {
            root_pem: root.pem(),
            rsa: signed(&server(HOST), &intermediate, &PKCS_RSA_SHA256),
            ecdsa: ecdsa(server(HOST)),
            without_intermediate,
            expired: ecdsa(expired(server(HOST))),
            of_another_name: ecdsa(server("another.saboteur.example")),
            self_signed: self_signed(&server(HOST)),
            clients: clients.into(),
        }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

fn server(host: &str) -> CertificateParams {
    // rcgen's own common name would stand beside ours.
    let mut parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, host);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters
}

fn client(which: ClientIdentity, root: &Issuer, stranger: &Issuer) -> Identity {
    let kms = kms_name(REGION);
    let name = match which {
        ClientIdentity::OtherName => "another.saboteur.example".to_owned(),
        ClientIdentity::LongerName => format!("not-{kms}"),
        ClientIdentity::OtherRegion => kms_name("eu-west-1"),
        _ => kms,
    };
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    if which == ClientIdentity::TwoNames {
        // A DistinguishedName holds one attribute of a kind: the second is the same one under its bare number.
        let common_name = DnType::CustomDnType(vec![2, 5, 4, 3]);
        parameters.distinguished_name.push(common_name, "another.saboteur.example");
    }
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    match which {
        ClientIdentity::Expired => parameters = expired(parameters),
        ClientIdentity::NotYetValid => parameters.not_before = OffsetDateTime::now_utc() + Duration::days(1),
        _ => {}
    }
    match which {
        ClientIdentity::OtherIssuer => signed(&parameters, stranger, &PKCS_ECDSA_P256_SHA256),
        ClientIdentity::SelfSigned => self_signed(&parameters),
        _ => signed(&parameters, root, &PKCS_ECDSA_P256_SHA256),
    }
}

fn expired(mut parameters: CertificateParams) -> CertificateParams {
    parameters.not_before = OffsetDateTime::now_utc() - Duration::days(30);
    parameters.not_after = OffsetDateTime::now_utc() - Duration::days(1);
    parameters
}

fn signed(
    parameters: &CertificateParams,
    issuer: &Issuer,
    algorithm: &'static SignatureAlgorithm,
) -> Identity {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = parameters.signed_by(&key, issuer).unwrap();
    Identity { chain_pem: certificate.pem() + &issuer.pem(), key_pem: key.serialize_pem() }
}

fn self_signed(parameters: &CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    Identity { chain_pem: parameters.self_signed(&key).unwrap().pem(), key_pem: key.serialize_pem() }
}

fn first_certificate(chain_pem: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let (first, _) = chain_pem.split_once(END).unwrap();
    format!("{first}{END}\n")
}
