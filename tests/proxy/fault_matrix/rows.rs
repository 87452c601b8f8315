//! The rows: for every fault of pkcs11-fault, how it is provoked and what callers may be told.

use xks_harness::{Corrupt, FaultKind, GcmIv, Hang, Random, TokenFlag};

/// What a caller is told: `ok` or an error name, shortened by its `Exception`.
pub(super) type Told = &'static [&'static str];

const OK: Told = &["ok"];
const INTERNAL: Told = &["Internal"];
const TIMEOUT: Told = &["DependencyTimeout"];
const USAGE: Told = &["InvalidKeyUsage"];
const BLOCKED: Told = &["InvalidState"];
/// Until the key has been asked to prove itself, its attributes are told.
const OK_OR_BLOCKED: Told = &["ok", "InvalidState"];
const FORGED: Told = &["InvalidCiphertext"];
/// A fault that strikes once may strike a request, which is tried again where that is safe, or something else.
const OK_OR_INTERNAL: Told = &["ok", "Internal"];
const FORGED_OR_INTERNAL: Told = &["InvalidCiphertext", "Internal"];
const TIMEOUT_OR_INTERNAL: Told = &["DependencyTimeout", "Internal"];
/// What a helper that is slow, killed or new may come to.
const ANY_IN_TIME: Told = &["ok", "DependencyTimeout", "Internal"];
const ANY_BUT_OK: Told = &["InvalidCiphertext", "DependencyTimeout", "Internal"];
/// The process ends: nothing is answered, and its supervisor starts it anew.
const NONE: Told = &["no answer"];

/// What is asked. GetHealthStatus tells what was measured, and so answers whatever a token does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Health,
    Metadata,
    Encrypt,
    EncryptWithCdiv,
    Decrypt,
    /// Decrypt of a ciphertext whose tag is wrong.
    DecryptForged,
}

impl Request {
    pub(super) const ALL: [Self; 6] = [
        Self::Health,
        Self::Metadata,
        Self::Encrypt,
        Self::EncryptWithCdiv,
        Self::Decrypt,
        Self::DecryptForged,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Health => "GetHealthStatus",
            Self::Metadata => "GetKeyMetadata",
            Self::Encrypt => "Encrypt",
            Self::EncryptWithCdiv => "Encrypt with CDIV",
            Self::Decrypt => "Decrypt",
            Self::DecryptForged => "Decrypt, bad tag",
        }
    }
}

/// When the token begins to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// While it serves.
    Serving,
    /// While it serves, and a health probe has come by since: what no single answer shows.
    Probed,
    /// When the proxy connects anew, after the token was away.
    Connecting,
    /// When the proxy logs in anew, after the token seemed to be away.
    LoggingIn,
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) rules: Vec<String>,
    pub(super) when: When,
    /// A line of the token's settings that the fault needs.
    pub(super) setting: &'static str,
    /// What is told with one token, by request.
    pub(super) one: [Told; 6],
    /// With two, of which the first has the fault.
    pub(super) two: [Told; 6],
    /// The rules are the whole module's, and so both tokens'.
    pub(super) is_of_module: bool,
    /// Only a new process serves again.
    pub(super) needs_restart: bool,
    /// The modules run in helper processes.
    pub(super) is_isolated: bool,
}

/// What is told while nothing is wrong.
const UNNOTICED: [Told; 6] = [OK, OK, OK, OK, OK, FORGED];

/// A row that nobody notices.
fn row(rules: &[&str]) -> Row {
    Row {
        rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
        when: When::Serving,
        setting: "",
        one: UNNOTICED,
        two: UNNOTICED,
        is_of_module: false,
        needs_restart: false,
        is_isolated: false,
    }
}

impl Row {
    fn has(&self, fault: &str) -> bool {
        self.rules.iter().any(|rule| rule.contains(fault))
    }

    /// The same with the modules in helper processes, each of which meets the rules anew.
    pub(super) fn isolated(&self) -> Self {
        let mut row = Self { is_isolated: true, ..self.clone() };
        if row.has(" abort") {
            // Each helper ends with the first request that it gets, and the proxy serves on.
            row.is_of_module = false;
            row.needs_restart = false;
            row = row.uses(INTERNAL).metadata(OK_OR_INTERNAL);
            row.two = self::row(&[]).two;
        }
        if row.one.contains(&TIMEOUT) {
            // The helper is killed before the deadline, or else the request waits for it.
            row.needs_restart = false;
            row.one[1..].iter_mut().for_each(|told| *told = or_internal(told));
            if row.has("C_GetAttributeValue") || row.has("times=1") {
                // A new helper has just read the key's attributes, and they are not read again for a while; and what strikes each
                // helper once may strike its proof of the key.
                row = row.encrypts(ANY_IN_TIME).decrypt(ANY_IN_TIME).decrypt_forged(ANY_BUT_OK);
            }
        }
        row
    }

