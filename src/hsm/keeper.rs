//! The thread that keeps a token usable: connects, probes, indexes keys, searches for keys that the index lacks, and
//! connects anew when the token is lost. It has a session of its own, so that none of this is in a request's way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::ckr::{self, Meaning};
use super::connection::{Connection, ConnectionFault, connect};
use super::gate::Shut;
use super::keys::{Enumeration, KeyEntry, SearchFault};
use super::module::Modules;
use super::probe::{self, ProbeFault, ProbeKey, Term};
use super::recovery::Recovery;
use super::session::{Module, Session};
use super::shared::Shared;
use super::{HealthStatus, HsmError, KeyLocator};
use crate::clock;

/// How long keys are read between two looks at the messages, unless searches take longer: indexing gets half of the time.
const STEP: Duration = Duration::from_millis(5);
/// Time between enumerations that doubts about handles have caused.
const MIN_REINDEX_INTERVAL: Duration = Duration::from_secs(1);
/// Probes in a row that find the token out of order as a whole before one that may need its module initialised anew is taken
/// to be lost.
const DEAD_PROBES: u32 = 3;
/// First pause before connecting anew; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause before connecting anew.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Pause before another try to pass a module's door that is closed.
const DOOR_PAUSE: Duration = Duration::from_millis(10);

/// What the keeper is asked.
pub(super) enum Message {
    /// Search a key that the index does not hold; `searches` of [`Shared`] has who waits.
    Search(KeyLocator),
    /// Make the index anew.
    Reindex,
    /// Probe at once.
    Probe,
    /// Look at what has changed.
    Wake,
    /// End.
    Stop,
}

/// The keeper's life: ends with [`Message::Stop`], or when it finds itself replaced.
pub(super) fn run(shared: &Shared, term: Term, modules: &Modules, messages: &flume::Receiver<Message>) {
    let mut pause = Duration::ZERO;
    let mut recovery = Recovery::default();
    // What a keeper before was stuck in ends with nobody: whoever asks next has it begun anew.
    shared.searches.end_all(&shared.unavailable());
    loop {
        // A helper is never initialised anew: the next connection has another.
        let in_process = shared.helper.is_none().then(|| modules.loaded(&shared.settings.module));
        recovery.begin(in_process.flatten());
        shared.probe.enter(term);
        let connected = load(shared, modules).and_then(|module| {
            // A connection is in place where one of two keepers was stuck: it is of the login before.
            let on_new_login = || shared.lose_current(Meaning::LoginLost);
            connect(&shared.login_settings(), module, shared.next_epoch(), &modules.pin_guard, on_new_login)
        });
        if !shared.probe.is_current(term) {
            return;
        }
        match connected {
            Ok((connection, session)) => {
                let began_at = clock::now();
                let connection = Arc::new(connection);
                let Ok(ended) = serve(shared, term, &connection, &*session, messages) else { return };
                let has_worked = ended.has_worked;
                shared.disconnect(&connection);
                let served_for = has_worked.then(|| began_at.elapsed());
                recovery.note_end(connection.profile, served_for, ended.looks_dead);
                // What is closed in a helper that is gone hangs in nothing.
                shared.end_helper();
                shared.probe.enter(term);
                if connection.lost.get() == Some(&Meaning::TokenLost) {
                    session.forget();
                } else {
                    drop(session);
                }
                shared.probe.leave(term);
                if !shared.probe.is_current(term) {
                    return;
                }
                // One that does not last is not made again and again without a breath; one that never worked even less.
                if began_at.elapsed() > MAX_PAUSE {
                    pause = Duration::ZERO;
                } else if has_worked && shared.helper.is_none() {
                    pause = pause.min(FIRST_PAUSE);
                }
                if wait(shared, messages, pause).is_err() {
                    return;
                }
                pause = (2 * pause).clamp(FIRST_PAUSE, MAX_PAUSE);
            }
            Err(fault) => {
                report(shared, term, &fault);
                recovery.note_fault(&fault);
                pause = (2 * pause).clamp(FIRST_PAUSE, MAX_PAUSE);
                if wait(shared, messages, pause).is_err() {
                    return;
                }
            }
        }
        recovery.help(shared, term, modules);
        if !shared.probe.is_current(term) {
            return;
        }
    }
}

