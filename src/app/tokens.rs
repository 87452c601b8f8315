//! The tokens of a configuration, and the stores on them.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use xks_spec::ExternalKeyId;

use crate::admin::Served;
use crate::config::StoreSettings;
use crate::hsm::{
    CheckValue, Fleet, FleetSettings, Generation, Hsm, KeyLocator, KeyMemory, KnownVersion, Modules, Token,
    TokenSettings,
};
use crate::iv_budget::IvBudget;
use crate::keystore::{
    CredentialUses, ExternalKey, KeyRule, KeyStore, KeyStores, KeyVersion, LatestKeys, StoreQuota,
    VersionState,
};
use crate::metrics::{Metrics, TokenMetrics};
use crate::version_records::VersionRecords;

use super::AppError;

/// How long threads have to leave the PKCS#11 modules when the process ends.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The tokens of a configuration, with their threads.
pub struct Tokens {
    modules: Arc<Modules>,
    running: Mutex<HashMap<Arc<str>, Arc<Token>>>,
    /// Let go of, and perhaps not stopped yet.
    removed: Mutex<Vec<Weak<Token>>>,
    /// A thread of one of those has not ended: it may be inside a module for ever.
    has_left_thread: AtomicBool,
}

impl Tokens {
    /// Starts every token; connecting goes on in the background.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(settings: Vec<TokenSettings>, metrics: &Metrics) -> Result<Self, AppError> {
        let tokens = Self {
            modules: Arc::default(),
            running: Mutex::default(),
            removed: Mutex::default(),
            has_left_thread: AtomicBool::new(false),
        };
        settings.into_iter().try_for_each(|settings| tokens.add(settings, metrics).map(drop))?;
        Ok(tokens)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Token>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one more.
    pub(super) fn add(&self, settings: TokenSettings, metrics: &Metrics) -> Result<Arc<Token>, AppError> {
        let name = Arc::clone(&settings.name);
        let token = Token::start(settings, &self.modules, TokenMetrics::new(metrics, &name));
        let token = Arc::new(token.map_err(AppError::Thread)?);
        self.running().insert(name, Arc::clone(&token));
        Ok(token)
    }

    /// Lets go of one. Its threads run until somebody stops them.
    pub(super) fn remove(&self, name: &str) -> Option<Arc<Token>> {
        let token = self.running().remove(name)?;
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        removed.retain(|token| token.strong_count() > 0);
        removed.push(Arc::downgrade(&token));
        Some(token)
    }

    /// Stops one that has been let go of; false where a thread did not end within `patience`.
    pub(super) fn end(&self, removed: &Token, patience: Duration) -> bool {
        let has_stopped = removed.stop(patience);
        self.has_left_thread.fetch_or(!has_stopped, Ordering::AcqRel);
        has_stopped
    }

    /// The modules of all tokens.
    pub(super) fn modules(&self) -> Arc<Modules> {
        Arc::clone(&self.modules)
    }

    /// Each token.
    pub(super) fn each(&self) -> Vec<Arc<Token>> {
        self.running().values().cloned().collect()
    }

    /// Every token as an [`Hsm`].
    #[must_use]
    pub fn all(&self) -> Vec<Arc<dyn Hsm>> {
        self.each().into_iter().map(|token| token as Arc<dyn Hsm>).collect()
    }

    /// The token of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<dyn Hsm>> {
        self.named(name).map(|token| token as Arc<dyn Hsm>)
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<Token>> {
        self.running().get(name).cloned()
    }

