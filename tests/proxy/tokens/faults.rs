//! Return codes of the token: what each becomes for the caller, and that none ends the service.

use std::time::Instant;

use xks_harness::request::bytes_of;
use xks_harness::{Answer, Setup};

use super::rig::{PLAINTEXT, RECOVERY, Rig, is_internal, outcome, with_bad_tag};

const USAGE: (u16, &str) = (400, "InvalidKeyUsageException");
const INVALID_CIPHERTEXT: (u16, &str) = (400, "InvalidCiphertextException");

fn is(answer: &Answer, expected: (u16, &str)) -> bool {
    outcome(answer) == (expected.0, expected.1.to_owned())
}

fn setup() -> Setup {
    Setup { token: "sessions = 2\nintervals = { health_probe_ms = 30000 }".to_owned(), ..Setup::default() }
}

/// What a code may become for the caller, besides success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing: another session, or another look for the key, mends it at once.
    Nothing,
    /// InternalException.
    Internal,
    /// InvalidKeyUsageException.
    Usage,
}

/// Codes that say nothing of the caller's ciphertext.
const CODES: [(&str, Told); 22] = [
    ("CKR_SESSION_HANDLE_INVALID", Told::Nothing),
    ("CKR_SESSION_CLOSED", Told::Nothing),
    ("CKR_OPERATION_ACTIVE", Told::Nothing),
    ("CKR_OPERATION_NOT_INITIALIZED", Told::Nothing),
    ("CKR_KEY_HANDLE_INVALID", Told::Nothing),
    ("CKR_OBJECT_HANDLE_INVALID", Told::Nothing),
    ("CKR_USER_NOT_LOGGED_IN", Told::Internal),
    ("CKR_DEVICE_ERROR", Told::Internal),
    ("CKR_DEVICE_MEMORY", Told::Internal),
    ("CKR_DEVICE_REMOVED", Told::Internal),
    ("CKR_TOKEN_NOT_PRESENT", Told::Internal),
    ("CKR_TOKEN_NOT_RECOGNIZED", Told::Internal),
    ("CKR_SLOT_ID_INVALID", Told::Internal),
    ("CKR_CRYPTOKI_NOT_INITIALIZED", Told::Internal),
    ("CKR_HOST_MEMORY", Told::Internal),
    ("CKR_GENERAL_ERROR", Told::Internal),
    ("CKR_FUNCTION_FAILED", Told::Internal),
    ("CKR_SESSION_COUNT", Told::Internal),
    ("CKR_FUNCTION_CANCELED", Told::Internal),
    ("0x80000042", Told::Internal),
    ("CKR_KEY_FUNCTION_NOT_PERMITTED", Told::Usage),
    ("CKR_KEY_TYPE_INCONSISTENT", Told::Usage),
];

/// What is wrong with an answer, if anything.
fn fault_of(answer: &Answer, told: Told, rule: &str) -> Option<String> {
    let is_allowed = match told {
        Told::Nothing => false,
        Told::Internal => is_internal(answer),
        Told::Usage => is(answer, USAGE),
    };
    (answer.status != 200 && !is_allowed).then(|| format!("{rule}: {:?}", outcome(answer)))
}

