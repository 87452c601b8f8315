//! The health probe: a real encryption and decryption under a test key that no store can reach.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;

use super::ckr::Meaning;
use super::connection::{Connection, KnownGood};
use super::gcm::{self, Failure};
use super::iv::IvSource;
use super::session::Session;
use super::{HealthStatus, Sealed, ckr};
use crate::clock;

/// What the probe encrypts.
pub(super) const PLAINTEXT: &[u8] = b"xks-proxy health probe";
/// What it authenticates along.
pub(super) const AAD: &[u8] = b"xks-proxy health";

/// The last measurement, and whether one is under way.
#[derive(Default)]
pub(super) struct ProbeState(Mutex<ProbeTimes>);

/// Which keeper it is that may say something: one that was stuck and replaced may not any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Term(u64);

#[derive(Default)]
struct ProbeTimes {
    term: Term,
    started_at: Option<Instant>,
    last: Option<Measurement>,
}

/// What a probe found.
#[derive(Clone)]
pub(super) struct Measurement {
    pub(super) at: Instant,
    pub(super) status: HealthStatus,
    pub(super) reason: Option<Arc<str>>,
}

impl ProbeState {
    fn times(&self) -> MutexGuard<'_, ProbeTimes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another keeper takes over.
    pub(super) fn begin_term(&self) -> Term {
        let mut times = self.times();
        times.term.0 += 1;
        times.started_at = Some(clock::now());
        times.term
    }

    /// Whether the keeper of that term has not been replaced.
    pub(super) fn is_current(&self, term: Term) -> bool {
        self.times().term == term
    }

    /// The keeper goes into the module, to probe or for something else: it cannot probe meanwhile.
    pub(super) fn enter(&self, term: Term) {
        let mut times = self.times();
        if times.term == term {
            times.started_at = Some(clock::now());
        }
    }

    /// It came back.
    pub(super) fn leave(&self, term: Term) {
        let mut times = self.times();
        if times.term == term {
            times.started_at = None;
        }
    }

    /// It came back with a result.
    pub(super) fn end(&self, term: Term, status: HealthStatus, reason: Option<Arc<str>>) {
        let mut times = self.times();
        if times.term == term {
            times.started_at = None;
            times.last = Some(Measurement { at: clock::now(), status, reason });
        }
    }

    /// Whether the keeper has been inside the module for that long.
    pub(super) fn hangs_for(&self, limit: Duration) -> bool {
        self.times().started_at.is_some_and(|started_at| started_at.elapsed() >= limit)
    }

    /// The last result, unless it is too old or the prober hangs: then the token is unavailable, whatever it was
    /// before. `None` until the first probe has ended or hangs.
    pub(super) fn result(&self, max_age: Duration, hang_after: Duration) -> Option<Measurement> {
        let times = self.times();
        let unavailable = |reason: &str| {
            Some(Measurement {
                at: clock::now(),
                status: HealthStatus::Unavailable,
                reason: Some(reason.into()),
            })
        };
        if times.started_at.is_some_and(|started_at| started_at.elapsed() >= hang_after) {
            return unavailable("the health probe hangs in the token");
        }
        let last = times.last.clone()?;
        // SPEC(HEALTH-CACHE-002): a cached result MUST NOT be older than one minute.
        if last.at.elapsed() >= max_age {
            return unavailable("the last health probe is older than a minute");
        }
        Some(last)
    }
}

/// The key that probes use.
pub(super) enum ProbeKey {
    /// A key of the token with the configured label.
    Token(ObjectHandle),
    /// No such key: one that lives as long as the session.
    Session(ObjectHandle),
}

impl ProbeKey {
    /// Makes a session key.
    pub(super) fn make(session: &dyn Session) -> Result<Self, RvError> {
        // SPEC(HEALTH-DEEP-004, HEALTH-DEEP-005): SHOULD probe with a test key, never one of a KMS key.
        session.make_session_key().map(Self::Session)
    }

    pub(super) const fn handle(&self) -> ObjectHandle {
        match self {
            Self::Token(handle) | Self::Session(handle) => *handle,
        }
    }
}

/// What came of a probe that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeFault {
    /// A call failed.
    Call(Failure),
    /// What was encrypted decrypts to something else.
    OtherPlaintext,
    /// The IV is all zero.
    ZeroIv,
    /// The IV is that of the encryption before.
    RepeatedIv,
}

impl ProbeFault {
    /// What it means for the connection.
    pub(super) fn meaning(self) -> Meaning {
        match self {
            Self::Call((_, code)) => ckr::meaning(code),
            Self::OtherPlaintext | Self::ZeroIv | Self::RepeatedIv => Meaning::Fault,
        }
    }

    /// Whether the token is out of order as a whole.
    pub(super) fn is_about_the_whole_token(self) -> bool {
        matches!(self, Self::Call((_, code)) if ckr::is_about_the_whole_token(code))
    }

    /// Whether what was encrypted does not decrypt to the same, or betrays plaintexts: none of it may leave.
    pub(super) fn makes_bad_ciphertexts(self) -> bool {
        match self {
            Self::Call((call, code)) => {
                let is_bad_tag = matches!(ckr::meaning(code), Meaning::BadTag | Meaning::BadTagOrFault);
                call == "C_Decrypt" && is_bad_tag
            }
            Self::OtherPlaintext | Self::ZeroIv | Self::RepeatedIv => true,
        }
    }
}

