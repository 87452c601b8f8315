//! The four operations.

mod decrypt;
mod encrypt;
mod health;
mod key_metadata;

use std::time::Duration;

use serde_json::Value;
use xks_spec::framing::frame_aad;
use xks_spec::{ErrorName, Operation};

pub(crate) use health::is_fit;

use crate::body::Body;
use crate::fault::Fault;
use crate::hsm::{HsmError, Key};
use crate::proxy::{Proxy, Refusal};
use crate::setup::{DENIED_CALLER, STORES, keys};

/// How long the HSM may take: KMS waits 250 ms in all.
const HSM_DEADLINE: Duration = Duration::from_millis(150);

/// Answers a request that is authenticated.
///
/// # Errors
/// What the specification names for the operation.
pub(crate) async fn perform(
    proxy: &Proxy,
    store: usize,
    operation: Operation,
    key_id: &str,
    body: &[u8],
) -> Result<Value, Refusal> {
    match operation {
        Operation::GetHealthStatus => health::answer(proxy, body).await,
        Operation::GetKeyMetadata => key_metadata::answer(proxy, store, key_id, body),
        Operation::Encrypt => encrypt::answer(proxy, store, key_id, body).await,
        Operation::Decrypt => decrypt::answer(proxy, store, key_id, body).await,
    }
}

/// The key of that id in the store.
///
/// # Errors
/// KeyNotFoundException.
pub(crate) fn find_key<'a>(proxy: &'a Proxy, store: usize, key_id: &str) -> Result<&'a Key, Refusal> {
    let is_it = |key: &&Key| {
        let is_of_store =
            key.store == Some(store) || (proxy.has(Fault::KeysOfAnyStore) && key.store.is_some());
        let is_named = key.id == key_id
            || (proxy.has(Fault::KeyIdWithoutCase) && key.id.eq_ignore_ascii_case(key_id))
            || (proxy.has(Fault::KeyIdByPrefix) && key_id.starts_with(key.id));
        is_of_store && is_named
    };
    let error = if proxy.has(Fault::UnknownKeyAsValidationError) {
        ErrorName::ValidationException
    } else {
        ErrorName::KeyNotFoundException
    };
    let key = proxy.hsm.keys.iter().find(is_it);
    key.ok_or_else(|| Refusal::new(error, "There is no such external key."))
}

/// The one policy: a key is refused to a caller.
///
/// # Errors
/// AccessDeniedException.
fn authorize(proxy: &Proxy, operation: Operation, key_id: &str, body: &Body<'_>) -> Result<(), Refusal> {
    let is_asked = match operation {
        _ if proxy.has(Fault::PolicyUnchecked) => false,
        Operation::GetHealthStatus => proxy.has(Fault::PolicyForHealth),
        Operation::Encrypt => true,
        Operation::GetKeyMetadata | Operation::Decrypt => !proxy.has(Fault::PolicyForEncryptAlone),
    };
    let is_of_policy = key_id == keys::RESTRICTED || operation == Operation::GetHealthStatus;
    let is_of_caller = body.caller() == Some(DENIED_CALLER) || proxy.has(Fault::PolicyForEveryCaller);
    if !(is_asked && is_of_policy && is_of_caller) {
        return Ok(());
    }
    let error = match () {
        () if proxy.has(Fault::DeniedAsInvalidKeyUsage) => ErrorName::InvalidKeyUsageException,
        () if proxy.has(Fault::DeniedAsAuthenticationFailed) => ErrorName::AuthenticationFailedException,
        () => ErrorName::AccessDeniedException,
    };
    Err(Refusal::new(error, "A policy refuses this."))
}

/// Whether the policy refuses a request of which nothing has been verified.
///
/// # Errors
/// AccessDeniedException.
pub(crate) fn authorize_unverified(
    proxy: &Proxy,
    operation: Operation,
    key_id: &str,
    body: &[u8],
) -> Result<(), Refusal> {
    Body::parse(proxy, operation, body).map_or(Ok(()), |body| authorize(proxy, operation, key_id, &body))
}

