//! Verification of a chain over one or more files, from records alone: it trusts nothing that the files say before their
//! hashes do.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::chain::{Hash, Hasher, Head, Link, Torn};

/// What is known of the chain from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// Hash of the last record before the files, where older ones are not at hand.
    pub after: Option<Hash>,
    /// Hash of a record that must be there: the head as log or metric told it.
    pub head: Option<Hash>,
}

/// What a chain that is whole says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Number of its first record.
    pub first: u64,
    /// Its last record.
    pub head: Head,
    /// Where a crash left a torn line.
    pub torn: Vec<Place>,
    /// The last of them ends the chain: no record behind it says that it was a crash, and not whoever cut the tail off.
    pub is_end_torn: bool,
    /// Records behind the expected head, which vouches for none of them.
    pub behind_expected: Option<u64>,
    /// It ends with an orderly stop.
    pub is_closed: bool,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} line {}", self.path.display(), self.line)
    }
}

/// Why a chain is not accepted: the first thing that is wrong with it.
#[derive(Debug, Error)]
pub enum VerifyFault {
    /// A file cannot be read: nothing is known of the chain.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is compressed, as rotation leaves it: nothing is known of the chain.
    #[error("{} is compressed: gunzip it first", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
    },
    /// No file holds a record.
    #[error("there is no record: removed, or not an audit log, or under another key")]
    Empty,
    /// Its own hash does not hold.
    #[error("{place}: record {seq} was changed: it is no record whose own hash holds")]
    Changed {
        /// Where.
        place: Place,
        /// Which record should be there.
        seq: u64,
    },
    /// It does not carry the hash of the one before.
    #[error(
        "{place}: record {seq} does not carry the hash of record {}: either that one was changed and hashed anew, or this one \
         was spliced in", seq - 1
    )]
    Spliced {
        /// Where.
        place: Place,
        /// The record.
        seq: u64,
    },
    /// Records are gone.
    #[error("{place}: records {first} to {last} are missing before this one: they were removed")]
    Removed {
        /// What follows the gap.
        place: Place,
        /// The first that is gone.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A record is not in its place.
    #[error("{place}: record {found} is here where record {expected} should be: reordered, or repeated")]
    Reordered {
        /// Where.
        place: Place,
        /// Which record should be there.
        expected: u64,
        /// Which one is.
        found: u64,
    },
    /// The chain begins later.
    #[error(
        "{place}: the chain begins with record {seq}: those before were removed; where they are kept elsewhere, say \
             --after with the hash of the last of them"
    )]
    NoBeginning {
        /// Where.
        place: Place,
        /// The first record that is there.
        seq: u64,
    },
    /// The chain does not follow what it should.
    #[error("{place}: record {seq} does not carry the hash that --after says")]
    NotAfter {
        /// Where.
        place: Place,
        /// The first record that is there.
        seq: u64,
    },
    /// What is expected is not there.
    #[error(
        "the chain ends with record {last}, and none of its records is the expected head: the tail was cut off"
    )]
    TailCut {
        /// The last record that is there.
        last: u64,
    },
}

/// Verifies the chain in `paths`, in whatever order they are given: the number of each file's first record orders them.
///
/// # Errors
/// [`VerifyFault`], the first in the order of the chain.
pub fn verify(paths: &[PathBuf], hasher: &Hasher, expected: Expected) -> Result<Verified, VerifyFault> {
    let mut ordered = Vec::new();
    for path in paths {
        ordered.push((first_seq(path, hasher)?, path));
    }
    // A file that holds no whole record keeps its place among its neighbours as well as it can: at the end.
    ordered.sort_by_key(|(seq, _)| seq.unwrap_or(u64::MAX));
    let mut walk = Walk {
        hasher,
        expected,
        first: None,
        head: Head::NONE,
        stray: None,
        torn: Vec::new(),
        found_at: None,
        is_closed: false,
    };
    for (_, path) in &ordered {
        walk.file(path).map_err(|fault| refine(fault, &ordered, hasher))?;
    }
    walk.end()
}

