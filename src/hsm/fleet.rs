//! Several tokens that hold the same keys, as one [`Hsm`].
//!
//! A request goes to the token that has least to do. Where that fails, or brings nothing back, another is asked as long as
//! the deadline allows; no token serves a key before it has proven that it is the same key as everywhere.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, sleep_until};
use zeroize::Zeroizing;

use super::hedge::{HedgeSettings, Hedging, SUSPECT_AFTER};
use super::keys::{KeyEntry, Standing, StoreId};
use super::lane::Lane;
use super::token::{Token, Trust};
use super::{
    CallReport, CheckValue, HealthStatus, Hsm, HsmError, HsmFuture, KeyAttributes, KeyLocator, KeyMaterial,
    Outcome, Plaintext, Sealed, TokenHealth,
};
use crate::clock::{self, Deadline};

/// Time between two looks at keys that have not proven themselves yet.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The same until the first time.
const FIRST_WATCH_INTERVAL: Duration = Duration::from_millis(10);
/// Time between two looks at a token that has not answered yet.
const LOOK_AGAIN: Duration = Duration::from_millis(15);
/// How long a proof may take that no request waits for.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

/// The tokens of one key store.
pub struct Fleet {
    id: StoreId,
    listed: Vec<KeyMaterial>,
    members: Vec<Arc<Token>>,
    hedging: Hedging,
    /// Who is asked first among equals.
    turn: AtomicUsize,
    /// What keys without a pinned check value made when they first served.
    references: Mutex<HashMap<KeyLocator, CheckValue>>,
    /// The listed keys have been looked at once.
    is_prepared: AtomicBool,
    /// Keys that a member lacks, or holds another value of.
    faults: Mutex<HashMap<(usize, KeyLocator), KeyFault>>,
}

/// What is wrong with a key on one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyFault {
    Missing,
    Differs,
    OfAnotherStore,
}

impl KeyFault {
    const ALL: [Self; 3] = [Self::Missing, Self::Differs, Self::OfAnotherStore];

    const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Differs => "differs",
            Self::OfAnotherStore => "of_another_store",
        }
    }
}