/// The module of the token, loaded and initialised.
fn load(shared: &Shared, modules: &Modules) -> Result<Arc<dyn Module>, ConnectionFault> {
    match &shared.helper {
        Some(helper) => Ok(helper.start(&shared.settings, || shared.metrics.helper_restarts.inc())?),
        None => Ok(Arc::new(modules.load(&shared.settings.module)?)),
    }
}

/// The token is being stopped, or the keeper has been replaced.
struct Stopped;

/// Answers messages while there is no connection.
fn wait(shared: &Shared, messages: &flume::Receiver<Message>, pause: Duration) -> Result<(), Stopped> {
    let until = clock::now() + pause;
    loop {
        if shared.is_let_go() {
            return Err(Stopped);
        }
        match messages.recv_deadline(until) {
            Ok(Message::Search(locator)) => shared.searches.end(&locator, &Err(shared.unavailable())),
            Ok(Message::Wake | Message::Reindex | Message::Probe) => {}
            Err(flume::RecvTimeoutError::Timeout) => return Ok(()),
            Ok(Message::Stop) | Err(flume::RecvTimeoutError::Disconnected) => return Err(Stopped),
        }
    }
}

fn report(shared: &Shared, term: Term, fault: &ConnectionFault) {
    let reason: Arc<str> = fault.to_string().into();
    let is_news = shared.set_unavailable(&reason);
    shared.probe.end(term, HealthStatus::Unavailable, Some(Arc::clone(&reason)));
    if is_news {
        tracing::error!(token = %shared.settings.name, %reason, "the token is not usable");
    }
}

/// How a connection ended.
struct Ended {
    has_worked: bool,
    /// The token was out of order as a whole.
    looks_dead: bool,
}

/// Serves one connection until it is lost. One whose ciphertexts are not proven to be good never
/// begins to.
fn serve(
    shared: &Shared,
    term: Term,
    connection: &Arc<Connection>,
    session: &dyn Session,
    messages: &flume::Receiver<Message>,
) -> Result<Ended, Stopped> {
    let mut keeper = Keeper::new(shared, term, connection, session);
    keeper.probe()?;
    if !keeper.may_serve || keeper.is_lost {
        return Ok(Ended { has_worked: false, looks_dead: keeper.looks_dead });
    }
    keeper.shared.connect(connection);
    while !keeper.is_lost && !shared.is_lost(connection.epoch) {
        keeper.inside_module(Keeper::index_step)?;
        match messages.recv_deadline(keeper.next_wake()) {
            // Nobody waits for it any more: it never reaches the token.
            Ok(Message::Search(locator)) if !shared.searches.is_awaited(&locator) => {}
            Ok(Message::Search(locator)) => {
                let found = keeper.inside_module(|keeper| keeper.search(&locator))?;
                let found = found.unwrap_or_else(|| Err(shared.unavailable()));
                shared.searches.end(&locator, &found);
            }
            Ok(Message::Reindex) => keeper.reindex_soon(),
            Ok(Message::Probe) => keeper.next_probe = clock::now(),
            Ok(Message::Wake) | Err(flume::RecvTimeoutError::Timeout) => {}
            Ok(Message::Stop) | Err(flume::RecvTimeoutError::Disconnected) => return Err(Stopped),
        }
        if clock::now() >= keeper.next_probe {
            keeper.probe()?;
        }
    }
    Ok(Ended { has_worked: true, looks_dead: keeper.looks_dead })
}

struct Keeper<'a> {
    shared: &'a Shared,
    term: Term,
    connection: &'a Connection,
    session: &'a dyn Session,
    next_probe: Instant,
    /// Pause before the next probe of a token that is asked no more, or that the last one found out of order.
    probe_pause: Duration,
    /// The probe under way had no key that it could probe with.
    is_blind: bool,
    /// When a token that is asked no more, and cannot be probed, is asked again.
    asked_again_at: Option<Instant>,
    next_enumeration: Instant,
    /// How long the last search took.
    last_search: Duration,
    enumeration: Option<Enumeration>,
    /// When the last enumeration began.
    indexed_at: Instant,
    probe_key: Option<ProbeKey>,
    has_warned: bool,
    /// Proven, or without a key to prove itself with where each key of a store shows that what it makes decrypts.
    may_serve: bool,
    is_lost: bool,
    /// Probes in a row that found the token out of order as a whole.
    dead_probes: u32,
    /// The probe under way did.
    looks_dead: bool,
}

