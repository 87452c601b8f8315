//! The state in a file, which holds a whole state at every instant.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::State;

/// Version of the file's format.
const FORMAT: u32 = 1;

/// The file, and the state in it.
#[derive(Serialize, Deserialize)]
struct Content<S> {
    format: u32,
    state: S,
}

/// Where the state is kept.
#[derive(Debug, Clone)]
pub struct Snapshot {
    path: PathBuf,
}

impl Snapshot {
    /// The file at `path`, which need not be there yet.
    #[must_use]
    pub const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Keeps every other process off the file for as long as the lock is held, even one that is killed.
    ///
    /// # Errors
    /// `WouldBlock` where another process holds it; others when the file beside it that is locked cannot be opened.
    pub fn lock(&self) -> io::Result<StateLock> {
        let path = self.beside(".lock");
        let opened = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|error| named(&path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("{} is in use by another process", self.path.display());
                Err(io::Error::new(io::ErrorKind::WouldBlock, message))
            }
            Err(TryLockError::Error(error)) => Err(named(&path, &error)),
        }
    }

    /// Reads the state; an empty one where there is no file.
    ///
    /// # Errors
    /// When the file cannot be read, or is none of this program. Its contents are secret and never in the message.
    pub fn load(&self) -> io::Result<State> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            read => zeroize::Zeroizing::new(read.map_err(|error| named(&self.path, &error))?),
        };
        let wrong = |fault: String| {
            let message = format!("{} is not a state file of mock-kms: {fault}", self.path.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        };
        let content: Content<State> = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("line {}, column {}", error.line(), error.column())))?;
        if content.format != FORMAT {
            return Err(wrong(format!("format {} instead of {FORMAT}", content.format)));
        }
        Ok(content.state)
    }

    /// Replaces the file. Whoever reads it at any moment, or after a crash, finds the old state or the new one.
    ///
    /// # Errors
    /// When the file or its folder cannot be written.
    pub fn save(&self, state: &State) -> io::Result<()> {
        self.replace(state).map_err(|error| named(&self.path, &error))
    }

    fn replace(&self, state: &State) -> io::Result<()> {
        let json = zeroize::Zeroizing::new(serde_json::to_vec(&Content { format: FORMAT, state })?);
        let draft = self.beside(".new");
        let _ = fs::remove_file(&draft);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }
}

/// The lock on a state file; it ends when this is dropped, and with the process in any case.
#[derive(Debug)]
pub struct StateLock {
    // The lock is on a file beside the state, since that one is replaced with each change.
    _file: File,
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_state_survives_and_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::at(folder.path().join("state.json"));
        assert_eq!(snapshot.load().unwrap(), State::default());
        let state = State { clock_ahead_secs: 5, ..State::default() };
        for _ in 0..2 {
            snapshot.save(&state).unwrap();
            assert_eq!(snapshot.load().unwrap(), state);
        }
        // Compact: all of it is written with each change.
        assert!(!fs::read(folder.path().join("state.json")).unwrap().contains(&b'\n'));
        assert_eq!(
            fs::metadata(folder.path().join("state.json")).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_draft_left_by_a_crash_does_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::at(folder.path().join("state.json"));
        let state = State { clock_ahead_secs: 5, ..State::default() };
        snapshot.save(&state).unwrap();
        fs::write(folder.path().join("state.json.new"), "{\"format\":1,\"sta").unwrap();
        assert_eq!(snapshot.load().unwrap(), state);
        snapshot.save(&State::default()).unwrap();
        assert_eq!(snapshot.load().unwrap(), State::default());
    }

    #[test]
    fn a_file_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::at(folder.path().join("state.json"));
        let lock = snapshot.lock().unwrap();
        let refused = snapshot.lock().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(refused.to_string().contains("state.json is in use"), "{refused}");
        drop(lock);
        snapshot.lock().unwrap();
    }

    #[test]
    fn another_file_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for content in [
            "s3cret",
            "{\"format\":2,\"state\":{\"stores\":{},\"keys\":{},\"aliases\":{},\"clock_ahead_secs\":0}}",
        ] {
            fs::write(&path, content).unwrap();
            let error = Snapshot::at(path.clone()).load().unwrap_err().to_string();
            assert!(error.contains("is not a state file") && !error.contains("s3cret"), "{error}");
        }
    }
}
