//! ConnectCustomKeyStore, DisconnectCustomKeyStore, and the periodic health check.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::{connection_error_code, is_all_unavailable};
use super::input::Input;
use super::operation::{Answer, Operation};
use super::proxy::HEALTH_CHECK;
use super::service::{Call, Service};
use crate::kms::KmsError;
use crate::kms::constraint;
use crate::kms::journal::Entry;
use crate::kms::name::new_uuid;
use crate::kms::store::{ConnectionErrorCode, ConnectionState, Store};

pub(super) fn connect(call: &Call<'_>, body: &Value) -> Answer {
    let id = store_id(body)?;
    let attempt = call.service.change(|state, _| state.begin_connect(&id))?;
    if let Some(attempt) = attempt {
        let service = Arc::clone(call.service);
        tokio::spawn(end_connect(service, id, attempt, call.request_id.to_owned()));
    }
    Ok(Some(json!({})))
}

pub(super) fn disconnect(call: &Call<'_>, body: &Value) -> Answer {
    let id = store_id(body)?;
    let delay = call.service.settings.disconnect_delay;
    let attempt = call.service.change(|state, _| {
        let attempt = state.begin_disconnect(&id)?;
        if delay.is_zero() {
            state.end_attempt(&id, attempt, ConnectionState::Disconnected);
        }
        Ok(attempt)
    })?;
    call.service.journal.forget_health(&id);
    if !delay.is_zero() {
        tokio::spawn(end_disconnect(Arc::clone(call.service), id, attempt));
    }
    Ok(Some(json!({})))
}

fn store_id(body: &Value) -> Result<String, KmsError> {
    let mut input = Input::new(body)?;
    let id = input.required_text("CustomKeyStoreId", &constraint::STORE_ID)?;
    input.finish()?;
    Ok(id)
}

async fn end_connect(service: Arc<Service>, id: String, attempt: u64, request_id: String) {
    tokio::time::sleep(service.settings.connect_delay).await;
    let is_current = |store: &Store| store.attempt == attempt;
    let store = service.read(|state, _| state.store(&id).ok().filter(|store| is_current(store)).cloned());
    let Some(store) = store else { return };
    // INVARIANT: the name is one of the table's.
    let Some(operation) = Operation::parse("ConnectCustomKeyStore") else { return };
    let call = Call::new(&service, operation, "", &request_id);
    let outcome = match call.health(&id, &store.proxy).await {
        Ok(health) if is_all_unavailable(&health) => {
            ConnectionState::Failed(ConnectionErrorCode::XksProxyNotReachable)
        }
        Ok(_) => ConnectionState::Connected,
        Err(failure) => ConnectionState::Failed(connection_error_code(&failure)),
    };
    let ended = service.note(|state| {
        state.end_attempt(&id, attempt, outcome);
    });
    call.end(ended.err().as_ref());
}

async fn end_disconnect(service: Arc<Service>, id: String, attempt: u64) {
    tokio::time::sleep(service.settings.disconnect_delay).await;
    // Where it cannot be saved, the next change says so to its caller.
    let _ = service.note(|state| {
        state.end_attempt(&id, attempt, ConnectionState::Disconnected);
    });
}

impl Service {
    /// Takes up what a former process left undone: connecting goes on, disconnecting ends.
    pub fn resume(self: &Arc<Self>) {
        let stores: Vec<Store> = self.read(|state, _| state.stores.values().cloned().collect());
        for Store { id, attempt, connection, .. } in stores {
            match connection {
                ConnectionState::Connecting => {
                    tokio::spawn(end_connect(Arc::clone(self), id, attempt, new_uuid().unwrap_or_default()));
                }
                ConnectionState::Disconnecting => {
                    tokio::spawn(end_disconnect(Arc::clone(self), id, attempt));
                }
                ConnectionState::Connected | ConnectionState::Failed(_) | ConnectionState::Disconnected => {}
            }
        }
    }

    /// Checks the health of every connected store's proxy, again and again. The result is for journal and metrics; it
    /// changes no state.
    pub async fn check_health_every(self: Arc<Self>, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            self.check_health_once().await;
        }
    }

    /// Checks the health of every connected store's proxy once.
    pub async fn check_health_once(&self) {
        let is_connected = |store: &&Store| store.connection == ConnectionState::Connected;
        let stores: Vec<Store> =
            self.read(|state, _| state.stores.values().filter(is_connected).cloned().collect());
        for store in stores {
            let request_id = new_uuid().unwrap_or_default();
            let (outcome, proxy_call) = self.health(&store.id, &store.proxy, HEALTH_CHECK, &request_id).await;
            let failure =
                outcome.err().map(|failure| ("KmsHealthCheck failed".to_owned(), Some(failure.to_string())));
            self.journal.record(Entry {
                number: 0,
                at: self.read(|_, now| now),
                kms_operation: HEALTH_CHECK.to_owned(),
                request_id,
                caller: String::new(),
                failure,
                duration: proxy_call.report.total,
                proxy_calls: vec![proxy_call],
                layers: Vec::new(),
            });
        }
    }
}
