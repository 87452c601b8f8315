//! CreateKey, DescribeKey, ListKeys, EnableKey, DisableKey, UpdateKeyDescription, ScheduleKeyDeletion,
//! CancelKeyDeletion.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use xks_spec::response::{AES_256, DECRYPT, ENCRYPT, GetKeyMetadataResponse, KeyStatus};

use super::failure::{Purpose, exception};
use super::input::Input;
use super::metadata::key_metadata;
use super::operation::Answer;
use super::policies::{check_policy, default_policy};
use super::service::Call;
use super::stores::paged;
use crate::kms::constraint::{self, LIMIT, PENDING_WINDOW_DAYS, Text};
use crate::kms::key::{
    DEFAULT_PENDING_WINDOW_DAYS, DEFAULT_ROTATION_PERIOD_DAYS, Key, MAX_TAGS, Material, Origin,
};
use crate::kms::name::new_uuid;
use crate::kms::page::page;
use crate::kms::{Exception, KmsError};

const DEFAULT_PAGE: usize = 100;
const KEY_USAGES: [&str; 5] =
    ["SIGN_VERIFY", "ENCRYPT_DECRYPT", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT", "ENCAPSULATE_DECAPSULATE"];
const ORIGINS: [&str; 4] = ["AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"];
const KEY_SPECS: [&str; 20] = [
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT",
    "HMAC_224",
    "HMAC_256",
    "HMAC_384",
    "HMAC_512",
    "SM2",
    "ML_DSA_44",
    "ML_DSA_65",
    "ML_DSA_87",
    "ECC_NIST_EDWARDS25519",
    "ML_KEM_512",
    "ML_KEM_768",
    "ML_KEM_1024",
];

pub(super) async fn create(call: &Call<'_>, body: &Value) -> Answer {
    let new = NewKey::parse(call, body)?;
    if let Some((store_id, xks_key_id)) = new.origin.external_key() {
        let store = call.service.read(|state, _| state.check_new_xks_key(store_id, xks_key_id).cloned())?;
        let metadata = call.key_metadata(&store, xks_key_id).await;
        check_external_key(&metadata.map_err(|failure| exception(&failure, Purpose::CreateKey))?)?;
    }
    let (id, material) = (new_uuid()?, Material::random()?);
    let NewKey { origin, description, policy, tags } = new;
    call.service.change(|state, now| {
        let key = Key {
            id,
            created: now,
            description,
            policy,
            tags,
            is_enabled: true,
            deletion: None,
            origin,
            is_rotating: false,
            rotation_period_days: DEFAULT_ROTATION_PERIOD_DAYS,
            material,
        };
        let metadata = key_metadata(call.home(), &key, state.key_state(&key));
        state.create_key(key)?;
        Ok(Some(json!({ "KeyMetadata": metadata })))
    })
}

struct NewKey {
    origin: Origin,
    description: String,
    policy: String,
    tags: BTreeMap<String, String>,
}

impl NewKey {
    fn parse(call: &Call<'_>, body: &Value) -> Result<Self, KmsError> {
        let mut input = Input::new(body)?;
        let policy = input.text("Policy", &constraint::POLICY)?;
        let description = input.text("Description", &constraint::DESCRIPTION)?.unwrap_or_default();
        let usage = input.choice("KeyUsage", &KEY_USAGES)?.unwrap_or("ENCRYPT_DECRYPT");
        let old_spec = input.choice("CustomerMasterKeySpec", &KEY_SPECS[..13])?;
        let new_spec = input.choice("KeySpec", &KEY_SPECS)?;
        let origin = input.choice("Origin", &ORIGINS)?.unwrap_or("AWS_KMS");
        let store_id = input.text("CustomKeyStoreId", &constraint::STORE_ID)?;
        input.is_set("BypassPolicyLockoutSafetyCheck")?;
        let tags = input.tags("Tags")?;
        let is_multi_region = input.is_set("MultiRegion")?;
        let xks_key_id = input.text("XksKeyId", &constraint::XKS_KEY_ID)?;
        input.finish()?;
        if old_spec.is_some() && new_spec.is_some() {
            return Err(KmsError::validation(
                "You cannot specify KeySpec and CustomerMasterKeySpec in the same request.",
            ));
        }
        let origin = new_origin(origin, store_id, xks_key_id)?;
        if usage != "ENCRYPT_DECRYPT"
            || new_spec.or(old_spec).unwrap_or("SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT"
        {
            return Err(unsupported(
                "Only KeySpec SYMMETRIC_DEFAULT with KeyUsage ENCRYPT_DECRYPT is supported.",
            ));
        }
        if is_multi_region {
            return Err(unsupported("Multi-Region keys are not supported."));
        }
        if let Some(policy) = &policy {
            check_policy(policy)?;
        }
        if tags.len() > MAX_TAGS {
            return Err(KmsError::new(
                Exception::LimitExceededException,
                "A KMS key can have at most 50 tags.",
            ));
        }
        Ok(Self { origin, description, policy: policy.unwrap_or_else(|| default_policy(call.home())), tags })
    }
}

fn new_origin(
    origin: &str,
    store_id: Option<String>,
    xks_key_id: Option<String>,
) -> Result<Origin, KmsError> {
    match (origin, store_id, xks_key_id) {
        ("EXTERNAL_KEY_STORE", Some(store_id), Some(xks_key_id)) => {
            Ok(Origin::ExternalKeyStore { store_id, xks_key_id })
        }
        ("EXTERNAL_KEY_STORE", None, _) => {
            Err(KmsError::validation("CustomKeyStoreId is required for Origin EXTERNAL_KEY_STORE."))
        }
        ("EXTERNAL_KEY_STORE", _, None) => {
            Err(KmsError::validation("XksKeyId is required for Origin EXTERNAL_KEY_STORE."))
        }
        (_, _, Some(_)) => Err(KmsError::validation("XksKeyId is only valid for Origin EXTERNAL_KEY_STORE.")),
        ("AWS_KMS", None, None) => Ok(Origin::AwsKms),
        ("AWS_KMS", Some(_), None) => {
            Err(KmsError::validation("CustomKeyStoreId is not valid for Origin AWS_KMS."))
        }
        (other, _, None) => Err(unsupported(&format!("Origin {other} is not supported."))),
    }
}

fn unsupported(message: &str) -> KmsError {
    KmsError::new(Exception::UnsupportedOperationException, message)
}

/// The three conditions of CreateKey; the messages are those of the KMS developer guide.
fn check_external_key(metadata: &GetKeyMetadataResponse) -> Result<(), KmsError> {
    let wrong = |message| Err(KmsError::new(Exception::XksKeyInvalidConfigurationException, message));
    if metadata.key_spec != AES_256 {
        return wrong(format!(
            "The key spec of the external key must be AES_256. The key spec of specified external key is {}.",
            metadata.key_spec
        ));
    }
    if metadata.key_status != KeyStatus::Enabled {
        return wrong(
            "The status of the external key must be ENABLED. The status of specified external key is DISABLED."
                .to_owned(),
        );
    }
    let usage = &metadata.key_usage;
    if ![ENCRYPT, DECRYPT].iter().all(|needed| usage.iter().any(|found| found == needed)) {
        return wrong(format!(
            "The key usage of the external key must include ENCRYPT and DECRYPT. The key use of specified external key \
             is {}.",
            usage.join(", ")
        ));
    }
    Ok(())
}

pub(super) fn describe(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    input.texts("GrantTokens", &constraint::GRANT_TOKEN, &constraint::GRANT_TOKENS)?;
    input.finish()?;
    call.service.read(|state, _| {
        let key = state.key(call.home(), &name)?;
        Ok(Some(json!({ "KeyMetadata": key_metadata(call.home(), key, state.key_state(key)) })))
    })
}

pub(super) fn list(call: &Call<'_>, body: &Value) -> Answer {
    static RESOURCE_OWNER: Text = Text::matching(1, 64, "SELF|OTHER_ACCOUNTS_VIA_RAM");
    static RESOURCE_OWNERS: Text = Text::of_length(1, 2);
    let mut input = Input::new(body)?;
    let limit = input.count("Limit", LIMIT)?;
    let marker = input.text("Marker", &constraint::MARKER)?;
    let owners = input.texts("ResourceOwners", &RESOURCE_OWNER, &RESOURCE_OWNERS)?;
    input.finish()?;
    // Nobody shares keys with the one account that there is.
    let is_mine_wanted = owners.is_empty() || owners.iter().any(|owner| owner == "SELF");
    call.service.read(|state, _| {
        let entry = |id: &String| json!({ "KeyId": id, "KeyArn": call.home().key_arn(id) });
        let keys = state.keys.keys().filter(|_| is_mine_wanted).map(|id| (id.as_str(), entry(id)));
        let page = page(keys, marker.as_deref(), limit.unwrap_or(DEFAULT_PAGE))?;
        Ok(Some(paged("Keys", page)))
    })
}

pub(super) fn set_enabled(call: &Call<'_>, body: &Value, is_enabled: bool) -> Answer {
    let name = key_name(body)?;
    call.service.change(|state, _| {
        state.change_key(call.home(), &name, |key| {
            key.is_enabled = is_enabled;
            Ok(())
        })
    })?;
    Ok(None)
}

pub(super) fn update_description(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let description = input.required_text("Description", &constraint::DESCRIPTION)?;
    input.finish()?;
    call.service.change(|state, _| {
        state.change_key(call.home(), &name, |key| {
            key.description = description;
            Ok(())
        })
    })?;
    Ok(None)
}

pub(super) fn schedule_deletion(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let window_days = input.number("PendingWindowInDays", PENDING_WINDOW_DAYS)?;
    input.finish()?;
    let window_days = window_days.unwrap_or(DEFAULT_PENDING_WINDOW_DAYS);
    call.service.change(|state, now| {
        let key = state.schedule_deletion(call.home(), &name, window_days, now)?;
        Ok(Some(json!({
            "KeyId": call.home().key_arn(&key.id),
            "DeletionDate": now.plus_days(window_days).as_epoch_secs(),
            "KeyState": state.key_state(&key).as_str(),
            "PendingWindowInDays": window_days,
        })))
    })
}

pub(super) fn cancel_deletion(call: &Call<'_>, body: &Value) -> Answer {
    let name = key_name(body)?;
    let arn = call.service.change(|state, _| state.cancel_deletion(call.home(), &name))?;
    Ok(Some(json!({ "KeyId": arn })))
}

/// The one member of many requests.
pub(super) fn key_name(body: &Value) -> Result<String, KmsError> {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    input.finish()?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_key_must_meet_three_conditions() {
        let metadata = |key_spec: &str, usage: &[&str], key_status| GetKeyMetadataResponse {
            key_spec: key_spec.to_owned(),
            key_usage: usage.iter().map(|usage| (*usage).to_owned()).collect(),
            key_status,
        };
        let both = &["ENCRYPT", "DECRYPT", "WRAP"][..];
        let message = |metadata| check_external_key(&metadata).unwrap_err().message.unwrap();
        assert!(check_external_key(&metadata("AES_256", both, KeyStatus::Enabled)).is_ok());
        assert_eq!(
            message(metadata("AES_128", both, KeyStatus::Enabled)),
            "The key spec of the external key must be AES_256. The key spec of specified external key is AES_128."
        );
        assert_eq!(
            message(metadata("AES_256", both, KeyStatus::Disabled)),
            "The status of the external key must be ENABLED. The status of specified external key is DISABLED."
        );
        assert_eq!(
            message(metadata("AES_256", &["ENCRYPT", "SIGN"], KeyStatus::Enabled)),
            "The key usage of the external key must include ENCRYPT and DECRYPT. The key use of specified external key \
             is ENCRYPT, SIGN."
        );
    }
}
