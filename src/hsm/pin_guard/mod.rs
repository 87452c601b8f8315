//! Never locks a PIN: none is given to a token that refused it, nor to a token that is close to locking.
//!
//! Every login of every command passes here, one at a time. What a token has refused is remembered in the state directory, so
//! that a restart does not try it again, and neither does another command; without a directory, for as long as the process
//! lives. A login counts as one that was never answered from before it begins: whatever ends the process, it was.
//! The token's own flags (PKCS#11 2.40, CK_TOKEN_INFO) are obeyed besides: somebody else may be using tries up.

mod record;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::settings::{ForceLogin, TokenSettings, UserType};
use crate::clock;
use crate::secret::Secret;
use record::{Derivation, Folder, Lock, Record};

/// Logins with one PIN that may end without an answer, by which the token may have meant a refusal.
const MAX_UNANSWERED: u32 = 2;
/// How long a login of another thread or process is waited for.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Whose login it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LoginId {
    module: PathBuf,
    token_serial: Box<str>,
    user_type: UserType,
}

impl LoginId {
    fn new(settings: &TokenSettings, serial: &str) -> Self {
        let TokenSettings { module, user_type, .. } = settings;
        // One module is one, whatever links lead to it.
        let module = fs::canonicalize(module).unwrap_or_else(|_| module.clone());
        Self { module, token_serial: serial.into(), user_type: *user_type }
    }
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
    /// The token was given it, and its answers were never learnt.
    #[error(
        "the PIN is not tried, for what the token said of it was never learnt (logins without an answer: {0}), and may have been \
         a refusal; it is not tried again until the PIN's content changes. If it is right, `xks-proxy check --force-login` \
         tries it once more"
    )]
    Unanswered(u32),
    /// Somebody else is at it.
    #[error(
        "the PIN is not tried beside another login to the token that is under way, of this process or another, or that does \
         not return"
    )]
    UnderWay,
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
    is_under_way: bool,
    /// PINs that this process has tried, but for those after which there was nothing to remember.
    tried: Vec<(Secret, Past)>,
    /// The PIN that the token took last. Only here: what is on the disk tells nothing of PINs that are right.
    taken: Option<Secret>,
    /// The last derivation, which took its time.
    derivation: Option<(Secret, Derivation)>,
}

impl Known {
    fn past_of(&self, pin: &Secret) -> Option<&Past> {
        self.tried.iter().find(|(tried, _)| tried == pin).map(|(_, past)| past)
    }

    /// `None` where nothing is to be remembered of it.
    fn set_past(&mut self, pin: &Secret, past: Option<Past>) {
        self.tried.retain(|(tried, _)| tried != pin);
        self.tried.extend(past.map(|past| (pin.clone(), past)));
    }
}

/// What came of the logins with one PIN.
#[derive(Clone, Default)]
struct Past {
    /// What the token said when it refused it.
    code: Option<Box<str>>,
    /// Logins that have begun, and of which no answer was learnt.
    unanswered: u32,
}

impl Past {
    /// Why it is not tried again.
    fn fault(&self) -> Option<PinFault> {
        let unanswered =
            || (self.unanswered >= MAX_UNANSWERED).then_some(PinFault::Unanswered(self.unanswered));
        self.code.clone().map(PinFault::Refused).or_else(unanswered)
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
        let until = clock::now() + TURN_PATIENCE;
        let turn = self.take_turn(LoginId::new(settings, serial), until)?;
        let id = &turn.id;
        let (tried_here, was_another_tried_here) = self.tried_here(id, pin);
        // What a person has forced once is not forced again by whoever tries anew in the same process.
        let forces_refused = settings.force_login == ForceLogin::Everything && tried_here.is_none();
        let disk = match &settings.state_dir {
            None => None,
            Some(dir) => match Disk::open(dir, id, until) {
                Err(fault) if forces_refused && fault != PinFault::UnderWay => None,
                opened => Some(opened?),
            },
        };
        let before = match &disk {
            Some(disk) => match disk.folder.read(id) {
                Err(_) if forces_refused => None,
                read => read?,
            },
            None => None,
        };
        let derivation = disk.is_some().then(|| self.derive(id, pin, before.as_ref()));
        let (past, was_another_tried) = match &derivation {
            Some(derivation) => {
                let mut past = before.as_ref().and_then(|record| record.past_of(derivation));
                // A refusal that could not be written, of a login that could: unless the token has taken a PIN since.
                if let (Some(past), Some(here)) = (&mut past, &tried_here) {
                    past.code = past.code.take().or_else(|| here.code.clone());
                }
                (past, before.as_ref().is_some_and(|record| record.has_other_than(derivation)))
            }
            None => (tried_here.clone(), was_another_tried_here),
        };
        let overrides = |what: &dyn fmt::Display| {
            tracing::warn!(token = %settings.name, overridden = %what, "a login is forced (--force-login)");
        };
        // A PIN that this process has logged in with is right: an HSM that hangs for long must not cost it.
        let is_right = |fault: &PinFault| matches!(fault, PinFault::Unanswered(_)) && self.has_taken(id, pin);
        if let Some(fault) = past.as_ref().and_then(Past::fault).filter(|fault| !is_right(fault)) {
            if !forces_refused {
                return Err(fault);
            }
            overrides(&fault);
        }
        match (flag(), &past) {
            (None, _) => {}
            // The wrong one was ours, and this is another.
            (Some(PinFlag::CountLow), None) if was_another_tried => {}
            // The wrong one may have been this one.
            (Some(PinFlag::CountLow), Some(past)) if settings.force_login == ForceLogin::No => {
                return Err(PinFault::Unanswered(past.unanswered));
            }
            (Some(flag), _) if settings.force_login == ForceLogin::No => return Err(PinFault::AtRisk(flag)),
            (Some(flag), _) => overrides(&flag),
        }
        let on_disk = match (disk, derivation) {
            (Some(disk), Some(derivation)) => {
                let now = Record::with(before.as_ref(), id, &derivation);
                // What cannot be remembered must not be tried.
                match disk.folder.put(id, &now) {
                    Err(_) if forces_refused => None,
                    done => done.map(|()| Some(OnDisk { disk, before, now }))?,
                }
            }
            _ => None,
        };
        let mut begun = tried_here.clone().unwrap_or_default();
        begun.unanswered = begun.unanswered.saturating_add(1);
        self.logins().entry(id.clone()).or_default().set_past(pin, Some(begun));
        Ok(Attempt { turn, pin: pin.clone(), before: tried_here, on_disk })
    }

