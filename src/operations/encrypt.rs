//! Encrypt.

use std::sync::Arc;

use xks_spec::framing::{ciphertext_data_integrity_value, frame_aad};
use xks_spec::request::EncryptRequest;
use xks_spec::response::EncryptResponse;
use xks_spec::{ExternalKeyId, Operation};

use super::ciphertext_metadata::CiphertextMetadata;
use super::{Context, body_error, require_aes_256, require_usage};
use crate::error::Error;
use crate::hsm::{Digest, HsmError, OnIv, Plaintext, Sealed, Terms};
use crate::policy::KeyOperation;

/// Encrypts under the primary version of the external key.
///
/// # Errors
/// [`Error`], in the order of checks: body, key, policy, status, usage, then whatever the HSM says.
pub async fn encrypt(
    context: &mut Context<'_>,
    id: &ExternalKeyId,
    body: &[u8],
) -> Result<EncryptResponse, Error> {
    let request = EncryptRequest::parse(body, context.limits, &mut context.trace.metadata)
        .map_err(body_error(Operation::Encrypt))?;
    let key = context.find_key(id)?;
    let attributes = context.look_up(&key.primary).await?;
    context.authorize(KeyOperation::Encrypt, id)?;
    context.require_enabled(&key)?;
    let attributes = attributes?;
    // SPEC(ERR-USAGE-001): a key that does not support the operation is InvalidKeyUsageException.
    require_aes_256(&attributes)?;
    require_usage(attributes.usages.encrypt, "CKA_ENCRYPT")?;
    // A ciphertext is assured to decrypt only where this key may decrypt it.
    require_usage(attributes.usages.decrypt || !request.wants_integrity_value, "CKA_DECRYPT")?;

    context.trace.key_version = Some(key.primary.number);
    let metadata = CiphertextMetadata { key_version: key.primary.number }.to_bytes();
    // SPEC(ENC-CTMD-004, ENC-AAD-004): MUST bind metadata and AAD into what the tag authenticates.
    let framed = frame_aad(&request.aad, &metadata).ok_or(Error::Hsm(HsmError::Worker))?;
    // SPEC(ENC-GCM-001): AES-GCM under the external key. SPEC(ENC-IV-002): the IV returned is the one used.
    let iv_count = context.store.iv_counts.of(id.as_str(), key.primary.number);
    // Counted where they are drawn: the client may leave, and all this with it, while the token works.
    let drawn = Arc::clone(&iv_count);
    let on_iv: OnIv = Arc::new(move || drawn.draw(1));
    let terms = Terms { on_iv: Some(on_iv), ..context.terms(id, key.primary.number) };
    let (plaintext, framed): (Plaintext, Arc<[u8]>) = (Arc::new(request.plaintext), framed.into());
    let (store, material) = (context.store, &key.primary.material);
    if !request.wants_integrity_value {
        store.iv_counts.prepare(&iv_count, terms.deadline).await;
        let outcome = store.hsm.encrypt(material, plaintext, framed, terms).await;
        return respond(&context.note(outcome)?, &metadata, None);
    }
    // SPEC(ENC-CDIV-004, ENC-CDIV-014): the value is computed before the decrypt that vouches for it.
    let (aad, bound) = (request.aad, metadata);
    let digest: Digest = Arc::new(move |sealed: &Sealed| {
        ciphertext_data_integrity_value(&aad, &bound, &sealed.iv, &sealed.ciphertext_and_tag)
    });
    for _ in 0..2 {
        store.iv_counts.prepare(&iv_count, terms.deadline).await;
        let (plaintext, framed) = (Arc::clone(&plaintext), Arc::clone(&framed));
        let (digest, terms) = (Arc::clone(&digest), terms.clone());
        let outcome = store.hsm.encrypt_checked(material, plaintext, framed, digest, terms).await;
        // SPEC(ENC-CDIV-008, ENC-CDIV-013, ENC-CDIV-016): what is answered is the very output that was hashed and decrypts.
        match context.note(outcome) {
            Ok(checked) => return respond(&checked.sealed, &metadata, Some(&checked.digest)),
            Err(HsmError::Unverified) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // SPEC(ENC-CDIV-015): SHOULD never return what did not decrypt.
    Err(Error::Integrity)
}

fn respond(sealed: &Sealed, metadata: &[u8], value: Option<&[u8; 32]>) -> Result<EncryptResponse, Error> {
    EncryptResponse::new(&sealed.iv, &sealed.ciphertext_and_tag, metadata, value)
        .ok_or(Error::Hsm(HsmError::Worker))
}
