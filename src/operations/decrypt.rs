//! Decrypt.

use std::sync::Arc;

use xks_spec::framing::frame_aad;
use xks_spec::request::DecryptRequest;
use xks_spec::response::DecryptResponse;
use xks_spec::{ExternalKeyId, Operation};

use super::ciphertext_metadata::CiphertextMetadata;
use super::{Context, aws_sample, body_error, require_aes_256, require_usage};
use crate::error::Error;
use crate::hsm::{HsmError, Sealed};
use crate::keystore::{ExternalKey, KeyStore, KeyVersion, VersionState};
use crate::policy::KeyOperation;

/// Decrypts under the version that the ciphertext metadata names, among those of the external key in the path.
///
/// # Errors
/// [`Error`], in the order of checks: body, key, policy, status, usage, ciphertext metadata, then whatever the HSM says.
pub async fn decrypt(
    context: &mut Context<'_>,
    id: &ExternalKeyId,
    body: &[u8],
) -> Result<DecryptResponse, Error> {
    let request = DecryptRequest::parse(body, context.limits, &mut context.trace.metadata)
        .map_err(body_error(Operation::Decrypt))?;
    let key = context.find_key(id)?;
    let selected = select(context.store, &key, &request.ciphertext_metadata);
    let version = selected.as_ref().map(|(version, _)| *version).unwrap_or(&key.primary);
    // A ciphertext of no version that may decrypt is refused only after everything that does not depend on it.
    let attributes = context.look_up(version).await?;
    context.authorize(KeyOperation::Decrypt, id)?;
    context.require_enabled(&key)?;
    if let Err(disabled @ Error::KeyVersionDisabled(_)) = selected {
        return Err(disabled);
    }
    let attributes = attributes?;
    // SPEC(ERR-USAGE-002): a key that does not support the operation is InvalidKeyUsageException.
    require_aes_256(&attributes)?;
    require_usage(attributes.usages.decrypt, "CKA_DECRYPT")?;
    let (version, framing) = selected?;

    context.trace.key_version = Some(version.number);
    context.trace.is_aws_sample = framing == Framing::AwsSample;
    // SPEC(DEC-CTMD-003, DEC-AAD-004): MUST detect ciphertext metadata and AAD that were changed.
    let metadata = &request.ciphertext_metadata;
    let framed = match framing {
        Framing::Specification => frame_aad(&request.aad, metadata),
        Framing::AwsSample => aws_sample::frame_aad(request.has_aad.then_some(&request.aad), metadata),
    };
    let framed = framed.ok_or(Error::Hsm(HsmError::Worker))?;
    // SPEC(DEC-GCM-001): AES-GCM under the external key. SPEC(DEC-RESP-002): what Encrypt made decrypts.
    // SPEC(DEC-CIPHERTEXT-001, DEC-IV-001, DEC-TAG-002, DEC-AAD-006): anything else is InvalidCiphertextException.
    let sealed = Sealed { iv: request.iv, ciphertext_and_tag: request.ciphertext_and_tag };
    let terms = context.terms(id, version.number);
    let outcome = context.store.hsm.decrypt(&version.material, Arc::new(sealed), framed.into(), terms).await;
    let plaintext = context.note(outcome)?;
    Ok(DecryptResponse::new(&plaintext))
}

/// How the authenticated data was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// As the specification has it.
    Specification,
    /// As AWS's sample proxy has it.
    AwsSample,
}

/// The version and the framing that the ciphertext metadata names; the metadata alone decides, never a trial.
fn select<'k>(
    store: &KeyStore,
    key: &'k ExternalKey,
    metadata: &[u8],
) -> Result<(&'k KeyVersion, Framing), Error> {
    let (number, framing) = match (CiphertextMetadata::from_bytes(metadata), &store.aws_sample) {
        (Some(own), _) => (own.key_version, Framing::Specification),
        (None, Some(sample)) if sample.ciphertext_metadata.iter().any(|known| **known == *metadata) => {
            (sample.key_version, Framing::AwsSample)
        }
        (None, _) => return Err(Error::CiphertextMetadata),
    };
    let version = key.version(number).ok_or(Error::UnknownKeyVersion(number))?;
    if version.state == VersionState::Disabled {
        return Err(Error::KeyVersionDisabled(number));
    }
    Ok((version, framing))
}
