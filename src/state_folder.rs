//! A folder of the state directory: small files of JSON, each replaced as a whole.
//!
//! Who keeps something there says what a file is of; what is read is told with its path, so that a file that is none of theirs is
//! never taken for one that is not there.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use thiserror::Error;

const EXTENSION: &str = "json";
/// Of a file that is not in its place yet.
const UNFINISHED: &str = "new";

/// A file or folder of the state directory cannot be used.
#[derive(Debug, Error)]
#[error("{action} {}: {source}", path.display())]
pub struct StateFault {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl StateFault {
    /// What the system said when something was tried.
    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// One folder.
pub(crate) struct StateFolder(PathBuf);

impl StateFolder {
    /// Makes the folder if need be, its owner's alone.
    pub(crate) fn open(state_dir: &Path, name: &str) -> Result<Self, StateFault> {
        let folder = Self::unopened(state_dir, name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder.0);
        made.map_err(StateFault::of("cannot make the folder", &folder.0))?;
        Ok(folder)
    }

    /// The folder to be read alone, which may not be there.
    pub(crate) fn unopened(state_dir: &Path, name: &str) -> Self {
        Self(state_dir.join(name))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The file of whatever these words tell from all else: they may hold what no file name may.
    pub(crate) fn file(&self, words: &[&[u8]]) -> PathBuf {
        let mut hash = Sha256::new();
        for word in words {
            hash.update((word.len() as u64).to_be_bytes());
            hash.update(word);
        }
        let name: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name).with_extension(EXTENSION)
    }

    /// Every file with its content, `None` for one that holds something else. None where there is no folder.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Vec<(PathBuf, Option<T>)>, StateFault> {
        let failed = || StateFault::of("cannot read the folder", &self.0);
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed())?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed())?.path();
            // Others are locks, and writes that a crash has cut short.
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                let content = fs::read(&path).map_err(StateFault::of("cannot read", &path))?;
                files.push((path, serde_json::from_slice(&content).ok()));
            }
        }
        Ok(files)
    }

    /// Puts a file in the place of the one before: either of the two is there, whatever happens.
    pub(crate) fn replace(&self, path: &Path, content: &impl Serialize) -> Result<(), StateFault> {
        let unfinished = path.with_extension(UNFINISHED);
        let write = || -> io::Result<()> {
            let mut file = File::create(&unfinished)?;
            serde_json::to_writer(&mut file, content)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&unfinished, path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(StateFault::of("cannot write", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_what_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateFolder::unopened(dir.path(), "a").read::<u32>().unwrap().is_empty());
        let folder = StateFolder::open(dir.path(), "a").unwrap();
        let path = folder.file(&[b"store/../", b"key"]);
        assert_ne!(path, folder.file(&[b"store/../k", b"ey"]));
        assert_eq!(path.parent(), Some(folder.path()));
        for number in [1, 2] {
            folder.replace(&path, &number).unwrap();
            assert_eq!(folder.read().unwrap(), [(path.clone(), Some(number))]);
        }
        // What a crash leaves of a write is nothing, and a lock neither.
        fs::write(path.with_extension(UNFINISHED), "3").unwrap();
        fs::write(folder.path().join("lock"), "").unwrap();
        assert_eq!(folder.read().unwrap(), [(path.clone(), Some(2))]);
        fs::write(&path, "two").unwrap();
        assert_eq!(folder.read::<u32>().unwrap(), [(path.clone(), None)]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let fault = folder.read::<u32>().unwrap_err();
        assert!(fault.to_string().starts_with(&format!("cannot read {}", path.display())), "{fault}");
    }
}
