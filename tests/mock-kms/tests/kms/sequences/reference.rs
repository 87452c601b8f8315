//! What KMS should do, as plainly as possible: lists, never shortened, of stores, keys and blobs.

use std::collections::BTreeMap;

/// One step of a sequence. Numbers are places in the reference's lists, or names.
#[derive(Clone, Debug)]
pub(super) enum Step {
    SetProxy {
        is_good: bool,
    },
    Advance {
        days: i64,
    },
    CreateStore {
        name: usize,
        path: usize,
    },
    Rename {
        store: usize,
        name: usize,
    },
    MovePath {
        store: usize,
        path: usize,
    },
    SetEndpoint {
        store: usize,
    },
    Connect {
        store: usize,
    },
    /// Connects while the proxy keeps its answer back, and does something else before it comes.
    ConnectSlowly {
        store: usize,
        meanwhile: Box<Step>,
    },
    Disconnect {
        store: usize,
    },
    DeleteStore {
        store: usize,
    },
    CreateKey {
        store: usize,
        xks_key: usize,
    },
    CreatePlainKey,
    Enable {
        key: usize,
    },
    Disable {
        key: usize,
    },
    Schedule {
        key: usize,
        days: i64,
    },
    Cancel {
        key: usize,
    },
    CreateAlias {
        alias: usize,
        key: usize,
    },
    UpdateAlias {
        alias: usize,
        key: usize,
    },
    DeleteAlias {
        alias: usize,
    },
    Encrypt {
        key: usize,
    },
    EncryptByAlias {
        alias: usize,
    },
    Decrypt {
        blob: usize,
    },
    ReEncrypt {
        blob: usize,
        key: usize,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Connection {
    Connected,
    Connecting,
    Failed,
    Disconnected,
}

struct Store {
    name: usize,
    path: usize,
    connection: Connection,
    is_deleted: bool,
}

struct Key {
    /// Store and external key.
    external: Option<(usize, usize)>,
    is_enabled: bool,
    /// The day on which it goes.
    leaves: Option<i64>,
    is_deleted: bool,
}

/// The whole account.
pub(super) struct Reference {
    stores: Vec<Store>,
    keys: Vec<Key>,
    /// Key of each blob.
    blobs: Vec<usize>,
    aliases: BTreeMap<usize, usize>,
    day: i64,
    is_proxy_good: bool,
}

impl Default for Reference {
    fn default() -> Self {
        let (stores, keys, blobs) = (Vec::new(), Vec::new(), Vec::new());
        Self { stores, keys, blobs, aliases: BTreeMap::new(), day: 0, is_proxy_good: true }
    }
}

type Outcome = Result<(), &'static str>;

const STORE_STATE: Outcome = Err("CustomKeyStoreInvalidStateException");
const KEY_STATE: Outcome = Err("KMSInvalidStateException");

impl Reference {
    /// Steps to a store with a key and a blob, where much is possible.
    pub(super) fn first_steps() -> Vec<Step> {
        vec![
            Step::CreateStore { name: 0, path: 0 },
            Step::Connect { store: 0 },
            Step::CreateKey { store: 0, xks_key: 0 },
            Step::Encrypt { key: 0 },
        ]
    }

    /// A step that is possible to ask for, if not to get.
    pub(super) fn random_step(&self, below: &mut impl FnMut(usize) -> usize) -> Step {
        let (stores, keys, blobs) = (self.stores.len(), self.keys.len(), self.blobs.len());
        let has_leaving_key = self.live_keys().any(|key| key.leaves.is_some());
        loop {
            let step = match below(40) {
                0 => Step::SetProxy { is_good: !self.is_proxy_good },
                1 => Step::Advance { days: [1, 7, 8, 30][below(4)] },
                34..=36 if has_leaving_key => Step::Advance { days: [6, 7, 30][below(3)] },
                37..=39 if !self.is_proxy_good => Step::SetProxy { is_good: true },
                // What is not there is asked for now and then, not all the time.
                27 | 30 if self.aliases.is_empty() && below(8) > 0 => continue,
                2..=4 => Step::CreateStore { name: below(4), path: below(4) },
                5 if stores > 0 => Step::Rename { store: below(stores), name: below(4) },
                6 if stores > 0 => Step::MovePath { store: below(stores), path: below(4) },
                7 if stores > 0 => Step::SetEndpoint { store: below(stores) },
                8..=10 if stores > 0 => Step::Connect { store: below(stores) },
                11 if stores > 0 => self.slow_connect(below),
                12 | 13 if stores > 0 => Step::Disconnect { store: below(stores) },
                14 if stores > 0 => Step::DeleteStore { store: below(stores) },
                15..=18 if stores > 0 => Step::CreateKey { store: below(stores), xks_key: below(3) },
                19 => Step::CreatePlainKey,
                20 if keys > 0 => Step::Enable { key: below(keys) },
                21 | 22 if keys > 0 => Step::Disable { key: below(keys) },
                23 if keys > 0 => Step::Schedule { key: below(keys), days: [7, 30][below(2)] },
                24 if keys > 0 => Step::Cancel { key: below(keys) },
                25 if keys > 0 => Step::CreateAlias { alias: below(3), key: below(keys) },
                26 if keys > 0 => Step::UpdateAlias { alias: below(3), key: below(keys) },
                27 => Step::DeleteAlias { alias: below(3) },
                28 | 29 if keys > 0 => Step::Encrypt { key: below(keys) },
                30 => Step::EncryptByAlias { alias: below(3) },
                31 | 32 if blobs > 0 => Step::Decrypt { blob: below(blobs) },
                33 if blobs > 0 => Step::ReEncrypt { blob: below(blobs), key: below(keys) },
                _ => continue,
            };
            return step;
        }
    }

    /// What happens meanwhile must not call the proxy, which does not answer: it concerns the connecting store.
    fn slow_connect(&self, below: &mut impl FnMut(usize) -> usize) -> Step {
        let store = below(self.stores.len());
        let is_connecting = !self.stores[store].is_deleted
            && matches!(self.stores[store].connection, Connection::Disconnected | Connection::Connecting);
        let meanwhile = match below(5) {
            _ if !is_connecting => Step::Connect { store },
            0 => Step::Connect { store },
            1 => Step::Disconnect { store },
            2 => Step::DeleteStore { store },
            3 => Step::Rename { store, name: below(4) },
            _ => Step::CreateKey { store, xks_key: below(3) },
        };
        Step::ConnectSlowly { store, meanwhile: Box::new(meanwhile) }
    }

    /// Takes a step, and says what the answer must be: nothing, or an exception.
    pub(super) fn apply(&mut self, step: &Step) -> Outcome {
        match *step {
            Step::SetProxy { is_good } => self.is_proxy_good = is_good,
            Step::Advance { days } => self.advance(days),
            Step::ConnectSlowly { .. } => {}
            Step::CreateStore { name, path } => {
                if self.live_stores().count() == 10 {
                    return Err("LimitExceededException");
                }
                self.check_unique(None, name, path)?;
                self.ask_for_health()?;
                self.stores.push(Store {
                    name,
                    path,
                    connection: Connection::Disconnected,
                    is_deleted: false,
                });
            }
            Step::Rename { store, name } => {
                self.check_update(store, true)?;
                self.check_unique(Some(store), name, self.stores[store].path)?;
                self.stores[store].name = name;
            }
            Step::MovePath { store, path } => {
                self.check_update(store, true)?;
                self.check_unique(Some(store), self.stores[store].name, path)?;
                self.ask_for_health()?;
                self.stores[store].path = path;
            }
            Step::SetEndpoint { store } => {
                self.check_update(store, false)?;
                self.ask_for_health()?;
            }
            Step::Connect { store } => match self.store(store)?.connection {
                Connection::Failed => return STORE_STATE,
                Connection::Disconnected => self.stores[store].connection = Connection::Connecting,
                Connection::Connected | Connection::Connecting => {}
            },
            Step::Disconnect { store } => {
                if self.store(store)?.connection == Connection::Disconnected {
                    return STORE_STATE;
                }
                self.stores[store].connection = Connection::Disconnected;
            }
            Step::DeleteStore { store } => {
                if self.store(store)?.connection != Connection::Disconnected {
                    return STORE_STATE;
                }
                if self.live_keys().any(|key| key.external.is_some_and(|(of, _)| of == store)) {
                    return Err("CustomKeyStoreHasCMKsException");
                }
                self.stores[store].is_deleted = true;
            }
            Step::CreateKey { store, xks_key } => {
                if self.store(store)?.connection != Connection::Connected {
                    return STORE_STATE;
                }
                if self.live_keys().any(|key| key.external == Some((store, xks_key))) {
                    return Err("XksKeyAlreadyInUseException");
                }
                if !self.is_proxy_good {
                    return STORE_STATE;
                }
                self.add_key(Some((store, xks_key)));
            }
            Step::CreatePlainKey => self.add_key(None),
            Step::Enable { key } => self.staying_key(key)?.is_enabled = true,
            Step::Disable { key } => self.staying_key(key)?.is_enabled = false,
            Step::Schedule { key, days } => {
                let day = self.day;
                self.staying_key(key)?.leaves = Some(day + days);
            }
            Step::Cancel { key } => {
                let key = self.key(key)?;
                if key.leaves.take().is_none() {
                    return KEY_STATE;
                }
                key.is_enabled = false;
            }
            Step::CreateAlias { alias, key } => {
                self.staying_key(key)?;
                if self.aliases.contains_key(&alias) {
                    return Err("AlreadyExistsException");
                }
                self.aliases.insert(alias, key);
            }
            Step::UpdateAlias { alias, key } => {
                self.staying_key(key)?;
                *self.aliases.get_mut(&alias).ok_or("NotFoundException")? = key;
            }
            Step::DeleteAlias { alias } => {
                self.aliases.remove(&alias).ok_or("NotFoundException")?;
            }
            Step::Encrypt { key } => self.encrypt(key)?,
            Step::EncryptByAlias { alias } => {
                let key = *self.aliases.get(&alias).ok_or("NotFoundException")?;
                self.encrypt(key)?;
            }
            Step::Decrypt { blob } => {
                let key = self.blobs[blob];
                self.check_blob(key)?;
                self.use_key(key)?;
            }
            Step::ReEncrypt { blob, key } => {
                let source = self.blobs[blob];
                self.check_blob(source)?;
                self.check_usable(key)?;
                self.use_key(source)?;
                self.use_key(key)?;
            }
        }
        Ok(())
    }

    /// What happens by itself: stores that connect come to an end.
    pub(super) fn settle(&mut self) {
        let outcome = if self.is_proxy_good { Connection::Connected } else { Connection::Failed };
        for store in &mut self.stores {
            if store.connection == Connection::Connecting {
                store.connection = outcome;
            }
        }
    }

    fn advance(&mut self, days: i64) {
        self.day += days;
        for key in &mut self.keys {
            key.is_deleted |= key.leaves.is_some_and(|day| day <= self.day);
        }
        let keys = &self.keys;
        self.aliases.retain(|_, key| !keys[*key].is_deleted);
    }

    fn add_key(&mut self, external: Option<(usize, usize)>) {
        self.keys.push(Key { external, is_enabled: true, leaves: None, is_deleted: false });
    }

    fn live_stores(&self) -> impl Iterator<Item = &Store> {
        self.stores.iter().filter(|store| !store.is_deleted)
    }

    fn live_keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(|key| !key.is_deleted)
    }

    fn store(&self, store: usize) -> Result<&Store, &'static str> {
        Some(&self.stores[store]).filter(|store| !store.is_deleted).ok_or("CustomKeyStoreNotFoundException")
    }

