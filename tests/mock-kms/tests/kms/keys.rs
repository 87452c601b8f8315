//! KMS keys: making, naming, states, aliases, tags, policies, and what keys in external key stores cannot do.

use serde_json::{Value, json};
use xks_spec::Operation;

use crate::fake_proxy::{Behaviour, FakeProxy};
use crate::mock::{Mock, real, with, xks_key_members};

const NOT_CONNECTED: &str = "This KMS key is in a custom key store that is not connected to its external key store \
                             proxy. Connect the external key store and try the request again.";

fn key(key: &str) -> Value {
    json!({ "KeyId": key })
}

fn encrypt(key: &str) -> Value {
    json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })
}

async fn connected() -> (FakeProxy, Mock, String) {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    (proxy, mock, store)
}

#[tokio::test]
async fn an_external_key_is_looked_at_before_a_key_is_made() {
    let (_proxy, mock) = real().await;
    let store = mock.connected_store("one").await;
    let answer = mock.call("CreateKey", xks_key_members(&store, "demo")).await;
    let metadata = &answer["KeyMetadata"];
    let expected = json!({
        "AWSAccountId": "111122223333",
        "KeyId": metadata["KeyId"],
        "Arn": format!("arn:aws:kms:us-east-1:111122223333:key/{}", metadata["KeyId"].as_str().unwrap()),
        "CreationDate": metadata["CreationDate"],
        "Enabled": true,
        "Description": "",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": "Enabled",
        "Origin": "EXTERNAL_KEY_STORE",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": false,
        "CustomKeyStoreId": store,
        "XksKeyConfiguration": { "Id": "demo" },
    });
    assert_eq!(*metadata, expected);
    assert_eq!(
        mock.call("DescribeKey", key(metadata["KeyId"].as_str().unwrap())).await["KeyMetadata"],
        expected
    );
    let wrong = "XksKeyInvalidConfigurationException";
    for (xks_key_id, exception, message) in [
        (
            "aes-128",
            wrong,
            "The key spec of the external key must be AES_256. The key spec of specified external key is AES_128.",
        ),
        (
            "encrypt-only",
            wrong,
            "The key usage of the external key must include ENCRYPT and DECRYPT. The key use of specified external key is \
             ENCRYPT.",
        ),
        (
            "absent",
            "XksKeyNotFoundException",
            "The external key associated with this KMS key in an external key store was not found in its external key \
             manager. If the external key ID associated with this KMS key is incorrect, create a new KMS key with the \
             correct external key ID.",
        ),
    ] {
        let answer = mock.fail("CreateKey", xks_key_members(&store, xks_key_id)).await;
        assert_eq!(answer, (exception.to_owned(), message.to_owned()));
    }
    let used = mock.fail("CreateKey", xks_key_members(&store, "demo")).await.0;
    assert_eq!(used, "XksKeyAlreadyInUseException");
}

#[tokio::test]
async fn a_disabled_external_key_is_refused() {
    let (proxy, mock, store) = connected().await;
    proxy.behave(Behaviour::Lie(|answer| answer["keyStatus"] = "DISABLED".into()));
    let (exception, message) = mock.fail("CreateKey", xks_key_members(&store, "demo")).await;
    assert_eq!(exception, "XksKeyInvalidConfigurationException");
    assert_eq!(
        message,
        "The status of the external key must be ENABLED. The status of specified external key is DISABLED."
    );
    let seen = proxy.take_seen();
    let (operation, body) = seen.last().unwrap();
    assert_eq!(*operation, Operation::GetKeyMetadata);
    let metadata = body["requestMetadata"].as_object().unwrap();
    assert_eq!(metadata["kmsOperation"], "CreateKey");
    assert_eq!(metadata["awsPrincipalArn"], "arn:aws:iam::111122223333:user/AKIDTEST");
    assert!(!metadata.contains_key("kmsKeyArn"));
}

