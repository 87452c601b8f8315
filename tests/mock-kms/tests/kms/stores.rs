//! Custom key stores: life cycle, states, uniqueness, limits.

use serde_json::{Value, json};
use xks_harness::proxy::main_store;
use xks_harness::{Proxy, Setup};
use xks_spec::Operation;

use crate::fake_proxy::{Behaviour, FakeProxy};
use crate::mock::{Mock, real, store_members, with, xks_key_members};

const SERVICE: &str = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0";
const SERVICE_2: &str = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef1";

fn id(id: &str) -> Value {
    json!({ "CustomKeyStoreId": id })
}

fn path(name: &str, path: &str) -> Value {
    with(store_members(name), &json!({ "XksProxyUriPath": format!("/{path}/kms/xks/v1") }))
}

fn vpc(name: &str, service: &str) -> Value {
    let changes =
        json!({ "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName": service });
    with(store_members(name), &changes)
}

fn wrong_credential() -> Value {
    json!({
        "AccessKeyId": main_store().signing.access_key_id,
        "RawSecretAccessKey": "wrong+secret/wrong+secret/wrong+secret/wrong+1",
    })
}

async fn exception(mock: &Mock, operation: &str, body: Value) -> String {
    mock.fail(operation, body).await.0
}

#[tokio::test]
async fn a_store_lives_from_creation_to_deletion() {
    let (_proxy, mock) = real().await;
    let store = mock.create_store("one").await;
    let entry = mock.store(&store).await;
    assert_eq!(entry["ConnectionState"], "DISCONNECTED");
    assert_eq!(entry["CustomKeyStoreType"], "EXTERNAL_KEY_STORE");
    assert!(entry.get("ConnectionErrorCode").is_none());
    let configuration = json!({
        "Connectivity": "PUBLIC_ENDPOINT",
        "AccessKeyId": main_store().signing.access_key_id,
        "UriEndpoint": "https://localhost",
        "UriPath": "/main/kms/xks/v1",
    });
    assert_eq!(entry["XksProxyConfiguration"], configuration);
    mock.connect(&store).await;
    mock.call("UpdateCustomKeyStore", with(id(&store), &json!({ "NewCustomKeyStoreName": "two" }))).await;
    let found = mock.call("DescribeCustomKeyStores", json!({ "CustomKeyStoreName": "two" })).await;
    assert_eq!(found["CustomKeyStores"][0]["CustomKeyStoreId"], store.as_str());
    assert_eq!(
        exception(&mock, "DeleteCustomKeyStore", id(&store)).await,
        "CustomKeyStoreInvalidStateException"
    );
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    mock.call("DeleteCustomKeyStore", id(&store)).await;
    let gone = exception(&mock, "DescribeCustomKeyStores", id(&store)).await;
    assert_eq!(gone, "CustomKeyStoreNotFoundException");
    for operation in ["ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore"] {
        assert_eq!(exception(&mock, operation, id(&store)).await, "CustomKeyStoreNotFoundException");
    }
}

#[tokio::test]
async fn a_failed_store_must_be_disconnected_before_it_connects_again() {
    let (_proxy, mock) = real().await;
    let wrong = json!({ "XksProxyAuthenticationCredential": wrong_credential() });
    let refused = exception(&mock, "CreateCustomKeyStore", with(store_members("public"), &wrong)).await;
    assert_eq!(refused, "XksProxyIncorrectAuthenticationCredentialException");
    // Behind a VPC endpoint service, nobody asks the proxy before the store connects.
    let answer = mock.call("CreateCustomKeyStore", with(vpc("private", SERVICE), &wrong)).await;
    let store = answer["CustomKeyStoreId"].as_str().unwrap();
    mock.call("ConnectCustomKeyStore", id(store)).await;
    let failed = mock.settled_store(store).await;
    assert_eq!(failed["ConnectionState"], "FAILED");
    assert_eq!(failed["ConnectionErrorCode"], "INVALID_CREDENTIALS");
    let right = &store_members("")["XksProxyAuthenticationCredential"];
    let update = with(id(store), &json!({ "XksProxyAuthenticationCredential": right }));
    for (operation, body) in [("ConnectCustomKeyStore", id(store)), ("UpdateCustomKeyStore", update.clone())]
    {
        assert_eq!(
            exception(&mock, operation, body).await,
            "CustomKeyStoreInvalidStateException",
            "{operation}"
        );
    }
    mock.call("DisconnectCustomKeyStore", id(store)).await;
    assert!(mock.store(store).await.get("ConnectionErrorCode").is_none());
    mock.call("UpdateCustomKeyStore", update).await;
    mock.connect(store).await;
}

