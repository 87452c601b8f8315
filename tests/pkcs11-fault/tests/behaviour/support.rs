//! A real SoftHSM2 token behind the fault module, in a process of its own for each test.
//!
//! `SOFTHSM2_CONF` and the variables of the fault module belong to a whole process, so a test starts its own test
//! binary again, for itself alone, with the environment that it needs.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use pkcs11_fault::{ControlFile, Counts, Fault, Rule, Setup, built_module};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const STAGE_VARIABLE: &str = "PKCS11_FAULT_TEST_STAGE";
/// A test that takes this long does not end at all.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) const PIN: &str = "1234";
pub(crate) const SO_PIN: &str = "5678";
pub(crate) const PLAINTEXT: &[u8] = b"the quick brown fox";
pub(crate) const AAD: &[u8] = b"context";
pub(crate) const IV: [u8; 12] = [7; 12];
pub(crate) const TAG_BYTES: usize = 16;

/// What a test works with: a directory, and the files of one instance of the module in it.
pub(crate) struct Stage {
    pub(crate) directory: PathBuf,
    pub(crate) control: ControlFile,
}

/// Declares tests that each run in a process of their own: `fn name(stage) { … }`.
macro_rules! staged {
    ($($(#[$attribute:meta])* fn $name:ident($stage:ident) $body:block)*) => { $(
        $(#[$attribute])*
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            $crate::support::staged(name, |$stage: &$crate::support::Stage| $body);
        }
    )* };
}

/// Runs the body in a process of its own, and fails unless it succeeds there.
pub(crate) fn staged(name: &str, body: impl FnOnce(&Stage)) {
    in_own_process(name, body, |_, status, output| {
        assert!(status.success() && output.contains("1 passed"), "{status}\n{output}");
    });
}

/// Runs the body in a process of its own, and judges how that ended, by its status and output.
pub(crate) fn in_own_process(
    name: &str,
    body: impl FnOnce(&Stage),
    judge: impl FnOnce(&Stage, ExitStatus, &str),
) {
    if let Some(directory) = env::var_os(STAGE_VARIABLE) {
        return body(&Stage::at(Path::new(&directory)));
    }
    // Cargo's name for a test is its path without the crate.
    let (_, name) = name.split_once("::").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let stage = Stage::at(directory.path());
    let tokens = stage.directory.join("tokens");
    let configuration = stage.directory.join("softhsm2.conf");
    fs::create_dir(&tokens).unwrap();
    fs::write(&configuration, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()))
        .unwrap();
    let log = stage.directory.join("output");
    let output = fs::File::create(&log).unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .envs(stage.setup().environment())
        .env("SOFTHSM2_CONF", &configuration)
        .env(STAGE_VARIABLE, &stage.directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} does not end\n{}", fs::read_to_string(&log).unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    };
    judge(&stage, status, &fs::read_to_string(&log).unwrap());
}

impl Stage {
    fn at(directory: &Path) -> Self {
        Stage { directory: directory.to_owned(), control: ControlFile::new(directory.join("control")) }
    }

    pub(crate) fn setup(&self) -> Setup {
        let (control, counts) = (self.control.path().to_owned(), self.directory.join("counts"));
        Setup { module: softhsm(), control: Some(control), counts: Some(counts) }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts::read(self.directory.join("counts")).unwrap()
    }

    /// Another instance of the module, with files of its own, over any module.
    pub(crate) fn instance(&self, name: &str, real: &Path) -> Instance {
        let at = |what: &str| self.directory.join(format!("{name}.{what}"));
        let (control, counts) = (at("control"), at("counts"));
        let setup =
            Setup { module: real.to_owned(), control: Some(control.clone()), counts: Some(counts.clone()) };
        setup.install(&module(), &at("so")).unwrap();
        Instance { module: at("so"), control: ControlFile::new(control), counts }
    }

    /// Puts one rule into force, in place of any other.
    pub(crate) fn rule(&self, rule: &Rule) {
        self.control.write(std::slice::from_ref(rule)).unwrap();
    }

    pub(crate) fn fired(&self, rule: &Rule) -> u64 {
        self.counts().fired(rule)
    }

    /// Loads and initialises the fault module.
    pub(crate) fn load(&self) -> Pkcs11 {
        load(&module())
    }

    /// A token in the first free slot, with its PINs, and nobody logged in.
    pub(crate) fn token(&self) -> Token {
        Token::new(self.load(), "first")
    }
}

/// An instance of the module beside the one of the stage.
pub(crate) struct Instance {
    pub(crate) module: PathBuf,
    pub(crate) control: ControlFile,
    counts: PathBuf,
}

impl Instance {
    pub(crate) fn counts(&self) -> Counts {
        Counts::read(&self.counts).unwrap()
    }
}

