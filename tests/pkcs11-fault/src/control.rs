//! The writer of control files.

use crate::grammar::{ControlError, parse_rules};
use crate::rule::Rule;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A control file, from the side of the test that directs the module.
///
/// Every change is a new file renamed over the old one: a running module sees the old rules or the new ones, never
/// half of them, and the new ones at the next call after the method has returned.
#[derive(Clone, Debug)]
pub struct ControlFile {
    path: PathBuf,
}

impl ControlFile {
    /// The control file at this path, which need not exist yet: without the file there are no faults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ControlFile { path: path.into() }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces all rules by these.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the module would refuse the rules ([`parse_rules`]), or the error of the file
    /// system. The rules in force stay as they are.
    pub fn write(&self, rules: &[Rule]) -> Result<()> {
        let text: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
        parse_rules(&text).map_err(|error: ControlError| Error::new(ErrorKind::InvalidInput, error))?;
        self.write_text(&text)
    }

    /// Removes all rules.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn clear(&self) -> Result<()> {
        self.write_text("")
    }

    /// Replaces the file's text by this one, valid or not.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn write_text(&self, text: &str) -> Result<()> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
        let mut name = self.path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{unique}.new"));
        let new = self.path.with_file_name(name);
        fs::write(&new, text)?;
        fs::rename(&new, &self.path)
    }
}
