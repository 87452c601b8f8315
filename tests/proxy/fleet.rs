//! Two tokens behind one store: the same keys, proven; failover, hedging, and a token that comes back.

mod breaker;
mod hedging;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::request::bytes_of;
use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Faults, Function, Setup, SoftHsm};

use crate::tokens::rig::{PLAINTEXT, RECOVERY, Rig, at_once, outcome, with_bad_tag};

pub(crate) const SECOND: &str = "xks-second";
const ONE_VALUE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER_VALUE: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Two tokens of one module; each has the keys given, by label and value.
fn tokens(first: &[(&str, &str)], second: &[(&str, &str)]) -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    for (name, keys) in [(LABEL, first), (SECOND, second)] {
        token.tool(&["generate", "--token", name, "--label", "xks-health"]);
        for (label, value) in keys {
            token.tool(&["import", "--token", name, "--label", label, "--value", value]);
        }
    }
    token
}

pub(crate) fn same_keys() -> SoftHsm {
    let keys = [("demo", ONE_VALUE), ("demo-2", OTHER_VALUE)];
    tokens(&keys, &keys)
}

/// Store `main` on both tokens. The deadline leaves a busy machine time, and is short enough that a token which hangs
/// until then would be missed.
pub(crate) fn setup() -> Setup {
    let intervals = "intervals = { health_probe_ms = 200, key_attributes_ms = 100 }";
    let more = format!(
        "[[tokens]]\nname = \"second\"\nmodule = \"{}\"\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\nsessions = 2\n{intervals}\n",
        Faults::module().display()
    );
    let listed =
        |label: &&str| format!("[[stores.keys]]\nexternal_key_id = \"{label}\"\nlabel = \"{label}\"\n");
    Setup {
        tokens: r#"["softhsm", "second"]"#.to_owned(),
        token: format!("sessions = 2\n{intervals}"),
        keys: ["demo", "demo-2"].iter().map(listed).collect(),
        timeouts: "answer_ms = 2000\nfirst_answer_ms = 2000".to_owned(),
        more,
        ..Setup::default()
    }
}

/// The metric of requests that a token was given second.
pub(crate) fn asked_second(token: &str, reason: &str) -> String {
    format!("xks_token_second_attempts_total{{reason=\"{reason}\",token=\"{token}\"}}")
}

/// The health of both tokens as KMS is told.
async fn health(rig: &Rig) -> [String; 2] {
    let health = rig.client().await.health().await.ok();
    let status = |n: usize| health["ekmFleetDetails"][n]["healthStatus"].as_str().unwrap().to_owned();
    [status(0), status(1)]
}

