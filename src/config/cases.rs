//! Cases of `xks-proxy policy test`: requests, and what the policies are to decide.

mod json;

use serde_json::{Map, Value as Json};
use toml::de::DeTable;
use xks_spec::{ExternalKeyId, RequestMetadata};

use super::reader::{Fault, Faults, Table, Value};
use crate::policy::KeyOperation;

const OPERATIONS: [(&str, KeyOperation); 3] = [
    ("Encrypt", KeyOperation::Encrypt),
    ("Decrypt", KeyOperation::Decrypt),
    ("GetKeyMetadata", KeyOperation::GetKeyMetadata),
];

/// A request and what is expected of it.
#[derive(Debug)]
pub struct PolicyCase {
    /// For the report.
    pub name: String,
    /// Name of the key store.
    pub store: String,
    /// What is asked for.
    pub operation: KeyOperation,
    /// Of which key.
    pub key: ExternalKeyId,
    /// For whom.
    pub metadata: RequestMetadata,
    /// Whether it is to be allowed.
    pub is_allowed: bool,
    /// The policy that is to decide, where the case says one.
    pub policy: Option<String>,
    /// Why it is to be denied, where the case says it.
    pub reason: Option<&'static str>,
}

/// Reads a document of cases; docs/authorization.md has its form. What begins with a brace, as no TOML does, is JSON.
///
/// # Errors
/// Every fault; of JSON that has not the form, the first.
pub fn read_policy_cases(source: &str) -> Result<Vec<PolicyCase>, Vec<Fault>> {
    if source.trim_start().starts_with('{') {
        return json::read(source);
    }
    let (document, syntax_errors) = DeTable::parse_recoverable(source);
    let faults = Faults::new(source);
    for error in &syntax_errors {
        let offset = error.span().map_or(0, |span| span.start);
        faults.note(offset, "", "this is not TOML, or a key is given twice");
    }
    let cases = if syntax_errors.is_empty() { read(&document, &faults) } else { Vec::new() };
    let faults = faults.into_sorted();
    if faults.is_empty() { Ok(cases) } else { Err(faults) }
}

fn read<'d>(document: &'d toml::Spanned<DeTable<'d>>, faults: &'d Faults<'d>) -> Vec<PolicyCase> {
    let mut root = Table::root(document, faults);
    let common = Common {
        store: root.take("store").and_then(|value| value.text()),
        external_key_id: root.take("external_key_id"),
        metadata: root.take("request_metadata").map(|value| value.json_object()).unwrap_or_default(),
    };
    let cases = root.require("cases");
    root.finish();
    let Some(cases) = cases else { return Vec::new() };
    let values = cases.array();
    if values.is_empty() {
        cases.fault("must hold at least one case");
    }
    let tables = values.iter().filter_map(Value::table);
    tables.filter_map(|table| read_case(table, &common)).collect()
}

/// What holds for each case that does not say otherwise.
struct Common<'d> {
    store: Option<&'d str>,
    external_key_id: Option<Value<'d>>,
    metadata: Map<String, Json>,
}

fn read_case(mut table: Table<'_>, common: &Common<'_>) -> Option<PolicyCase> {
    let name = table.require("name").and_then(|value| value.text());
    let store = match table.take("store") {
        Some(value) => value.text(),
        None => common.store,
    };
    if store.is_none() {
        table.fault("store is missing, here and at the top");
    }
    let operation = table.require("operation").and_then(|value| value.one_of(&OPERATIONS));
    let key = table.take("external_key_id");
    let key = key.as_ref().or(common.external_key_id.as_ref());
    if key.is_none() {
        table.fault("external_key_id is missing, here and at the top");
    }
    let key = key.and_then(|value| value.parsed(ExternalKeyId::parse));
    let expect = table.require("expect");
    let is_allowed = expect.and_then(|value| value.one_of(&[("allow", true), ("deny", false)]));
    let policy = table.take("policy").map(|value| value.text());
    let reason = table.take("reason").map(|value| {
        value.one_of(&[
            ("forbid", "forbid"),
            ("no_permit", "no_permit"),
            ("evaluation_error", "evaluation_error"),
        ])
    });
    let own = table.take("request_metadata").map(|value| value.json_object()).unwrap_or_default();
    let metadata = metadata(&common.metadata, own, operation).map_err(|fault| table.fault(fault)).ok();
    if is_allowed == Some(true) && reason.is_some() {
        table.fault("reason is of denials alone");
    }
    table.finish();
    Some(PolicyCase {
        name: name?.to_owned(),
        store: store?.to_owned(),
        operation: operation?,
        key: key?,
        metadata: metadata?,
        is_allowed: is_allowed?,
        policy: policy.flatten().map(str::to_owned),
        reason: reason.flatten(),
    })
}