    /// Ends the threads; false where one is stuck inside a module.
    #[must_use]
    pub fn stop(&self) -> bool {
        let mut all = self.each();
        all.extend(
            self.removed.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade),
        );
        // All at once: each may take its time to the end.
        thread::scope(|scope| {
            let stop = |token: &Arc<Token>| token.stop(STOP_PATIENCE);
            let stopping = all.iter().map(|token| {
                let thread = thread::Builder::new().name("stop".to_owned());
                (token, thread.spawn_scoped(scope, move || stop(token)))
            });
            let stopping: Vec<_> = stopping.collect();
            let have_stopped = stopping.into_iter().map(|(token, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or(false),
                Err(_) => stop(token),
            });
            // Not short-circuited: each is to stop. Of one that is gone by now, it was noted before it went.
            have_stopped.filter(|has_stopped| !has_stopped).count() == 0
                && !self.has_left_thread.load(Ordering::Acquire)
        })
    }
}

/// The key stores of one configuration, and what each asks of its tokens.
pub(super) struct Stores {
    pub(super) stores: Arc<KeyStores>,
    pub(super) fleets: HashMap<Arc<str>, Arc<Fleet>>,
}

impl Stores {
    /// The stores of a configuration. What those of the same name `before` have learnt and counted is kept: which keys have
    /// proven themselves, initialization vectors, quotas that stay the same.
    pub(super) fn build(
        settings: Vec<StoreSettings>,
        tokens: &Tokens,
        (iv_budget, records): (&IvBudget, &Arc<VersionRecords>),
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Self {
        let generation = Generation::next();
        let mut fleets = HashMap::new();
        let build = |settings: StoreSettings| {
            let same_store = before.and_then(|before| before.stores.of_name(&settings.name));
            let same_fleet = before.and_then(|before| before.fleets.get(&settings.name));
            let fleet_settings = fleet_settings(&settings, tokens, records);
            let fleet = Arc::new(match same_fleet {
                Some(fleet) => fleet.successor(fleet_settings, generation),
                None => Fleet::new(fleet_settings, generation),
            });
            fleets.insert(Arc::clone(&settings.name), Arc::clone(&fleet));
            build_store(settings, fleet, same_store, iv_budget, metrics)
        };
        let stores = Arc::new(KeyStores::new(settings.into_iter().map(build)));
        Self { stores, fleets }
    }

    /// They are served from now on: their metrics begin, or go on.
    pub(super) fn begin(&self, metrics: &Metrics, iv_budget: &IvBudget) {
        for store in self.stores.iter() {
            metrics.begin_store(&store.name);
            store.credential_uses.begin();
        }
        // Their keys alone: the stores hold counts of the budget.
        let enabled = self.stores.iter().filter(|store| store.is_enabled);
        let keys: HashMap<_, _> =
            enabled.map(|store| (Arc::clone(&store.name), Arc::clone(&store.keys))).collect();
        iv_budget.serve(move |store, key, version| {
            let id = ExternalKeyId::parse(key).ok();
            let key = keys.get(store).zip(id).and_then(|(keys, id)| keys.find(&id));
            key.is_some_and(|key| key.is_enabled && key.primary.number == version)
        });
    }

    /// For the operator's questions.
    pub(super) fn served(&self, tokens: &Tokens) -> Served {
        let mut stores: Vec<_> =
            self.fleets.iter().map(|(name, fleet)| (Arc::clone(name), Arc::clone(fleet))).collect();
        stores.sort_by(|(a, _), (b, _)| a.cmp(b));
        Served { tokens: tokens.all(), stores }
    }
}

fn fleet_settings(store: &StoreSettings, tokens: &Tokens, records: &Arc<VersionRecords>) -> FleetSettings {
    let rule = store.keys.rule().cloned();
    let is_made_by_rule = move |locator: &KeyLocator| match (&rule, locator) {
        (Some(rule), KeyLocator::Label(label)) => rule.key_of(label).is_some(),
        _ => false,
    };
    FleetSettings {
        members: store.tokens.iter().filter_map(|name| tokens.named(name)).collect(),
        hedging: store.hedging,
        listed: store.keys.materials(),
        is_made_by_rule: Box::new(is_made_by_rule),
        memory: Box::new(StoreMemory::new(store, records)),
    }
}

/// What is recorded of one store's versions, by how the configuration finds them.
struct StoreMemory {
    store: Arc<str>,
    listed: HashMap<KeyLocator, (ExternalKeyId, u32)>,
    rule: Option<KeyRule>,
    records: Arc<VersionRecords>,
}

impl StoreMemory {
    fn new(store: &StoreSettings, records: &Arc<VersionRecords>) -> Self {
        let versions = |(id, key): (&ExternalKeyId, &ExternalKey)| -> Vec<_> {
            let number = |version: &KeyVersion| {
                let locator = version.material.locator.clone();
                (locator, (id.clone(), version.number))
            };
            key.versions().map(number).collect()
        };
        Self {
            store: Arc::clone(&store.name),
            listed: store.keys.listed().flat_map(versions).collect(),
            rule: store.keys.rule().cloned(),
            records: Arc::clone(records),
        }
    }

