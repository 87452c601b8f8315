//! SoftHSM2 tokens, each in a folder of its own. Where SOFTHSM2_MODULE names the module of kryoptic, they are its tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::binary::program;

/// PIN of every test token.
pub const PIN: &str = "test-pin-1234";
/// PIN of the security officer.
pub const SO_PIN: &str = "test-so-pin-1234";
/// Label of the token.
pub const LABEL: &str = "xks-test";

/// Tokens that a folder has room for; SoftHSM2 makes room by itself.
const KRYOPTIC_SLOTS: usize = 4;

/// A token in software, of SoftHSM2 or kryoptic; the folder goes when it is dropped.
pub struct SoftHsm {
    folder: TempDir,
}

impl SoftHsm {
    /// A token without keys.
    #[must_use]
    pub fn empty() -> Self {
        static TEMPLATE: OnceLock<SoftHsm> = OnceLock::new();
        TEMPLATE.get_or_init(Self::initialised).copy()
    }

    /// A token with the keys of `softhsm-setup.sh`.
    #[must_use]
    pub fn with_keys() -> Self {
        static TEMPLATE: OnceLock<SoftHsm> = OnceLock::new();
        let make = || {
            let token = Self::empty();
            for (label, usage) in [
                ("demo", "encrypt,decrypt"),
                ("demo-2", "encrypt,decrypt"),
                ("encrypt-only", "encrypt"),
                ("decrypt-only", "decrypt"),
                ("no-usage", "none"),
                ("xks-health", "encrypt,decrypt"),
            ] {
                token.generate(label, &["--usage", usage]);
            }
            token.generate("aes-128", &["--bits", "128"]);
            token
        };
        TEMPLATE.get_or_init(make).copy()
    }

    fn initialised() -> Self {
        let token = Self::new_folder();
        token.tool(&["init", "--label", LABEL, "--so-pin", SO_PIN, "--pin", PIN]);
        token
    }

    fn new_folder() -> Self {
        let token = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(token.folder.path().join("tokens")).unwrap();
        let tokens = token.folder.path().join("tokens");
        let softhsm = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(token.configuration(), softhsm).unwrap();
        let slot = |slot| {
            let database = tokens.join(format!("kryoptic-{slot}.sql"));
            format!("[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = {database:?}\n")
        };
        let kryoptic: String = (0..KRYOPTIC_SLOTS).map(slot).collect();
        fs::write(token.folder.path().join("kryoptic.conf"), kryoptic).unwrap();
        token
    }

    /// Another token with the same keys and the same serial number.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::new_folder();
        copy_folder(&self.folder.path().join("tokens"), &copy.folder.path().join("tokens"));
        copy
    }

    /// The variables by which the modules find the token: each looks at its own.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("SOFTHSM2_CONF", self.configuration()), ("KRYOPTIC_CONF", self.folder.path().join("kryoptic.conf"))]
    }

    /// Whether the tests run on kryoptic.
    #[must_use]
    pub fn is_kryoptic() -> bool {
        Self::module().file_name().is_some_and(|name| name.to_string_lossy().contains("kryoptic"))
    }

    /// What SOFTHSM2_CONF must name.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("softhsm2.conf")
    }

    /// The folder that holds the token's files.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        let mut tokens = fs::read_dir(self.folder.path().join("tokens")).unwrap();
        tokens.next().unwrap().unwrap().path()
    }

    /// The PKCS#11 module.
    #[must_use]
    pub fn module() -> PathBuf {
        static MODULE: OnceLock<PathBuf> = OnceLock::new();
        let find = || {
            let output = Command::new(program("softhsm-token")).arg("module").output().unwrap();
            assert!(output.status.success(), "SoftHSM2 is not installed: run ./softhsm-setup.sh first");
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        };
        MODULE.get_or_init(find).clone()
    }

    /// Makes a key; further arguments are those of `softhsm-token generate`.
    pub fn generate(&self, label: &str, more: &[&str]) {
        self.tool(&[&["generate", "--label", label], more].concat());
    }

    /// Runs `softhsm-token` on this token and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let output = Command::new(program("softhsm-token"))
            .args(arguments)
            .envs(self.environment())
            .env("TOKEN_PIN", PIN)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "softhsm-token {arguments:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
