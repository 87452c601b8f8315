//! The same label is not the same key: before a token serves a key it shows that it is the one meant.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{Fleet, lock};
use crate::clock::{self, Deadline};
use crate::hsm::keys::KeyEntry;
use crate::hsm::standing::Standing;
use crate::hsm::token::{Token, Trust};
use crate::hsm::{CheckValue, Hsm, HsmError, KeyKind, KeyLocator, KeyMaterial};

/// Time between two looks at keys that have not proven themselves yet.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The same until the first time.
const FIRST_WATCH_INTERVAL: Duration = Duration::from_millis(10);
/// How long a proof may take that no request waits for.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);
/// First pause before keys that a token lacks, or has as others, are looked for again: the operator may have restored them.
const FIRST_LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest such pause.
const MAX_LOOK_AGAIN: Duration = Duration::from_secs(30);
/// So many of them are looked for at once. Where one has come back the token's keys are all listed anew.
const LOOKED_FOR_AT_ONCE: usize = 16;

/// Asked twice, since a fault on the way looks like another key and has worse consequences.
async fn is_surely_of(
    value: &CheckValue,
    token: &Token,
    key: &KeyMaterial,
    deadline: Deadline,
) -> Result<bool, HsmError> {
    Ok(value.is_of(token, key, deadline).await? || value.is_of(token, key, deadline).await?)
}

/// Has a key make a check value that it decrypts: two of them where no probe has proven the token, under different IVs.
async fn make_value(token: &Token, key: &KeyMaterial, deadline: Deadline) -> Result<CheckValue, HsmError> {
    let made = make_good_value(token, key, deadline).await?;
    if !token.is_proven() {
        // An IV that was there before, or is zero, leaves no token.
        make_good_value(token, key, deadline).await?;
    }
    Ok(made)
}

async fn make_good_value(
    token: &Token,
    key: &KeyMaterial,
    deadline: Deadline,
) -> Result<CheckValue, HsmError> {
    let made = CheckValue::make(token, key, deadline).await?;
    if made.is_of(token, key, deadline).await? {
        return Ok(made);
    }
    Err(HsmError::Device { call: "C_Encrypt", code: "a ciphertext that does not decrypt".into() })
}

/// What is wrong with a key on one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyFault {
    Missing,
    /// Several keys answer to its name.
    Ambiguous,
    Differs,
    OfAnotherStore,
    /// There is something to compare it with, but it may not decrypt.
    Unprovable,
}

impl KeyFault {
    /// In the order of their numbers.
    const ALL: [Self; 5] =
        [Self::Missing, Self::Ambiguous, Self::Differs, Self::OfAnotherStore, Self::Unprovable];

    const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Ambiguous => "ambiguous",
            Self::Differs => "differs",
            Self::OfAnotherStore => "of_another_store",
            Self::Unprovable => "unprovable",
        }
    }
}

/// What a key on one token has shown itself to be.
enum Likeness {
    /// Another key than the one meant.
    Differs,
    /// The key of the check value that the configuration pins.
    Pinned(CheckValue),
    /// The key of this check value, which was there before.
    Known(CheckValue),
    /// The key that has made this check value just now: there was none to compare it with.
    Made(CheckValue),
}

/// When keys of a token that are at fault are looked for again.
struct LookAgain {
    faults: usize,
    pause: Duration,
    since: Instant,
    turn: usize,
}

impl Default for LookAgain {
    fn default() -> Self {
        Self { faults: 0, pause: FIRST_LOOK_AGAIN, since: clock::now(), turn: 0 }
    }
}

impl LookAgain {
    /// Which turn it is where it is time for one: pauses double as long as as many keys are at fault.
    fn is_due(&mut self, faults: usize) -> Option<usize> {
        if self.faults != faults {
            *self = Self { faults, turn: self.turn, ..Self::default() };
        }
        if faults == 0 || self.since.elapsed() < self.pause {
            return None;
        }
        self.pause = (2 * self.pause).min(MAX_LOOK_AGAIN);
        self.since = clock::now();
        self.turn = self.turn.wrapping_add(1);
        Some(self.turn)
    }
}