/// A gap whose records are found elsewhere is a change of order.
fn refine(fault: VerifyFault, files: &[(Option<u64>, &PathBuf)], hasher: &Hasher) -> VerifyFault {
    let VerifyFault::Removed { place, first, last } = fault else { return fault };
    for (_, path) in files {
        let Ok(lines) = lines(path) else { continue };
        let mut links = lines.map_while(Result::ok).filter_map(|line| Link::read(hasher, &line.content));
        if links.any(|link| link.head.seq == first) {
            return VerifyFault::Reordered { place, expected: first, found: last + 1 };
        }
    }
    VerifyFault::Removed { place, first, last }
}

/// What gzip begins a file with (RFC 1952, 2.3.1). A record begins with a brace.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

struct Line {
    content: Vec<u8>,
    has_line_break: bool,
}

/// The lines of a file without their line breaks.
fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Line, VerifyFault>>, VerifyFault> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyFault::Unreadable { path, source }
    };
    let mut reader = BufReader::new(File::open(path).map_err(unreadable(path))?);
    let path = path.to_owned();
    if reader.fill_buf().map_err(unreadable(&path))?.starts_with(&GZIP_MAGIC) {
        return Err(VerifyFault::Compressed { path });
    }
    Ok(std::iter::from_fn(move || {
        let mut content = Vec::new();
        match reader.read_until(b'\n', &mut content) {
            Ok(0) => None,
            Ok(_) => {
                let has_line_break = content.pop_if(|last| *last == b'\n').is_some();
                Some(Ok(Line { content, has_line_break }))
            }
            Err(source) => Some(Err(unreadable(&path)(source))),
        }
    }))
}

fn first_seq(path: &Path, hasher: &Hasher) -> Result<Option<u64>, VerifyFault> {
    for line in lines(path)? {
        if let Some(link) = Link::read(hasher, &line?.content) {
            return Ok(Some(link.head.seq));
        }
    }
    Ok(None)
}

struct Walk<'a> {
    hasher: &'a Hasher,
    expected: Expected,
    first: Option<u64>,
    head: Head,
    stray: Option<Stray>,
    torn: Vec<Place>,
    /// Number of the record that is the expected head.
    found_at: Option<u64>,
    is_closed: bool,
}

/// Lines that are no records, and may be what a crash left.
struct Stray {
    place: Place,
    /// As the next record of the chain would.
    begins_as_record: bool,
    lines: u64,
    bytes: u64,
    sha256: Sha256,
    has_line_break: bool,
    is_at_end_of_file: bool,
}

