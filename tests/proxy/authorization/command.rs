//! `xks-proxy policy`, and the examples of deploy/policies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use xks_harness::binary::program;
use xks_harness::{Proxy, Setup, SoftHsm};

use super::{BASE, Client, Scene};

/// Exit code, standard output and standard error.
fn policy(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program("xks-proxy")).arg("policy").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies")
}

#[test]
fn every_example_decides_as_its_cases_say() {
    let base = examples().join("base.cedar");
    let mut names = Vec::new();
    for entry in fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = name.strip_suffix(".cedar").filter(|name| *name != "base") else { continue };
        let cases = examples().join(format!("{name}.cases.toml"));
        let [base, path, cases] = [&base, &path, &cases].map(|path| path.to_str().unwrap());
        let (code, found, errors) = policy(&["test", "--policy", base, "--policy", path, cases]);
        assert_eq!(code, 0, "{name}: {found}{errors}");
        // The cases can tell: without the policy some are decided otherwise.
        let (code, found, _) = policy(&["test", "--policy", base, cases]);
        assert_eq!(code, 1, "{name}: {found}");
        names.push(name.to_owned());
    }
    names.sort();
    assert_eq!(names, ["accounts", "decrypt-only", "kms-key", "via-service", "vpc-endpoint"]);
}

/// They stand side by side in one store.
#[test]
fn the_examples_narrow_one_another() {
    let files = ["base", "accounts", "kms-key", "via-service", "vpc-endpoint", "decrypt-only"];
    let paths = files.map(|name| examples().join(format!("{name}.cedar")));
    let mut arguments = vec!["test"];
    for path in &paths {
        arguments.extend(["--policy", path.to_str().unwrap()]);
    }
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("cases.toml");
    fs::write(
        &cases,
        r#"
store = "payments"
external_key_id = "ledger"
[request_metadata]
awsPrincipalArn = "arn:aws:iam::111122223333:user/Alice"
kmsKeyArn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
kmsOperation = "Decrypt"
kmsRequestId = "r"
kmsViaService = "s3.eu-central-1.amazonaws.com"
awsSourceVpce = "vpce-1a2b3c4d5e6f70819"
[[cases]]
name = "all hold"
operation = "Decrypt"
expect = "allow"
policy = "base"
[[cases]]
name = "all but one"
operation = "Decrypt"
request_metadata = { awsSourceVpce = "vpce-2" }
expect = "deny"
policy = "from-our-endpoint-only"
"#,
    )
    .unwrap();
    arguments.push(cases.to_str().unwrap());
    let (code, found, errors) = policy(&arguments);
    assert_eq!(code, 0, "{found}{errors}");
}

const CASES: &str = r#"
store = "main"
external_key_id = "demo"
[request_metadata]
awsPrincipalArn = "AWS Internal"
kmsKeyArn = "k"
kmsOperation = "Decrypt"
kmsRequestId = "r"
[[cases]]
name = "it is let through"
operation = "Decrypt"
expect = "allow"
"#;

