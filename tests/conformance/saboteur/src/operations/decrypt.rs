//! Decrypt.

use serde_json::{Value, json};
use xks_spec::limits::{IV_BYTES, MAX_CIPHERTEXT_METADATA_BYTES, TAG_BYTES};
use xks_spec::{ErrorName, Operation};

use super::{
    authenticated, authorize, check_key, check_store, ciphertext_metadata, find_key, hsm_failed, in_time,
    working_key,
};
use crate::body::Body;
use crate::fault::Fault;
use crate::hsm::{HsmError, Key};
use crate::proxy::{Proxy, Refusal};

/// A request's ciphertext, all of it.
struct Sealed {
    aad: Vec<u8>,
    metadata: Option<Vec<u8>>,
    iv: Vec<u8>,
    ciphertext: Vec<u8>,
    tag: Vec<u8>,
}

pub(super) async fn answer(proxy: &Proxy, store: usize, key_id: &str, body: &[u8]) -> Result<Value, Refusal> {
    let body = Body::parse(proxy, Operation::Decrypt, body)?;
    body.check_algorithm()?;
    let sealed = read(proxy, &body)?;
    let key = find_key(proxy, store, key_id)?;
    authorize(proxy, Operation::Decrypt, key_id, &body)?;
    check_store(proxy, key, Operation::Decrypt)?;
    check_key(proxy, key, key.may_decrypt)?;

    let keys = candidates(proxy, key, &sealed);
    let plaintext = match in_time(proxy, open_with_any(proxy, &keys, &sealed)).await? {
        Ok(plaintext) => plaintext,
        Err(HsmError::Failed) if !proxy.has(Fault::HsmFailureAsInvalidCiphertext) => return Err(hsm_failed()),
        Err(HsmError::Failed | HsmError::TagMismatch) => return Err(invalid_ciphertext(proxy)),
    };
    Ok(json!({ "plaintext": proxy.encode(&as_text(proxy, plaintext)) }))
}

fn read(proxy: &Proxy, body: &Body<'_>) -> Result<Sealed, Refusal> {
    let aad = body.aad()?;
    let mut ciphertext = body.message("ciphertext")?;
    let mut iv = body.required_bytes("initializationVector")?;
    if proxy.has(Fault::IvCutTo12) {
        iv.truncate(12);
    }
    if !IV_BYTES.contains(&iv.len()) && !proxy.has(Fault::IvOf13Bytes) {
        return Err(invalid_ciphertext(proxy));
    }
    let tag = body.required_bytes("authenticationTag")?;
    let shortest = match () {
        () if proxy.has(Fault::TagOf12Bytes) => 12,
        () if proxy.has(Fault::ShortTagAccepted) => 4,
        () => TAG_BYTES,
    };
    if !(shortest..=TAG_BYTES).contains(&tag.len()) {
        return Err(invalid_ciphertext(proxy));
    }
    let metadata = match body.text("ciphertextMetadata")? {
        Some(text) if proxy.has(Fault::MetadataNotBase64) => (text == "version:1").then(Vec::new),
        _ => body.bytes("ciphertextMetadata")?,
    };
    let longest = if proxy.has(Fault::MetadataTooLong) { 21 } else { MAX_CIPHERTEXT_METADATA_BYTES };
    if metadata.as_ref().is_some_and(|metadata| metadata.len() > longest) {
        return Err(invalid_ciphertext(proxy));
    }
    if proxy.has(Fault::TagLeftOnCiphertext) && ciphertext.len() > TAG_BYTES {
        ciphertext.truncate(ciphertext.len() - TAG_BYTES);
    }
    Ok(Sealed { aad, metadata, iv, ciphertext, tag })
}

fn invalid_ciphertext(proxy: &Proxy) -> Refusal {
    let error = match () {
        () if proxy.has(Fault::BadTagAsValidationError) => ErrorName::ValidationException,
        () if proxy.has(Fault::BadTagAsInternalError) => ErrorName::InternalException,
        () => ErrorName::InvalidCiphertextException,
    };
    Refusal::new(error, "The ciphertext, its metadata, IV, tag or AAD are not what Encrypt returned.")
}

/// The keys to decrypt with: the one that was asked for.
fn candidates<'a>(proxy: &'a Proxy, key: &'a Key, sealed: &Sealed) -> Vec<&'a Key> {
    let all = &proxy.hsm.keys;
    if proxy.has(Fault::AnyKeyTried) {
        return all.iter().filter(|other| other.store == key.store).collect();
    }
    if proxy.has(Fault::MetadataSelectsKey) {
        let is_named =
            |other: &&Key| sealed.metadata.as_deref() == Some(&ciphertext_metadata(proxy, other)[..]);
        return all.iter().filter(is_named).collect();
    }
    vec![working_key(proxy, key)]
}

async fn open_with_any(proxy: &Proxy, keys: &[&Key], sealed: &Sealed) -> Result<Vec<u8>, HsmError> {
    let mut outcome = Err(HsmError::TagMismatch);
    for key in keys {
        outcome = open(proxy, key, sealed).await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

async fn open(proxy: &Proxy, key: &Key, sealed: &Sealed) -> Result<Vec<u8>, HsmError> {
    let Sealed { aad, metadata, iv, ciphertext, tag } = sealed;
    let own_metadata = ciphertext_metadata(proxy, key);
    let metadata = match metadata {
        None if proxy.has(Fault::MetadataFilledIn) => &own_metadata,
        Some(_) if proxy.has(Fault::MetadataNotBase64) => &own_metadata,
        Some(metadata) => metadata,
        None => &Vec::new(),
    };
    let accepts = |expected: &[u8]| proxy.has(Fault::TagUnchecked) || expected[..tag.len()] == **tag;
    let mut plaintext =
        proxy.hsm.decrypt(key, iv, &authenticated(proxy, aad, metadata), ciphertext, accepts).await?;
    if proxy.has(Fault::CiphertextPadded) {
        let end = plaintext.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        plaintext.truncate(end);
    }
    Ok(plaintext)
}

fn as_text(proxy: &Proxy, plaintext: Vec<u8>) -> Vec<u8> {
    if proxy.has(Fault::PlaintextAsText) {
        return String::from_utf8_lossy(&plaintext).into_owned().into_bytes();
    }
    plaintext
}
