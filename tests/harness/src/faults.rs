//! A SoftHSM2 that misbehaves on command: the module `pkcs11-fault` between the proxy and the token.

use std::path::{Path, PathBuf};
use std::time::Instant;

use pkcs11_fault::{ControlFile, Counts, Function, built_module};
use tempfile::TempDir;

use crate::proxy::{PATIENCE, Setup};
use crate::token::SoftHsm;

/// The module's control file and its counters. `tests/pkcs11-fault/README.md` lists the rules.
pub struct Faults {
    folder: TempDir,
    control: ControlFile,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

impl Faults {
    /// No faults yet.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = ControlFile::new(folder.path().join("control"));
        Self { folder, control }
    }

    /// The module.
    ///
    /// # Panics
    /// If it has not been built.
    #[must_use]
    pub fn module() -> PathBuf {
        built_module().expect("pkcs11-fault is not built: run `cargo build --workspace` first")
    }

    /// Puts the module before the token of `setup`.
    #[must_use]
    pub fn between(&self, setup: Setup) -> Setup {
        let paths = pkcs11_fault::Setup {
            module: SoftHsm::module(),
            control: Some(self.control.path().to_owned()),
            counts: Some(self.folder.path().join("counts")),
        };
        let variables = paths.environment().into_iter();
        let variables = variables.map(|(name, path)| (name.to_owned(), path.display().to_string()));
        let environment = setup.environment.iter().cloned().chain(variables).collect();
        Setup { module: Some(Self::module()), environment, ..setup }
    }

    /// Replaces all rules: the next call obeys these, one a line.
    ///
    /// # Panics
    /// If the module would refuse them.
    pub fn set(&self, rules: &str) {
        let rules = pkcs11_fault::parse_rules(rules).unwrap_or_else(|error| panic!("{error}"));
        self.control.write(&rules).unwrap();
    }

    /// The control file, for rules that somebody else replaces.
    #[must_use]
    pub fn control(&self) -> &Path {
        self.control.path()
    }

    /// Removes all rules; calls that hang until then go on.
    pub fn clear(&self) {
        self.control.clear().unwrap();
    }

    /// How often each function was called and each rule struck so far.
    ///
    /// # Panics
    /// If the proxy has not loaded the module yet.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::read(self.folder.path().join("counts")).unwrap()
    }

    /// Calls of a function so far, 0 while the proxy has not loaded the module.
    #[must_use]
    pub fn calls(&self, function: Function) -> u64 {
        let counts = Counts::read(self.folder.path().join("counts"));
        counts.map_or(0, |counts| counts.calls(function))
    }

    /// How often a rule struck, given as in [`Self::set`].
    #[must_use]
    pub fn fired(&self, rule: &str) -> u64 {
        self.counts().fired(&rule.parse().unwrap())
    }

    /// Waits until the counters are as wanted.
    ///
    /// # Panics
    /// If they are not in time.
    pub async fn wait_for(&self, what: &str, is_wanted: impl Fn(&Counts) -> bool) {
        let until = Instant::now() + PATIENCE;
        // Until the proxy loads the module, there is nothing to read.
        while !Counts::read(self.folder.path().join("counts")).is_ok_and(|counts| is_wanted(&counts)) {
            assert!(Instant::now() < until, "waited in vain: {what}");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Waits until that many calls of a function are inside the module at once: they hang there.
    pub async fn wait_until_inside(&self, function: Function, calls: u64) {
        self.wait_for(&format!("{calls} calls inside {function}"), |counts| counts.inside(function) >= calls)
            .await;
    }
}