impl<'a> Keeper<'a> {
    fn new(shared: &'a Shared, term: Term, connection: &'a Connection, session: &'a dyn Session) -> Self {
        let now = clock::now();
        shared.keys.clear(connection.epoch);
        Self {
            shared,
            term,
            connection,
            session,
            next_probe: now,
            probe_pause: FIRST_PAUSE,
            is_blind: false,
            asked_again_at: None,
            next_enumeration: now,
            last_search: Duration::ZERO,
            enumeration: None,
            indexed_at: now,
            probe_key: None,
            has_warned: false,
            may_serve: false,
            is_lost: false,
            dead_probes: 0,
            looks_dead: false,
        }
    }

    /// Makes the index anew, but not all the time.
    fn reindex_soon(&mut self) {
        if self.enumeration.is_none() {
            self.next_enumeration = self.next_enumeration.min(self.indexed_at + MIN_REINDEX_INTERVAL);
        }
    }

    /// Without a login a token shows no private object, and says nothing of it.
    fn is_logged_in(&mut self) -> bool {
        if self.shared.settings.pin.is_none() {
            return true;
        }
        let is_logged_in = self.session.is_logged_in();
        self.is_lost |= !is_logged_in;
        is_logged_in
    }

    fn next_wake(&self) -> Instant {
        if self.enumeration.is_some() { clock::now() } else { self.next_probe.min(self.next_enumeration) }
    }

    /// Does something that goes into the module, which may take for ever: whoever was replaced meanwhile stops. `None` where
    /// the module has been initialised anew, which ends the connection, or may be about to be.
    fn inside_module<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Result<Option<T>, Stopped> {
        self.shared.probe.enter(self.term);
        let connection = self.connection;
        let inside = connection.module.gate().enter_with(connection.generation);
        let shut = inside.as_ref().err().copied();
        let done = inside.is_ok().then(|| work(self));
        drop(inside);
        self.shared.probe.leave(self.term);
        match shut {
            None => {}
            Some(Shut::Closed) => std::thread::sleep(DOOR_PAUSE),
            Some(Shut::Changed) => {
                self.is_lost = true;
                let _ = connection.lost.set(Meaning::TokenLost);
            }
        }
        if self.shared.probe.is_current(self.term) { Ok(done) } else { Err(Stopped) }
    }

    fn probe(&mut self) -> Result<(), Stopped> {
        self.looks_dead = false;
        self.is_blind = false;
        let measured = self.inside_module(Self::measure)?;
        if measured.is_none() && !self.is_lost {
            // What the last one found holds until the door is open.
            self.next_probe = clock::now();
            return Ok(());
        }
        let being_initialised = || (HealthStatus::Unavailable, Some("the module is initialised anew".into()));
        let (mut status, reason) = measured.unwrap_or_else(being_initialised);
        self.dead_probes = if self.looks_dead { self.dead_probes + 1 } else { 0 };
        if self.dead_probes >= DEAD_PROBES && self.connection.profile.needs_reinitialisation.value {
            self.is_lost = true;
            let _ = self.connection.lost.set(Meaning::TokenLost);
        }
        let is_proven = self.connection.is_proven();
        self.may_serve |=
            is_proven || status == HealthStatus::Degraded && self.connection.iv_source.is_given();
        if !self.may_serve {
            // It does not serve before it has shown that what it encrypts decrypts.
            status = HealthStatus::Unavailable;
            let reason = reason.as_deref().unwrap_or("there is no key to probe with");
            if self.shared.set_unavailable(reason) {
                tracing::error!(token = %self.shared.settings.name, %reason, "the token is not usable");
            }
        } else if let Some(reason) = reason.as_ref().filter(|_| self.is_lost) {
            self.shared.set_unavailable(reason);
        }
        self.shared.probe.end(self.term, status, reason);
        self.next_probe = clock::now() + self.pause_after(status);
        Ok(())
    }

