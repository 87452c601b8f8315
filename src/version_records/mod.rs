//! Which key each number of a version stands for, across configurations and restarts.
//!
//! A number is of one key for ever, since every ciphertext carries it. What the key of a version made of a known text when it
//! first served is kept in the state directory, beside the count of its initialization vectors, and asked of whichever key is
//! configured under that number later. So is which versions each store's keys had in the configuration that was served last:
//! one may begin to encrypt only where it could decrypt before. No secret is in it.
//!
//! A thread of its own writes: a crash may lose what was learnt in the last moments, and then it is learnt anew.

mod folder;
mod served;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use crate::hsm::{CheckValue, KeyLocator, KnownVersion};
use crate::iv_budget::VersionId;
use crate::metrics::Metrics;
use crate::state_folder::StateFault;
use folder::Folders;
pub use served::{FoundByRule, Promotion, ServedStore, ServedVersions};

/// How long after a failure the same is written again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of the process may take to write what is left.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Why records cannot be kept.
#[derive(Debug, Error)]
pub enum VersionRecordsFault {
    /// A file or folder cannot be used.
    #[error(transparent)]
    State(#[from] StateFault),
    /// A record cannot be read. It is not taken for none.
    #[error(
        "{} is no record of key versions: restore it, or remove it to let numbers stand for whichever keys are configured",
        .0.display()
    )]
    Damaged(PathBuf),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// What is known of a version.
#[derive(Clone)]
struct Version {
    known: KnownVersion,
    /// The tokens that have shown to have it.
    tokens: BTreeSet<Box<str>>,
}

/// What is known of each version that has ever served, and of what was served last.
pub struct VersionRecords {
    records: Arc<Records>,
    /// To the thread that writes, where there is a directory.
    writer: Option<flume::Sender<Message>>,
    folders: Option<Arc<Folders>>,
}

#[derive(Default)]
struct Records {
    versions: Mutex<HashMap<VersionId, Version>>,
    served: Mutex<HashMap<Arc<str>, ServedStore>>,
}

/// A record that is to be written as it then is.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Written {
    Version(VersionId),
    Served(Arc<str>),
}

enum Message {
    Write(Written),
    /// Answered when everything before has been written once.
    Close(flume::Sender<()>),
}

impl VersionRecords {
    /// Reads the records of a state directory and starts the thread that adds to them. Without a directory they last as long
    /// as the process.
    ///
    /// # Errors
    /// [`VersionRecordsFault`]; a record that cannot be read is one.
    pub fn open(state_dir: Option<&Path>, metrics: &Arc<Metrics>) -> Result<Self, VersionRecordsFault> {
        let Some(dir) = state_dir else {
            return Ok(Self { records: Arc::default(), writer: None, folders: None });
        };
        let read = Self::of(Folders::open(dir)?)?;
        let (writer, messages) = flume::unbounded();
        let (records, folders) = (Arc::clone(&read.records), read.folders.clone());
        let metrics = Arc::clone(metrics);
        let thread = std::thread::Builder::new().name("key-versions".to_owned());
        let write = move || {
            let late = HashSet::new();
            let Some(folders) = folders else { return };
            Writer { records, folders, metrics, late }.run(&messages);
        };
        thread.spawn(write).map_err(VersionRecordsFault::Thread)?;
        Ok(Self { writer: Some(writer), ..read })
    }

    /// The records of a state directory as they are, of which nothing is written: a process that serves may have it.
    ///
    /// # Errors
    /// [`VersionRecordsFault`]; a record that cannot be read is one.
    pub fn read(state_dir: &Path) -> Result<Self, VersionRecordsFault> {
        Self::of(Folders::unopened(state_dir))
    }

    fn of(folders: Folders) -> Result<Self, VersionRecordsFault> {
        let (versions, served) = (Mutex::new(folders.versions()?), Mutex::new(folders.served()?));
        let records = Arc::new(Records { versions, served });
        Ok(Self { records, writer: None, folders: Some(Arc::new(folders)) })
    }

    /// What a version of a key was found to be.
    #[must_use]
    pub fn known(&self, store: &Arc<str>, key: &str, version: u32) -> Option<KnownVersion> {
        let id = VersionId { store: Arc::clone(store), key: key.into(), version };
        lock(&self.records.versions).get(&id).map(|version| version.known.clone())
    }

    /// The highest number that was ever found to be a version of a key.
    #[must_use]
    pub fn highest(&self, store: &str, key: &str) -> Option<u32> {
        let versions = lock(&self.records.versions);
        let of_key = versions.keys().filter(|id| *id.store == *store && *id.key == *key);
        of_key.map(|id| id.version).max()
    }