#[tokio::test]
async fn what_does_not_fit_together_makes_no_key() {
    let (proxy, mock, store) = connected().await;
    proxy.take_seen();
    let xks = xks_key_members(&store, "demo");
    for (body, exception) in [
        (with(xks.clone(), &json!({ "KeySpec": "RSA_2048" })), "UnsupportedOperationException"),
        (with(xks.clone(), &json!({ "KeyUsage": "SIGN_VERIFY" })), "UnsupportedOperationException"),
        (with(xks.clone(), &json!({ "MultiRegion": true })), "UnsupportedOperationException"),
        (with(xks.clone(), &json!({ "Origin": "AWS_KMS" })), "ValidationException"),
        (with(xks.clone(), &json!({ "Origin": null })), "ValidationException"),
        (with(xks.clone(), &json!({ "CustomKeyStoreId": null })), "ValidationException"),
        (with(xks.clone(), &json!({ "XksKeyId": null })), "ValidationException"),
        (with(xks.clone(), &json!({ "XksKeyId": "a/b" })), "ValidationException"),
        (with(xks.clone(), &json!({ "CustomKeyStoreId": "cks-none" })), "CustomKeyStoreNotFoundException"),
        (with(xks.clone(), &json!({ "Policy": "no policy" })), "MalformedPolicyDocumentException"),
        (json!({ "Origin": "EXTERNAL" }), "UnsupportedOperationException"),
        (json!({ "Origin": "MARS" }), "ValidationException"),
        (
            json!({ "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC" }),
            "UnsupportedOperationException",
        ),
    ] {
        assert_eq!(mock.fail("CreateKey", body.clone()).await.0, exception, "{body}");
    }
    assert!(proxy.take_seen().is_empty());
}

#[tokio::test]
async fn a_key_answers_to_id_arn_alias_and_alias_arn() {
    let (_proxy, mock, store) = connected().await;
    let arn = mock.create_xks_key(&store, "demo").await;
    let id = arn.rsplit_once('/').unwrap().1;
    mock.call("CreateAlias", json!({ "AliasName": "alias/a/b", "TargetKeyId": arn })).await;
    let alias_arn = "arn:aws:kms:us-east-1:111122223333:alias/a/b";
    for name in [id, arn.as_str(), "alias/a/b", alias_arn] {
        assert_eq!(mock.call("DescribeKey", key(name)).await["KeyMetadata"]["Arn"], arn.as_str());
        assert_eq!(mock.call("Encrypt", encrypt(name)).await["KeyId"], arn.as_str());
        mock.call("DisableKey", key(name)).await;
        mock.call("EnableKey", key(name)).await;
    }
    for (name, message) in [
        ("alias/none", "Alias arn:aws:kms:us-east-1:111122223333:alias/none is not found."),
        ("none", "Invalid keyId 'none'"),
        (
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "Key 'arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab' does not exist",
        ),
    ] {
        let answer = mock.fail("Encrypt", encrypt(name)).await;
        assert_eq!(answer, ("NotFoundException".to_owned(), message.to_owned()));
    }
}

#[tokio::test]
async fn each_state_refuses_in_its_own_words() {
    let (_proxy, mock, store) = connected().await;
    let arn = mock.create_xks_key(&store, "demo").await;
    let refused = |exception: &str, message: &str| (exception.to_owned(), message.to_owned());
    let store_id = json!({ "CustomKeyStoreId": store });
    mock.call("DisableKey", key(&arn)).await;
    assert_eq!(mock.key_state(&arn).await, "Disabled");
    let disabled = format!("{arn} is disabled.");
    assert_eq!(mock.fail("Encrypt", encrypt(&arn)).await, refused("DisabledException", &disabled));
    // Not connected: unavailable, whatever else it is; what is set meanwhile shows afterwards.
    mock.call("DisconnectCustomKeyStore", store_id.clone()).await;
    assert_eq!(mock.key_state(&arn).await, "Unavailable");
    assert_eq!(mock.fail("Encrypt", encrypt(&arn)).await, refused("KMSInvalidStateException", NOT_CONNECTED));
    mock.call("EnableKey", key(&arn)).await;
    assert_eq!(mock.key_state(&arn).await, "Unavailable");
    let create = mock.fail("CreateKey", xks_key_members(&store, "demo-2")).await;
    assert_eq!(create, refused("CustomKeyStoreInvalidStateException", NOT_CONNECTED));
    mock.connect(&store).await;
    assert_eq!(mock.key_state(&arn).await, "Enabled");
    // Pending deletion shows through everything.
    let scheduled = mock.call("ScheduleKeyDeletion", json!({ "KeyId": arn, "PendingWindowInDays": 8 })).await;
    assert_eq!(scheduled["KeyState"], "PendingDeletion");
    assert_eq!(scheduled["PendingWindowInDays"], 8);
    mock.call("DisconnectCustomKeyStore", store_id).await;
    assert_eq!(mock.key_state(&arn).await, "PendingDeletion");
    let pending = refused("KMSInvalidStateException", &format!("{arn} is pending deletion."));
    for (operation, body) in [
        ("Encrypt", encrypt(&arn)),
        ("EnableKey", key(&arn)),
        ("DisableKey", key(&arn)),
        ("ScheduleKeyDeletion", key(&arn)),
        ("UpdateKeyDescription", json!({ "KeyId": arn, "Description": "new" })),
        ("TagResource", json!({ "KeyId": arn, "Tags": [{ "TagKey": "a", "TagValue": "b" }] })),
        ("CreateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": arn })),
    ] {
        assert_eq!(mock.fail(operation, body).await, pending, "{operation}");
    }
    mock.connect(&store).await;
    assert_eq!(mock.call("CancelKeyDeletion", key(&arn)).await["KeyId"], arn.as_str());
    assert_eq!(mock.key_state(&arn).await, "Disabled");
    let not_pending = refused("KMSInvalidStateException", &format!("{arn} is not pending deletion."));
    assert_eq!(mock.fail("CancelKeyDeletion", key(&arn)).await, not_pending);
}

