//! When a keeper has its module finalised and initialised anew: where reconnecting alone does not bring the token back.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
/// How long a token that is lost waits for others of its module that serve: C_Finalize takes those down too. It doubles with
/// each time that it has, up to [`MAX_PATIENCE_WITH_OTHERS`].
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(60);
/// Longest time that it waits for them.
const MAX_PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(3600);
/// How long those inside have to leave while another token of the module serves.
const PATIENCE_BESIDE_OTHERS: Duration = Duration::from_secs(1);

/// What a keeper has seen since its token was last usable.
#[derive(Default)]
pub(super) struct Recovery {
    /// The module before the last try to connect.
    seen: Option<(Arc<OwnModule>, Generation)>,
    profile: Option<&'static Profile>,
    /// Failures in a row that were the token's, or the module's, as a whole.
    failures: u32,
    loss: Loss,
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
            self.loss.begin_anew(clock::now());
        }
        self.seen = now;
    }

    /// There was no connection.
    pub(super) fn note_fault(&mut self, fault: &ConnectionFault) {
        self.loss.begin(clock::now());
        match fault {
            ConnectionFault::Call { code, .. } if *code == ckr::name(RvError::CryptokiNotInitialized) => {
                self.is_uninitialised = true;
            }
            // The token took the trouble to answer, unless that is all that it says.
            ConnectionFault::Call { call: "C_Login", code } if !ckr::names_whole_token(code) => {
                self.failures = 0;
            }
            ConnectionFault::Call { .. } | ConnectionFault::NoToken { .. } => self.failures += 1,
            ConnectionFault::Module(ModuleFault::BeingInitialised(_)) => {}
            _ => self.failures = 0,
        }
    }

    /// A connection has ended that served for so long, if it did. `looks_dead`: its token was out of order as a whole.
    pub(super) fn note_end(
        &mut self,
        profile: &'static Profile,
        served_for: Option<Duration>,
        looks_dead: bool,
    ) {
        self.profile = Some(profile);
        if let Some(served_for) = served_for {
            self.failures = 0;
            self.loss.note_service(served_for);
        } else if looks_dead {
            self.failures += 1;
        }
        self.loss.begin(clock::now());
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
        // What a keeper that was stuck has left in place is the token's own connection, and no other: it counts while it serves.
        let is_left_over = shared.connection.load().is_some() && !shared.is_serving(PATIENCE_WITH_OTHERS);
        let others_serve = module.serving() > usize::from(is_left_over);
        if others_serve && !self.loss.is_worth_others(clock::now()) {
            return;
        }
        let patience = if others_serve { PATIENCE_BESIDE_OTHERS } else { patience };
        let on_entry = || shared.probe.enter(term);
        match module.reinitialise(*generation, patience, on_entry) {
            Reinitialised::ByAnother | Reinitialised::Later => return,
            Reinitialised::Done => {
                tracing::info!(%token, "the module was initialised anew, for reconnecting did not bring the token back");
            }
            Reinitialised::Failed(fault) => tracing::error!(%token, %fault, "the token is not usable"),
            // Whoever is inside may be of those that serve.
            Reinitialised::Occupied if others_serve => {}
            Reinitialised::Occupied => give_up(shared, modules),
        }
        if others_serve {
            self.loss.note_cost(clock::now());
        }
    }
}

/// For how long a token has been lost, and what that has cost others of its module.
#[derive(Default)]
struct Loss {
    since: Option<Instant>,
    /// Times that those that serve were disturbed for it since it last served.
    disturbances: u32,
}

impl Loss {
    /// It is lost, if it was not before.
    fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Its module has been initialised anew: what that helps is yet to be seen.
    fn begin_anew(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
    }

    /// It has served for so long. A token that comes for a moment and goes is as good as lost all the time.
    fn note_service(&mut self, served_for: Duration) {
        self.since = None;
        if served_for >= PATIENCE_WITH_OTHERS {
            self.disturbances = 0;
        }
    }

    /// Others were disturbed for it.
    fn note_cost(&mut self, now: Instant) {
        self.begin_anew(now);
        self.disturbances = self.disturbances.saturating_add(1);
    }

    /// Whether others may be disturbed for it.
    fn is_worth_others(&self, now: Instant) -> bool {
        let doubled =
            2_u32.checked_pow(self.disturbances).and_then(|factor| PATIENCE_WITH_OTHERS.checked_mul(factor));
        let patience = doubled.unwrap_or(MAX_PATIENCE_WITH_OTHERS).min(MAX_PATIENCE_WITH_OTHERS);
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn others_are_disturbed_less_and_less_often_for_a_token_that_stays_away() {
        let begun = clock::now();
        let mut loss = Loss::default();
        loss.begin(begun);
        let mut disturbed = Vec::new();
        for second in 0..24 * 3600_u32 {
            let now = begun + second * SECOND;
            // Each try to connect that fails.
            loss.begin(now);
            if loss.is_worth_others(now) {
                disturbed.push(second);
                loss.note_cost(now);
                // Its keeper sees the new generation next.
                loss.begin_anew(now + SECOND);
            }
        }
        let pauses: Vec<_> = disturbed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(disturbed[0], 60);
        assert_eq!(&pauses[..7], &[121, 241, 481, 961, 1921, 3601, 3601]);
        assert!(pauses[7..].iter().all(|pause| *pause == 3601), "{pauses:?}");
    }

    #[test]
    fn a_token_that_has_served_for_a_while_is_worth_others_as_before() {
        let now = clock::now();
        for (served_for, is_worth) in [(2 * PATIENCE_WITH_OTHERS, true), (SECOND, false)] {
            let mut loss = Loss::default();
            loss.begin(now);
            loss.note_cost(now);
            loss.note_service(served_for);
            loss.begin(now);
            assert!(!loss.is_worth_others(now + PATIENCE_WITH_OTHERS - SECOND));
            assert_eq!(loss.is_worth_others(now + PATIENCE_WITH_OTHERS), is_worth);
            assert!(loss.is_worth_others(now + 2 * PATIENCE_WITH_OTHERS));
        }
    }

    #[test]
    fn an_initialisation_that_another_token_wanted_begins_the_waiting_anew() {
        let now = clock::now();
        let mut loss = Loss::default();
        loss.begin_anew(now);
        assert!(!loss.is_worth_others(now + MAX_PATIENCE_WITH_OTHERS), "it is not lost");
        loss.begin(now);
        loss.begin_anew(now + 59 * SECOND);
        assert!(!loss.is_worth_others(now + PATIENCE_WITH_OTHERS));
        assert!(loss.is_worth_others(now + 59 * SECOND + PATIENCE_WITH_OTHERS));
    }
}
