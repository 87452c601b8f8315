//! When a keeper has its module finalised and initialised anew: where reconnecting alone does not bring the token back.

use std::sync::Arc;
use std::time::Instant;

use cryptoki::error::RvError;

use super::ckr;
use super::connection::ConnectionFault;
use super::gate::Generation;
use super::module::{ModuleFault, Modules, OwnModule, Reinitialised};
use super::probe::Term;
use super::profiles::Profile;
use super::shared::Shared;
use super::threads::KEEPER_PATIENCE;
use crate::clock;

/// Failures in a row before a token that may need it is taken to need its module initialised anew.
const FAILURES: u32 = 3;

/// What a keeper has seen since its token was last usable.
#[derive(Default)]
pub(super) struct Recovery {
    /// The module before the last try to connect.
    seen: Option<(Arc<OwnModule>, Generation)>,
    profile: Option<&'static Profile>,
    /// Failures in a row that were the token's, or the module's, as a whole.
    failures: u32,
    lost_since: Option<Instant>,
    /// The module says itself that it is not initialised.
    is_uninitialised: bool,
}

impl Recovery {
    /// A try to connect begins.
    pub(super) fn begin(&mut self, module: Option<Arc<OwnModule>>) {
        let now = module.map(|module| {
            let generation = module.gate.generation();
            (module, generation)
        });
        let generation = |seen: &Option<(Arc<OwnModule>, Generation)>| seen.as_ref().map(|(_, g)| *g);
        if generation(&now) != generation(&self.seen) {
            self.failures = 0;
            self.is_uninitialised = false;
        }
        self.seen = now;
    }

    /// There was no connection.
    pub(super) fn note_fault(&mut self, fault: &ConnectionFault) {
        self.lost_since.get_or_insert_with(clock::now);
        match fault {
            ConnectionFault::Call { code, .. } if *code == ckr::name(RvError::CryptokiNotInitialized) => {
                self.is_uninitialised = true;
            }
            // The token took the trouble to answer.
            ConnectionFault::Call { call: "C_Login", .. } => self.failures = 0,
            ConnectionFault::Call { .. } | ConnectionFault::NoToken { .. } => self.failures += 1,
            ConnectionFault::Module(ModuleFault::BeingInitialised(_)) => {}
            _ => self.failures = 0,
        }
    }

    /// A connection has ended. `looks_dead`: its token was out of order as a whole.
    pub(super) fn note_end(&mut self, profile: &'static Profile, has_worked: bool, looks_dead: bool) {
        self.profile = Some(profile);
        if has_worked {
            self.failures = 0;
            self.lost_since = None;
        } else if looks_dead {
            self.failures += 1;
        }
        self.lost_since.get_or_insert_with(clock::now);
    }

    fn is_wanted(&self, shared: &Shared) -> bool {
        // Of a token that was never reached nothing is known but what the configuration says.
        let stated = || Some(Profile::of_manufacturer(&shared.identity.load().as_ref()?.manufacturer));
        let profile = self.profile.or(shared.settings.profile).or_else(stated);
        let needs_it = profile.is_some_and(|profile| profile.needs_reinitialisation.value);
        self.is_uninitialised || needs_it && self.failures >= FAILURES
    }

    /// Has the module initialised anew, if that is what it takes and nobody has seen to it.
    pub(super) fn help(&mut self, shared: &Shared, term: Term, modules: &Modules) {
        let Some((module, generation)) = &self.seen else { return };
        let token = &shared.settings.name;
        let patience = shared.settings.probe_interval * KEEPER_PATIENCE;
        if module.hangs_for(patience) {
            give_up(shared, modules);
        }
        if !self.is_wanted(shared) {
            return;
        }
        let lost_for = self.lost_since.map(|since| since.elapsed()).unwrap_or_default();
        let on_entry = || shared.probe.enter(term);
        match module.reinitialise(*generation, lost_for, patience, on_entry) {
            Reinitialised::Done => {
                tracing::info!(%token, "the module was initialised anew, for reconnecting did not bring the token back");
            }
            Reinitialised::ByAnother | Reinitialised::Later => {}
            Reinitialised::Failed(fault) => tracing::error!(%token, %fault, "the token is not usable"),
            Reinitialised::Stuck => give_up(shared, modules),
        }
    }
}

/// C_Finalize beside a thread that is inside would pull the ground from under it, and a call cannot be cancelled.
fn give_up(shared: &Shared, modules: &Modules) {
    if modules.note_stuck() {
        tracing::error!(
            token = %shared.settings.name,
            "the token comes back only after C_Finalize, and a call that does not return is inside the module: the process \
             ends in order, to be started again"
        );
    }
}
