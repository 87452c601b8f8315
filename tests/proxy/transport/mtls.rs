//! Client certificates: who is admitted, and what everybody else is told, and that resuming a session changes nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xks_harness::client::tls;
use xks_harness::pki::{PemPair, TestCa, self_signed_client};
use xks_harness::proxy::main_store;
use xks_harness::{Http, Pki, Proxy, Setup, SoftHsm, XksRequest};

use super::PING;

const KMS: &str = "cks.kms.eu-central-1.amazonaws.com";
const CA: &str = "client CA";

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

/// A proxy that admits KMS of one Region, and a client of another name, by certificates of `ca`.
async fn proxy(ca: &TestCa) -> Proxy {
    let token = Arc::new(SoftHsm::with_keys());
    let roots = token.configuration().parent().unwrap().join("clients.pem");
    std::fs::write(&roots, ca.pem()).unwrap();
    let clients = format!(
        "client_certificates = {{ ca_file = {:?}, regions = [\"eu-central-1\"], common_names = [\"tester\"] }}",
        roots.display().to_string()
    );
    let server = format!("lame_duck_secs = 0\n{clients}");
    // Reloads are the test's doing alone.
    let more = "[reload]\nwatch = false\n".to_owned();
    Proxy::start_on(&Setup { server, more, ..Setup::default() }, token).await
}

/// Who comes, what is shown, and the reason that refuses it: `None` where it is admitted.
type Case = (&'static str, Option<PemPair>, Option<&'static str>);

fn matrix(ca: &TestCa) -> Vec<Case> {
    let issue = |names: &[&str]| Some(ca.issue(names, in_an_hour()));
    let past = SystemTime::now() - Duration::from_secs(60);
    let (other, namesake) = (TestCa::new("another CA"), TestCa::new(CA));
    vec![
        ("no certificate", None, Some("none")),
        ("self-signed", Some(self_signed_client(KMS, in_an_hour())), Some("unknown_issuer")),
        ("another CA's", Some(other.issue(&[KMS], in_an_hour())), Some("unknown_issuer")),
        ("another CA's of the same name", Some(namesake.issue(&[KMS], in_an_hour())), Some("chain")),
        ("another Region's", issue(&["cks.kms.us-east-1.amazonaws.com"]), Some("common_name")),
        ("a wildcard", issue(&["cks.kms.*.amazonaws.com"]), Some("common_name")),
        ("a longer name", issue(&["cks.kms.eu-central-1.amazonaws.com.example"]), Some("common_name")),
        ("other letters", issue(&["CKS.kms.eu-central-1.amazonaws.com"]), Some("common_name")),
        ("two common names", issue(&[KMS, "tester"]), Some("common_names")),
        ("the right one twice", issue(&[KMS, KMS]), Some("common_names")),
        ("no common name", issue(&[]), Some("common_names")),
        ("expired", Some(ca.issue(&[KMS], past)), Some("expired")),
        ("a server's", Some(Pki::shared().ecdsa.clone()), Some("chain")),
        ("KMS", issue(&[KMS]), None),
        ("the other name", issue(&["tester"]), None),
    ]
}

fn config(version: &'static SupportedProtocolVersion, shown: Option<&PemPair>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(Pki::shared().roots());
    let Some(pair) = shown else { return builder.with_no_client_auth() };
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    builder.with_client_auth_cert(vec![certificate], key).unwrap()
}

/// Connects and asks; how the handshake went, or the error that ended it or the first read behind it.
async fn visit(proxy: &Proxy, config: &ClientConfig) -> Result<HandshakeKind, String> {
    let mut stream = tls(proxy.address, config.clone()).await.map_err(|error| error.to_string())?;
    let kind = stream.get_ref().1.handshake_kind().unwrap();
    let mut answer = String::new();
    // Where the proxy has closed already, the read tells why.
    let _ = stream.write_all(PING).await;
    let end = stream.read_to_string(&mut answer).await;
    if answer.starts_with("HTTP/1.1 200") { Ok(kind) } else { Err(format!("{end:?}")) }
}

#[tokio::test]
async fn whoever_is_not_admitted_is_told_handshake_failure_fresh_and_resumed() {
    let ca = TestCa::new(CA);
    let proxy = proxy(&ca).await;
    for version in rustls::ALL_VERSIONS {
        for (who, shown, reason) in matrix(&ca) {
            // Clones share the store of sessions.
            let config = config(version, shown.as_ref());
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let label = reason.unwrap_or("admitted");
                let metric = format!("xks_client_certificate_failures_total{{reason=\"{label}\"}}");
                let before = proxy.metric(&metric).await;
                let end = visit(&proxy, &config).await;
                match (reason, &end) {
                    (None, Ok(kind)) => assert_eq!(*kind, expected, "{who} {version:?}"),
                    (Some(_), Err(error)) => {
                        assert!(error.contains("HandshakeFailure"), "{who} {version:?}: {error}");
                        // The client may read the alert before the proxy has counted it.
                        let counted = format!("{metric} {}\n", before + 1.0);
                        proxy.wait_for("/metrics", |_, text| text.contains(&counted)).await;
                    }
                    _ => panic!("{who} {version:?} {expected:?}: {end:?}"),
                }
            }
        }
    }
    let line = proxy.wait_for_log(|line| line["message"] == "a client was cut off in the TLS handshake");
    assert!(line["reason"].as_str().unwrap().contains("showed no certificate"), "{line}");
    assert!(line["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    let _ =
        proxy.wait_for_log(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("us-east-1")));
}