#[tokio::test]
async fn connecting_takes_its_time_and_can_be_called_off() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.create_store("one").await;
    proxy.hold(true);
    mock.call("ConnectCustomKeyStore", id(&store)).await;
    assert_eq!(mock.store(&store).await["ConnectionState"], "CONNECTING");
    mock.call("ConnectCustomKeyStore", id(&store)).await;
    for (operation, body) in [
        ("DeleteCustomKeyStore", id(&store)),
        ("UpdateCustomKeyStore", with(id(&store), &json!({ "NewCustomKeyStoreName": "two" }))),
        ("CreateKey", xks_key_members(&store, "demo")),
    ] {
        assert_eq!(
            exception(&mock, operation, body).await,
            "CustomKeyStoreInvalidStateException",
            "{operation}"
        );
    }
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    assert_eq!(mock.store(&store).await["ConnectionState"], "DISCONNECTED");
    // A second attempt waits too; the first one's answer, which comes now, must not end it.
    mock.call("ConnectCustomKeyStore", id(&store)).await;
    proxy.hold(false);
    assert_eq!(mock.settled_store(&store).await["ConnectionState"], "CONNECTED");
}

#[tokio::test]
async fn disconnecting_can_take_its_time() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &["--disconnect-ms", "3600000"]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    assert_eq!(mock.store(&store).await["ConnectionState"], "DISCONNECTING");
    assert_eq!(mock.key_state(&key).await, "Unavailable");
    for operation in ["ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore"] {
        assert_eq!(exception(&mock, operation, id(&store)).await, "CustomKeyStoreInvalidStateException");
    }
}

#[tokio::test]
async fn names_and_addresses_are_unique() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    mock.create_store("one").await;
    let two = mock.call("CreateCustomKeyStore", path("two", "two")).await;
    let two = two["CustomKeyStoreId"].as_str().unwrap();
    let create = "CreateCustomKeyStore";
    assert_eq!(exception(&mock, create, path("one", "new")).await, "CustomKeyStoreNameInUseException");
    assert_eq!(exception(&mock, create, path("new", "two")).await, "XksProxyUriInUseException");
    assert_eq!(
        exception(
            &mock,
            create,
            with(
                vpc("new", SERVICE),
                &json!({
                    "XksProxyUriPath": "/new/kms/xks/v1"
                })
            )
        )
        .await,
        "XksProxyUriEndpointInUseException"
    );
    let update = |changes| with(id(two), &changes);
    let name = update(json!({ "NewCustomKeyStoreName": "one" }));
    assert_eq!(exception(&mock, "UpdateCustomKeyStore", name).await, "CustomKeyStoreNameInUseException");
    let uri = update(json!({ "XksProxyUriPath": "/main/kms/xks/v1" }));
    assert_eq!(exception(&mock, "UpdateCustomKeyStore", uri).await, "XksProxyUriInUseException");
    // What it has already is not in its own way.
    mock.call("UpdateCustomKeyStore", update(json!({ "NewCustomKeyStoreName": "two" }))).await;
}