    /// Whether a request may be told of the fault where there is no other token.
    pub(super) fn may_be_noticed(&self, request: Request) -> bool {
        self.one[request as usize] != UNNOTICED[request as usize]
    }

    /// Whether it is, and never told anything else.
    pub(super) fn is_noticed(&self, request: Request) -> bool {
        let unnoticed = UNNOTICED[request as usize];
        !self.one[request as usize].iter().any(|told| unnoticed.contains(told))
    }

    /// Whether it ends otherwise with the modules in helper processes.
    pub(super) fn is_about_isolation(&self) -> bool {
        let isolated = self.isolated();
        (isolated.one, isolated.two) != (self.one, self.two)
            || self.has("need_reinit")
            || self.has("leak_kib")
    }

    fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    fn metadata(mut self, told: Told) -> Self {
        self.one[1] = told;
        self
    }

    fn encrypts(mut self, told: Told) -> Self {
        (self.one[2], self.one[3]) = (told, told);
        self
    }

    fn decrypt(mut self, told: Told) -> Self {
        self.one[4] = told;
        self
    }

    fn decrypt_forged(mut self, told: Told) -> Self {
        self.one[5] = told;
        self
    }

    /// The same for each request that uses the key.
    fn uses(self, told: Told) -> Self {
        self.encrypts(told).decrypt(told).decrypt_forged(told)
    }

    /// A fault that strikes one call, whosever it is.
    fn once(self) -> Self {
        self.metadata(OK_OR_INTERNAL)
            .encrypts(OK_OR_INTERNAL)
            .decrypt(OK_OR_INTERNAL)
            .decrypt_forged(FORGED_OR_INTERNAL)
    }

    fn of_module(self) -> Self {
        Self { two: self.one, is_of_module: true, ..self }
    }

    fn setting(self, setting: &'static str) -> Self {
        Self { setting, ..self }
    }
}

fn or_internal(told: Told) -> Told {
    match told {
        ["ok"] => OK_OR_INTERNAL,
        ["DependencyTimeout"] => TIMEOUT_OR_INTERNAL,
        ["InvalidCiphertext"] => FORGED_OR_INTERNAL,
        other => other,
    }
}

fn inits(fault: &str) -> [String; 2] {
    [format!("C_EncryptInit {fault}"), format!("C_DecryptInit {fault}")]
}

fn works(fault: &str) -> [String; 2] {
    [format!("C_Encrypt {fault}"), format!("C_Decrypt {fault}")]
}

fn pair(rules: &[String; 2]) -> Row {
    row(&[rules[0].as_str(), rules[1].as_str()])
}

/// An event at the beginning of an encryption, and one at the end of a decryption: a probe's or a request's.
fn events(event: &str) -> Vec<Row> {
    ["C_EncryptInit", "C_Decrypt"].map(|call| row(&[&format!("{call} {event}")]).once()).into()
}

