//! Whose a key of a token is, and whether it is known to be the one meant: across configurations, whose stores differ.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{CheckValue, KeyMaterial};

/// One of the stores of a configuration: no two may use one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreId {
    /// Which configuration it is, from 1: a later one has the greater number.
    pub(super) generation: u32,
    /// The store, under the same number in each of them.
    pub(super) number: u32,
}

impl StoreId {
    const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.number as u64
    }
}

/// The store that may use a key: the first of the latest configuration that did. A [`StoreId`] as one number.
#[derive(Default)]
pub(super) struct Owner(AtomicU64);

impl Owner {
    /// Whether any store has asked for the key yet.
    pub(super) fn is_taken(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Whether the key is the store's, which it is from the first time that any store of a configuration asks for it. A
    /// later configuration may give it to another; who began under an earlier one may finish.
    pub(super) fn admits(&self, store: StoreId) -> bool {
        let generation = |owner: u64| owner >> 32;
        let owner = self.0.load(Ordering::Acquire);
        if owner == store.to_bits() {
            return true;
        }
        let claim = |owner| (generation(owner) < u64::from(store.generation)).then_some(store.to_bits());
        match self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim) {
            Ok(_) => true,
            Err(owner) => owner == store.to_bits() || generation(owner) > u64::from(store.generation),
        }
    }
}

/// Whether a key is known to be the one meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody has looked yet.
    Unproven,
    /// It is.
    Proven,
    /// It cannot be shown: the key may not both encrypt and decrypt, and nobody knows what it has made. KMS makes no key from
    /// such a one. It may decrypt, since a tag that fits shows the key, and encrypt only where no other token could decrypt it,
    /// on a token that has shown by another key to make good ciphertexts.
    Unprovable,
    /// It is another key.
    Refused,
}

impl Standing {
    /// Whether the key may be used, if only to decrypt.
    pub(super) const fn serves(self) -> bool {
        matches!(self, Self::Proven | Self::Unprovable)
    }
}

/// Whether a key is the one meant, and who meant what: what was shown to another store, or of another check value, says
/// nothing.
#[derive(Default)]
pub(super) struct Judgement(Option<(Standing, Against)>);

/// What a key has been compared with.
enum Against {
    /// The check value that the configuration pins.
    Pinned(CheckValue),
    /// What the store's first token made, for the store of that number.
    Reference(u32),
}

impl Judgement {
    pub(super) fn new(store: StoreId, key: &KeyMaterial, standing: Standing) -> Self {
        let against = key.check_value.clone().map_or(Against::Reference(store.number), Against::Pinned);
        Self(Some((standing, against)))
    }

    /// Whether the last one was that it cannot be shown, for whomever.
    pub(super) fn is_unprovable(&self) -> bool {
        matches!(self.0, Some((Standing::Unprovable, _)))
    }

    /// The standing for that store.
    pub(super) fn standing(&self, store: StoreId, key: &KeyMaterial) -> Standing {
        match (&self.0, &key.check_value) {
            (Some((standing, Against::Pinned(own))), Some(pinned)) if own == pinned => *standing,
            (Some((standing, Against::Reference(number))), None) if *number == store.number => *standing,
            _ => Standing::Unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::KeyLocator;

    const fn store(generation: u32, number: u32) -> StoreId {
        StoreId { generation, number }
    }

    #[test]
    fn a_key_is_of_one_store_of_a_configuration_and_may_change_hands_with_the_next() {
        let owner = Owner::default();
        assert!(owner.admits(store(1, 0)) && owner.admits(store(1, 0)));
        assert!(!owner.admits(store(1, 1)), "two stores of one configuration");
        assert!(owner.admits(store(2, 1)), "another configuration gives it to another");
        assert!(!owner.admits(store(2, 0)));
        assert!(owner.admits(store(1, 0)), "who began before may finish");
        assert!(owner.admits(store(2, 1)), "and takes nothing away");
    }

    #[test]
    fn a_proof_is_worth_what_it_was_made_against() {
        let pinned = |text: &str| KeyMaterial {
            locator: KeyLocator::Label("a".into()),
            check_value: Some(text.parse().unwrap()),
        };
        let one = pinned("v1:AQIDBAUGBwgJCgsM:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=");
        let other = pinned("v1:AQIDBAUGBwgJCgsN:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=");
        let free = KeyMaterial { check_value: None, ..one.clone() };
        let proven = Judgement::new(store(1, 0), &one, Standing::Proven);
        assert_eq!(proven.standing(store(2, 0), &one), Standing::Proven);
        assert_eq!(proven.standing(store(2, 1), &one), Standing::Proven, "the same value for whomever");
        assert_eq!(proven.standing(store(2, 0), &other), Standing::Unproven);
        assert_eq!(proven.standing(store(2, 0), &free), Standing::Unproven);
        let by_reference = Judgement::new(store(1, 0), &free, Standing::Refused);
        assert_eq!(by_reference.standing(store(2, 0), &free), Standing::Refused);
        assert_eq!(
            by_reference.standing(store(2, 1), &free),
            Standing::Unproven,
            "another store has another reference"
        );
        assert_eq!(by_reference.standing(store(2, 0), &one), Standing::Unproven, "it is pinned by now");
        assert_eq!(Judgement::default().standing(store(1, 0), &free), Standing::Unproven);
    }
}
