//! Refused PINs on disk: a folder with a file for each token and user.
//!
//! A PIN is short, so that its hash gives it away to whoever may try all PINs at leisure. PBKDF2-HMAC-SHA256 makes each
//! try cost 600,000 rounds (OWASP's figure for passwords), under a random salt of the entry's own; the file is its owner's
//! alone, and what it tells of is a PIN that the token did not take, or did not answer for.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use aws_lc_rs::{constant_time, pbkdf2};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::{LOOK, LoginId, Past, PinFault};
use crate::clock;
use crate::hsm::settings::UserType;
use crate::secret::Secret;
use crate::state_folder::{StateFault, StateFolder};

/// The folder in the state directory.
const FOLDER: &str = "refused-pins";
/// Of a file that is not in its place yet.
const UNFINISHED: &str = "new";
/// The format of the files.
const FORMAT: u32 = 1;
const ITERATIONS: u32 = 600_000;
/// A file that wants more is damaged: it would hold the login up.
const MAX_ITERATIONS: u32 = 10 * ITERATIONS;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// Refused PINs of one token that are remembered, the newest.
const MAX_REFUSED: usize = 8;
/// A longer file is damaged.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A PIN as the record has it.
#[derive(Clone)]
pub(super) struct Derivation {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    hash: [u8; HASH_BYTES],
}

impl Derivation {
    pub(super) fn with_new_salt(pin: &Secret) -> Self {
        let mut salt = vec![0; SALT_BYTES];
        // Without randomness an entry has the salt of every other such: worse, and not wrong.
        let _ = getrandom::fill(&mut salt);
        const { assert!(ITERATIONS > 0) };
        Self::new(pin, salt, NonZeroU32::new(ITERATIONS).unwrap_or(NonZeroU32::MIN))
    }

    fn new(pin: &Secret, salt: Vec<u8>, iterations: NonZeroU32) -> Self {
        let mut hash = [0; HASH_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, pin.expose().as_bytes(), &mut hash);
        Self { salt, iterations, hash }
    }
}

/// A file's content.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Record {
    format: u32,
    module: String,
    token_serial: String,
    user: String,
    /// PBKDF2-HMAC-SHA256.
    iterations: NonZeroU32,
    #[serde(with = "base64_text")]
    salt_b64: Vec<u8>,
    refused: Vec<Refused>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Refused {
    /// What the token said; absent where it never answered.
    code: Option<String>,
    /// Logins that have begun, and of which no answer was learnt.
    #[serde(default)]
    unanswered: u32,
    #[serde(with = "base64_text")]
    hash_b64: Vec<u8>,
}

impl Record {
    /// What was before, and that a login with this PIN has begun.
    pub(super) fn with(before: Option<&Self>, id: &LoginId, pin: &Derivation) -> Self {
        let mut refused = before.map(|record| record.refused.clone()).unwrap_or_default();
        let known =
            refused.iter().position(|known| known.is_of(pin)).map(|position| refused.remove(position));
        let new = || Refused { code: None, unanswered: 0, hash_b64: pin.hash.to_vec() };
        let mut begun = known.unwrap_or_else(new);
        begun.unanswered = begun.unanswered.saturating_add(1);
        refused.push(begun);
        let too_many = refused.len().saturating_sub(MAX_REFUSED);
        refused.drain(..too_many);
        Self {
            format: FORMAT,
            module: id.module.display().to_string(),
            token_serial: id.token_serial.to_string(),
            user: user_word(id.user_type),
            iterations: pin.iterations,
            salt_b64: pin.salt.clone(),
            refused,
        }
    }

    pub(super) fn has_salt_of(&self, derivation: &Derivation) -> bool {
        self.salt_b64 == derivation.salt && self.iterations == derivation.iterations
    }

    pub(super) fn derive(&self, pin: &Secret) -> Derivation {
        Derivation::new(pin, self.salt_b64.clone(), self.iterations)
    }

    /// The login that began last has ended: the token refused the PIN.
    pub(super) fn refuse_last(&mut self, code: &str) {
        if let Some(last) = self.refused.last_mut() {
            *last = Refused {
                code: Some(code.to_owned()),
                unanswered: 0,
                hash_b64: std::mem::take(&mut last.hash_b64),
            };
        }
    }

    /// What came of the PIN before.
    pub(super) fn past_of(&self, pin: &Derivation) -> Option<Past> {
        let known = self.refused.iter().find(|known| known.is_of(pin))?;
        Some(Past { code: known.code.as_deref().map(Into::into), unanswered: known.unanswered })
    }

    /// Whether there is another PIN in it.
    pub(super) fn has_other_than(&self, pin: &Derivation) -> bool {
        self.refused.iter().any(|known| !known.is_of(pin))
    }

