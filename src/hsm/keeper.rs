//! The thread that keeps a token usable: connects, probes, indexes keys, searches for keys that the index lacks, and
//! connects anew when the token is lost. It has a session of its own, so that none of this is in a request's way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::session::Session;
use tokio::sync::oneshot;

use super::ckr::{self, Meaning};
use super::connection::{Connection, ConnectionFault, Epoch, connect};
use super::keys::{Enumeration, KeyEntry, SearchFault};
use super::module::Modules;
use super::probe::{self, ProbeKey};
use super::token::Shared;
use super::{HealthStatus, HsmError, KeyLocator};
use crate::clock;
use crate::secret::Secret;

/// Keys read between two looks at the clock and the messages.
const KEYS_A_STEP: usize = 64;
/// First pause before connecting anew; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause before connecting anew.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What the keeper is asked.
pub(super) enum Message {
    /// Search a key that the index does not hold.
    Search { locator: KeyLocator, reply: oneshot::Sender<Result<Arc<KeyEntry>, HsmError>> },
    /// The connection of that epoch is lost.
    Lost(Epoch),
    /// End.
    Stop,
}

/// The keeper's life: ends with [`Message::Stop`].
pub(super) fn run(shared: &Shared, modules: &Modules, messages: &flume::Receiver<Message>) {
    let mut epoch = 0;
    let mut rejected: Option<Secret> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        epoch += 1;
        shared.probe.begin();
        match connect(&shared.settings, modules, Epoch(epoch), rejected.as_ref()) {
            Ok((connection, session)) => {
                pause = FIRST_PAUSE;
                let connection = Arc::new(connection);
                if serve(shared, &connection, &session, messages).is_err() {
                    return;
                }
                shared.disconnect();
                std::mem::forget(session);
            }
            Err(fault) => {
                report(shared, &fault, rejected.is_some());
                if let ConnectionFault::PinRejected { pin, .. } = fault {
                    rejected = Some(pin);
                }
                if wait(shared, messages, pause).is_err() {
                    return;
                }
                pause = (2 * pause).min(MAX_PAUSE);
            }
        }
    }
}

/// The token is being stopped.
struct Stopped;

/// Answers messages while there is no connection.
fn wait(shared: &Shared, messages: &flume::Receiver<Message>, pause: Duration) -> Result<(), Stopped> {
    let until = clock::now() + pause;
    loop {
        match messages.recv_deadline(until) {
            Ok(Message::Search { reply, .. }) => drop(reply.send(Err(shared.unavailable()))),
            Ok(Message::Lost(_)) => {}
            Err(flume::RecvTimeoutError::Timeout) => return Ok(()),
            Ok(Message::Stop) | Err(flume::RecvTimeoutError::Disconnected) => return Err(Stopped),
        }
    }
}

fn report(shared: &Shared, fault: &ConnectionFault, pin_was_rejected: bool) {
    let reason: Arc<str> = fault.to_string().into();
    let is_news = shared.set_unavailable(&reason);
    shared.probe.end(HealthStatus::Unavailable, Some(Arc::clone(&reason)));
    let is_old_rejection = pin_was_rejected && matches!(fault, ConnectionFault::PinRejected { .. });
    if is_news && !is_old_rejection {
        tracing::error!(token = %shared.settings.name, %reason, "the token is not usable");
    }
}

/// Serves one connection until it is lost.
fn serve(
    shared: &Shared,
    connection: &Arc<Connection>,
    session: &Session,
    messages: &flume::Receiver<Message>,
) -> Result<(), Stopped> {
    let mut keeper = Keeper::new(shared, connection, session);
    keeper.probe();
    keeper.shared.connect(connection);
    while !keeper.is_lost {
        keeper.index_step();
        match messages.recv_deadline(keeper.next_wake()) {
            Ok(Message::Search { locator, reply }) => {
                // Whoever asked may have left by now; the index keeps what is found either way.
                let _ = reply.send(keeper.search(&locator));
            }
            Ok(Message::Lost(epoch)) => keeper.is_lost |= epoch == connection.epoch,
            Err(flume::RecvTimeoutError::Timeout) => {}
            Ok(Message::Stop) | Err(flume::RecvTimeoutError::Disconnected) => return Err(Stopped),
        }
        if clock::now() >= keeper.next_probe {
            keeper.probe();
        }
    }
    Ok(())
}

struct Keeper<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    session: &'a Session,
    next_probe: Instant,
    next_enumeration: Instant,
    enumeration: Option<Enumeration>,
    probe_key: Option<ProbeKey>,
    has_warned: bool,
    is_lost: bool,
}

impl<'a> Keeper<'a> {
    fn new(shared: &'a Shared, connection: &'a Connection, session: &'a Session) -> Self {
        let now = clock::now();
        shared.keys.clear();
        Self {
            shared,
            connection,
            session,
            next_probe: now,
            next_enumeration: now,
            enumeration: None,
            probe_key: None,
            has_warned: false,
            is_lost: false,
        }
    }

