//! Never locks a PIN: none is given to a token that refused it, nor to a token that is close to locking.
//!
//! Every login of every command passes here. What a token has refused is remembered in the state directory, so that a
//! restart does not try it again, and neither does another command; without a directory, for as long as the process lives.
//! The token's own flags (PKCS#11 2.40, CK_TOKEN_INFO) are obeyed besides: somebody else may be using tries up.

mod record;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::settings::{ForceLogin, TokenSettings, UserType};
use crate::secret::Secret;
use record::{Derivation, Folder, Lock, Record};

/// Whose login it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LoginId {
    module: PathBuf,
    token_serial: Box<str>,
    user_type: UserType,
}

/// How near the token says it is to locking the PIN, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PinFlag {
    /// No PIN will do any more.
    Locked,
    /// One more wrong PIN locks it.
    FinalTry,
    /// A wrong PIN was given since the last right one.
    CountLow,
}

impl PinFlag {
    /// The worst of those that are set: locked, final try, count low.
    pub(super) fn of(is_set: [bool; 3]) -> Option<Self> {
        let flags = is_set.into_iter().zip([Self::Locked, Self::FinalTry, Self::CountLow]);
        flags.into_iter().find_map(|(is_set, flag)| is_set.then_some(flag))
    }
}

impl fmt::Display for PinFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Locked => "the PIN is locked (CKF_…_PIN_LOCKED): have the token's officer unlock it",
            Self::FinalTry => {
                "one more wrong PIN locks it (CKF_…_PIN_FINAL_TRY): make sure that the PIN is right"
            }
            Self::CountLow => {
                "somebody gave it a wrong PIN (CKF_…_PIN_COUNT_LOW), and it was not this proxy: find out who"
            }
        })
    }
}

/// Why a PIN is not given to the token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PinFault {
    /// The token has refused it.
    #[error(
        "the token refused the PIN with {0}; it is not tried again until the PIN's content changes. If it is right after all, \
         `xks-proxy check --force-login` tries it once more"
    )]
    Refused(Box<str>),
    /// A wrong PIN might lock the token.
    #[error(
        "the PIN is not tried, for the token says that {0}; then `xks-proxy check --force-login` tries the PIN once"
    )]
    AtRisk(PinFlag),
    /// What was refused cannot be known, or could not be remembered.
    #[error(
        "the PIN is not tried, for what the token refuses could not be remembered: {action} {}: {reason}",
        path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        reason: std::io::ErrorKind,
    },
    /// What was refused cannot be read.
    #[error(
        "the PIN is not tried, for {} is not a record of refused PINs: restore it, or if the PIN is right remove it",
        .0.display()
    )]
    Damaged(PathBuf),
}

/// PINs that tokens have refused this process, and the derivations that tell them.
#[derive(Default)]
pub(super) struct PinGuard {
    logins: Mutex<HashMap<LoginId, Known>>,
}

/// What this process knows of one login.
#[derive(Default)]
struct Known {
    /// PINs that were refused, with the return code.
    refused: Vec<(Secret, Box<str>)>,
    /// The last derivation, which took its time.
    derivation: Option<(Secret, Derivation)>,
}

impl Known {
    fn code_of(&self, pin: &Secret) -> Option<&str> {
        self.refused.iter().find(|(refused, _)| refused == pin).map(|(_, code)| &**code)
    }
}