    fn is_of(&self, id: &LoginId) -> bool {
        self.format == FORMAT
            && self.module == id.module.display().to_string()
            && *self.token_serial == *id.token_serial
            && self.user == user_word(id.user_type)
            && self.iterations.get() <= MAX_ITERATIONS
            && self.salt_b64.len() >= SALT_BYTES
            && !self.refused.is_empty()
            && self.refused.iter().all(|known| known.hash_b64.len() == HASH_BYTES)
    }
}

impl Refused {
    fn is_of(&self, pin: &Derivation) -> bool {
        constant_time::verify_slices_are_equal(&self.hash_b64, &pin.hash).is_ok()
    }
}

fn user_word(user: UserType) -> String {
    match user {
        UserType::User => "user".to_owned(),
        UserType::SecurityOfficer => "so".to_owned(),
        UserType::Vendor(value) => format!("0x{value:08x}"),
    }
}

mod base64_text {
    use super::{BASE64_STANDARD, Engine as _};
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(|_| D::Error::custom("not Base64"))
    }
}

/// The folder of the records.
pub(super) struct Folder {
    folder: StateFolder,
    /// Owner and group of the state directory: what root makes is theirs, lest the proxy cannot read it.
    owner: Option<(u32, u32)>,
}

/// The right to log in to a token; ends when dropped, or with the process.
pub(super) struct Lock(#[expect(dead_code, reason = "held")] File);

impl Folder {
    /// Makes the folder if need be.
    pub(super) fn open(state_dir: &Path) -> Result<Self, PinFault> {
        let folder = StateFolder::open(state_dir, FOLDER)?;
        let owner = fs::metadata(state_dir).ok().map(|metadata| (metadata.uid(), metadata.gid()));
        let folder = Self { folder, owner };
        folder.hand_over(folder.folder.path());
        Ok(folder)
    }

    /// Waits until then for its turn to log in to that token.
    pub(super) fn lock(&self, id: &LoginId, until: Instant) -> Result<Lock, PinFault> {
        let path = self.file(id).with_extension("lock");
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| fault("cannot open", &path, &error))?;
        self.hand_over(&path);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(fs::TryLockError::WouldBlock) if clock::now() < until => std::thread::sleep(LOOK),
                Err(fs::TryLockError::WouldBlock) => return Err(PinFault::UnderWay),
                Err(fs::TryLockError::Error(error)) => return Err(fault("cannot lock", &path, &error)),
            }
        }
    }

    /// What was refused; `None` where nothing was.
    pub(super) fn read(&self, id: &LoginId) -> Result<Option<Record>, PinFault> {
        let path = self.file(id);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => return Err(PinFault::Damaged(path)),
            _ => {}
        }
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault("cannot read", &path, &error)),
        };
        let record: Option<Record> = serde_json::from_slice(&content).ok();
        record.filter(|record| record.is_of(id)).map(Some).ok_or(PinFault::Damaged(path))
    }

    /// Puts a record into its place: whole and on the disk, or not at all.
    pub(super) fn put(&self, id: &LoginId, record: &Record) -> Result<(), PinFault> {
        let path = self.file(id);
        let unfinished = path.with_extension(UNFINISHED);
        let write = || -> io::Result<()> {
            let mut file =
                File::options().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
            // One that was there before may have had another.
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            self.hand_over(&unfinished);
            serde_json::to_writer(&mut file, record)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(self.folder.path())?.sync_all()
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            fault("cannot write", &path, &error)
        })
    }

    /// Nothing is remembered of that login any more.
    pub(super) fn forget(&self, id: &LoginId) {
        let _ = fs::remove_file(self.file(id));
    }

    fn hand_over(&self, path: &Path) {
        let is_theirs = |(uid, _)| fs::metadata(path).is_ok_and(|metadata| metadata.uid() == uid);
        if let Some((uid, gid)) = self.owner.filter(|owner| !is_theirs(*owner)) {
            // Only root can, and only root needs to.
            let _ = chown(path, Some(uid), Some(gid));
        }
    }

    fn file(&self, id: &LoginId) -> PathBuf {
        let user = user_word(id.user_type);
        self.folder.file(&[
            id.module.as_os_str().as_encoded_bytes(),
            id.token_serial.as_bytes(),
            user.as_bytes(),
        ])
    }
}

impl From<StateFault> for PinFault {
    fn from(StateFault { action, path, source }: StateFault) -> Self {
        fault(action, &path, &source)
    }
}

fn fault(action: &'static str, path: &Path, error: &io::Error) -> PinFault {
    PinFault::Io { action, path: path.to_owned(), reason: error.kind() }
}