impl Fleet {
    /// Has a member show that its key is the one meant: it decrypts the check value that is pinned in the configuration, or
    /// that the member made which served first.
    ///
    /// # Errors
    /// [`HsmError::KeyDiffers`] where it is another; other errors where it could not be shown.
    pub(super) async fn prove(
        &self,
        member: usize,
        key: &KeyMaterial,
        deadline: Deadline,
    ) -> Result<(), HsmError> {
        let entry = self.members[member].entry(&key.locator, deadline).await?;
        match Trust::Proven(self.id, key).allows(&entry) {
            Err(HsmError::KeyUnproven) => {}
            // There may be something to compare it with by now.
            Ok(()) if entry.is_unprovable() => {}
            Err(HsmError::KeyOfAnotherStore) => {
                self.note_fault(member, key, KeyFault::OfAnotherStore);
                return Err(HsmError::KeyOfAnotherStore);
            }
            known => return known,
        }
        self.judge(member, key, &entry, deadline).await
    }

    /// The same for a key that may have shown already what it is: under its label and its handle there may be another by now.
    /// What it was holds until it is known what it is.
    async fn prove_anew(&self, member: usize, key: &KeyMaterial, deadline: Deadline) -> Result<(), HsmError> {
        let entry = self.members[member].entry(&key.locator, deadline).await?;
        if !entry.is_of(self.id) {
            self.note_fault(member, key, KeyFault::OfAnotherStore);
            return Err(HsmError::KeyOfAnotherStore);
        }
        self.judge(member, key, &entry, deadline).await
    }

    async fn judge(
        &self,
        member: usize,
        key: &KeyMaterial,
        entry: &KeyEntry,
        deadline: Deadline,
    ) -> Result<(), HsmError> {
        let token = &self.members[member];
        let standing = match self.is_same_key(token, key, deadline).await {
            Ok(true) => Standing::Proven,
            Ok(false) => Standing::Refused,
            Err(error @ HsmError::KeyNotPermitted { .. }) if self.has_proof(key) => {
                entry.set_standing(self.id, key, Standing::Unproven);
                self.note_fault(member, key, KeyFault::Unprovable);
                return Err(error);
            }
            Err(HsmError::KeyNotPermitted { .. }) => Standing::Unprovable,
            Err(error) => return Err(error),
        };
        entry.set_standing(self.id, key, standing);
        if standing == Standing::Refused {
            self.note_fault(member, key, KeyFault::Differs);
            return Err(HsmError::KeyDiffers);
        }
        self.forget_fault(member, key);
        Ok(())
    }

    /// Whether there is a check value that a key can be compared with.
    fn has_proof(&self, key: &KeyMaterial) -> bool {
        key.check_value.is_some()
            || self.memory.known(&key.locator).is_some()
            || lock(&self.references).contains_key(&key.locator)
    }

    /// Whether a member's key is the one that its version stands for. If it is, it is remembered as that.
    async fn is_same_key(
        &self,
        token: &Token,
        key: &KeyMaterial,
        deadline: Deadline,
    ) -> Result<bool, HsmError> {
        let value = match self.compare(token, key, None, deadline).await? {
            Likeness::Differs => return Ok(false),
            Likeness::Pinned(value) => value,
            Likeness::Known(value) => {
                lock(&self.references).insert(key.locator.clone(), value.clone());
                value
            }
            Likeness::Made(made) => {
                // Two members may have begun at once: one of them made the one that counts.
                let counts =
                    lock(&self.references).entry(key.locator.clone()).or_insert_with(|| made.clone()).clone();
                if counts != made && !counts.is_of(token, key, deadline).await? {
                    return Ok(false);
                }
                counts
            }
        };
        self.memory.note(&key.locator, &value, token.name());
        Ok(true)
    }

