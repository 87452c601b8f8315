//! Every IV source × every behaviour of the module at the connect: good ciphertexts or a refusal to serve, never a bad
//! one. The matrix is generated from the list of faults, and printed.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::request::bytes_of;
use xks_harness::{Answer, Corrupt, FaultKind, GcmIv, Random, Setup, SoftHsm};

use super::aes_gcm::{KEY, check_value, hex, open};
use super::rig::{AAD, Client, PLAINTEXT, RECOVERY, Rig, is_internal, outcome, with_bad_tag};

/// Cells that are tried at once.
const THREADS: usize = 4;

/// No key to probe with can be had.
const NO_SESSION_KEY: &str = "C_GenerateKey fail=CKR_FUNCTION_NOT_SUPPORTED";

/// What a token's settings say, and the vendor behaviour that they are made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    settings: &'static str,
    suits: Option<GcmIv>,
    iv_bytes: usize,
}

const ROWS: [Row; 5] = [
    Row { settings: "iv_source = \"os\"", suits: None, iv_bytes: 12 },
    Row { settings: "iv_source = \"token\"", suits: None, iv_bytes: 12 },
    Row { settings: "profile = \"cloudhsm\"", suits: Some(GcmIv::WrittenBack), iv_bytes: 12 },
    Row { settings: "profile = \"nshield\"", suits: Some(GcmIv::WrittenBack), iv_bytes: 12 },
    Row { settings: "profile = \"luna\"", suits: Some(GcmIv::Appended), iv_bytes: 16 },
];

/// What must come of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Good ciphertexts, if need be after a while.
    Serves,
    /// No ciphertext at all, and unavailable.
    Refuses,
    /// One or the other; another test says which.
    Either,
}

/// Rules of one fault, each with what comes of it on a token that works otherwise.
fn rules(kind: FaultKind, row: Row) -> Vec<(String, Verdict)> {
    use Verdict::{Either, Refuses, Serves};
    let gcm_calls = ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"];
    let one = |rule: &str, verdict| vec![(rule.to_owned(), verdict)];
    match kind {
        FaultKind::DelayMs => one("C_Encrypt delay_ms=1", Serves),
        FaultKind::Hang => one("C_Encrypt hang until_removed", Refuses),
        FaultKind::Fail => gcm_calls.map(|call| (format!("{call} fail=CKR_DEVICE_ERROR"), Refuses)).into(),
        FaultKind::ForwardThenFail => {
            gcm_calls.map(|call| (format!("{call} forward_then_fail=CKR_GENERAL_ERROR"), Refuses)).into()
        }
        // Of a helper: the proxy's own process would end.
        FaultKind::Abort => one("C_Encrypt abort", Refuses),
        FaultKind::LeakKib => one("C_Encrypt leak_kib=1", Serves),
        FaultKind::Busy => one("* busy", Refuses),
        FaultKind::DropSessions => one("C_Encrypt drop_sessions", Serves),
        FaultKind::ForgetLogins => one("C_Encrypt forget_logins", Serves),
        FaultKind::InvalidateHandles => one("C_Encrypt invalidate_handles", Serves),
        FaultKind::PermuteHandles => one("C_EncryptInit permute_handles", Serves),
        FaultKind::NeedReinit => one("C_Encrypt need_reinit", Either),
        FaultKind::Corrupt => {
            let call = |part| match part {
                Corrupt::Plaintext | Corrupt::Length => "C_Decrypt",
                Corrupt::Ciphertext | Corrupt::Tag => "C_Encrypt",
            };
            Corrupt::ALL.iter().map(|part| (format!("{} corrupt={part}", call(*part)), Refuses)).collect()
        }
        FaultKind::RemoveToken => one("* remove_token", Refuses),
        FaultKind::OtherValue => one("C_DecryptInit other_value label=xks-health", Refuses),
        FaultKind::GcmIv => {
            let verdict = |behaviour| if row.suits == Some(behaviour) { Serves } else { Refuses };
            GcmIv::ALL.iter().map(|behaviour| (gcm_iv(*behaviour), verdict(*behaviour))).collect()
        }
        FaultKind::Random => {
            let verdict = if row.settings == "iv_source = \"token\"" { Refuses } else { Serves };
            Random::ALL.iter().map(|bytes| (format!("C_GenerateRandom random={bytes}"), verdict)).collect()
        }
        FaultKind::BadTag => ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_ENCRYPTED_DATA_INVALID"]
            .map(|code| (format!("C_Decrypt bad_tag={code}"), Serves))
            .into(),
        FaultKind::TokenFlag => one("C_GetTokenInfo token_flag=CKF_USER_PIN_COUNT_LOW", Either),
        FaultKind::HideMechanism => one("* hide_mechanism=CKM_AES_GCM", Refuses),
        FaultKind::SessionLimit => one("C_OpenSession session_limit=1", Refuses),
        FaultKind::RefuseReadOnly => {
            let verdict = if row.settings == "profile = \"cloudhsm\"" { Serves } else { Refuses };
            one("C_OpenSession refuse_read_only", verdict)
        }
        FaultKind::HideAttribute => one("C_GetAttributeValue hide_attribute=CKA_ID", Serves),
    }
}

