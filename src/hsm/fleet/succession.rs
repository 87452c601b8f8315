//! One configuration after another: what a store's fleet takes over from the one before, and whether keys are there.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::{Fleet, FleetSettings, Hedging, lock};
use crate::clock::Deadline;
use crate::hsm::standing::StoreId;
use crate::hsm::token::Token;
use crate::hsm::{HsmError, KeyLocator, KeyMaterial};

/// Which configuration of this process it is: a later one has the greater number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u32);

impl Generation {
    /// The next one.
    #[must_use]
    pub fn next() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) const fn store(self, number: u32) -> StoreId {
        StoreId { generation: self.0, number }
    }
}

/// Whether a key can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// A token holds it, and it is the one meant.
    Yes,
    /// Every token was asked, and none does.
    No(HsmError),
    /// Not every token could be asked.
    Unknown(HsmError),
}

impl Fleet {
    /// The same store in the next configuration: what its keys have shown, and what was found wrong, is kept.
    #[must_use]
    pub fn successor(&self, settings: FleetSettings, generation: Generation) -> Self {
        let FleetSettings { members, hedging, listed, is_made_by_rule, memory } = settings;
        let is_same_hedging = self.hedging.is_by(hedging);
        let successor = Self {
            id: generation.store(self.id.number),
            is_prepared: AtomicBool::new(self.is_prepared()),
            listed,
            is_made_by_rule,
            memory,
            hedging: if is_same_hedging {
                Arc::clone(&self.hedging)
            } else {
                Arc::new(Hedging::new(hedging))
            },
            turn: self.turn.load(Ordering::Relaxed).into(),
            references: Arc::clone(&self.references),
            faults: Mutex::default(),
            members,
        };
        let place_now = |before: usize| {
            let is_same = |token: &Arc<Token>| Arc::ptr_eq(token, &self.members[before]);
            successor.members.iter().position(is_same)
        };
        for ((member, locator), fault) in lock(&self.faults).iter() {
            if let Some(member) = place_now(*member)
                && successor.reaches(locator)
            {
                lock(&successor.faults).insert((member, locator.clone()), *fault);
            }
        }
        successor
    }

    /// Whether it asks the same tokens.
    #[must_use]
    pub fn has_tokens_of(&self, other: &Self) -> bool {
        self.members.len() == other.members.len()
            && self.members.iter().all(|token| other.members.iter().any(|own| Arc::ptr_eq(token, own)))
    }

    fn reaches(&self, locator: &KeyLocator) -> bool {
        self.listed.iter().any(|key| key.locator == *locator) || (self.is_made_by_rule)(locator)
    }

    /// Whether a key is there and the one meant, without laying claim to it.
    pub async fn resolve(&self, key: &KeyMaterial, deadline: Deadline) -> Resolution {
        let mut worst = HsmError::KeyNotFound;
        let mut is_certain = true;
        for token in &self.members {
            match self.is_there(token, key, deadline).await {
                Ok(()) => return Resolution::Yes,
                Err(HsmError::KeyNotFound) => {}
                Err(error @ (HsmError::KeyAmbiguous { .. } | HsmError::KeyDiffers)) if is_certain => {
                    worst = error;
                }
                Err(HsmError::KeyAmbiguous { .. } | HsmError::KeyDiffers) => {}
                Err(error) => (worst, is_certain) = (error, false),
            }
        }
        if is_certain { Resolution::No(worst) } else { Resolution::Unknown(worst) }
    }

    async fn is_there(&self, token: &Token, key: &KeyMaterial, deadline: Deadline) -> Result<(), HsmError> {
        token.entry(&key.locator, deadline).await?;
        let Some(pinned) = &key.check_value else { return Ok(()) };
        match pinned.is_of(token, key, deadline).await {
            // A key that may not decrypt cannot show it.
            Ok(true) | Err(HsmError::KeyNotPermitted { .. }) => Ok(()),
            Ok(false) => Err(HsmError::KeyDiffers),
            Err(error) => Err(error),
        }
    }

    /// The listed keys that no token of the store is known to hold. Asks the indexes alone; none where there is no index.
    #[must_use]
    pub fn unresolved(&self) -> Vec<&KeyLocator> {
        if self.members.iter().all(|token| token.indexed_generation().is_none()) {
            return Vec::new();
        }
        let is_there = |key: &&KeyMaterial| {
            self.members
                .iter()
                .any(|token| token.standing(self.id, key).is_some_and(|s| s != super::Standing::Refused))
        };
        self.listed.iter().filter(|key| !is_there(key)).map(|key| &key.locator).collect()
    }

    /// The names of its tokens.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().map(|token| &token.settings().name)
    }

    /// The tokens whose keys have not been listed since they were connected last, or that are not connected.
    pub fn unlisted(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().filter(|token| !token.is_indexed()).map(|token| &token.settings().name)
    }

    /// Whether a token lists its keys at this moment, and has not done so before since it was connected.
    #[must_use]
    pub fn is_being_listed(&self) -> bool {
        self.members.iter().any(|token| token.is_connected() && !token.is_indexed())
    }

    /// The tokens whose indexes hold the key of that name, once, and not as another than the one meant.
    pub fn holders(&self, locator: &KeyLocator) -> impl Iterator<Item = &Arc<str>> {
        let key = KeyMaterial { locator: locator.clone(), check_value: None };
        let holds = move |token: &&Arc<Token>| {
            token.standing(self.id, &key).is_some_and(|s| s != super::Standing::Refused)
        };
        self.members.iter().filter(holds).map(|token| &token.settings().name)
    }

    /// The labels in the tokens' indexes that the store's rule makes.
    #[must_use]
    pub fn labels_by_rule(&self) -> Vec<Box<str>> {
        let labels = self.members.iter().flat_map(|token| token.indexed_labels());
        let mut labels: Vec<_> =
            labels.filter(|label| (self.is_made_by_rule)(&KeyLocator::Label(label.clone()))).collect();
        labels.sort_unstable();
        labels.dedup();
        labels
    }
}
