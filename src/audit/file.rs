//! The audit file, found in whatever state a crash, an operator or an attacker left it, and the small file beside it that
//! holds the chain's head: by it the chain goes on though the file was moved away, and a tail that was cut off is missed. It also
//! holds how many records were lost of which the chain could not tell.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::AuditFault;
use super::chain::{Hash, Hasher, Head, Link, Torn};

/// The head file is the audit file's name and this.
const HEAD_EXTENSION: &str = ".head";
/// How far from its end a whole record is looked for: more than any crash leaves behind.
const MAX_TORN_BYTES: u64 = 64 * 1024 * 1024;
/// What every record begins with.
const BEGIN: &[u8] = br#"{"seq":"#;

/// The head on disk. Its lock is held for as long as the process lives, whatever becomes of the audit file.
pub(super) struct HeadFile(File);

impl HeadFile {
    /// The head as it was last written, [`Head::NONE`] where there is none; and how many lost records are to be told of.
    pub(super) fn open(audit_file: &Path) -> Result<(Self, Head, u64), AuditFault> {
        let mut path = audit_file.as_os_str().to_owned();
        path.push(HEAD_EXTENSION);
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file =
            file.map_err(|source| AuditFault::Io { action: "cannot open", path: path.clone(), source })?;
        lock(&file, audit_file)?;
        let mut text = Vec::new();
        let read = (&mut file).take(1024).read_to_end(&mut text);
        read.map_err(|source| AuditFault::Io { action: "cannot read", path: path.clone(), source })?;
        let known = if text.is_empty() { Some((Head::NONE, 0)) } else { parse_head(&text) };
        let (head, lost) = known.ok_or(AuditFault::HeadDamaged(path))?;
        Ok((Self(file), head, lost))
    }

    /// Always of the same length, so that it is written over in one piece. Synced where records are: behind them, it would have
    /// their numbers given anew once their file is moved away.
    pub(super) fn write(&self, head: Head, lost: u64, is_synced: bool) -> io::Result<()> {
        self.0.write_all_at(format!("{:020} {} {lost:020}\n", head.seq, head.hash).as_bytes(), 0)?;
        if is_synced { self.0.sync_data() } else { Ok(()) }
    }
}

/// Held for as long as the file is open.
fn lock(file: &File, audit_file: &Path) -> Result<(), AuditFault> {
    let path = audit_file.to_owned();
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(AuditFault::InUse(path)),
        Err(TryLockError::Error(source)) => Err(AuditFault::Io { action: "cannot lock", path, source }),
    }
}

fn parse_head(text: &[u8]) -> Option<(Head, u64)> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let mut words = text.split(' ');
    let (seq, hash) = (words.next()?, words.next()?);
    // A head from before losses were kept beside it has none.
    let lost = words.next().map_or(Some(0), |lost| lost.parse().ok())?;
    let head = Head { seq: seq.parse().ok()?, hash: Hash::parse(hash.as_bytes())? };
    words.next().is_none().then_some((head, lost))
}

/// A file that is open for appending.
pub(super) struct AuditFile {
    file: File,
    /// Length up to the last whole record that was written.
    good_bytes: u64,
}

/// What was found in a file.
pub(super) struct Found {
    pub(super) last: Option<Head>,
    pub(super) torn: Option<Torn>,
    /// It does not end with a line break.
    pub(super) needs_line_break: bool,
}

