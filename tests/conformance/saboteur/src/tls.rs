//! TLS of both listeners: the specification's four suites, and for mTLS the rule on client certificates.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

use crate::fault::Fault;
use crate::pki::{Identity, Pki, kms_name};
use crate::proxy::Proxy;
use crate::setup::REGION;

const REQUIRED_SUITES: [CipherSuite; 4] = [
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
];

const AES_128_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
];

/// The configuration of a listener.
pub(crate) fn server_config(proxy: &Arc<Proxy>, is_mtls: bool) -> ServerConfig {
    let mut provider = aws_lc_rs::default_provider();
    let suites: &[_] =
        if proxy.has(Fault::RequiredSuitesMissing) { &AES_128_SUITES } else { &REQUIRED_SUITES };
    provider.cipher_suites.retain(|suite| suites.contains(&suite.suite()));
    let provider = Arc::new(provider);
    let certificates = identities(proxy).into_iter().map(|identity| certified_key(identity, &provider));
    let certificates = Arc::new(Certificates(certificates.collect()));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if is_mtls {
        builder.with_client_cert_verifier(Arc::new(KmsAlone::new(Arc::clone(proxy), provider)))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec()];
    if !proxy.has(Fault::Http1Refused) {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    config
}

fn identities(proxy: &Proxy) -> Vec<&'static Identity> {
    let pki = Pki::shared();
    match () {
        () if proxy.has(Fault::ServerCertificateExpired) => vec![&pki.expired],
        () if proxy.has(Fault::ServerCertificateOfAnotherName) => vec![&pki.of_another_name],
        () if proxy.has(Fault::ServerCertificateSelfSigned) => vec![&pki.self_signed],
        () if proxy.has(Fault::IntermediateMissing) => vec![&pki.without_intermediate],
        () => vec![&pki.ecdsa, &pki.rsa],
    }
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Arc<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(identity.chain_pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    Arc::new(CertifiedKey::from_der(chain, key, provider).unwrap())
}

/// Chooses by what the client can verify, so that both suites of TLS 1.2 are served.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.0.iter().find(|certified| certified.key.choose_scheme(schemes).is_some()).cloned()
    }
}

/// Takes KMS's certificate: of our root, valid, and with one common name, that of KMS in our Region.
struct KmsAlone {
    proxy: Arc<Proxy>,
    chain: Arc<dyn ClientCertVerifier>,
}

impl KmsAlone {
    fn new(proxy: Arc<Proxy>, provider: Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(Pki::shared().root_pem.as_bytes()).unwrap()).unwrap();
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        Self { proxy, chain }
    }

    fn is_forgiven(&self, error: &Error) -> bool {
        let Error::InvalidCertificate(error) = error else { return false };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                self.proxy.has(Fault::ExpiredClientAccepted)
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                self.proxy.has(Fault::ClientIssuerUnchecked)
            }
            _ => false,
        }
    }

    fn takes_name(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let names: Vec<_> =
            certificate.subject().iter_common_name().map(AttributeTypeAndValue::as_str).collect();
        let expected = kms_name(REGION);
        match names.as_slice() {
            _ if self.proxy.has(Fault::ClientNameUnchecked) => true,
            names if self.proxy.has(Fault::AnyClientNameOfSeveral) => {
                names.iter().any(|name| name.as_ref().is_ok_and(|name| *name == expected))
            }
            [Ok(name)] if self.proxy.has(Fault::ClientNameByEnding) => name.ends_with(&expected),
            [Ok(name)] if self.proxy.has(Fault::ClientNameOfAnyRegion) => {
                name.starts_with("cks.kms.") && name.ends_with(".amazonaws.com")
            }
            [Ok(name)] => *name == expected,
            _ => false,
        }
    }
}

impl std::fmt::Debug for KmsAlone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KmsAlone")
    }
}

impl ClientCertVerifier for KmsAlone {
    fn client_auth_mandatory(&self) -> bool {
        !self.proxy.has(Fault::ClientCertificateOptional)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Without hints, a client shows the certificate that it was told to show.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.chain.verify_client_cert(certificate, intermediates, now) {
            Err(error) if !self.is_forgiven(&error) => return Err(error),
            _ => {}
        }
        if self.takes_name(certificate) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