impl Walk<'_> {
    fn file(&mut self, path: &Path) -> Result<(), VerifyFault> {
        for (number, line) in (1..).zip(lines(path)?) {
            let line = line?;
            let place = || Place { path: path.to_owned(), line: number };
            let link = Link::read(self.hasher, &line.content).filter(|_| line.has_line_break);
            match link {
                Some(link) => self.record(&link, place())?,
                None => self.stray(&line, place())?,
            }
        }
        if let Some(stray) = &mut self.stray {
            stray.is_at_end_of_file = true;
        }
        Ok(())
    }

    fn stray(&mut self, line: &Line, place: Place) -> Result<(), VerifyFault> {
        match &mut self.stray {
            // Only the proxy's next record could explain it.
            Some(stray) if stray.is_at_end_of_file => {
                return Err(VerifyFault::Changed { place: stray.place.clone(), seq: self.head.seq + 1 });
            }
            Some(stray) => {
                stray.sha256.update(b"\n");
                stray.sha256.update(&line.content);
                stray.bytes += 1 + line.content.len() as u64;
                stray.lines += 1;
                stray.has_line_break = line.has_line_break;
            }
            None => {
                let Head { seq, hash } = self.head;
                let begin = format!(r#"{{"seq":{},"prev":"{hash}","#, seq + 1).into_bytes();
                self.stray = Some(Stray {
                    place,
                    begins_as_record: begin.starts_with(&line.content) || line.content.starts_with(&begin),
                    lines: 1,
                    bytes: line.content.len() as u64,
                    sha256: Sha256::new_with_prefix(&line.content),
                    has_line_break: line.has_line_break,
                    is_at_end_of_file: false,
                });
            }
        }
        Ok(())
    }

    fn record(&mut self, link: &Link, place: Place) -> Result<(), VerifyFault> {
        let seq = link.head.seq;
        if let Some(stray) = self.stray.take() {
            if !stray.is_explained_by(link, self.is_closed) {
                return Err(VerifyFault::Changed { place: stray.place, seq: self.head.seq + 1 });
            }
            self.torn.push(stray.place);
        } else if link.torn.is_some() {
            // What the crash left was taken away or made whole.
            return Err(VerifyFault::Changed { place, seq });
        }
        match self.first {
            None => self.begin(link, &place)?,
            Some(_) => self.follow(link, place)?,
        }
        self.head = link.head;
        self.is_closed = link.is_closing;
        if self.expected.head == Some(link.head.hash) {
            self.found_at = Some(seq);
        }
        Ok(())
    }

    fn begin(&mut self, link: &Link, place: &Place) -> Result<(), VerifyFault> {
        let seq = link.head.seq;
        match self.expected.after {
            Some(after) if link.prev != after => {
                return Err(VerifyFault::NotAfter { place: place.clone(), seq });
            }
            None if seq != 1 => return Err(VerifyFault::NoBeginning { place: place.clone(), seq }),
            None if link.prev != Hash::NONE => {
                return Err(VerifyFault::Changed { place: place.clone(), seq });
            }
            _ => {}
        }
        self.first = Some(seq);
        Ok(())
    }

    fn follow(&self, link: &Link, place: Place) -> Result<(), VerifyFault> {
        let (seq, expected) = (link.head.seq, self.head.seq + 1);
        if seq > expected {
            Err(VerifyFault::Removed { place, first: expected, last: seq - 1 })
        } else if seq < expected {
            Err(VerifyFault::Reordered { place, expected, found: seq })
        } else if link.prev != self.head.hash {
            Err(VerifyFault::Spliced { place, seq })
        } else {
            Ok(())
        }
    }

    fn end(mut self) -> Result<Verified, VerifyFault> {
        let is_end_torn = self.stray.is_some();
        if let Some(stray) = self.stray.take() {
            if !stray.is_cut_short() {
                return Err(VerifyFault::Changed { place: stray.place, seq: self.head.seq + 1 });
            }
            self.torn.push(stray.place);
        }
        let first = self.first.ok_or(VerifyFault::Empty)?;
        if self.expected.head.is_some() && self.found_at.is_none() {
            return Err(VerifyFault::TailCut { last: self.head.seq });
        }
        Ok(Verified {
            first,
            head: self.head,
            torn: self.torn,
            is_end_torn,
            behind_expected: self.found_at.map(|at| self.head.seq - at),
            is_closed: self.is_closed,
        })
    }
}

impl Stray {
    /// The next record, ended before its line break at the end of a file: what a crash leaves.
    const fn is_cut_short(&self) -> bool {
        self.is_at_end_of_file && self.lines == 1 && !self.has_line_break && self.begins_as_record
    }

    /// The proxy found it when it opened the file, or began with another file after a crash: one that had changed to another file
    /// lived, and behind an orderly stop there was nothing to crash.
    fn is_explained_by(&self, link: &Link, is_closed: bool) -> bool {
        match &link.torn {
            Some(torn) => {
                let sha256 = Hash::of(self.sha256.clone()).to_string();
                !self.is_at_end_of_file && *torn == Torn { bytes: self.bytes, sha256 }
            }
            None => link.is_start && !is_closed && self.is_cut_short(),
        }
    }
}