impl AuditFile {
    /// Opens, or makes, the file and finds its last whole record.
    pub(super) fn open(path: &Path, hasher: &Hasher) -> Result<(Self, Found), AuditFault> {
        let io = |action| move |source| AuditFault::Io { action, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        let mut file = file.map_err(io("cannot open"))?;
        let metadata = file.metadata().map_err(io("cannot look at"))?;
        if !metadata.is_file() {
            return Err(AuditFault::NotAFile(path.to_owned()));
        }
        // The head file's lock goes by name; the same file may have several.
        lock(&file, path)?;
        let good_bytes = file.metadata().map_err(io("cannot look at"))?.len();
        let found = find_end(&mut file, good_bytes, hasher).map_err(io("cannot read"))?;
        let found = found.ok_or_else(|| AuditFault::NotAnAuditFile(path.to_owned()))?;
        Ok((Self { file, good_bytes }, found))
    }

    /// Whether it is still the one that has this name.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(own), Ok(there)) => identity(own) == identity(there),
            _ => false,
        }
    }

    /// Appends whole records. What a failure leaves of them is for [`Self::roll_back`].
    pub(super) fn append(&mut self, lines: &[u8], is_synced: bool) -> io::Result<()> {
        self.file.write_all(lines)?;
        if is_synced {
            self.file.sync_data()?;
        }
        self.good_bytes += lines.len() as u64;
        Ok(())
    }

    /// Takes back what a failed append has written: its records will be written again, under the same numbers.
    pub(super) fn roll_back(&self) -> io::Result<()> {
        self.file.set_len(self.good_bytes)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The last record of a file that may be there.
pub(super) fn examine(path: &Path, hasher: &Hasher) -> Result<Option<Head>, AuditFault> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| AuditFault::Io { action, path, source }
    };
    let folder = path.parent().unwrap_or(path);
    std::fs::read_dir(folder).map_err(io("cannot read the folder of", path))?;
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(io("cannot look at", path))?,
    };
    if !metadata.is_file() {
        return Err(AuditFault::NotAFile(path.to_owned()));
    }
    let mut file = File::open(path).map_err(io("cannot open", path))?;
    let found = find_end(&mut file, metadata.len(), hasher).map_err(io("cannot read", path))?;
    found.map(|found| found.last).ok_or_else(|| AuditFault::NotAnAuditFile(path.to_owned()))
}

/// The last whole record and what is behind it; `None` where this is no audit file.
fn find_end(file: &mut File, file_bytes: u64, hasher: &Hasher) -> io::Result<Option<Found>> {
    let mut window_bytes: u64 = 64 * 1024;
    loop {
        let start = file_bytes.saturating_sub(window_bytes);
        let mut window = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        file.take(file_bytes - start).read_to_end(&mut window)?;
        if let Some((last, end)) = last_record(&window, start == 0, hasher) {
            return Ok(Some(found(Some(last), &window, &window[end..])));
        }
        if start == 0 {
            // Nothing yet, or a crash during the very first record.
            let is_ours = BEGIN.starts_with(&window) || window.starts_with(BEGIN);
            let is_torn = is_ours && !window.contains(&b'\n');
            return Ok(is_torn.then(|| found(None, &window, &window)));
        }
        if window_bytes > MAX_TORN_BYTES {
            return Ok(None);
        }
        window_bytes *= 8;
    }
}

/// The last record of a window, and where it ends, its line break included if it is there.
fn last_record(window: &[u8], is_from_start: bool, hasher: &Hasher) -> Option<(Head, usize)> {
    // Cut between the record and its line break, it is whole.
    let start = window.iter().rposition(|byte| *byte == b'\n').map_or(0, |line_break| line_break + 1);
    if let Some(link) = Link::read(hasher, &window[start..]) {
        return Some((link.head, window.len()));
    }
    let mut end = window.len();
    while let Some(line_break) = window[..end].iter().rposition(|byte| *byte == b'\n') {
        let start = window[..line_break].iter().rposition(|byte| *byte == b'\n').map(|before| before + 1);
        let start = start.or(is_from_start.then_some(0))?;
        if let Some(link) = Link::read(hasher, &window[start..line_break]) {
            return Some((link.head, line_break + 1));
        }
        end = line_break;
    }
    None
}

fn found(last: Option<Head>, window: &[u8], rest: &[u8]) -> Found {
    let torn = rest.strip_suffix(b"\n").unwrap_or(rest);
    let torn = (!rest.is_empty()).then(|| Torn {
        bytes: torn.len() as u64,
        sha256: Hash::of(Sha256::new_with_prefix(torn)).to_string(),
    });
    Found { last, needs_line_break: window.last().is_some_and(|last| *last != b'\n'), torn }
}