/// The rows of one fault. A fault without rows does not compile.
pub(super) fn rows(kind: FaultKind) -> Vec<Row> {
    match kind {
        FaultKind::DelayMs => vec![
            pair(&works("delay_ms=20 label=demo")),
            pair(&works("delay_ms=2000 label=demo")).uses(TIMEOUT),
            row(&["C_GetAttributeValue delay_ms=2000 label=demo"]).metadata(TIMEOUT).uses(TIMEOUT),
        ],
        FaultKind::Hang => Hang::ALL.iter().flat_map(|hang| hangs(*hang)).collect(),
        FaultKind::Fail => fails(),
        FaultKind::ForwardThenFail => {
            let codes = ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_DEVICE_ERROR"];
            let rules = |code| format!("forward_then_fail={code}{}", scope_of(code));
            let rows = codes.iter().map(|code| pair(&works(&rules(code))));
            let mut rows: Vec<_> = rows.map(|row| row.uses(INTERNAL)).collect();
            // Leaves the session in the middle of an operation.
            let began = pair(&inits(&format!("forward_then_fail={} label=demo", codes[0])));
            rows.push(began.uses(INTERNAL));
            rows
        }
        FaultKind::Abort => {
            vec![Row { needs_restart: true, ..pair(&works("abort label=demo")).uses(NONE) }.of_module()]
        }
        FaultKind::LeakKib => {
            let replaced = pair(&works("leak_kib=32768 label=demo")).setting("helper_memory_mib = 64");
            vec![pair(&works("leak_kib=64 label=demo")), Row { is_isolated: true, ..replaced.once() }]
        }
        FaultKind::Busy => {
            vec![row(&["* busy"]).uses(INTERNAL), row(&["* busy=CKR_DEVICE_MEMORY"]).uses(INTERNAL)]
        }
        FaultKind::DropSessions => events("drop_sessions"),
        FaultKind::ForgetLogins => events("forget_logins"),
        FaultKind::InvalidateHandles => events("invalidate_handles"),
        // At a new login: a module that changes handles while they are in use has no defence.
        FaultKind::PermuteHandles => {
            let lost = "C_EncryptInit fail=CKR_TOKEN_NOT_PRESENT label=xks-health times=1";
            vec![row(&[lost, "C_Login permute_handles"]).when(When::LoggingIn).once()]
        }
        FaultKind::NeedReinit => vec![
            // A code that says no more than that something is wrong: only the profile tells what it takes.
            row(&["* need_reinit"]).setting("profile = \"luna\"\niv_source = \"os\"").once().of_module(),
            row(&["* need_reinit=CKR_CRYPTOKI_NOT_INITIALIZED"]).once().of_module(),
        ],
        FaultKind::Corrupt => Corrupt::ALL.iter().map(|part| corrupts(*part)).collect(),
        FaultKind::RemoveToken => ["* remove_token", "* remove_token=CKR_DEVICE_ERROR"]
            .map(|rule| row(&[rule]).metadata(INTERNAL).uses(INTERNAL))
            .into(),
        FaultKind::OtherValue => {
            vec![
                row(&["* other_value label=demo"])
                    .when(When::Connecting)
                    .metadata(OK_OR_BLOCKED)
                    .uses(BLOCKED),
            ]
        }
        FaultKind::GcmIv => GcmIv::ALL.iter().map(|behaviour| gcm_iv(*behaviour)).collect(),
        FaultKind::Random => Random::ALL
            .iter()
            .map(|bytes| {
                let told = if *bytes == Random::Zeros { INTERNAL } else { OK_OR_INTERNAL };
                let rule = format!("C_GenerateRandom random={bytes}");
                row(&[&rule]).setting("iv_source = \"token\"").encrypts(told)
            })
            .collect(),
        FaultKind::BadTag => [
            "CKR_GENERAL_ERROR",
            "CKR_FUNCTION_FAILED",
            "CKR_ENCRYPTED_DATA_INVALID",
            "CKR_AEAD_DECRYPT_FAILED",
        ]
        .map(|code| row(&[&format!("C_Decrypt bad_tag={code}")]))
        .into(),
        FaultKind::TokenFlag => TokenFlag::ALL.iter().map(|flag| token_flag(*flag)).collect(),
        FaultKind::HideMechanism => {
            let rule = "* hide_mechanism=CKM_AES_GCM";
            let connecting = row(&[rule]).when(When::Connecting).metadata(INTERNAL);
            vec![row(&[rule]).uses(INTERNAL), connecting.uses(INTERNAL)]
        }
        FaultKind::SessionLimit => vec![
            // The keeper has one, requests have none.
            row(&["C_OpenSession session_limit=1"])
                .when(When::Connecting)
                .metadata(OK_OR_INTERNAL)
                .uses(INTERNAL),
            row(&["C_OpenSession session_limit=2"]).when(When::Connecting),
        ],
        // Only the keeper's session may write, unless the profile says that all must.
        FaultKind::RefuseReadOnly => vec![
            row(&["C_OpenSession refuse_read_only"])
                .when(When::Connecting)
                .metadata(OK_OR_INTERNAL)
                .uses(INTERNAL),
        ],
        FaultKind::HideAttribute => hidden_attributes(),
    }
}

/// A code that may mean a bad tag is told from one by another key that works: it strikes that one too.
fn scope_of(code: &str) -> &'static str {
    if matches!(code, "CKR_GENERAL_ERROR" | "CKR_FUNCTION_FAILED") { "" } else { " label=demo" }
}