    /// Those of the tokens on which a version has not been found yet.
    #[must_use]
    pub fn lacking(&self, store: &Arc<str>, key: &str, version: u32, tokens: &[Arc<str>]) -> Vec<Arc<str>> {
        let id = VersionId { store: Arc::clone(store), key: key.into(), version };
        let versions = lock(&self.records.versions);
        let found = |token: &str| versions.get(&id).is_some_and(|version| version.tokens.contains(token));
        tokens.iter().filter(|token| !found(token)).cloned().collect()
    }

    /// A version has been found on a token to be the key that this is of, under that name.
    pub fn note(
        &self,
        store: &Arc<str>,
        (key, version): (&str, u32),
        locator: &KeyLocator,
        check_value: &CheckValue,
        token: &str,
    ) {
        let id = VersionId { store: Arc::clone(store), key: key.into(), version };
        let found = KnownVersion { locator: locator.clone(), check_value: check_value.clone() };
        let is_news = match lock(&self.records.versions).entry(id.clone()) {
            Entry::Occupied(mut known) => {
                let version = known.get_mut();
                if version.known.check_value != found.check_value {
                    version.tokens.clear();
                }
                let is_other = version.known != found;
                version.known = found;
                version.tokens.insert(token.into()) || is_other
            }
            Entry::Vacant(place) => {
                place.insert(Version { known: found, tokens: BTreeSet::from([token.into()]) });
                true
            }
        };
        if is_news {
            self.write(Written::Version(id));
        }
    }

    /// What was served last of a store; `None` where nothing was.
    #[must_use]
    pub fn served(&self, store: &str) -> Option<ServedStore> {
        lock(&self.records.served).get(store).cloned()
    }

    /// The file that says so, where there is a state directory.
    #[must_use]
    pub fn file_of_store(&self, store: &str) -> Option<PathBuf> {
        Some(self.folders.as_ref()?.file_of_store(store))
    }

    /// This is served of a store from now on. What was found of its rule's versions stays.
    pub fn note_served(&self, store: &Arc<str>, served: ServedStore) {
        self.change_served(store, |known| {
            let found = std::mem::take(&mut known.found);
            *known = ServedStore { found, ..served };
            known.forget_unknown();
        });
    }

    /// The tokens of a store have all listed their keys, and this is found of its rule's versions.
    pub fn note_found(&self, store: &Arc<str>, found: FoundByRule) {
        self.change_served(store, |known| known.found = found);
    }

    fn change_served(&self, store: &Arc<str>, change: impl FnOnce(&mut ServedStore)) {
        let mut served = lock(&self.records.served);
        let is_new = !served.contains_key(store);
        let known = served.entry(Arc::clone(store)).or_default();
        let before = known.clone();
        change(known);
        let is_news = is_new || *known != before;
        drop(served);
        if is_news {
            self.write(Written::Served(Arc::clone(store)));
        }
    }

    fn write(&self, what: Written) {
        if let Some(writer) = &self.writer {
            // The thread ends after the last request.
            let _ = writer.send(Message::Write(what));
        }
    }

    /// Has everything written and ends the thread. A disk that hangs or fails is not waited for.
    pub fn close(&self) {
        let Some(writer) = &self.writer else { return };
        let (done, is_done) = flume::bounded(1);
        if writer.send(Message::Close(done)).is_ok() {
            let _ = is_done.recv_timeout(CLOSE_PATIENCE);
        }
    }
}

/// Keeps the records on disk.
struct Writer {
    records: Arc<Records>,
    folders: Arc<Folders>,
    metrics: Arc<Metrics>,
    /// Of which the last write failed.
    late: HashSet<Written>,
}

impl Writer {
    fn run(mut self, messages: &flume::Receiver<Message>) {
        loop {
            match messages.recv_timeout(RETRY) {
                Ok(Message::Write(what)) => self.keep(what),
                Err(flume::RecvTimeoutError::Timeout) => self.try_again(),
                Ok(Message::Close(done)) => {
                    self.try_again();
                    let _ = done.send(());
                    return;
                }
                Err(flume::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn try_again(&mut self) {
        std::mem::take(&mut self.late).into_iter().for_each(|what| self.keep(what));
    }

    fn keep(&mut self, what: Written) {
        // No lock is held while the disk works.
        let written = match &what {
            Written::Version(id) => {
                let version = lock(&self.records.versions).get(id).cloned();
                version.map(|version| self.folders.write_version(id, &version))
            }
            Written::Served(store) => {
                let served = lock(&self.records.served).get(store).cloned();
                served.map(|served| self.folders.write_served(store, &served))
            }
        };
        if let Some(Err(fault)) = written {
            self.metrics.version_record_write_failures.inc();
            tracing::error!(%fault, "cannot keep which key a version is; trying again");
            self.late.insert(what);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
