//! CreateCustomKeyStore, UpdateCustomKeyStore, DeleteCustomKeyStore, DescribeCustomKeyStores.

use serde_json::{Value, json};

use super::failure::{Purpose, all_unavailable, exception, is_all_unavailable};
use super::input::Input;
use super::metadata::store_entry;
use super::operation::Answer;
use super::service::Call;
use crate::kms::constraint::{self, LIMIT};
use crate::kms::name::new_store_id;
use crate::kms::page::{Page, page};
use crate::kms::store::{Connectivity, ProxySettings, SecretText, StoreChange};
use crate::kms::stores::{service_name_missing, service_name_unexpected};
use crate::kms::{Exception, KmsError};

const DEFAULT_PAGE: usize = 100;

pub(super) async fn create(call: &Call<'_>, body: &Value) -> Answer {
    let (name, proxy) = new_store(call, body)?;
    call.service.read(|state, _| state.check_new_store(&name, &proxy))?;
    // Behind a VPC endpoint service the proxy is first called when the store connects.
    if proxy.connectivity == Connectivity::PublicEndpoint {
        check_health(call, "", &proxy).await?;
    }
    let id = new_store_id()?;
    call.service.change(|state, now| state.create_store(id.clone(), name, proxy, now))?;
    Ok(Some(json!({ "CustomKeyStoreId": id })))
}

fn new_store(call: &Call<'_>, body: &Value) -> Result<(String, ProxySettings), KmsError> {
    let mut input = Input::new(body)?;
    let name = input.required_text("CustomKeyStoreName", &constraint::STORE_NAME)?;
    let kind = input.choice("CustomKeyStoreType", &["AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"])?;
    let cluster = input.text("CloudHsmClusterId", &constraint::CLUSTER_ID)?;
    let trust_anchor = input.text("TrustAnchorCertificate", &constraint::TRUST_ANCHOR)?;
    let has_password = input.has("KeyStorePassword");
    if has_password {
        input.required_secret("KeyStorePassword", &constraint::STORE_PASSWORD)?;
    }
    let proxy = proxy_members(&mut input, false)?;
    input.finish()?;
    if kind != Some("EXTERNAL_KEY_STORE") {
        return Err(no_cluster(cluster.as_deref()));
    }
    if cluster.is_some() || trust_anchor.is_some() || has_password {
        return Err(KmsError::validation(
            "CloudHsmClusterId, TrustAnchorCertificate and KeyStorePassword are not valid for an EXTERNAL_KEY_STORE.",
        ));
    }
    let required =
        |what: &str| KmsError::validation(format!("{what} is required for an EXTERNAL_KEY_STORE."));
    let connectivity = proxy.connectivity.ok_or_else(|| required("XksProxyConnectivity"))?;
    let (access_key_id, secret_access_key) =
        proxy.credential.ok_or_else(|| required("XksProxyAuthenticationCredential"))?;
    let mut settings = ProxySettings {
        connectivity,
        uri_endpoint: proxy.uri_endpoint.ok_or_else(|| required("XksProxyUriEndpoint"))?,
        uri_path: proxy.uri_path.ok_or_else(|| required("XksProxyUriPath"))?,
        vpc_service_name: proxy.vpc_service_name,
        vpc_service_owner: proxy.vpc_service_owner,
        access_key_id,
        secret_access_key,
    };
    match connectivity {
        Connectivity::PublicEndpoint
            if settings.vpc_service_name.is_some() || settings.vpc_service_owner.is_some() =>
        {
            return Err(service_name_unexpected());
        }
        Connectivity::VpcEndpointService => {
            let service = settings.vpc_service_name.as_deref().ok_or_else(service_name_missing)?;
            check_region(call, service)?;
            settings.vpc_service_owner.get_or_insert_with(|| call.home().account_id.clone());
        }
        Connectivity::PublicEndpoint => {}
    }
    Ok((name, settings))
}

pub(super) async fn update(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let id = input.required_text("CustomKeyStoreId", &constraint::STORE_ID)?;
    let name = input.text("NewCustomKeyStoreName", &constraint::STORE_NAME)?;
    let has_cluster = input.text("CloudHsmClusterId", &constraint::CLUSTER_ID)?.is_some();
    let has_password = input.has("KeyStorePassword");
    let change = StoreChange { name, ..proxy_members(&mut input, true)? };
    input.finish()?;
    if has_cluster || has_password {
        let message = "CloudHsmClusterId and KeyStorePassword are not valid for an EXTERNAL_KEY_STORE.";
        return Err(KmsError::validation(message));
    }
    if let Some(service) = &change.vpc_service_name {
        check_region(call, service)?;
    }
    let changed =
        call.service.read(|state, now| state.changed_store(call.home(), &id, change.clone(), now))?;
    if change.concerns_proxy() {
        check_health(call, &id, &changed.proxy).await?;
    }
    call.service.change(|state, now| state.update_store(call.home(), &id, change, now))?;
    Ok(Some(json!({})))
}

