//! PKCS#11 modules, each loaded and initialised once a process.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use thiserror::Error;

use super::ckr;
use super::gcm::Gcm;
use super::pin_guard::PinGuard;

/// A module that has been loaded and initialised. It is never finalised: that would pull the ground from under
/// every thread that is inside it.
pub(super) struct Module {
    pub(super) pkcs11: Pkcs11,
    pub(super) gcm: Gcm,
}

/// The modules of this process.
#[derive(Default)]
pub struct Modules {
    /// Stands before every login.
    pub(super) pin_guard: PinGuard,
    loaded: Mutex<HashMap<PathBuf, ModulePlace>>,
}

/// Has a lock of its own, so that a module that hangs while it initialises holds up no other.
type ModulePlace = Arc<Mutex<Option<Arc<Module>>>>;

impl Modules {
    /// The module at `path`, loaded and initialised now unless it has been before. A failure is not remembered.
    pub(super) fn load(&self, path: &Path) -> Result<Arc<Module>, ModuleFault> {
        let place = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(loaded.entry(path.to_owned()).or_default())
        };
        let mut module = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = &*module {
            return Ok(Arc::clone(module));
        }
        let loaded = Arc::new(load(path)?);
        // Nor is it ever unloaded: whoever lets go of it last may do so while the process ends, and would pull the library
        // from under its own destructors.
        std::mem::forget(Arc::clone(&loaded));
        *module = Some(Arc::clone(&loaded));
        Ok(loaded)
    }
}

fn load(path: &Path) -> Result<Module, ModuleFault> {
    let pkcs11 = Pkcs11::new(path).map_err(|error| ModuleFault::load(path, &error))?;
    let gcm = Gcm::load(path)?;
    // QUIRK(softhsm): it locks only where it is told that it may use the system's locks.
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(Module { pkcs11, gcm }),
        Err(error) => {
            Err(ModuleFault::Initialize { path: path.to_owned(), code: ckr::name(ckr::code_of(&error)) })
        }
    }
}

/// Why a module is not usable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModuleFault {
    /// The system could not load it.
    #[error("cannot load the PKCS#11 module {}: {reason}", path.display())]
    Load {
        /// The module.
        path: PathBuf,
        /// What the system said.
        reason: Box<str>,
    },
    /// It lacks what every module has.
    #[error("{} is not a PKCS#11 module: it has no function list with AES-GCM's functions", .0.display())]
    NoFunctionList(PathBuf),
    /// C_Initialize failed.
    #[error(
        "C_Initialize of {} failed with {code}; is the module's own configuration in place, and the environment \
         variable that names it set (environment = {{ … }} of the token)?",
        path.display()
    )]
    Initialize {
        /// The module.
        path: PathBuf,
        /// The return code.
        code: Box<str>,
    },
}

impl ModuleFault {
    pub(super) fn load(path: &Path, reason: &dyn Display) -> Self {
        Self::Load { path: path.to_owned(), reason: reason.to_string().into() }
    }
}
