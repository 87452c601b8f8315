//! The same as JSON, with the names of a request's body and of an audit record.

use serde::Deserialize;
use serde_json::{Map, Value};
use xks_spec::ExternalKeyId;

use super::{PolicyCase, metadata};
use crate::config::reader::{Fault, Faults};
use crate::policy::KeyOperation;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    store: Option<String>,
    external_key_id: Option<String>,
    #[serde(default)]
    request_metadata: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    store: Option<String>,
    external_key_id: Option<String>,
    operation: Operation,
    #[serde(default)]
    request_metadata: Map<String, Value>,
    expect: Expect,
    policy: Option<String>,
    reason: Option<Reason>,
}

#[derive(Clone, Copy, Deserialize)]
enum Operation {
    Encrypt,
    Decrypt,
    GetKeyMetadata,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Expect {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reason {
    Forbid,
    NoPermit,
    EvaluationError,
}

pub(super) fn read(source: &str) -> Result<Vec<PolicyCase>, Vec<Fault>> {
    let faults = Faults::new(source);
    let cases = match serde_json::from_str::<Document>(source) {
        Ok(document) => cases(document, &faults),
        Err(error) => {
            // Its own text may quote a value.
            let problem = if error.is_data() {
                "a key is missing, not known, given twice or of the wrong type: docs/authorization.md has the form"
            } else {
                "this is not JSON"
            };
            faults.note(offset(source, error.line(), error.column()), "", problem);
            Vec::new()
        }
    };
    let faults = faults.into_sorted();
    if faults.is_empty() { Ok(cases) } else { Err(faults) }
}

/// Of serde_json's line and column, which counts bytes.
fn offset(source: &str, line: usize, column: usize) -> usize {
    let before: usize = source.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let offset = (before + column.saturating_sub(1)).min(source.len());
    (0..=offset).rev().find(|offset| source.is_char_boundary(*offset)).unwrap_or_default()
}

fn cases(document: Document, faults: &Faults<'_>) -> Vec<PolicyCase> {
    if document.cases.is_empty() {
        faults.note(0, "cases", "must hold at least one case");
    }
    let Document { store, external_key_id, request_metadata, cases } = document;
    let read = |(number, case): (usize, Case)| {
        let key = case.external_key_id.as_ref().or(external_key_id.as_ref());
        let key = key.ok_or_else(|| "externalKeyId is missing, here and at the top".to_owned());
        let key =
            key.and_then(|key| ExternalKeyId::parse(key).map_err(|fault| format!("externalKeyId: {fault}")));
        let store = case.store.or_else(|| store.clone()).filter(|store| !store.is_empty());
        let store = store.ok_or_else(|| "store is missing, here and at the top".to_owned());
        let operation = match case.operation {
            Operation::Encrypt => KeyOperation::Encrypt,
            Operation::Decrypt => KeyOperation::Decrypt,
            Operation::GetKeyMetadata => KeyOperation::GetKeyMetadata,
        };
        let metadata = metadata(&request_metadata, case.request_metadata, Some(operation));
        let is_allowed = case.expect == Expect::Allow;
        let reason = match case.reason {
            Some(_) if is_allowed => Err("reason is of denials alone".to_owned()),
            Some(Reason::Forbid) => Ok(Some("forbid")),
            Some(Reason::NoPermit) => Ok(Some("no_permit")),
            Some(Reason::EvaluationError) => Ok(Some("evaluation_error")),
            None => Ok(None),
        };
        let note = |problem: String| faults.note(0, &format!("cases[{number}]"), problem);
        match (store, key, metadata, reason) {
            (Ok(store), Ok(key), Ok(metadata), Ok(reason)) => Some(PolicyCase {
                name: case.name,
                store,
                operation,
                key,
                metadata,
                is_allowed,
                policy: case.policy,
                reason,
            }),
            (store, key, metadata, reason) => {
                [store.err(), key.err(), metadata.err(), reason.err()].into_iter().flatten().for_each(note);
                None
            }
        }
    };
    cases.into_iter().enumerate().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::super::read_policy_cases;

    const GOOD: &str = r#"
{
  "store": "payments",
  "externalKeyId": "ledger",
  "requestMetadata": {
    "awsPrincipalArn": "AWS Internal", "kmsKeyArn": "k", "kmsOperation": "Encrypt", "kmsRequestId": "r", "kmsViaService": "s"
  },
  "cases": [
    {"name": "a", "operation": "Encrypt", "expect": "allow", "policy": "p"},
    {"name": "b", "operation": "Decrypt", "store": "other", "externalKeyId": "cards", "expect": "deny", "reason": "no_permit",
     "requestMetadata": {"kmsOperation": "Decrypt", "kmsViaService": null, "new": [1, null]}}
  ]
}
"#;

    #[test]
    fn json_says_the_same_as_toml() {
        let cases = read_policy_cases(GOOD).unwrap();
        assert_eq!((cases[0].store.as_str(), cases[0].key.as_str()), ("payments", "ledger"));
        assert_eq!((cases[0].is_allowed, cases[0].policy.as_deref()), (true, Some("p")));
        assert_eq!(cases[0].metadata.kms_via_service.as_deref(), Some("s"));
        let other = &cases[1];
        assert_eq!((other.store.as_str(), other.key.as_str()), ("other", "cards"));
        assert_eq!((other.is_allowed, other.reason, &other.policy), (false, Some("no_permit"), &None));
        assert_eq!(other.metadata.aws_principal_arn.as_deref(), Some("AWS Internal"));
        assert_eq!(other.metadata.kms_via_service, None, "null takes away what holds for all");
        assert_eq!(other.metadata.other["new"].to_string(), "[1,null]");
    }

    #[test]
    fn faults_have_their_place_and_quote_nothing() {
        for (from, to, said) in [
            ("\"store\": \"payments\",", "", "cases[0]: store is missing"),
            ("\"externalKeyId\": \"ledger\",", "", "cases[0]: externalKeyId is missing"),
            ("\"ledger\"", "\"hunter2/\"", "cases[0]: externalKeyId: an external key id is"),
            ("\"kmsKeyArn\": \"k\", ", "", "cases[0]: request_metadata: kmsKeyArn is required"),
            ("\"k\"", "[\"hunter2\"]", "cases[0]: request_metadata: the fields"),
            ("\"policy\": \"p\"", "\"reason\": \"forbid\"", "cases[0]: reason is of denials alone"),
            ("\"policy\": \"p\"", "\"hunter2\": 1", "line 9 column 70: a key is missing"),
            ("\"allow\"", "\"hunter2\"", "line 9 column"),
            ("\"Decrypt\", \"store\"", "\"GetHealthStatus\", \"store\"", "line 10 column"),
            ("\"name\": \"b\", ", "", "line 11 column"),
            ("\"reason\"", "\"name\": \"hunter2\", \"reason\"", "line 10 column"),
            ("]}}", "]}} hunter2", "this is not JSON"),
        ] {
            let found = read_policy_cases(&GOOD.replacen(from, to, 1)).unwrap_err();
            let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert!(lines.iter().any(|line| line.contains(said)), "{from} → {to}: {lines:?}");
            assert!(!lines.iter().any(|line| line.contains("hunter2")), "{from} → {to}: {lines:?}");
        }
        assert!(read_policy_cases("{\"cases\": []}").unwrap_err()[0].to_string().contains("at least one"));
    }
}
