//! The index of a token's secret keys: label and id to object handle, so that no request searches the token.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session as CryptokiSession;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ckr::{Meaning, code_of, meaning};
use super::connection::Epoch;
use super::gcm::{self, Gcm};
use super::session::Session;
use super::standing::{Judgement, Owner, Standing, StoreId};
use super::{HsmError, KeyAttributes, KeyKind, KeyLocator, KeyMaterial, KeyUsages};
use crate::clock;

/// A key of the token, as long as its epoch lasts.
pub(super) struct KeyEntry {
    pub(super) handle: ObjectHandle,
    pub(super) epoch: Epoch,
    attributes: ArcSwap<ReadAttributes>,
    is_stale: AtomicBool,
    is_being_read: AtomicBool,
    label: Option<Box<str>>,
    id: Option<Box<[u8]>>,
    judgement: ArcSwap<Judgement>,
    /// The token no longer knows the handle.
    is_gone: AtomicBool,
    owner: Owner,
}

struct ReadAttributes {
    attributes: KeyAttributes,
    read_at: Instant,
}

impl KeyEntry {
    fn new(object: &KeyObject, epoch: Epoch) -> Self {
        let attributes = object.attributes;
        Self {
            handle: object.handle,
            epoch,
            attributes: ArcSwap::from_pointee(ReadAttributes { attributes, read_at: clock::now() }),
            is_stale: AtomicBool::new(false),
            is_being_read: AtomicBool::new(false),
            label: object.label.clone(),
            id: object.id.clone(),
            judgement: ArcSwap::default(),
            is_gone: AtomicBool::new(false),
            owner: Owner::default(),
        }
    }

    /// Whether the store may use the key.
    pub(super) fn is_of(&self, store: StoreId) -> bool {
        self.owner.admits(store)
    }

    /// Whether the key is known to be the one that the store means.
    pub(super) fn standing(&self, store: StoreId, key: &KeyMaterial) -> Standing {
        self.judgement.load().standing(store, key)
    }

    /// Whether nothing has shown that it is the one meant, since there was nothing to show it by.
    pub(super) fn is_unprovable(&self) -> bool {
        self.judgement.load().is_unprovable()
    }

    pub(super) fn set_standing(&self, store: StoreId, key: &KeyMaterial, standing: Standing) {
        self.judgement.store(Arc::new(Judgement::new(store, key, standing)));
    }

    /// Aged attributes that somebody is reading anew already: good enough for everybody else meanwhile.
    pub(super) fn claim_reading(&self) -> Result<ReadingClaim<'_>, KeyAttributes> {
        if self.is_being_read.swap(true, Ordering::AcqRel) && !self.is_stale.load(Ordering::Relaxed) {
            Err(self.attributes.load().attributes)
        } else {
            Ok(ReadingClaim(self))
        }
    }

    /// The attributes, if they were read within `max_age` and nothing has cast doubt on them since.
    pub(super) fn fresh_attributes(&self, max_age: Duration) -> Option<KeyAttributes> {
        let read = self.attributes.load();
        let is_fresh = !self.is_stale.load(Ordering::Relaxed) && read.read_at.elapsed() < max_age;
        is_fresh.then_some(read.attributes)
    }

    /// What is equal of two entries of the same key.
    fn identity(&self) -> (u64, Option<&str>, Option<&[u8]>) {
        (self.handle.handle(), self.label.as_deref(), self.id.as_deref())
    }

    /// Takes over what another has read of the same key, if it is newer and nothing has cast doubt on it.
    fn take_over(&self, other: &Self) {
        let newer = other.attributes.load_full();
        if newer.read_at > self.attributes.load().read_at && !self.is_stale.load(Ordering::Relaxed) {
            self.put_attributes(newer);
        }
    }

    pub(super) fn set_attributes(&self, attributes: KeyAttributes) {
        self.put_attributes(Arc::new(ReadAttributes { attributes, read_at: clock::now() }));
        self.is_stale.store(false, Ordering::Relaxed);
    }

    fn put_attributes(&self, read: Arc<ReadAttributes>) {
        let now = read.attributes.usages;
        let before = self.attributes.swap(read).attributes.usages;
        // What it may do only now it has not shown yet, and can show.
        if now.encrypt && now.decrypt && !before.encrypt {
            self.judgement.store(Arc::default());
        }
    }

    /// The token has just contradicted the attributes: they are read again before the next use.
    pub(super) fn doubt_attributes(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }
}