#[tokio::test]
async fn deletion_waits_and_then_takes_aliases_and_frees_the_external_key() {
    let (_proxy, mock, store) = connected().await;
    let arn = mock.create_xks_key(&store, "demo").await;
    mock.call("CreateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": arn })).await;
    let blob = mock.call("Encrypt", encrypt(&arn)).await["CiphertextBlob"].clone();
    for wrong in [6, 31] {
        let body = json!({ "KeyId": arn, "PendingWindowInDays": wrong });
        assert_eq!(mock.fail("ScheduleKeyDeletion", body).await.0, "ValidationException");
    }
    let scheduled = mock.call("ScheduleKeyDeletion", key(&arn)).await;
    let days = (scheduled["DeletionDate"].as_f64().unwrap() - now(&mock).await) / 86_400.0;
    assert!((29.9..=30.0).contains(&days), "{days}");
    mock.advance_days(29).await;
    assert_eq!(mock.key_state(&arn).await, "PendingDeletion");
    mock.advance_days(1).await;
    assert_eq!(mock.fail("DescribeKey", key(&arn)).await.0, "NotFoundException");
    assert_eq!(mock.call("ListAliases", json!({})).await["Aliases"], json!([]));
    assert_eq!(mock.fail("Decrypt", json!({ "CiphertextBlob": blob })).await.0, "AccessDeniedException");
    mock.create_xks_key(&store, "demo").await;
}

async fn now(mock: &Mock) -> f64 {
    let answer = mock.post("/_mock/clock", &[("content-type", "application/json")], "{}").await;
    answer.json()["unixSecs"].as_f64().unwrap()
}

#[tokio::test]
async fn a_key_destroyed_in_the_token_leaves_the_state_of_the_kms_key_alone() {
    let (proxy, mock) = real().await;
    let store = mock.connected_store("one").await;
    let arn = mock.create_xks_key(&store, "demo").await;
    let other = mock.create_xks_key(&store, "demo-2").await;
    let blob = mock.call("Encrypt", encrypt(&arn)).await["CiphertextBlob"].clone();
    proxy.token.tool(&["destroy", "--label", "demo"]);
    for (operation, body) in [("Encrypt", encrypt(&arn)), ("Decrypt", json!({ "CiphertextBlob": blob }))] {
        let (exception, message) = mock.fail(operation, body).await;
        assert_eq!(exception, "KMSInvalidStateException", "{operation}: {message}");
        assert!(message.contains("was not found in its external key manager"), "{operation}: {message}");
    }
    assert_eq!(mock.key_state(&arn).await, "Enabled");
    assert_eq!(mock.store(&store).await["ConnectionState"], "CONNECTED");
    // The other way round: what KMS does to its key does not reach the token.
    mock.call("DisableKey", key(&other)).await;
    mock.call("ScheduleKeyDeletion", key(&other)).await;
    assert!(proxy.token.tool(&["list"]).contains("demo-2"));
}

