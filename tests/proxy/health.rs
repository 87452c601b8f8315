//! Health as measured: a real encryption and decryption under a key of its own, and never an old ACTIVE.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use xks_harness::client::plain_get;
use xks_harness::proxy::nested_store;
use xks_harness::{Function, Http, Setup, SoftHsm, XksRequest};

use crate::tokens::rig::{RECOVERY, Rig, is_internal, outcome, second_store, with_second_token};

/// Probes as often as the configuration allows, so that tests see several of them.
fn setup(more_intervals: &str) -> Setup {
    let intervals = format!("intervals = {{ health_probe_ms = 100{more_intervals} }}");
    Setup { token: format!("sessions = 2\n{intervals}"), ..Setup::default() }
}

/// Two intervals are longer than any test.
fn rare_probes() -> Setup {
    Setup { token: "sessions = 2\nintervals = { health_probe_ms = 30000 }".to_owned(), ..Setup::default() }
}

/// A token with the key `demo` and none to probe with.
fn token_without_health_key() -> SoftHsm {
    let token = SoftHsm::empty();
    token.generate("demo", &[]);
    token
}

fn status(health: &Value) -> &str {
    health["ekmFleetDetails"][0]["healthStatus"].as_str().unwrap()
}

/// Status codes of `/ping` on the TLS listener and the plain one, and of `/readyz`.
async fn readiness(rig: &Rig) -> [u16; 3] {
    let ping = XksRequest {
        method: Method::GET,
        path: "/ping".to_owned(),
        body: Vec::new(),
        headers: Vec::new(),
        signing: None,
    };
    let tls = rig.proxy.connect(Http::Two).await.send(&ping).await.status.as_u16();
    let plain = plain_get(rig.proxy.ping, "/ping").await.0;
    [tls, plain, rig.proxy.admin("/readyz").await.0]
}

const READY: [u16; 3] = [200; 3];
const NOT_READY: [u16; 3] = [503; 3];

#[tokio::test]
async fn health_says_truly_who_the_token_is() {
    let rig = Rig::start(setup("")).await;
    let health = rig.client().await.health().await.ok();
    assert_eq!(status(&health), "ACTIVE");
    assert_eq!(health["ekmVendor"], "SoftHSM project");
    let details = health["ekmFleetDetails"].as_array().unwrap();
    assert_eq!(details.len(), 1);
    let model = details[0]["model"].as_str().unwrap();
    assert!(model.starts_with("SoftHSM v2 firmware 2."), "{model}");
    // SoftHSM2 names a token's folder by a UUID that ends in the serial number.
    let folder = rig.proxy.token.objects().file_name().unwrap().to_str().unwrap().replace('-', "");
    assert!(folder.ends_with(details[0]["id"].as_str().unwrap()), "{folder}");
    assert_eq!(health["xksProxyFleetSize"], 1);
    assert_eq!(readiness(&rig).await, READY);
    let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
    assert!(verbose.starts_with("ready\ntoken softhsm active\n"), "{verbose}");
}

#[tokio::test]
async fn there_is_no_answer_before_the_first_probe_has_ended() {
    for rule in
        ["C_Encrypt hang until_removed", "C_Login hang until_removed", "C_Initialize hang until_removed"]
    {
        let rig = Rig::start_with_faults(rare_probes(), SoftHsm::with_keys(), rule);
        let function = rule.split(' ').next().unwrap().parse::<Function>().unwrap();
        rig.proxy.wait_for("/livez", |status, _| status == 200).await;
        while rig.faults.calls(function) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let answer = rig.client().await.health().await;
        assert_eq!(outcome(&answer), (503, "DependencyTimeoutException".to_owned()), "{rule}");
        assert_eq!(readiness(&rig).await, NOT_READY, "{rule}");
        rig.faults.clear();
        rig.wait_for_health("ACTIVE").await;
        rig.proxy.wait_until_ready().await;
    }
}

