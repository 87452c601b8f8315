//! What the asking side, the workers, the keeper and the watch of a token share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::breaker::Breaker;
use super::ckr::Meaning;
use super::connection::{Connection, Epoch};
use super::isolation::HelperPlace;
use super::keeper::Message;
use super::keys::{IvGuard, KeyIndex};
use super::pace::Pace;
use super::probe::ProbeState;
use super::searches::Searches;
use super::settings::{Isolation, TokenSettings};
use super::workers::{Board, Task};
use super::{HsmError, TokenIdentity};
use crate::metrics::TokenMetrics;
use crate::secret::SecretSource;

/// What the asking side, the workers and the keeper of a token share.
pub(super) struct Shared {
    /// As the token was started; the PIN is in `pin`.
    pub(super) settings: TokenSettings,
    /// Where the PIN is; another configuration may say another place.
    pub(super) pin: ArcSwap<Option<SecretSource>>,
    pub(super) metrics: TokenMetrics,
    pub(super) connection: ArcSwapOption<Connection>,
    pub(super) keys: KeyIndex,
    pub(super) probe: ProbeState,
    pub(super) board: Board,
    pub(super) identity: ArcSwapOption<TokenIdentity>,
    reason: ArcSwap<Box<str>>,
    pub(super) messages: flume::Sender<Message>,
    pub(super) breaker: Breaker,
    pub(super) pace: Pace,
    /// For workers that hand a job on.
    pub(super) tasks: flume::Sender<Task>,
    epochs: AtomicU64,
    /// The last epoch that was found lost: the keeper looks here, whatever becomes of the message.
    lost_epoch: AtomicU64,
    /// The last IV, whichever key and login it was for.
    pub(super) ivs: Arc<IvGuard>,
    pub(super) searches: Searches,
    /// Where the module is not in this process.
    pub(super) helper: Option<HelperPlace>,
}

impl Shared {
    /// Of a token that has not been connected to yet.
    pub(super) fn new(
        settings: TokenSettings,
        metrics: TokenMetrics,
        messages: flume::Sender<Message>,
        tasks: flume::Sender<Task>,
    ) -> Self {
        Self {
            board: Board::new(settings.sessions),
            metrics,
            connection: ArcSwapOption::empty(),
            keys: KeyIndex::default(),
            probe: ProbeState::default(),
            identity: ArcSwapOption::empty(),
            reason: ArcSwap::from_pointee("not connected yet".into()),
            messages,
            breaker: Breaker::default(),
            pace: Pace::default(),
            tasks,
            epochs: AtomicU64::new(0),
            lost_epoch: AtomicU64::new(0),
            ivs: Arc::default(),
            searches: Searches::new(settings.miss_memory),
            pin: ArcSwap::from_pointee(settings.pin.clone()),
            helper: (settings.isolation == Isolation::Process).then(HelperPlace::default),
            settings,
        }
    }

    /// The settings for the next login.
    pub(super) fn login_settings(&self) -> TokenSettings {
        TokenSettings { pin: Option::clone(&self.pin.load()), ..self.settings.clone() }
    }

    /// A connection has been made: requests go to it from now on.
    pub(super) fn connect(&self, connection: &Arc<Connection>) {
        self.identity.store(Some(Arc::clone(&connection.identity)));
        self.board.begin_anew();
        connection.module.begin_serving();
        if let Some(replaced) = self.connection.swap(Some(Arc::clone(connection))) {
            replaced.end();
            replaced.module.end_serving();
        }
        self.metrics.connected.set(1);
        let identity = &connection.identity;
        tracing::info!(
            token = %self.settings.name,
            manufacturer = %identity.manufacturer,
            model = %identity.model,
            serial = %identity.serial,
            firmware = %identity.firmware,
            "connected to the token"
        );
    }

