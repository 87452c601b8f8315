//! The PKCS#11 library: where it is installed, loading, finalising.

use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};

use crate::error::{Error, Result};

/// Where distributions install SoftHSM2's library.
pub const INSTALL_PATHS: [&str; 7] = [
    // Debian and Ubuntu on every architecture (softhsm2), Alpine
    "/usr/lib/softhsm/libsofthsm2.so",
    // Debian and Ubuntu, the library package alone
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    // Fedora, Red Hat
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    // Homebrew on Apple silicon
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    // Homebrew on Intel, and built from source
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The first of [`INSTALL_PATHS`] that exists.
///
/// # Errors
/// [`Error::NoModule`].
pub fn installed_module() -> Result<PathBuf> {
    INSTALL_PATHS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or(Error::NoModule)
}

/// A loaded and initialised PKCS#11 module; `C_Finalize` is called on drop.
#[derive(Debug)]
pub struct Module {
    pub(crate) pkcs11: Pkcs11,
}

impl Module {
    /// Loads the library and calls `C_Initialize`. SoftHSM2 reads its settings from the file that
    /// `SOFTHSM2_CONF` names at this moment.
    ///
    /// # Errors
    /// [`Error::Load`]; [`Error::Initialize`], also where this process has initialised the module already.
    pub fn load(path: &Path) -> Result<Self> {
        let pkcs11 = Pkcs11::new(path).map_err(|source| Error::Load { path: path.to_owned(), source })?;
        pkcs11
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .map_err(Error::Initialize)?;
        Ok(Self { pkcs11 })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // Nothing is left to do about a failure: the process is about to end or to load the module anew.
        let _ = self.pkcs11.clone().finalize();
    }
}