    /// When the next probe is due; has the token asked again where this one shows that it works.
    fn pause_after(&mut self, status: HealthStatus) -> Duration {
        let interval = self.shared.settings.probe_interval;
        if status == HealthStatus::Active {
            self.shared.close_breaker("a probe succeeded");
        }
        let is_out = self.shared.breaker.is_open();
        if !is_out && status != HealthStatus::Unavailable {
            self.probe_pause = FIRST_PAUSE;
            self.asked_again_at = None;
            return interval;
        }
        // Requests wait for this, or load balancers do: sooner than usual, but not all the time. What failed once may have
        // been busy.
        let pause = self.probe_pause;
        if !(is_out && self.may_serve && self.is_blind) {
            self.probe_pause = (2 * pause).min(MAX_PAUSE);
            return interval.min(pause);
        }
        // Only requests can tell whether it works again: at first soon, then less and less often.
        let now = clock::now();
        let again_at = *self.asked_again_at.get_or_insert(now + pause);
        if now < again_at {
            return interval.min(again_at - now);
        }
        self.shared.close_breaker("nothing can be probed");
        self.asked_again_at = None;
        self.probe_pause = (2 * pause).min(MAX_PAUSE);
        interval.max(pause)
    }

    fn measure(&mut self) -> (HealthStatus, Option<Arc<str>>) {
        // A session key is looked past at every probe, so that a health key made meanwhile is taken.
        if !matches!(self.probe_key, Some(ProbeKey::Token(_)))
            && let Some((status, reason)) = self.find_probe_key()
        {
            return (status, Some(reason));
        }
        let Some(key) = &self.probe_key else { return (HealthStatus::Degraded, None) };
        if !self.connection.is_proven() {
            return match probe::prove_and_probe(self.connection, self.session, key) {
                Ok(()) => {
                    self.connection.is_proven.store(true, Ordering::Release);
                    (HealthStatus::Active, None)
                }
                Err(fault) => {
                    let reason = probe::refusal(self.connection, self.session, key, fault);
                    self.fail(fault, reason)
                }
            };
        }
        let first = probe::probe(self.connection, self.session, key);
        // Judged only by two in a row.
        let second = first
            .is_err_and(ProbeFault::makes_bad_ciphertexts)
            .then(|| probe::probe(self.connection, self.session, key));
        let both = |is_so: fn(ProbeFault) -> bool| {
            first.is_err_and(is_so) && second.is_some_and(|second| second.is_err_and(is_so))
        };
        let encrypts_wrongly = both(ProbeFault::makes_bad_ciphertexts);
        let decrypts_wrongly = both(|fault| fault == ProbeFault::OtherPlaintext);
        self.connection.encrypts_wrongly.store(encrypts_wrongly, Ordering::Relaxed);
        self.connection.decrypts_wrongly.store(decrypts_wrongly, Ordering::Relaxed);
        match first {
            Ok(()) => (HealthStatus::Active, None),
            Err(fault) => {
                let reason: Arc<str> = format!("the health probe failed: {fault}").into();
                tracing::error!(token = %self.shared.settings.name, %reason, "the token failed its health probe");
                self.fail(fault, reason)
            }
        }
    }

    /// What a failed probe means for the token.
    fn fail(&mut self, fault: ProbeFault, reason: Arc<str>) -> (HealthStatus, Option<Arc<str>>) {
        let meaning = fault.meaning();
        self.looks_dead |= fault.is_about_the_whole_token();
        self.is_blind |= meaning == Meaning::KeyNotPermitted;
        self.shared.metrics.failed(meaning.label());
        let status = match meaning {
            Meaning::KeyGone | Meaning::KeyNotPermitted => {
                self.probe_key = None;
                HealthStatus::Degraded
            }
            Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost => {
                self.is_lost = true;
                let _ = self.connection.lost.set(meaning);
                HealthStatus::Unavailable
            }
            _ => {
                // The key may be gone, whatever the code says: it is searched anew.
                if matches!(self.probe_key, Some(ProbeKey::Token(_))) {
                    self.probe_key = None;
                }
                HealthStatus::Unavailable
            }
        };
        (status, Some(reason))
    }

