//! Which key of the token an external key is, and what becomes of it when the token's keys change while serving.

use std::time::{Duration, Instant};

use serde_json::json;
use xks_harness::proxy::nested_store;
use xks_harness::{Answer, Function, Setup, SoftHsm};

use super::rig::{Client, RECOVERY, Rig, outcome};

const BLOCKED: (u16, &str) = (400, "InvalidStateException");
const NOT_FOUND: (u16, &str) = (404, "KeyNotFoundException");
const USAGE: (u16, &str) = (400, "InvalidKeyUsageException");
const STATE: (u16, &str) = (400, "InvalidStateException");
const INVALID_CIPHERTEXT: (u16, &str) = (400, "InvalidCiphertextException");
const OK: (u16, &str) = (200, "");

fn is(answer: &Answer, expected: (u16, &str)) -> bool {
    outcome(answer) == (expected.0, expected.1.to_owned())
}

/// Looks at attributes and at the list of keys often, so that tests need not wait for what takes 30 s or 5 minutes.
fn quick() -> Setup {
    let intervals = "intervals = { key_attributes_ms = 200, health_probe_ms = 200, reindex_secs = 1 }";
    Setup { token: format!("sessions = 2\n{intervals}"), ..Setup::default() }
}

/// Looks at attributes often, but not at the list of keys.
fn quick_attributes() -> Setup {
    let intervals = "intervals = { key_attributes_ms = 200, health_probe_ms = 30000 }";
    Setup { token: format!("sessions = 2\n{intervals}"), ..Setup::default() }
}

/// Looks at nothing anew within the test.
fn slow() -> Setup {
    Setup { token: "sessions = 2\nintervals = { health_probe_ms = 30000 }".to_owned(), ..Setup::default() }
}

