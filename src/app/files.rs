//! The files that a configuration is made of, and whether they have changed.
//!
//! They are looked at once in a while. That works on every file system, network and overlay ones included, and follows
//! symbolic links to whatever they lead to now, as Kubernetes replaces a mounted ConfigMap or Secret by swapping its
//! `..data` link. It costs a few calls of stat a second.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::clock;

/// A file that was changed more recently may change again within the same tick of the file system's clock.
const TICK: Duration = Duration::from_secs(2);

/// What was seen of some files at one moment. Two are equal where the contents are.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    seen: BTreeMap<PathBuf, Seen>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: Stamp,
    /// Whether another content would have another stamp.
    is_settled: bool,
    /// Under a key of this process, so that it says nothing of a secret; `None` where there is no file to read.
    content: Option<u64>,
}

/// What a file cannot be replaced or written without changing, but within one [`TICK`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        let contents = |snapshot: &Self| -> Vec<_> {
            snapshot.seen.iter().map(|(path, seen)| (path.clone(), seen.content)).collect()
        };
        contents(self) == contents(other)
    }
}

impl Snapshot {
    /// Looks at these files now; reads those that may have changed since.
    pub(super) fn look(&self, files: &BTreeSet<PathBuf>) -> Self {
        let now = clock::wall_clock();
        let seen = files.iter().map(|path| (path.clone(), self.look_at(path, now))).collect();
        Self { seen, hasher: self.hasher.clone() }
    }

    /// Whether each is a file that can be read, and read again.
    pub(super) fn is_of_files(&self) -> bool {
        self.seen.values().all(|seen| seen.content.is_some())
    }

    /// Looks at the same files again.
    pub(super) fn look_again(&self) -> Self {
        self.look(&self.seen.keys().cloned().collect())
    }

    fn look_at(&self, path: &Path, now: SystemTime) -> Seen {
        // A pipe would be waited for.
        let Ok(metadata) = std::fs::metadata(path)
            .map_err(drop)
            .and_then(|metadata| if metadata.is_file() { Ok(metadata) } else { Err(()) })
        else {
            return Seen { stamp: Stamp::default(), is_settled: false, content: None };
        };
        let stamp = Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        match self.seen.get(path) {
            Some(seen) if seen.is_settled && seen.stamp == stamp => *seen,
            _ => {
                let content = std::fs::read(path).map(Zeroizing::new).ok();
                let content = content.map(|content| self.hasher.hash_one(&**content));
                Seen { stamp, is_settled: is_older(&stamp, now), content }
            }
        }
    }
}

fn is_older(stamp: &Stamp, now: SystemTime) -> bool {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let latest_secs = stamp.modified.0.max(stamp.changed.0);
    u64::try_from(latest_secs).is_ok_and(|secs| since_epoch > Duration::from_secs(secs) + TICK)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, BTreeSet<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "one").unwrap();
        (folder, BTreeSet::from([file]))
    }

    #[test]
    fn contents_count_and_nothing_else() {
        let (folder, files) = folder();
        let file = folder.path().join("file");
        let before = Snapshot::default().look(&files);
        assert!(before == before.look_again());
        fs::write(&file, "one").unwrap();
        assert!(before == before.look_again(), "written anew with the same content");
        fs::write(&file, "two").unwrap();
        assert!(before != before.look_again(), "as long as before, within one tick");
        fs::remove_file(&file).unwrap();
        let gone = before.look_again();
        assert!(gone != before && gone == gone.look_again());
    }

    #[test]
    fn a_link_is_followed_to_where_it_leads_now() {
        let folder = tempfile::tempdir().unwrap();
        for (version, content) in [("1", "one"), ("2", "two")] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("file"), content).unwrap();
        }
        symlink("1", folder.path().join("..data")).unwrap();
        symlink("..data/file", folder.path().join("file")).unwrap();
        let before = Snapshot::default().look(&BTreeSet::from([folder.path().join("file")]));
        symlink("2", folder.path().join("..data_tmp")).unwrap();
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        assert!(before != before.look_again());
    }

    #[test]
    fn what_has_settled_is_not_read_again() {
        let (folder, files) = folder();
        let mut before = Snapshot::default().look(&files);
        let file = folder.path().join("file");
        before.seen.get_mut(&file).unwrap().is_settled = true;
        before.seen.get_mut(&file).unwrap().content = Some(7);
        assert_eq!(before.look_again().seen[&file].content, Some(7));
    }
}