pub(crate) async fn wait_for_fleet(rig: &Rig, wanted: [&str; 2]) {
    let until = Instant::now() + RECOVERY;
    while health(rig).await != wanted {
        assert!(Instant::now() < until, "{:?} is not {wanted:?}\n{}", health(rig).await, rig.last_lines());
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn start(token: SoftHsm) -> Rig {
    let rig = Rig::start_with_faults(setup(), token, "");
    rig.proxy.wait_until_ready().await;
    rig
}

/// Both tokens are up, and have proven their keys.
async fn start_both() -> Rig {
    let rig = start(same_keys()).await;
    wait_until_both_serve(&rig).await;
    rig
}

/// Waits until requests go to both tokens.
pub(crate) async fn wait_until_both_serve(rig: &Rig) {
    wait_for_fleet(rig, ["ACTIVE", "ACTIVE"]).await;
    wait_until_both_are_asked(rig).await;
}

/// The same whatever their health: both have proven their keys.
async fn wait_until_both_are_asked(rig: &Rig) {
    let until = Instant::now() + RECOVERY;
    let mut client = rig.client().await;
    let mut served = [0, 0];
    // Requests take turns while nothing is busy.
    while served.contains(&0) {
        client.encrypt("demo").await.ok();
        let line = rig.proxy.request_log(&client.request_id);
        served[usize::from(line["token_serial"] != rig_serial(rig))] += 1;
        assert!(Instant::now() < until, "{served:?}");
    }
}

/// Serial number of the token that was asked first of all.
fn rig_serial(rig: &Rig) -> Value {
    let line = rig
        .proxy
        .wait_for_log(|line| line["message"] == "connected to the token" && line["token"] == "softhsm");
    line["serial"].clone()
}

#[tokio::test]
async fn each_token_is_listed_with_its_health() {
    let rig = start_both().await;
    let health = rig.client().await.health().await.ok();
    let details = health["ekmFleetDetails"].as_array().unwrap();
    assert_eq!(details.len(), 2);
    assert_ne!(details[0]["id"], details[1]["id"]);
}

/// Clients that encrypt and decrypt all the time, and stop at the first request that fails.
pub(crate) struct Traffic {
    is_over: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Result<usize, String>>>,
}

impl Traffic {
    pub(crate) async fn start(rig: &Rig, count: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for mut client in rig.clients(count).await {
            let is_over = Arc::clone(&is_over);
            clients.push(tokio::spawn(async move {
                let mut served = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let encrypted = client.encrypt("demo").await;
                    if encrypted.status != 200 {
                        return Err(format!("encrypt {served}: {:?}", outcome(&encrypted)));
                    }
                    let decrypted = client.decrypt("demo", &encrypted.json()).await;
                    if decrypted.status != 200 || bytes_of(&decrypted.json()["plaintext"]) != PLAINTEXT {
                        return Err(format!("decrypt {served}: {:?}", outcome(&decrypted)));
                    }
                    served += 2;
                    // Well below what one token can do, as in real life.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(served)
            }));
        }
        Self { is_over, clients }
    }

    pub(crate) async fn assert_no_failure(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            let served = client.await.unwrap().unwrap_or_else(|failure| panic!("{failure}"));
            assert!(served > 0);
        }
    }
}

#[tokio::test]
async fn no_request_fails_while_one_token_after_the_other_hangs_or_fails_or_is_gone() {
    let rig = start_both().await;
    let traffic = Traffic::start(&rig, 4).await;
    for fault in ["hang until_removed", "fail=CKR_DEVICE_ERROR", "remove_token"] {
        for (name, of, down) in
            [(LABEL, "softhsm", ["UNAVAILABLE", "ACTIVE"]), (SECOND, "second", ["ACTIVE", "UNAVAILABLE"])]
        {
            let rule = if fault == "remove_token" {
                format!("* {fault} token={name}")
            } else {
                format!("C_EncryptInit {fault} token={name}\nC_DecryptInit {fault} token={name}")
            };
            let breaker = |state: u8| format!("xks_token_breaker_open{{token=\"{of}\"}} {state}\n");
            rig.faults.set(&rule);
            wait_for_fleet(&rig, down).await;
            // A token that is gone needs no breaker: nothing is sent there. Nor does one whose keeper hung so long that another
            // began anew, before enough requests had met the fault.
            let began_anew = || {
                let is_it = |line: &Value| {
                    line["token"] == of
                        && line["message"] == "the health probe does not return: its thread is replaced"
                };
                rig.proxy.log_lines().iter().any(is_it)
            };
            if fault != "remove_token" {
                rig.proxy.wait_for("/metrics", |_, text| text.contains(&breaker(1)) || began_anew()).await;
            }
            rig.faults.clear();
            wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
            rig.proxy.wait_for("/metrics", |_, text| text.contains(&breaker(0))).await;
        }
    }
    traffic.assert_no_failure().await;
}

#[tokio::test]
async fn another_key_under_the_same_label_never_serves() {
    let one = [("demo", ONE_VALUE), ("demo-2", ONE_VALUE)];
    let other = [("demo", OTHER_VALUE), ("demo-2", ONE_VALUE)];
    let rig = start(tokens(&one, &other)).await;
    let until = Instant::now() + RECOVERY;
    let out = |text: &str| {
        text.contains(r#"xks_token_keys_out{reason="differs",token="second"} 1"#)
            || text.contains(r#"xks_token_keys_out{reason="differs",token="softhsm"} 1"#)
    };
    rig.proxy.wait_for("/metrics", |_, text| out(text)).await;
    let mut client = rig.client().await;
    let mut encrypted = Vec::new();
    while encrypted.len() < 50 {
        assert!(Instant::now() < until);
        encrypted.push(client.encrypt("demo").await.ok());
        client.encrypt("demo-2").await.ok();
    }
    for encrypted in &encrypted {
        client.assert_decrypts("demo", encrypted).await;
    }
    // Whichever token served first is the one whose key counts.
    let degraded = health(&rig).await;
    let refused = degraded.iter().position(|status| status == "DEGRADED").unwrap();
    let serving = [SECOND, LABEL][refused];
    rig.faults.set(&format!("* remove_token token={serving}"));
    let until = Instant::now() + RECOVERY;
    loop {
        let answer = client.encrypt("demo").await;
        assert_ne!(answer.status, 200, "the other token's key made a ciphertext");
        if client.encrypt("demo-2").await.status == 200 {
            break;
        }
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
}

/// What may not decrypt cannot show that it is the key meant: what it encrypts nobody may be able to open.
#[tokio::test]
async fn a_key_that_cannot_be_compared_never_encrypts() {
    for hidden in ["CKA_DECRYPT", "CKA_ENCRYPT"] {
        let rules = format!(
            "C_GetAttributeValue hide_attribute={hidden} answer=CKR_OK label=demo token={SECOND}\n\
             * other_value label=demo token={SECOND}\n* remove_token token={LABEL}"
        );
        let rig = Rig::start_with_faults(setup(), same_keys(), &rules);
        let mut client = rig.client().await;
        // Alone it encrypts nothing, and has made nothing that others are compared with.
        let until = Instant::now() + RECOVERY;
        while client.encrypt("demo-2").await.status != 200 {
            assert!(Instant::now() < until, "{}", rig.last_lines());
        }
        for _ in 0..5 {
            assert_ne!(client.encrypt("demo").await.status, 200, "{hidden}");
        }
        let both = rules.lines().take(2).collect::<Vec<_>>().join("\n");
        rig.faults.set(&both);
        let until = Instant::now() + RECOVERY;
        while client.encrypt("demo").await.status != 200 {
            assert!(Instant::now() < until, "{}", rig.last_lines());
        }
        wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
        let mut encrypted = Vec::new();
        for _ in 0..20 {
            encrypted.push(client.encrypt("demo").await.ok());
        }
        rig.faults.set(&format!("{both}\n* remove_token token={SECOND}"));
        wait_for_fleet(&rig, ["ACTIVE", "UNAVAILABLE"]).await;
        for encrypted in &encrypted {
            client.assert_decrypts("demo", encrypted).await;
        }
    }
}

#[tokio::test]
async fn a_key_that_one_token_lacks_is_that_tokens_fault() {
    let both = [("demo", ONE_VALUE), ("demo-2", OTHER_VALUE)];
    let rig = start(tokens(&both, &both[..1])).await;
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    assert_eq!(rig.proxy.metric(r#"xks_token_keys_out{reason="missing",token="second"}"#).await, 1.0);
    let mut client = rig.client().await;
    for _ in 0..20 {
        client.encrypt("demo-2").await.ok();
        client.metadata("demo-2").await.ok();
    }
    // While the token that has it is away, it is not said to be absent.
    rig.faults.set(&format!("* remove_token token={LABEL}"));
    wait_for_fleet(&rig, ["UNAVAILABLE", "DEGRADED"]).await;
    for answer in [client.encrypt("demo-2").await, client.metadata("demo-2").await] {
        assert_eq!(outcome(&answer), (500, "InternalException".to_owned()));
    }
    client.encrypt("demo").await.ok();
    rig.faults.clear();
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    rig.proxy.token.tool(&["import", "--token", SECOND, "--label", "demo-2", "--value", OTHER_VALUE]);
    client.encrypt("demo-2").await.ok();
}

/// Whoever repairs a token need not wait until all its keys are listed anew, which is five minutes here.
#[tokio::test]
async fn a_key_that_was_restored_on_a_token_serves_there_again() {
    let both = [("demo", ONE_VALUE), ("demo-2", OTHER_VALUE)];
    let rig = start(tokens(&both, &both[..1])).await;
    let out = |reason: &str, count: u8| {
        format!("xks_token_keys_out{{reason=\"{reason}\",token=\"second\"}} {count}\n")
    };
    let token = |arguments: &[&str]| {
        rig.proxy.token.tool(&[arguments, &["--token", SECOND]].concat());
    };
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out("missing", 1))).await;
    token(&["import", "--label", "demo-2", "--value", OTHER_VALUE]);
    wait_until_both_serve(&rig).await;
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out("missing", 0))).await;
    // Another key in its place, until somebody notices.
    token(&["destroy", "--label", "demo"]);
    token(&["import", "--label", "demo", "--value", OTHER_VALUE]);
    let mut client = rig.client().await;
    let until = Instant::now() + RECOVERY;
    while !rig.proxy.admin("/metrics").await.1.contains(&out("differs", 1)) {
        client.encrypt("demo").await.ok();
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    // Looked at again meanwhile, it stays out.
    let looked_at = rig.proxy.metric("xks_key_searches_total{outcome=\"found\",token=\"second\"}").await;
    let searched = |text: &str| {
        let line = text.lines().find_map(|line| {
            line.strip_prefix("xks_key_searches_total{outcome=\"found\",token=\"second\"} ")
        });
        line.is_some_and(|count| count.parse::<f64>().unwrap() > looked_at)
    };
    rig.proxy.wait_for("/metrics", |_, text| searched(text)).await;
    assert!(rig.proxy.admin("/metrics").await.1.contains(&out("differs", 1)));
    token(&["destroy", "--label", "demo"]);
    token(&["import", "--label", "demo", "--value", ONE_VALUE]);
    wait_until_both_serve(&rig).await;
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out("differs", 0))).await;
}

#[tokio::test]
async fn a_key_that_no_token_has_is_not_found() {
    let rig = start(tokens(&[], &[])).await;
    wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
    let answer = rig.client().await.encrypt("demo").await;
    assert_eq!(outcome(&answer), (404, "KeyNotFoundException".to_owned()));
}

/// A token that was away may come back with other keys.
#[tokio::test]
async fn a_key_that_changed_while_its_token_was_away_is_not_used() {
    let rig = start_both().await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    rig.faults.set(&format!("* remove_token token={SECOND}"));
    wait_for_fleet(&rig, ["ACTIVE", "UNAVAILABLE"]).await;
    rig.faults.set(&format!("* other_value label=demo token={SECOND}"));
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    for _ in 0..20 {
        let again = client.encrypt("demo").await.ok();
        client.assert_decrypts("demo", &again).await;
        client.assert_decrypts("demo", &encrypted).await;
    }
}

/// Nor need a token go away for that: a key may be made anew under its label, and have the handle of the one before.
#[tokio::test]
async fn a_key_that_changes_under_its_handle_is_found_out_when_keys_are_listed_anew() {
    let anew = |text: &str| text.replace("key_attributes_ms", "reindex_secs = 1, key_attributes_ms");
    let setup = Setup { token: anew(&setup().token), more: anew(&setup().more), ..setup() };
    let rig = Rig::start_with_faults(setup, same_keys(), "");
    rig.proxy.wait_until_ready().await;
    wait_until_both_serve(&rig).await;
    let mut client = rig.client().await;
    rig.faults.set(&format!("* other_value label=demo token={SECOND}"));
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    let mut encrypted = Vec::new();
    for _ in 0..20 {
        encrypted.push(client.encrypt("demo").await.ok());
    }
    rig.faults.clear();
    wait_until_both_serve(&rig).await;
    for encrypted in &encrypted {
        client.assert_decrypts("demo", encrypted).await;
    }
    let connected = |line: &&Value| line["message"] == "connected to the token" && line["token"] == "second";
    assert_eq!(rig.proxy.log_lines().iter().filter(connected).count(), 1, "without another connection");
}

/// A code that may mean a bad tag or a broken token is believed only where another token agrees.
#[tokio::test]
async fn a_verdict_on_a_ciphertext_that_one_token_is_unsure_of_is_confirmed_by_the_other() {
    let rig = start_both().await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let refuses = format!("C_Decrypt fail=CKR_GENERAL_ERROR token={LABEL} label=demo");
    rig.faults.set(&refuses);
    for _ in 0..10 {
        client.assert_decrypts("demo", &encrypted).await;
    }
    // It was found out, and is no judge of this key when it is alone, though its probes succeed.
    let differs = "xks_token_keys_out{reason=\"differs\",token=\"softhsm\"} 1\n";
    rig.proxy.wait_for("/metrics", |_, text| text.contains(differs)).await;
    rig.faults.set(&format!("{refuses}\n* remove_token token={SECOND}"));
    wait_for_fleet(&rig, ["DEGRADED", "UNAVAILABLE"]).await;
    for _ in 0..20 {
        let answer = client.decrypt("demo", &encrypted).await;
        assert_ne!(outcome(&answer).1, "InvalidCiphertextException");
        assert_ne!(answer.status, 200);
    }
    rig.faults.clear();
    wait_until_both_serve(&rig).await;
    let bad = with_bad_tag(&encrypted);
    for rule in ["", "C_Decrypt bad_tag=CKR_GENERAL_ERROR"] {
        rig.faults.set(rule);
        for _ in 0..4 {
            let answer = client.decrypt("demo", &bad).await;
            assert_eq!(outcome(&answer), (400, "InvalidCiphertextException".to_owned()), "{rule}");
        }
    }
}

/// A second opinion that cannot be had makes no bad ciphertext a fault: KMS would try it again and again.
#[tokio::test]
async fn a_bad_ciphertext_is_one_though_the_token_that_could_confirm_it_fails_or_hangs() {
    let rig = start_both().await;
    let mut client = rig.client().await;
    let bad = with_bad_tag(&client.encrypt("demo").await.ok());
    for fault in ["fail=CKR_DEVICE_ERROR", "hang until_removed"] {
        for name in [LABEL, SECOND] {
            rig.faults.set(&format!("C_DecryptInit {fault} token={name} label=demo"));
            // In turns each is the first.
            for _ in 0..3 {
                let answer = client.decrypt("demo", &bad).await;
                assert_eq!(outcome(&answer), (400, "InvalidCiphertextException".to_owned()), "{fault}");
            }
            assert!(rig.faults.fired(&format!("C_DecryptInit {fault} token={name} label=demo")) > 0);
            rig.faults.clear();
            wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
        }
    }
}

#[tokio::test]
async fn a_token_that_does_not_tell_a_keys_attributes_costs_no_request() {
    let rig = start_both().await;
    let mut client = rig.client().await;
    for name in [LABEL, SECOND] {
        rig.faults.set(&format!("C_GetAttributeValue hang until_removed token={name} label=demo"));
        // Their age is 100 ms at most: they are read anew meanwhile.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            client.encrypt("demo").await.ok();
            client.metadata("demo").await.ok();
        }
        rig.faults.clear();
        wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
    }
}

