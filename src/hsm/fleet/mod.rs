//! Several tokens that hold the same keys, as one [`Hsm`].
//!
//! A request goes to the token that has least to do. Where that fails, or brings nothing back, another is asked as long as
//! the deadline allows; no token serves a key before it has proven that it is the same key as everywhere.

mod failures;
mod memory;
mod proof;
mod succession;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep_until;

use super::hedge::{HedgeSettings, Hedging};
use super::keys::KeyEntry;
use super::lane::{self, Lane};
use super::standing::{Standing, StoreId};
use super::token::{Token, Trust, verified};
use super::{
    CallReport, CheckValue, Checked, Digest, HealthStatus, Hsm, HsmError, HsmFuture, KeyAttributes,
    KeyLocator, KeyMaterial, Outcome, Plaintext, Sealed, Terms, TokenHealth,
};
use crate::clock::{self, Deadline};

use failures::Failures;
pub use memory::{KeyMemory, KnownVersion};
use proof::KeyFault;
pub use succession::{Generation, Resolution};

/// Time between two looks at a token that has not answered yet.
const LOOK_AGAIN: Duration = Duration::from_millis(15);

/// What a key store asks of its tokens.
pub struct FleetSettings {
    /// The tokens in the order of the configuration, at least one.
    pub members: Vec<Arc<Token>>,
    /// When a second one is asked.
    pub hedging: HedgeSettings,
    /// The keys that the store lists.
    pub listed: Vec<KeyMaterial>,
    /// Whether a key that is not listed is one of the store's rule.
    pub is_made_by_rule: Box<dyn Fn(&KeyLocator) -> bool + Send + Sync>,
    /// Which key each version was before.
    pub memory: Box<dyn KeyMemory>,
}

/// The tokens of one key store, as one configuration has them.
pub struct Fleet {
    id: StoreId,
    listed: Vec<KeyMaterial>,
    is_made_by_rule: Box<dyn Fn(&KeyLocator) -> bool + Send + Sync>,
    memory: Box<dyn KeyMemory>,
    members: Vec<Arc<Token>>,
    hedging: Arc<Hedging>,
    /// Who is asked first among equals.
    turn: AtomicUsize,
    /// What keys without a pinned check value made when they first served.
    references: Arc<Mutex<HashMap<KeyLocator, CheckValue>>>,
    /// The listed keys have been looked at once.
    is_prepared: AtomicBool,
    /// Keys that a member lacks, or holds another value of.
    faults: Mutex<HashMap<(usize, KeyLocator), KeyFault>>,
}

impl Fleet {
    /// The fleet of a store that the configuration before did not have.
    #[must_use]
    pub fn new(settings: FleetSettings, generation: Generation) -> Self {
        static STORES: AtomicU32 = AtomicU32::new(0);
        let FleetSettings { members, hedging, listed, is_made_by_rule, memory } = settings;
        Self {
            id: generation.store(STORES.fetch_add(1, Ordering::Relaxed)),
            is_prepared: AtomicBool::new(false),
            listed,
            is_made_by_rule,
            memory,
            members,
            hedging: Arc::new(Hedging::new(hedging)),
            turn: AtomicUsize::new(0),
            references: Arc::default(),
            faults: Mutex::default(),
        }
    }

    /// The members, the one to ask first in front: those that are out last, then those that must prove the key first,
    /// then by load, then in turns.
    fn order(&self, key: &KeyMaterial, turn: usize) -> Vec<usize> {
        let count = self.members.len();
        if count == 1 {
            return vec![0];
        }
        let mut order: Vec<_> = (0..count).map(|n| (turn.wrapping_add(n)) % count).collect();
        order.sort_by_cached_key(|member| {
            let token = &self.members[*member];
            let is_ready = token.standing(self.id, key).is_some_and(Standing::serves);
            (token.is_out(), !is_ready, token.load_permille())
        });
        order
    }

