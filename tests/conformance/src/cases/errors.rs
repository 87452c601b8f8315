//! The form of every error that the run has seen; these cases come last.

use http::Method;
use serde_json::Value;
use xks_spec::ErrorName;

use mock_kms::xks::HttpVersion;
use xks_spec::Operation;

use crate::case::{Case, Finding, Level, Section, fail};
use crate::wire::{Recorded, Wire};

/// Cases whose request an HTTP server may refuse below the specification, with a bare 400, 413 or 431.
const MAY_BE_BARE: [&str; 5] = [
    "sigv4.duplicate-date",
    "sigv4.form-8000-slashes",
    "sigv4.form-8000-commas",
    "sigv4.form-not-ascii",
    "sigv4.no-body-oracle",
];

/// Which answers a case judges.
type Which = fn(&Recorded) -> bool;

/// Errors that have a name in the specification. It names none for 405, nor for methods that no operation has.
fn has_a_name(seen: &Recorded) -> bool {
    let is_bare = matches!(seen.status, 400 | 413 | 431) && MAY_BE_BARE.contains(&&*seen.case);
    seen.method == Method::POST && seen.status != 405 && !is_bare
}

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let every = |name: &str,
                 level: Level,
                 expects: &str,
                 requirements: &[&'static str],
                 which: Which,
                 fault: fn(&Recorded) -> Option<String>| {
        Case::new(
            Section::Errors,
            name,
            level,
            "provokes the common errors, and looks at every error of the run",
            expects,
            move |wire| async move {
                provoke(&wire).await;
                over_all(&wire, which, fault)
            },
        )
        .of(requirements)
    };
    vec![
        every(
            "body",
            Level::Must,
            "a JSON object with an errorName of the specification",
            &["ERR-BODY-001"],
            has_a_name,
            |seen| match name_of(seen) {
                Some(name) if ErrorName::ALL.iter().any(|known| known.as_str() == name) => None,
                Some(name) => Some(format!("errorName {name:?}")),
                None => Some(format!("status {} without errorName", seen.status)),
            },
        ),
        every(
            "content-type",
            Level::Must,
            "application/json",
            &["TRANS-JSON-002"],
            has_a_name,
            other_content_type,
        ),
        every(
            "method-not-allowed",
            Level::Should,
            "405 in the form of all other errors: application/json with an errorName",
            &["ERR-BODY-001", "TRANS-JSON-002"],
            |seen| seen.status == 405 && seen.method != Method::HEAD,
            |seen| match name_of(seen) {
                Some(_) => other_content_type(seen),
                None => Some("405 without errorName".to_owned()),
            },
        ),
        every(
            "status",
            Level::Must,
            "the status that goes with the errorName; 405 goes with any",
            &[
                "ERR-BODY-001",
                "ERR-AUTH-001",
                "ERR-VALIDATION-001",
                "ERR-KEY-001",
                "ERR-PATH-001",
                "ERR-THROTTLE-001",
            ],
            |_| true,
            |seen| {
                let name = name_of(seen)?;
                let known = ErrorName::ALL.into_iter().find(|known| known.as_str() == name)?;
                (known.http_status() != seen.status && seen.status != 405)
                    .then(|| format!("{} with {name}", seen.status))
            },
        ),
        every(
            "message-length",
            Level::Must,
            "an errorMessage of at most 511 characters, if any",
            &["ERR-MSG-001", "ERR-BODY-002"],
            |_| true,
            |seen| {
                let length = message_of(seen)?.chars().count();
                (length >= 512).then(|| format!("{length} characters"))
            },
        ),
        every(
            "message-characters",
            Level::Must,
            "an errorMessage of printable ASCII",
            &["ERR-MSG-002"],
            |_| true,
            |seen| {
                let message = message_of(seen)?;
                message.chars().find(|c| !(' '..='~').contains(c)).map(|c| format!("U+{:04X}", u32::from(c)))
            },
        ),
        every(
            "message-tells-no-plaintext",
            Level::Must,
            "an errorMessage without the request's plaintext",
            &["LOG-SECRET-001", "ENC-SECRET-001"],
            |_| true,
            |seen| {
                let message = message_of(seen)?;
                (message.contains("SGVsbG8gV29ybGQh") || message.contains("Hello World!"))
                    .then(|| "the plaintext of the request".to_owned())
            },
        ),
        every(
            "listed-for-operation",
            Level::Should,
            "an errorName that the specification lists for the operation",
            &["ERR-CIPHERTEXT-002", "ERR-USAGE-003", "ERR-VALIDATION-002", "ERR-DENIED-002", "ERR-KEY-002"],
            |_| true,
            |seen| {
                let name = name_of(seen)?;
                let operation = Operation::ALL
                    .into_iter()
                    .find(|operation| operation.path_segment() == seen.operation)?;
                let known = ErrorName::ALL.into_iter().find(|known| known.as_str() == name)?;
                (!known.is_listed_for(operation)).then(|| format!("{name} of {operation}"))
            },
        ),
    ]
}

/// So that there is something to look at where only this section runs.
async fn provoke(wire: &Wire) {
    let mut bad_json = wire.request(Operation::Encrypt);
    bad_json.body = "{\"plaintext\":\"SGVsbG8gV29ybGQh\"".into();
    let mut missing = wire.request(Operation::Encrypt);
    missing.body = "{\"plaintext\":\"SGVsbG8gV29ybGQh\"}".into();
    let mut unsigned = wire.request(Operation::Encrypt);
    unsigned.signing.is_off = true;
    let mut no_path = wire.request(Operation::Encrypt);
    no_path.path.push_str("/more");
    let mut no_key = wire.request(Operation::Encrypt);
    no_key.path = wire.path("no-such-key-of-the-suite", Operation::Encrypt);
    let mut by_get = wire.request(Operation::GetKeyMetadata);
    by_get.method = Method::GET;
    by_get.body = bytes::Bytes::new();
    for request in [bad_json, missing, unsigned, no_path, no_key, by_get, wire.request(Operation::Decrypt)] {
        let _ = wire.try_send(wire.proxy(), HttpVersion::Http1, &request).await;
    }
}

fn over_all(wire: &Wire, which: Which, fault: fn(&Recorded) -> Option<String>) -> Finding {
    let mut errors = wire.journal();
    errors.retain(|seen| seen.status >= 400 && which(seen));
    for seen in &errors {
        if let Some(fault) = fault(seen) {
            wire.note(
                &*seen.request,
                format!("{}\n{}", seen.status, String::from_utf8_lossy(&seen.error_body)),
            );
            return fail(
                "the documented form in every error",
                format!("{fault}, in an answer of case {}", seen.case),
            );
        }
    }
    Ok(format!("{} errors of the run", errors.len()))
}

fn other_content_type(seen: &Recorded) -> Option<String> {
    (!seen.content_type.eq_ignore_ascii_case("application/json")).then(|| format!("{:?}", seen.content_type))
}

fn name_of(seen: &Recorded) -> Option<String> {
    serde_json::from_slice::<Value>(&seen.error_body).ok()?["errorName"].as_str().map(str::to_owned)
}

fn message_of(seen: &Recorded) -> Option<String> {
    serde_json::from_slice::<Value>(&seen.error_body).ok()?["errorMessage"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_bare_is_of_a_case() {
        let ids: Vec<_> = crate::cases::all().into_iter().map(|case| case.id).collect();
        for id in MAY_BE_BARE {
            assert!(ids.iter().any(|known| known == id), "{id}");
        }
    }
}
