//! Where a module finds its real module, its control file and its counters.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The environment variable with the path of the real module.
pub const MODULE_VARIABLE: &str = "PKCS11_FAULT_MODULE";
/// The environment variable with the path of the control file.
pub const CONTROL_VARIABLE: &str = "PKCS11_FAULT_CONTROL";
/// The environment variable with the path of the counters file.
pub const COUNTS_VARIABLE: &str = "PKCS11_FAULT_COUNTS";

/// The paths that one instance of the module works with.
///
/// They come from the environment, or from a sidecar file beside the shared object: `libpkcs11_fault.so.conf` for
/// `libpkcs11_fault.so`. Where there is a sidecar, the environment is not looked at. So two differently directed
/// instances can live in one process: two copies of the shared object, each with its own sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The real module. Two instances in one process need two copies of it as well, or else they share its state.
    pub module: PathBuf,
    /// The control file; no faults without.
    pub control: Option<PathBuf>,
    /// The counters file.
    pub counts: Option<PathBuf>,
}

/// A module that cannot work, because it was not told with what.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Neither a sidecar file nor `PKCS11_FAULT_MODULE`.
    #[error("{MODULE_VARIABLE} is not set and there is no sidecar file {}", .0.display())]
    NoModule(PathBuf),
    /// The sidecar file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The sidecar file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The sidecar file is not as it must be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The sidecar file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Setup {
    /// The environment variables that direct an instance without a sidecar, for
    /// [`Command::envs`](std::process::Command::envs).
    pub fn environment(&self) -> Vec<(&'static str, &Path)> {
        let optional = [(CONTROL_VARIABLE, &self.control), (COUNTS_VARIABLE, &self.counts)];
        let optional = optional.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)));
        std::iter::once((MODULE_VARIABLE, self.module.as_path())).chain(optional).collect()
    }

    /// Makes another instance: copies the shared object to `copy` and writes its sidecar.
    ///
    /// # Errors
    /// The error of the file system, or [`io::ErrorKind::InvalidInput`] for a path that is not UTF-8 or has a line
    /// break in it.
    pub fn install(&self, shared_object: &Path, copy: &Path) -> io::Result<()> {
        let paths = [
            ("module", Some(&self.module)),
            ("control", self.control.as_ref()),
            ("counts", self.counts.as_ref()),
        ];
        let mut text = String::new();
        for (key, path) in paths {
            let Some(path) = path else { continue };
            let path = path
                .to_str()
                .filter(|path| !path.contains(['\n', '\r']))
                .ok_or(io::ErrorKind::InvalidInput)?;
            text.push_str(&format!("{key}={path}\n"));
        }
        fs::copy(shared_object, copy)?;
        fs::write(sidecar_of(copy), text)
    }

    /// The paths for the instance whose shared object is at `shared_object`.
    pub(crate) fn find(shared_object: &Path) -> Result<Self, SetupError> {
        let path = sidecar_of(shared_object);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|reason| SetupError::Invalid { path, reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
                Ok(Setup {
                    module: variable(MODULE_VARIABLE).ok_or(SetupError::NoModule(path))?,
                    control: variable(CONTROL_VARIABLE),
                    counts: variable(COUNTS_VARIABLE),
                })
            }
            Err(error) => Err(SetupError::Unreadable { path, error }),
        }
    }

    /// Reads a sidecar file: lines `module=PATH`, `control=PATH`, `counts=PATH`, comments with `#`.
    fn parse(text: &str) -> Result<Self, String> {
        let [mut module, mut control, mut counts] = [const { None }; 3];
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let place = match line.split_once('=') {
                Some(("module", path)) => (&mut module, path),
                Some(("control", path)) => (&mut control, path),
                Some(("counts", path)) => (&mut counts, path),
                _ => return Err(format!("expected module=, control= or counts=, not \"{line}\"")),
            };
            if place.0.replace(PathBuf::from(place.1)).is_some() || place.1.is_empty() {
                return Err(format!("repeated or empty: \"{line}\""));
            }
        }
        Ok(Setup { module: module.ok_or("module= is missing")?, control, counts })
    }
}

fn sidecar_of(shared_object: &Path) -> PathBuf {
    let mut name = OsString::from(shared_object);
    name.push(".conf");
    PathBuf::from(name)
}

/// The shared object that Cargo built along with this crate: beside the running test or program, or in its `deps`
/// directory. `None` outside of a Cargo target directory.
pub fn built_module() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let beside = program.parent()?;
    // `deps` first: Cargo writes there, and refreshes the copy above only when it builds this package by name.
    [beside.join("deps"), beside.to_path_buf(), beside.join("../deps")]
        .map(|directory| directory.join("libpkcs11_fault.so"))
        .into_iter()
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_names_its_paths() {
        let setup = Setup::parse("# comment\nmodule=/lib/real module.so\n\ncounts=/tmp/c=1\n").unwrap();
        assert_eq!(setup.module, Path::new("/lib/real module.so"));
        assert_eq!(setup.control, None);
        assert_eq!(setup.counts.as_deref(), Some(Path::new("/tmp/c=1")));
    }

    #[test]
    fn a_sidecar_is_taken_as_a_whole_or_refused() {
        for text in ["", "control=/c", "module=", "module=/a\nmodule=/b", "module=/a\nmode=/b", "module"] {
            assert!(Setup::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_installed_sidecar_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let shared_object = directory.path().join("original.so");
        fs::write(&shared_object, "shared object").unwrap();
        let setup = Setup { module: "/real.so".into(), control: Some("/control".into()), counts: None };
        let copy = directory.path().join("copy.so");
        setup.install(&shared_object, &copy).unwrap();
        assert_eq!(fs::read_to_string(&copy).unwrap(), "shared object");
        assert_eq!(Setup::find(&copy).unwrap(), setup);
    }
}
