//! What is fuzzed: each target takes any bytes, and panics where something is wrong beyond a panic of what it tries.
//!
//! `tests/corpora.rs` runs the committed corpora through the same functions with every `cargo test`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use xks_proxy::audit::{self, Expected, Hash, Hasher};
use xks_proxy::config::{Config, read_policy_cases};
use xks_proxy::operations::is_own_ciphertext_metadata;
use xks_proxy::policy::{DenialReason, KeyOperation, Policies, PolicySource, Query};
use xks_proxy::server::client_address;
use xks_proxy::sigv4::{Credential, Credentials, SignedHead, check_head, claimed_access_key_id};
use xks_spec::credential::{AccessKeyId, SecretAccessKey};
use xks_spec::request::{DecryptRequest, EncryptRequest, SizeLimits, parse_metadata_only};
use xks_spec::{ApiPath, ExternalKeyId, Operation, RequestMetadata, UriPathPrefix};

/// What is done with some bytes.
pub(crate) type Target = fn(&[u8]);

/// Each target and its name.
pub(crate) const TARGETS: [(&str, Target); 12] = [
    ("authorization", authorization),
    ("canonical_request", canonical_request),
    ("path", path),
    ("encrypt_body", encrypt_body),
    ("decrypt_body", decrypt_body),
    ("metadata_body", metadata_body),
    ("config", config),
    ("ciphertext_metadata", ciphertext_metadata),
    ("proxy_header", proxy_header),
    ("policy_text", policy_text),
    ("policy_metadata", policy_metadata),
    ("audit_verify", audit_verify),
];

const LIMITS: SizeLimits = SizeLimits { max_plaintext_bytes: 4300, max_aad_bytes: 8192 };
const ACCESS_KEY_ID: &str = "FUZZTESTKEYID234567ABCDEFG";
/// 2026-01-02 03:04:05 UTC, the time of the seeds.
const NOW_SECS: u64 = 1_767_323_045;
const DATE: &str = "20260102T030405Z";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_SECS)
}

fn credentials() -> &'static Credentials {
    static CREDENTIALS: OnceLock<Credentials> = OnceLock::new();
    CREDENTIALS.get_or_init(|| {
        let secret = SecretAccessKey::parse("fuzz+secret/fuzz+secret/fuzz+secret/fuzz+secr").unwrap();
        let credential = Credential::new(AccessKeyId::parse(ACCESS_KEY_ID).unwrap(), &secret, None);
        Credentials::new(vec![credential]).unwrap()
    })
}

/// No signature holds that was made without the secret.
fn assert_refused(head: SignedHead<'_>, body: &[u8]) {
    if let Ok(pending) = check_head(head, credentials(), now()) {
        assert!(pending.verify(body).is_err(), "authenticated without the secret");
    }
    if let Some(claimed) = claimed_access_key_id(head.headers) {
        assert!(claimed.chars().count() <= 64);
    }
}

/// The value of the Authorization header, on a head that is right otherwise.
fn authorization(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("localhost"));
    headers.insert("x-amz-date", HeaderValue::from_static(DATE));
    headers.insert("authorization", value);
    let head = SignedHead {
        method: &Method::POST,
        path: "/a/kms/xks/v1/health",
        headers: &headers,
        authority: None,
    };
    assert_refused(head, b"{}");
}

/// A path, headers line by line, an empty line, and a body.
fn canonical_request(data: &[u8]) {
    let (head, body) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &[][..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let Some(path) = lines.next().and_then(|line| std::str::from_utf8(line).ok()) else { return };
    let mut headers = HeaderMap::new();
    let mut authority = None;
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':').filter(|colon| *colon > 0) else {
            continue;
        };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else {
            continue;
        };
        if name == "authority" {
            authority = value.to_str().ok().map(str::to_owned);
        } else {
            headers.append(name, value);
        }
    }
    let head = SignedHead { method: &Method::POST, path, headers: &headers, authority: authority.as_deref() };
    assert_refused(head, body);
}

/// What is accepted as a path is made of the parts that are found in it, and of nothing else.
fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(path) = ApiPath::parse(text) {
        let segment = path.operation.path_segment();
        let made = match &path.external_key_id {
            Some(id) => format!("{}/kms/xks/v1/keys/{id}/{segment}", path.prefix),
            None => format!("{}/kms/xks/v1/{segment}", path.prefix),
        };
        assert_eq!(made, text);
        assert_eq!(path.external_key_id.is_none(), path.operation == Operation::GetHealthStatus);
    }
    if let Ok(prefix) = UriPathPrefix::parse(text) {
        assert_eq!(prefix.as_str(), text);
        let health = format!("{text}/kms/xks/v1/health");
        assert_eq!(ApiPath::parse(&health).map(|path| path.prefix.to_owned()).ok().as_deref(), Some(text));
    }
    if let Ok(id) = ExternalKeyId::parse(text) {
        assert_eq!(id.as_str(), text);
    }
}