fn gcm_iv(behaviour: GcmIv) -> String {
    format!("* gcm_iv={behaviour}")
}

struct Cell {
    row: Row,
    rule: String,
    verdict: Verdict,
}

/// Every row with every fault, and with a module that has no vendor behaviour.
fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for row in ROWS {
        let plain = if row.suits.is_none() { Verdict::Serves } else { Verdict::Refuses };
        cells.push(Cell { row, rule: String::new(), verdict: plain });
        for kind in FaultKind::ALL {
            for (rule, verdict) in rules(*kind, row) {
                // Other faults come on top of the vendor behaviour that the row is made for.
                let vendor = row.suits.filter(|_| *kind != FaultKind::GcmIv).map(gcm_iv);
                let rule = vendor.into_iter().chain([rule]).collect::<Vec<_>>().join("\n");
                cells.push(Cell { row, rule, verdict });
            }
        }
    }
    cells
}

/// A token whose key `demo` the test knows.
fn token() -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["import", "--label", "demo", "--value", &hex(&KEY)]);
    token.generate("xks-health", &[]);
    token
}

impl Cell {
    /// What is wrong, nothing if all is as it must be.
    async fn examine(&self, token: SoftHsm) -> Result<Verdict, String> {
        let isolation = if self.rule.ends_with(" abort") { "isolation = \"process\"" } else { "" };
        let settings = format!(
            "sessions = 1\n{}\n{isolation}\nintervals = {{ health_probe_ms = 100 }}",
            self.row.settings
        );
        let rig = Rig::start_with_faults(Setup { token: settings, ..Setup::default() }, token, &self.rule);
        let mut client = rig.client().await;
        let mut ivs = HashSet::new();
        let until = Instant::now() + RECOVERY;
        let mut refusals = 0;
        while ivs.len() < 3 {
            let answer = client.encrypt("demo").await;
            if answer.status == 200 {
                self.judge(&answer.json(), &mut ivs)?;
                continue;
            }
            if !is_internal(&answer) {
                return Err(format!("{:?}", outcome(&answer)));
            }
            // A refusal is one once the token has been found wanting; before that, it has not been looked at.
            let health = client.health().await;
            let is_unavailable =
                health.status == 200 && health.json()["ekmFleetDetails"][0]["healthStatus"] == "UNAVAILABLE";
            refusals += usize::from(is_unavailable);
            if refusals >= 3 && self.verdict != Verdict::Serves {
                self.judge_reason(&rig).await?;
                return Ok(Verdict::Refuses);
            }
            if Instant::now() > until {
                return Err(format!("neither serves nor says that it does not\n{}", rig.last_lines()));
            }
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        self.judge_decryption(&mut client).await?;
        Ok(Verdict::Serves)
    }

    /// A ciphertext that left must open elsewhere, and its IV must be new.
    fn judge(&self, encrypted: &Value, ivs: &mut HashSet<Vec<u8>>) -> Result<(), String> {
        let iv = bytes_of(&encrypted["initializationVector"]);
        let opened = open(&KEY, encrypted, AAD);
        if opened.as_deref() != Some(PLAINTEXT) {
            return Err("a bad ciphertext left".to_owned());
        }
        if iv.len() != self.row.iv_bytes || iv.iter().all(|byte| *byte == 0) {
            return Err(format!("an IV of {} bytes left", iv.len()));
        }
        if ivs.insert(iv) { Ok(()) } else { Err("an IV left twice".to_owned()) }
    }

    /// What serves also decrypts, and tells a bad tag from a fault of its own.
    async fn judge_decryption(&self, client: &mut Client) -> Result<(), String> {
        let until = Instant::now() + RECOVERY;
        loop {
            let encrypted = client.encrypt("demo").await;
            let good = decrypt(client, &encrypted, Value::clone).await;
            let bad = decrypt(client, &encrypted, with_bad_tag).await;
            let is_right = good.as_ref().is_some_and(|answer| {
                answer.status == 200 && bytes_of(&answer.json()["plaintext"]) == PLAINTEXT
            });
            let told = bad.as_ref().map(outcome);
            if is_right && told == Some((400, "InvalidCiphertextException".to_owned())) {
                return Ok(());
            }
            // An event may still be on its way through the sessions.
            let good = good.as_ref().map(outcome);
            let is_fault =
                |told: &Option<(u16, String)>| told.as_ref().is_none_or(|(status, _)| *status == 500);
            if !(is_right || is_fault(&good)) || !is_fault(&told) && told.as_ref().unwrap().0 != 400 {
                return Err(format!("decrypted: {good:?}; with a bad tag: {told:?}"));
            }
            if Instant::now() > until {
                return Err(format!("still decrypts {good:?}; with a bad tag: {told:?}"));
            }
        }
    }

    /// Where another setting would do, the reason says which.
    async fn judge_reason(&self, rig: &Rig) -> Result<(), String> {
        let sources = [
            (gcm_iv(GcmIv::WrittenBack), "iv_source = \"written-back\""),
            (gcm_iv(GcmIv::Appended), "iv_source = \"appended\""),
            (String::new(), "iv_source = \"os\""),
        ];
        let Some((_, source)) = sources.iter().find(|(rule, _)| *rule == self.rule) else { return Ok(()) };
        let (_, verbose) = rig.proxy.admin("/readyz?verbose").await;
        let is_said = verbose.contains(source) || verbose.contains(&source.replace('"', "\\\""));
        if is_said { Ok(()) } else { Err(format!("does not say {source}: {verbose}")) }
    }
}

async fn decrypt(
    client: &mut Client,
    encrypted: &Answer,
    change: impl Fn(&Value) -> Value,
) -> Option<Answer> {
    if encrypted.status != 200 {
        return None;
    }
    Some(client.decrypt("demo", &change(&encrypted.json())).await)
}

#[test]
fn every_iv_source_and_behaviour_give_good_ciphertexts_or_a_refusal() {
    let template = token();
    let waiting = Arc::new(Mutex::new(cells()));
    let (done, results) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (done, waiting, template) = (done.clone(), Arc::clone(&waiting), &template);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let Some(cell) = waiting.lock().unwrap().pop() else { return };
                    let result = runtime.block_on(cell.examine(template.copy()));
                    done.send((cell, result)).unwrap();
                }
            });
        }
    });
    drop(done);
    let mut results: Vec<_> = results.iter().collect();
    results.sort_by_key(|(cell, _)| (cell.rule.clone(), cell.row.settings));
    let mut table = String::new();
    let mut wrong = Vec::new();
    for (cell, result) in &results {
        let rule = if cell.rule.is_empty() { "(nothing)".to_owned() } else { cell.rule.replace('\n', ", ") };
        let settings = cell.row.settings;
        let is_right = match result {
            Ok(verdict) => cell.verdict == Verdict::Either || *verdict == cell.verdict,
            Err(_) => false,
        };
        writeln!(
            table,
            "{settings:<24} {rule:<80} {}",
            result.as_ref().map_or("WRONG".to_owned(), |v| format!("{v:?}"))
        )
        .unwrap();
        if !is_right {
            wrong.push(format!("{settings} with {rule}: {result:?}, not {:?}", cell.verdict));
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(results.len(), cells().len());
}

/// A proxy whose token has no key to probe with, on the key `demo`, pinned or not.
fn without_probes(token: SoftHsm, is_pinned: bool, rules: &str) -> Rig {
    let pinned = if is_pinned { format!("check_value = \"{}\"\n", check_value(&KEY)) } else { String::new() };
    let setup = Setup {
        keys: format!("[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n{pinned}"),
        token:
            "sessions = 1\niv_source = \"os\"\nintervals = { health_probe_ms = 100, key_attributes_ms = 100 }"
                .to_owned(),
        ..Setup::default()
    };
    Rig::start_with_faults(setup, token, &format!("{NO_SESSION_KEY}\n{rules}"))
}

fn with_demo(usage: &str) -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["import", "--label", "demo", "--value", &hex(&KEY), "--usage", usage]);
    token
}