#[tokio::test]
async fn a_prober_that_hangs_for_two_intervals_is_unavailable_until_it_goes_on() {
    let rig = Rig::start(setup("")).await;
    for rule in
        ["C_Encrypt hang until_removed label=xks-health", "C_DecryptInit hang until_removed label=xks-health"]
    {
        rig.faults.set(rule);
        rig.wait_for_health("UNAVAILABLE").await;
        assert_eq!(readiness(&rig).await, NOT_READY);
        let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
        assert!(verbose.contains("hangs"), "{verbose}");
        let mut client = rig.client().await;
        for _ in 0..3 {
            assert_eq!(status(&client.health().await.ok()), "UNAVAILABLE", "never the old ACTIVE");
        }
        rig.faults.clear();
        rig.wait_for_health("ACTIVE").await;
        assert_eq!(readiness(&rig).await, READY);
    }
}

#[tokio::test]
async fn a_prober_that_cannot_begin_because_its_thread_hangs_elsewhere_is_unavailable_too() {
    for rule in ["C_FindObjectsInit hang until_removed", "C_GetAttributeValue hang until_removed"] {
        let rig = Rig::start(setup("")).await;
        rig.faults.set(rule);
        // A key that is not in the index makes the thread search.
        let mut client = rig.client_of(nested_store()).await;
        let name = if rule.contains("Attribute") { "new" } else { "absent" };
        rig.proxy.token.generate("nested-new", &[]);
        let search = tokio::spawn(async move { client.metadata(name).await });
        rig.wait_for_health("UNAVAILABLE").await;
        rig.faults.clear();
        rig.wait_for_health("ACTIVE").await;
        search.await.unwrap();
    }
}

#[tokio::test]
async fn a_probe_that_fails_is_unavailable_with_its_reason_until_one_succeeds() {
    let rig = Rig::start(setup("")).await;
    for (rule, reason) in [
        ("C_EncryptInit fail=CKR_DEVICE_ERROR label=xks-health", "CKR_DEVICE_ERROR"),
        ("C_Encrypt fail=CKR_GENERAL_ERROR label=xks-health", "CKR_GENERAL_ERROR"),
        ("C_DecryptInit fail=CKR_HOST_MEMORY label=xks-health", "CKR_HOST_MEMORY"),
        ("C_Decrypt fail=CKR_FUNCTION_FAILED label=xks-health", "CKR_FUNCTION_FAILED"),
        ("C_Encrypt fail=CKR_DEVICE_REMOVED label=xks-health", ""),
        ("C_Decrypt corrupt=plaintext label=xks-health", "something else"),
        ("C_Encrypt corrupt=ciphertext label=xks-health", "C_Decrypt"),
        ("C_DecryptInit other_value label=xks-health", "C_Decrypt"),
    ] {
        rig.faults.set(rule);
        rig.wait_for_health("UNAVAILABLE").await;
        let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
        assert!(verbose.contains("unavailable") && verbose.contains(reason), "{rule}: {verbose}");
        rig.faults.clear();
        rig.wait_for_health("ACTIVE").await;
    }
    assert_eq!(readiness(&rig).await, READY);
    rig.wait_until_it_serves().await;
}

/// A busy HSM says CKR_FUNCTION_FAILED now and then, and is as good as before a moment later.
#[tokio::test]
async fn a_probe_that_fails_once_is_followed_by_another_one_soon() {
    const INTERVAL: Duration = Duration::from_secs(10);
    let token = format!("sessions = 2\nintervals = {{ health_probe_ms = {} }}", INTERVAL.as_millis());
    let rig = Rig::start(Setup { token, ..Setup::default() }).await;
    for busy in [
        "C_EncryptInit fail=CKR_FUNCTION_FAILED label=xks-health times=1",
        // It is looked at twice whether what is encrypted decrypts.
        "C_Decrypt fail=CKR_FUNCTION_FAILED label=xks-health times=2",
    ] {
        rig.faults.set(busy);
        let rule = busy.parse().unwrap();
        let times = u64::from(busy.as_bytes()[busy.len() - 1] - b'0');
        rig.faults.wait_for("a probe that fails", |counts| counts.fired(&rule) == times).await;
        let failed_at = Instant::now();
        rig.faults
            .wait_for("the next probe", |counts| {
                counts.rule(&rule).is_some_and(|count| count.matched > times)
            })
            .await;
        assert!(failed_at.elapsed() < INTERVAL * 8 / 10, "{busy}: {:?}", failed_at.elapsed());
        rig.wait_for_health("ACTIVE").await;
        rig.wait_until_it_serves().await;
    }
}

