//! The rules in force: the control file as it is now, and how often each of its rules has struck.

use super::tally::Tally;
use super::{lock, report};
use crate::grammar::parse_rules;
use crate::rule::Rule;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A rule that stands in the control file.
pub(super) struct LiveRule {
    pub(super) rule: Rule,
    record: usize,
    matched: AtomicU64,
    fired: AtomicU64,
    removed: AtomicBool,
}

impl LiveRule {
    /// Counts a call that the rule matches, and tells whether the rule hits it.
    pub(super) fn strikes(&self, tally: &Tally) -> bool {
        let matched = self.matched.fetch_add(1, Ordering::SeqCst) + 1;
        let due = matched > self.rule.after && (matched - self.rule.after).is_multiple_of(self.rule.every);
        let limit = self.rule.limit();
        let next = |fired: u64| (fired < limit).then_some(fired + 1);
        let hit = due && self.fired.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok();
        tally.count_rule(self.record, hit);
        hit
    }

    /// Whether the rule has hit as many calls as it may.
    pub(super) fn is_spent(&self) -> bool {
        self.fired.load(Ordering::SeqCst) >= self.rule.limit()
    }

    /// Whether the rule has disappeared from the control file, as of the last look at it.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }
}

/// The rules of one reading of the control file.
pub(super) type Rules = Arc<[Arc<LiveRule>]>;

/// The control file cannot be used; it was reported.
#[derive(Clone, Copy)]
pub(super) struct Unusable;

/// The control file, looked at before every call.
pub(super) struct Control {
    path: Option<PathBuf>,
    reading: Mutex<Reading>,
}

struct Reading {
    stamp: Stamp,
    /// Held open so that its inode number cannot go to a later file as long as we compare against it.
    _file: Option<File>,
    rules: Result<Rules, Unusable>,
}

/// What tells one state of the file from another.
///
/// A file that was renamed into place has another inode. A file written in place has another size or time, if the
/// clock of the file system has moved on between the two.
#[derive(PartialEq)]
enum Stamp {
    Absent,
    Unreadable(ErrorKind),
    File { device: u64, inode: u64, bytes: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl Stamp {
    fn of(metadata: &io::Result<Metadata>) -> Self {
        match metadata {
            Ok(file) => Stamp::File {
                device: file.dev(),
                inode: file.ino(),
                bytes: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Stamp::Absent,
            Err(error) => Stamp::Unreadable(error.kind()),
        }
    }
}

impl Control {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let reading = Reading { stamp: Stamp::Absent, _file: None, rules: Ok(Rules::default()) };
        Control { path, reading: Mutex::new(reading) }
    }

    /// The rules in force now.
    pub(super) fn rules(&self, tally: &Tally) -> Result<Rules, Unusable> {
        let Some(path) = &self.path else { return Ok(Rules::default()) };
        let stamp = Stamp::of(&fs::metadata(path));
        let mut reading = lock(&self.reading);
        if stamp != reading.stamp {
            // Whatever a slower thread saw, what it reads now is the file of now.
            *reading = read(path, &reading, tally);
        }
        reading.rules.clone()
    }
}

fn read(path: &Path, before: &Reading, tally: &Tally) -> Reading {
    let opened = File::open(path);
    // Taken before the text is read: what is written later has another stamp, and is read again.
    let (stamp, file) = match opened {
        Ok(file) => (Stamp::of(&file.metadata()), Ok(file)),
        Err(error) => (Stamp::of(&Err(error.kind().into())), Err(error)),
    };
    let empty = || Ok(Rules::default());
    let no_rules = Rules::default();
    let old = before.rules.as_ref().unwrap_or(&no_rules);
    let rules = match &file {
        Ok(file) => rules_of(file, old, tally),
        Err(error) if error.kind() == ErrorKind::NotFound => empty(),
        Err(error) => Err(error.to_string()),
    };
    let rules = rules.map_err(|error| {
        tally.count_control_error();
        report(&format!("every call will fail: control file {}: {error}", path.display()));
        Unusable
    });
    let kept = rules.as_ref().unwrap_or(&no_rules);
    for gone in old.iter().filter(|rule| !kept.iter().any(|other| Arc::ptr_eq(rule, other))) {
        gone.removed.store(true, Ordering::SeqCst);
    }
    Reading { stamp, _file: file.ok(), rules }
}

/// Reads the rules. One that stood in the file before goes on as it was: its `after`, `every` and `times` do not
/// begin anew.
fn rules_of(mut file: &File, old: &Rules, tally: &Tally) -> Result<Rules, String> {
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    let rules = parse_rules(&text).map_err(|error| error.to_string())?;
    let live = rules.into_iter().map(|rule| match old.iter().find(|live| live.rule == rule) {
        Some(live) => Ok(Arc::clone(live)),
        None => {
            let record = tally.record(&rule.to_string()).map_err(|error| error.to_string())?;
            let (matched, fired) = (AtomicU64::new(0), AtomicU64::new(0));
            Ok(Arc::new(LiveRule { rule, record, matched, fired, removed: AtomicBool::new(false) }))
        }
    });
    live.collect()
}