#[tokio::test]
async fn vpc_endpoint_services_and_their_names_are_not_shared() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let create = "CreateCustomKeyStore";
    mock.call(create, vpc("one", SERVICE)).await;
    assert!(proxy.take_seen().is_empty());
    let other_host = json!({ "XksProxyUriEndpoint": "https://other.example.com" });
    let same_service = with(vpc("two", SERVICE), &other_host);
    assert_eq!(exception(&mock, create, same_service).await, "XksProxyVpcEndpointServiceInUseException");
    let same_host = with(vpc("two", SERVICE_2), &json!({ "XksProxyUriPath": "/two/kms/xks/v1" }));
    assert_eq!(exception(&mock, create, same_host.clone()).await, "XksProxyUriEndpointInUseException");
    assert_eq!(exception(&mock, create, path("two", "two")).await, "XksProxyUriEndpointInUseException");
    let elsewhere = vpc("two", &SERVICE_2.replace("us-east-1", "eu-west-1"));
    assert_eq!(exception(&mock, create, elsewhere).await, "XksProxyVpcEndpointServiceNotFoundException");
    let two = mock.call(create, with(same_host, &other_host)).await;
    let entry = mock.store(two["CustomKeyStoreId"].as_str().unwrap()).await;
    assert_eq!(entry["XksProxyConfiguration"]["VpcEndpointServiceName"], SERVICE_2);
    assert_eq!(entry["XksProxyConfiguration"]["VpcEndpointServiceOwner"], "111122223333");
}

#[tokio::test]
async fn an_update_is_proven_before_it_applies() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let update = |changes| with(id(&store), &changes);
    // Connected: name, credential and path only.
    for changes in [
        json!({ "XksProxyUriEndpoint": "https://localhost" }),
        json!({ "XksProxyConnectivity": "PUBLIC_ENDPOINT" }),
        json!({ "XksProxyVpcEndpointServiceName": SERVICE }),
    ] {
        let refused = exception(&mock, "UpdateCustomKeyStore", update(changes.clone())).await;
        assert_eq!(refused, "CustomKeyStoreInvalidStateException", "{changes}");
    }
    let new_path = update(json!({ "XksProxyUriPath": "/new/kms/xks/v1" }));
    proxy.behave(Behaviour::Refuse(xks_spec::ErrorName::InvalidUriPathException));
    let refused = exception(&mock, "UpdateCustomKeyStore", new_path.clone()).await;
    assert_eq!(refused, "XksProxyInvalidConfigurationException");
    assert_eq!(mock.store(&store).await["XksProxyConfiguration"]["UriPath"], "/main/kms/xks/v1");
    // A name alone concerns no proxy.
    mock.call("UpdateCustomKeyStore", update(json!({ "NewCustomKeyStoreName": "two" }))).await;
    proxy.behave(Behaviour::Good);
    mock.call("UpdateCustomKeyStore", new_path).await;
    assert_eq!(mock.store(&store).await["XksProxyConfiguration"]["UriPath"], "/new/kms/xks/v1");
    // Disconnected: everything, connectivity only together with the endpoint.
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    let private =
        json!({ "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName": SERVICE });
    assert_eq!(
        exception(&mock, "UpdateCustomKeyStore", update(private.clone())).await,
        "ValidationException"
    );
    let endpoint = json!({ "XksProxyUriEndpoint": "https://LOCALHOST" });
    mock.call("UpdateCustomKeyStore", update(with(private, &endpoint))).await;
    let configuration = mock.store(&store).await["XksProxyConfiguration"].clone();
    assert_eq!(configuration["VpcEndpointServiceOwner"], "111122223333");
    // Empty is no name, but for a store that is to have none.
    for changes in [
        json!({ "XksProxyVpcEndpointServiceName": "" }),
        json!({ "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName": "" }),
    ] {
        let (exception, message) = mock.fail("UpdateCustomKeyStore", update(changes)).await;
        assert_eq!(exception, "ValidationException");
        assert!(message.contains("'xksProxyVpcEndpointServiceName'"), "{message}");
    }
    // Who owns the service stays until it is said otherwise.
    let owner = json!({ "XksProxyVpcEndpointServiceOwner": "444455556666" });
    mock.call("UpdateCustomKeyStore", update(owner)).await;
    for changes in [
        json!({ "XksProxyVpcEndpointServiceName": SERVICE_2 }),
        json!({ "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE", "XksProxyUriPath": "/newer/kms/xks/v1" }),
    ] {
        mock.call("UpdateCustomKeyStore", update(changes)).await;
        let configuration = mock.store(&store).await["XksProxyConfiguration"].clone();
        assert_eq!(configuration["VpcEndpointServiceOwner"], "444455556666");
    }
    let public = json!({
        "XksProxyConnectivity": "PUBLIC_ENDPOINT",
        "XksProxyUriEndpoint": "https://localhost",
        "XksProxyVpcEndpointServiceName": "",
    });
    mock.call("UpdateCustomKeyStore", update(public)).await;
    let configuration = mock.store(&store).await["XksProxyConfiguration"].clone();
    assert_eq!(configuration["Connectivity"], "PUBLIC_ENDPOINT");
    assert!(configuration.get("VpcEndpointServiceName").is_none());
}