#[tokio::test]
async fn without_a_health_key_a_session_key_is_made_once_until_there_is_one() {
    let rig = Rig::start_with_faults(setup(""), token_without_health_key(), "");
    rig.wait_for_health("ACTIVE").await;
    rig.faults.wait_for("five probes", |counts| counts.calls(Function::Encrypt) >= 5).await;
    assert_eq!(rig.faults.calls(Function::GenerateKey), 1);
    let listing = rig.proxy.token.tool(&["list", "--json"]);
    let listing: Value = serde_json::from_str(&listing).unwrap();
    let is_key = |object: &&Value| object["class"] == "CKO_SECRET_KEY";
    assert_eq!(listing.as_array().unwrap().iter().filter(is_key).count(), 1, "{listing}");

    // A fault of the key with that label shows that it is the one probed with.
    rig.proxy.token.generate("xks-health", &[]);
    rig.faults.set("C_EncryptInit fail=CKR_DEVICE_ERROR label=xks-health");
    rig.wait_for_health("UNAVAILABLE").await;
    rig.faults.clear();
    rig.wait_for_health("ACTIVE").await;
    assert_eq!(rig.faults.calls(Function::GenerateKey), 1);
}

/// A proxy that serves on a token that has lost its health key and allows no session key.
async fn rig_that_lost_its_health_key() -> Rig {
    let rig = Rig::start(setup("")).await;
    rig.faults.set(NO_SESSION_KEY);
    rig.proxy.token.tool(&["destroy", "--label", "xks-health"]);
    rig.wait_for_health("DEGRADED").await;
    rig
}

const NO_SESSION_KEY: &str = "C_GenerateKey fail=CKR_FUNCTION_NOT_SUPPORTED";