#[test]
fn cases_are_held_against_the_policies_of_a_configuration() {
    let scene = Scene::of(BASE);
    let folder = tempfile::tempdir().unwrap();
    let token = SoftHsm::with_keys();
    let config = Setup { ..scene.setup() }.write(folder.path(), &token);
    let cases = folder.path().join("cases.toml");
    let run = |text: &str| {
        fs::write(&cases, text).unwrap();
        policy(&["test", "--config", config.to_str().unwrap(), cases.to_str().unwrap()])
    };
    let (code, found, errors) = run(CASES);
    assert_eq!((code, errors.as_str()), (0, ""), "{found}");
    assert!(found.contains("ok      it is let through: allowed, policy base permits it"), "{found}");
    for (from, to, explained) in [
        (
            "\"allow\"",
            "\"deny\"",
            "expected: deny; but it is allowed, policy base permits it (policies asked: base)",
        ),
        (
            "\"allow\"",
            "\"allow\"\npolicy = \"other\"",
            "expected: allow by policy other; but it is allowed, policy base",
        ),
        ("\"allow\"", "\"deny\"\nreason = \"forbid\"", "expected: deny for forbid; but it is allowed"),
        ("\"main\"", "\"nested\"", "store nested has authorization = \"none\""),
        ("\"main\"", "\"absent\"", "the configuration has no store absent"),
    ] {
        let (code, found, _) = run(&CASES.replacen(from, to, 1));
        assert!(code == 1 && found.contains(&format!("FAULT   it is let through: {explained}")), "{found}");
    }
    let (code, _, errors) = run(&CASES.replace("Decrypt", "decrypt"));
    assert!(code == 2 && errors.contains("cases[0].operation: must be one of"), "{errors}");
    scene.write("@id(\"nobody\") forbid(principal, action, resource);");
    let (code, found, _) = run(CASES);
    assert!(code == 1 && found.contains("but it is denied, policy nobody forbids it"), "{found}");
    scene.write("nonsense");
    let (code, _, errors) = run(CASES);
    assert!(code == 2 && errors.contains("stores[0].policies: ") && errors.contains("line 1"), "{errors}");
}

#[test]
fn what_is_missing_is_said() {
    let (code, _, errors) = policy(&["test", "--policy", "/absent.cedar", "/absent.toml"]);
    assert!(code == 2 && errors.contains("cannot read /absent.cedar"), "{errors}");
    let base = examples().join("base.cedar");
    let (code, _, errors) = policy(&["test", "--policy", base.to_str().unwrap(), "/absent.toml"]);
    assert!(code == 2 && errors.contains("cannot read /absent.toml"), "{errors}");
    let (code, _, errors) = policy(&["test", "cases.toml"]);
    assert!(code == 2 && errors.contains("--config"), "{errors}");
}

#[test]
fn the_schema_is_printed() {
    let (code, schema, _) = policy(&["schema"]);
    assert_eq!(code, 0);
    assert!(
        schema.contains("entity Caller = {") && schema.contains("action \"GetKeyMetadata\" appliesTo {"),
        "{schema}"
    );
    assert!(!schema.contains("GetHealthStatus"));
}

/// What another policy would have done to the requests of the audit log.
#[tokio::test]
async fn an_audit_log_makes_cases_as_json() {
    let scene = Scene::of(&format!(
        "{BASE}@id(\"no-decrypt\") forbid(principal, action == Action::\"Decrypt\", resource);"
    ));
    let proxy = Proxy::start(&scene.setup()).await;
    let mut client = Client::of(&proxy).await;
    let (encrypted, first) = client.encrypt(&json!({ "new": { "a": [1] } })).await;
    let (_, second) = client.decrypt(&encrypted.ok(), &json!({})).await;
    // As docs/authorization.md does with jq.
    let case = |record: &Value| {
        let is_denied = record["outcome"] == "AccessDeniedException";
        let mut case = json!({
            "name": record["requestMetadata"]["kmsRequestId"],
            "expect": if is_denied { "deny" } else { "allow" },
        });
        for name in ["store", "operation", "externalKeyId", "requestMetadata"] {
            case[name] = record[name].clone();
        }
        case
    };
    let cases = json!({ "cases": [case(&scene.record(&first).await), case(&scene.record(&second).await)] });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cases.json");
    fs::write(&file, cases.to_string()).unwrap();
    let run = || {
        let (policies, file) = (scene.policies(), &file);
        policy(&["test", "--policy", policies.to_str().unwrap(), file.to_str().unwrap()])
    };
    let (code, found, errors) = run();
    assert_eq!((code, errors.as_str()), (0, ""), "{found}");
    assert!(found.contains(&format!("ok      {second}: denied, policy no-decrypt forbids it")), "{found}");
    scene.write("@id(\"nobody\") forbid(principal, action, resource);");
    let (code, found, _) = run();
    let differs = format!("FAULT   {first}: expected: allow; but it is denied, policy nobody forbids it");
    assert!(code == 1 && found.contains(&differs), "{found}");
}
