//! Secondary authorization: what the proxy's own policy refuses. A policy's language is its vendor's choice; what comes of a
//! refusal is not.

use mock_kms::xks::Request;
use serde_json::{Value, json};
use xks_spec::ErrorName::{AccessDeniedException, AuthenticationFailedException};
use xks_spec::Operation;

use crate::case::{Case, Level, Section, Stop, expect};
use crate::target::Need;
use crate::wire::{CALLER, DENIED_CALLER, Wire, body_of, bytes_of, decrypt_body, encrypt_body};

/// Operations on a key: those that a policy is asked about.
const OF_A_KEY: [Operation; 3] = [Operation::GetKeyMetadata, Operation::Encrypt, Operation::Decrypt];

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all: Vec<_> = OF_A_KEY.into_iter().map(denied).collect();
    all.extend([permitted_caller(), never_for_health(), no_policy_oracle()]);
    for case in &mut all {
        case.needs.push(Need::DeniedKey);
    }
    all
}

fn denied(operation: Operation) -> Case {
    Case::new(
        Section::Authorization,
        operation.path_segment(),
        Level::Must,
        format!("{} for a caller to whom policy refuses the key", operation.name()),
        "AccessDeniedException",
        move |wire| async move {
            let request = asked_by(&wire, DENIED_CALLER, operation).await?;
            wire.send(&request).await?.refused(&[AccessDeniedException])
        },
    )
    .of(&["ERR-DENIED-001", "AUTHZ-POLICY-002"])
}

fn permitted_caller() -> Case {
    Case::new(
        Section::Authorization,
        "permitted-caller",
        Level::Should,
        "encrypts with the key for a caller to whom policy permits it, and decrypts for either",
        "the plaintext for the one, AccessDeniedException for the other",
        |wire| async move {
            let encrypted =
                wire.encrypt(&denied_key(&wire), &encrypt_body(b"Hello World!", None, false)).await?;
            let body = |caller| by(caller, decrypt_body(&encrypted, None));
            wire.decrypt(&denied_key(&wire), &body(DENIED_CALLER))
                .await?
                .refused(&[AccessDeniedException])?;
            let opened = wire.decrypt(&denied_key(&wire), &body(CALLER)).await?.ok()?;
            expect(bytes_of(&opened, "plaintext")? == b"Hello World!", "the plaintext back", "another")?;
            Ok("the one is served, the other refused".to_owned())
        },
    )
    .of(&["AUTHZ-POLICY-003", "AUTHZ-POLICY-001"])
}

fn never_for_health() -> Case {
    Case::new(
        Section::Authorization,
        "health",
        Level::Must,
        "asks for the health status as KMS does, and once more naming the caller to whom policy refuses a key",
        "200",
        |wire| async move {
            let body = body_of(Operation::GetHealthStatus);
            for body in [body.clone(), by(DENIED_CALLER, body)] {
                wire.send(&Request::post(wire.proxy().health_path(), body.to_string())).await?.ok()?;
            }
            Ok("200".to_owned())
        },
    )
    .of(&["HEALTH-AUTHZ-001", "ERR-DENIED-002"])
}

fn no_policy_oracle() -> Case {
    Case::new(
        Section::Authorization,
        "no-policy-oracle",
        Level::Must,
        "badly signed requests for a caller to whom policy refuses the key",
        "AuthenticationFailedException",
        |wire| async move {
            for operation in OF_A_KEY {
                let mut request = asked_by(&wire, DENIED_CALLER, operation).await?;
                request.signing.secret_access_key =
                    Some("wrong/secret+wrong/secret+wrong/secret+wrong".to_owned());
                wire.send(&request).await?.refused(&[AuthenticationFailedException])?;
            }
            Ok("refused alike".to_owned())
        },
    )
    .of(&["ERR-AUTH-001", "AUTH-SIG-001"])
}

fn denied_key(wire: &Wire) -> String {
    wire.target.args.denied_key_id.clone().unwrap_or_default()
}

/// A request on the denied key that says who called KMS. Decrypt's has a made-up ciphertext.
async fn asked_by(wire: &Wire, caller: &str, operation: Operation) -> Result<Request, Stop> {
    let body = if operation == Operation::Decrypt { wire.made_up().await? } else { body_of(operation) };
    Ok(Request::post(wire.path(&denied_key(wire), operation), by(caller, body).to_string()))
}

fn by(caller: &str, mut body: Value) -> Value {
    body["requestMetadata"]["awsPrincipalArn"] = json!(caller);
    body
}
