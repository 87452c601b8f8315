//! Before a run: builds the pool of requests, and has the target encrypt what the run will decrypt.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::check::{encrypt_answer, judge};
use crate::client::{Connector, Line};
use crate::failure::{Failure, Transport};
use crate::request::Envelope;
use crate::target::{Store, Target};
use crate::workload::{Builder, EncryptDraft, Operation, Prepared, Workload, WorkloadSettings};

/// A workload that cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The target did not encrypt what the run would have decrypted.
    #[error("the target did not encrypt what decrypts need, at {path}: {failure}")]
    Encrypt {
        /// Path of the request.
        path: String,
        /// What happened.
        failure: Failure,
    },
    /// A task of the preparation ended without a result.
    #[error("preparation interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Builds the workload for `target`. Where it holds decrypts, their ciphertexts come from the target, over at most
/// `connections` connections.
///
/// # Errors
/// When the target does not encrypt.
pub async fn prepare(
    target: &Target,
    connector: &Connector,
    envelope: &Envelope,
    settings: &WorkloadSettings,
    connections: u32,
    timeout: Duration,
) -> Result<Workload, PrepareError> {
    let mut builder = Builder::new(settings, &target.stores, &target.key_ids);
    let wants = |operation| settings.mix.weight(operation) > 0;
    let drafts: Vec<EncryptDraft> = (0..settings.pool).map(|index| builder.encrypt(index)).collect();
    let mut requests = Vec::new();
    if wants(Operation::Decrypt) {
        let drafted = drafts.iter().map(|draft| draft.prepared.clone()).collect();
        let answers = encrypt_all(target, connector, envelope, drafted, connections, timeout).await?;
        for (draft, body) in drafts.iter().zip(&answers) {
            let answer =
                encrypt_answer(body).map_err(|wrong| encrypt_error(&draft.prepared, wrong.into()))?;
            requests.push(builder.decrypt(draft, &answer));
        }
    }
    if wants(Operation::Encrypt) {
        requests.extend(drafts.into_iter().map(|draft| draft.prepared));
    }
    if wants(Operation::Metadata) {
        requests.extend((0..settings.pool).map(|index| builder.metadata(index)));
    }
    if wants(Operation::Health) {
        requests.extend((0..settings.pool).map(|index| builder.health(index)));
    }
    Ok(Workload::new(settings.mix, settings.pool, requests))
}

fn encrypt_error(prepared: &Prepared, failure: Failure) -> PrepareError {
    PrepareError::Encrypt { path: prepared.path.clone(), failure }
}

/// Sends `requests`, dealt out over the connections, and returns the answers in their order.
async fn encrypt_all(
    target: &Target,
    connector: &Connector,
    envelope: &Envelope,
    requests: Vec<Prepared>,
    connections: u32,
    timeout: Duration,
) -> Result<Vec<Bytes>, PrepareError> {
    let lanes = usize::try_from(connections).unwrap_or(usize::MAX).min(requests.len());
    let requests = Arc::new(requests);
    let mut tasks = JoinSet::new();
    for lane in 0..lanes {
        let requests = Arc::clone(&requests);
        let stores = Arc::clone(&target.stores);
        let envelope = envelope.clone();
        let line = Line::new(connector.clone());
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for index in (lane..requests.len()).step_by(lanes) {
                let prepared = &requests[index];
                let exchange = exchange_once(&line, &envelope, &stores, prepared);
                let answer = tokio::time::timeout(timeout, exchange).await;
                let answer = answer.unwrap_or(Err(Transport::Timeout.into()));
                answers.push((index, answer.map_err(|failure| encrypt_error(prepared, failure))?));
            }
            Ok::<_, PrepareError>(answers)
        });
    }
    let mut answers = vec![Bytes::new(); requests.len()];
    while let Some(lane) = tasks.join_next().await {
        for (index, answer) in lane?? {
            answers[index] = answer;
        }
    }
    Ok(answers)
}

async fn exchange_once(
    line: &Line,
    envelope: &Envelope,
    stores: &[Store],
    prepared: &Prepared,
) -> Result<Bytes, Failure> {
    let unsigned = |error: &dyn std::fmt::Display| Failure::Unsigned(error.to_string());
    let uri = envelope.uri(&prepared.path).map_err(|error| unsigned(&error))?;
    let signer = &stores[prepared.store].signer;
    let signature =
        signer.sign(&prepared.path, &prepared.body, SystemTime::now()).map_err(|error| unsigned(&error))?;
    let mut sender = line.lease().await?.sender;
    let request = envelope.request(uri, prepared.body.clone(), signature);
    let (status, body) = sender.exchange(request).await?;
    judge(&prepared.expect, status, &body, true)?;
    line.give_back(sender).await;
    Ok(body)
}