    /// Finds or makes the key to probe with; the reason where neither can be.
    fn find_probe_key(&mut self) -> Option<(HealthStatus, Arc<str>)> {
        let label = &self.shared.settings.health_key_label;
        match super::keys::find_by_label(self.session, label) {
            Ok(Some(handle)) => {
                self.probe_key = Some(ProbeKey::Token(handle));
                return None;
            }
            Ok(None) if self.probe_key.is_some() => return None,
            Ok(None) => {}
            Err(code) => {
                self.note_failure("C_FindObjects", code);
                let reason = format!("the health key cannot be searched: {}", ckr::name(code));
                return Some((HealthStatus::Unavailable, reason.into()));
            }
        }
        match ProbeKey::make(self.session) {
            Ok(key) => {
                self.probe_key = Some(key);
                None
            }
            Err(code) => {
                self.is_blind = true;
                self.looks_dead |= ckr::is_about_the_whole_token(code);
                self.is_lost |= matches!(
                    ckr::meaning(code),
                    Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost
                );
                let reason: Arc<str> = format!(
                    "there is no health key and no session key can be made ({}): make an AES-256 key with the label \
                     {label:?} that may encrypt and decrypt, sensitive and not extractable, and map it to no external key",
                    ckr::name(code)
                )
                .into();
                // While the token stays out for it, that is logged in its place.
                let serves = self.connection.is_proven() || self.connection.iv_source.is_given();
                if serves && !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(token = %self.shared.settings.name, %reason, "health cannot be measured");
                }
                Some((HealthStatus::Degraded, reason))
            }
        }
    }

    /// Reads some more keys, if the index is being made.
    fn index_step(&mut self) {
        if self.enumeration.is_none() && clock::now() >= self.next_enumeration {
            self.indexed_at = clock::now();
            self.next_enumeration = self.indexed_at + self.shared.settings.reindex_interval;
            match Enumeration::start(self.session, self.connection.epoch) {
                Ok(enumeration) => self.enumeration = Some(enumeration),
                Err(code) => self.note_failure("C_FindObjects", code),
            }
        }
        let Some(enumeration) = &mut self.enumeration else { return };
        let label = &self.shared.settings.health_key_label;
        match enumeration.step(self.session, clock::now() + STEP.max(self.last_search), label) {
            Ok(false) => {}
            Ok(true) => {
                if self.is_logged_in()
                    && let Some(enumeration) = self.enumeration.take()
                {
                    enumeration.publish(&self.shared.keys);
                    let keys = self.shared.keys.len();
                    tracing::debug!(token = %self.shared.settings.name, keys, "indexed the token's keys");
                }
            }
            Err(code) => {
                self.enumeration = None;
                self.note_failure("C_GetAttributeValue", code);
            }
        }
    }

    fn search(&mut self, locator: &KeyLocator) -> Result<Arc<KeyEntry>, HsmError> {
        if let Some(found) = self.shared.keys.find(locator, self.connection.epoch) {
            return found;
        }
        let label = &self.shared.settings.health_key_label;
        let began_at = clock::now();
        let found = self.shared.keys.search(self.session, self.connection.epoch, locator, label);
        self.last_search = began_at.elapsed();
        found.map_err(|fault| match fault {
            SearchFault::Key(HsmError::KeyNotFound) if !self.is_logged_in() => {
                HsmError::Unavailable("the login was lost".into())
            }
            SearchFault::Key(error) => {
                if let HsmError::KeyAmbiguous { count } = error {
                    tracing::error!(token = %self.shared.settings.name, %locator, count, "several keys answer to one name: none is used");
                }
                error
            }
            SearchFault::Token(code) => {
                self.note_failure("C_FindObjects", code);
                ckr::device_error("C_FindObjects", code)
            }
        })
    }

    fn note_failure(&mut self, call: &'static str, code: cryptoki::error::RvError) {
        let meaning = ckr::meaning(code);
        self.looks_dead |= ckr::is_about_the_whole_token(code);
        self.shared.metrics.failed(meaning.label());
        tracing::error!(token = %self.shared.settings.name, call, code = %ckr::name(code), "the token failed a call");
        if matches!(meaning, Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost) {
            self.is_lost = true;
            let _ = self.connection.lost.set(meaning);
        }
    }
}