#[tokio::test]
async fn there_are_ten_stores_at_most_and_they_come_in_pages() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    for turn in 0..10 {
        mock.call("CreateCustomKeyStore", path(&format!("store {turn}"), &format!("store-{turn}"))).await;
    }
    assert_eq!(
        exception(&mock, "CreateCustomKeyStore", path("more", "more")).await,
        "LimitExceededException"
    );
    let mut seen = Vec::new();
    let mut marker = Value::Null;
    loop {
        let body = with(json!({ "Limit": 4 }), &json!({ "Marker": marker }));
        let page = mock.call("DescribeCustomKeyStores", body).await;
        seen.extend(page["CustomKeyStores"].as_array().unwrap().clone());
        assert_eq!(page["Truncated"], page.get("NextMarker").is_some());
        let Some(next) = page.get("NextMarker") else { break };
        marker = next.clone();
    }
    assert_eq!(seen.len(), 10);
    let invalid = exception(&mock, "DescribeCustomKeyStores", json!({ "Marker": "no marker" })).await;
    assert_eq!(invalid, "InvalidMarkerException");
}

#[tokio::test]
async fn a_store_with_keys_cannot_be_deleted_not_even_with_one_that_is_leaving() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    assert_eq!(exception(&mock, "DeleteCustomKeyStore", id(&store)).await, "CustomKeyStoreHasCMKsException");
    mock.call("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 })).await;
    assert_eq!(exception(&mock, "DeleteCustomKeyStore", id(&store)).await, "CustomKeyStoreHasCMKsException");
    mock.advance_days(7).await;
    mock.call("DeleteCustomKeyStore", id(&store)).await;
}

#[tokio::test]
async fn a_proxy_without_a_working_key_manager_is_not_reachable() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.create_store("one").await;
    proxy.behave_for(
        Operation::GetHealthStatus,
        Behaviour::Lie(|answer| answer["ekmFleetDetails"][0]["healthStatus"] = "UNAVAILABLE".into()),
    );
    let created = exception(&mock, "CreateCustomKeyStore", path("two", "two")).await;
    assert_eq!(created, "XksProxyUriUnreachableException");
    mock.call("ConnectCustomKeyStore", id(&store)).await;
    assert_eq!(mock.settled_store(&store).await["ConnectionErrorCode"], "XKS_PROXY_NOT_REACHABLE");
    proxy.behave_for(
        Operation::GetHealthStatus,
        Behaviour::Lie(|answer| answer["ekmFleetDetails"][0]["healthStatus"] = "DEGRADED".into()),
    );
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    mock.connect(&store).await;
}

#[tokio::test]
async fn what_an_external_key_store_needs_is_said() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let create = "CreateCustomKeyStore";
    for member in
        ["XksProxyConnectivity", "XksProxyUriEndpoint", "XksProxyUriPath", "XksProxyAuthenticationCredential"]
    {
        let (exception, message) =
            mock.fail(create, with(store_members("one"), &json!({ member: null }))).await;
        assert_eq!(exception, "ValidationException");
        assert!(message.starts_with(member), "{message}");
    }
    let service = json!({ "XksProxyVpcEndpointServiceName": SERVICE });
    assert_eq!(exception(&mock, create, with(store_members("one"), &service)).await, "ValidationException");
    let no_service = json!({ "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE" });
    let empty_service = with(store_members("one"), &json!({ "XksProxyVpcEndpointServiceName": "" }));
    assert_eq!(exception(&mock, create, empty_service).await, "ValidationException");
    assert_eq!(
        exception(&mock, create, with(store_members("one"), &no_service)).await,
        "ValidationException"
    );
    let cloud_hsm = json!({ "CustomKeyStoreName": "one", "CloudHsmClusterId": "cluster-1a23b4cdefg" });
    let (exception_name, message) =
        mock.fail(create, with(cloud_hsm, &json!({ "KeyStorePassword": "kmsPswd" }))).await;
    // The id's own pattern wants no 1: AWS's documentation breaks its own rule.
    assert_eq!(exception_name, "ValidationException");
    assert!(message.contains("'cloudHsmClusterId'") && !message.contains("kmsPswd"), "{message}");
    let cloud_hsm = json!({ "CustomKeyStoreName": "one", "CloudHsmClusterId": "cluster-2a23b4cdefg" });
    assert_eq!(exception(&mock, create, cloud_hsm).await, "CloudHsmClusterNotFoundException");
    assert!(proxy.take_seen().is_empty());
}