    /// Runs `work` on one member, or on several one after the other, until one has a right answer.
    async fn run<T: Send + 'static>(
        &self,
        key: &KeyMaterial,
        deadline: Deadline,
        work: impl Fn(&mut Lane, &KeyEntry) -> Result<T, HsmError> + Clone + Send + 'static,
    ) -> Outcome<T> {
        if self.members.len() == 1 {
            return self.attempt(0, key, deadline, work).await.outcome;
        }
        let mut order = VecDeque::from(self.order(key, self.turn.fetch_add(1, Ordering::Relaxed)));
        let mut look_again = self.hedging.patience(deadline).instant();
        let mut asked = (0, clock::now());
        let mut running = FuturesUnordered::new();
        if let Some(first) = order.pop_front() {
            asked.0 = first;
            running.push(self.attempt(first, key, deadline, work.clone()));
        }
        let mut failures = Failures::default();
        let mut unconfirmed: Option<HsmError> = None;
        let mut report = CallReport::default();
        loop {
            let next = tokio::select! {
                biased;
                Some(attempt) = running.next() => {
                    report.add(&attempt.outcome.report);
                    if attempt.is_verdict {
                        unconfirmed = attempt.outcome.result.as_ref().err().cloned();
                    }
                    match attempt.outcome.result {
                        Err(error) if !attempt.is_final => failures.note(attempt.member, error),
                        mut result => {
                            // The other opinion did not come in time: the one that was proven holds.
                            if let (Err(HsmError::DeadlinePassed), Some(verdict)) = (&result, unconfirmed) {
                                result = Err(verdict);
                            }
                            // Those that are abandoned were calls too.
                            report.attempts += u32::try_from(running.len()).unwrap_or(u32::MAX);
                            if result.is_ok() {
                                self.hedging.note_served();
                                self.learn(key, &failures);
                            }
                            return Outcome { result, report };
                        }
                    }
                    let next = order.pop_front().filter(|_| !deadline.has_passed());
                    if next.is_none() && running.is_empty() {
                        // Nor can a token that fails say anything against it.
                        return Outcome { result: Err(unconfirmed.unwrap_or_else(|| failures.verdict())), report };
                    }
                    next.map(|next| (next, Reason::Failed))
                }
                () = sleep_until(look_again.into()), if !order.is_empty() => {
                    look_again = clock::now() + LOOK_AGAIN;
                    self.another(asked, &mut order, deadline)
                }
            };
            if let Some((member, reason)) = next {
                asked = (member, clock::now());
                // It has its share of what is left, as the first one had.
                look_again = self.hedging.patience(deadline).instant();
                self.members[member].metrics().asked_second(reason.label());
                report.is_hedged |= !running.is_empty();
                running.push(self.attempt(member, key, deadline, work.clone()));
            }
        }
    }

    /// Another member to be asked though the one `asked` since then has not failed, taken out of those that wait: because
    /// that one hangs, or as a hedge against a call that is only slow. Either wants an idle session, so that tokens which
    /// are all slow get no more work by it.
    fn another(
        &self,
        (asked, since): (usize, Instant),
        waiting: &mut VecDeque<usize>,
        deadline: Deadline,
    ) -> Option<(usize, Reason)> {
        let token = &self.members[asked];
        let hangs = token.hangs_since(since);
        if hangs && token.is_silent_since(since) {
            token.suspect("it brings no call back");
        }
        let may_answer = |token: &Token| token.has_idle_session() && token.may_answer_by(deadline);
        let place =
            |is_fit: &dyn Fn(&Token) -> bool| waiting.iter().position(|other| is_fit(&self.members[*other]));
        let with_room = place(&|token| may_answer(token) && token.has_room());
        if hangs {
            // Even one that is left out is better than one that hangs.
            let other = with_room.or_else(|| place(&may_answer))?;
            return Some((waiting.remove(other)?, Reason::Hung));
        }
        let other = with_room.filter(|_| self.hedging.pay())?;
        Some((waiting.remove(other)?, Reason::Hedge))
    }

    /// Asks one member, which proves first that its key is the one meant.
    async fn attempt<T: Send + 'static>(
        &self,
        member: usize,
        key: &KeyMaterial,
        deadline: Deadline,
        work: impl Fn(&mut Lane, &KeyEntry) -> Result<T, HsmError> + Clone + Send + 'static,
    ) -> Attempt<T> {
        let token = &self.members[member];
        let since = clock::now();
        let trust = Trust::Proven(self.id, key);
        let mut outcome = token.with_key(&key.locator, deadline, trust, work.clone()).await;
        if matches!(outcome.result, Err(HsmError::KeyUnproven)) {
            let so_far = outcome.report;
            outcome = match self.prove(member, key, deadline).await {
                Ok(()) => token.with_key(&key.locator, deadline, trust, work).await,
                Err(error) => Outcome::failed(error),
            };
            // It has just shown itself under another handle, which means nothing again.
            if matches!(outcome.result, Err(HsmError::KeyUnproven)) {
                let (call, code) = ("every use of the key", "CKR_KEY_HANDLE_INVALID".into());
                outcome.result = Err(HsmError::Device { call, code });
            }
            outcome.report.add(&so_far);
        }
        // A store's single token is asked all the same: to leave it out for one key would be said in vain.
        if self.members.len() > 1 || !matches!(outcome.result, Err(HsmError::Unverified)) {
            token.note_outcome(&outcome);
        }
        let is_late = matches!(outcome.result, Err(HsmError::DeadlinePassed));
        if is_late && self.members.len() > 1 && token.is_silent_since(since) {
            token.suspect("it brings no call back");
        }
        // A key that could not prove itself is no judge.
        let is_verdict = matches!(outcome.result, Err(HsmError::BadCiphertext { .. }))
            && token.standing(self.id, key) == Some(Standing::Proven);
        let is_final = match &outcome.result {
            Ok(_) | Err(HsmError::DeadlinePassed | HsmError::KeyWithdrawn) => true,
            Err(HsmError::BadCiphertext { is_certain }) => {
                is_verdict && (*is_certain || !self.has_another_judge(member, key))
            }
            Err(_) => false,
        };
        Attempt { member, outcome, is_final, is_verdict }
    }

    /// Whether another member could confirm a verdict that rests on a code of two meanings.
    fn has_another_judge(&self, member: usize, key: &KeyMaterial) -> bool {
        let could = |(other, token): (usize, &Arc<Token>)| {
            other != member && !token.is_out() && token.standing(self.id, key) == Some(Standing::Proven)
        };
        self.members.iter().enumerate().any(could)
    }

    /// What failed on some members has worked on another: those are at fault, and not the request.
    fn learn(&self, key: &KeyMaterial, failures: &Failures) {
        for (member, error) in failures.iter() {
            match error {
                HsmError::KeyNotFound => self.note_fault(*member, key, KeyFault::Missing),
                HsmError::KeyAmbiguous { .. } => self.note_fault(*member, key, KeyFault::Ambiguous),
                // It is asked no more until a probe succeeds. Probes have a key of their own: of this one it is no judge until
                // it has decrypted the check value again.
                HsmError::BadCiphertext { .. } => {
                    self.members[*member].suspect("it refused a good ciphertext");
                    self.members[*member].doubt(&key.locator);
                }
                _ => {}
            }
        }
    }

    /// Whether the keys that are listed have been looked at once, on one token at least.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.is_prepared.load(Ordering::Acquire)
    }

    /// Whether any token is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.members.iter().any(|token| token.is_connected())
    }
}

