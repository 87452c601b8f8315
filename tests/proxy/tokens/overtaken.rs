//! Calls that are inside the token while the keeper logs in anew: by the time they go on, their handles mean other keys.

use serde_json::Value;
use xks_harness::request::bytes_of;
use xks_harness::{Answer, Function};

use super::aes_gcm::{KEY, open};
use super::epochs::{setup, token_with_known_key};
use super::rig::{AAD, PLAINTEXT, Rig, is_internal, outcome};

const OTHER_HANDLES: &str = "C_Login permute_handles";

/// A proxy with one session, whose key `demo` is known to be the one meant.
async fn start() -> Rig {
    let intervals = "health_probe_ms = 100, stuck_after_ms = 60000";
    let rig = Rig::start_on(setup(1, intervals), token_with_known_key()).await;
    rig.client().await.encrypt("demo").await.ok();
    rig
}

/// Sends a request and waits until the rule that begins `rules` holds it up inside the token.
async fn hold_up(
    rig: &Rig,
    rules: &str,
    request: impl Future<Output = Answer> + Send + 'static,
) -> tokio::task::JoinHandle<Answer> {
    rig.faults.set(rules);
    let hang = rules.lines().next().unwrap().parse().unwrap();
    let request = tokio::spawn(request);
    rig.faults.wait_for("a call held up", |counts| counts.fired(&hang) == 1).await;
    request
}

/// The answer to a request that is held up until the keeper has found the token gone and come back to one whose handles mean
/// other keys.
async fn overtaken(rig: &Rig, rules: &str, request: impl Future<Output = Answer> + Send + 'static) -> Answer {
    let request = hold_up(rig, rules, request).await;
    let lost = "C_EncryptInit fail=CKR_TOKEN_NOT_PRESENT label=xks-health times=1";
    rig.faults.set(&format!("{rules}\n{lost}\n{OTHER_HANDLES}"));
    let login = OTHER_HANDLES.parse().unwrap();
    rig.faults.wait_for("a new login", |counts| counts.fired(&login) == 1).await;
    rig.proxy.wait_until_ready().await;
    rig.settle().await;
    rig.faults.clear();
    request.await.unwrap()
}

fn assert_is_under_its_key(encrypted: &Value, what: &str) {
    let plaintext = open(&KEY, encrypted, AAD);
    assert_eq!(plaintext.as_deref(), Some(PLAINTEXT), "{what}: under another key than the one asked for");
}

#[tokio::test]
async fn a_ciphertext_of_a_handle_from_before_a_new_login_does_not_leave() {
    for (rules, is_checked) in [
        ("C_EncryptInit hang until_removed label=demo", false),
        ("C_EncryptInit hang until_removed label=demo", true),
        // The retry on another session is no better.
        (
            "C_OpenSession hang until_removed times=1\n\
             C_EncryptInit fail=CKR_SESSION_HANDLE_INVALID label=demo times=1",
            false,
        ),
    ] {
        let rig = start().await;
        let mut client = rig.client().await;
        let answer = overtaken(&rig, rules, async move {
            match is_checked {
                true => client.encrypt_with_integrity_value("demo").await,
                false => client.encrypt("demo").await,
            }
        });
        let answer = answer.await;
        assert_eq!(outcome(&answer), (200, String::new()), "{rules}: it is done once more");
        assert_is_under_its_key(&answer.json(), rules);
    }
}

#[tokio::test]
async fn a_ciphertext_is_not_called_bad_for_a_handle_from_before_a_new_login() {
    let rig = start().await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let hang = "C_DecryptInit hang until_removed label=demo";
    let answer = overtaken(&rig, hang, async move { client.decrypt("demo", &encrypted).await }).await;
    assert_eq!(outcome(&answer), (200, String::new()));
    assert_eq!(bytes_of(&answer.json()["plaintext"]), PLAINTEXT);
}

/// A keeper that was stuck and replaced leaves its connection in place until the next one has another.
#[tokio::test]
async fn the_login_of_the_next_keeper_ends_what_the_one_before_had() {
    let rig = start().await;
    let hang = "C_EncryptInit hang until_removed label=demo";
    let mut client = rig.client().await;
    let request = hold_up(&rig, hang, async move { client.encrypt("demo").await }).await;
    // The next keeper finds that its login is a new one, and does not come to an end with the proof of its token.
    let meanwhile = format!(
        "C_EncryptInit hang forever label=xks-health times=1\n\
         {OTHER_HANDLES}\n\
         C_Login fail=CKR_OK\n\
         C_Decrypt hang until_removed label=xks-health"
    );
    rig.faults.set(&format!("{hang}\n{meanwhile}"));
    let login = OTHER_HANDLES.parse().unwrap();
    rig.faults.wait_for("a new login", |counts| counts.fired(&login) == 1).await;
    rig.faults.wait_until_inside(Function::Decrypt, 1).await;
    rig.faults.set(&meanwhile);
    let answer = request.await.unwrap();
    if answer.status == 200 {
        assert_is_under_its_key(&answer.json(), "beside a keeper that connects");
    } else {
        assert!(is_internal(&answer), "{:?}", outcome(&answer));
    }
    rig.faults.clear();
    assert_is_under_its_key(&rig.wait_until_it_encrypts().await, "afterwards");
}
