use serde_json::{Value, json};
use xks_spec::{ExternalKeyId, RequestMetadata};

use super::{Denial, DenialReason, KeyOperation, Policies, PolicyFault, PolicySource, Query};

/// Fields that may be absent from each operation's context, and tags.
const OPTIONAL_FIELDS: [&str; 3] = ["kmsViaService", "awsSourceVpc", "awsSourceVpce"];
/// Attributes of callers that are absent where the caller is no ARN.
const OPTIONAL_ATTRIBUTES: [&str; 6] = ["partition", "service", "region", "account", "name", "session"];

const PERMIT_ALL: &str = "@id(\"all\") permit(principal, action, resource);\n";

fn source(text: &str) -> PolicySource {
    PolicySource { path: "a.cedar".into(), text: text.to_owned() }
}

fn load(text: &str) -> Policies {
    Policies::load(&[source(text)]).unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
}

fn faults(text: &str) -> Vec<String> {
    Policies::load(&[source(text)]).unwrap_err().iter().map(ToString::to_string).collect()
}

fn metadata(more: &Value) -> RequestMetadata {
    let mut fields = json!({
        "awsPrincipalArn": "arn:aws:sts::111122223333:assumed-role/app/i-0abc",
        "kmsKeyArn": "arn:aws:kms:eu-central-1:111122223333:key/1234",
        "kmsOperation": "Decrypt",
        "kmsRequestId": "r",
    });
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(fields).unwrap()
}

fn decide(policies: &Policies, operation: KeyOperation, more: &Value) -> Result<String, Denial> {
    let key = ExternalKeyId::parse("ledger").unwrap();
    let metadata = metadata(more);
    let query = Query { store: "payments", operation, key: &key, metadata: &metadata };
    policies.decide(&query).map(|id| id.to_string())
}

fn decrypt(text: &str, more: &Value) -> Result<String, Denial> {
    decide(&load(text), KeyOperation::Decrypt, more)
}

fn forbidden(policy: &str) -> Result<String, Denial> {
    Err(Denial { reason: DenialReason::Forbid, policy: Some(policy.into()) })
}

const NOT_PERMITTED: Result<String, Denial> = Err(Denial { reason: DenialReason::NoPermit, policy: None });

#[test]
fn a_permit_permits_and_a_forbid_has_the_last_word() {
    assert_eq!(decrypt(PERMIT_ALL, &json!({})), Ok("all".into()));
    let two = format!("{PERMIT_ALL}@id(\"a\") permit(principal, action, resource);");
    assert_eq!(decrypt(&two, &json!({})), Ok("a".into()), "the first by name");
    let both = format!("{PERMIT_ALL}@id(\"no\") forbid(principal, action == Action::\"Decrypt\", resource);");
    assert_eq!(decrypt(&both, &json!({})), forbidden("no"));
    assert_eq!(decide(&load(&both), KeyOperation::Encrypt, &json!({})), Ok("all".into()));
    let other = "@id(\"other\") permit(principal, action, resource == ExternalKey::\"payments/other\");";
    assert_eq!(decrypt(other, &json!({})), NOT_PERMITTED);
}

#[test]
fn everything_that_kms_says_can_be_asked_for() {
    let more = json!({
        "kmsViaService": "s3.eu-central-1.amazonaws.com", "awsSourceVpc": "vpc-1", "awsSourceVpce": "vpce-1",
        "newText": "x", "newObject": {"a": [1]}, "newNumber": 7
    });
    for condition in [
        r#"principal == Caller::"arn:aws:sts::111122223333:assumed-role/app/i-0abc""#,
        r#"principal.arn like "arn:aws:sts::*""#,
        r#"principal.kind == "assumed-role""#,
        r#"principal has partition && principal.partition == "aws""#,
        r#"principal has service && principal.service == "sts""#,
        r#"principal has account && ["111122223333"].contains(principal.account)"#,
        r#"principal has name && principal.name == "app""#,
        r#"principal has session && principal.session == "i-0abc""#,
        r#"!(principal has region)"#,
        r#"resource in KeyStore::"payments""#,
        r#"resource == ExternalKey::"payments/ledger""#,
        r#"resource.id == "ledger" && resource.store == "payments""#,
        r#"action == Action::"Decrypt""#,
        r#"context has kmsKeyArn && context.kmsKeyArn like "*:key/1234""#,
        r#"context has kmsKey && context.kmsKey.region == "eu-central-1" && context.kmsKey.id == "1234""#,
        r#"context has kmsKey && context.kmsKey.account == "111122223333" && context.kmsKey.partition == "aws""#,
        r#"context.kmsOperation == "Decrypt" && context.kmsRequestId == "r""#,
        r#"context has kmsViaService && context.kmsViaService == "s3.eu-central-1.amazonaws.com""#,
        r#"context has awsSourceVpc && context.awsSourceVpc == "vpc-1""#,
        r#"context has awsSourceVpce && context.awsSourceVpce == "vpce-1""#,
        r#"context.other.hasTag("newText") && context.other.getTag("newText") == "x""#,
        r#"context.other.hasTag("newObject") && context.other.getTag("newObject") == "{\"a\":[1]}""#,
        r#"context.other.hasTag("newNumber") && context.other.getTag("newNumber") == "7""#,
        r#"!context.other.hasTag("another")"#,
    ] {
        let policy = |condition: &str| {
            format!("@id(\"p\") permit(principal, action, resource) when {{ {condition} }};")
        };
        assert_eq!(decrypt(&policy(condition), &more), Ok("p".into()), "{condition}");
        assert_eq!(decrypt(&policy(&format!("!({condition})")), &more), NOT_PERMITTED, "{condition}");
    }
}

