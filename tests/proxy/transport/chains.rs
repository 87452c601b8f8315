//! What `check` and the metrics say of the server's own certificates: their end, links, names and root.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use xks_harness::binary::program;
use xks_harness::pki::TestCa;
use xks_harness::{Proxy, Setup, SoftHsm};

const HOST: &str = "xks.example.com";
const LABELS: [&str; 5] = [
    "broken_chain",
    "untrusted_root",
    "endpoint_not_in_san",
    "endpoint_not_common_name",
    "wildcard_common_name",
];

/// A server's certificate, and what is behind it in the chain file.
struct Case {
    what: &'static str,
    issuer: TestCa,
    common_name: &'static str,
    host: &'static str,
    days: u64,
    behind: String,
    oddities: &'static [&'static str],
    said: &'static str,
}

impl Case {
    /// One that is as KMS wants it, as far as can be seen.
    fn good() -> Self {
        Self {
            what: "good",
            issuer: TestCa::named_like_amazons(),
            common_name: HOST,
            host: HOST,
            days: 300,
            behind: String::new(),
            oddities: &[],
            said: "is valid for 299 more days",
        }
    }

    /// Files in the token's folder, as they stand in a configuration.
    fn setup(&self, token: &SoftHsm) -> Setup {
        // Not on the stroke of a day.
        let not_after = SystemTime::now() + Duration::from_secs((self.days * 24 - 1) * 3600);
        let pair = self.issuer.issue_server(self.common_name, self.host, not_after);
        let folder = token.configuration().parent().unwrap().to_owned();
        let write = |name: &str, content: String| -> PathBuf {
            std::fs::write(folder.join(name), content).unwrap();
            folder.join(name)
        };
        let chain = write("chain.pem", pair.certificate + &self.behind);
        let key = write("chain.key", pair.key);
        let certificates = format!("[{{ chain_file = {chain:?}, key_file = {key:?} }}]");
        let server = format!("lame_duck_secs = 0\nendpoint = {HOST:?}");
        Setup { certificates, server, ..Setup::default() }
    }
}

fn cases() -> Vec<Case> {
    let private = || TestCa::new("a private CA");
    let issuer = private();
    let behind = issuer.pem();
    let with_issuer = Case {
        what: "with its private issuer",
        issuer,
        behind,
        oddities: &["untrusted_root"],
        said: "notice  certificate CHAIN: the chain ends at \"CN=a private CA\", which is not among the roots that KMS trusts",
        ..Case::good()
    };
    vec![
        Case::good(),
        with_issuer,
        Case {
            what: "near its end",
            days: 29,
            said: "notice  certificate CHAIN is valid for 28 more days",
            ..Case::good()
        },
        Case {
            what: "no issuer",
            issuer: private(),
            oddities: &["untrusted_root"],
            said: "an intermediate certificate is missing, or KMS will refuse it",
            ..Case::good()
        },
        Case {
            what: "another's issuer",
            issuer: private(),
            behind: TestCa::named_like_amazons().pem(),
            oddities: &["broken_chain"],
            said: "the chain is broken: certificate 1 is not issued by the one after it",
            ..Case::good()
        },
        Case {
            what: "another host",
            host: "other.example.com",
            oddities: &["endpoint_not_in_san"],
            said: "\"xks.example.com\" is not among its subject alternative names",
            ..Case::good()
        },
        Case {
            what: "another common name",
            common_name: "other.example.com",
            oddities: &["endpoint_not_common_name"],
            said: "\"xks.example.com\" is not its common name",
            ..Case::good()
        },
        Case {
            what: "a wildcard",
            common_name: "*.example.com",
            host: "*.example.com",
            oddities: &["wildcard_common_name"],
            said: "its common name is a wildcard: KMS publishes no days to expire",
            ..Case::good()
        },
    ]
}

#[tokio::test]
async fn check_and_the_metrics_say_what_kms_might_take_offence_at() {
    for case in cases() {
        let what = case.what;
        let token = Arc::new(SoftHsm::with_keys());
        let setup = case.setup(&token);
        let chain = token.configuration().parent().unwrap().join("chain.pem").display().to_string();
        let folder = tempfile::tempdir().unwrap();
        let config = setup.write(folder.path(), &token);
        let output =
            Command::new(program("xks-proxy")).arg("check").arg("--config").arg(config).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(&case.said.replace("CHAIN", &chain)), "{what}: {said}");
        let notices = said.lines().filter(|line| line.starts_with("notice  certificate"));
        let is_ending = usize::from(case.days < 30);
        assert_eq!(notices.count(), case.oddities.len() + is_ending, "{what}: {said}");
        assert!(
            !said.lines().any(|line| line.starts_with("FAULT") && line.contains("certificate")),
            "{said}"
        );
        let proxy = Proxy::start_without_waiting(&setup, token);
        for label in LABELS {
            let metric = format!("xks_certificate_oddity{{certificate=\"0\",oddity=\"{label}\"}}");
            let is_so = f64::from(u8::from(case.oddities.contains(&label)));
            assert_eq!(proxy.metric(&metric).await, is_so, "{what}: {label}");
        }
        let end = proxy
            .metric("xks_certificate_not_after_timestamp_seconds{certificate=\"0\",part=\"leaf\"}")
            .await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let days = (end - now) / (24.0 * 3600.0);
        #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
        let expected = case.days as f64;
        assert!((expected - 1.0..=expected).contains(&days), "{what}: {days}");
    }
}

/// What handshakes are made of is always said.
#[test]
fn check_says_what_tls_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let config = Setup::default().write(folder.path(), &SoftHsm::with_keys());
    let output =
        Command::new(program("xks-proxy")).arg("check").arg("--config").arg(config).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find(|line| line.contains("TLS by aws-lc-rs")).unwrap();
    let fips = if cfg!(feature = "fips") { "aws-lc-rs, in FIPS mode" } else { "aws-lc-rs, not in FIPS mode" };
    assert_eq!(line.contains("CHACHA20"), super::HAS_CHACHA20, "{line}");
    for part in [fips, "TLS13_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "X25519MLKEM768"]
    {
        assert!(line.contains(part), "{line}");
    }
}
