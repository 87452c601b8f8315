//! Which certificate is served to whom, in which forms keys are read, and what cannot be served.

use std::process::Command;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CipherSuite, DigitallySignedStruct, Error, SignatureScheme};
use xks_harness::binary::program;
use xks_harness::client::tls;
use xks_harness::{Pki, Proxy, Setup, SoftHsm};

use super::{Abilities, key_of, ping};

#[tokio::test]
async fn the_certificate_is_one_that_the_client_can_verify() {
    const RSA: [SignatureScheme; 2] = [SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256];
    const ECDSA: [SignatureScheme; 1] = [SignatureScheme::ECDSA_NISTP256_SHA256];
    let proxy = Proxy::start(&Setup::default()).await;
    for version in rustls::ALL_VERSIONS {
        for (schemes, key) in [(&RSA[..], "RSA"), (&ECDSA, "ECDSA")] {
            let mut config = Abilities { versions: vec![version], ..Abilities::default() }.config();
            config.dangerous().set_certificate_verifier(Arc::new(Offers(schemes.to_vec())));
            let stream = tls(proxy.address, config).await.unwrap();
            assert_eq!(key_of(&stream), key, "{version:?}");
        }
    }
}

/// Says that it can verify these signatures alone. It verifies nothing: the test looks at which certificate comes.
#[derive(Debug)]
struct Offers(Vec<SignatureScheme>);

impl ServerCertVerifier for Offers {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// PKCS#8 is what all other tests have.
#[tokio::test]
async fn keys_in_pkcs1_and_sec1_serve_too() {
    let token = Arc::new(SoftHsm::with_keys());
    let folder = token.configuration().parent().unwrap().to_owned();
    Pki::shared().write(&folder);
    for (name, label) in [("rsa", "BEGIN RSA PRIVATE KEY"), ("ecdsa", "BEGIN EC PRIVATE KEY")] {
        let (from, to) = (folder.join(format!("{name}.key")), folder.join(format!("{name}-traditional.key")));
        let mut openssl = Command::new("openssl");
        openssl.args(["pkey", "-traditional", "-in"]).arg(&from).arg("-out").arg(&to);
        assert!(openssl.status().unwrap().success());
        assert!(std::fs::read_to_string(&to).unwrap().contains(label));
    }
    let certificate = |name: &str| {
        let path = |suffix: &str| folder.join(format!("{name}{suffix}")).display().to_string();
        format!("{{ chain_file = {:?}, key_file = {:?} }}", path(".pem"), path("-traditional.key"))
    };
    let certificates = format!("[{}, {}]", certificate("ecdsa"), certificate("rsa"));
    let proxy = Proxy::start_on(&Setup { certificates, ..Setup::default() }, token).await;
    for (suite, key) in [
        (cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDSA"),
        (cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "RSA"),
    ] {
        let mut stream = Abilities::of_suite(suite).connect(proxy.address).await.unwrap();
        assert_eq!(key_of(&stream), key);
        assert!(ping(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn the_whole_chain_is_sent() {
    let token = Arc::new(SoftHsm::with_keys());
    let folder = token.configuration().parent().unwrap().to_owned();
    Pki::shared().write(&folder);
    let chain = Pki::shared().rsa.certificate.clone() + &Pki::shared().ca_pem();
    std::fs::write(folder.join("chain.pem"), chain).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let certificates =
        format!("[{{ chain_file = {:?}, key_file = {:?} }}]", path("chain.pem"), path("rsa.key"));
    let proxy = Proxy::start_on(&Setup { certificates, ..Setup::default() }, token).await;
    let stream = Abilities::default().connect(proxy.address).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap().len(), 2);
    // An RSA certificate alone serves TLS 1.3 and the RSA suite of TLS 1.2.
    let negotiated = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert!(
        [CipherSuite::TLS13_AES_256_GCM_SHA384, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256]
            .contains(&negotiated)
    );
}

/// Certificates and keys that cannot be served are the configuration's fault: `check` and `serve` say which file, end
/// with 2, and show nothing of a key.
#[test]
fn certificates_that_cannot_be_served_are_reported_by_file() {
    let pki = Pki::shared();
    let truncated = pki.rsa.key[..pki.rsa.key.len() / 2].to_owned();
    let swapped_chain = pki.ca_pem() + &pki.rsa.certificate;
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (name, file, content, expected) in [
        (
            "another's key",
            "rsa.key",
            Some(pki.ecdsa.key.as_str()),
            "rsa.key does not belong to the first certificate of",
        ),
        ("an empty chain", "rsa.pem", Some(""), "cannot read a PEM certificate chain from"),
        ("an empty key", "rsa.key", Some(""), "cannot read a PEM private key"),
        ("no chain file", "rsa.pem", None, "cannot read a PEM certificate chain from"),
        ("no key file", "rsa.key", None, "cannot read a PEM private key"),
        (
            "a key in the chain's place",
            "rsa.pem",
            Some(&pki.rsa.key),
            "cannot read a PEM certificate chain from",
        ),
        (
            "a certificate in the key's place",
            "rsa.key",
            Some(&pki.rsa.certificate),
            "cannot read a PEM private key",
        ),
        ("half a key", "rsa.key", Some(&truncated), "cannot read a PEM private key"),
        ("an encrypted key", "rsa.key", Some(encrypted), "cannot read a PEM private key"),
        ("the issuer first", "rsa.pem", Some(&swapped_chain), "does not belong to the first certificate of"),
        ("no PEM", "rsa.pem", Some("\0\x01\x02"), "cannot read a PEM certificate chain from"),
        (
            "PEM without DER",
            "rsa.pem",
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "cannot read a PEM certificate chain from",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = Setup::default().write(folder.path(), &SoftHsm::with_keys());
        let path = folder.path().join(file);
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        for command in ["check", "serve"] {
            let output =
                Command::new(program("xks-proxy")).args([command, "--config"]).arg(&config).output().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(output.status.code(), Some(2), "{name}: {text}");
            assert!(text.contains(expected) && text.contains(&*path.to_string_lossy()), "{name}: {text}");
            assert!(
                !pki.rsa
                    .key
                    .lines()
                    .chain(pki.ecdsa.key.lines())
                    .any(|line| line.len() > 40 && text.contains(line))
            );
        }
    }
}