#[test]
fn callers_that_are_no_arn_have_no_account() {
    let accounts = r#"@id("mine") permit(principal, action, resource) when { principal has account && principal.account == "111122223333" };
        @id("services") permit(principal, action, resource) when { principal.kind == "aws-service" && principal has name && principal.name == "ec2.amazonaws.com" };
        @id("aws") permit(principal, action, resource) when { principal.kind == "aws-internal" };"#;
    for (caller, expected) in [
        ("arn:aws:iam::111122223333:user/Alice", Ok("mine".into())),
        ("arn:aws:iam::444455556666:user/Alice", NOT_PERMITTED),
        ("ec2.amazonaws.com", Ok("services".into())),
        ("rds.amazonaws.com", NOT_PERMITTED),
        ("AWS Internal", Ok("aws".into())),
        ("somebody", NOT_PERMITTED),
        ("", NOT_PERMITTED),
        ("\u{1f511}\" ]}'\\", NOT_PERMITTED),
    ] {
        assert_eq!(decrypt(accounts, &json!({ "awsPrincipalArn": caller })), expected, "{caller}");
    }
}

#[test]
fn kms_operations_can_be_refused_by_name() {
    let text = format!(
        "{PERMIT_ALL}@id(\"known\") forbid(principal, action, resource) unless {{ [\"Decrypt\", \"ReEncrypt\", \"CreateKey\"].contains(context.kmsOperation) }};"
    );
    let policies = load(&text);
    for operation in KeyOperation::ALL {
        let of = |name: &str| decide(&policies, operation, &json!({ "kmsOperation": name }));
        assert_eq!(of("ReEncrypt"), Ok("all".into()));
        assert_eq!(of("Reencrypt"), forbidden("known"));
        assert_eq!(of("NewOperation"), forbidden("known"));
    }
}

/// A guarded read of an optional text, and a value that makes it true.
fn guarded() -> Vec<(String, String, Value)> {
    let fields = OPTIONAL_FIELDS.map(|field| {
        (format!("context has {field}"), format!("context.{field} == \"x\""), json!({ field: "x" }))
    });
    let attributes = OPTIONAL_ATTRIBUTES.map(|name| {
        let caller = json!({ "awsPrincipalArn": "arn:x:x:x:x:assumed-role/x/x" });
        (format!("principal has {name}"), format!("principal.{name} == \"x\""), caller)
    });
    let key = json!({ "kmsKeyArn": "arn:aws:kms:x:x:key/x" });
    let tag = (
        "context.other.hasTag(\"new\")".to_owned(),
        "context.other.getTag(\"new\") == \"x\"".to_owned(),
        json!({"new": "x"}),
    );
    let kms_key = ("context has kmsKey".to_owned(), "context.kmsKey.account == \"x\"".to_owned(), key);
    fields.into_iter().chain(attributes).chain([tag, kms_key]).collect()
}

#[test]
fn a_field_that_is_absent_neither_permits_nor_forbids() {
    let absent = json!({ "awsPrincipalArn": "AWS Internal", "kmsKeyArn": "none" });
    for (has, reads, present) in guarded() {
        for operation in KeyOperation::ALL {
            let permit =
                load(&format!("@id(\"p\") permit(principal, action, resource) when {{ {has} && {reads} }};"));
            let forbid = load(&format!(
                "{PERMIT_ALL}@id(\"f\") forbid(principal, action, resource) when {{ {has} && {reads} }};"
            ));
            assert_eq!(decide(&permit, operation, &present), Ok("p".into()), "{reads}");
            assert_eq!(decide(&permit, operation, &absent), NOT_PERMITTED, "{reads}");
            assert_eq!(decide(&forbid, operation, &present), forbidden("f"), "{reads}");
            assert_eq!(decide(&forbid, operation, &absent), Ok("all".into()), "{reads}");
            // The other way round: what must be there for a request to be let through.
            let unless = load(&format!(
                "{PERMIT_ALL}@id(\"f\") forbid(principal, action, resource) unless {{ {has} && {reads} }};"
            ));
            assert_eq!(decide(&unless, operation, &present), Ok("all".into()), "{reads}");
            assert_eq!(decide(&unless, operation, &absent), forbidden("f"), "{reads}");
        }
    }
}