fn encrypt_body(data: &[u8]) {
    let mut metadata = None;
    if let Ok(request) = EncryptRequest::parse(data, LIMITS, &mut metadata) {
        assert!((1..=LIMITS.max_plaintext_bytes).contains(&request.plaintext.len()));
        assert!(request.aad.len() <= LIMITS.max_aad_bytes);
        assert_complete(metadata.as_ref(), Operation::Encrypt);
    }
}

fn decrypt_body(data: &[u8]) {
    const TAG_BYTES: usize = 16;
    let mut metadata = None;
    if let Ok(request) = DecryptRequest::parse(data, LIMITS, &mut metadata) {
        let length = request.ciphertext_and_tag.len();
        assert!((1 + TAG_BYTES..=LIMITS.max_plaintext_bytes + TAG_BYTES).contains(&length));
        assert!([12, 16].contains(&request.iv.len()));
        assert!(request.ciphertext_metadata.len() <= 20);
        assert!(request.aad.is_empty() || request.has_aad);
        assert_complete(metadata.as_ref(), Operation::Decrypt);
    }
}

fn metadata_body(data: &[u8]) {
    for operation in [Operation::GetKeyMetadata, Operation::GetHealthStatus] {
        let mut metadata = None;
        if parse_metadata_only(data, operation, &mut metadata).is_ok() {
            assert_complete(metadata.as_ref(), operation);
        }
    }
}

/// What is kept of a body that is right: it says the same when it is written and read again.
fn assert_complete(metadata: Option<&RequestMetadata>, operation: Operation) {
    let metadata = metadata.expect("a body that is right has metadata");
    metadata.require_fields(operation).expect("a required field is missing");
    let text = serde_json::to_string(metadata).unwrap();
    assert_eq!(serde_json::from_str::<RequestMetadata>(&text).ok().as_ref(), Some(metadata));
}

/// A configuration, and a file of cases: faults lie inside the document, and configurations say so where there are none.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.matches('\n').count() + 1;
    if let Err(faults) = read_policy_cases(text) {
        assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line)));
    }
    // A configuration names files, and devices are files.
    if ["/dev", "/proc", "/sys", ".."].iter().any(|outside| text.contains(outside)) {
        return;
    }
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().unwrap());
    match Config::parse(text, folder.path()) {
        Ok(_) => panic!("it names certificates that are not there"),
        Err(faults) => {
            assert!(!faults.is_empty());
            assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line)));
        }
    }
}

/// A format byte and a version's number, and nothing else.
fn ciphertext_metadata(data: &[u8]) {
    assert_eq!(is_own_ciphertext_metadata(data), data.len() == 5 && data[0] == 1);
}

/// PROXY protocol, held against an implementation that shares no code with ours.
fn proxy_header(data: &[u8]) {
    let balancer: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let networks = ["192.0.2.0/24".parse().unwrap()];
    let mut stream = data;
    let found = client_address(&mut stream, balancer, &networks).now_or_never().expect("all bytes are there");
    let Ok(found) = found else { return };
    assert_eq!(data.len() - stream.len(), 16 + usize::from(u16::from_be_bytes([data[14], data[15]])));
    if data[12] & 0x0f == 0 {
        // LOCAL: what it says of an address is to be ignored, even what ppp cannot read.
        assert_eq!((found.client, found.balancer), (balancer, None));
        return;
    }
    let header = ppp::v2::Header::try_from(data).expect("taken, though it is no PROXY header");
    match (header.command, header.addresses) {
        (ppp::v2::Command::Proxy, ppp::v2::Addresses::IPv4(pair)) => {
            assert_eq!(found.client, SocketAddr::from((pair.source_address, pair.source_port)));
            assert_eq!(found.balancer, Some(balancer));
        }
        (ppp::v2::Command::Proxy, ppp::v2::Addresses::IPv6(pair)) => {
            assert_eq!(found.client, SocketAddr::from((pair.source_address, pair.source_port)));
        }
        (ppp::v2::Command::Proxy, ppp::v2::Addresses::Unix(_)) => {
            panic!("taken, though it is no network address")
        }
        _ => assert_eq!((found.client, found.balancer), (balancer, None)),
    }
}