/// Whether the keys of a store may do this.
///
/// # Errors
/// InvalidStateException for a disabled one.
fn check_store(proxy: &Proxy, key: &Key, operation: Operation) -> Result<(), Refusal> {
    let is_enabled = key.store.is_none_or(|store| STORES[store].is_enabled);
    let is_let_through = match operation {
        _ if proxy.has(Fault::DisabledStoreServes) => true,
        Operation::Decrypt => proxy.has(Fault::DisabledStoreDecrypts),
        _ => false,
    };
    if is_enabled || is_let_through {
        return Ok(());
    }
    let is_a_fault = proxy.has(Fault::DisabledStoreAsInternalError);
    let error = if is_a_fault { ErrorName::InternalException } else { ErrorName::InvalidStateException };
    Err(Refusal::new(error, "The external key store is disabled."))
}

/// # Errors
/// InvalidStateException for a disabled key, InvalidKeyUsageException for one that may not.
fn check_key(proxy: &Proxy, key: &Key, may: bool) -> Result<(), Refusal> {
    if !key.is_enabled && !proxy.has(Fault::DisabledKeyServes) {
        let is_hidden = proxy.has(Fault::DisabledKeyAsNotFound);
        let error =
            if is_hidden { ErrorName::KeyNotFoundException } else { ErrorName::InvalidStateException };
        return Err(Refusal::new(error, "The external key is disabled."));
    }
    if !may && !proxy.has(Fault::UsageUnchecked) {
        let is_denied = proxy.has(Fault::UsageAsAccessDenied);
        let error =
            if is_denied { ErrorName::AccessDeniedException } else { ErrorName::InvalidKeyUsageException };
        return Err(Refusal::new(error, "The external key may not do this."));
    }
    Ok(())
}

/// The key that works in the place of `key`.
fn working_key<'a>(proxy: &'a Proxy, key: &'a Key) -> &'a Key {
    if proxy.has(Fault::OneKeyForAll) { &proxy.hsm.keys[0] } else { key }
}

/// What this proxy puts into ciphertextMetadata: a format byte and the key's handle.
fn ciphertext_metadata(proxy: &Proxy, key: &Key) -> Vec<u8> {
    let mut metadata = vec![1];
    metadata.extend(key.handle.to_be_bytes());
    if proxy.has(Fault::MetadataTooLong) {
        metadata.resize(21, 0);
    }
    metadata
}

/// The AAD that AES-GCM gets.
fn authenticated(proxy: &Proxy, aad: &[u8], metadata: &[u8]) -> Vec<u8> {
    let aad = match () {
        () if proxy.has(Fault::AadIgnored) => &[],
        () if proxy.has(Fault::AadCutTo1024) => &aad[..aad.len().min(1024)],
        () => aad,
    };
    let metadata = if proxy.has(Fault::MetadataNotBound) { &[] } else { metadata };
    let framed = frame_aad(aad, metadata).filter(|_| !proxy.has(Fault::AadNotFramed));
    framed.unwrap_or_else(|| [aad, metadata].concat())
}

/// Waits for the HSM no longer than the deadline.
async fn in_time<T>(
    proxy: &Proxy,
    call: impl Future<Output = Result<T, HsmError>>,
) -> Result<Result<T, HsmError>, Refusal> {
    if proxy.has(Fault::HsmSilenceWaitedFor) {
        return Ok(call.await);
    }
    let timed_out =
        |_| Refusal::new(ErrorName::DependencyTimeoutException, "The key manager did not answer in time.");
    tokio::time::timeout(HSM_DEADLINE, call).await.map_err(timed_out)
}

fn hsm_failed() -> Refusal {
    Refusal::new(ErrorName::InternalException, "The key manager failed.")
}