impl PinGuard {
    fn logins(&self) -> MutexGuard<'_, HashMap<LoginId, Known>> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Permits to give `pin` to the token, or says why not. `flag` is read once no other login to the token is under way.
    pub(super) fn permit(
        &self,
        settings: &TokenSettings,
        serial: &str,
        pin: &Secret,
        flag: impl FnOnce() -> Option<PinFlag>,
    ) -> Result<Attempt<'_>, PinFault> {
        let id = LoginId {
            module: settings.module.clone(),
            token_serial: serial.into(),
            user_type: settings.user_type,
        };
        // What a person has forced once is not forced again by whoever tries anew in the same process.
        let forces_refused =
            settings.force_login == ForceLogin::Everything && self.refused_here(&id, pin).is_none();
        let disk = match &settings.state_dir {
            None => None,
            Some(dir) => match Disk::open(dir, &id) {
                Err(_) if forces_refused => None,
                opened => Some(opened?),
            },
        };
        let refusals = match &disk {
            Some(disk) => match disk.folder.read(&id) {
                Err(_) if forces_refused => None,
                read => read?,
            },
            None => None,
        };
        let derivation = disk.is_some().then(|| self.derive(&id, pin, refusals.as_ref()));
        let (is_refused, was_any_refused) = match (&disk, &derivation) {
            (Some(_), Some(derivation)) => {
                let code = refusals.as_ref().and_then(|record| record.code_of(derivation));
                (code.map(Into::into), refusals.is_some())
            }
            _ => (self.refused_here(&id, pin), self.was_any_refused_here(&id)),
        };
        let overrides = |what: &dyn fmt::Display| {
            tracing::warn!(token = %settings.name, overridden = %what, "a login is forced (--force-login)");
        };
        if let Some(code) = is_refused {
            if !forces_refused {
                return Err(PinFault::Refused(code));
            }
            overrides(&code);
        }
        match flag() {
            None => {}
            // The wrong one was ours, and this is another.
            Some(PinFlag::CountLow) if was_any_refused => {}
            Some(flag) if settings.force_login == ForceLogin::No => return Err(PinFault::AtRisk(flag)),
            Some(flag) => overrides(&flag),
        }
        let prepared = match (disk, derivation) {
            (Some(disk), Some(derivation)) => {
                let record = Record::with(refusals, &id, &derivation);
                // What could not be written afterwards must not be tried.
                match disk.folder.prepare(&id, &record) {
                    Err(_) if forces_refused => None,
                    done => {
                        done?;
                        Some((disk, record))
                    }
                }
            }
            _ => None,
        };
        Ok(Attempt { guard: self, id, pin: pin.clone(), prepared })
    }

    /// The PIN's derivation: with the salt of the record, or else with that of the last time.
    fn derive(&self, id: &LoginId, pin: &Secret, record: Option<&Record>) -> Derivation {
        let last = self.logins().get(id).and_then(|known| known.derivation.clone());
        let still_holds = |(derived, derivation): &(Secret, Derivation)| {
            derived == pin && record.is_none_or(|record| record.has_salt_of(derivation))
        };
        if let Some((_, derivation)) = last.filter(still_holds) {
            return derivation;
        }
        // Out of the lock: it takes a while, and other tokens have nothing to do with it.
        let derivation = record.map_or_else(|| Derivation::with_new_salt(pin), |record| record.derive(pin));
        self.logins().entry(id.clone()).or_default().derivation = Some((pin.clone(), derivation.clone()));
        derivation
    }

    fn refused_here(&self, id: &LoginId, pin: &Secret) -> Option<Box<str>> {
        self.logins().get(id)?.code_of(pin).map(Into::into)
    }

    fn was_any_refused_here(&self, id: &LoginId) -> bool {
        self.logins().get(id).is_some_and(|known| !known.refused.is_empty())
    }
}

/// The state directory, and the right to log in to one token.
struct Disk {
    folder: Folder,
    _lock: Lock,
}

impl Disk {
    fn open(state_dir: &std::path::Path, id: &LoginId) -> Result<Self, PinFault> {
        let folder = Folder::open(state_dir)?;
        let lock = folder.lock(id)?;
        Ok(Self { folder, _lock: lock })
    }
}

/// A login that may be tried. Where it ends in neither way, nothing has been learned of the PIN.
#[must_use]
pub(super) struct Attempt<'g> {
    guard: &'g PinGuard,
    id: LoginId,
    pin: Secret,
    /// The record that says that the PIN was refused, written and not yet in its place.
    prepared: Option<(Disk, Record)>,
}

impl Attempt<'_> {
    /// The token took the PIN: with that it has forgotten the wrong ones too.
    pub(super) fn accepted(mut self) {
        if let Some(known) = self.guard.logins().get_mut(&self.id) {
            known.refused.clear();
        }
        if let Some((disk, _)) = self.prepared.take() {
            disk.folder.forget(&self.id);
        }
    }

    /// The token refused the PIN. Should the record fail now, this process still knows.
    pub(super) fn refused(mut self, code: &str) -> PinFault {
        let mut logins = self.guard.logins();
        let known = logins.entry(self.id.clone()).or_default();
        if known.code_of(&self.pin).is_none() {
            known.refused.push((self.pin.clone(), code.into()));
        }
        drop(logins);
        if let Some((disk, record)) = self.prepared.take()
            && let Err(fault) = disk.folder.commit(&self.id, record, code)
        {
            tracing::error!(%fault, "a refused PIN may be tried again after a restart");
        }
        PinFault::Refused(code.into())
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some((disk, _)) = &self.prepared {
            disk.folder.discard(&self.id);
        }
    }
}

#[cfg(test)]
mod tests;