    /// Compares a member's key with the check value, or with that of `another` member, or makes the check value where there is none
    /// yet. On a token that no probe has proven, a key that may encrypt has to make good ciphertexts besides: what it decrypts was
    /// made elsewhere. Remembers nothing.
    async fn compare(
        &self,
        token: &Token,
        key: &KeyMaterial,
        another: Option<&CheckValue>,
        deadline: Deadline,
    ) -> Result<Likeness, HsmError> {
        // Found out without a call that the token would refuse.
        let attributes = token.key_attributes(key, deadline).await.result?;
        let usages = attributes.usages;
        if !usages.decrypt || !matches!(attributes.kind, KeyKind::Aes { .. }) {
            return Err(HsmError::KeyNotPermitted { code: "CKA_DECRYPT".into() });
        }
        let known = self.compare_with_known(token, key, another, deadline).await?;
        if !usages.encrypt {
            return known.ok_or_else(|| HsmError::KeyNotPermitted { code: "CKA_ENCRYPT".into() });
        }
        match known {
            None => Ok(Likeness::Made(make_value(token, key, deadline).await?)),
            Some(Likeness::Differs) => Ok(Likeness::Differs),
            Some(known) if token.is_proven() => Ok(known),
            Some(known) => match make_value(token, key, deadline).await {
                // What may not encrypt, whatever its attributes say, makes nothing that is not good.
                Ok(_) | Err(HsmError::KeyNotPermitted { .. }) => Ok(known),
                Err(error) => Err(error),
            },
        }
    }

    /// The same where there is something to compare it with; `None` where there is not.
    async fn compare_with_known(
        &self,
        token: &Token,
        key: &KeyMaterial,
        another: Option<&CheckValue>,
        deadline: Deadline,
    ) -> Result<Option<Likeness>, HsmError> {
        let before = self.memory.known(&key.locator);
        if let Some(pinned) = &key.check_value {
            if !is_surely_of(pinned, token, key, deadline).await? {
                return Ok(Some(Likeness::Differs));
            }
            // A value that is pinned now was not always. Under another name it says nothing of what the number stood for.
            if let Some(before) = before.filter(|before| !before.is_overruled_by(key))
                && before.check_value != *pinned
                && !is_surely_of(&before.check_value, token, key, deadline).await?
            {
                return Ok(Some(Likeness::Differs));
            }
            return Ok(Some(Likeness::Pinned(pinned.clone())));
        }
        let reference = || lock(&self.references).get(&key.locator).cloned();
        let known = before.map(|before| before.check_value).or_else(reference);
        let Some(known) = known.or_else(|| another.cloned()) else { return Ok(None) };
        let is_same = is_surely_of(&known, token, key, deadline).await?;
        Ok(Some(if is_same { Likeness::Known(known) } else { Likeness::Differs }))
    }

    /// On which members a key could not be used, and why: it is to be there, the one meant, and on all of them. Lays no claim
    /// to it, and says nothing of what its version stands for: the configuration may not come to be served.
    pub async fn lacking(&self, key: &KeyMaterial, deadline: Deadline) -> Vec<(Arc<str>, HsmError)> {
        let mut lacking = Vec::new();
        let mut made = None;
        for token in &self.members {
            let error = match self.compare(token, key, made.as_ref(), deadline).await {
                Ok(Likeness::Made(value)) => {
                    made = Some(value);
                    continue;
                }
                Ok(Likeness::Pinned(_) | Likeness::Known(_)) => continue,
                Ok(Likeness::Differs) => HsmError::KeyDiffers,
                Err(error) => error,
            };
            lacking.push((Arc::clone(&token.settings().name), error));
        }
        lacking
    }

    /// The name under which the version was another key before: a token shows so that holds the one it is to be now, and none
    /// has the one that it was.
    pub async fn was_another(&self, key: &KeyMaterial, deadline: Deadline) -> Option<KeyLocator> {
        let before = self.memory.known(&key.locator).filter(|before| !before.is_overruled_by(key))?;
        let mut was_another = false;
        for token in &self.members {
            match is_surely_of(&before.check_value, token, key, deadline).await {
                Ok(true) => return None,
                Ok(false) => was_another = true,
                Err(_) => {}
            }
        }
        was_another.then_some(before.locator)
    }

    pub(super) fn note_fault(&self, member: usize, key: &KeyMaterial, fault: KeyFault) {
        let mut faults = lock(&self.faults);
        let before = faults.insert((member, key.locator.clone()), fault);
        drop(faults);
        if before != Some(fault) {
            let (token, locator) = (self.members[member].name(), &key.locator);
            match fault {
                KeyFault::Missing => {
                    tracing::error!(%token, %locator, "the token lacks a key that another token of the store has");
                }
                KeyFault::Ambiguous => tracing::error!(
                    %token, %locator,
                    "several keys of the token answer to the name of a key: none is used until one is left"
                ),
                KeyFault::OfAnotherStore => tracing::error!(
                    %token, %locator,
                    "another store uses this key under another of its names: it is not used here"
                ),
                KeyFault::Unprovable => tracing::error!(
                    %token, %locator,
                    "the token's key may not decrypt, so that nothing shows that it is the one meant: it is not used"
                ),
                KeyFault::Differs => tracing::error!(
                    %token, %locator,
                    "the token's key is another than before, than on the other tokens, or than its check value says: it \
                     is not used. Other material needs a version number of its own; where this very key is meant, pin its check \
                     value"
                ),
            }
        }
    }

