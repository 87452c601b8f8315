//! aws-sdk-kms against mock-kms and a real proxy: store, key, cryptography, errors.

use std::error::Error;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    ConnectionStateType, CustomKeyStoreType, DataKeySpec, OriginType, XksProxyAuthenticationCredentialType,
    XksProxyConnectivityType,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let kms = Client::new(&config);
    let store = connected_store(&kms).await?;

    let create = kms.create_key().origin(OriginType::ExternalKeyStore).custom_key_store_id(&store);
    let key = create.clone().xks_key_id("demo").send().await?.key_metadata.ok_or("no metadata")?;
    let arn = key.arn.ok_or("no ARN")?;
    let absent = create.xks_key_id("absent").send().await.unwrap_err().into_service_error();
    assert!(absent.is_xks_key_not_found_exception(), "{absent:?}");

    let plaintext = vec![7; 4096];
    let encrypt = kms.encrypt().key_id(&arn).plaintext(Blob::new(plaintext.clone()));
    let encrypt = encrypt.encryption_context("a", "1").encryption_context("b", "2");
    let blob = encrypt.clone().send().await?.ciphertext_blob.ok_or("no blob")?;
    let decrypt = kms.decrypt().ciphertext_blob(blob);
    let decrypted = decrypt.clone().encryption_context("b", "2").encryption_context("a", "1").send().await?;
    assert_eq!(decrypted.plaintext.ok_or("no plaintext")?.into_inner(), plaintext);
    let refused = decrypt.send().await.unwrap_err().into_service_error();
    assert!(refused.is_kms_invalid_state_exception(), "{refused:?}");

    let data_key = kms.generate_data_key().key_id(&arn).key_spec(DataKeySpec::Aes256).send().await?;
    assert_eq!(data_key.plaintext.ok_or("no plaintext")?.into_inner().len(), 32);
    kms.disable_key().key_id(&arn).send().await?;
    let disabled = encrypt.send().await.unwrap_err().into_service_error();
    assert!(disabled.is_disabled_exception(), "{disabled:?}");
    kms.disconnect_custom_key_store().custom_key_store_id(&store).send().await?;
    println!("aws-sdk-kms is served");
    Ok(())
}

async fn connected_store(kms: &Client) -> Result<String, Box<dyn Error>> {
    let credential = XksProxyAuthenticationCredentialType::builder()
        .access_key_id(std::env::var("XKS_ACCESS_KEY_ID")?)
        .raw_secret_access_key(std::env::var("XKS_SECRET_ACCESS_KEY")?)
        .build()?;
    let created = kms
        .create_custom_key_store()
        .custom_key_store_name("aws-sdk-kms")
        .custom_key_store_type(CustomKeyStoreType::ExternalKeyStore)
        .xks_proxy_connectivity(XksProxyConnectivityType::PublicEndpoint)
        .xks_proxy_uri_endpoint("https://localhost")
        .xks_proxy_uri_path(std::env::var("XKS_URI_PATH")?)
        .xks_proxy_authentication_credential(credential)
        .send()
        .await?;
    let store = created.custom_key_store_id.ok_or("no id")?;
    kms.connect_custom_key_store().custom_key_store_id(&store).send().await?;
    loop {
        let stores = kms.describe_custom_key_stores().custom_key_store_id(&store).send().await?;
        let entry = stores.custom_key_stores.and_then(|stores| stores.into_iter().next()).ok_or("no store")?;
        match entry.connection_state {
            Some(ConnectionStateType::Connected) => return Ok(store),
            Some(ConnectionStateType::Connecting) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return Err(format!("{other:?} {:?}", entry.connection_error_code).into()),
        }
    }
}
