//! A PKCS#11 module in a process of its own, for one token.
//!
//! The token's threads stay in the proxy and work as ever, with sessions that are in the helper: each session has a *line*, a
//! stream that carries one request and one reply at a time. So a call costs one message each way, no call is in another's
//! way, and a helper that is killed fails every call that is in it at once.
//!
//! One helper serves one connection to a token. Whatever ends the connection, the next one gets a new process: nothing that a
//! module has lost, leaked or left half done outlives it, and C_Finalize is never needed.

mod helper;
mod serve;
mod wire;

use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::module::ModuleFault;
use super::settings::TokenSettings;

use helper::Helper;
pub use serve::serve_as_helper;

/// The subcommand that a helper is started with.
pub const COMMAND: &str = "hsm-helper";

/// The place of the one helper that a token has at a time.
#[derive(Default)]
pub(super) struct HelperPlace(Mutex<Place>);

#[derive(Default)]
struct Place {
    helper: Option<Arc<Helper>>,
    has_had_one: bool,
}

impl HelperPlace {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a helper in place of the one before and has it load the token's module; `on_restart` is told where it is not
    /// the first.
    pub(super) fn start(
        &self,
        settings: &TokenSettings,
        on_restart: impl FnOnce(),
    ) -> Result<Arc<Helper>, ModuleFault> {
        let helper = Helper::start(settings).map_err(|error| ModuleFault::Helper(error.kind()))?;
        let helper = Arc::new(helper);
        let mut place = self.place();
        let before = place.helper.replace(Arc::clone(&helper));
        if std::mem::replace(&mut place.has_had_one, true) {
            on_restart();
        }
        drop(place);
        end(before);
        // It can be killed already: loading may hang.
        helper.load(settings)?;
        Ok(helper)
    }

    /// Ends the helper if there is one; true where there was.
    pub(super) fn kill(&self) -> bool {
        let helper = self.place().helper.take();
        end(helper)
    }

    /// When the helper was started.
    pub(super) fn started_at(&self) -> Option<Instant> {
        self.place().helper.as_ref().map(|helper| helper.started_at)
    }

    /// How much memory the helper has in RAM, now and then.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        let helper = self.place().helper.clone();
        helper?.resident_bytes()
    }

    /// How the helper has ended, if it has: told once.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        let mut place = self.place();
        let status = place.helper.as_ref()?.ended()?;
        let helper = place.helper.take();
        drop(place);
        end(helper);
        Some(status)
    }
}

/// Others may still hold the helper, which is waited for once they let go.
fn end(helper: Option<Arc<Helper>>) -> bool {
    helper.inspect(|helper| helper.kill()).is_some()
}