#[tokio::test]
async fn aliases_point_at_one_key_at_a_time() {
    let mock = Mock::start_with(&[]);
    let (one, two) = (mock.create_plain_key().await, mock.create_plain_key().await);
    let alias = |name: &str, target: &str| json!({ "AliasName": name, "TargetKeyId": target });
    mock.call("CreateAlias", alias("alias/a", &one)).await;
    let (exception, message) = mock.fail("CreateAlias", alias("alias/a", &two)).await;
    assert_eq!(exception, "AlreadyExistsException");
    let arn = "arn:aws:kms:us-east-1:111122223333:alias/a";
    assert_eq!(message, format!("An alias with the name {arn} already exists"));
    mock.call("UpdateAlias", alias("alias/a", &two)).await;
    assert_eq!(mock.call("Encrypt", encrypt("alias/a")).await["KeyId"], two.as_str());
    let listed = mock.call("ListAliases", key(&two)).await;
    assert_eq!(listed["Aliases"][0]["AliasArn"], arn);
    assert_eq!(mock.call("ListAliases", key(&one)).await["Aliases"], json!([]));
    for (body, exception) in [
        (alias("a", &one), "ValidationException"),
        (alias("alias/", &one), "ValidationException"),
        (alias("alias/aws/s3", &one), "NotAuthorizedException"),
        (alias("alias/b", "alias/a"), "ValidationException"),
        (alias("alias/b c", &one), "ValidationException"),
        (alias("alias/b", "none"), "NotFoundException"),
    ] {
        assert_eq!(mock.fail("CreateAlias", body.clone()).await.0, exception, "{body}");
    }
    mock.call("DeleteAlias", json!({ "AliasName": "alias/a" })).await;
    assert_eq!(mock.fail("DeleteAlias", json!({ "AliasName": "alias/a" })).await.0, "NotFoundException");
    assert_eq!(mock.fail("UpdateAlias", alias("alias/a", &one)).await.0, "NotFoundException");
    for turn in 0..50 {
        mock.call("CreateAlias", alias(&format!("alias/n{turn}"), &one)).await;
    }
    assert_eq!(mock.fail("CreateAlias", alias("alias/more", &one)).await.0, "LimitExceededException");
}

#[tokio::test]
async fn tags_are_set_removed_and_limited() {
    let mock = Mock::start_with(&[]);
    let tag = |key: &str, value: &str| json!({ "TagKey": key, "TagValue": value });
    let created = mock.call("CreateKey", json!({ "Tags": [tag("a", "1")] })).await;
    let arn = created["KeyMetadata"]["Arn"].as_str().unwrap();
    mock.call("TagResource", json!({ "KeyId": arn, "Tags": [tag("a", "2"), tag("b", "")] })).await;
    assert_eq!(mock.call("ListResourceTags", key(arn)).await["Tags"], json!([tag("a", "2"), tag("b", "")]));
    mock.call("UntagResource", json!({ "KeyId": arn, "TagKeys": ["a", "none"] })).await;
    assert_eq!(mock.call("ListResourceTags", key(arn)).await["Tags"], json!([tag("b", "")]));
    let many: Vec<_> = (0..50).map(|turn| tag(&format!("t{turn}"), "")).collect();
    let (exception, _) = mock.fail("TagResource", json!({ "KeyId": arn, "Tags": many })).await;
    assert_eq!(exception, "LimitExceededException");
    mock.call("TagResource", json!({ "KeyId": arn, "Tags": many[1..] })).await;
    let page = mock.call("ListResourceTags", json!({ "KeyId": arn, "Limit": 20 })).await;
    assert_eq!(page["Tags"].as_array().unwrap().len(), 20);
    assert_eq!(page["Truncated"], true);
}

#[tokio::test]
async fn the_spec_of_a_key_goes_by_its_old_name_or_its_new_one() {
    let mock = Mock::start_with(&[]);
    for name in ["KeySpec", "CustomerMasterKeySpec"] {
        mock.call("CreateKey", json!({ name: "SYMMETRIC_DEFAULT" })).await;
    }
    let both = json!({ "KeySpec": "SYMMETRIC_DEFAULT", "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT" });
    assert_eq!(mock.fail("CreateKey", both).await.0, "ValidationException");
}

