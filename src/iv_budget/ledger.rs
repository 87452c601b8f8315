//! The counts on disk: a folder with a file for each key version.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::IvBudgetFault;

/// The folder in the state directory.
const FOLDER: &str = "iv-budget";
/// Locked by the process that counts here.
const LOCK: &str = "lock";
const EXTENSION: &str = "json";
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
    /// The name of its file, without extension: names of stores and keys may hold what no file name may.
    pub(crate) fn file_name(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.store.as_bytes(), self.key.as_bytes(), &self.version.to_be_bytes()] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
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
    folder: PathBuf,
    /// Held for as long as the process counts.
    _lock: File,
}

impl Ledger {
    /// Makes the folder if need be, and locks it.
    pub(super) fn open(state_dir: &Path) -> Result<Self, IvBudgetFault> {
        let folder = state_dir.join(FOLDER);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| fault("cannot make the folder", &folder, source))?;
        let path = folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| fault("cannot open", &path, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(IvBudgetFault::InUse(folder)),
            Err(fs::TryLockError::Error(source)) => Err(fault("cannot lock", &path, source)),
        }
    }

    #[cfg(test)]
    pub(super) fn unlocked(state_dir: &Path) -> Self {
        let folder = state_dir.join(FOLDER);
        let lock = File::open(folder.join(LOCK)).unwrap();
        Self { folder, _lock: lock }
    }

    /// Every count.
    pub(super) fn read(&self) -> Result<Vec<(VersionId, u64)>, IvBudgetFault> {
        let failed = |source| fault("cannot read the folder", &self.folder, source);
        let mut counts = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // Others are the lock, and writes that a crash has cut short.
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let content = fs::read(&path).map_err(|source| fault("cannot read", &path, source))?;
            let record: Option<Record> = serde_json::from_slice(&content).ok();
            let record = record.filter(|record| record.format == FORMAT);
            let Some(record) = record else { return Err(IvBudgetFault::Damaged(path)) };
            let id = VersionId {
                store: record.store.into(),
                key: record.external_key_id.into(),
                version: record.key_version,
            };
            counts.push((id, record.drawn));
        }
        Ok(counts)
    }

    /// Puts a count in the place of the one before: either of the two is there, whatever happens.
    pub(super) fn write(&self, id: &VersionId, drawn: u64) -> Result<(), IvBudgetFault> {
        let record = Record {
            format: FORMAT,
            store: id.store.to_string(),
            external_key_id: id.key.to_string(),
            key_version: id.version,
            drawn,
        };
        let path = self.folder.join(id.file_name()).with_extension(EXTENSION);
        replace_file(&self.folder, &path, &record).map_err(|source| fault("cannot write", &path, source))
    }
}

/// Puts a file of `folder` in the place of the one before, as JSON: either of the two is there, whatever happens.
///
/// # Errors
/// What the system says.
pub(crate) fn replace_file(folder: &Path, path: &Path, content: &impl Serialize) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    serde_json::to_writer(&mut file, content)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()
}

fn fault(action: &'static str, path: &Path, source: io::Error) -> IvBudgetFault {
    IvBudgetFault::Io { action, path: path.to_owned(), source }
}