fn assert_says_what_key_to_make(text: &str) {
    for word in ["xks-health", "AES-256", "encrypt", "decrypt", "CKR_FUNCTION_NOT_SUPPORTED"] {
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn without_any_key_to_prove_itself_with_a_token_that_makes_ivs_stays_out() {
    let rig = {
        let mut setup = setup("");
        setup.token.push_str("\niv_source = \"written-back\"");
        let rules = format!("{NO_SESSION_KEY}\nC_EncryptInit gcm_iv=written_back");
        Rig::start_with_faults(setup, token_without_health_key(), &rules)
    };
    rig.wait_for_health("UNAVAILABLE").await;
    assert_eq!(readiness(&rig).await, NOT_READY);
    assert!(is_internal(&rig.client().await.encrypt("demo").await));
    rig.faults.wait_for("three tries", |counts| counts.calls(Function::GenerateKey) >= 3).await;
    let lines = rig.proxy.log_lines();
    let errors: Vec<_> = lines.iter().filter(|line| line["message"] == "the token is not usable").collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_says_what_key_to_make(errors[0]["reason"].as_str().unwrap());
    let (code, text) = rig.check();
    assert_eq!(code, Some(1));
    assert_says_what_key_to_make(&text);

    rig.proxy.token.generate("xks-health", &[]);
    rig.wait_for_health("ACTIVE").await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn without_any_key_to_probe_with_health_is_degraded_and_the_log_says_once_what_to_do() {
    let rule = "C_GenerateKey fail=CKR_FUNCTION_NOT_SUPPORTED";
    let rig = Rig::start_with_faults(setup(""), token_without_health_key(), rule);
    rig.wait_for_health("DEGRADED").await;
    // It can serve, once its keys have been looked at.
    rig.proxy.wait_until_ready().await;
    rig.wait_until_it_serves().await;
    rig.faults.wait_for("five probes", |counts| counts.calls(Function::GenerateKey) >= 5).await;
    let lines = rig.proxy.log_lines();
    let warnings: Vec<_> = lines.iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_says_what_key_to_make(warnings[0]["reason"].as_str().unwrap());
    let (code, text) = rig.check();
    assert!(text.contains("degraded"), "{code:?} {text}");

    rig.proxy.token.generate("xks-health", &[]);
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_health_key_that_may_not_decrypt_is_degraded_until_it_may() {
    let token = token_without_health_key();
    token.generate("xks-health", &["--usage", "encrypt"]);
    let rig = Rig::start_with_faults(setup(""), token, "");
    rig.wait_for_health("DEGRADED").await;
    let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
    assert!(verbose.contains("C_DecryptInit") && verbose.contains("NOT_PERMITTED"), "{verbose}");
    rig.wait_until_it_serves().await;
    rig.proxy.token.tool(&["set", "--label", "xks-health", "--usage", "encrypt,decrypt"]);
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_health_key_destroyed_while_serving_is_replaced_by_a_session_key() {
    let rig = Rig::start(setup("")).await;
    assert_eq!(rig.faults.calls(Function::GenerateKey), 0);
    rig.proxy.token.tool(&["destroy", "--label", "xks-health"]);
    rig.faults.wait_for("a session key", |counts| counts.calls(Function::GenerateKey) == 1).await;
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn the_health_key_is_no_external_key_by_rule_or_by_id() {
    let token = SoftHsm::empty();
    token.generate("demo", &["--id", "77"]);
    token.generate("xks-health", &["--id", "77"]);
    token.generate("other", &["--id", "78"]);
    let mut setup = with_second_token(setup(""), &token);
    setup.keys.push_str("[[stores.keys]]\nexternal_key_id = \"by-id\"\ncka_id = \"78\"\n");
    let rig = Rig::start_on(setup, token).await;
    let not_found = (404, "KeyNotFoundException".to_owned());
    // The rule of the second store makes every label of its token an external key.
    let mut client = rig.client_of(second_store()).await;
    assert_eq!(client.encrypt("demo").await.status, 200);
    assert_eq!(outcome(&client.metadata("xks-health").await), not_found);
    assert_eq!(outcome(&client.encrypt("xks-health").await), not_found);
    assert_eq!(rig.client().await.encrypt("by-id").await.status, 200);

    // Of two keys of one id, the health key is not the other.
    let token = SoftHsm::empty();
    token.generate("xks-health", &["--id", "77"]);
    let mut setup = rare_probes();
    setup.keys.push_str("[[stores.keys]]\nexternal_key_id = \"by-id\"\ncka_id = \"77\"\n");
    let rig = Rig::start_on(setup, token).await;
    let mut client = rig.client().await;
    assert_eq!(outcome(&client.metadata("by-id").await), not_found);
    rig.proxy.token.tool(&["generate", "--label", "another", "--id", "77"]);
    let until = Instant::now() + RECOVERY;
    while client.encrypt_with_integrity_value("by-id").await.status != 200 {
        assert!(Instant::now() < until);
    }
}

#[tokio::test]
async fn a_stores_health_is_that_of_its_own_token() {
    let token = SoftHsm::with_keys();
    let rig = Rig::start_on(with_second_token(setup(""), &token), token).await;
    let (mut main, mut second) = (rig.client().await, rig.client_of(second_store()).await);
    let ids = [main.health().await.ok(), second.health().await.ok()].map(|health| {
        assert_eq!(health["ekmFleetDetails"].as_array().unwrap().len(), 1);
        health["ekmFleetDetails"][0]["id"].clone()
    });
    assert_ne!(ids[0], ids[1]);

    rig.faults.set("C_Encrypt fail=CKR_DEVICE_ERROR token=xks-test");
    rig.wait_for_health("UNAVAILABLE").await;
    assert_eq!(status(&second.health().await.ok()), "ACTIVE");
    assert_eq!(readiness(&rig).await, READY, "one of two tokens still serves");
    rig.faults.set("C_Encrypt fail=CKR_DEVICE_ERROR");
    let until = Instant::now() + RECOVERY;
    while status(&second.health().await.ok()) != "UNAVAILABLE" {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(readiness(&rig).await, NOT_READY);
    rig.faults.clear();
    rig.wait_for_health("ACTIVE").await;
}

#[tokio::test]
async fn a_degraded_token_whose_sessions_all_hang_is_unavailable() {
    let rig = rig_that_lost_its_health_key().await;
    rig.faults.set(&format!("{NO_SESSION_KEY}\nC_Encrypt hang until_removed"));
    let mut waiting = Vec::new();
    // The two sessions, and as many replacements as there may be.
    for mut client in rig.clients(6).await {
        waiting.push(tokio::spawn(async move { client.encrypt("demo").await }));
    }
    rig.faults.wait_until_inside(Function::Encrypt, 6).await;
    rig.wait_for_health("UNAVAILABLE").await;
    assert_eq!(readiness(&rig).await, NOT_READY);
    rig.faults.set(NO_SESSION_KEY);
    for request in waiting {
        assert_eq!(request.await.unwrap().status, 200);
    }
    rig.wait_for_health("DEGRADED").await;
}

#[tokio::test]
async fn a_token_that_fails_every_search_is_unavailable_and_not_just_degraded() {
    let rule = "C_FindObjectsInit fail=CKR_DEVICE_ERROR";
    let rig = Rig::start_with_faults(setup(""), SoftHsm::with_keys(), rule);
    rig.wait_for_health("UNAVAILABLE").await;
    assert!(is_internal(&rig.client().await.encrypt("demo").await));
    assert_eq!(readiness(&rig).await, NOT_READY);
    rig.faults.clear();
    rig.wait_for_health("ACTIVE").await;
    rig.wait_until_it_serves().await;
}

#[tokio::test]
async fn a_token_that_a_request_found_gone_is_unavailable_before_the_next_probe() {
    for is_session_open in [true, false] {
        let token = "sessions = 1\nintervals = { health_probe_ms = 30000 }".to_owned();
        let rig = Rig::start(Setup { token, ..Setup::default() }).await;
        if is_session_open {
            rig.wait_until_it_serves().await;
        }
        rig.faults.set("* remove_token");
        assert!(is_internal(&rig.client().await.encrypt("demo").await));
        rig.wait_for_health("UNAVAILABLE").await;
        rig.faults.clear();
        rig.wait_for_health("ACTIVE").await;
    }
}

#[tokio::test]
async fn a_token_that_gives_no_session_to_work_with_is_not_active() {
    // One session is what the prober has.
    let rig = Rig::start_with_faults(setup(""), SoftHsm::with_keys(), "C_OpenSession session_limit=1");
    rig.proxy.wait_for("/livez", |status, _| status == 200).await;
    rig.faults.wait_for("two probes", |counts| counts.calls(Function::Decrypt) >= 2).await;
    let mut client = rig.client().await;
    for _ in 0..4 {
        assert!(is_internal(&client.encrypt("demo").await));
    }
    rig.faults.wait_for("more probes", |counts| counts.calls(Function::Decrypt) >= 10).await;
    let health = client.health().await.ok();
    assert_ne!(status(&health), "ACTIVE", "while every request fails");
}

#[tokio::test]
async fn the_metrics_tell_the_health_that_kms_is_told() {
    const HEALTH: &str = r#"xks_token_health{token="softhsm"}"#;
    const CONNECTED: &str = r#"xks_token_connected{token="softhsm"}"#;
    let mut wrong = Vec::new();
    for (setup, rule, connected) in [
        (setup(""), "C_Encrypt hang until_removed label=xks-health", 1.0),
        (rare_probes(), "* remove_token", 0.0),
    ] {
        // With one session, it is the one that the request before has opened which meets the fault.
        let token = setup.token.replace("sessions = 2", "sessions = 1");
        let rig = Rig::start(Setup { token, ..setup }).await;
        assert!(rig.proxy.metric(HEALTH).await == 2.0 && rig.proxy.metric(CONNECTED).await == 1.0);
        rig.wait_until_it_serves().await;
        rig.faults.set(rule);
        rig.client().await.encrypt("demo").await;
        rig.wait_for_health("UNAVAILABLE").await;
        let told = (rig.proxy.metric(HEALTH).await, rig.proxy.metric(CONNECTED).await);
        if told != (0.0, connected) {
            wrong.push(format!("{rule}: {told:?}"));
        }
        rig.faults.clear();
        rig.wait_for_health("ACTIVE").await;
        assert_eq!(rig.proxy.metric(HEALTH).await, 2.0);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn the_metrics_tell_of_sessions_that_hang_whoever_else_asks() {
    let rig = Rig::start(rare_probes()).await;
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut client = rig.client().await;
    let waiting = tokio::spawn(async move { client.encrypt("demo").await });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let until = Instant::now() + Duration::from_secs(5);
    while rig.proxy.metric(r#"xks_token_sessions_stalled{token="softhsm"}"#).await != 1.0 {
        assert!(Instant::now() < until, "no session is said to hang");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.faults.clear();
    assert_eq!(waiting.await.unwrap().status, 200);
}