/// SoftHSM2, from `SOFTHSM2_MODULE` or where distributions install it.
pub(crate) fn softhsm() -> PathBuf {
    let usual = [
        "/usr/lib/softhsm",
        "/usr/lib64/pkcs11",
        "/usr/lib/x86_64-linux-gnu/softhsm",
        "/usr/local/lib/softhsm",
    ];
    let usual = usual.map(|directory| Path::new(directory).join("libsofthsm2.so"));
    let named = env::var_os("SOFTHSM2_MODULE").map(PathBuf::from);
    named.or_else(|| usual.into_iter().find(|path| path.exists())).expect("SoftHSM2 is installed")
}

/// The fault module.
pub(crate) fn module() -> PathBuf {
    built_module().expect("Cargo builds the shared object along with the library")
}

pub(crate) fn load(path: &Path) -> Pkcs11 {
    let pkcs11 = Pkcs11::new(path).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    pkcs11
}

pub(crate) struct Token {
    pub(crate) pkcs11: Pkcs11,
    pub(crate) slot: Slot,
}

impl Token {
    pub(crate) fn new(pkcs11: Pkcs11, label: &str) -> Self {
        let slots = pkcs11.get_slots_with_token().unwrap();
        let is_free = |slot: &Slot| !pkcs11.get_token_info(*slot).unwrap().token_initialized();
        let slot = slots.into_iter().find(is_free).unwrap();
        pkcs11.init_token(slot, &AuthPin::from(SO_PIN), label).unwrap();
        let token = Self::find(pkcs11, label);
        let session = token.pkcs11.open_rw_session(token.slot).unwrap();
        session.login(UserType::So, Some(&AuthPin::from(SO_PIN))).unwrap();
        session.init_pin(&AuthPin::from(PIN)).unwrap();
        session.logout().unwrap();
        token
    }

    pub(crate) fn find(pkcs11: Pkcs11, label: &str) -> Self {
        let slots = pkcs11.get_slots_with_token().unwrap();
        let has_label = |slot: &Slot| pkcs11.get_token_info(*slot).is_ok_and(|info| info.label() == label);
        let slot = slots.into_iter().find(has_label).unwrap();
        Token { pkcs11, slot }
    }

    /// A session, without a login.
    pub(crate) fn open(&self) -> Session {
        self.pkcs11.open_rw_session(self.slot).unwrap()
    }

    /// A session, with the login that all sessions share.
    pub(crate) fn log_in(&self) -> Session {
        let session = self.open();
        log_in(&session).unwrap();
        session
    }
}

pub(crate) fn log_in(session: &Session) -> Result<(), Error> {
    session.login(UserType::User, Some(&AuthPin::from(PIN)))
}

/// Makes an AES-256 key in the token, whose value can be read.
pub(crate) fn make_key(session: &Session, label: &str) -> ObjectHandle {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Label(label.into()),
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap()
}

pub(crate) fn find_keys(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, Error> {
    session.find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.into())])
}

pub(crate) fn find_key(session: &Session, label: &str) -> ObjectHandle {
    let keys = find_keys(session, label).unwrap();
    assert_eq!(keys.len(), 1, "keys labelled {label}");
    keys[0]
}

pub(crate) fn encrypt(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    encrypt_with(session, key, &mut IV.clone())
}

pub(crate) fn encrypt_with(session: &Session, key: ObjectHandle, iv: &mut [u8]) -> Result<Vec<u8>, Error> {
    session.encrypt(&Mechanism::AesGcm(GcmParams::new(iv, AAD, 128.into()).unwrap()), key, PLAINTEXT)
}

pub(crate) fn decrypt(session: &Session, key: ObjectHandle, ciphertext: &[u8]) -> Result<Vec<u8>, Error> {
    decrypt_with(session, key, &IV, ciphertext)
}

pub(crate) fn decrypt_with(
    session: &Session,
    key: ObjectHandle,
    iv: &[u8],
    ciphertext: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut iv = iv.to_vec();
    session.decrypt(&Mechanism::AesGcm(GcmParams::new(&mut iv, AAD, 128.into()).unwrap()), key, ciphertext)
}

/// The key works as it should.
#[track_caller]
pub(crate) fn assert_works(session: &Session, key: ObjectHandle) {
    let ciphertext = encrypt(session, key).unwrap();
    assert_eq!(decrypt(session, key, &ciphertext).unwrap(), PLAINTEXT);
}

/// The value with which the module refused.
#[track_caller]
pub(crate) fn refusal<T>(result: Result<T, Error>) -> RvError {
    match result {
        Err(Error::Pkcs11(rv, _)) => rv,
        Err(other) => panic!("not from the module: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

pub(crate) fn fail(name: &str) -> Fault {
    Fault::Fail(name.parse().unwrap())
}

/// Waits for something that another thread or process is about to do.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
    }
}
