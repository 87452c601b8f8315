//! A close look at one token, for `xks-proxy doctor`: what it can do, how it behaves, how fast it is, what to set.
//!
//! It logs in once, encrypts under the health key or a session key and never under a key of a store, and holds no secret.

mod advice;
mod keys;
mod speed;

use std::collections::BTreeMap;
use std::sync::Arc;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::MechanismType;
use cryptoki::slot::{Limit, Slot, TokenInfo};
use serde::Serialize;

use super::ckr::{self, Meaning};
use super::connection::{self, Connection, Epoch};
use super::iv::IvSource;
use super::module::Modules;
use super::probe::{self, ProbeKey};
use super::profiles::Evidence;
use super::session::{Access, Session, TokenInfo as TokenFacts};
use super::settings::TokenSettings;
use super::{KeyLocator, Sealed};

/// Sessions that are opened at most to see how many the token gives.
const MAX_SESSIONS_TRIED: usize = 64;

/// What was found. Parts that could not be looked at are absent; `faults` says why.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examination {
    /// Name in the configuration.
    pub token: String,
    /// The PKCS#11 module: who made it, what it calls itself, its version.
    pub module: Option<String>,
    /// Manufacturer, model, serial number and firmware as the token states them.
    pub identity: Option<BTreeMap<&'static str, String>>,
    /// The profile that holds for it.
    pub profile: Option<ProfileUsed>,
    /// What matters of its mechanisms.
    pub mechanisms: Option<Mechanisms>,
    /// Each IV source, and whether it works.
    pub iv_sources: Vec<IvSourceTried>,
    /// What it says of a tag that does not fit.
    pub bad_tag: Option<BadTag>,
    /// How many sessions it gives.
    pub sessions: Option<Sessions>,
    /// Time of one call by size of the plaintext.
    pub times: Vec<TimeBySize>,
    /// Encryptions a second by number of sessions.
    pub throughput: Vec<Throughput>,
    /// Every key that the configuration names.
    pub keys: Vec<KeyFound>,
    /// What keeps the token or a key from serving.
    pub faults: Vec<String>,
    /// What to set or do, in plain words.
    pub advice: Vec<String>,
}

/// The profile that holds for a token.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileUsed {
    /// Its name.
    pub name: &'static str,
    /// Whether the configuration names it; otherwise the manufacturer has chosen it.
    pub is_configured: bool,
    /// The IV source that requests use.
    pub iv_source: IvSource,
    /// Whether the configuration names that; otherwise the profile does.
    pub iv_source_is_configured: bool,
    /// How the profile knows its IV source: measured, an address, or unknown.
    pub iv_source_evidence: &'static str,
    /// Whether a token that was lost comes back only after C_Finalize and C_Initialize.
    pub needs_reinitialisation: bool,
}

/// What matters of a token's mechanisms.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mechanisms {
    /// How many it has.
    pub count: usize,
    /// CKM_AES_GCM: smallest and largest key in the unit that the module uses, or absent.
    pub aes_gcm_key_sizes: Option<(usize, usize)>,
    /// CKM_AES_KEY_GEN.
    pub generates_aes_keys: bool,
    /// CKF_RNG.
    pub has_random_source: bool,
}

/// An IV source and how it does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IvSourceTried {
    /// Which.
    pub iv_source: IvSource,
    /// Whether requests use it.
    pub is_used: bool,
    /// Why it does not work, `None` where it does.
    pub problem: Option<String>,
}

/// What a token says of a bad tag.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BadTag {
    /// The call and its return code.
    pub answer: String,
    /// The codes that the profile expects; none where it does not know.
    pub expected: Vec<String>,
    /// What the proxy makes of it: `bad_tag`, `bad_tag_or_fault` where another decryption decides, or a fault.
    pub taken_for: &'static str,
    /// Whether the same session decrypts a good ciphertext right afterwards.
    pub decrypts_afterwards: bool,
}

/// How many sessions a token gives.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sessions {
    /// How many were asked for at once.
    pub tried: usize,
    /// How many were given.
    pub opened: usize,
    /// How many the configuration needs, that of the keeper included.
    pub needed: usize,
    /// The return code of the one that was not given.
    pub refusal: Option<String>,
    /// The maximum that the token states.
    pub stated_maximum: Option<u64>,
}

/// Microseconds that one call takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimeBySize {
    /// Size of the plaintext.
    pub plaintext_bytes: usize,
    /// How often each was done.
    pub runs: usize,
    /// Half of the encryptions are faster.
    pub encrypt_median_us: u64,
    /// The slowest encryption.
    pub encrypt_max_us: u64,
    /// Half of the decryptions are faster.
    pub decrypt_median_us: u64,
    /// The slowest decryption.
    pub decrypt_max_us: u64,
}

/// Encryptions a second.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throughput {
    /// Sessions at once.
    pub sessions: usize,
    /// Of all sessions together, 32 bytes each.
    pub encryptions_per_second: u64,
}