/// Somebody reads the attributes; gives the claim back when dropped.
pub(super) struct ReadingClaim<'k>(&'k KeyEntry);

impl Drop for ReadingClaim<'_> {
    fn drop(&mut self) {
        self.0.is_being_read.store(false, Ordering::Release);
    }
}

/// Refuses initialization vectors that would betray the key's plaintexts: half a megabyte of memory for each token.
pub(super) struct IvGuard {
    /// Fingerprints, each at the place that it names itself, until another of that place comes.
    seen: Box<[AtomicU64]>,
}

/// About as many IVs are remembered.
const SEEN_IVS: u64 = 1 << 16;

impl Default for IvGuard {
    fn default() -> Self {
        Self { seen: (0..SEEN_IVS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl IvGuard {
    /// Whether an IV may be used: 12 or 16 bytes, not all zero, not the one before, nor one that is remembered from before that.
    pub(super) fn accepts(&self, iv: &[u8]) -> bool {
        let is_well_formed = matches!(iv.len(), 12 | 16) && iv.iter().any(|byte| *byte != 0);
        is_well_formed && {
            let fingerprint = fingerprint(iv);
            let place = usize::try_from(fingerprint % SEEN_IVS).unwrap_or(0);
            self.seen[place].swap(fingerprint, Ordering::Relaxed) != fingerprint
        }
    }
}

/// FNV-1a, 64 bits: equal IVs always collide, two different ones once in 2^64.
fn fingerprint(iv: &[u8]) -> u64 {
    iv.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What answers to a locator.
#[derive(Clone)]
enum Found {
    One(Arc<KeyEntry>),
    Many(Arc<Ambiguity>),
}

impl Found {
    fn several(count: usize) -> Self {
        Self::Many(Arc::new(Ambiguity { count, is_doubted: AtomicBool::new(false) }))
    }

    /// Whether only a search can tell what answers now.
    fn is_doubted(&self) -> bool {
        match self {
            Self::One(entry) => &entry.is_gone,
            Self::Many(several) => &several.is_doubted,
        }
        .load(Ordering::Relaxed)
    }
}

/// Several keys that answer to one locator.
struct Ambiguity {
    count: usize,
    /// All but one may be gone by now.
    is_doubted: AtomicBool,
}

/// The index. Reading it waits for nobody; the token's keeper alone writes.
#[derive(Default)]
pub(super) struct KeyIndex {
    found: ArcSwap<HashMap<KeyLocator, Found>>,
    /// The epoch that may write: of one before, a keeper that was stuck and replaced may still want to.
    epoch: AtomicU64,
    /// Goes up with every change.
    generation: AtomicU64,
    /// The last epoch whose keys have all been listed.
    listed_epoch: AtomicU64,
    /// How often all keys have been listed.
    listings: AtomicU64,
}

impl KeyIndex {
    /// The key that answers to `locator`, `None` where the index knows none of this epoch.
    pub(super) fn find(&self, locator: &KeyLocator, epoch: Epoch) -> Option<Result<Arc<KeyEntry>, HsmError>> {
        match self.found.load().get(locator)? {
            doubted if doubted.is_doubted() => None,
            Found::One(entry) => (entry.epoch == epoch).then(|| Ok(Arc::clone(entry))),
            // SPEC(URI-KEYID-005): an id MUST identify one key without ambiguity.
            Found::Many(several) => Some(Err(HsmError::KeyAmbiguous { count: several.count })),
        }
    }

    /// Whether the index knew what answers to `locator`, and only a search can tell what does now.
    pub(super) fn is_doubted(&self, locator: &KeyLocator) -> bool {
        self.found.load().get(locator).is_some_and(Found::is_doubted)
    }

    /// Whatever answers to `locator` is searched anew before it is used.
    pub(super) fn doubt(&self, locator: &KeyLocator) {
        match self.found.load().get(locator) {
            Some(Found::One(entry)) => self.forget(entry),
            Some(Found::Many(several)) => {
                several.is_doubted.store(true, Ordering::Relaxed);
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
            None => {}
        }
    }

    /// Uses a key no more whose handle the token no longer knows.
    pub(super) fn forget(&self, gone: &KeyEntry) {
        gone.is_gone.store(true, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The entry of the same key under its other name.
    fn twin(&self, object: &KeyObject, epoch: Epoch) -> Option<Arc<KeyEntry>> {
        let label = object.label.clone().map(KeyLocator::Label);
        let id = object.id.clone().map(KeyLocator::Id);
        let mut known = label.iter().chain(&id).filter_map(|locator| self.find(locator, epoch)?.ok());
        known.find(|entry| entry.handle == object.handle)
    }

    /// Which state of the index it is, `None` where the keys of `epoch` have not all been listed yet.
    pub(super) fn generation(&self, epoch: Epoch) -> Option<u64> {
        let is_listed = self.listed_epoch.load(Ordering::Acquire) == epoch.0;
        is_listed.then(|| self.generation.load(Ordering::Acquire))
    }

    /// How often all keys have been listed, in whichever epoch.
    pub(super) fn listings(&self) -> u64 {
        self.listings.load(Ordering::Acquire)
    }

    /// How many locators answer.
    pub(super) fn len(&self) -> usize {
        self.found.load().len()
    }

    /// The labels among the locators that answer.
    pub(super) fn labels(&self) -> Vec<Box<str>> {
        let label = |locator: &KeyLocator| match locator {
            KeyLocator::Label(label) => Some(label.clone()),
            KeyLocator::Id(_) => None,
        };
        self.found.load().keys().filter_map(label).collect()
    }

    /// Empty for an epoch that begins: from now on no other writes.
    pub(super) fn clear(&self, epoch: Epoch) {
        // Before the index itself, so that whoever looked at the epoch too early finds another index than it looked at.
        if self.epoch.fetch_max(epoch.0, Ordering::SeqCst) < epoch.0 {
            self.found.store(Arc::default());
        }
    }

    fn may_write(&self, epoch: Epoch) -> bool {
        self.epoch.load(Ordering::SeqCst) == epoch.0
    }

    /// Searches the token for one locator and puts what it finds into the index.
    pub(super) fn search(
        &self,
        session: &dyn Session,
        epoch: Epoch,
        locator: &KeyLocator,
        reserved_label: &str,
    ) -> Result<Arc<KeyEntry>, SearchFault> {
        let mut objects = Vec::new();
        for handle in session.find_keys(Some(locator))? {
            if let Some(object) = session.read_key(handle)?
                && object.label.as_deref() != Some(reserved_label)
            {
                objects.push(object);
            }
        }
        let found = match objects.as_slice() {
            [] => return Err(SearchFault::Key(HsmError::KeyNotFound)),
            [object] => {
                let twin = self.twin(object, epoch);
                Found::One(twin.unwrap_or_else(|| Arc::new(KeyEntry::new(object, epoch))))
            }
            several => Found::several(several.len()),
        };
        self.found.rcu(|index| {
            if !self.may_write(epoch) {
                return Arc::clone(index);
            }
            let mut index = HashMap::clone(index);
            index.insert(locator.clone(), found.clone());
            Arc::new(index)
        });
        self.generation.fetch_add(1, Ordering::AcqRel);
        match found {
            Found::One(entry) => Ok(entry),
            Found::Many(several) => Err(SearchFault::Key(HsmError::KeyAmbiguous { count: several.count })),
        }
    }
}

/// Why a search found nothing to use.
pub(super) enum SearchFault {
    /// The key is at fault.
    Key(HsmError),
    /// The token is.
    Token(RvError),
}

impl From<RvError> for SearchFault {
    fn from(code: RvError) -> Self {
        Self::Token(code)
    }
}

/// Reading all keys of a token, a few at a time, so that probes and searches come in between.
pub(super) struct Enumeration {
    epoch: Epoch,
    started_at: Instant,
    handles: std::vec::IntoIter<ObjectHandle>,
    found: HashMap<KeyLocator, Found>,
}

impl Enumeration {
    /// Lists the handles of all secret keys.
    pub(super) fn start(session: &dyn Session, epoch: Epoch) -> Result<Self, RvError> {
        let started_at = clock::now();
        let handles = session.find_keys(None)?.into_iter();
        Ok(Self { epoch, started_at, handles, found: HashMap::new() })
    }

    /// Reads up to `count` keys; true once all are read.
    pub(super) fn step(
        &mut self,
        session: &dyn Session,
        until: Instant,
        reserved_label: &str,
    ) -> Result<bool, RvError> {
        while clock::now() < until {
            let Some(handle) = self.handles.next() else { break };
            let Some(object) = session.read_key(handle)? else { continue };
            if object.label.as_deref() == Some(reserved_label) {
                continue;
            }
            let entry = Arc::new(KeyEntry::new(&object, self.epoch));
            let label = object.label.map(KeyLocator::Label);
            let id = object.id.map(KeyLocator::Id);
            for locator in [label, id].into_iter().flatten() {
                self.found
                    .entry(locator)
                    .and_modify(|found| {
                        *found = match found {
                            Found::One(_) => Found::several(2),
                            Found::Many(several) => Found::several(several.count + 1),
                        }
                    })
                    .or_insert_with(|| Found::One(Arc::clone(&entry)));
            }
        }
        Ok(self.handles.len() == 0)
    }

    /// Makes what was read the index, unless its epoch is over. Entries that stay the same keep what they remember, and those
    /// that a search has added meanwhile stay.
    pub(super) fn publish(self, index: &KeyIndex) {
        let known = index.found.load_full();
        if !index.may_write(self.epoch) {
            return;
        }
        let mut found = self.found;
        let old = known.iter().filter_map(|(locator, old)| match old {
            Found::One(entry) if entry.epoch == self.epoch && !entry.is_gone.load(Ordering::Relaxed) => {
                Some((locator, entry))
            }
            _ => None,
        });
        // A search may have known a key by one of its names alone: it is one entry under all of them.
        let mut kept: HashMap<_, &Arc<KeyEntry>> = HashMap::new();
        for (_, entry) in old.clone() {
            let known = kept.entry(entry.identity()).or_insert(entry);
            if !known.owner.is_taken() {
                *known = entry;
            }
        }
        for found in found.values_mut() {
            if let Found::One(entry) = found
                && let Some(old) = kept.get(&entry.identity())
            {
                old.take_over(entry);
                *entry = Arc::clone(old);
            }
        }
        for (locator, entry) in old {
            if entry.attributes.load().read_at >= self.started_at {
                let kept = kept.get(&entry.identity()).unwrap_or(&entry);
                found.entry(locator.clone()).or_insert_with(|| Found::One(Arc::clone(kept)));
            }
        }
        let before = index.found.compare_and_swap(&known, Arc::new(found));
        // Who writes besides is the keeper of a later epoch.
        if Arc::ptr_eq(&before, &known) {
            index.listings.fetch_add(1, Ordering::AcqRel);
            index.generation.fetch_add(1, Ordering::AcqRel);
            index.listed_epoch.fetch_max(self.epoch.0, Ordering::AcqRel);
        }
    }
}

/// A secret key as read from the token.
#[derive(Serialize, Deserialize)]
pub(super) struct KeyObject {
    #[serde(serialize_with = "write_handle", deserialize_with = "read_handle")]
    handle: ObjectHandle,
    pub(super) label: Option<Box<str>>,
    pub(super) id: Option<Box<[u8]>>,
    pub(super) attributes: KeyAttributes,
}

fn write_handle<S: Serializer>(handle: &ObjectHandle, serializer: S) -> Result<S::Ok, S::Error> {
    handle.handle().serialize(serializer)
}

fn read_handle<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectHandle, D::Error> {
    u64::deserialize(deserializer).map(gcm::object)
}

/// What a search for secret keys asks for: those that answer to `locator`, or all.
pub(super) fn template(locator: Option<&KeyLocator>) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true)];
    match locator {
        Some(KeyLocator::Label(label)) => template.push(Attribute::Label(label.as_bytes().to_vec())),
        Some(KeyLocator::Id(id)) => template.push(Attribute::Id(id.to_vec())),
        None => {}
    }
    template
}

/// The handle of the only key with that label, whatever the index says of it; for the health key.
pub(super) fn find_by_label(session: &dyn Session, label: &str) -> Result<Option<ObjectHandle>, RvError> {
    let handles = session.find_keys(Some(&KeyLocator::Label(label.into())))?;
    Ok(handles.first().copied())
}

/// The attributes of a key, `None` where the token no longer has it.
pub(super) fn read_attributes(
    session: &dyn Session,
    key: &KeyEntry,
) -> Result<Option<KeyAttributes>, RvError> {
    // A handle of another name has come to mean another key.
    let object =
        session.read_key(key.handle)?.filter(|object| object.label == key.label && object.id == key.id);
    Ok(object.map(|object| object.attributes))
}

/// What is read of a key.
const WANTED: [AttributeType; 11] = [
    AttributeType::Label,
    AttributeType::Id,
    AttributeType::KeyType,
    AttributeType::ValueLen,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Derive,
];

/// A key as the token describes it, `None` where it has gone.
pub(super) fn read(session: &CryptokiSession, handle: ObjectHandle) -> Result<Option<KeyObject>, Error> {
    match session.get_attributes(handle, &WANTED) {
        Ok(attributes) => Ok(Some(object(handle, attributes))),
        Err(error) if meaning(code_of(&error)) == Meaning::KeyGone => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same by one call, where the key's names are of a usual length.
pub(super) fn read_at_once(
    calls: &Gcm,
    session: &CryptokiSession,
    handle: ObjectHandle,
) -> Result<Option<KeyObject>, RvError> {
    match calls.attributes(session, handle, WANTED) {
        Ok(attributes) => Ok(Some(object(handle, attributes))),
        Err(RvError::BufferTooSmall) => read(session, handle).map_err(|error| code_of(&error)),
        Err(code) if meaning(code) == Meaning::KeyGone => Ok(None),
        Err(code) => Err(code),
    }
}

fn object(handle: ObjectHandle, attributes: Vec<Attribute>) -> KeyObject {
    let (mut label, mut id, mut key_type, mut value_bytes) = (None, None, None, None);
    let mut usages = KeyUsages::default();
    for attribute in attributes {
        match attribute {
            Attribute::Label(bytes) => label = String::from_utf8(bytes).ok().map(Into::into),
            Attribute::Id(bytes) => id = Some(bytes).filter(|bytes| !bytes.is_empty()).map(Into::into),
            Attribute::KeyType(value) => key_type = Some(value),
            Attribute::ValueLen(bytes) => value_bytes = u32::try_from(*bytes).ok(),
            Attribute::Encrypt(may) => usages.encrypt = may,
            Attribute::Decrypt(may) => usages.decrypt = may,
            Attribute::Sign(may) => usages.sign = may,
            Attribute::Verify(may) => usages.verify = may,
            Attribute::Wrap(may) => usages.wrap = may,
            Attribute::Unwrap(may) => usages.unwrap = may,
            Attribute::Derive(may) => usages.derive = may,
            _ => {}
        }
    }
    let kind = match key_type {
        Some(KeyType::AES) => KeyKind::Aes { bits: value_bytes.map(|bytes| bytes * 8) },
        other => KeyKind::Other(other.map_or(u64::MAX, |key_type| *key_type)),
    };
    KeyObject { handle, label, id, attributes: KeyAttributes { object: handle.handle(), kind, usages } }
}

#[cfg(test)]
mod tests;
