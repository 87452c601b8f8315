//! Loading files that somebody may be replacing: what is loaded is what they were at one moment, and that moment is known.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::files::Snapshot;
use crate::config::{Config, ConfigError};

/// Loads of files that are being replaced meanwhile, before the last one counts.
const MAX_LOADS: usize = 8;
/// Between two of them.
const LOAD_PAUSE: Duration = Duration::from_millis(250);

/// What was loaded, and what the files were then.
pub(super) type Loaded<T> = (Result<T, ConfigError>, Snapshot);

/// Loads the configuration that a process begins with. What is wrong with it is told at once.
pub fn load(path: &Path) -> Loaded<Config> {
    load_first(|| Config::load_with_files(path))
}

fn load_first<T>(mut load: impl FnMut() -> (Result<T, ConfigError>, BTreeSet<PathBuf>)) -> Loaded<T> {
    let (loaded, files) = load();
    let seen = Snapshot::default().look(&files);
    // Only now the files are known. What comes through a pipe comes but once.
    if loaded.is_ok() && seen.is_of_files() { load_whole(&seen, load) } else { (loaded, seen) }
}

/// Loads the files as they are at one moment. While somebody replaces them, a certificate may not fit its key, or a
/// secret not be there: they are loaded again until they stay the same. Takes [`MAX_LOADS`] pauses at most.
pub(super) fn load_whole<T>(
    known: &Snapshot,
    mut load: impl FnMut() -> (Result<T, ConfigError>, BTreeSet<PathBuf>),
) -> Loaded<T> {
    let mut before = known.look_again();
    let mut loads = 0;
    loop {
        let (loaded, files) = load();
        loads += 1;
        let after = before.look(&files);
        let is_whole = before == after;
        before = after;
        let may_pass = match &loaded {
            Ok(_) => !is_whole,
            Err(ConfigError::Faulty { faults, .. }) => !is_whole || faults.iter().any(|fault| fault.may_pass),
            Err(ConfigError::Unreadable { .. }) => true,
        };
        if !may_pass || loads >= MAX_LOADS {
            return (loaded, before);
        }
        if loaded.is_err() {
            thread::sleep(LOAD_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Somebody replaces a file after it was read, and before anybody looks whether it changes.
    #[test]
    fn what_changes_behind_the_first_load_is_loaded_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "one").unwrap();
        let mut loads = 0;
        let (loaded, seen) = load_first(|| {
            let content = fs::read_to_string(&file).unwrap();
            loads += 1;
            if loads <= 2 {
                fs::write(&file, format!("{content}, another")).unwrap();
            }
            (Ok(content), BTreeSet::from([file.clone()]))
        });
        assert_eq!((loaded.unwrap().as_str(), loads), ("one, another, another", 3));
        assert!(seen == seen.look_again(), "it is what was loaded");
    }

    #[test]
    fn what_is_no_file_is_read_once() {
        let path = Path::new("/dev/null");
        let mut loads = 0;
        let (loaded, _) = load_first(|| {
            loads += 1;
            (Ok(loads), BTreeSet::from([path.to_owned()]))
        });
        assert_eq!(loaded.unwrap(), 1);
    }
}
