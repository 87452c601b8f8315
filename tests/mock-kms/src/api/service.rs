//! The KMS as a whole, and one call to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::operation::{Answer, Operation, answer};
use crate::kms::journal::{Entry, Journal, Layer, ProxyCall};
use crate::kms::name::Home;
use crate::kms::quota::Quota;
use crate::kms::snapshot::Snapshot;
use crate::kms::{Exception, KmsError, State, Timestamp};
use crate::xks::Client;

/// How a KMS behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Account and Region.
    pub home: Home,
    /// How long a store is `CONNECTING` before its proxy is called.
    pub connect_delay: Duration,
    /// How long a store is `DISCONNECTING`.
    pub disconnect_delay: Duration,
    /// Quota of each store, in cryptographic requests a second.
    pub requests_per_second: u32,
}

/// A KMS: its memory, its client for proxies, and what it noted lately.
pub struct Service {
    /// How it behaves.
    pub settings: Settings,
    /// What happened lately.
    pub journal: Journal,
    pub(super) client: Client,
    memory: Mutex<Memory>,
    quota: Mutex<Quota>,
    outage: Mutex<Outage>,
}

/// Calls that a test wants to fail, whatever they ask for.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// How many calls, from the next one on.
    pub calls: u32,
    /// What they are answered.
    pub exception: Exception,
}

struct Memory {
    state: State,
    snapshot: Option<Snapshot>,
    /// When the next key goes, so that reading need not look through all of them.
    earliest_deletion: Option<Timestamp>,
}

impl Service {
    /// A KMS that remembers `state`, and saves every change to `snapshot` where there is one.
    #[must_use]
    pub fn new(settings: Settings, client: Client, state: State, snapshot: Option<Snapshot>) -> Arc<Self> {
        let quota = Mutex::new(Quota::new(settings.requests_per_second));
        let earliest_deletion = state.earliest_deletion();
        let memory = Mutex::new(Memory { state, snapshot, earliest_deletion });
        let outage = Mutex::new(Outage { calls: 0, exception: Exception::KMSInternalException });
        Arc::new(Self { settings, journal: Journal::default(), client, memory, quota, outage })
    }

    /// Reads the state as it is now, keys that are due having gone.
    pub fn read<T>(&self, read: impl FnOnce(&State, Timestamp) -> T) -> T {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // Keys that go are saved with the next change: after a restart they go again.
        let now = memory.delete_expired_keys();
        read(&memory.state, now)
    }

    /// Changes the state. When this returns, the change is in the file, where there is one; when it fails, nothing has
    /// changed.
    ///
    /// # Errors
    /// Those of `change`; `KMSInternalException` when the file cannot be written.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut State, Timestamp) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let now = memory.delete_expired_keys();
        let Some(snapshot) = memory.snapshot.clone() else {
            let result = change(&mut memory.state, now);
            memory.earliest_deletion = memory.state.earliest_deletion();
            return result;
        };
        let mut draft = memory.state.clone();
        let result = change(&mut draft, now)?;
        // The lock is held so that the file never goes back in time; a development tool can afford the wait.
        snapshot.save(&draft).map_err(|error| {
            KmsError::new(Exception::KMSInternalException, format!("The state cannot be saved: {error}"))
        })?;
        memory.earliest_deletion = draft.earliest_deletion();
        memory.state = draft;
        Ok(result)
    }

    /// Takes note of what has come about: it is so even where it cannot be saved, and is saved with the next change then.
    ///
    /// # Errors
    /// `KMSInternalException` when the file cannot be written.
    pub(super) fn note(&self, note: impl Fn(&mut State)) -> Result<(), KmsError> {
        let saved = self.change(|state, _| {
            note(state);
            Ok(())
        });
        if saved.is_err() {
            note(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner).state);
        }
        saved
    }

    /// Answers one call. `principal` is the ARN of the caller.
    ///
    /// # Errors
    /// The exceptions of the operation.
    pub async fn call(
        self: &Arc<Self>,
        operation: Operation,
        principal: &str,
        request_id: &str,
        body: &Value,
    ) -> Answer {
        let call = Call::new(self, operation, principal, request_id);
        let answer = match self.take_outage() {
            Some(exception) => Err(KmsError::new(exception, "mock-kms was told to fail this call.")),
            None => answer(&call, body).await,
        };
        call.end(answer.as_ref().err());
        answer
    }

    /// Lets the next calls fail; what was wanted before is forgotten.
    pub fn fail_next(&self, outage: Outage) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = outage;
    }

    fn take_outage(&self) -> Option<Exception> {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        outage.calls = outage.calls.checked_sub(1)?;
        Some(outage.exception)
    }

    pub(super) fn take_quota(&self, store_id: &str) -> Result<(), KmsError> {
        let taken = self.quota.lock().unwrap_or_else(PoisonError::into_inner).take(store_id, Instant::now());
        if taken.is_err() {
            self.journal.count_throttled(store_id);
        }
        taken
    }
}

impl Memory {
    fn now(&self) -> Timestamp {
        Timestamp::of(SystemTime::now(), self.state.clock_ahead_secs)
    }

    /// Says what time it is, keys that are due having gone.
    fn delete_expired_keys(&mut self) -> Timestamp {
        let now = self.now();
        if self.earliest_deletion.is_some_and(|at| at <= now) {
            self.state.delete_expired_keys(now);
            self.earliest_deletion = self.state.earliest_deletion();
        }
        now
    }
}

/// One call to the KMS, and what it did on the way.
pub struct Call<'a> {
    pub(super) service: &'a Arc<Service>,
    pub(super) operation: Operation,
    pub(super) principal: &'a str,
    pub(super) request_id: &'a str,
    began: Instant,
    trace: Mutex<(Vec<ProxyCall>, Vec<Layer>)>,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        service: &'a Arc<Service>,
        operation: Operation,
        principal: &'a str,
        request_id: &'a str,
    ) -> Self {
        Self { service, operation, principal, request_id, began: Instant::now(), trace: Mutex::default() }
    }

    pub(super) fn home(&self) -> &Home {
        &self.service.settings.home
    }

    pub(super) fn note_proxy_call(&self, proxy_call: ProxyCall) {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).0.push(proxy_call);
    }

    pub(super) fn note_layer(&self, layer: Layer) {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).1.push(layer);
    }

    pub(super) fn end(self, error: Option<&KmsError>) {
        let kms_operation = self.operation.name().to_owned();
        let failure = error.map(|error| (error.exception.name().to_owned(), error.message.clone()));
        let (proxy_calls, layers) = self.trace.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.service.journal.record(Entry {
            number: 0,
            at: self.service.read(|_, now| now),
            kms_operation,
            request_id: self.request_id.to_owned(),
            caller: self.principal.to_owned(),
            failure,
            duration: self.began.elapsed(),
            proxy_calls,
            layers,
        });
    }
}
