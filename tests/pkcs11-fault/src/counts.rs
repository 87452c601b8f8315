//! The counters file: its layout, and its reader.
//!
//! All numbers are unsigned 64-bit integers in the machine's byte order (little-endian on everything that matters),
//! all texts are UTF-8 padded with NUL:
//!
//! | offset | content |
//! |---|---|
//! | 0 | the 8 bytes `P11FAULT` |
//! | 8 | version of this layout: 1 |
//! | 16 | number of rule records in use |
//! | 24 | how often a control file was read that could not be used |
//! | 64 + 64 i | function i in the order of `CK_FUNCTION_LIST`: calls, most calls inside at once, calls inside now, name\[40\] |
//! | 4416 + 512 i | rule i: calls that were hit, calls that matched, text\[496\] |

use crate::function::Function;
use crate::rule::Rule;
use std::fs;
use std::io;
use std::path::Path;

pub(crate) const MAGIC: [u8; 8] = *b"P11FAULT";
pub(crate) const VERSION: u64 = 1;
pub(crate) const RULES_IN_USE_AT: usize = 16;
pub(crate) const CONTROL_ERRORS_AT: usize = 24;
pub(crate) const FUNCTIONS_AT: usize = 64;
pub(crate) const FUNCTION_BYTES: usize = 64;
pub(crate) const FUNCTION_NAME_AT: usize = 24;
pub(crate) const RULES_AT: usize = FUNCTIONS_AT + Function::ALL.len() * FUNCTION_BYTES;
pub(crate) const RULE_BYTES: usize = 512;
pub(crate) const RULE_TEXT_AT: usize = 16;
/// How many different rules a counters file can hold.
pub(crate) const MAX_RULES: usize = 1000;
pub(crate) const FILE_BYTES: usize = RULES_AT + MAX_RULES * RULE_BYTES;

/// The text of a rule record.
pub(crate) fn padded_text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A reading of a counters file. The module counts a call as soon as it is entered, so a call that has returned is in
/// every reading taken after that.
///
/// The counters of a file go on growing from process to process: remove the file, while no process uses it, to begin
/// at 0.
#[derive(Clone, Debug)]
pub struct Counts {
    bytes: Vec<u8>,
}

/// The counters of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCount {
    /// The rule as [`Rule`] writes it.
    pub text: String,
    /// Calls that the rule hit.
    pub fired: u64,
    /// Calls that the rule could have hit, if not for its `after`, `every` and `times`.
    pub matched: u64,
}

impl Counts {
    /// Reads a counters file.
    ///
    /// # Errors
    /// The error of the file system, or [`io::ErrorKind::InvalidData`] for a file that no module has made or that is
    /// of another version.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let counts = Counts { bytes: fs::read(path)? };
        if counts.bytes.len() != FILE_BYTES || counts.bytes[..8] != MAGIC || counts.word(8) != VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a counters file of this version"));
        }
        Ok(counts)
    }

    /// Calls of a function, those inside included.
    pub fn calls(&self, function: Function) -> u64 {
        self.word(Self::function_at(function))
    }

    /// The most calls of a function that were inside at the same time, in any one process.
    pub fn most_inside(&self, function: Function) -> u64 {
        self.word(Self::function_at(function) + 8)
    }

    /// Calls of a function that have not returned. A call in which the process ended stays here for ever.
    pub fn inside(&self, function: Function) -> u64 {
        self.word(Self::function_at(function) + 16)
    }

    /// How many calls a rule hit. 0 for a rule that was never in force.
    pub fn fired(&self, rule: &Rule) -> u64 {
        self.rule(rule).map_or(0, |count| count.fired)
    }

    /// The counters of a rule that is or was in force.
    pub fn rule(&self, rule: &Rule) -> Option<RuleCount> {
        let text = rule.to_string();
        self.rules().find(|count| count.text == text)
    }

    /// The counters of every rule that is or was in force, oldest first.
    pub fn rules(&self) -> impl Iterator<Item = RuleCount> + '_ {
        let in_use = usize::try_from(self.word(RULES_IN_USE_AT)).unwrap_or(MAX_RULES);
        let records = self.bytes[RULES_AT..].chunks_exact(RULE_BYTES).take(in_use);
        records.map(|record| RuleCount {
            text: String::from_utf8_lossy(padded_text(&record[RULE_TEXT_AT..])).into_owned(),
            fired: word(record, 0),
            matched: word(record, 8),
        })
    }

    /// How often the module met a control file that it could not use.
    pub fn control_errors(&self) -> u64 {
        self.word(CONTROL_ERRORS_AT)
    }

    fn function_at(function: Function) -> usize {
        FUNCTIONS_AT + function as usize * FUNCTION_BYTES
    }

    fn word(&self, at: usize) -> u64 {
        word(&self.bytes, at)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}