/// The request metadata of a case: what holds for all of them, and its own.
fn metadata(
    common: &Map<String, Json>,
    own: Map<String, Json>,
    operation: Option<KeyOperation>,
) -> Result<RequestMetadata, String> {
    let mut fields = common.clone();
    fields.extend(own);
    let metadata = serde_json::from_value::<RequestMetadata>(Json::Object(fields));
    // The error's own text may quote a value.
    let metadata = metadata
        .map_err(|_| "request_metadata: the fields that the specification names are strings".to_owned())?;
    let required = operation.map_or(Ok(()), |operation| metadata.require_fields(operation.operation()));
    required.map_err(|fault| {
        format!("request_metadata: {fault}: the proxy refuses such a request before it asks any policy")
    })?;
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
store = "payments"
external_key_id = "ledger"
[request_metadata]
awsPrincipalArn = "AWS Internal"
kmsKeyArn = "k"
kmsOperation = "Encrypt"
kmsRequestId = "r"
[[cases]]
name = "a"
operation = "Encrypt"
expect = "allow"
policy = "p"
[[cases]]
name = "b"
operation = "Decrypt"
store = "other"
external_key_id = "cards"
expect = "deny"
reason = "no_permit"
request_metadata = { kmsOperation = "Decrypt", new = [1, "a", { b = true, c = 1.5 }] }
"#;

    #[test]
    fn a_case_overrides_what_holds_for_all() {
        let cases = read_policy_cases(GOOD).unwrap();
        assert_eq!((cases[0].store.as_str(), cases[0].key.as_str()), ("payments", "ledger"));
        assert_eq!((cases[0].is_allowed, cases[0].policy.as_deref()), (true, Some("p")));
        let other = &cases[1];
        assert_eq!((other.store.as_str(), other.key.as_str()), ("other", "cards"));
        assert_eq!((other.is_allowed, other.reason, &other.policy), (false, Some("no_permit"), &None));
        assert_eq!(other.metadata.kms_operation.as_deref(), Some("Decrypt"));
        assert_eq!(other.metadata.aws_principal_arn.as_deref(), Some("AWS Internal"));
        assert_eq!(other.metadata.other["new"].to_string(), r#"[1,"a",{"b":true,"c":1.5}]"#);
    }

    #[test]
    fn each_fault_has_its_place() {
        for (from, to, said) in [
            ("store = \"payments\"", "", "line 9 column 1: cases[0]: store is missing"),
            ("external_key_id = \"ledger\"", "", "cases[0]: external_key_id is missing"),
            ("\"ledger\"", "\"led/ger\"", "external_key_id: an external key id is"),
            ("\"Encrypt\"\nexpect", "\"GetHealthStatus\"\nexpect", "cases[0].operation: must be one of"),
            ("\"allow\"", "\"maybe\"", "cases[0].expect: must be one of \"allow\", \"deny\""),
            ("policy = \"p\"", "reason = \"forbid\"", "reason is of denials alone"),
            ("policy = \"p\"", "polcy = \"p\"", "did you mean policy?"),
            ("kmsKeyArn = \"k\"\n", "", "cases[0]: request_metadata: kmsKeyArn is required"),
            ("kmsKeyArn = \"k\"", "kmsKeyArn = 1", "cases[0]: request_metadata: the fields"),
            ("true, c", "2026-01-01, c", "request_metadata: a date has no place in JSON"),
            ("[[cases]]", "[[cases", "this is not TOML"),
        ] {
            let found = read_policy_cases(&GOOD.replacen(from, to, 1)).unwrap_err();
            let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert!(lines.iter().any(|line| line.contains(said)), "{from} → {to}: {lines:?}");
        }
        assert!(read_policy_cases("cases = []").unwrap_err()[0].to_string().contains("at least one"));
    }
}
