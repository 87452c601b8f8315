//! Operations that keys in external key stores do not support, answered as documented, and those that this KMS lacks.

use serde_json::Value;

use super::input::Input;
use super::operation::Answer;
use super::service::Call;
use crate::kms::constraint;
use crate::kms::key::{Key, Origin};
use crate::kms::{Exception, KmsError};

/// Answers every operation that nobody else answers.
pub(super) fn answer(call: &Call<'_>, body: &Value) -> Answer {
    let operation = call.operation.name();
    match operation {
        "GenerateDataKeyPair"
        | "GenerateDataKeyPairWithoutPlaintext"
        | "RotateKeyOnDemand"
        | "ListKeyRotations"
        | "GetParametersForImport"
        | "ImportKeyMaterial"
        | "DeleteImportedKeyMaterial"
        | "ReplicateKey"
        | "UpdatePrimaryRegion"
        | "GetPublicKey" => with_key(call, body, |key| {
            check_in_kms(call, key)?;
            Err(lacking(operation))
        }),
        "Sign" | "Verify" | "GenerateMac" | "VerifyMac" | "DeriveSharedSecret" | "Encapsulate"
        | "Decapsulate" => with_key(call, body, |key| {
            let arn = call.home().key_arn(&key.id);
            let message = format!("{arn} key usage is ENCRYPT_DECRYPT which is not valid for {operation}.");
            Err(KmsError::new(Exception::InvalidKeyUsageException, message))
        }),
        _ => Err(lacking(operation)),
    }
}

/// # Errors
/// `UnsupportedOperationException` for a key in an external key store.
pub(super) fn check_in_kms(call: &Call<'_>, key: &Key) -> Result<(), KmsError> {
    if key.origin == Origin::AwsKms {
        return Ok(());
    }
    let arn = call.home().key_arn(&key.id);
    let message = format!("{arn} origin is EXTERNAL_KEY_STORE which is not valid for this operation.");
    Err(KmsError::new(Exception::UnsupportedOperationException, message))
}

fn with_key(call: &Call<'_>, body: &Value, judge: impl FnOnce(&Key) -> Answer) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    input.finish()?;
    call.service.read(|state, _| judge(state.key(call.home(), &name)?))
}

fn lacking(operation: &str) -> KmsError {
    KmsError::new(Exception::UnsupportedOperationException, format!("mock-kms does not support {operation}."))
}
