//! GenerateDataKey, GenerateDataKeyWithoutPlaintext, GenerateRandom.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::cryptography::{add_material_id, dry_run, end_dry_run, refuse_recipient, usable_key};
use super::input::Input;
use super::layers::encrypt_under;
use super::operation::Answer;
use super::service::Call;
use crate::kms::constraint::{self, NUMBER_OF_BYTES};
use crate::kms::name::fill_random;
use crate::kms::{Exception, KmsError};

pub(super) async fn generate(call: &Call<'_>, body: &Value, with_plaintext: bool) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let context = input.context("EncryptionContext")?;
    let bytes = input.count("NumberOfBytes", NUMBER_OF_BYTES)?;
    let spec = input.choice("KeySpec", &["AES_256", "AES_128"])?;
    let is_dry_run = dry_run(&mut input)?;
    refuse_recipient(&input)?;
    let is_ambiguous = input.has("NumberOfBytes") == input.has("KeySpec");
    input.finish()?;
    if is_ambiguous {
        return Err(KmsError::validation("Please specify either number of bytes or key spec."));
    }
    let length = bytes.unwrap_or(if spec == Some("AES_128") { 16 } else { 32 });
    let key = usable_key(call, &name)?;
    end_dry_run(is_dry_run)?;
    let data_key = random_text(length)?;
    let blob = encrypt_under(call, &key, &context, &data_key).await?;
    let mut answer =
        json!({ "CiphertextBlob": STANDARD.encode(blob), "KeyId": call.home().key_arn(&key.id) });
    if with_plaintext {
        answer["Plaintext"] = json!(STANDARD.encode(&data_key));
    }
    add_material_id(&mut answer, "KeyMaterialId", &key);
    Ok(Some(answer))
}

pub(super) fn random(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let bytes = input.count("NumberOfBytes", NUMBER_OF_BYTES)?;
    let store_id = input.text("CustomKeyStoreId", &constraint::STORE_ID)?;
    refuse_recipient(&input)?;
    if bytes.is_none() && !input.has("NumberOfBytes") {
        input.missing("NumberOfBytes");
    }
    input.finish()?;
    if let Some(store_id) = store_id {
        call.service.read(|state, _| state.store(&store_id).map(drop))?;
        let message = format!(
            "Custom key store {store_id} is an external key store, which is not valid for GenerateRandom."
        );
        return Err(KmsError::new(Exception::UnsupportedOperationException, message));
    }
    let random = random_text(bytes.unwrap_or_default())?;
    Ok(Some(json!({ "Plaintext": STANDARD.encode(&random) })))
}

fn random_text(length: usize) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let mut bytes = Zeroizing::new(vec![0; length]);
    fill_random(&mut bytes)?;
    Ok(bytes)
}