/// A client of another make reads the alert too.
#[tokio::test]
async fn curl_is_told_handshake_failure() {
    let ca = TestCa::new(CA);
    let proxy = proxy(&ca).await;
    for (who, shown, reason) in matrix(&ca) {
        let files = shown.as_ref().map(|pair| write(proxy.folder(), pair));
        for version in ["1.2", "1.3"] {
            let (is_served, trace) = curl(&proxy, version, files.as_ref()).await;
            assert_eq!(is_served, reason.is_none(), "{who} {version}: {trace}");
            let is_told =
                trace.contains("alert, handshake failure") || trace.contains("alert handshake failure");
            assert_eq!(is_told, reason.is_some(), "{who} {version}: {trace}");
        }
    }
}

fn write(folder: &Path, pair: &PemPair) -> (PathBuf, PathBuf) {
    let files = (folder.join("client.pem"), folder.join("client.key"));
    std::fs::write(&files.0, &pair.certificate).unwrap();
    std::fs::write(&files.1, &pair.key).unwrap();
    files
}

async fn curl(proxy: &Proxy, version: &str, files: Option<&(PathBuf, PathBuf)>) -> (bool, String) {
    let mut curl = Command::new("curl");
    curl.args(["-4sv", "--max-time", "60", "--tls-max", version, &format!("--tlsv{version}")]);
    curl.arg("--cacert").arg(proxy.folder().join("ca.pem"));
    if let Some((certificate, key)) = files {
        curl.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    curl.arg(format!("https://localhost:{}/ping", proxy.address.port()));
    let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A session does not outlive the certificate that it was opened with.
#[tokio::test]
async fn a_session_cannot_be_resumed_once_its_certificate_has_expired() {
    let ca = TestCa::new(CA);
    let proxy = proxy(&ca).await;
    for version in rustls::ALL_VERSIONS {
        // As long as this machine needs to connect before the certificate expires.
        let mut valid_secs = 4;
        loop {
            let not_after = SystemTime::now() + Duration::from_secs(valid_secs);
            let config = config(version, Some(&ca.issue(&[KMS], not_after)));
            if visit(&proxy, &config).await != Ok(HandshakeKind::Full) {
                valid_secs *= 2;
                continue;
            }
            // Certificates know whole seconds.
            let expired = not_after + Duration::from_secs(1);
            tokio::time::sleep(expired.duration_since(SystemTime::now()).unwrap_or_default()).await;
            let error = visit(&proxy, &config).await.unwrap_err();
            assert!(error.contains("HandshakeFailure"), "{version:?}: {error}");
            break;
        }
    }
    let expired =
        |line: &serde_json::Value| line["reason"].as_str().is_some_and(|reason| reason.contains("expired"));
    let _ = proxy.wait_for_log(expired);
}

/// The subject stands in the log line of each request.
#[tokio::test]
async fn a_request_says_whose_certificate_it_came_with() {
    let ca = TestCa::new(CA);
    let proxy = proxy(&ca).await;
    let pair = ca.issue(&[KMS], in_an_hour());
    for http in Http::BOTH {
        let mut config = config(&rustls::version::TLS13, Some(&pair));
        config.alpn_protocols = vec![if http == Http::One { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
        let mut connection = xks_harness::Connection::open_with(proxy.address, http, config).await.unwrap();
        connection.send(&XksRequest::metadata(&main_store(), "demo")).await.ok();
    }
    let lines = || proxy.log_lines().into_iter().filter(|line| line["operation"] == "GetKeyMetadata");
    let _ = proxy.wait_for_log(|line| line["operation"] == "GetKeyMetadata" && line["http"] == "2");
    for line in lines() {
        assert_eq!(line["certificate_subject"], format!("CN={KMS}"), "{line}");
    }
}

/// Other roots by a reload: who was admitted by the old ones is not any more, with or without a session.
#[tokio::test]
async fn a_session_does_not_outlive_a_change_of_the_roots() {
    let (old, new) = (TestCa::new(CA), TestCa::new(CA));
    let proxy = proxy(&old).await;
    let roots = proxy.token.configuration().parent().unwrap().join("clients.pem");
    let mut reloads = 0;
    for version in rustls::ALL_VERSIONS {
        let before = config(version, Some(&old.issue(&[KMS], in_an_hour())));
        assert_eq!(visit(&proxy, &before).await, Ok(HandshakeKind::Full));
        assert_eq!(visit(&proxy, &before).await, Ok(HandshakeKind::Resumed));
        let after = config(version, Some(&new.issue(&[KMS], in_an_hour())));
        for (pem, admitted, refused) in [(new.pem(), &after, &before), (old.pem(), &before, &after)] {
            std::fs::write(&roots, pem).unwrap();
            proxy.signal("HUP");
            reloads += 1;
            let reloaded = format!("xks_config_reloads_total{{outcome=\"ok\"}} {reloads}\n");
            proxy.wait_for("/metrics", |_, text| text.contains(&reloaded)).await;
            let error = visit(&proxy, refused).await.unwrap_err();
            assert!(error.contains("HandshakeFailure"), "{version:?}: {error}");
            assert_eq!(visit(&proxy, admitted).await, Ok(HandshakeKind::Full), "{version:?}");
        }
    }
}