/// Proofs that hang on one token hold up neither those of the other nor its service.
#[tokio::test]
async fn a_token_that_hangs_from_the_start_keeps_the_other_from_nothing() {
    let labels: Vec<_> = (0..12).map(|number| format!("demo-{number}")).collect();
    let keys: Vec<_> = labels.iter().map(|label| (label.as_str(), ONE_VALUE)).collect();
    let listed =
        |label: &String| format!("[[stores.keys]]\nexternal_key_id = \"{label}\"\nlabel = \"{label}\"\n");
    let setup = Setup { keys: labels.iter().map(listed).collect(), ..setup() };
    for name in [LABEL, SECOND] {
        let hangs: String = ["C_EncryptInit", "C_DecryptInit"]
            .into_iter()
            .flat_map(|call| {
                labels
                    .iter()
                    .map(move |label| format!("{call} hang until_removed token={name} label={label}\n"))
            })
            .collect();
        let rig = Rig::start_with_faults(setup.clone(), tokens(&keys, &keys), &hangs);
        let until = Instant::now() + RECOVERY;
        while rig.proxy.admin("/readyz").await.0 != 200 {
            assert!(Instant::now() < until, "not ready\n{}", rig.last_lines());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Ready does not mean that the token that works has proven all keys: where neither has, either is asked first.
        let mut client = rig.client().await;
        for label in &labels {
            client.encrypt(label).await.ok();
        }
        rig.faults.clear();
    }
}

/// What a token makes of one key does not decrypt, and its probes know nothing of it.
#[tokio::test]
async fn a_ciphertext_that_does_not_verify_on_one_token_is_made_by_the_other() {
    let quiet = |text: &str| text.replace("health_probe_ms = 200", "health_probe_ms = 30000");
    let setup = Setup {
        token: quiet(&setup().token),
        more: quiet(&setup().more),
        timeouts: "answer_ms = 30000\nfirst_answer_ms = 30000".to_owned(),
        ..setup()
    };
    let rig = Rig::start_with_faults(setup, same_keys(), "");
    rig.proxy.wait_until_ready().await;
    wait_until_both_serve(&rig).await;
    let rule = format!("C_Encrypt corrupt=tag label=demo token={LABEL}");
    rig.faults.set(&rule);
    let is_left_out = || {
        let message = "the token is asked no more until a probe succeeds";
        rig.proxy.log_lines().iter().any(|line| line["message"] == message && line["token"] == "softhsm")
    };
    let until = Instant::now() + RECOVERY;
    let mut requests = 0;
    while requests == 0 || !is_left_out() {
        assert!(Instant::now() < until, "{}", rig.last_lines());
        let answers = at_once(rig.clients(50).await, async |_, mut client| {
            outcome(&client.encrypt_with_integrity_value("demo").await)
        });
        for answer in answers.await {
            assert_eq!(answer, (200, String::new()));
        }
        requests += 50;
    }
    let failures = rig.proxy.metric("xks_integrity_failures_total{store=\"main\"}").await;
    assert_eq!(failures, rig.faults.fired(&rule) as f64, "each is counted");
}

/// Several keys of one name are not a key that is missing.
#[tokio::test]
async fn a_name_that_several_keys_of_one_token_have_is_that_tokens_fault() {
    let token = same_keys();
    token.tool(&["generate", "--token", SECOND, "--label", "demo", "--id", "02", "--duplicate"]);
    let rig = start(token).await;
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    let out = |reason: &str, count: u8| {
        format!("xks_token_keys_out{{reason=\"{reason}\",token=\"second\"}} {count}\n")
    };
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out("ambiguous", 1))).await;
    let mut client = rig.client().await;
    for _ in 0..10 {
        client.encrypt("demo").await.ok();
    }
    let lacks = "the token lacks a key that another token of the store has";
    assert!(rig.proxy.log_lines().iter().all(|line| line["message"] != lacks));
    rig.proxy.token.tool(&["destroy", "--token", SECOND, "--label", "demo", "--id", "02"]);
    wait_until_both_serve(&rig).await;
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&out("ambiguous", 0))).await;
}
