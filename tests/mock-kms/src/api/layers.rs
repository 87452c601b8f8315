//! Double encryption: first KMS under its own key material, then the proxy; the reverse order back.

use zeroize::Zeroizing;

use super::failure::{Purpose, exception, wrong_inner_layer};
use super::service::Call;
use crate::kms::blob::{Blob, Layers};
use crate::kms::context::EncryptionContext;
use crate::kms::journal::Layer;
use crate::kms::key::Key;
use crate::kms::store::Store;
use crate::kms::{Exception, KmsError, crypto};

/// Encrypts under a key that is usable, and gives the ciphertext blob.
pub(super) async fn encrypt_under(
    call: &Call<'_>,
    key: &Key,
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<Vec<u8>, KmsError> {
    call.note_layer(Layer::secret("plaintext", plaintext.len()));
    let external = external_key(call, key)?;
    let inner = crypto::seal(&key.id, &key.material, context, plaintext)?;
    call.note_layer(Layer::ciphertext("encrypted by KMS", &inner));
    let layers = match external {
        None => Layers::Inner(inner),
        Some((store, external_key_id)) => {
            let (arn, aad) = (call.home().key_arn(&key.id), context.canonical());
            let encrypted = call.proxy_encrypt(&store, external_key_id, &arn, &inner, &aad).await;
            let outer = encrypted.map_err(|failure| exception(&failure, Purpose::Encrypt))?;
            call.note_layer(Layer::ciphertext("encrypted again by the proxy", &outer.ciphertext));
            Layers::Outer(outer)
        }
    };
    let blob = Blob { key_id: key.id.clone(), layers }.encode()?;
    call.note_layer(Layer::ciphertext("ciphertext blob", &blob));
    Ok(blob)
}

/// Decrypts a ciphertext blob of a key that is usable.
pub(super) async fn decrypt_under(
    call: &Call<'_>,
    key: &Key,
    context: &EncryptionContext,
    layers: &Layers,
) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let invalid = || KmsError::bare(Exception::InvalidCiphertextException);
    let plaintext = match (layers, external_key(call, key)?) {
        (Layers::Inner(inner), None) => {
            call.note_layer(Layer::ciphertext("encrypted by KMS", inner));
            crypto::open(&key.id, &key.material, context, inner).ok_or_else(invalid)?
        }
        (Layers::Outer(outer), Some((store, external_key_id))) => {
            call.note_layer(Layer::ciphertext("encrypted again by the proxy", &outer.ciphertext));
            let (arn, aad) = (call.home().key_arn(&key.id), context.canonical());
            let decrypted = call.proxy_decrypt(&store, external_key_id, &arn, outer, &aad).await;
            let inner = decrypted.map_err(|failure| exception(&failure, Purpose::Decrypt))?;
            call.note_layer(Layer::ciphertext("encrypted by KMS", &inner));
            crypto::open(&key.id, &key.material, context, &inner).ok_or_else(wrong_inner_layer)?
        }
        // The blob's head was tampered with: nothing that this key made looks so.
        _ => return Err(invalid()),
    };
    call.note_layer(Layer::secret("plaintext", plaintext.len()));
    Ok(plaintext)
}

/// Store and external key of a key, if it has them; counts against the store's quota.
fn external_key<'k>(call: &Call<'_>, key: &'k Key) -> Result<Option<(Store, &'k str)>, KmsError> {
    let Some((store_id, external_key_id)) = key.origin.external_key() else { return Ok(None) };
    call.service.take_quota(store_id)?;
    let store = call.service.read(|state, _| state.store(store_id).cloned())?;
    Ok(Some((store, external_key_id)))
}
