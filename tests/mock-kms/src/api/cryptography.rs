//! Encrypt and Decrypt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::input::Input;
use super::layers::{decrypt_under, encrypt_under};
use super::operation::Answer;
use super::service::Call;
use crate::kms::blob::Blob;
use crate::kms::constraint::{self, Text};
use crate::kms::key::{Key, Origin};
use crate::kms::{Exception, KmsError, State};

pub(super) const ALGORITHMS: [&str; 4] =
    ["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"];

pub(super) async fn encrypt(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let plaintext = input.required_blob("Plaintext", &constraint::PLAINTEXT)?;
    let context = input.context("EncryptionContext")?;
    let algorithm = input.choice("EncryptionAlgorithm", &ALGORITHMS)?;
    let is_dry_run = dry_run(&mut input)?;
    input.finish()?;
    let key = usable_key(call, &name)?;
    check_algorithm(call, &key, algorithm)?;
    end_dry_run(is_dry_run)?;
    let blob = encrypt_under(call, &key, &context, &plaintext).await?;
    Ok(Some(json!({
        "CiphertextBlob": STANDARD.encode(blob),
        "KeyId": call.home().key_arn(&key.id),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    })))
}

pub(super) async fn decrypt(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let blob = input.blob("CiphertextBlob", &constraint::CIPHERTEXT_BLOB)?;
    let context = input.context("EncryptionContext")?;
    let name = input.text("KeyId", &constraint::KEY_ID)?;
    let algorithm = input.choice("EncryptionAlgorithm", &ALGORITHMS)?;
    let is_dry_run = dry_run(&mut input)?;
    let ignores_ciphertext = ignores_ciphertext(&mut input, is_dry_run)?;
    refuse_recipient(&input)?;
    if blob.is_none() && !ignores_ciphertext {
        input.missing("CiphertextBlob");
    }
    input.finish()?;
    let (key, blob) = match (blob, name) {
        (Some(blob), name) => {
            let blob = Blob::decode(&blob)?;
            (key_of_blob(call, &blob, name.as_deref())?, Some(blob))
        }
        (None, Some(name)) => (usable_key(call, &name)?, None),
        (None, None) => {
            return Err(KmsError::validation("KeyId is required where there is no CiphertextBlob."));
        }
    };
    check_algorithm(call, &key, algorithm)?;
    end_dry_run(is_dry_run)?;
    // INVARIANT: a request without a blob is a dry run, which has ended.
    let Some(blob) = blob else { return Err(KmsError::bare(Exception::InvalidCiphertextException)) };
    let plaintext = decrypt_under(call, &key, &context, &blob.layers).await?;
    let mut answer = json!({
        "KeyId": call.home().key_arn(&key.id),
        "Plaintext": STANDARD.encode(&plaintext),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    });
    add_material_id(&mut answer, "KeyMaterialId", &key);
    Ok(Some(answer))
}

/// The key that made a blob; where the caller named one, it must be that.
pub(super) fn key_of_blob(call: &Call<'_>, blob: &Blob, name: Option<&str>) -> Result<Key, KmsError> {
    call.service.read(|state, _| {
        let named = name.map(|name| state.key(call.home(), name)).transpose()?;
        // AWS does not say whether such a key exists.
        let unknown = || {
            let message = "The ciphertext refers to a customer master key that does not exist, does not exist in this \
                           region, or you are not allowed to access.";
            KmsError::new(Exception::AccessDeniedException, message)
        };
        if named.is_some_and(|named| named.id != blob.key_id) {
            let message = "The key ID in the request does not identify a CMK that can perform this operation.";
            return Err(KmsError::new(Exception::IncorrectKeyException, message));
        }
        let key = state.keys.get(&blob.key_id).ok_or_else(unknown)?;
        checked_usable(call, state, key)
    })
}

/// A key that the caller named and may use now.
pub(super) fn usable_key(call: &Call<'_>, name: &str) -> Result<Key, KmsError> {
    call.service.read(|state, _| checked_usable(call, state, state.key(call.home(), name)?))
}

fn checked_usable(call: &Call<'_>, state: &State, key: &Key) -> Result<Key, KmsError> {
    state.check_usable(call.home(), key)?;
    Ok(key.clone())
}

/// Symmetric keys have one algorithm.
pub(super) fn check_algorithm(call: &Call<'_>, key: &Key, algorithm: Option<&str>) -> Result<(), KmsError> {
    match algorithm {
        None | Some("SYMMETRIC_DEFAULT") => Ok(()),
        Some(other) => {
            let arn = call.home().key_arn(&key.id);
            let message =
                format!("Algorithm {other} and key spec SYMMETRIC_DEFAULT of {arn} are not compatible.");
            Err(KmsError::new(Exception::InvalidKeyUsageException, message))
        }
    }
}

/// Reads `DryRun`, and the grant tokens, which grant nothing here.
pub(super) fn dry_run(input: &mut Input<'_>) -> Result<bool, KmsError> {
    input.texts("GrantTokens", &constraint::GRANT_TOKEN, &constraint::GRANT_TOKENS)?;
    input.is_set("DryRun")
}

/// Reads `DryRunModifiers`: a dry run of a decryption may do without the ciphertext.
pub(super) fn ignores_ciphertext(input: &mut Input<'_>, is_dry_run: bool) -> Result<bool, KmsError> {
    static MODIFIER: Text = Text::matching(1, 64, "IGNORE_CIPHERTEXT");
    static MODIFIERS: Text = Text::of_length(0, 1);
    let ignores = !input.texts("DryRunModifiers", &MODIFIER, &MODIFIERS)?.is_empty();
    if ignores && !is_dry_run {
        return Err(KmsError::validation("DryRunModifiers is only valid where DryRun is true."));
    }
    Ok(ignores)
}

/// Ends a dry run that came so far. No proxy is called.
pub(super) fn end_dry_run(is_dry_run: bool) -> Result<(), KmsError> {
    if is_dry_run {
        let message = "The request would have succeeded, but the DryRun option is set.";
        return Err(KmsError::new(Exception::DryRunOperationException, message));
    }
    Ok(())
}

/// Answers encrypted for an enclave are not made here.
pub(super) fn refuse_recipient(input: &Input<'_>) -> Result<(), KmsError> {
    if input.has("Recipient") {
        return Err(KmsError::validation("Recipient is not supported by mock-kms."));
    }
    Ok(())
}

/// Names the key material, of keys whose material is all in KMS.
pub(super) fn add_material_id(answer: &mut Value, member: &str, key: &Key) {
    if key.origin == Origin::AwsKms {
        answer[member] = json!(key.material.id());
    }
}