    fn next_wake(&self) -> Instant {
        if self.enumeration.is_some() { clock::now() } else { self.next_probe.min(self.next_enumeration) }
    }

    fn probe(&mut self) {
        self.shared.probe.begin();
        let (status, reason) = self.measure();
        self.shared.metrics.health.set(match status {
            HealthStatus::Unavailable => 0,
            HealthStatus::Degraded => 1,
            HealthStatus::Active => 2,
        });
        self.shared.probe.end(status, reason);
        self.next_probe = clock::now() + self.shared.settings.probe_interval;
    }

    fn measure(&mut self) -> (HealthStatus, Option<Arc<str>>) {
        // A session key is looked past at every probe, so that a health key made meanwhile is taken.
        if !matches!(self.probe_key, Some(ProbeKey::Token(_)))
            && let Some(reason) = self.find_probe_key()
        {
            return (HealthStatus::Degraded, Some(reason));
        }
        let Some(key) = &self.probe_key else { return (HealthStatus::Degraded, None) };
        match probe::probe(self.connection, self.session, key) {
            Ok(()) => (HealthStatus::Active, None),
            Err(failure) => {
                let reason = probe::failure_reason(failure);
                tracing::error!(token = %self.shared.settings.name, %reason, "the token failed its health probe");
                let meaning = ckr::meaning(failure.1);
                self.shared.metrics.failed(meaning.label());
                match meaning {
                    Meaning::KeyGone | Meaning::KeyNotPermitted => {
                        self.probe_key = None;
                        (HealthStatus::Degraded, Some(reason))
                    }
                    Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost => {
                        self.is_lost = true;
                        (HealthStatus::Unavailable, Some(reason))
                    }
                    _ => (HealthStatus::Unavailable, Some(reason)),
                }
            }
        }
    }

    /// Finds or makes the key to probe with; the reason where neither can be.
    fn find_probe_key(&mut self) -> Option<Arc<str>> {
        let label = &self.shared.settings.health_key_label;
        if let Some(ProbeKey::Session(handle)) = self.probe_key.take()
            && super::keys::find_by_label(self.session, label).ok().flatten().is_none()
        {
            self.probe_key = Some(ProbeKey::Session(handle));
            return None;
        }
        match ProbeKey::find_or_make(self.session, label) {
            Ok(key) => {
                self.probe_key = Some(key);
                None
            }
            Err(error) => {
                let code = ckr::code_of(&error);
                self.is_lost |= matches!(
                    ckr::meaning(code),
                    Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost
                );
                let reason: Arc<str> =
                    format!("there is no health key and no session key can be made ({})", ckr::name(code))
                        .into();
                if !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(
                        token = %self.shared.settings.name,
                        %reason,
                        "health cannot be measured: make an AES-256 key with the label {label:?} that may encrypt and \
                         decrypt, sensitive and not extractable, and map it to no external key"
                    );
                }
                Some(reason)
            }
        }
    }

    /// Reads some more keys, if the index is being made.
    fn index_step(&mut self) {
        if self.enumeration.is_none() && clock::now() >= self.next_enumeration {
            self.next_enumeration = clock::now() + self.shared.settings.reindex_interval;
            match Enumeration::start(self.session, self.connection.epoch) {
                Ok(enumeration) => self.enumeration = Some(enumeration),
                Err(error) => self.note_failure("C_FindObjects", ckr::code_of(&error)),
            }
        }
        let Some(enumeration) = &mut self.enumeration else { return };
        let label = &self.shared.settings.health_key_label;
        match enumeration.step(self.session, KEYS_A_STEP, label) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(enumeration) = self.enumeration.take() {
                    enumeration.publish(&self.shared.keys);
                    let keys = self.shared.keys.len();
                    tracing::debug!(token = %self.shared.settings.name, keys, "indexed the token's keys");
                }
            }
            Err(error) => {
                self.enumeration = None;
                self.note_failure("C_GetAttributeValue", ckr::code_of(&error));
            }
        }
    }

    fn search(&mut self, locator: &KeyLocator) -> Result<Arc<KeyEntry>, HsmError> {
        let label = &self.shared.settings.health_key_label;
        let found = self.shared.keys.search(self.session, self.connection.epoch, locator, label);
        found.map_err(|fault| match fault {
            SearchFault::Key(error) => {
                if let HsmError::KeyAmbiguous { count } = error {
                    tracing::error!(token = %self.shared.settings.name, %locator, count, "several keys answer to one name: none is used");
                }
                error
            }
            SearchFault::Token(error) => {
                let code = ckr::code_of(&error);
                self.note_failure("C_FindObjects", code);
                ckr::device_error("C_FindObjects", code)
            }
        })
    }

    fn note_failure(&mut self, call: &'static str, code: cryptoki::error::RvError) {
        let meaning = ckr::meaning(code);
        self.shared.metrics.failed(meaning.label());
        tracing::error!(token = %self.shared.settings.name, call, code = %ckr::name(code), "the token failed a call");
        self.is_lost |= matches!(meaning, Meaning::SessionLost | Meaning::LoginLost | Meaning::TokenLost);
    }
}