    /// A member lacks a key, which is its fault where another has it.
    fn note_lack(&self, member: usize, key: &KeyMaterial) {
        if self.members.iter().any(|other| other.standing(self.id, key).is_some()) {
            self.note_fault(member, key, KeyFault::Missing);
        }
    }

    fn forget_fault(&self, member: usize, key: &KeyMaterial) {
        if self.drop_fault(member, key) {
            let (token, locator) = (self.members[member].name(), &key.locator);
            tracing::info!(%token, %locator, "the token has the key again");
        }
    }

    /// Whether there was one.
    fn drop_fault(&self, member: usize, key: &KeyMaterial) -> bool {
        lock(&self.faults).remove(&(member, key.locator.clone())).is_some()
    }

    /// How many keys of the store are out of use on each token, and why; also where none is.
    #[must_use]
    pub fn keys_out(&self) -> Vec<(Arc<str>, &'static str, usize)> {
        let mut counts = vec![[0; KeyFault::ALL.len()]; self.members.len()];
        for ((member, _), fault) in lock(&self.faults).iter() {
            counts[*member][*fault as usize] += 1;
        }
        let of_token = |(token, counts): (&Arc<Token>, [usize; KeyFault::ALL.len()])| {
            let name = Arc::clone(&token.settings().name);
            KeyFault::ALL
                .into_iter()
                .zip(counts)
                .map(move |(fault, count)| (Arc::clone(&name), fault.label(), count))
        };
        self.members.iter().zip(counts).flat_map(of_token).collect()
    }

    /// Looks again for keys that a member lacks or has as others.
    async fn look_again(&self, member: usize, turn: usize) {
        let token = &self.members[member];
        let mut faulty = self.faulty(member);
        let count = faulty.len();
        faulty.rotate_left((turn * LOOKED_FOR_AT_ONCE) % count.max(1));
        let mut has_one_back = false;
        for key in faulty.iter().take(LOOKED_FOR_AT_ONCE) {
            token.doubt(&key.locator);
            let known = lock(&self.faults).get(&(member, key.locator.clone())).copied();
            match self.prove(member, key, Deadline::after(clock::now(), PROOF_PATIENCE)).await {
                Ok(()) => {
                    self.forget_fault(member, key);
                    has_one_back = true;
                }
                Err(HsmError::KeyNotFound) if known.is_some() && self.members.len() > 1 => {
                    self.note_fault(member, key, KeyFault::Missing);
                }
                // On a store's single token it is only absent.
                Err(HsmError::KeyNotFound) => {
                    self.drop_fault(member, key);
                }
                Err(HsmError::KeyAmbiguous { .. }) if known.is_some() => {
                    self.note_fault(member, key, KeyFault::Ambiguous);
                }
                Err(HsmError::DeadlinePassed | HsmError::Stalled | HsmError::Unavailable(_)) => return,
                Err(_) => {}
            }
        }
        if has_one_back && count > LOOKED_FOR_AT_ONCE {
            token.reindex();
        }
    }

    /// The keys that a member lacks or has as others. What another store uses is the configuration's fault.
    fn faulty(&self, member: usize) -> Vec<KeyMaterial> {
        let faults = lock(&self.faults);
        let of_member =
            faults.iter().filter(|((of, _), fault)| *of == member && **fault != KeyFault::OfAnotherStore);
        let mut locators: Vec<_> = of_member.map(|((_, locator), _)| locator.clone()).collect();
        drop(faults);
        locators.sort_unstable();
        let material = |locator: KeyLocator| {
            let listed = self.listed.iter().find(|key| key.locator == locator).cloned();
            listed.unwrap_or(KeyMaterial { locator, check_value: None })
        };
        locators.into_iter().map(material).collect()
    }