/// Why a request is given to a member after another one.
#[derive(Clone, Copy)]
enum Reason {
    /// The other has failed.
    Failed,
    /// The other hangs.
    Hung,
    /// The other is slow.
    Hedge,
}

impl Reason {
    const fn label(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Hung => "hung",
            Self::Hedge => "hedge",
        }
    }
}

/// One member's answer.
struct Attempt<T> {
    member: usize,
    outcome: Outcome<T>,
    /// No other member could do better.
    is_final: bool,
    /// The ciphertext is bad, as a key says that has proven to be the one meant.
    is_verdict: bool,
}

/// Work that on several members, and on a token that no probe has proven, only a key may do which has shown what it is and does:
/// what another one encrypts, the others could not decrypt, or nobody.
fn proven<T>(
    members: usize,
    work: impl Fn(&mut Lane, &KeyEntry) -> Result<T, HsmError> + Clone,
) -> impl Fn(&mut Lane, &KeyEntry) -> Result<T, HsmError> + Clone {
    move |lane, key| {
        if (members > 1 || !lane.connection.is_proven()) && key.is_unprovable() {
            return Err(HsmError::KeyNotPermitted { code: "CKA_DECRYPT".into() });
        }
        work(lane, key)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hsm for Fleet {
    fn encrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        plaintext: Plaintext,
        aad: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Sealed> {
        let deadline = terms.deadline;
        let work = lane::encrypting(plaintext, aad, terms);
        Box::pin(self.run(key, deadline, proven(self.members.len(), work)))
    }

    fn encrypt_checked<'a>(
        &'a self,
        key: &'a KeyMaterial,
        plaintext: Plaintext,
        aad: Arc<[u8]>,
        digest: Digest,
        terms: Terms,
    ) -> HsmFuture<'a, Checked> {
        let deadline = terms.deadline;
        let work = verified(lane::encrypting_checked(plaintext, aad, digest, terms));
        let work = proven(self.members.len(), work);
        Box::pin(async move { self.run(key, deadline, work).await.with_decryption() })
    }

    fn decrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        sealed: Arc<Sealed>,
        aad: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Plaintext> {
        let deadline = terms.deadline;
        let work = lane::decrypting(sealed, aad, terms);
        Box::pin(self.run(key, deadline, work))
    }

    /// What any member that has the key permits: the others are asked only where the first permits less than everything.
    fn key_attributes<'a>(
        &'a self,
        key: &'a KeyMaterial,
        deadline: Deadline,
    ) -> HsmFuture<'a, KeyAttributes> {
        Box::pin(async move {
            let mut found: Option<KeyAttributes> = None;
            let mut failures = Failures::default();
            let mut report = CallReport::default();
            let order = self.order(key, 0);
            for (waiting, &member) in (0..order.len()).rev().zip(&order) {
                let token = &self.members[member];
                // One that does not tell in time is not waited for while another may.
                let patience = if waiting > 0 { self.hedging.patience(deadline) } else { deadline };
                let outcome = token.key_attributes(key, patience).await;
                report.add(&outcome.report);
                match outcome.result {
                    Ok(_) if token.standing(self.id, key) == Some(Standing::Refused) => {
                        failures.note(member, HsmError::KeyDiffers);
                    }
                    Ok(attributes) => {
                        let usages =
                            found.map_or(attributes.usages, |known| known.usages | attributes.usages);
                        found = Some(KeyAttributes { usages, ..found.unwrap_or(attributes) });
                        if usages.encrypt && usages.decrypt {
                            break;
                        }
                    }
                    Err(error) => failures.note(member, error),
                }
            }
            Outcome { result: found.ok_or_else(|| failures.verdict()), report }
        })
    }

    fn health(&self) -> Vec<TokenHealth> {
        let mut all: Vec<_> = self.members.iter().flat_map(|token| token.health()).collect();
        let faults = lock(&self.faults);
        for (member, health) in all.iter_mut().enumerate() {
            let count = faults.keys().filter(|(of, _)| *of == member).count();
            if count > 0 && health.status == Some(HealthStatus::Active) {
                health.status = Some(HealthStatus::Degraded);
                let reason = format!("{count} keys are missing, ambiguous or other keys than they should be");
                health.reason = Some(reason.into());
            }
        }
        all
    }
}