pub(super) fn delete(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let id = input.required_text("CustomKeyStoreId", &constraint::STORE_ID)?;
    input.finish()?;
    call.service.change(|state, _| state.delete_store(&id))?;
    Ok(Some(json!({})))
}

pub(super) fn describe(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let id = input.text("CustomKeyStoreId", &constraint::STORE_ID)?;
    let name = input.text("CustomKeyStoreName", &constraint::STORE_NAME)?;
    let limit = input.count("Limit", LIMIT)?;
    let marker = input.text("Marker", &constraint::MARKER)?;
    input.finish()?;
    call.service.read(|state, _| match (id, name) {
        (Some(_), Some(_)) => {
            Err(KmsError::validation("Specify either CustomKeyStoreId or CustomKeyStoreName, but not both."))
        }
        (Some(id), None) => {
            Ok(Some(json!({ "CustomKeyStores": [store_entry(state.store(&id)?)], "Truncated": false })))
        }
        (None, Some(name)) => Ok(Some(
            json!({ "CustomKeyStores": [store_entry(state.store_by_name(&name)?)], "Truncated": false }),
        )),
        (None, None) => {
            let stores = state.stores.iter().map(|(id, store)| (id.as_str(), store_entry(store)));
            let page = page(stores, marker.as_deref(), limit.unwrap_or(DEFAULT_PAGE))?;
            Ok(Some(paged("CustomKeyStores", page)))
        }
    })
}

/// A page of a list in an answer.
pub(super) fn paged(name: &str, page: Page<Value>) -> Value {
    let mut answer = json!({ "Truncated": page.next_marker.is_some() });
    answer[name] = Value::Array(page.items);
    if let Some(marker) = page.next_marker {
        answer["NextMarker"] = Value::String(marker);
    }
    answer
}

fn proxy_members(input: &mut Input<'_>, is_update: bool) -> Result<StoreChange, KmsError> {
    let connectivity = input.choice("XksProxyConnectivity", &["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"])?;
    // The documented way to say that a store has no VPC endpoint service any more.
    let ends_service = is_update
        && connectivity == Some("PUBLIC_ENDPOINT")
        && input.is_empty_text("XksProxyVpcEndpointServiceName");
    let change = StoreChange {
        name: None,
        connectivity: connectivity.map(|name| match name {
            "PUBLIC_ENDPOINT" => Connectivity::PublicEndpoint,
            _ => Connectivity::VpcEndpointService,
        }),
        uri_endpoint: input.text("XksProxyUriEndpoint", &constraint::URI_ENDPOINT)?,
        uri_path: input.text("XksProxyUriPath", &constraint::URI_PATH)?,
        vpc_service_name: if ends_service {
            None
        } else {
            input.text("XksProxyVpcEndpointServiceName", &constraint::VPC_SERVICE_NAME)?
        },
        vpc_service_owner: input.text("XksProxyVpcEndpointServiceOwner", &constraint::ACCOUNT_ID)?,
        credential: credential(input)?,
    };
    Ok(change)
}

fn credential(input: &mut Input<'_>) -> Result<Option<(String, SecretText)>, KmsError> {
    let Some(mut nested) = input.nested("XksProxyAuthenticationCredential")? else { return Ok(None) };
    let access_key_id = nested.required_secret("AccessKeyId", &constraint::ACCESS_KEY_ID)?;
    let secret = nested.required_secret("RawSecretAccessKey", &constraint::SECRET_ACCESS_KEY)?;
    input.absorb(nested);
    Ok(Some((access_key_id, SecretText::new(secret))))
}

async fn check_health(call: &Call<'_>, store_id: &str, proxy: &ProxySettings) -> Result<(), KmsError> {
    let health = call.health(store_id, proxy).await;
    let health = health.map_err(|failure| exception(&failure, Purpose::ManageStore))?;
    if is_all_unavailable(&health) { Err(all_unavailable()) } else { Ok(()) }
}

/// A VPC endpoint service is looked for in this Region only; its name says where it is.
fn check_region(call: &Call<'_>, service: &str) -> Result<(), KmsError> {
    let region = &call.home().region;
    if service.split('.').nth(3) == Some(region) {
        return Ok(());
    }
    let message = format!("There is no VPC endpoint service {service} in Region {region}.");
    Err(KmsError::new(Exception::XksProxyVpcEndpointServiceNotFoundException, message))
}

/// There are no CloudHSM clusters here.
fn no_cluster(cluster: Option<&str>) -> KmsError {
    match cluster {
        None => KmsError::validation("CloudHsmClusterId is required for an AWS_CLOUDHSM key store."),
        Some(cluster) => {
            let message = format!("There is no CloudHSM cluster {cluster}.");
            KmsError::new(Exception::CloudHsmClusterNotFoundException, message)
        }
    }
}