fn key() -> ExternalKeyId {
    ExternalKeyId::parse("ledger").unwrap()
}

/// Policies that load decide on every kind of caller; arithmetic apart, none of them can fail to be evaluated.
fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(policies) = Policies::load(&[PolicySource { path: PathBuf::from("fuzz"), text: text.to_owned() }])
    else {
        return;
    };
    let ids = policies.ids();
    assert!(!ids.is_empty());
    let has_arithmetic = text.contains(['+', '-', '*']);
    for caller in
        ["arn:aws:sts::1:assumed-role/a/b", "arn:aws:iam::1:root", "AWS Internal", "ec2.amazonaws.com", ""]
    {
        for kms_key in ["arn:aws:kms:r:1:key/k", "none"] {
            let metadata = RequestMetadata {
                aws_principal_arn: Some(caller.to_owned()),
                kms_key_arn: Some(kms_key.to_owned()),
                kms_operation: Some("Decrypt".to_owned()),
                kms_request_id: Some("r".to_owned()),
                ..RequestMetadata::default()
            };
            for operation in KeyOperation::ALL {
                let query = Query { store: "payments", operation, key: &key(), metadata: &metadata };
                match policies.decide(&query) {
                    Ok(policy) => assert!(ids.contains(&policy)),
                    Err(denial) => {
                        assert!(denial.policy.is_none_or(|policy: Arc<str>| ids.contains(&policy)));
                        let has_failed = matches!(denial.reason, DenialReason::EvaluationError(_));
                        assert!(!has_failed || has_arithmetic, "{:?}", denial.reason);
                    }
                }
            }
        }
    }
}

/// The examples of deploy/policies on whatever KMS might say.
fn policy_metadata(data: &[u8]) {
    static EXAMPLES: OnceLock<Policies> = OnceLock::new();
    let examples = EXAMPLES.get_or_init(|| {
        let files = [
            include_str!("../../deploy/policies/base.cedar"),
            include_str!("../../deploy/policies/accounts.cedar"),
            include_str!("../../deploy/policies/kms-key.cedar"),
            include_str!("../../deploy/policies/via-service.cedar"),
            include_str!("../../deploy/policies/vpc-endpoint.cedar"),
        ];
        let source = |text: &str| PolicySource { path: PathBuf::from("example"), text: text.to_owned() };
        Policies::load(&files.map(source)).unwrap()
    });
    let Ok(metadata) = serde_json::from_slice::<RequestMetadata>(data) else { return };
    for operation in KeyOperation::ALL {
        if metadata.require_fields(operation.operation()).is_err() {
            continue;
        }
        let query = Query { store: "payments", operation, key: &key(), metadata: &metadata };
        match examples.decide(&query) {
            Err(denial) => assert!(!matches!(denial.reason, DenialReason::EvaluationError(_)), "{denial}"),
            Ok(_) => {
                let arn = metadata.aws_principal_arn.as_deref().unwrap_or_default();
                let account = arn.split(':').nth(4);
                assert!([Some("111122223333"), Some("444455556666")].contains(&account), "{arn}");
                if operation != KeyOperation::GetKeyMetadata {
                    assert_eq!(metadata.aws_source_vpce.as_deref(), Some("vpce-1a2b3c4d5e6f70819"));
                    assert_eq!(metadata.kms_via_service.as_deref(), Some("s3.eu-central-1.amazonaws.com"));
                }
            }
        }
    }
}

/// The audit log that the seeds are made of.
const AUDIT_LOG: &[u8] = include_bytes!("../corpus/audit_verify/whole");

/// No file that lacks a record of the log is taken for it where its head is expected.
fn audit_verify(data: &[u8]) {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().unwrap());
    let file = folder.path().join("audit.log");
    std::fs::write(&file, data).unwrap();
    let last = AUDIT_LOG.trim_ascii_end();
    let head = Hash::parse(&last[last.len() - 66..last.len() - 2]).expect("a record ends with its hash");
    let hasher = Hasher::new(None);
    let _ = audit::verify(std::slice::from_ref(&file), &hasher, Expected::default());
    let expected = Expected { head: Some(head), ..Expected::default() };
    if audit::verify(&[file], &hasher, expected).is_ok() {
        let mut lines = data.split(|byte| *byte == b'\n');
        for record in last.split(|byte| *byte == b'\n') {
            assert!(lines.any(|line| line == record), "a record is missing or changed");
        }
    }
}