/// Both pass the first look, since neither is there when the proxy is asked.
#[tokio::test]
async fn of_two_that_make_a_key_for_one_external_key_at_once_one_does() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &[]);
    let store = mock.connected_store("one").await;
    proxy.take_seen();
    proxy.hold(true);
    let body = xks_key_members(&store, "demo");
    let release_both = async {
        let mut asked = 0;
        let until = std::time::Instant::now() + xks_harness::proxy::PATIENCE;
        while asked < 2 {
            assert!(std::time::Instant::now() < until, "{asked}");
            asked += proxy.take_seen().len();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        proxy.hold(false);
    };
    let (one, two, ()) =
        tokio::join!(mock.send("CreateKey", &body), mock.send("CreateKey", &body), release_both);
    let (made, refused) = if one.status == 200 { (one, two) } else { (two, one) };
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(refused.json()["__type"], "XksKeyAlreadyInUseException");
    assert_eq!(mock.call("ListKeys", json!({})).await["Keys"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn keys_come_in_pages_and_policies_are_kept() {
    let mock = Mock::start_with(&[]);
    for _ in 0..5 {
        mock.create_plain_key().await;
    }
    let page = mock.call("ListKeys", json!({ "Limit": 3 })).await;
    let rest = mock.call("ListKeys", json!({ "Limit": 3, "Marker": page["NextMarker"] })).await;
    assert_eq!(page["Keys"].as_array().unwrap().len() + rest["Keys"].as_array().unwrap().len(), 5);
    assert_eq!(rest["Truncated"], false);
    let arn = page["Keys"][0]["KeyArn"].as_str().unwrap();
    let policy = mock.call("GetKeyPolicy", key(arn)).await;
    assert_eq!(policy["PolicyName"], "default");
    let document: Value = serde_json::from_str(policy["Policy"].as_str().unwrap()).unwrap();
    assert_eq!(document["Statement"][0]["Principal"]["AWS"], "arn:aws:iam::111122223333:root");
    let new = json!({ "Version": "2012-10-17", "Statement": [] }).to_string();
    mock.call("PutKeyPolicy", json!({ "KeyId": arn, "PolicyName": "default", "Policy": new })).await;
    assert_eq!(mock.call("GetKeyPolicy", key(arn)).await["Policy"], new);
    assert_eq!(mock.call("ListKeyPolicies", key(arn)).await["PolicyNames"], json!(["default"]));
    let broken = mock.fail("PutKeyPolicy", json!({ "KeyId": arn, "Policy": "{}" })).await.0;
    assert_eq!(broken, "MalformedPolicyDocumentException");
    mock.call("UpdateKeyDescription", json!({ "KeyId": arn, "Description": "new" })).await;
    assert_eq!(mock.call("DescribeKey", key(arn)).await["KeyMetadata"]["Description"], "new");
}

#[tokio::test]
async fn what_keys_in_external_key_stores_cannot_do_is_refused_as_documented() {
    let (_proxy, mock, store) = connected().await;
    let arn = mock.create_xks_key(&store, "demo").await;
    let origin = format!("{arn} origin is EXTERNAL_KEY_STORE which is not valid for this operation.");
    for operation in [
        "GenerateDataKeyPair",
        "GenerateDataKeyPairWithoutPlaintext",
        "EnableKeyRotation",
        "DisableKeyRotation",
        "GetKeyRotationStatus",
        "RotateKeyOnDemand",
        "ListKeyRotations",
        "GetParametersForImport",
        "ImportKeyMaterial",
        "DeleteImportedKeyMaterial",
    ] {
        let answer = mock.fail(operation, key(&arn)).await;
        assert_eq!(answer, ("UnsupportedOperationException".to_owned(), origin.clone()), "{operation}");
    }
    for operation in ["Sign", "Verify", "GenerateMac", "VerifyMac", "DeriveSharedSecret"] {
        let message = format!("{arn} key usage is ENCRYPT_DECRYPT which is not valid for {operation}.");
        let answer = mock.fail(operation, key(&arn)).await;
        assert_eq!(answer, ("InvalidKeyUsageException".to_owned(), message));
    }
    let random =
        mock.fail("GenerateRandom", json!({ "NumberOfBytes": 8, "CustomKeyStoreId": store })).await.0;
    assert_eq!(random, "UnsupportedOperationException");
    let random =
        mock.fail("GenerateRandom", json!({ "NumberOfBytes": 8, "CustomKeyStoreId": "cks-none" })).await.0;
    assert_eq!(random, "CustomKeyStoreNotFoundException");
    // Keys in KMS have a mark of rotation.
    let plain = mock.create_plain_key().await;
    let created = mock.call("DescribeKey", key(&plain)).await["KeyMetadata"]["CreationDate"].clone();
    for (asked, days) in [(json!(null), 365.0), (json!(90), 90.0), (json!(2560), 2560.0)] {
        let body = json!({ "KeyId": plain, "RotationPeriodInDays": asked });
        mock.call("EnableKeyRotation", body).await;
        let status = mock.call("GetKeyRotationStatus", key(&plain)).await;
        assert_eq!(status["KeyRotationEnabled"], true);
        assert_eq!(status["RotationPeriodInDays"].as_f64().unwrap(), days);
        let until_next = status["NextRotationDate"].as_f64().unwrap() - created.as_f64().unwrap();
        assert!((until_next - days * 86_400.0).abs() < 1.0, "{status}");
    }
    for days in [89, 2561] {
        let body = json!({ "KeyId": plain, "RotationPeriodInDays": days });
        assert_eq!(mock.fail("EnableKeyRotation", body).await.0, "ValidationException");
    }
    mock.call("DisableKeyRotation", key(&plain)).await;
    let status = mock.call("GetKeyRotationStatus", key(&plain)).await;
    assert_eq!(status["KeyRotationEnabled"], false);
    assert!(status.get("RotationPeriodInDays").is_none());
}