#[tokio::test]
async fn a_code_given_once_is_told_as_what_it_is_and_overcome() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let mut wrong = Vec::new();
    for (code, told) in CODES {
        for function in ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] {
            let encrypted = rig.wait_until_it_encrypts().await;
            let rule = format!("{function} fail={code} label=demo times=1");
            rig.faults.set(&rule);
            let answer = if function.starts_with("C_Encrypt") {
                client.encrypt("demo").await
            } else {
                client.decrypt("demo", &encrypted).await
            };
            wrong.extend(fault_of(&answer, told, &rule));
            if function.starts_with("C_Decrypt") && answer.status == 200 {
                assert_eq!(bytes_of(&answer.json()["plaintext"]), PLAINTEXT, "{rule}");
            }
            rig.faults.clear();
            rig.wait_until_it_decrypts(&encrypted).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_code_given_for_a_while_is_told_as_what_it_is_and_overcome() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let mut wrong = Vec::new();
    for (code, told) in CODES {
        // A handle that is invalid however often the key is looked up, and found, is a fault of the token as well.
        let told = if told == Told::Nothing { Told::Internal } else { told };
        for functions in [["C_EncryptInit", "C_DecryptInit"], ["C_Encrypt", "C_Decrypt"]] {
            rig.wait_until_it_serves().await;
            let rules = functions.map(|function| format!("{function} fail={code}")).join("\n");
            rig.faults.set(&rules);
            for _ in 0..2 {
                for answer in [client.encrypt("demo").await, client.decrypt("demo", &encrypted).await] {
                    assert_ne!(answer.status, 200, "{rules}");
                    // While the connection is made anew, the key is not asked for anything.
                    if !is_internal(&answer) {
                        wrong.extend(fault_of(&answer, told, &rules));
                    }
                }
            }
            rig.faults.clear();
            rig.wait_until_it_decrypts(&encrypted).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_call_that_is_done_once_more_is_counted_with_its_reason() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let counted = async |reason| {
        rig.proxy.metric(&format!(r#"xks_hsm_retries_total{{reason="{reason}",token="softhsm"}}"#)).await
    };
    let before = (counted("session_lost").await, counted("doubtful_tag").await);
    for (rule, session_lost, doubtful_tag) in [
        ("C_Encrypt fail=CKR_SESSION_CLOSED label=demo times=1", 1.0, 0.0),
        ("C_DecryptInit fail=CKR_SESSION_HANDLE_INVALID label=demo times=1", 2.0, 0.0),
        ("C_Decrypt fail=CKR_GENERAL_ERROR label=demo times=1", 2.0, 1.0),
        // Says for certain what it is: nothing to try again.
        ("C_Decrypt fail=CKR_ENCRYPTED_DATA_INVALID label=demo times=1", 2.0, 1.0),
    ] {
        rig.faults.set(rule);
        let answer = if rule.starts_with("C_Encrypt") {
            client.encrypt("demo").await
        } else {
            client.decrypt("demo", &encrypted).await
        };
        assert_eq!(rig.faults.fired(rule), 1, "{rule}: {:?}", outcome(&answer));
        let after = (counted("session_lost").await - before.0, counted("doubtful_tag").await - before.1);
        assert_eq!(after, (session_lost, doubtful_tag), "{rule}: {:?}", outcome(&answer));
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_opened_is_no_verdict_on_a_ciphertext() {
    // One session, so that the one that is lost is the one that is opened anew.
    let token = "sessions = 1\nintervals = { health_probe_ms = 30000 }".to_owned();
    let rig = Rig::start(Setup { token, ..Setup::default() }).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let mut wrong = Vec::new();
    for code in ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_SESSION_COUNT", "CKR_DEVICE_ERROR"] {
        let rules = format!("C_Decrypt fail=CKR_SESSION_CLOSED times=1\nC_OpenSession fail={code} times=1");
        rig.faults.set(&rules);
        wrong.extend(fault_of(&client.decrypt("demo", &encrypted).await, Told::Internal, &rules));
        rig.faults.clear();
        rig.wait_until_it_decrypts(&encrypted).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_reply_that_got_lost_is_no_verdict_on_a_ciphertext() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let mut wrong = Vec::new();
    for function in ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] {
        for code in
            ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_DEVICE_ERROR", "CKR_SESSION_HANDLE_INVALID"]
        {
            let encrypted = rig.wait_until_it_encrypts().await;
            let rule = format!("{function} forward_then_fail={code} label=demo times=1");
            rig.faults.set(&rule);
            for answer in [client.encrypt("demo").await, client.decrypt("demo", &encrypted).await] {
                wrong.extend(fault_of(&answer, Told::Internal, &rule));
            }
            rig.faults.clear();
            rig.wait_until_it_decrypts(&encrypted).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_bad_tag_is_an_invalid_ciphertext_however_the_token_says_it() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    let bad = with_bad_tag(&encrypted);
    for code in [
        "CKR_GENERAL_ERROR",
        "CKR_FUNCTION_FAILED",
        "CKR_ENCRYPTED_DATA_INVALID",
        "CKR_ENCRYPTED_DATA_LEN_RANGE",
        "CKR_SIGNATURE_INVALID",
        "0x42",
    ] {
        rig.faults.set(&format!("C_Decrypt bad_tag={code}"));
        for _ in 0..3 {
            let answer = client.decrypt("demo", &bad).await;
            assert!(is(&answer, INVALID_CIPHERTEXT), "{code}: {:?}", outcome(&answer));
            client.assert_decrypts("demo", &encrypted).await;
        }
    }
    rig.faults.clear();
    assert!(is(&client.decrypt("demo", &bad).await, INVALID_CIPHERTEXT));
}

#[tokio::test]
async fn a_bad_tag_on_a_token_that_decrypts_nothing_is_not_called_one() {
    let rig = Rig::start(setup()).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    for rule in ["C_Decrypt fail=CKR_FUNCTION_FAILED", "C_Decrypt fail=CKR_GENERAL_ERROR", "* busy"] {
        rig.faults.set(rule);
        for ciphertext in [&encrypted, &with_bad_tag(&encrypted)] {
            let answer = client.decrypt("demo", ciphertext).await;
            assert!(is_internal(&answer), "{rule}: {:?}", outcome(&answer));
        }
        rig.faults.clear();
        rig.wait_until_it_serves().await;
    }
}

#[tokio::test]
async fn a_bad_tag_is_told_again_soon_after_the_health_key_was_destroyed() {
    let token = "sessions = 2\nintervals = { health_probe_ms = 100 }".to_owned();
    let rig = Rig::start(Setup { token, ..Setup::default() }).await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    rig.proxy.token.tool(&["destroy", "--label", "xks-health"]);
    // Until another ciphertext is known to be good, it could be the token as well.
    let until = Instant::now() + RECOVERY;
    loop {
        let answer = client.decrypt("demo", &with_bad_tag(&encrypted)).await;
        if is(&answer, INVALID_CIPHERTEXT) {
            break;
        }
        assert!(is_internal(&answer) && Instant::now() < until, "{:?}", outcome(&answer));
    }
}
