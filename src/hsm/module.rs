//! PKCS#11 modules, each loaded once a process, and initialised anew where nothing else brings its tokens back.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use super::ckr;
use super::gate::{Gate, Generation};
use super::gcm::Gcm;
use super::pin_guard::PinGuard;
use crate::clock;

/// First pause between two initialisations; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between two initialisations.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A module that has been loaded and initialised in this process. It is never unloaded, and finalised only where nobody is inside.
pub(super) struct OwnModule {
    pub(super) pkcs11: Pkcs11,
    pub(super) gcm: Gcm,
    /// Whoever calls the module goes through here.
    pub(super) gate: Gate,
    /// Tokens that serve.
    serving: AtomicUsize,
    path: PathBuf,
    initialisations: Mutex<Initialisations>,
    /// When C_Finalize was called, until C_Initialize has returned.
    under_way_since: Mutex<Option<Instant>>,
}

/// When the module may be initialised anew.
#[derive(Default)]
struct Initialisations {
    not_before: Option<Instant>,
    pause: Duration,
}

/// What came of the wish to have a module initialised anew.
pub(super) enum Reinitialised {
    /// It has been.
    Done,
    /// Another keeper has seen to it.
    ByAnother,
    /// Not now.
    Later,
    /// Somebody was inside all the time.
    Occupied,
    /// C_Initialize failed.
    Failed(ModuleFault),
}

impl OwnModule {
    /// C_Finalize and C_Initialize, unless another has seen to it since `seen`. `patience` is how long whoever is inside the
    /// module has to leave it. `on_entry` is called before the module is.
    pub(super) fn reinitialise(
        &self,
        seen: Generation,
        patience: Duration,
        on_entry: impl FnOnce(),
    ) -> Reinitialised {
        // Another keeper of the module is at it.
        let Ok(mut initialisations) = self.initialisations.try_lock() else { return Reinitialised::Later };
        if self.gate.generation() != seen {
            return Reinitialised::ByAnother;
        }
        if initialisations.not_before.is_some_and(|not_before| clock::now() < not_before) {
            return Reinitialised::Later;
        }
        initialisations.pause = (2 * initialisations.pause).clamp(FIRST_PAUSE, MAX_PAUSE);
        let done = self.gate.alone(patience, || {
            on_entry();
            self.note_entry(Some(clock::now()));
            let initialised = self.finalise_and_initialise();
            self.note_entry(None);
            initialised
        });
        initialisations.not_before = Some(clock::now() + initialisations.pause);
        match done {
            Some(Ok(())) => Reinitialised::Done,
            Some(Err(fault)) => Reinitialised::Failed(fault),
            None => Reinitialised::Occupied,
        }
    }

    /// Whether C_Finalize or C_Initialize has not come back for that long.
    pub(super) fn hangs_for(&self, patience: Duration) -> bool {
        let since = *self.under_way_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() > patience)
    }

    fn note_entry(&self, since: Option<Instant>) {
        *self.under_way_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn finalise_and_initialise(&self) -> Result<(), ModuleFault> {
        // One that was not initialised says so, and one that is broken may say anything: C_Initialize tells.
        if let Err(error) = self.pkcs11.clone().finalize() {
            let code = ckr::name(ckr::code_of(&error));
            tracing::warn!(module = %self.path.display(), %code, "C_Finalize failed");
        }
        initialise(&self.pkcs11, &self.path)
    }

    /// Tokens of the module that serve.
    pub(super) fn serving(&self) -> usize {
        self.serving.load(Ordering::Acquire)
    }

    /// A token serves: the pauses between initialisations begin anew. How long another that is lost leaves it in peace is
    /// that one's affair.
    pub(super) fn begin_serving(&self) {
        self.serving.fetch_add(1, Ordering::AcqRel);
        if let Ok(mut initialisations) = self.initialisations.try_lock() {
            *initialisations = Initialisations::default();
        }
    }

    /// It serves no more.
    pub(super) fn end_serving(&self) {
        self.serving.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A session that is closed when dropped, unless its module has been initialised since, or is being: its number may be
/// another's now.
pub(super) struct OpenSession {
    /// There until it is dropped.
    session: Option<Session>,
    module: Arc<OwnModule>,
    generation: Generation,
}

impl OpenSession {
    /// Opens one with [`OwnModule::gate`] passed.
    pub(super) fn open(module: &Arc<OwnModule>, slot: Slot, is_writable: bool) -> Result<Self, Error> {
        let generation = module.gate.generation();
        let session = if is_writable {
            module.pkcs11.open_rw_session(slot)
        } else {
            module.pkcs11.open_ro_session(slot)
        };
        Ok(Self { session: Some(session?), module: Arc::clone(module), generation })
    }
}

impl Deref for OpenSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        // INVARIANT: only drop takes it.
        self.session.as_ref().expect("a session that has not been dropped")
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        let session = self.session.take();
        match self.module.gate.enter_to_give_back(self.generation) {
            Some(_inside) => drop(session),
            None => std::mem::forget(session),
        }
    }
}