#[test]
fn a_read_of_what_may_be_absent_is_not_loaded_without_a_guard() {
    for (has, reads, _) in guarded() {
        for condition in [
            reads.clone(),
            format!("{reads} && {has}"),
            format!("{has} || {reads}"),
            format!("!({has}) && {reads}"),
            format!("if {has} then true else {reads}"),
            format!("({has} || true) && {reads}"),
        ] {
            let text = format!("@id(\"p\") forbid(principal, action, resource) when {{ {condition} }};");
            let found = faults(&text);
            assert!(
                found.iter().all(|fault| fault.starts_with("a.cedar line 1: ")),
                "{condition}: {found:?}"
            );
            assert!(found[0].contains("policy `p`"), "{condition}: {found:?}");
        }
    }
    // Before a key is made, it has no ARN; afterwards it always has.
    let any = r#"@id("p") permit(principal, action, resource) when { context.kmsKeyArn == "x" };"#;
    assert!(faults(any)[0].contains("kmsKeyArn"), "{:?}", faults(any));
    load(
        r#"@id("p") permit(principal, action == Action::"Decrypt", resource) when { context.kmsKeyArn == "x" };"#,
    );
}

#[test]
fn what_the_schema_does_not_know_or_can_never_be_is_not_loaded() {
    for (policy, said) in [
        (r#"permit(principal, action == Action::"GetHealthStatus", resource)"#, "GetHealthStatus"),
        (r#"permit(principal, action == Action::"decrypt", resource)"#, "decrypt"),
        (r#"permit(principal == User::"a", action, resource)"#, "User"),
        (
            r#"permit(principal, action, resource) when { context has kmsViaServices && context.kmsViaServices == "s3" }"#,
            "impossible",
        ),
        (r#"permit(principal, action, resource) when { context.kmsOperations == "a" }"#, "kmsOperations"),
        (r#"permit(principal, action, resource) when { context.kmsOperation == 1 }"#, "compatible"),
        (r#"permit(principal, action, resource) when { principal.kind == "a" && false }"#, "impossible"),
        (r#"permit(principal, action, resource) when { principal.kind == "\u{202e}abc" }"#, "BIDI"),
        (
            r#"permit(principal, action, resource in ExternalKey::"a/b") when { resource in Caller::"x" }"#,
            "impossible",
        ),
    ] {
        let found = faults(&format!("@id(\"p\")\n{policy};"));
        assert!(found.iter().any(|fault| fault.contains(said)), "{policy}: {found:?}");
    }
}

#[test]
fn each_policy_has_an_id_of_its_own() {
    let all = "permit(principal, action, resource);";
    let long = "x".repeat(129);
    for (text, said) in [
        (all.to_owned(), "policy 1 of the file has no @id"),
        (format!("{PERMIT_ALL}{all}"), "policy 2 of the file has no @id"),
        (format!("{PERMIT_ALL}{PERMIT_ALL}"), "another policy of the store"),
        (format!("@id(\"\") {all}"), "printable"),
        (format!("@id {all}"), "printable"),
        (format!("@id(\"a b\") {all}"), "printable"),
        (format!("@id(\"a\\n\") {all}"), "printable"),
        (format!("@id(\"{long}\") {all}"), "printable"),
        ("@id(\"t\") permit(principal == ?principal, action, resource);".to_owned(), "template"),
        ("@id(\"p\") permit(principal, action, resource)".to_owned(), "line 1"),
        ("\n\n@id(\"p\") permit(principal, action, resource) when { nonsense };".to_owned(), "line 3"),
        ("// nothing".to_owned(), "there is no policy"),
    ] {
        let found = faults(&text);
        assert!(found.iter().any(|fault| fault.contains(said)), "{text}: {found:?}");
        assert!(found.iter().all(|fault| !fault.contains('\n')), "{found:?}");
    }
    assert_eq!(Policies::load(&[]).unwrap_err(), [PolicyFault::Empty]);
    let files = [source(PERMIT_ALL), PolicySource { path: "b.cedar".into(), ..source(PERMIT_ALL) }];
    let found = Policies::load(&files).unwrap_err();
    assert!(found.len() == 1 && found[0].to_string().starts_with("b.cedar: "), "{found:?}");
    let ids = load(&format!("@id(\"b\") {all} @id(\"a:1/2.3_-\") {all}")).ids();
    assert_eq!(ids.iter().map(|id| &**id).collect::<Vec<_>>(), ["a:1/2.3_-", "b"]);
}

/// Arithmetic is the one thing that the validator cannot foresee.
pub(super) const OVERFLOWS: &str = "9223372036854775807 + 1 > 0";

#[test]
fn a_policy_that_cannot_be_evaluated_denies_whatever_the_others_say() {
    for effect in ["forbid", "permit"] {
        let text = format!(
            "{PERMIT_ALL}@id(\"broken\") {effect}(principal, action, resource) when {{ {OVERFLOWS} }};"
        );
        let denial = decrypt(&text, &json!({})).unwrap_err();
        assert_eq!((denial.policy.as_deref(), denial.reason.label()), (Some("broken"), "evaluation_error"));
        assert!(denial.to_string().starts_with("policy broken cannot be evaluated"), "{denial}");
        assert!(denial.to_string().contains("overflow"), "{denial}");
    }
}
