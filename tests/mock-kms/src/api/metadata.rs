//! How stores and keys look in answers.

use serde_json::{Map, Value, json};

use crate::kms::key::{Key, KeyState};
use crate::kms::name::Home;
use crate::kms::store::{ConnectionState, Store};

/// `KeyMetadata`.
pub(super) fn key_metadata(home: &Home, key: &Key, state: KeyState) -> Value {
    let mut metadata = json!({
        "AWSAccountId": home.account_id,
        "KeyId": key.id,
        "Arn": home.key_arn(&key.id),
        "CreationDate": key.created.as_epoch_secs(),
        "Enabled": state == KeyState::Enabled,
        "Description": key.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": state.as_str(),
        "Origin": key.origin.as_str(),
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": false,
    });
    match key.origin.external_key() {
        Some((store_id, xks_key_id)) => {
            metadata["CustomKeyStoreId"] = json!(store_id);
            metadata["XksKeyConfiguration"] = json!({ "Id": xks_key_id });
        }
        None => metadata["CurrentKeyMaterialId"] = json!(key.material.id()),
    }
    if let Some(deletion) = key.deletion {
        metadata["DeletionDate"] = json!(deletion.at.as_epoch_secs());
    }
    metadata
}

/// An entry of `CustomKeyStores`. The secret access key is never in it.
pub(super) fn store_entry(store: &Store) -> Value {
    let proxy = &store.proxy;
    let mut configuration = Map::from_iter([
        ("Connectivity".to_owned(), json!(proxy.connectivity.as_str())),
        ("AccessKeyId".to_owned(), json!(proxy.access_key_id)),
        ("UriEndpoint".to_owned(), json!(proxy.uri_endpoint)),
        ("UriPath".to_owned(), json!(proxy.uri_path)),
    ]);
    if let Some(name) = &proxy.vpc_service_name {
        configuration.insert("VpcEndpointServiceName".to_owned(), json!(name));
    }
    if let Some(owner) = &proxy.vpc_service_owner {
        configuration.insert("VpcEndpointServiceOwner".to_owned(), json!(owner));
    }
    let mut entry = json!({
        "CustomKeyStoreId": store.id,
        "CustomKeyStoreName": store.name,
        "ConnectionState": store.connection.as_str(),
        "CreationDate": store.created.as_epoch_secs(),
        "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
        "XksProxyConfiguration": configuration,
    });
    if let ConnectionState::Failed(code) = store.connection {
        entry["ConnectionErrorCode"] = json!(code.as_str());
    }
    entry
}