    fn key(&mut self, key: usize) -> Result<&mut Key, &'static str> {
        Some(&mut self.keys[key]).filter(|key| !key.is_deleted).ok_or("NotFoundException")
    }

    fn staying_key(&mut self, key: usize) -> Result<&mut Key, &'static str> {
        let key = self.key(key)?;
        if key.leaves.is_some() { Err("KMSInvalidStateException") } else { Ok(key) }
    }

    fn check_update(&self, store: usize, may_be_connected: bool) -> Outcome {
        match self.store(store)?.connection {
            Connection::Disconnected => Ok(()),
            Connection::Connected if may_be_connected => Ok(()),
            _ => STORE_STATE,
        }
    }

    fn check_unique(&self, itself: Option<usize>, name: usize, path: usize) -> Outcome {
        let others = || {
            let all = self.stores.iter().enumerate();
            all.filter(move |(at, store)| Some(*at) != itself && !store.is_deleted).map(|(_, store)| store)
        };
        if others().any(|other| other.name == name) {
            return Err("CustomKeyStoreNameInUseException");
        }
        if others().any(|other| other.path == path) {
            return Err("XksProxyUriInUseException");
        }
        Ok(())
    }

    fn ask_for_health(&self) -> Outcome {
        if self.is_proxy_good { Ok(()) } else { Err("XksProxyIncorrectAuthenticationCredentialException") }
    }

    fn check_blob(&self, key: usize) -> Outcome {
        if self.keys[key].is_deleted { Err("AccessDeniedException") } else { self.check_usable(key) }
    }

    fn check_usable(&self, key: usize) -> Outcome {
        match self.key_state(&self.keys[key]) {
            None => Err("NotFoundException"),
            Some("Enabled") => Ok(()),
            Some("Disabled") => Err("DisabledException"),
            Some(_) => KEY_STATE,
        }
    }

    /// Has the proxy do its part.
    fn use_key(&self, key: usize) -> Outcome {
        self.check_usable(key)?;
        if self.keys[key].external.is_some() && !self.is_proxy_good { KEY_STATE } else { Ok(()) }
    }

    fn encrypt(&mut self, key: usize) -> Outcome {
        self.use_key(key)?;
        self.blobs.push(key);
        Ok(())
    }

    fn key_state(&self, key: &Key) -> Option<&'static str> {
        let connection = key.external.map(|(store, _)| self.stores[store].connection);
        match connection {
            _ if key.is_deleted => None,
            _ if key.leaves.is_some() => Some("PendingDeletion"),
            Some(connection) if connection != Connection::Connected => Some("Unavailable"),
            _ => Some(if key.is_enabled { "Enabled" } else { "Disabled" }),
        }
    }

    /// Name, path and connection state of each store that was ever made; none once deleted.
    pub(super) fn store_states(&self) -> Vec<Option<(String, String, &'static str)>> {
        let state = |store: &Store| {
            let connection = match store.connection {
                Connection::Connected => "CONNECTED",
                Connection::Connecting => "CONNECTING",
                Connection::Failed => "FAILED",
                Connection::Disconnected => "DISCONNECTED",
            };
            (store.name.to_string(), format!("/p{}/kms/xks/v1", store.path), connection)
        };
        self.stores.iter().map(|store| (!store.is_deleted).then(|| state(store))).collect()
    }

    /// State of each key that was ever made; none once deleted.
    pub(super) fn key_states(&self) -> Vec<Option<&'static str>> {
        self.keys.iter().map(|key| self.key_state(key)).collect()
    }

    /// Each alias and the place of its key.
    pub(super) fn alias_targets(&self) -> Vec<(String, usize)> {
        self.aliases.iter().map(|(alias, key)| (format!("alias/{alias}"), *key)).collect()
    }
}
