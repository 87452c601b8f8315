//! The counts on disk: a folder with a file for each key version.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::IvBudgetFault;
use crate::state_folder::{StateFault, StateFolder};

/// The folder in the state directory.
const FOLDER: &str = "iv-budget";
/// Locked by the process that counts here.
const LOCK: &str = "lock";
/// The format of the files.
const FORMAT: u32 = 1;

/// A version of a key: whose initialization vectors are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct VersionId {
    pub(crate) store: Arc<str>,
    pub(crate) key: Box<str>,
    pub(crate) version: u32,
}

impl VersionId {
    /// Its file in a folder of the state directory.
    pub(crate) fn file_in(&self, folder: &StateFolder) -> PathBuf {
        folder.file(&[self.store.as_bytes(), self.key.as_bytes(), &self.version.to_be_bytes()])
    }
}

/// A file's content.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    format: u32,
    store: String,
    external_key_id: String,
    key_version: u32,
    /// Not more than these have been drawn.
    drawn: u64,
}

pub(super) struct Ledger {
    folder: StateFolder,
    /// Held for as long as the process counts.
    _lock: File,
}

impl Ledger {
    /// Makes the folder if need be, and locks it.
    pub(super) fn open(state_dir: &Path) -> Result<Self, IvBudgetFault> {
        let folder = StateFolder::open(state_dir, FOLDER)?;
        let path = folder.path().join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(StateFault::of("cannot open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(IvBudgetFault::InUse(folder.path().to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(StateFault::of("cannot lock", &path)(source).into()),
        }
    }

    #[cfg(test)]
    pub(super) fn unlocked(state_dir: &Path) -> Self {
        let folder = StateFolder::open(state_dir, FOLDER).unwrap();
        let lock = File::open(folder.path().join(LOCK)).unwrap();
        Self { folder, _lock: lock }
    }

    /// Every count.
    pub(super) fn read(&self) -> Result<Vec<(VersionId, u64)>, IvBudgetFault> {
        let count = |(path, record): (PathBuf, Option<Record>)| {
            let record = record.filter(|record| record.format == FORMAT);
            let record = record.ok_or(IvBudgetFault::Damaged(path))?;
            let id = VersionId {
                store: record.store.into(),
                key: record.external_key_id.into(),
                version: record.key_version,
            };
            Ok((id, record.drawn))
        };
        self.folder.read()?.into_iter().map(count).collect()
    }

    /// Puts a count in the place of the one before.
    pub(super) fn write(&self, id: &VersionId, drawn: u64) -> Result<(), IvBudgetFault> {
        let record = Record {
            format: FORMAT,
            store: id.store.to_string(),
            external_key_id: id.key.to_string(),
            key_version: id.version,
            drawn,
        };
        Ok(self.folder.replace(&id.file_in(&self.folder), &record)?)
    }
}