    fn version(&self, locator: &KeyLocator) -> Option<(ExternalKeyId, u32)> {
        let by_rule = || match locator {
            KeyLocator::Label(label) => self.rule.as_ref()?.key_of(label),
            KeyLocator::Id(_) => None,
        };
        self.listed.get(locator).cloned().or_else(by_rule)
    }
}

impl KeyMemory for StoreMemory {
    fn known(&self, locator: &KeyLocator) -> Option<KnownVersion> {
        let (id, number) = self.version(locator)?;
        self.records.known(&self.store, id.as_str(), number)
    }

    fn note(&self, locator: &KeyLocator, check_value: &CheckValue, token: &str) {
        if let Some((id, number)) = self.version(locator) {
            self.records.note(&self.store, (id.as_str(), number), locator, check_value, token);
        }
    }

    fn note_listing(&self, fleet: &Fleet) {
        let Some(rule) = &self.rule else { return };
        let listed: BTreeSet<_> = self.listed.values().map(|(id, _)| id).collect();
        let labels = fleet.labels_by_rule();
        let ids: BTreeSet<_> = labels.iter().filter_map(|label| Some(rule.key_of(label)?.0)).collect();
        let ids: Vec<_> = ids.iter().filter(|id| !listed.contains(id)).collect();
        let found_on = |number| {
            let mut tokens: BTreeSet<_> = fleet.names().cloned().collect();
            for id in &ids {
                let holders: Vec<_> = fleet.holders(&KeyLocator::Label(rule.label(id, number))).collect();
                tokens.retain(|token| holders.contains(&token));
            }
            tokens
        };
        let used = rule.versions().filter(|(_, state)| *state != VersionState::Disabled);
        self.records.note_found(&self.store, used.map(|(number, _)| (number, found_on(number))).collect());
    }
}

fn build_store(
    settings: StoreSettings,
    fleet: Arc<Fleet>,
    before: Option<&Arc<KeyStore>>,
    iv_budget: &IvBudget,
    metrics: &Arc<Metrics>,
) -> KeyStore {
    let keys = Arc::new(settings.keys);
    let (per_second, burst) = (settings.requests_per_second, settings.burst);
    let same_quota = before.map(|store| &store.quota).filter(|quota| quota.is_of(per_second, burst));
    KeyStore {
        iv_counts: before.map_or_else(
            || Arc::new(iv_budget.of_store(&settings.name)),
            |store| Arc::clone(&store.iv_counts),
        ),
        latest: before.map_or_else(
            || LatestKeys::new(settings.is_enabled, Arc::clone(&keys)),
            |store| Arc::clone(&store.latest),
        ),
        quota: same_quota.map_or_else(|| Arc::new(StoreQuota::new(per_second, burst)), Arc::clone),
        credential_uses: CredentialUses::new(&settings.name, settings.credentials.ages(), metrics),
        name: settings.name,
        prefix: settings.prefix,
        is_enabled: settings.is_enabled,
        credentials: settings.credentials,
        policies: settings.policies,
        keys,
        aws_sample: settings.aws_sample,
        hsm: fleet,
    }
}
