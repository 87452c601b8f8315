//! ReEncrypt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::cryptography::{
    ALGORITHMS, add_material_id, check_algorithm, dry_run, end_dry_run, ignores_ciphertext, key_of_blob,
    usable_key,
};
use super::input::Input;
use super::layers::{decrypt_under, encrypt_under};
use super::operation::Answer;
use super::service::Call;
use crate::kms::blob::Blob;
use crate::kms::constraint;
use crate::kms::{Exception, KmsError};

pub(super) async fn re_encrypt(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let blob = input.blob("CiphertextBlob", &constraint::CIPHERTEXT_BLOB)?;
    let source_context = input.context("SourceEncryptionContext")?;
    let source_name = input.text("SourceKeyId", &constraint::KEY_ID)?;
    let destination_name = input.required_text("DestinationKeyId", &constraint::KEY_ID)?;
    let destination_context = input.context("DestinationEncryptionContext")?;
    let source_algorithm = input.choice("SourceEncryptionAlgorithm", &ALGORITHMS)?;
    let destination_algorithm = input.choice("DestinationEncryptionAlgorithm", &ALGORITHMS)?;
    let is_dry_run = dry_run(&mut input)?;
    let ignores_ciphertext = ignores_ciphertext(&mut input, is_dry_run)?;
    if blob.is_none() && !ignores_ciphertext {
        input.missing("CiphertextBlob");
    }
    input.finish()?;
    let (source, blob) = match (blob, source_name) {
        (Some(blob), name) => {
            let blob = Blob::decode(&blob)?;
            (key_of_blob(call, &blob, name.as_deref())?, Some(blob))
        }
        (None, Some(name)) => (usable_key(call, &name)?, None),
        (None, None) => {
            return Err(KmsError::validation("SourceKeyId is required where there is no CiphertextBlob."));
        }
    };
    // Both keys are judged before either is used.
    let destination = usable_key(call, &destination_name)?;
    check_algorithm(call, &source, source_algorithm)?;
    check_algorithm(call, &destination, destination_algorithm)?;
    end_dry_run(is_dry_run)?;
    // INVARIANT: a request without a blob is a dry run, which has ended.
    let Some(blob) = blob else { return Err(KmsError::bare(Exception::InvalidCiphertextException)) };
    let plaintext = decrypt_under(call, &source, &source_context, &blob.layers).await?;
    let new_blob = encrypt_under(call, &destination, &destination_context, &plaintext).await?;
    let mut answer = json!({
        "CiphertextBlob": STANDARD.encode(new_blob),
        "SourceKeyId": call.home().key_arn(&source.id),
        "KeyId": call.home().key_arn(&destination.id),
        "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    });
    add_material_id(&mut answer, "SourceKeyMaterialId", &source);
    add_material_id(&mut answer, "DestinationKeyMaterialId", &destination);
    Ok(Some(answer))
}