    /// Proves the keys of the store on every member ahead of their use, and anew after every login and whenever a token's keys
    /// have been listed. Ends never.
    pub async fn watch(self: Arc<Self>) {
        // Nothing to do while the indexes are those that all was proven with, and there is no more to compare keys with. What one
        // token lacks depends on the others.
        let mut settled = vec![Vec::new(); self.members.len()];
        let mut looks: Vec<_> = self.members.iter().map(|_| LookAgain::default()).collect();
        // The listing after which the keys of each were last proven.
        let mut proven = vec![None; self.members.len()];
        let mut noted = None;
        loop {
            // As long as one is away nobody knows which keys there are.
            let listed: Option<Vec<_>> =
                self.members.iter().map(|token| token.indexed_generation()).collect();
            if listed.is_some() && listed != noted {
                let fleet = Arc::clone(&self);
                // Thousands of keys take their time.
                let _ = spawn_blocking(move || fleet.memory.note_listing(&fleet)).await;
                noted = listed;
            }
            for (member, look) in looks.iter_mut().enumerate() {
                let faults = lock(&self.faults).keys().filter(|(of, _)| *of == member).count();
                if let Some(turn) = look.is_due(faults) {
                    self.look_again(member, turn).await;
                }
            }
            let mut has_looked = false;
            for (member, (settled, proven)) in settled.iter_mut().zip(&mut proven).enumerate() {
                let listing = self.members[member].listings();
                let references = u64::try_from(lock(&self.references).len()).ok();
                let generations = self.members.iter().map(|token| token.indexed_generation());
                let generations: Vec<_> = generations.chain([references]).collect();
                if generations[member].is_some() && *settled != generations {
                    has_looked = true;
                    if self.settle(member, proven.is_some_and(|before| before != listing)).await {
                        *settled = generations;
                        *proven = Some(listing);
                        self.is_prepared.store(true, Ordering::Release);
                    }
                }
            }
            // Ready with what there is, but not while the first token hangs and the second has yet to prove its keys.
            if has_looked {
                self.is_prepared.store(true, Ordering::Release);
            }
            sleep(if self.is_prepared() { WATCH_INTERVAL } else { FIRST_WATCH_INTERVAL }).await;
        }
    }

    /// Proves what can be proven, `is_anew` what has proven itself too; true once nothing is left to do.
    async fn settle(&self, member: usize, is_anew: bool) -> bool {
        let token = &self.members[member];
        let seen: Vec<_> = lock(&self.references).keys().cloned().collect();
        let seen = seen.into_iter().map(|locator| KeyMaterial { locator, check_value: None });
        let listed: HashSet<_> = self.listed.iter().map(|key| &key.locator).collect();
        // What an earlier configuration reached may be another store's by now.
        let is_reached =
            |key: &KeyMaterial| !listed.contains(&key.locator) && (self.is_made_by_rule)(&key.locator);
        let seen: Vec<_> = seen.filter(is_reached).collect();
        let mut is_settled = true;
        for key in self.listed.iter().chain(&seen) {
            let deadline = Deadline::after(clock::now(), PROOF_PATIENCE);
            let proof = async {
                if is_anew {
                    self.prove_anew(member, key, deadline).await
                } else {
                    self.prove(member, key, deadline).await
                }
            };
            match token.indexed(&key.locator) {
                Some(Ok(entry)) if !is_anew && entry.standing(self.id, key) == Standing::Refused => {}
                Some(Err(_)) => self.note_fault(member, key, KeyFault::Ambiguous),
                None if !token.is_doubted(&key.locator) => self.note_lack(member, key),
                // One that is proven may have been so for another store, under another name.
                Some(Ok(_)) | None => match proof.await {
                    Ok(()) => self.forget_fault(member, key),
                    Err(
                        HsmError::KeyDiffers | HsmError::KeyOfAnotherStore | HsmError::KeyNotPermitted { .. },
                    ) => {}
                    Err(HsmError::DeadlinePassed | HsmError::Stalled | HsmError::Unavailable(_)) => {
                        // The token's fault, which the next key would meet too while other tokens wait for theirs.
                        return false;
                    }
                    Err(HsmError::KeyNotFound) => self.note_lack(member, key),
                    Err(HsmError::KeyAmbiguous { .. }) => self.note_fault(member, key, KeyFault::Ambiguous),
                    Err(_) => is_settled = false,
                },
            }
        }
        is_settled
    }
}