/// The modules of this process.
#[derive(Default)]
pub struct Modules {
    /// Stands before every login.
    pub(super) pin_guard: PinGuard,
    /// By the path as it is written, and by the file that it led to at first: two that lead to one file are one module.
    places: Mutex<HashMap<PathBuf, ModulePlace>>,
    /// A call that does not return keeps a module from being initialised anew.
    is_stuck: watch::Sender<bool>,
}

/// Has a lock of its own, so that a module that hangs while it initialises holds up no other.
type ModulePlace = Arc<Mutex<Option<Loaded>>>;

/// A module that has been loaded.
struct Loaded {
    module: Arc<OwnModule>,
    is_initialised: bool,
}

impl Modules {
    /// The module at `path`, loaded and initialised now unless it has been before. Where C_Initialize fails, only that is tried
    /// again.
    pub(super) fn load(&self, path: &Path) -> Result<Arc<OwnModule>, ModuleFault> {
        let place = self.place(path)?;
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match &mut *place {
            Some(loaded) => loaded,
            place => {
                let module = Arc::new(load(path)?);
                // It is never unloaded: its own threads may run whatever C_Initialize said, and whoever lets go of it last may
                // do so while the process ends, and would pull the library from under its own destructors.
                std::mem::forget(Arc::clone(&module));
                place.insert(Loaded { module, is_initialised: false })
            }
        };
        if !loaded.is_initialised {
            initialise(&loaded.module.pkcs11, path)?;
            loaded.is_initialised = true;
        }
        Ok(Arc::clone(&loaded.module))
    }

    fn place(&self, path: &Path) -> Result<ModulePlace, ModuleFault> {
        if let Some(place) = self.places().get(path) {
            return Ok(Arc::clone(place));
        }
        // Out of the lock: a file system may hang.
        let file = fs::canonicalize(path).map_err(|error| ModuleFault::load(path, &error))?;
        let mut places = self.places();
        let place = Arc::clone(places.entry(file).or_default());
        places.insert(path.to_owned(), Arc::clone(&place));
        Ok(place)
    }

    fn places(&self) -> MutexGuard<'_, HashMap<PathBuf, ModulePlace>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The module at `path`, where it has been loaded and initialised.
    pub(super) fn loaded(&self, path: &Path) -> Option<Arc<OwnModule>> {
        let place = Arc::clone(self.places().get(path)?);
        // Whoever is loading it may hang there.
        let loaded = place.try_lock().ok()?;
        loaded.as_ref().filter(|loaded| loaded.is_initialised).map(|loaded| Arc::clone(&loaded.module))
    }

    /// Only a new process helps; true for whoever says so first.
    pub(super) fn note_stuck(&self) -> bool {
        !self.is_stuck.send_replace(true)
    }

    /// Returns once a module wants to be initialised anew, and a call in it does not return: the process is to end in order
    /// and be started again.
    pub async fn stuck(&self) {
        // The sender is ours, so that it is not gone.
        let _ = self.is_stuck.subscribe().wait_for(|is_stuck| *is_stuck).await;
    }
}

fn load(path: &Path) -> Result<OwnModule, ModuleFault> {
    let pkcs11 = Pkcs11::new(path).map_err(|error| ModuleFault::load(path, &error))?;
    let gcm = Gcm::load(path)?;
    Ok(OwnModule {
        pkcs11,
        gcm,
        gate: Gate::default(),
        serving: AtomicUsize::new(0),
        path: path.to_owned(),
        initialisations: Mutex::default(),
        under_way_since: Mutex::default(),
    })
}

fn initialise(pkcs11: &Pkcs11, path: &Path) -> Result<(), ModuleFault> {
    // QUIRK(softhsm): it locks only where it is told that it may use the system's locks.
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => {
            Err(ModuleFault::Initialize { path: path.to_owned(), code: ckr::name(ckr::code_of(&error)) })
        }
    }
}

/// Why a module is not usable.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ModuleFault {
    /// The system could not load it.
    #[error("cannot load the PKCS#11 module {}: {reason}", path.display())]
    Load {
        /// The module.
        path: PathBuf,
        /// What the system said.
        reason: Box<str>,
    },
    /// It is between C_Finalize and C_Initialize, or about to be.
    #[error("the PKCS#11 module {} is being initialised anew", .0.display())]
    BeingInitialised(PathBuf),
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
    /// There is no process for it.
    #[error("cannot start a helper process for the PKCS#11 module: {0}")]
    #[serde(skip)]
    Helper(std::io::ErrorKind),
    /// The process that should have loaded it is gone.
    #[error(
        "the helper process ended, or was killed, while it loaded the PKCS#11 module {}; standard error may say more",
        .0.display()
    )]
    HelperEnded(PathBuf),
}

impl ModuleFault {
    pub(super) fn load(path: &Path, reason: &dyn Display) -> Self {
        Self::Load { path: path.to_owned(), reason: reason.to_string().into() }
    }
}
