//! Decrypt.

use std::sync::Arc;

use xks_spec::framing::frame_aad;
use xks_spec::request::DecryptRequest;
use xks_spec::response::DecryptResponse;
use xks_spec::{ExternalKeyId, Operation};

use super::ciphertext_metadata::CiphertextMetadata;
use super::{Context, body_error, require_aes_256, require_usage};
use crate::error::Error;
use crate::hsm::{HsmError, Sealed};
use crate::keystore::{ExternalKey, KeyVersion, VersionState};

/// Decrypts under the version that the ciphertext metadata names, among those of the external key in the path.
///
/// # Errors
/// [`Error`], in the order of checks: body, key, status, usage, ciphertext metadata, then whatever the HSM says.
pub async fn decrypt(
    context: &mut Context<'_>,
    id: &ExternalKeyId,
    body: &[u8],
) -> Result<DecryptResponse, Error> {
    let request = DecryptRequest::parse(body, context.limits, &mut context.trace.metadata)
        .map_err(body_error(Operation::Decrypt))?;
    let key = context.find_key(id)?;
    let version = select_version(&key, &request.ciphertext_metadata);
    // A ciphertext of no version that may decrypt is refused only after everything that does not depend on it.
    let attributes = context.look_up(version.as_ref().copied().unwrap_or(&key.primary)).await?;
    context.require_enabled(&key)?;
    if let Err(disabled @ Error::KeyVersionDisabled(_)) = version {
        return Err(disabled);
    }
    let attributes = attributes?;
    // SPEC(ERR-USAGE-002): a key that does not support the operation is InvalidKeyUsageException.
    require_aes_256(&attributes)?;
    require_usage(attributes.usages.decrypt, "CKA_DECRYPT")?;
    let version = version?;

    context.trace.key_version = Some(version.number);
    // SPEC(DEC-CTMD-003, DEC-AAD-004): MUST detect ciphertext metadata and AAD that were changed.
    let framed = frame_aad(&request.aad, &request.ciphertext_metadata).ok_or(Error::Hsm(HsmError::Worker))?;
    // SPEC(DEC-GCM-001): AES-GCM under the external key. SPEC(DEC-RESP-002): what Encrypt made decrypts.
    // SPEC(DEC-CIPHERTEXT-001, DEC-IV-001, DEC-TAG-002, DEC-AAD-006): anything else is InvalidCiphertextException.
    let sealed = Sealed { iv: request.iv, ciphertext_and_tag: request.ciphertext_and_tag };
    let outcome =
        context.store.hsm.decrypt(&version.material, Arc::new(sealed), framed.into(), context.deadline).await;
    let plaintext = context.note(outcome)?;
    Ok(DecryptResponse::new(&plaintext))
}

/// The version that the ciphertext metadata names; the metadata alone decides, never a trial.
fn select_version<'k>(key: &'k ExternalKey, metadata: &[u8]) -> Result<&'k KeyVersion, Error> {
    let CiphertextMetadata { key_version } =
        CiphertextMetadata::from_bytes(metadata).ok_or(Error::CiphertextMetadata)?;
    match key.version(key_version) {
        None => Err(Error::UnknownKeyVersion(key_version)),
        Some(version) if version.state == VersionState::Disabled => {
            Err(Error::KeyVersionDisabled(key_version))
        }
        Some(version) => Ok(version),
    }
}
