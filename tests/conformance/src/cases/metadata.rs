//! GetKeyMetadata, and the request metadata of every operation.

use serde_json::{Value, json};
use xks_spec::ErrorName::{AccessDeniedException, KeyNotFoundException, ValidationException};
use xks_spec::Operation;

use super::disabled_store;
use crate::case::{Case, Finding, Level, Section, Stop, expect, fail};
use crate::target::Need;
use crate::wire::{Seen, Wire, body_of, encrypt_body};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        form(
            "key-spec",
            Level::Must,
            "keySpec AES_256",
            None,
            &[
                "META-RESP-001",
                "META-RESP-002",
                "META-READY-001",
                "META-API-001",
                "META-PATH-001",
                "META-CODE-001",
            ],
            |answer| is(answer, "keySpec", "AES_256"),
        ),
        form(
            "key-usage",
            Level::Must,
            "keyUsage with ENCRYPT and DECRYPT",
            None,
            &["META-RESP-003", "META-USAGE-001", "META-USAGE-002", "META-READY-001"],
            |answer| usages(answer, true, true),
        ),
        form(
            "key-usage-count",
            Level::Must,
            "at most ten usages",
            None,
            &["META-USAGE-004", "META-USAGE-003"],
            |answer| {
                let count = answer["keyUsage"].as_array().map_or(0, Vec::len);
                expect(count <= 10, "at most ten", count.to_string())?;
                Ok(answer["keyUsage"].to_string())
            },
        ),
        form(
            "key-status",
            Level::Must,
            "keyStatus ENABLED",
            None,
            &["META-RESP-004", "META-STATUS-001", "META-STATUS-002", "META-READY-001"],
            |answer| is(answer, "keyStatus", "ENABLED"),
        ),
        form(
            "disabled-key",
            Level::Should,
            "keyStatus DISABLED of the disabled key",
            Some(Need::DisabledKey),
            &["META-STATUS-003"],
            |answer| is(answer, "keyStatus", "DISABLED"),
        ),
        form(
            "encrypt-only-key",
            Level::Must,
            "keyUsage with ENCRYPT and without DECRYPT",
            Some(Need::EncryptOnlyKey),
            &["META-USAGE-001", "META-USAGE-002", "ERR-USAGE-003"],
            |answer| usages(answer, true, false),
        ),
        form(
            "decrypt-only-key",
            Level::Must,
            "keyUsage with DECRYPT and without ENCRYPT",
            Some(Need::DecryptOnlyKey),
            &["META-USAGE-001", "META-USAGE-002", "ERR-USAGE-003"],
            |answer| usages(answer, false, true),
        ),
        form(
            "impotent-key",
            Level::Must,
            "keyUsage with neither",
            Some(Need::ImpotentKey),
            &["META-USAGE-001", "META-USAGE-002", "ERR-USAGE-003"],
            |answer| usages(answer, false, false),
        ),
        Case::new(
            Section::Metadata,
            "unknown-key",
            Level::Must,
            "asks for the metadata of an unknown key",
            "KeyNotFoundException",
            |wire| async move {
                let mut request = wire.request(Operation::GetKeyMetadata);
                request.path = wire.path("no-such-key-of-the-suite", Operation::GetKeyMetadata);
                wire.send(&request).await?.refused(&[KeyNotFoundException])
            },
        )
        .of(&["ERR-KEY-001"]),
    ];
    all.push(disabled_store::asked(Operation::GetKeyMetadata));
    all.extend(taken());
    all.extend(refused());
    all
}