impl fmt::Display for ProbeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(gcm::OTHER_LENGTH) => f.write_str(
                "C_Encrypt returned more or less than ciphertext, tag and IV where one is expected",
            ),
            Self::Call(gcm::OTHER_IV) => f.write_str("C_Encrypt put another IV in place of the one given"),
            Self::Call((call, code)) => write!(f, "{call} said {}", ckr::name(*code)),
            Self::OtherPlaintext => {
                f.write_str("what was encrypted decrypted to something else than it had been")
            }
            Self::ZeroIv => f.write_str("the initialization vector was all zero"),
            Self::RepeatedIv => f.write_str("two encryptions had the same initialization vector"),
        }
    }
}

/// Encrypts and decrypts once as requests do; leaves the ciphertext as the one that is known to be good.
pub(super) fn probe(
    connection: &Connection,
    session: &dyn Session,
    key: &ProbeKey,
) -> Result<(), ProbeFault> {
    let sealed = round_trip(session, key, connection.iv_source)?;
    let known_good = Some(Arc::new(KnownGood { key: key.handle(), sealed }));
    let before = connection.known_good.swap(known_good.clone());
    let (Some(before), Some(now)) = (before, known_good) else { return Ok(()) };
    if before.sealed.iv == now.sealed.iv { Err(ProbeFault::RepeatedIv) } else { Ok(()) }
}

/// Whether a token makes good ciphertexts with IVs from `source`: two encryptions under different IVs, neither of them
/// all zero, that decrypt.
pub(super) fn prove(session: &dyn Session, key: &ProbeKey, source: IvSource) -> Result<(), ProbeFault> {
    let first = round_trip(session, key, source)?;
    let second = round_trip(session, key, source)?;
    if first.iv == second.iv { Err(ProbeFault::RepeatedIv) } else { Ok(()) }
}

fn round_trip(session: &dyn Session, key: &ProbeKey, source: IvSource) -> Result<Sealed, ProbeFault> {
    // SPEC(HEALTH-DEEP-001, HEALTH-DEEP-002, HEALTH-DEEP-003): SHOULD do cryptography, not just reach the key manager.
    let key = key.handle();
    let sealed = source.encrypt(session, key, AAD, PLAINTEXT).map_err(ProbeFault::Call)?;
    if sealed.iv.iter().all(|byte| *byte == 0) {
        return Err(ProbeFault::ZeroIv);
    }
    let plaintext = session.decrypt(key, &sealed, AAD).map_err(ProbeFault::Call)?;
    if *plaintext == PLAINTEXT { Ok(sealed) } else { Err(ProbeFault::OtherPlaintext) }
}

/// What a token must pass at every connect before it serves.
pub(super) fn prove_and_probe(
    connection: &Connection,
    session: &dyn Session,
    key: &ProbeKey,
) -> Result<(), ProbeFault> {
    prove(session, key, connection.iv_source)?;
    probe(connection, session, key)
}

/// Why a token with that fault stays out, and what to set where another IV source works.
pub(super) fn refusal(
    connection: &Connection,
    session: &dyn Session,
    key: &ProbeKey,
    fault: ProbeFault,
) -> Arc<str> {
    match fault.meaning() {
        Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost => {
            return format!("the health probe failed: {fault}").into();
        }
        Meaning::KeyGone | Meaning::KeyNotPermitted => {
            return format!(
                "the health key cannot prove that the token works: {fault}; it must be an AES-256 key that may encrypt and \
                 decrypt"
            )
            .into();
        }
        _ => {}
    }
    let works = |source: &IvSource| prove(session, key, *source).is_ok();
    let used = connection.iv_source;
    if works(&used) {
        return format!("the health probe failed once: {fault}").into();
    }
    let working: Vec<_> =
        IvSource::ALL.into_iter().filter(works).map(|source| format!("iv_source = \"{source}\"")).collect();
    let advice = if working.is_empty() {
        "no other IV source works either: `xks-proxy doctor` says more".to_owned()
    } else {
        format!("set {} for this token, which works", working.join(" or "))
    };
    let profile = connection.profile.name;
    format!(
        "with iv_source = \"{used}\" (profile \"{profile}\") it makes no good ciphertexts: {fault}; {advice}"
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_result_is_no_result() {
        let state = ProbeState::default();
        let hour = Duration::from_secs(3600);
        assert!(state.result(hour, hour).is_none(), "nothing was measured yet");
        let term = state.begin_term();
        state.end(term, HealthStatus::Active, None);
        let status = |max_age| state.result(max_age, hour).map(|measurement| measurement.status);
        assert_eq!(status(hour), Some(HealthStatus::Active));
        assert_eq!(status(Duration::ZERO), Some(HealthStatus::Unavailable));
    }

    #[test]
    fn a_keeper_that_was_replaced_has_no_say() {
        let state = ProbeState::default();
        let old = state.begin_term();
        let new = state.begin_term();
        state.end(new, HealthStatus::Active, None);
        state.end(old, HealthStatus::Unavailable, None);
        let hour = Duration::from_secs(3600);
        assert_eq!(state.result(hour, hour).map(|last| last.status), Some(HealthStatus::Active));
        assert!(state.is_current(new) && !state.is_current(old));
        state.enter(old);
        assert!(!state.hangs_for(Duration::ZERO), "what hangs there is nobody's");
    }
}