    /// Waits until then for other logins of this process to that token.
    fn take_turn(&self, id: LoginId, until: Instant) -> Result<Turn<'_>, PinFault> {
        while std::mem::replace(&mut self.logins().entry(id.clone()).or_default().is_under_way, true) {
            if clock::now() >= until {
                return Err(PinFault::UnderWay);
            }
            std::thread::sleep(LOOK);
        }
        Ok(Turn { guard: self, id })
    }

    /// What came of the PIN in this process, and whether it has tried another.
    fn tried_here(&self, id: &LoginId, pin: &Secret) -> (Option<Past>, bool) {
        self.logins().get(id).map_or((None, false), |known| {
            (known.past_of(pin).cloned(), known.tried.iter().any(|(tried, _)| tried != pin))
        })
    }

    /// Whether it is the PIN that the token last took from this process.
    fn has_taken(&self, id: &LoginId, pin: &Secret) -> bool {
        self.logins().get(id).is_some_and(|known| known.taken.as_ref() == Some(pin))
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
}

/// The right to log in to a token, in this process.
struct Turn<'g> {
    guard: &'g PinGuard,
    id: LoginId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.guard.logins().get_mut(&self.id) {
            known.is_under_way = false;
        }
    }
}

/// The state directory, and the right to log in to one token.
struct Disk {
    folder: Folder,
    _lock: Lock,
}

impl Disk {
    fn open(state_dir: &Path, id: &LoginId, until: Instant) -> Result<Self, PinFault> {
        let folder = Folder::open(state_dir)?;
        let lock = folder.lock(id, until)?;
        Ok(Self { folder, _lock: lock })
    }
}

/// The record of a login: as it was, and as it is now, in its place.
struct OnDisk {
    disk: Disk,
    before: Option<Record>,
    now: Record,
}

/// A login that may be tried. Where none of its ends is told, the token's answer was never learnt, and that is remembered.
#[must_use]
pub(super) struct Attempt<'g> {
    turn: Turn<'g>,
    pin: Secret,
    /// What this process knew of the PIN.
    before: Option<Past>,
    on_disk: Option<OnDisk>,
}

impl Attempt<'_> {
    fn note(&self, change: impl FnOnce(&mut Known)) {
        change(self.turn.guard.logins().entry(self.turn.id.clone()).or_default());
    }

    /// The token took the PIN: with that it has forgotten the wrong ones too.
    pub(super) fn accepted(self) {
        self.note(|known| {
            known.tried.clear();
            known.taken = Some(self.pin.clone());
        });
        if let Some(OnDisk { disk, .. }) = &self.on_disk {
            disk.folder.forget(&self.turn.id);
        }
    }

    /// The token refused the PIN. Should the record fail now, this process still knows.
    pub(super) fn refused(mut self, code: &str) -> PinFault {
        let past = Past { code: Some(code.into()), unanswered: 0 };
        self.note(|known| {
            known.set_past(&self.pin, Some(past));
            known.taken = None;
        });
        if let Some(OnDisk { disk, mut now, .. }) = self.on_disk.take() {
            now.refuse_last(code);
            if let Err(fault) = disk.folder.put(&self.turn.id, &now) {
                tracing::error!(%fault, "a refused PIN may be tried again after a restart");
            }
        }
        PinFault::Refused(code.into())
    }

    /// The token answered, and not of the PIN: all is as before.
    pub(super) fn not_judged(mut self) {
        self.note(|known| known.set_past(&self.pin, self.before.clone()));
        match self.on_disk.take() {
            Some(OnDisk { disk, before: None, .. }) => disk.folder.forget(&self.turn.id),
            // Where it fails, this login counts as unanswered, which keeps the PIN back sooner.
            Some(OnDisk { disk, before: Some(before), .. }) => drop(disk.folder.put(&self.turn.id, &before)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
