//! The checks, what each answers, and requests that fail any set of them.

use serde_json::json;
use xks_harness::XksRequest;
use xks_harness::proxy::main_store;
use xks_harness::request::{base64, decrypt_body, encrypt_body, metadata};
use xks_spec::Operation;

use super::pairs::Encrypted;

/// A check that a request can fail, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Check {
    Path = 1,
    Method = 2,
    InFlight = 3,
    Head = 4,
    BodySize = 5,
    BodyTime = 6,
    Signature = 7,
    Quota = 8,
    Fields = 9,
    ValueSize = 10,
    Key = 11,
    Policy = 12,
    Status = 13,
    Usage = 14,
    Version = 15,
    Token = 16,
}

use Check::{
    BodySize, BodyTime, Fields, Head, InFlight, Key, Method, Path, Policy, Quota, Signature, Status, Token,
    Usage, ValueSize, Version,
};

/// Longest body of the default limits: the longest values in Base64, and 40 KiB.
pub(super) const BODY_CAP_BYTES: usize = 5736 + 10_924 + 40 * 1024;

impl Check {
    pub(super) const ALL: [Self; 16] = [
        Path, Method, InFlight, Head, BodySize, BodyTime, Signature, Quota, Fields, ValueSize, Key, Policy,
        Status, Usage, Version, Token,
    ];

    /// The number of the row.
    pub(super) const fn row(self) -> usize {
        self as usize
    }

    /// Status and errorName; `None` where the connection closes without an answer.
    pub(super) const fn answer(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Path => (404, "InvalidUriPathException"),
            Method => (405, "UnsupportedOperationException"),
            InFlight | Quota => (429, "ThrottlingException"),
            Head | Signature => (401, "AuthenticationFailedException"),
            BodySize | ValueSize => (501, "UnsupportedOperationException"),
            BodyTime => return None,
            Fields => (400, "ValidationException"),
            Key => (404, "KeyNotFoundException"),
            Policy => (403, "AccessDeniedException"),
            Status => (400, "InvalidStateException"),
            Usage => (400, "InvalidKeyUsageException"),
            Version | Token => (400, "InvalidCiphertextException"),
        })
    }

    /// What the log says, since several checks share an answer.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Path => "no such path",
            Method => "another method than POST",
            InFlight => "too many requests are in flight",
            Head => "the request's time is",
            BodySize => "the body is longer than",
            BodyTime => "the body did not come in time",
            Signature => "the signature does not match",
            Quota => "request quota is used up",
            Fields => "kmsOperation is required",
            ValueSize => "text is longer than the 4300 bytes",
            Key => "no secret key with that label",
            Policy => "policy not-the-intruder forbids it",
            Status => "is disabled",
            Usage => "the key lacks CKA_",
            Version => "key version 9",
            Token => "tag does not match",
        }
    }

    /// Whether a request for `operation` can fail it.
    pub(super) fn is_of(self, operation: Operation) -> bool {
        match operation {
            Operation::Decrypt => true,
            Operation::Encrypt => self <= Usage,
            Operation::GetKeyMetadata => self <= Fields || [Key, Policy].contains(&self),
            Operation::GetHealthStatus => self <= Fields,
        }
    }

    /// Whether one request can fail both: a key that is not there has no usages.
    pub(super) fn goes_with(self, other: Self) -> bool {
        self != other && ![(Key, Usage), (Usage, Key)].contains(&(self, other))
    }
}

/// Policies of store `main`, which deny a request that fails Policy.
pub(super) const POLICIES: &str = r#"
@id("everybody") permit(principal, action, resource);
@id("not-the-intruder") forbid(principal == Caller::"intruder", action, resource);
"#;

/// Keys of store `main`, one for each set of Key, Status and Usage that a request can fail.
pub(super) const KEYS: &str = r#"
[[stores.keys]]
external_key_id = "good"
label = "demo"
[[stores.keys]]
external_key_id = "absent"
label = "absent"
[[stores.keys]]
external_key_id = "disabled"
label = "demo-2"
enabled = false
[[stores.keys]]
external_key_id = "useless-to-encrypt"
label = "decrypt-only"
[[stores.keys]]
external_key_id = "useless-to-decrypt"
label = "encrypt-only"
[[stores.keys]]
external_key_id = "absent-disabled"
label = "absent-2"
enabled = false
[[stores.keys]]
external_key_id = "disabled-useless"
label = "no-usage"
enabled = false
"#;

fn key_of(operation: Operation, faults: &[Check]) -> &'static str {
    match [Key, Status, Usage].map(|check| faults.contains(&check)) {
        [false, false, false] => "good",
        [true, false, _] => "absent",
        [true, true, _] => "absent-disabled",
        [false, true, false] => "disabled",
        [false, false, true] if operation == Operation::Encrypt => "useless-to-encrypt",
        [false, false, true] => "useless-to-decrypt",
        [false, true, true] => "disabled-useless",
    }
}

/// A request that fails these checks and no others; InFlight and Quota are the proxy's state, and BodyTime is how it is
/// sent.
pub(super) fn request_failing(operation: Operation, faults: &[Check], encrypted: &Encrypted) -> XksRequest {
    let fails = |check| faults.contains(&check);
    let (mut body, text_field) = match operation {
        Operation::Encrypt => (encrypt_body(b"secret", None, true), "plaintext"),
        Operation::Decrypt => (decrypt_body(&encrypted.0, None), "ciphertext"),
        _ => (json!({ "requestMetadata": metadata("KmsHealthCheck") }), "none"),
    };
    if fails(Fields) {
        body["requestMetadata"].as_object_mut().unwrap().remove("kmsOperation");
    }
    if fails(Policy) {
        body["requestMetadata"]["awsPrincipalArn"] = json!("intruder");
    }
    if fails(ValueSize) {
        body[text_field] = json!(base64(&[0; 4301]));
    }
    if fails(Version) {
        body["ciphertextMetadata"] = json!(base64(&[1, 0, 0, 0, 9]));
    }
    if fails(Token) {
        body["authenticationTag"] = json!(base64(&[0; 16]));
    }
    if fails(BodySize) {
        body["padding"] = json!("x".repeat(BODY_CAP_BYTES));
    }
    let mut signing = main_store().signing;
    if fails(Head) {
        signing.skew_secs = -400;
    }
    if fails(Signature) {
        signing.secret_access_key = "x".repeat(43);
    }
    let prefix = if fails(Path) { "/nowhere" } else { "/main" };
    let segment = operation.path_segment();
    let path = match operation {
        Operation::GetHealthStatus => format!("{prefix}/kms/xks/v1/{segment}"),
        _ => format!("{prefix}/kms/xks/v1/keys/{}/{segment}", key_of(operation, faults)),
    };
    let mut request = XksRequest::new(&signing, path, &body);
    if fails(Method) {
        request.method = http::Method::PUT;
    }
    request
}