fn hangs(hang: Hang) -> Vec<Row> {
    match hang {
        Hang::UntilRemoved => vec![
            pair(&inits("hang until_removed label=demo")).uses(TIMEOUT),
            pair(&works("hang until_removed label=demo")).uses(TIMEOUT),
            row(&["C_GetAttributeValue hang until_removed label=demo"]).metadata(TIMEOUT).uses(TIMEOUT),
            row(&["* hang until_removed"]).metadata(TIMEOUT).uses(TIMEOUT),
        ],
        // Each costs its thread for good.
        Hang::Forever => {
            vec![Row { needs_restart: true, ..pair(&works("hang forever label=demo times=1")).uses(TIMEOUT) }]
        }
    }
}

fn fails() -> Vec<Row> {
    let codes = [
        "CKR_DEVICE_ERROR",
        "CKR_GENERAL_ERROR",
        "CKR_FUNCTION_FAILED",
        "CKR_HOST_MEMORY",
        "CKR_SESSION_HANDLE_INVALID",
        "CKR_KEY_HANDLE_INVALID",
        "CKR_USER_NOT_LOGGED_IN",
        "CKR_TOKEN_NOT_PRESENT",
        "CKR_DEVICE_REMOVED",
        "CKR_CRYPTOKI_NOT_INITIALIZED",
    ];
    let fault = |code| format!("fail={code}{}", scope_of(code));
    let mut rows: Vec<_> = codes.iter().map(|code| pair(&works(&fault(code))).uses(INTERNAL)).collect();
    let of_init = ["CKR_DEVICE_ERROR", "CKR_KEY_HANDLE_INVALID", "CKR_SESSION_HANDLE_INVALID"];
    rows.extend(of_init.map(|code| pair(&inits(&fault(code))).uses(INTERNAL)));
    rows.push(pair(&inits("fail=CKR_KEY_FUNCTION_NOT_PERMITTED label=demo")).uses(USAGE));
    rows.push(pair(&inits("fail=CKR_SESSION_CLOSED label=demo times=1")));
    rows.push(row(&["C_GetAttributeValue fail=CKR_DEVICE_ERROR label=demo"]).once());
    let connecting = |rule| row(&[rule]).when(When::Connecting).metadata(INTERNAL).uses(INTERNAL);
    rows.push(connecting("C_OpenSession fail=CKR_SESSION_COUNT"));
    rows.push(connecting("C_Login fail=CKR_DEVICE_ERROR"));
    rows.push(connecting("C_FindObjectsInit fail=CKR_DEVICE_ERROR"));
    rows
}

fn corrupts(part: Corrupt) -> Row {
    match part {
        Corrupt::Ciphertext | Corrupt::Tag => {
            row(&[&format!("C_Encrypt corrupt={part}")]).when(When::Probed).encrypts(INTERNAL)
        }
        Corrupt::Plaintext => row(&["C_Decrypt corrupt=plaintext"]).when(When::Probed).uses(INTERNAL),
        // A tag that does not fit has no plaintext of any length.
        Corrupt::Length => {
            let mut row = row(&["C_Decrypt corrupt=length label=demo"]).decrypt(INTERNAL);
            row.one[3] = INTERNAL;
            row
        }
    }
}

fn gcm_iv(behaviour: GcmIv) -> Row {
    let rule = format!("* gcm_iv={behaviour}");
    let row = row(&[&rule]).encrypts(INTERNAL);
    match behaviour {
        // It takes an IV that it does not use: the probe's decryption shows it.
        GcmIv::Zeros => row.when(When::Probed),
        GcmIv::WrittenBack | GcmIv::Appended | GcmIv::Repeated | GcmIv::AppendedRepeated => row,
    }
}

fn token_flag(flag: TokenFlag) -> Row {
    // No PIN is given to a token that says that one was wrong.
    let row = row(&[&format!("C_GetTokenInfo token_flag={flag}")]).when(When::Connecting);
    row.metadata(INTERNAL).uses(INTERNAL)
}

fn hidden_attributes() -> Vec<Row> {
    let hidden = |attribute, answer| {
        row(&[&format!("C_GetAttributeValue hide_attribute={attribute} answer={answer} label=demo")])
    };
    ["CKR_ATTRIBUTE_TYPE_INVALID", "CKR_ATTRIBUTE_SENSITIVE", "CKR_OK"]
        .map(|answer| hidden("CKA_ID", answer))
        .into()
}