#[tokio::test]
async fn a_credential_is_rotated_while_the_store_is_connected() {
    let (new_id, new_secret) = ("NEWCREDENTIAL2345AAAA", "new+secret/new+secret/new+secret/new+secret/123");
    // The proxy knows both for the time of the change.
    let second =
        format!("[[stores.credentials]]\naccess_key_id = \"{new_id}\"\nsecret_access_key = \"{new_secret}\"");
    let proxy = Proxy::start(&Setup { store: second, ..Setup::default() }).await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    let encrypt = json!({ "KeyId": key, "Plaintext": "aGVsbG8=" });
    let blob = mock.call("Encrypt", encrypt.clone()).await["CiphertextBlob"].clone();
    let rotation =
        |credential: Value| with(id(&store), &json!({ "XksProxyAuthenticationCredential": credential }));
    let new = json!({ "AccessKeyId": new_id, "RawSecretAccessKey": new_secret });
    mock.call("UpdateCustomKeyStore", rotation(new)).await;
    // One that the proxy does not know never applies.
    let refused = exception(&mock, "UpdateCustomKeyStore", rotation(wrong_credential())).await;
    assert_eq!(refused, "XksProxyIncorrectAuthenticationCredentialException");
    let entry = mock.store(&store).await;
    assert_eq!(entry["ConnectionState"], "CONNECTED");
    assert_eq!(entry["XksProxyConfiguration"]["AccessKeyId"], new_id);
    mock.call("Encrypt", encrypt).await;
    let decrypted = mock.call("Decrypt", json!({ "CiphertextBlob": blob })).await;
    assert_eq!(decrypted["Plaintext"], "aGVsbG8=");
}

#[tokio::test]
async fn states_of_key_managers_are_shown_while_they_are_known() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let is_shown = async || mock.read("/metrics").await.contains("external_key_manager_states{");
    let check = async || assert_eq!(mock.post("/_mock/health-check", &[], "").await.status, 204);
    assert!(is_shown().await);
    proxy.behave(Behaviour::HangUp);
    // Settings that do not come to apply say nothing of those that do.
    let path = json!({ "XksProxyUriPath": "/two/kms/xks/v1" });
    mock.fail("UpdateCustomKeyStore", with(id(&store), &path)).await;
    assert!(is_shown().await);
    check().await;
    assert!(!is_shown().await);
    proxy.behave(Behaviour::Good);
    check().await;
    assert!(is_shown().await);
    mock.call("DisconnectCustomKeyStore", id(&store)).await;
    assert!(!is_shown().await);
}

#[tokio::test]
async fn a_proxy_learns_why_it_is_asked() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    let path = json!({ "XksProxyUriPath": "/two/kms/xks/v1" });
    mock.call("UpdateCustomKeyStore", with(id(&store), &path)).await;
    let answer = mock.post("/_mock/health-check", &[], "").await;
    assert_eq!(answer.status, 204);
    let operations =
        ["CreateCustomKeyStore", "ConnectCustomKeyStore", "UpdateCustomKeyStore", "KmsHealthCheck"];
    let seen = proxy.take_seen();
    assert_eq!(seen.len(), operations.len());
    for ((operation, body), expected) in seen.iter().zip(operations) {
        assert_eq!(*operation, Operation::GetHealthStatus);
        let metadata = body["requestMetadata"].as_object().unwrap();
        assert_eq!(metadata["kmsOperation"], expected);
        let mut names: Vec<_> = metadata.keys().collect();
        names.sort();
        assert_eq!(names, ["kmsOperation", "kmsRequestId"]);
    }
}
