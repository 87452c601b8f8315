//! Encrypt.

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xks_spec::framing::ciphertext_data_integrity_value;
use xks_spec::limits::TAG_BYTES;
use xks_spec::request::SHA_256;
use xks_spec::{ErrorName, Operation};

use super::{
    authenticated, authorize, check_key, check_store, ciphertext_metadata, find_key, hsm_failed, in_time,
    working_key,
};
use crate::body::Body;
use crate::fault::Fault;
use crate::hsm::{HsmError, Key, random};
use crate::proxy::{Proxy, Refusal};

/// An encryption that does not decrypt is made anew so often.
const TRIES: usize = 3;

/// What the HSM made, and for what.
struct Sealed {
    aad: Vec<u8>,
    metadata: Vec<u8>,
    iv: Vec<u8>,
    ciphertext: Vec<u8>,
    tag: Vec<u8>,
}

pub(super) async fn answer(proxy: &Proxy, store: usize, key_id: &str, body: &[u8]) -> Result<Value, Refusal> {
    let body = Body::parse(proxy, Operation::Encrypt, body)?;
    body.check_algorithm()?;
    let wants_integrity_value = wants_integrity_value(proxy, &body)?;
    let aad = body.aad()?;
    let mut plaintext = body.message("plaintext")?;
    let key = find_key(proxy, store, key_id)?;
    authorize(proxy, Operation::Encrypt, key_id, &body)?;
    check_store(proxy, key, Operation::Encrypt)?;
    // A CDIV vouches that the ciphertext decrypts, which takes a key that may.
    check_key(proxy, key, key.may_encrypt && (key.may_decrypt || !wants_integrity_value))?;
    if proxy.has(Fault::CiphertextPadded) {
        let padding = plaintext.len().next_multiple_of(16) - plaintext.len();
        plaintext.extend(vec![0; padding]);
    }

    let sealed = in_time(proxy, seal(proxy, working_key(proxy, key), &aad, &plaintext)).await?;
    let mut sealed = sealed.map_err(|_| hsm_failed())?;
    if proxy.has(Fault::TagOf12Bytes) {
        sealed.tag.truncate(12);
    }
    let integrity_value = wants_integrity_value.then(|| integrity_value(proxy, &sealed));
    Ok(response(proxy, &sealed, integrity_value))
}

fn wants_integrity_value(proxy: &Proxy, body: &Body<'_>) -> Result<bool, Refusal> {
    match body.text("ciphertextDataIntegrityValueAlgorithm")? {
        None if proxy.has(Fault::IntegrityValueRequired) => {
            Err(Refusal::invalid("ciphertextDataIntegrityValueAlgorithm is missing."))
        }
        None => Ok(false),
        Some(SHA_256) => Ok(true),
        Some(_) if proxy.has(Fault::IntegrityAlgorithmUnchecked) => Ok(true),
        Some(_) => Err(Refusal::new(
            ErrorName::ValidationException,
            "ciphertextDataIntegrityValueAlgorithm is not SHA_256.",
        )),
    }
}

/// Encrypts, and where the key may, decrypts again to see that it can be done.
async fn seal(proxy: &Proxy, key: &Key, aad: &[u8], plaintext: &[u8]) -> Result<Sealed, HsmError> {
    let metadata = ciphertext_metadata(proxy, key);
    let authenticated = authenticated(proxy, aad, &metadata);
    for _ in 0..TRIES {
        let iv = next_iv(proxy);
        let mut ciphertext = proxy.hsm.encrypt(key, &iv, &authenticated, plaintext).await?;
        let tag = ciphertext.split_off(ciphertext.len() - TAG_BYTES);
        let sealed = Sealed { aad: aad.to_vec(), metadata: metadata.clone(), iv, ciphertext, tag };
        if !key.may_decrypt || proxy.has(Fault::IntegrityValueUnverified) {
            return Ok(sealed);
        }
        let Sealed { iv, ciphertext, tag, .. } = &sealed;
        let decrypted = proxy.hsm.decrypt(key, iv, &authenticated, ciphertext, |expected| expected == tag);
        if decrypted.await.is_ok_and(|decrypted| decrypted == plaintext) {
            return Ok(sealed);
        }
    }
    Err(HsmError::Failed)
}

fn next_iv(proxy: &Proxy) -> Vec<u8> {
    let number = proxy.encryptions.fetch_add(1, Ordering::Relaxed);
    let counted = |number: u64| [b"\x5a\x5a\x5a\x5a".as_slice(), &number.to_be_bytes()].concat();
    match () {
        () if proxy.has(Fault::IvOf13Bytes) => random::<13>().to_vec(),
        () if proxy.has(Fault::IvConstant) => counted(0),
        () if proxy.has(Fault::IvReusedAfter1000) => counted(number % 1000),
        () => random::<12>().to_vec(),
    }
}

fn integrity_value(proxy: &Proxy, sealed: &Sealed) -> String {
    let Sealed { aad, metadata, iv, ciphertext, tag } = sealed;
    let ciphertext_and_tag = [ciphertext.as_slice(), tag].concat();
    let of = |aad: &[u8], metadata: &[u8], iv: &[u8]| {
        ciphertext_data_integrity_value(aad, metadata, iv, &ciphertext_and_tag)
    };
    let value = match () {
        () if proxy.has(Fault::IntegrityValueInOtherOrder) => of(iv, aad, metadata),
        () if proxy.has(Fault::IntegrityValueWithoutAad) => of(&[], metadata, iv),
        () if proxy.has(Fault::IntegrityValueWithoutMetadata) => of(aad, &[], iv),
        () if proxy.has(Fault::IntegrityValueWithLengths) => {
            of(&authenticated(proxy, aad, metadata), &[], iv)
        }
        () if proxy.has(Fault::IntegrityValueOfBase64) => {
            let texts = [aad, metadata, iv, ciphertext, tag].map(|bytes| STANDARD.encode(bytes));
            Sha256::digest(texts.concat()).into()
        }
        () => of(aad, metadata, iv),
    };
    if proxy.has(Fault::IntegrityValueInHex) {
        return value.iter().map(|byte| format!("{byte:02x}")).collect();
    }
    proxy.encode(&value)
}

fn response(proxy: &Proxy, sealed: &Sealed, integrity_value: Option<String>) -> Value {
    let mut ciphertext = sealed.ciphertext.clone();
    if proxy.has(Fault::TagLeftOnCiphertext) {
        ciphertext.extend(&sealed.tag);
    }
    let other_iv = random::<12>();
    let iv = if proxy.has(Fault::IvNotTheOneUsed) { &other_iv[..] } else { &sealed.iv };
    let mut response = json!({
        "ciphertext": proxy.encode(&ciphertext),
        "ciphertextMetadata": proxy.encode(&sealed.metadata),
        "initializationVector": proxy.encode(iv),
        "authenticationTag": proxy.encode(&sealed.tag),
    });
    if proxy.has(Fault::MetadataNotBase64) {
        response["ciphertextMetadata"] = json!("version:1");
    }
    if let Some(value) = integrity_value
        && !proxy.has(Fault::IntegrityValueMissing)
    {
        response["ciphertextDataIntegrityValue"] = json!(value);
    }
    response
}