/// Nothing is made that does not decrypt.
async fn assert_makes_nothing(rig: &Rig) {
    let mut client = rig.client().await;
    for _ in 0..6 {
        let answer = client.encrypt("demo").await;
        assert_ne!(answer.status, 200, "{}\n{}", answer.json(), rig.last_lines());
    }
}

/// That a key decrypts what it made before says nothing of what it makes on a token that nobody has seen to use the IVs that it
/// is given.
#[tokio::test]
async fn a_key_that_is_known_shows_too_that_what_it_makes_decrypts() {
    let zeros = gcm_iv(GcmIv::Zeros);
    let rig = without_probes(with_demo("encrypt,decrypt"), true, &zeros);
    rig.wait_for_health("DEGRADED").await;
    assert_makes_nothing(&rig).await;
    rig.faults.set(NO_SESSION_KEY);
    rig.wait_until_it_serves().await;

    // Known by what it made at the connection before.
    let rig = without_probes(with_demo("encrypt,decrypt"), false, "");
    rig.wait_until_it_serves().await;
    rig.faults.set("* remove_token");
    rig.wait_for_health("UNAVAILABLE").await;
    rig.faults.set(&format!("{NO_SESSION_KEY}\n{zeros}"));
    rig.wait_for_health("DEGRADED").await;
    assert_makes_nothing(&rig).await;
}

/// One that may not do both has nothing to show it by, until it may.
#[tokio::test]
async fn a_key_that_may_not_do_both_makes_nothing_on_a_token_that_is_not_proven() {
    let zeros = gcm_iv(GcmIv::Zeros);
    let rig = without_probes(with_demo("encrypt"), false, &zeros);
    rig.wait_for_health("DEGRADED").await;
    assert_makes_nothing(&rig).await;

    let rig = without_probes(with_demo("decrypt"), true, &zeros);
    rig.wait_for_health("DEGRADED").await;
    let mut client = rig.client().await;
    let refused = (400, "InvalidKeyUsageException".to_owned());
    let until = Instant::now() + RECOVERY;
    while outcome(&client.encrypt("demo").await) != refused {
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    rig.proxy.token.tool(&["set", "--label", "demo", "--usage", "encrypt,decrypt"]);
    let until = Instant::now() + RECOVERY;
    loop {
        let answer = client.encrypt("demo").await;
        assert_ne!(answer.status, 200, "{}", answer.json());
        if outcome(&answer) != refused {
            break;
        }
        assert!(Instant::now() < until, "{}", rig.last_lines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_makes_nothing(&rig).await;
}
