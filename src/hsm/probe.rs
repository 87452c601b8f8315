//! The health probe: a real encryption and decryption under a test key that no store can reach.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;

use super::ckr::Meaning;
use super::connection::{Connection, KnownGood};
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
    pub(super) fn make(session: &Session) -> Result<Self, Error> {
        // SPEC(HEALTH-DEEP-004, HEALTH-DEEP-005): SHOULD probe with a test key, never one of a KMS key.
        let template = [
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(32.into()),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template).map(Self::Session)
    }

    pub(super) const fn handle(&self) -> ObjectHandle {
        match self {
            Self::Token(handle) | Self::Session(handle) => *handle,
        }
    }
}

/// Encrypts and decrypts once; leaves the ciphertext as the one that is known to be good.
pub(super) fn probe(
    connection: &Connection,
    session: &Session,
    key: &ProbeKey,
) -> Result<(), (&'static str, RvError)> {
    // SPEC(HEALTH-DEEP-001, HEALTH-DEEP-002, HEALTH-DEEP-003): SHOULD do cryptography, not just reach the key manager.
    let gcm = &connection.module.gcm;
    let mut iv = [0; 12];
    getrandom::fill(&mut iv).map_err(|_| ("getrandom", RvError::RandomNoRng))?;
    let ciphertext_and_tag = gcm.encrypt(session, key.handle(), &iv, AAD, PLAINTEXT)?;
    let plaintext = gcm.decrypt(session, key.handle(), &iv, AAD, &ciphertext_and_tag)?;
    if *plaintext != PLAINTEXT {
        return Err(("C_Decrypt", RvError::DataInvalid));
    }
    let sealed = Sealed { iv: iv.to_vec(), ciphertext_and_tag };
    connection.known_good.store(Some(Arc::new(KnownGood { key: key.handle(), sealed })));
    Ok(())
}

/// Whether a failed probe says that what was encrypted does not decrypt to the same.
pub(super) fn says_that_it_does_not_decrypt((call, code): (&'static str, RvError)) -> bool {
    let is_bad_tag = matches!(ckr::meaning(code), Meaning::BadTag | Meaning::BadTagOrFault);
    call == "C_Decrypt" && (is_bad_tag || code == RvError::DataInvalid)
}

/// The reason that a failed probe gives.
pub(super) fn failure_reason((call, code): (&'static str, RvError)) -> Arc<str> {
    if code == RvError::DataInvalid {
        return "the health probe decrypted to something else than it had encrypted".into();
    }
    format!("the health probe failed: {call} said {}", ckr::name(code)).into()
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