/// Asks until the answer is `wanted`; every answer before is one of `meanwhile`.
async fn wait_for<F>(client: &mut Client, ask: F, wanted: (u16, &str), meanwhile: &[(u16, &str)])
where
    F: AsyncFn(&mut Client) -> Answer,
{
    let until = Instant::now() + RECOVERY;
    loop {
        let answer = ask(client).await;
        if is(&answer, wanted) {
            return;
        }
        assert!(meanwhile.iter().any(|known| is(&answer, *known)), "{:?}", outcome(&answer));
        assert!(Instant::now() < until, "still {:?} and not {wanted:?}", outcome(&answer));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Attributes are read by one call, which has room for labels of a usual length: one that fills it, or does not fit, is read by
/// another.
#[tokio::test]
async fn a_label_of_any_length_is_indexed() {
    let labels = [255, 256, 300].map(|length| "l".repeat(length));
    let token = SoftHsm::with_keys();
    labels.iter().for_each(|label| token.generate(label, &[]));
    let absent = "l".repeat(301);
    let listed = labels.iter().chain([&absent]).enumerate().map(|(number, label)| {
        format!("[[stores.keys]]\nexternal_key_id = \"long-{number}\"\nlabel = \"{label}\"\n")
    });
    let setup = slow();
    let rig =
        Rig::start_on(Setup { keys: setup.keys.clone() + &listed.collect::<String>(), ..setup }, token).await;
    // The index alone is asked.
    let (_, text) = rig.proxy.admin("/readyz?verbose").await;
    let is_unresolved = |label: &str| text.contains(&format!("label \"{label}\""));
    assert!(is_unresolved(&absent), "{text}");
    assert!(labels.iter().all(|label| !is_unresolved(label)), "{text}");
}

#[tokio::test]
async fn an_external_key_is_a_label_an_id_or_what_a_rule_makes_of_it() {
    let token = SoftHsm::with_keys();
    token.generate("of any label", &["--id", "0a1b2c"]);
    token.generate("nested-by-rule", &["--id", "ff"]);
    let mut setup = slow();
    setup.keys.push_str("[[stores.keys]]\nexternal_key_id = \"by-id\"\ncka_id = \"0a1b2c\"\n");
    let rig = Rig::start_on(setup, token).await;
    let mut main = rig.client().await;
    let mut nested = rig.client_of(nested_store()).await;
    let by_label = main.encrypt("demo").await.ok();
    main.assert_decrypts("demo", &by_label).await;
    let by_id = main.encrypt_with_integrity_value("by-id").await.ok();
    main.assert_decrypts("by-id", &by_id).await;
    let by_rule = nested.encrypt_with_integrity_value("by-rule").await.ok();
    nested.assert_decrypts("by-rule", &by_rule).await;
    assert!(is(&main.decrypt("demo", &by_id).await, INVALID_CIPHERTEXT), "each is a key of its own");
    // The rule is applied to the id as it is, and only in its own store.
    for id in ["nested-by-rule", "by-rulE", "demo"] {
        assert!(is(&nested.metadata(id).await, NOT_FOUND), "{id}");
    }
    for id in ["by-rule", "of any label", "0a1b2c"] {
        assert_ne!(main.metadata(&id.replace(' ', "-")).await.status, 200, "{id}");
    }
}

#[tokio::test]
async fn a_key_created_while_serving_is_found_though_it_was_missed_before() {
    let rig = Rig::start(slow()).await;
    let mut client = rig.client().await;
    assert!(is(&client.metadata("absent").await, NOT_FOUND));
    assert!(is(&client.encrypt("absent").await, NOT_FOUND));
    rig.proxy.token.generate("absent", &[]);
    wait_for(&mut client, async |client| client.metadata("absent").await, OK, &[NOT_FOUND]).await;
    let encrypted = client.encrypt_with_integrity_value("absent").await.ok();
    client.assert_decrypts("absent", &encrypted).await;
    // One that nobody has asked for is there at once.
    rig.proxy.token.generate("nested-new", &[]);
    let mut nested = rig.client_of(nested_store()).await;
    assert_eq!(nested.metadata("new").await.ok()["keySpec"], "AES_256");
}

#[tokio::test]
async fn a_key_destroyed_while_serving_is_not_found_within_the_age_of_its_attributes() {
    let rig = Rig::start(quick_attributes()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    rig.proxy.token.tool(&["destroy", "--label", "demo"]);
    wait_for(&mut client, async |client| client.metadata("demo").await, NOT_FOUND, &[OK]).await;
    assert!(is(&client.encrypt("demo").await, NOT_FOUND));
    assert!(is(&client.decrypt("demo", &encrypted).await, NOT_FOUND));
    assert_eq!(client.encrypt("demo-2").await.status, 200, "other keys are as they were");

    // The same label is not the same key.
    rig.proxy.token.generate("demo", &[]);
    wait_for(&mut client, async |client| client.encrypt("demo").await, BLOCKED, &[NOT_FOUND]).await;
    assert!(is(&client.decrypt("demo", &encrypted).await, BLOCKED));
}

#[tokio::test]
async fn a_key_destroyed_while_serving_is_not_found_by_the_operation_that_meets_it() {
    // Attributes that were read less than 30 s ago say that all is well.
    let rig = Rig::start(slow()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    client.encrypt("demo-2").await.ok();
    for key in ["demo", "demo-2"] {
        rig.proxy.token.tool(&["destroy", "--label", key]);
    }
    assert!(is(&client.encrypt("demo-2").await, NOT_FOUND));
    assert!(is(&client.decrypt("demo", &encrypted).await, NOT_FOUND));
    assert!(is(&client.encrypt_with_integrity_value("demo").await, NOT_FOUND));
}

#[tokio::test]
async fn a_key_made_anew_under_its_label_is_another_key() {
    let rig = Rig::start(slow()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    rig.proxy.token.tool(&["destroy", "--label", "demo"]);
    rig.proxy.token.generate("demo", &[]);
    for answer in [client.encrypt("demo").await, client.decrypt("demo", &encrypted).await] {
        assert!(is(&answer, BLOCKED));
    }
    rig.wait_for_health("DEGRADED").await;
    client.encrypt("demo-2").await.ok();
}

#[tokio::test]
async fn a_usage_forbidden_while_serving_is_refused_and_one_allowed_again_works() {
    let rig = Rig::start(quick_attributes()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let set = |usage: &str| rig.proxy.token.tool(&["set", "--label", "demo", "--usage", usage]);

    set("decrypt");
    wait_for(&mut client, async |client| client.encrypt("demo").await, USAGE, &[OK]).await;
    client.assert_decrypts("demo", &encrypted).await;
    let metadata = async |client: &mut Client| client.metadata("demo").await.ok()["keyUsage"].clone();
    assert_eq!(metadata(&mut client).await, json!(["DECRYPT"]));
    let before = rig.faults.calls(Function::EncryptInit);
    assert!(is(&client.encrypt_with_integrity_value("demo").await, USAGE));
    assert_eq!(rig.faults.calls(Function::EncryptInit), before, "refused before any cryptographic call");

    set("encrypt");
    let decrypt = async |client: &mut Client| client.decrypt("demo", &encrypted).await;
    wait_for(&mut client, decrypt, USAGE, &[OK]).await;
    wait_for(&mut client, async |client| client.encrypt("demo").await, OK, &[USAGE]).await;
    let verified = async |client: &mut Client| client.encrypt_with_integrity_value("demo").await;
    assert!(is(&verified(&mut client).await, USAGE), "who cannot decrypt cannot vouch");
    assert_eq!(metadata(&mut client).await, json!(["ENCRYPT"]));

    set("encrypt,decrypt");
    wait_for(&mut client, decrypt, OK, &[USAGE]).await;
    wait_for(&mut client, verified, OK, &[USAGE]).await;
}

#[tokio::test]
async fn a_usage_forbidden_a_moment_ago_is_refused_by_the_operation_that_meets_it() {
    let rig = Rig::start(slow()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    rig.proxy.token.tool(&["set", "--label", "demo", "--usage", "none"]);
    assert!(is(&client.encrypt("demo").await, USAGE));
    assert!(is(&client.decrypt("demo", &encrypted).await, USAGE));
    assert_eq!(
        client.metadata("demo").await.ok()["keyUsage"],
        json!([]),
        "what the token said was looked at anew"
    );
    let before = (rig.faults.calls(Function::EncryptInit), rig.faults.calls(Function::DecryptInit));
    assert!(is(&client.encrypt("demo").await, USAGE));
    assert!(is(&client.decrypt("demo", &encrypted).await, USAGE));
    let after = (rig.faults.calls(Function::EncryptInit), rig.faults.calls(Function::DecryptInit));
    assert_eq!(before, after, "refused before any cryptographic call");
}

#[tokio::test]
async fn keys_of_one_label_are_refused_until_one_is_left() {
    let token = SoftHsm::with_keys();
    token.generate("demo", &["--id", "02", "--duplicate"]);
    let rig = Rig::start_on(quick(), token).await;
    let mut client = rig.client().await;
    for answer in [client.metadata("demo").await, client.encrypt("demo").await] {
        assert!(is(&answer, STATE), "{:?}", outcome(&answer));
        let message = answer.json()["errorMessage"].as_str().unwrap().to_owned();
        assert!(message.contains("several keys"), "{message}");
    }
    let line = rig.proxy.request_log(&client.request_id);
    assert!(line["reason"].as_str().unwrap().contains("2 secret keys"), "{line}");
    assert_eq!(client.encrypt("demo-2").await.status, 200);

    rig.proxy.token.tool(&["destroy", "--label", "demo", "--id", "02"]);
    wait_for(&mut client, async |client| client.encrypt("demo").await, OK, &[STATE]).await;
    let encrypted = client.encrypt("demo").await.ok();

    rig.proxy.token.generate("demo", &["--id", "03", "--duplicate"]);
    wait_for(&mut client, async |client| client.encrypt("demo").await, STATE, &[OK]).await;
    assert!(is(&client.decrypt("demo", &encrypted).await, STATE));
    assert!(is(&client.metadata("demo").await, STATE));
    rig.proxy.token.tool(&["destroy", "--label", "demo", "--id", "03"]);
    wait_for(&mut client, async |client| client.encrypt("demo").await, OK, &[STATE]).await;
    client.assert_decrypts("demo", &encrypted).await;
}

/// Whoever removes the wrong one need not wait until all keys are listed anew, which is five minutes here.
#[tokio::test]
async fn a_key_that_is_the_only_one_of_its_label_again_serves_at_once() {
    let token = SoftHsm::with_keys();
    token.generate("demo", &["--id", "02", "--duplicate"]);
    let rig = Rig::start_on(quick_attributes(), token).await;
    let mut client = rig.client().await;
    let out = |count: u8| format!("xks_token_keys_out{{reason=\"ambiguous\",token=\"softhsm\"}} {count}\n");
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out(1))).await;
    rig.wait_for_health("DEGRADED").await;
    assert!(is(&client.encrypt("demo").await, STATE));
    rig.proxy.token.tool(&["destroy", "--label", "demo", "--id", "02"]);
    wait_for(&mut client, async |client| client.encrypt("demo").await, OK, &[STATE]).await;
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out(0))).await;
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn keys_of_one_label_that_a_search_finds_are_refused_too_and_logged() {
    let rig = Rig::start(slow()).await;
    for id in ["01", "02"] {
        rig.proxy.token.generate("nested-twice", &["--id", id, "--duplicate"]);
    }
    let mut nested = rig.client_of(nested_store()).await;
    for _ in 0..3 {
        assert!(is(&nested.encrypt("twice").await, STATE));
    }
    let line = rig.proxy.wait_for_log(|line| line["level"] == "ERROR" && line["count"] == 2);
    assert!(line["locator"].as_str().unwrap().contains("nested-twice"), "{line}");
}

#[tokio::test]
async fn a_key_that_is_no_aes_256_key_is_refused_before_any_cryptographic_call() {
    let rig = Rig::start(slow()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let before = (rig.faults.calls(Function::EncryptInit), rig.faults.calls(Function::DecryptInit));
    assert!(is(&client.encrypt("aes-128").await, USAGE));
    assert!(is(&client.decrypt("aes-128", &encrypted).await, USAGE));
    assert!(is(&client.encrypt("no-usage").await, USAGE));
    assert!(is(&client.encrypt("decrypt-only").await, USAGE));
    assert!(is(&client.decrypt("encrypt-only", &encrypted).await, USAGE));
    let after = (rig.faults.calls(Function::EncryptInit), rig.faults.calls(Function::DecryptInit));
    assert_eq!(before, after);
    assert_eq!(client.metadata("aes-128").await.ok()["keySpec"], "AES_128");
}

#[tokio::test]
async fn what_the_token_does_not_tell_of_a_key_is_not_made_up() {
    for answer in ["CKR_ATTRIBUTE_TYPE_INVALID", "CKR_ATTRIBUTE_SENSITIVE", "CKR_OK"] {
        let hide = |attribute: &str| {
            format!("C_GetAttributeValue hide_attribute={attribute} answer={answer} label=demo\n")
        };
        let rig = Rig::start_with_faults(slow(), SoftHsm::with_keys(), &hide("CKA_VALUE_LEN"));
        rig.proxy.wait_until_ready().await;
        let mut client = rig.client().await;
        let metadata = client.metadata("demo").await.ok();
        assert_ne!(metadata["keySpec"], "AES_256", "{answer}");
        assert!(is(&client.encrypt("demo").await, USAGE), "{answer}");

        let rig = Rig::start_with_faults(slow(), SoftHsm::with_keys(), &hide("CKA_DECRYPT"));
        rig.proxy.wait_until_ready().await;
        let mut client = rig.client().await;
        assert_eq!(client.metadata("demo").await.ok()["keyUsage"], json!(["ENCRYPT"]), "{answer}");
        assert!(is(&client.encrypt_with_integrity_value("demo").await, USAGE), "{answer}");
    }
}
