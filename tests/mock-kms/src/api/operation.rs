//! Which operations there are, and who answers each.

use serde_json::Value;

use super::service::Call;
use super::{
    aliases, cryptography, data_keys, keys, policies, re_encrypt, rotation, store_connection, stores, tags,
    unsupported,
};
use crate::kms::KmsError;

/// What an operation answers: a JSON object, or no body at all, as some operations do.
pub type Answer = Result<Option<Value>, KmsError>;

/// The name of an operation of the KMS API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation(&'static str);

/// Every operation of the service model.
const ALL: [&str; 56] = [
    "CancelKeyDeletion",
    "ConnectCustomKeyStore",
    "CreateAlias",
    "CreateCustomKeyStore",
    "CreateGrant",
    "CreateKey",
    "Decapsulate",
    "Decrypt",
    "DeleteAlias",
    "DeleteCustomKeyStore",
    "DeleteImportedKeyMaterial",
    "DeriveSharedSecret",
    "DescribeCustomKeyStores",
    "DescribeKey",
    "DisableKey",
    "DisableKeyRotation",
    "DisconnectCustomKeyStore",
    "EnableKey",
    "EnableKeyRotation",
    "Encapsulate",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GenerateRandom",
    "GetKeyLastUsage",
    "GetKeyPolicy",
    "GetKeyRotationStatus",
    "GetParametersForImport",
    "GetPublicKey",
    "ImportKeyMaterial",
    "ListAliases",
    "ListGrants",
    "ListKeyPolicies",
    "ListKeyRotations",
    "ListKeys",
    "ListResourceTags",
    "ListRetirableGrants",
    "PutKeyPolicy",
    "ReEncrypt",
    "ReplicateKey",
    "RetireGrant",
    "RevokeGrant",
    "RotateKeyOnDemand",
    "ScheduleKeyDeletion",
    "Sign",
    "TagResource",
    "UntagResource",
    "UpdateAlias",
    "UpdateCustomKeyStore",
    "UpdateKeyDescription",
    "UpdatePrimaryRegion",
    "Verify",
    "VerifyMac",
];

impl Operation {
    /// The operation of that name, if the KMS API has it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        ALL.into_iter().find(|known| *known == name).map(Self)
    }

    /// Every operation of the KMS API.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.into_iter().map(Self)
    }

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// Answers a call.
///
/// # Errors
/// The exceptions of the operation.
pub(super) async fn answer(call: &Call<'_>, body: &Value) -> Answer {
    match call.operation.name() {
        "CreateCustomKeyStore" => stores::create(call, body).await,
        "UpdateCustomKeyStore" => stores::update(call, body).await,
        "DeleteCustomKeyStore" => stores::delete(call, body),
        "DescribeCustomKeyStores" => stores::describe(call, body),
        "ConnectCustomKeyStore" => store_connection::connect(call, body),
        "DisconnectCustomKeyStore" => store_connection::disconnect(call, body),
        "CreateKey" => keys::create(call, body).await,
        "DescribeKey" => keys::describe(call, body),
        "ListKeys" => keys::list(call, body),
        "EnableKey" => keys::set_enabled(call, body, true),
        "DisableKey" => keys::set_enabled(call, body, false),
        "UpdateKeyDescription" => keys::update_description(call, body),
        "ScheduleKeyDeletion" => keys::schedule_deletion(call, body),
        "CancelKeyDeletion" => keys::cancel_deletion(call, body),
        "CreateAlias" => aliases::create(call, body),
        "UpdateAlias" => aliases::update(call, body),
        "DeleteAlias" => aliases::delete(call, body),
        "ListAliases" => aliases::list(call, body),
        "TagResource" => tags::tag(call, body),
        "UntagResource" => tags::untag(call, body),
        "ListResourceTags" => tags::list(call, body),
        "GetKeyPolicy" => policies::describe(call, body),
        "PutKeyPolicy" => policies::put(call, body),
        "ListKeyPolicies" => policies::list(call, body),
        "Encrypt" => cryptography::encrypt(call, body).await,
        "Decrypt" => cryptography::decrypt(call, body).await,
        "ReEncrypt" => re_encrypt::re_encrypt(call, body).await,
        "GenerateDataKey" => data_keys::generate(call, body, true).await,
        "GenerateDataKeyWithoutPlaintext" => data_keys::generate(call, body, false).await,
        "GenerateRandom" => data_keys::random(call, body),
        "EnableKeyRotation" => rotation::enable(call, body),
        "DisableKeyRotation" => rotation::disable(call, body),
        "GetKeyRotationStatus" => rotation::status(call, body),
        _ => unsupported::answer(call, body),
    }
}
