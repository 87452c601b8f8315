//! The counters, in a file that every process can read at any time.
//!
//! The file is mapped and shared, so a count is visible to other processes as soon as it is made, and outlives an
//! abort. The layout is in [`crate::counts`].

use crate::counts::{
    CONTROL_ERRORS_AT, FILE_BYTES, FUNCTION_BYTES, FUNCTION_NAME_AT, FUNCTIONS_AT, MAGIC, MAX_RULES,
    RULE_BYTES, RULE_TEXT_AT, RULES_AT, RULES_IN_USE_AT, VERSION, padded_text,
};
use crate::function::Function;
use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct Tally {
    map: NonNull<u8>,
    /// For what is written rarely: the rules' texts.
    file: Mutex<File>,
    /// Calls of each function inside this process.
    inside: [AtomicU64; Function::ALL.len()],
}

// SAFETY: the mapping stays for the life of the process, and is only used through atomics.
unsafe impl Send for Tally {}
// SAFETY: as above.
unsafe impl Sync for Tally {}

impl Tally {
    /// Counts into the file, which is made if need be, or nowhere in particular.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = match path {
            Some(path) => {
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?
            }
            None => anonymous_file()?,
        };
        file.lock()?;
        let prepared = prepare(&file);
        file.unlock()?;
        prepared?;
        Ok(Tally { map: map(&file)?, file: Mutex::new(file), inside: [const { AtomicU64::new(0) }; _] })
    }

    /// Counts a call, from now until the guard is dropped.
    pub(super) fn enter(&self, function: Function) -> Inside<'_> {
        let at = FUNCTIONS_AT + function as usize * FUNCTION_BYTES;
        let here = self.inside[function as usize].fetch_add(1, Ordering::SeqCst) + 1;
        self.word(at).fetch_add(1, Ordering::SeqCst);
        self.word(at + 8).fetch_max(here, Ordering::SeqCst);
        self.word(at + 16).fetch_add(1, Ordering::SeqCst);
        Inside { tally: self, function }
    }

    pub(super) fn count_control_error(&self) {
        self.word(CONTROL_ERRORS_AT).fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a call that a rule matched, and that it hit, into the rule's record.
    pub(super) fn count_rule(&self, record: usize, hit: bool) {
        let at = RULES_AT + record * RULE_BYTES;
        self.word(at + 8).fetch_add(1, Ordering::SeqCst);
        self.word(at).fetch_add(u64::from(hit), Ordering::SeqCst);
    }

    /// The record of the rule with this text: a used one, or the next.
    pub(super) fn record(&self, text: &str) -> io::Result<usize> {
        let file = super::lock(&self.file);
        // Another process, or another instance in this one, may be about to take the same record.
        file.lock()?;
        let found = self.find_or_add(&file, text);
        file.unlock()?;
        found
    }

    fn find_or_add(&self, file: &File, text: &str) -> io::Result<usize> {
        let text_at = |record: usize| (RULES_AT + record * RULE_BYTES + RULE_TEXT_AT) as u64;
        let in_use = self.word(RULES_IN_USE_AT);
        let next = usize::try_from(in_use.load(Ordering::SeqCst)).unwrap_or(MAX_RULES);
        for record in 0..next.min(MAX_RULES) {
            let mut bytes = [0; RULE_BYTES - RULE_TEXT_AT];
            file.read_exact_at(&mut bytes, text_at(record))?;
            if padded_text(&bytes) == text.as_bytes() {
                return Ok(record);
            }
        }
        if next >= MAX_RULES {
            return Err(io::Error::other(format!(
                "more than {MAX_RULES} different rules in one counters file"
            )));
        }
        file.write_all_at(text.as_bytes(), text_at(next))?;
        in_use.fetch_add(1, Ordering::SeqCst);
        Ok(next)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < FILE_BYTES, "counter out of place");
        // SAFETY: within the mapping, by the assertion.
        let word = unsafe { self.map.add(at) };
        // SAFETY: aligned, for a mapping is page aligned; valid and never anything but atomic as long as the process
        // lives.
        unsafe { AtomicU64::from_ptr(word.as_ptr().cast()) }
    }
}

/// A call that is being counted.
pub(super) struct Inside<'a> {
    tally: &'a Tally,
    function: Function,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let index = self.function as usize;
        self.tally.inside[index].fetch_sub(1, Ordering::SeqCst);
        self.tally.word(FUNCTIONS_AT + index * FUNCTION_BYTES + 16).fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lays out a new file, or makes sure that an old one is of this layout.
fn prepare(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length != 0 {
        let mut head = [0; 16];
        file.read_exact_at(&mut head, 0)?;
        let of_this_version = head[..8] == MAGIC && head[8..] == VERSION.to_ne_bytes();
        return if of_this_version && length == FILE_BYTES as u64 {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not a counters file of this version"))
        };
    }
    let mut bytes = vec![0; FILE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&VERSION.to_ne_bytes());
    for function in Function::ALL {
        let name = FUNCTIONS_AT + function as usize * FUNCTION_BYTES + FUNCTION_NAME_AT;
        bytes[name..name + function.name().len()].copy_from_slice(function.name().as_bytes());
    }
    file.write_all_at(&bytes, 0)
}

fn anonymous_file() -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"pkcs11-fault".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor of our own, just opened.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn map(file: &File) -> io::Result<NonNull<u8>> {
    const ACCESS: c_int = libc::PROT_READ | libc::PROT_WRITE;
    let fd = file.as_raw_fd();
    // SAFETY: a new mapping at an address of the system's choice, of a file that was laid out to this length.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), FILE_BYTES, ACCESS, libc::MAP_SHARED, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)
}