/// What a key is configured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyRole {
    /// It encrypts and decrypts.
    Primary,
    /// It decrypts, and will encrypt: it may not be there yet.
    Staged,
    /// It decrypts alone.
    Retired,
}

/// A key that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyWanted {
    /// What the configuration calls it.
    pub name: String,
    /// How it is found.
    pub locator: KeyLocator,
    /// What for.
    pub role: KeyRole,
}

/// A key of the configuration as the token has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyFound {
    /// What the configuration calls it.
    pub name: String,
    /// What it is configured for.
    pub role: KeyRole,
    /// How it is found.
    pub locator: String,
    /// How many keys answer.
    pub count: usize,
    /// The attributes that the token tells, by their PKCS#11 names.
    pub attributes: BTreeMap<&'static str, String>,
}

/// Which keys the configuration names, given the labels of the keys that the token has: a rule makes keys of labels.
pub type KeysWanted<'a> = dyn Fn(&[Box<str>]) -> Vec<KeyWanted> + 'a;

/// Looks at a token and the keys wanted of it; `on_step` hears what comes next, before a call that might hang.
pub fn examine(
    settings: &TokenSettings,
    modules: &Modules,
    keys: &KeysWanted<'_>,
    on_step: &dyn Fn(&'static str),
) -> Examination {
    let mut found = Examination { token: settings.name.to_string(), ..Examination::default() };
    if let Err(fault) = look(settings, modules, keys, on_step, &mut found) {
        found.faults.push(fault);
    }
    advice::give(settings, &mut found);
    found
}

fn look(
    settings: &TokenSettings,
    modules: &Modules,
    keys: &KeysWanted<'_>,
    on_step: &dyn Fn(&'static str),
    found: &mut Examination,
) -> Result<(), String> {
    on_step("loading the module");
    let module = modules.load(&settings.module).map_err(|fault| fault.to_string())?;
    found.module = library(&module.pkcs11);
    on_step("looking for the token");
    let (slot, facts) = connection::find(&module, &settings.selector).map_err(|fault| fault.to_string())?;
    found.identity = Some(identity(facts));
    let token = module.pkcs11.get_token_info(slot);
    let token = token.map_err(|error| format!("C_GetTokenInfo said {}", ckr::name(ckr::code_of(&error))))?;
    found.mechanisms = Some(mechanisms(&module.pkcs11, slot, &token)?);
    on_step("logging in");
    // The one login: a PIN that is refused here is not given again.
    let in_process = Arc::new(Arc::clone(&module));
    let connected = connection::connect(settings, in_process, Epoch(1), &modules.pin_guard, || {});
    let (connection, session) = connected.map_err(|fault| fault.to_string())?;
    found.profile = Some(profile(settings, &connection));
    on_step(keys::STEP);
    // The login is the application's, so that another session has it too.
    let reading = match connection.profile.access_to_use_keys() {
        Access::ReadOnly => module.pkcs11.open_ro_session(slot),
        Access::ReadWrite => module.pkcs11.open_rw_session(slot),
    };
    let reading =
        reading.map_err(|error| format!("C_OpenSession said {}", ckr::name(ckr::code_of(&error))))?;
    found.keys = keys::read(&reading, keys, on_step)?;
    drop(reading);
    on_step("opening sessions");
    found.sessions = Some(sessions(settings, &connection, &token));
    on_step("looking for a key to encrypt with");
    let key = probe_key(settings, &*session, found)?;
    on_step("trying IV sources");
    found.iv_sources = IvSource::ALL.map(|source| try_source(&connection, &*session, &key, source)).into();
    let Some(working) = working_source(found) else { return Ok(()) };
    on_step("decrypting with a bad tag");
    found.bad_tag = bad_tag(&connection, &*session, &key, working);
    on_step("measuring times");
    found.times = speed::times(&*session, &key, working)?;
    on_step("measuring throughput");
    let most = found.sessions.as_ref().map_or(1, |sessions| sessions.opened);
    found.throughput = speed::throughput(&connection, &key, working, most.min(settings.sessions.max(8)));
    Ok(())
}

fn library(pkcs11: &Pkcs11) -> Option<String> {
    let info = pkcs11.get_library_info().ok()?;
    let version = info.library_version();
    let (maker, name) = (info.manufacturer_id(), info.library_description());
    Some(format!("{maker}, {name}, version {}.{}", version.major(), version.minor()))
}

fn identity(TokenFacts { identity, .. }: TokenFacts) -> BTreeMap<&'static str, String> {
    [
        ("manufacturer", identity.manufacturer.into()),
        ("model", identity.model.into()),
        ("serialNumber", identity.serial.to_string()),
        ("firmware", identity.firmware.into()),
    ]
    .into()
}

fn mechanisms(pkcs11: &Pkcs11, slot: Slot, token: &TokenInfo) -> Result<Mechanisms, String> {
    let list = pkcs11.get_mechanism_list(slot);
    let list =
        list.map_err(|error| format!("C_GetMechanismList said {}", ckr::name(ckr::code_of(&error))))?;
    let has_gcm = list.contains(&MechanismType::AES_GCM);
    let sizes = has_gcm.then(|| {
        let info = pkcs11.get_mechanism_info(slot, MechanismType::AES_GCM);
        info.map_or((0, 0), |info| (info.min_key_size(), info.max_key_size()))
    });
    Ok(Mechanisms {
        count: list.len(),
        aes_gcm_key_sizes: sizes,
        generates_aes_keys: list.contains(&MechanismType::AES_KEY_GEN),
        has_random_source: token.rng(),
    })
}

fn profile(settings: &TokenSettings, connection: &Connection) -> ProfileUsed {
    let profile = connection.profile;
    ProfileUsed {
        name: profile.name,
        is_configured: settings.profile.is_some(),
        iv_source: connection.iv_source,
        iv_source_is_configured: settings.iv_source.is_some(),
        iv_source_evidence: match profile.iv_source.evidence {
            Evidence::Measured => "measured",
            Evidence::Documented(address) => address,
            Evidence::Unknown => "unknown",
        },
        needs_reinitialisation: profile.needs_reinitialisation.value,
    }
}

/// As many sessions at once as the configuration wants and some more, closed again before this returns.
fn sessions(settings: &TokenSettings, connection: &Connection, token: &TokenInfo) -> Sessions {
    // The one that logged in is the keeper's.
    let needed = settings.sessions + 1;
    let tried = needed.max(MAX_SESSIONS_TRIED);
    let mut open = Vec::new();
    let mut refusal = None;
    while open.len() + 1 < tried && refusal.is_none() {
        match connection.module.open_session(connection.slot, connection.profile.access_to_use_keys()) {
            Ok(session) => open.push(session),
            Err(code) => refusal = Some(ckr::name(code).into()),
        }
    }
    let stated_maximum = match token.max_session_count() {
        Limit::Max(maximum) => Some(maximum),
        _ => None,
    };
    Sessions { tried, opened: open.len() + 1, needed, refusal, stated_maximum }
}

fn probe_key(
    settings: &TokenSettings,
    session: &dyn Session,
    found: &mut Examination,
) -> Result<ProbeKey, String> {
    let label = &settings.health_key_label;
    let searched = super::keys::find_by_label(session, label);
    let searched = searched.map_err(|code| format!("C_FindObjects said {}", ckr::name(code)))?;
    if let Some(handle) = searched {
        return Ok(ProbeKey::Token(handle));
    }
    let wanted = format!(
        "make an AES-256 key with the label {label:?} that may encrypt and decrypt, sensitive and not extractable, for the \
         health check; map it to no external key"
    );
    match ProbeKey::make(session) {
        Ok(key) => {
            found.advice.push(format!(
                "The token has no key with the label {label:?}; a session key is made at each start in its place. If that \
                 is not wanted, {wanted}."
            ));
            Ok(key)
        }
        Err(code) => {
            let code = ckr::name(code);
            Err(format!("there is no health key and no session key can be made ({code}): {wanted}"))
        }
    }
}

fn try_source(
    connection: &Connection,
    session: &dyn Session,
    key: &ProbeKey,
    source: IvSource,
) -> IvSourceTried {
    let problem = probe::prove(session, key, source).err().map(|fault| fault.to_string());
    IvSourceTried { iv_source: source, is_used: source == connection.iv_source, problem }
}

/// The source that requests use where it works, otherwise any that does.
fn working_source(found: &Examination) -> Option<IvSource> {
    let mut working: Vec<_> = found.iv_sources.iter().filter(|tried| tried.problem.is_none()).collect();
    working.sort_by_key(|tried| !tried.is_used);
    working.first().map(|tried| tried.iv_source)
}

fn bad_tag(
    connection: &Connection,
    session: &dyn Session,
    key: &ProbeKey,
    source: IvSource,
) -> Option<BadTag> {
    let key = key.handle();
    let good = source.encrypt(session, key, probe::AAD, probe::PLAINTEXT).ok()?;
    let mut bad = good.clone();
    *bad.ciphertext_and_tag.last_mut()? ^= 1;
    let decrypt = |sealed: &Sealed| session.decrypt(key, sealed, probe::AAD);
    let profile = connection.profile;
    let (answer, taken_for) = match decrypt(&bad) {
        Ok(_) => ("C_Decrypt said CKR_OK".to_owned(), "success"),
        Err((call, code)) => {
            // Other calls have not seen the tag.
            let meaning = if call == "C_Decrypt" { profile.meaning(code) } else { Meaning::Fault };
            (format!("{call} said {}", ckr::name(code)), meaning.label())
        }
    };
    let expected = profile.bad_tag.value.iter().map(|code| ckr::name(*code).into()).collect();
    let decrypts_afterwards = decrypt(&good).is_ok_and(|plaintext| *plaintext == probe::PLAINTEXT);
    Some(BadTag { answer, expected, taken_for, decrypts_afterwards })
}
