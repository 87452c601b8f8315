//! Authorization policies before a running proxy: who is let through, what everybody else is told, and what log, audit and
//! metrics say of it. The decisions themselves are tested in `src/policy/tests.rs`.

mod command;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use xks_harness::proxy::main_store;
use xks_harness::request::{decrypt_body, encrypt_body};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, XksRequest};

use crate::reload::Reloading;

const BASE: &str = "@id(\"base\") permit(principal, action, resource);\n";
/// Arithmetic is the one thing that the validator cannot foresee.
const BROKEN: &str = "@id(\"broken\") forbid(principal, action == Action::\"Decrypt\", resource) when { 9223372036854775807 + 1 < 0 };\n";

/// A folder with a store's policies, and with the audit log.
struct Scene(TempDir);

impl Scene {
    fn of(policies: &str) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        scene.write(policies);
        scene
    }

    fn policies(&self) -> PathBuf {
        self.0.path().join("main.cedar")
    }

    fn write(&self, policies: &str) {
        fs::write(self.policies(), policies).unwrap();
    }

    fn setup(&self) -> Setup {
        Setup {
            authorization: format!("authorization = \"cedar\"\npolicies = [{:?}]", self.policies()),
            more: format!("[audit]\npath = {:?}\n", self.0.path().join("audit.log")),
            ..Setup::default()
        }
    }

    /// The audit record of a request, once it is there.
    async fn record(&self, kms_request_id: &str) -> Value {
        let until = std::time::Instant::now() + xks_harness::proxy::PATIENCE;
        loop {
            let text = fs::read_to_string(self.0.path().join("audit.log")).unwrap();
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let mut records = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
            if let Some(record) =
                records.find(|record| record["requestMetadata"]["kmsRequestId"] == *kms_request_id)
            {
                return record;
            }
            assert!(std::time::Instant::now() < until, "no record of {kms_request_id}: {text}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

/// A client that says what it wants in its request metadata.
struct Client(Connection);

impl Client {
    async fn of(proxy: &Proxy) -> Self {
        Self(proxy.connect(Http::Two).await)
    }

    /// Sends a body to `demo` with further metadata; the answer and the kmsRequestId.
    async fn send(&mut self, operation: &str, mut body: Value, metadata: &Value) -> (Answer, String) {
        let fields = body["requestMetadata"].as_object_mut().unwrap();
        fields.extend(metadata.as_object().unwrap().clone());
        fields.retain(|_, value| !value.is_null());
        let id = fields["kmsRequestId"].as_str().unwrap().to_owned();
        let path = format!("/main/kms/xks/v1/keys/demo/{operation}");
        let answer = self.0.send(&XksRequest::new(&main_store().signing, path, &body)).await;
        (answer, id)
    }

    async fn encrypt(&mut self, metadata: &Value) -> (Answer, String) {
        self.send("encrypt", encrypt_body(b"x", None, false), metadata).await
    }

    async fn decrypt(&mut self, encrypted: &Value, metadata: &Value) -> (Answer, String) {
        self.send("decrypt", decrypt_body(encrypted, None), metadata).await
    }

    async fn metadata(&mut self, metadata: &Value) -> (Answer, String) {
        let body = json!({ "requestMetadata": xks_harness::request::metadata("CreateKey") });
        self.send("metadata", body, metadata).await
    }
}

fn denials(store: &str, reason: &str) -> String {
    format!("xks_policy_denials_total{{reason=\"{reason}\",store=\"{store}\"}}")
}

fn assert_denied(answer: &Answer) {
    assert_eq!(answer.refusal(), (403, "AccessDeniedException".to_owned()));
    let message = answer.json()["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("policies") && !message.contains("no-"), "{message}");
}

#[tokio::test]
async fn each_operation_is_allowed_and_denied_by_its_policy_alone() {
    for denied in ["Encrypt", "Decrypt", "GetKeyMetadata"] {
        let scene = Scene::of(&format!(
            "{BASE}@id(\"no-{denied}\") forbid(principal, action == Action::\"{denied}\", resource);"
        ));
        let proxy = Proxy::start(&scene.setup()).await;
        let mut client = Client::of(&proxy).await;
        let none = json!({});
        let encrypted = client.encrypt(&none).await;
        let ciphertext = if denied == "Encrypt" { made_up() } else { encrypted.0.ok() };
        let answers = [
            ("Encrypt", encrypted),
            ("Decrypt", client.decrypt(&ciphertext, &none).await),
            ("GetKeyMetadata", client.metadata(&none).await),
        ];
        for (operation, (answer, id)) in answers {
            let record = scene.record(&id).await;
            let line = proxy.request_log(&id);
            if operation == denied {
                assert_denied(&answer);
                let policy = format!("no-{denied}");
                assert_eq!((&record["policy"], &line["policy"]), (&json!(policy), &json!(policy)));
                assert_eq!(record["outcome"], "AccessDeniedException");
                assert_eq!(record["reason"], format!("denied: policy {policy} forbids it"));
                assert_eq!(record["hsmCalls"], 0, "no key was used");
            } else {
                assert_ne!(answer.status, 403, "{operation} where {denied} is denied");
                assert_eq!((&record["policy"], &line["policy"]), (&json!("base"), &json!("base")));
            }
        }
        assert_eq!(proxy.metric(&denials("main", "forbid")).await, 1.0);
    }
}

/// A ciphertext that nobody made.
fn made_up() -> Value {
    json!({
        "ciphertext": "eA==", "initializationVector": "AAAAAAAAAAAAAAAA", "authenticationTag": "AAAAAAAAAAAAAAAAAAAAAA==",
        "ciphertextMetadata": "AQAAAAE=",
    })
}

#[tokio::test]
async fn what_no_policy_permits_is_denied_and_no_policy_is_named() {
    let scene = Scene::of("@id(\"other\") permit(principal == Caller::\"AWS Internal\", action, resource);");
    let proxy = Proxy::start(&scene.setup()).await;
    let mut client = Client::of(&proxy).await;
    let (answer, id) = client.encrypt(&json!({})).await;
    assert_denied(&answer);
    let record = scene.record(&id).await;
    assert_eq!(
        (&record["policy"], &record["reason"]),
        (&Value::Null, &json!("denied: no policy permits it"))
    );
    assert_eq!(proxy.metric(&denials("main", "no_permit")).await, 1.0);
    let (answer, id) = client.encrypt(&json!({ "awsPrincipalArn": "AWS Internal" })).await;
    answer.ok();
    assert_eq!(scene.record(&id).await["policy"], "other");
}

#[tokio::test]
async fn health_and_other_stores_are_nobodys_policys_business() {
    let scene = Scene::of("@id(\"nobody\") forbid(principal, action, resource);");
    let proxy = Proxy::start(&scene.setup()).await;
    let mut connection = proxy.connect(Http::Two).await;
    connection.send(&XksRequest::health(&main_store())).await.ok();
    let nested = xks_harness::proxy::nested_store();
    let other = connection.send(&XksRequest::metadata(&nested, "a")).await;
    assert_eq!(other.refusal(), (404, "KeyNotFoundException".to_owned()), "store nested has no policies");
    let main = connection.send(&XksRequest::metadata(&main_store(), "demo")).await;
    assert_denied(&main);
}

#[tokio::test]
async fn a_policy_that_cannot_be_evaluated_denies_and_is_named() {
    let scene = Scene::of(&format!("{BASE}{BROKEN}"));
    let proxy = Proxy::start(&scene.setup()).await;
    let mut client = Client::of(&proxy).await;
    let encrypted = client.encrypt(&json!({})).await.0.ok();
    let (answer, id) = client.decrypt(&encrypted, &json!({})).await;
    assert_denied(&answer);
    let record = scene.record(&id).await;
    assert_eq!(record["policy"], "broken");
    let reason = record["reason"].as_str().unwrap();
    assert!(reason.starts_with("denied: policy broken cannot be evaluated, which denies: "), "{reason}");
    assert_eq!(proxy.request_log(&id)["policy"], "broken");
    assert_eq!(proxy.metric(&denials("main", "evaluation_error")).await, 1.0);
    assert_eq!(proxy.metric(&denials("main", "forbid")).await, 0.0);
}

/// A forbid on what must not be there lets those through that lack it, and one on what must be there does not: over the wire,
/// where fields are absent, null, empty or new.
#[tokio::test]
async fn each_optional_field_is_judged_present_and_absent() {
    let fields = ["kmsViaService", "awsSourceVpc", "awsSourceVpce"];
    let mut policies = BASE.to_owned();
    for field in fields {
        policies.push_str(&format!(
            "@id(\"not-{field}\") forbid(principal, action == Action::\"Encrypt\", resource) when {{ context has {field} && context.{field} == \"bad\" }};\n\
             @id(\"needs-{field}\") forbid(principal, action == Action::\"GetKeyMetadata\", resource) unless {{ context has {field} && context.{field} == \"good\" }};\n"
        ));
    }
    policies.push_str("@id(\"not-new\") forbid(principal, action == Action::\"Encrypt\", resource) when { context.other.hasTag(\"new\") && context.other.getTag(\"new\") == \"bad\" };\n");
    let scene = Scene::of(&policies);
    let proxy = Proxy::start(&scene.setup()).await;
    let mut client = Client::of(&proxy).await;
    let absent = json!({ "kmsViaService": null, "awsSourceVpc": null, "awsSourceVpce": null });
    client.encrypt(&absent).await.0.ok();
    let with = |base: &Value, field: &str, value: Value| {
        let mut metadata = base.clone();
        metadata[field] = value;
        metadata
    };
    for field in fields.into_iter().chain(["new"]) {
        client.encrypt(&with(&absent, field, json!("good"))).await.0.ok();
        client.encrypt(&with(&absent, field, json!(""))).await.0.ok();
        let (answer, id) = client.encrypt(&with(&absent, field, json!("bad"))).await;
        assert_denied(&answer);
        assert_eq!(scene.record(&id).await["policy"], format!("not-{field}"));
    }
    let all = json!({ "kmsViaService": "good", "awsSourceVpc": "good", "awsSourceVpce": "good" });
    client.metadata(&all).await.0.ok();
    for field in fields {
        for value in [Value::Null, json!(""), json!("bad")] {
            let (answer, id) = client.metadata(&with(&all, field, value)).await;
            assert_denied(&answer);
            assert_eq!(scene.record(&id).await["policy"], format!("needs-{field}"));
        }
    }
}

#[tokio::test]
async fn another_policy_holds_from_the_next_request_and_a_faulty_one_never() {
    let scene = Scene::of(BASE);
    let reloading = Reloading::start(scene.setup()).await;
    let mut client = Client::of(&reloading.proxy).await;
    let encrypted = client.encrypt(&json!({})).await.0.ok();
    scene.write(&format!(
        "{BASE}@id(\"no-more\") forbid(principal, action == Action::\"Encrypt\", resource);"
    ));
    client.encrypt(&json!({})).await.0.ok();
    assert_eq!(reloading.reload().await, "ok");
    let (answer, id) = client.encrypt(&json!({})).await;
    assert_denied(&answer);
    assert_eq!(scene.record(&id).await["policy"], "no-more");
    client.decrypt(&encrypted, &json!({})).await.0.ok();
    for faulty in [
        "@id(\"base\") permit(principal, action, resource)",
        "permit(principal, action, resource);",
        "@id(\"base\") permit(principal, action, resource) when { context.awsSourceVpce == \"x\" };",
        "",
    ] {
        scene.write(faulty);
        assert_eq!(reloading.reload().await, "faulty", "{faulty}");
        assert_denied(&client.encrypt(&json!({})).await.0);
    }
    assert!(reloading.verbose().await.contains("stores[0].policies: there is no policy"));
    scene.write(BASE);
    assert_eq!(reloading.reload().await, "ok");
    client.encrypt(&json!({})).await.0.ok();
}

#[tokio::test]
async fn policy_files_are_watched() {
    let scene = Scene::of(BASE);
    let setup = scene.setup();
    let more = format!("{}[reload]\nwatch_interval_ms = 100\n", setup.more);
    let proxy = Proxy::start(&Setup { more, ..setup }).await;
    let mut client = Client::of(&proxy).await;
    client.encrypt(&json!({})).await.0.ok();
    scene.write("@id(\"nobody\") forbid(principal, action, resource);");
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_config_generation 2\n")).await;
    let (answer, id) = client.encrypt(&json!({})).await;
    assert_denied(&answer);
    assert_eq!(scene.record(&id).await["policy"], "nobody");
}