    /// The connection has ended, unless another has taken its place meanwhile.
    pub(super) fn disconnect(&self, ended: &Arc<Connection>) -> bool {
        ended.end();
        let before = self
            .connection
            .rcu(|current| current.as_ref().filter(|current| !Arc::ptr_eq(current, ended)).map(Arc::clone));
        let has_ended = before.is_some_and(|before| Arc::ptr_eq(&before, ended));
        if has_ended {
            ended.module.end_serving();
            self.metrics.connected.set(0);
            self.set_unavailable("the connection to the token was lost; connecting anew");
        }
        has_ended
    }

    /// The token is let go of. A keeper that comes back from the module only now finds its connection lost.
    pub(super) fn let_go(&self) {
        self.lost_epoch.store(u64::MAX, Ordering::Release);
        if let Some(current) = self.connection.load_full() {
            self.disconnect(&current);
        }
    }

    pub(super) fn is_let_go(&self) -> bool {
        self.is_lost(Epoch(u64::MAX))
    }

    /// Whether requests come back from the connection that is in place: neither did the last few fail one after the other, nor
    /// was none served for `patience`.
    pub(super) fn is_serving(&self, patience: Duration) -> bool {
        self.connection.load().is_some() && !self.breaker.fails() && self.board.has_served_within(patience)
    }

    /// A worker found the connection of `epoch` lost.
    pub(super) fn lose(&self, epoch: Epoch, meaning: Meaning) {
        let current = self.connection.load_full();
        if let Some(connection) = current.filter(|connection| connection.epoch == epoch) {
            let _ = connection.lost.set(meaning);
            if self.disconnect(&connection) {
                tracing::error!(token = %self.settings.name, loss = meaning.label(), "lost the token");
            }
        }
        self.lost_epoch.fetch_max(epoch.0, Ordering::AcqRel);
        // Only wakes the keeper; where its queue is full, it is awake.
        let _ = self.messages.try_send(Message::Wake);
    }

    /// Ends the helper, if there is one: whatever is left of the connection goes with it.
    pub(super) fn end_helper(&self) {
        if self.helper.as_ref().is_some_and(HelperPlace::kill) {
            self.lose_current(Meaning::TokenLost);
        }
    }

    /// Whichever connection is in place is lost: the process is gone that it was in, or its login is.
    pub(super) fn lose_current(&self, meaning: Meaning) {
        if let Some(connection) = self.connection.load_full() {
            self.lose(connection.epoch, meaning);
        }
    }

    /// The epoch of a connection that is about to be made.
    pub(super) fn next_epoch(&self) -> Epoch {
        Epoch(self.epochs.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Whether the connection of `epoch` was found lost.
    pub(super) fn is_lost(&self, epoch: Epoch) -> bool {
        self.lost_epoch.load(Ordering::Acquire) >= epoch.0
    }

    pub(super) fn breaker_opened(&self, reason: &str) {
        self.metrics.breaker_open.set(1);
        tracing::error!(token = %self.settings.name, reason, "the token is asked no more until a probe succeeds");
        let _ = self.messages.try_send(Message::Probe);
    }

    /// The token is asked again.
    pub(super) fn close_breaker(&self, reason: &str) {
        if self.breaker.close() {
            self.board.note_sign_of_life();
            self.metrics.breaker_open.set(0);
            tracing::info!(token = %self.settings.name, reason, "the token is asked again");
        }
    }

    /// Says why the token is not usable; true if it is another reason than before.
    pub(super) fn set_unavailable(&self, reason: &str) -> bool {
        let before = self.reason.swap(Arc::new(reason.into()));
        **before != *reason
    }

    /// Why the token was last not usable.
    pub(super) fn reason(&self) -> Arc<str> {
        Arc::from(&***self.reason.load())
    }

    /// The error for requests while there is no connection.
    pub(super) fn unavailable(&self) -> HsmError {
        HsmError::Unavailable(self.reason())
    }

    pub(super) fn serial(&self) -> Option<Arc<str>> {
        self.identity.load().as_ref().map(|identity| Arc::clone(&identity.serial))
    }
}