fn form(
    name: &'static str,
    level: Level,
    expects: &str,
    need: Option<Need>,
    requirements: &[&'static str],
    judge: fn(&Value) -> Finding,
) -> Case {
    let needs: Vec<_> = need.into_iter().collect();
    Case::new(
        Section::Metadata,
        name,
        level,
        "asks for the key's metadata",
        expects,
        move |wire| async move {
            let args = &wire.target.args;
            let key = match need {
                Some(Need::DisabledKey) => args.disabled_key_id.as_deref(),
                Some(Need::EncryptOnlyKey) => args.encrypt_only_key_id.as_deref(),
                Some(Need::DecryptOnlyKey) => args.decrypt_only_key_id.as_deref(),
                Some(Need::ImpotentKey) => args.impotent_key_id.as_deref(),
                _ => None,
            };
            let mut request = wire.request(Operation::GetKeyMetadata);
            request.path = wire.path(key.unwrap_or(wire.key()), Operation::GetKeyMetadata);
            judge(&wire.send(&request).await?.ok()?)
        },
    )
    .of(requirements)
    .needs(&needs)
}

fn is(answer: &Value, field: &str, expected: &str) -> Finding {
    if answer[field] == expected {
        Ok(expected.to_owned())
    } else {
        fail(expected, answer[field].to_string())
    }
}

fn usages(answer: &Value, encrypts: bool, decrypts: bool) -> Finding {
    let Some(usages) = answer["keyUsage"].as_array().filter(|all| all.iter().all(Value::is_string)) else {
        return fail("keyUsage as an array of texts", answer["keyUsage"].to_string());
    };
    let has = |usage: &str| usages.iter().any(|found| found == usage);
    let expected = format!("ENCRYPT {encrypts}, DECRYPT {decrypts}");
    expect(
        has("ENCRYPT") == encrypts && has("DECRYPT") == decrypts,
        expected,
        answer["keyUsage"].to_string(),
    )?;
    Ok(answer["keyUsage"].to_string())
}

type Change = fn(&mut Value);

/// Request metadata that every operation must take.
fn taken() -> Vec<Case> {
    let rows: [(&str, Change, &[&'static str], bool); 13] = [
        (
            "service-principal",
            |m| m["awsPrincipalArn"] = json!("ec2.amazonaws.com"),
            &["META-RMD-002", "ENC-RMD-002", "DEC-RMD-002", "REQ-CHECK-001"],
            false,
        ),
        (
            "aws-internal",
            |m| m["awsPrincipalArn"] = json!("AWS Internal"),
            &["META-RMD-002", "ENC-RMD-002", "DEC-RMD-002"],
            false,
        ),
        (
            "principal-of-2048",
            |m| m["awsPrincipalArn"] = json!(long_arn("arn:aws:iam::123456789012:user/")),
            &["REQ-ARN-001"],
            false,
        ),
        (
            "key-arn-of-2048",
            |m| m["kmsKeyArn"] = json!(long_arn("arn:aws:kms:us-east-1:123456789012:key/")),
            &["REQ-ARN-002"],
            false,
        ),
        (
            "with-vpc",
            |m| {
                m["awsSourceVpc"] = json!("vpc-0123456789abcdef0");
                m["awsSourceVpce"] = json!("vpce-0123456789abcdef0");
            },
            &["META-RMD-007", "ENC-RMD-009", "DEC-RMD-009"],
            false,
        ),
        (
            "required-alone",
            |m| {
                for field in ["kmsViaService", "awsSourceVpc", "awsSourceVpce"] {
                    m.as_object_mut().map(|m| m.remove(field));
                }
            },
            &["META-RMD-007", "ENC-RMD-009", "DEC-RMD-009"],
            false,
        ),
        (
            "unlisted-operation",
            |m| m["kmsOperation"] = json!("BulkOperation"),
            &[
                "META-OPNAME-001",
                "META-OPNAME-002",
                "ENC-OPNAME-001",
                "ENC-OPNAME-002",
                "DEC-OPNAME-001",
                "DEC-OPNAME-002",
                "HEALTH-OPNAME-001",
            ],
            true,
        ),
        (
            "request-id-no-uuid",
            |m| m["kmsRequestId"] = json!("not a UUID: \u{e4} {}"),
            &["META-REQID-002", "ENC-REQID-002", "DEC-REQID-002", "HEALTH-REQID-002"],
            true,
        ),
        (
            "request-id-of-one",
            |m| m["kmsRequestId"] = json!("1"),
            &["META-REQID-002", "ENC-REQID-002", "DEC-REQID-002", "HEALTH-REQID-002"],
            true,
        ),
        (
            "request-id-upper-case",
            |m| m["kmsRequestId"] = json!("4112F4D6-DB54-4AF4-AE30-C55A22A8DFAE"),
            &["META-REQID-002", "ENC-REQID-002", "DEC-REQID-002", "HEALTH-REQID-002"],
            true,
        ),
        (
            "new-text-member",
            |m| m["SourceIdentity"] = json!("Alice"),
            &["META-NEW-001", "ENC-NEW-001", "DEC-NEW-001", "HEALTH-NEW-001"],
            true,
        ),
        (
            "new-object-member",
            |m| m["principalTags"] = json!({"a": ["b", 1, null, {"c": true}]}),
            &["META-NEW-001", "ENC-NEW-001", "DEC-NEW-001", "HEALTH-NEW-001"],
            true,
        ),
        (
            "new-number-member",
            |m| m["kmsRecipientAttestationPCR0"] = json!(-1.5e300),
            &["META-NEW-001", "ENC-NEW-001", "DEC-NEW-001", "HEALTH-NEW-001"],
            true,
        ),
    ];
    let mut all = Vec::new();
    for (name, change, requirements, for_health) in rows {
        for operation in Operation::ALL {
            if operation == Operation::GetHealthStatus && !for_health {
                continue;
            }
            let of: Vec<_> = requirements.iter().copied().filter(|id| belongs(id, operation)).collect();
            let level = Level::Must;
            all.push(
                Case::new(
                    Section::Metadata,
                    format!("{}-{name}", operation.path_segment()),
                    level,
                    format!("{} with request metadata: {}", operation.name(), name.replace('-', " ")),
                    if may_be_denied(name, operation) {
                        "it is served, or AccessDeniedException: secondary authorization may refuse it"
                    } else {
                        "it is served"
                    },
                    move |wire| async move {
                        let seen = asked(&wire, operation, change).await?;
                        if may_be_denied(name, operation) && seen.answer.status != 200 {
                            return seen.refused(&[AccessDeniedException]);
                        }
                        seen.ok().map(|_| "200".to_owned())
                    },
                )
                .of(&of),
            );
        }
    }
    all.push(
        Case::new(
            Section::Metadata,
            "metadata-without-key-arn",
            Level::Must,
            "GetKeyMetadata without kmsKeyArn, as CreateKey calls it",
            "200",
            |wire| async move {
                let without_arn: Change = |m| {
                    m.as_object_mut().map(|m| m.remove("kmsKeyArn"));
                };
                asked(&wire, Operation::GetKeyMetadata, without_arn).await?.ok()?;
                Ok("200".to_owned())
            },
        )
        .of(&["META-RMD-007"]),
    );
    for operation in
        ["CreateCustomKeyStore", "ConnectCustomKeyStore", "UpdateCustomKeyStore", "KmsHealthCheck"]
    {
        all.push(
            Case::new(
                Section::Metadata,
                format!("health-of-{operation}"),
                Level::Must,
                format!("GetHealthStatus with kmsOperation {operation}"),
                "200",
                move |wire| async move {
                    let mut request = wire.request(Operation::GetHealthStatus);
                    request.body =
                        json!({"requestMetadata": {"kmsRequestId": "1", "kmsOperation": operation}})
                            .to_string()
                            .into();
                    wire.send(&request).await?.ok()?;
                    Ok("200".to_owned())
                },
            )
            .of(&["HEALTH-OPNAME-001", "ERR-VALIDATION-002"]),
        );
    }
    all
}

fn belongs(id: &str, operation: Operation) -> bool {
    let prefix = match operation {
        Operation::GetKeyMetadata => "META-",
        Operation::Encrypt => "ENC-",
        Operation::Decrypt => "DEC-",
        Operation::GetHealthStatus => "HEALTH-",
    };
    id.starts_with(prefix) || id.starts_with("REQ-")
}

fn long_arn(start: &str) -> String {
    format!("{start}{}", "a".repeat(2048 - start.len()))
}

/// Decrypt is judged with a ciphertext that is right.
async fn asked(wire: &Wire, operation: Operation, change: Change) -> Result<Seen, Stop> {
    let mut body = body_of(operation);
    if operation == Operation::Decrypt {
        let encrypted = wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
        body = crate::wire::decrypt_body(&encrypted, None);
    }
    change(&mut body["requestMetadata"]);
    let mut request = wire.request(operation);
    request.body = body.to_string().into();
    wire.send(&request).await
}

/// Whether policy may refuse it, which it never does to GetHealthStatus (META-, ENC- and DEC-OPNAME-002).
fn may_be_denied(name: &str, operation: Operation) -> bool {
    name == "unlisted-operation" && operation != Operation::GetHealthStatus
}

/// Bodies that are no request.
fn refused() -> Vec<Case> {
    let mut all = Vec::new();
    for operation in [Operation::GetKeyMetadata, Operation::Decrypt] {
        let good = body_of(operation).to_string();
        for (name, body) in [
            ("no-json", "no json".to_owned()),
            ("empty-body", String::new()),
            ("trailing-json", format!("{good}{{}}")),
            ("array", "[]".to_owned()),
            ("not-utf8", "\u{fffd}".to_owned()),
        ] {
            all.push(
                Case::new(
                    Section::Metadata,
                    format!("{}-{name}", operation.path_segment()),
                    Level::Must,
                    format!(
                        "{} with a body that is no request: {}",
                        operation.name(),
                        name.replace('-', " ")
                    ),
                    "ValidationException",
                    move |wire| {
                        let body = body.clone();
                        async move {
                            let mut request = wire.request(operation);
                            request.body = body.into();
                            wire.send(&request).await?.refused(&[ValidationException])
                        }
                    },
                )
                .of(&["ERR-VALIDATION-001"]),
            );
        }
    }
    all
}