impl Fleet {
    /// The tokens in the order of the configuration, at least one, and the keys that the store lists.
    #[must_use]
    pub fn new(members: Vec<Arc<Token>>, hedging: HedgeSettings, listed: Vec<KeyMaterial>) -> Self {
        static FLEETS: AtomicU32 = AtomicU32::new(0);
        Self {
            id: StoreId(FLEETS.fetch_add(1, Ordering::Relaxed)),
            is_prepared: AtomicBool::new(false),
            listed,
            members,
            hedging: Hedging::new(hedging),
            turn: AtomicUsize::new(0),
            references: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    /// The members, the one to ask first in front: those that are out last, then those that must prove the key first,
    /// then by load, then in turns.
    fn order(&self, locator: &KeyLocator, turn: usize) -> Vec<usize> {
        let count = self.members.len();
        let mut order: Vec<_> = (0..count).map(|n| (turn.wrapping_add(n)) % count).collect();
        order.sort_by_cached_key(|member| {
            let token = &self.members[*member];
            let is_ready = token.standing(locator).is_some_and(Standing::serves);
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
        let mut order = self.order(&key.locator, self.turn.fetch_add(1, Ordering::Relaxed)).into_iter();
        let mut look_again = self.hedging.begin(deadline);
        let mut asked = (0, clock::now());
        let mut running = FuturesUnordered::new();
        if let Some(first) = order.next() {
            asked.0 = first;
            running.push(self.attempt(first, key, deadline, work.clone()));
        }
        let mut failures = Failures::default();
        let mut report = CallReport::default();
        loop {
            let next = tokio::select! {
                biased;
                Some(attempt) = running.next() => {
                    report.add(&attempt.outcome.report);
                    match attempt.outcome.result {
                        Err(error) if !attempt.is_final => failures.note(attempt.member, error),
                        result => {
                            // Those that are abandoned may have drawn an IV.
                            report.attempts += u32::try_from(running.len()).unwrap_or(u32::MAX);
                            self.learn(key, &failures, result.is_ok());
                            return Outcome { result, report };
                        }
                    }
                    let next = order.next().filter(|_| !deadline.has_passed());
                    if next.is_none() && running.is_empty() {
                        return Outcome { result: Err(failures.verdict()), report };
                    }
                    next
                }
                () = sleep_until(look_again.into()), if order.len() > 0 => {
                    look_again = clock::now() + LOOK_AGAIN;
                    if self.should_ask_another(asked, order.as_slice()) { order.next() } else { None }
                }
            };
            if let Some(member) = next {
                asked = (member, clock::now());
                self.members[member].metrics().asked_second.inc();
                running.push(self.attempt(member, key, deadline, work.clone()));
            }
        }
    }

    /// Whether another member is to be asked though the one `asked` since then has not failed: because it brings nothing
    /// back at all, or as a hedge against this one call.
    fn should_ask_another(&self, (asked, since): (usize, Instant), waiting: &[usize]) -> bool {
        let token = &self.members[asked];
        if since.elapsed() >= SUSPECT_AFTER && token.has_brought_nothing_back_since(since) {
            token.suspect("it brings no call back");
            return true;
        }
        let has_room = waiting.first().is_some_and(|other| self.members[*other].has_room());
        has_room && self.hedging.pay()
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
        let trust = Trust::Proven(self.id);
        let mut outcome = token.with_key(&key.locator, deadline, trust, work.clone()).await;
        if matches!(outcome.result, Err(HsmError::KeyUnproven)) {
            let so_far = outcome.report;
            outcome = match self.prove(member, key, deadline).await {
                Ok(()) => token.with_key(&key.locator, deadline, trust, work).await,
                Err(error) => Outcome::failed(error),
            };
            outcome.report.add(&so_far);
        }
        token.note_outcome(&outcome);
        let is_final = match &outcome.result {
            Ok(_) | Err(HsmError::DeadlinePassed) => true,
            // A key that could not prove itself is no judge.
            Err(HsmError::BadCiphertext { is_certain }) => {
                let is_judge = token.standing(&key.locator) == Some(Standing::Proven);
                is_judge && (*is_certain || !self.has_another_judge(member, key))
            }
            Err(_) => false,
        };
        Attempt { member, outcome, is_final }
    }

    /// Whether another member could confirm a verdict that rests on a code of two meanings.
    fn has_another_judge(&self, member: usize, key: &KeyMaterial) -> bool {
        let could = |(other, token): (usize, &Arc<Token>)| {
            other != member && !token.is_out() && token.standing(&key.locator) == Some(Standing::Proven)
        };
        self.members.iter().enumerate().any(could)
    }

    /// Has a member show that its key is the one meant: it decrypts the check value that is pinned in the configuration, or
    /// that the member made which served first.
    ///
    /// # Errors
    /// [`HsmError::KeyDiffers`] where it is another; other errors where it could not be shown.
    async fn prove(&self, member: usize, key: &KeyMaterial, deadline: Deadline) -> Result<(), HsmError> {
        let token = &self.members[member];
        let entry = token.entry(&key.locator, deadline).await?;
        match Trust::Proven(self.id).allows(&entry) {
            Err(HsmError::KeyUnproven) => {}
            Err(HsmError::KeyOfAnotherStore) => {
                self.note_fault(member, key, KeyFault::OfAnotherStore);
                return Err(HsmError::KeyOfAnotherStore);
            }
            known => return known,
        }
        let standing = match self.is_same_key(token, key, deadline).await {
            Ok(true) => Standing::Proven,
            Ok(false) => Standing::Refused,
            Err(HsmError::KeyNotPermitted { .. }) => Standing::Unprovable,
            Err(error) => return Err(error),
        };
        entry.set_standing(standing);
        if standing == Standing::Refused {
            self.note_fault(member, key, KeyFault::Differs);
            return Err(HsmError::KeyDiffers);
        }
        self.forget_fault(member, key);
        Ok(())
    }

    /// Compares a member's key with the check value, or makes the check value where there is none yet.
    async fn is_same_key(
        &self,
        token: &Token,
        key: &KeyMaterial,
        deadline: Deadline,
    ) -> Result<bool, HsmError> {
        // Found out without a call that the token would refuse.
        let usages = token.key_attributes(key, deadline).await.result?.usages;
        if !usages.decrypt {
            return Err(HsmError::KeyNotPermitted { code: "CKA_DECRYPT".into() });
        }
        let known = key.check_value.clone().or_else(|| lock(&self.references).get(&key.locator).cloned());
        if let Some(known) = known {
            // Twice, since a fault on the way looks like another key and has worse consequences.
            return Ok(known.is_of(token, key, deadline).await? || known.is_of(token, key, deadline).await?);
        }
        if !usages.encrypt {
            return Err(HsmError::KeyNotPermitted { code: "CKA_ENCRYPT".into() });
        }
        let made = CheckValue::make(token, key, deadline).await?;
        if !made.is_of(token, key, deadline).await? {
            return Err(HsmError::Device {
                call: "C_Encrypt",
                code: "a ciphertext that does not decrypt".into(),
            });
        }
        // Two members may have begun at once: one of them made the one that counts.
        let counts =
            lock(&self.references).entry(key.locator.clone()).or_insert_with(|| made.clone()).clone();
        Ok(counts == made || counts.is_of(token, key, deadline).await?)
    }

    /// What the members' answers to one request say of the key: one that lacks it while another serves it is at fault.
    fn learn(&self, key: &KeyMaterial, failures: &Failures, is_served: bool) {
        for (member, error) in &failures.0 {
            match error {
                HsmError::KeyNotFound => self.note_fault(*member, key, KeyFault::Missing),
                // Another member has opened what this one called bad: it is asked no more until a probe succeeds.
                HsmError::BadCiphertext { .. } if is_served => {
                    self.members[*member].suspect("it refused a good ciphertext");
                }
                _ => {}
            }
        }
    }

    fn note_fault(&self, member: usize, key: &KeyMaterial, fault: KeyFault) {
        let mut faults = lock(&self.faults);
        let before = faults.insert((member, key.locator.clone()), fault);
        self.count_faults(member, &faults);
        if before != Some(fault) {
            let (token, locator) = (self.members[member].name(), &key.locator);
            match fault {
                KeyFault::Missing => {
                    tracing::error!(%token, %locator, "the token lacks a key that another token of the store has");
                }
                KeyFault::OfAnotherStore => tracing::error!(
                    %token, %locator,
                    "another store uses this key under another of its names: it is not used here"
                ),
                KeyFault::Differs => tracing::error!(
                    %token, %locator,
                    "the token's key is another than before, than on the other tokens, or than its check value says: it \
                     is not used. Other material needs a version number of its own"
                ),
            }
        }
    }

    fn forget_fault(&self, member: usize, key: &KeyMaterial) {
        let mut faults = lock(&self.faults);
        if faults.remove(&(member, key.locator.clone())).is_some() {
            self.count_faults(member, &faults);
            let (token, locator) = (self.members[member].name(), &key.locator);
            tracing::info!(%token, %locator, "the token has the key again");
        }
    }

    fn count_faults(&self, member: usize, faults: &HashMap<(usize, KeyLocator), KeyFault>) {
        for fault in KeyFault::ALL {
            let count = faults.iter().filter(|((of, _), found)| *of == member && **found == fault).count();
            self.members[member].metrics().keys_out(fault.label(), count);
        }
    }

    /// Proves the keys of the store on every member ahead of their use, after every login anew. Ends never.
    pub async fn watch(self: Arc<Self>) {
        // Nothing to do while the indexes are those that all was proven with. What one token lacks depends on the others.
        let mut settled = vec![Vec::new(); self.members.len()];
        loop {
            for (member, settled) in settled.iter_mut().enumerate() {
                let generations: Vec<_> =
                    self.members.iter().map(|token| token.indexed_generation()).collect();
                if generations[member].is_some() && *settled != generations {
                    if self.settle(member).await {
                        *settled = generations;
                    }
                    self.is_prepared.store(true, Ordering::Release);
                }
            }
            sleep(if self.is_prepared() { WATCH_INTERVAL } else { FIRST_WATCH_INTERVAL }).await;
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

    /// Proves what can be proven; true once nothing is left to do.
    async fn settle(&self, member: usize) -> bool {
        let token = &self.members[member];
        let seen: Vec<_> = lock(&self.references).keys().cloned().collect();
        let seen = seen.into_iter().map(|locator| KeyMaterial { locator, check_value: None });
        let listed: HashSet<_> = self.listed.iter().map(|key| &key.locator).collect();
        let seen: Vec<_> = seen.filter(|key| !listed.contains(&key.locator)).collect();
        let mut is_settled = true;
        for key in self.listed.iter().chain(&seen) {
            match token.standing(&key.locator) {
                Some(Standing::Unproven) => {
                    let proof = self.prove(member, key, Deadline::after(clock::now(), PROOF_PATIENCE)).await;
                    is_settled &=
                        matches!(proof, Ok(()) | Err(HsmError::KeyDiffers | HsmError::KeyOfAnotherStore));
                }
                // Another store may have proven it, under another name.
                Some(Standing::Proven | Standing::Unprovable) => {
                    let proof = self.prove(member, key, Deadline::after(clock::now(), PROOF_PATIENCE)).await;
                    if proof.is_ok() {
                        self.forget_fault(member, key);
                    }
                }
                Some(Standing::Refused) => {}
                None => {
                    let has_another = |other: &Arc<Token>| other.standing(&key.locator).is_some();
                    if self.members.iter().any(has_another) {
                        self.note_fault(member, key, KeyFault::Missing);
                    }
                }
            }
        }
        is_settled
    }
}

/// One member's answer.
struct Attempt<T> {
    member: usize,
    outcome: Outcome<T>,
    /// No other member could do better.
    is_final: bool,
}

/// What members failed with.
#[derive(Default)]
struct Failures(Vec<(usize, HsmError)>);

impl Failures {
    fn note(&mut self, member: usize, error: HsmError) {
        self.0.push((member, error));
    }

    /// What is told of them all: what a later try may cure goes before what it may not, so that a key is only said to be
    /// absent, or a ciphertext to be bad, where every member says so.
    fn verdict(self) -> HsmError {
        let is_bad = |(_, error): &(usize, HsmError)| matches!(error, HsmError::BadCiphertext { .. });
        if self.0.iter().filter(|failure| is_bad(failure)).count() > 1 {
            // Two that agree need no third.
            return HsmError::BadCiphertext { is_certain: true };
        }
        let worst = self.0.into_iter().map(|(_, error)| error).min_by_key(|error| match error {
            HsmError::DeadlinePassed => 0,
            HsmError::Stalled => 1,
            HsmError::QueueFull | HsmError::TooManySearches => 2,
            HsmError::Device { .. } | HsmError::Worker | HsmError::UnsafeIv => 3,
            HsmError::Unavailable(_) | HsmError::KeyUnproven => 4,
            HsmError::KeyDiffers | HsmError::KeyOfAnotherStore => 5,
            HsmError::KeyAmbiguous { .. } => 6,
            HsmError::KeyNotPermitted { .. } => 7,
            HsmError::BadCiphertext { .. } => 8,
            HsmError::KeyNotFound => 9,
        });
        worst.unwrap_or(HsmError::Worker)
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
        deadline: Deadline,
    ) -> HsmFuture<'a, Sealed> {
        Box::pin(self.run(key, deadline, move |lane, key| lane.encrypt(key, &aad, &plaintext)))
    }

    fn decrypt<'a>(
        &'a self,
        key: &'a KeyMaterial,
        sealed: Arc<Sealed>,
        aad: Arc<[u8]>,
        deadline: Deadline,
    ) -> HsmFuture<'a, Plaintext> {
        Box::pin(self.run(key, deadline, move |lane, key| {
            lane.decrypt(key, &sealed, &aad).map(Arc::<Zeroizing<Vec<u8>>>::new)
        }))
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
            for member in self.order(&key.locator, 0) {
                let token = &self.members[member];
                let outcome = token.key_attributes(key, deadline).await;
                report.add(&outcome.report);
                match outcome.result {
                    Ok(_) if token.standing(&key.locator) == Some(Standing::Refused) => {
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
                health.reason =
                    Some(format!("{count} keys are missing or are other keys than they should be").into());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_absent_and_a_ciphertext_bad_only_where_all_say_so() {
        let verdict = |errors: &[HsmError]| {
            let mut failures = Failures::default();
            errors.iter().for_each(|error| failures.note(0, error.clone()));
            failures.verdict()
        };
        let gone = HsmError::Unavailable("gone".into());
        assert_eq!(verdict(&[HsmError::KeyNotFound, gone.clone()]), gone);
        assert_eq!(verdict(&[HsmError::BadCiphertext { is_certain: true }, gone.clone()]), gone);
        assert_eq!(verdict(&[HsmError::KeyNotFound, HsmError::KeyNotFound]), HsmError::KeyNotFound);
        assert_eq!(verdict(&[gone, HsmError::DeadlinePassed]), HsmError::DeadlinePassed);
        assert_eq!(verdict(&[HsmError::KeyNotFound, HsmError::KeyDiffers]), HsmError::KeyDiffers);
    }
}
