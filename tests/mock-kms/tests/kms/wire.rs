//! AWS JSON 1.1 as clients see it: heads, error shapes, validation texts, signatures of callers.

use serde_json::json;

use crate::mock::{AUTHORIZATION, Mock};

#[tokio::test]
async fn answers_look_like_those_of_aws() {
    let mock = Mock::start_with(&[]);
    let answer = mock.send("CreateKey", &json!({})).await;
    assert_eq!(answer.headers["content-type"], "application/x-amz-json-1.1");
    let first_id = answer.headers["x-amzn-requestid"].clone();
    assert_eq!(first_id.len(), 36);
    let key = answer.json()["KeyMetadata"]["KeyId"].clone();
    assert!(answer.json()["KeyMetadata"]["CreationDate"].as_f64().unwrap() > 1.6e9);
    for operation in ["DisableKey", "EnableKey"] {
        let answer = mock.send(operation, &json!({ "KeyId": key })).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, ""));
        assert_ne!(answer.headers["x-amzn-requestid"], first_id);
    }
    let answer = mock.send("DescribeKey", &json!({ "KeyId": "alias/none" })).await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.json(),
        json!({
            "__type": "NotFoundException",
            "message": "Alias arn:aws:kms:us-east-1:111122223333:alias/none is not found.",
        })
    );
}

#[tokio::test]
async fn requests_that_are_none_are_refused() {
    let mock = Mock::start_with(&[]);
    let target = ("x-amz-target", "TrentService.ListKeys");
    let signed = ("authorization", AUTHORIZATION);
    let long = format!("{{\"Marker\":\"{}\"}}", "m".repeat(2 << 20));
    for (headers, body, exception) in [
        (vec![signed], "{}", "UnknownOperationException"),
        (vec![signed, ("x-amz-target", "TrentService.MakeCoffee")], "{}", "UnknownOperationException"),
        (vec![signed, ("x-amz-target", "DynamoDB.ListKeys")], "{}", "UnknownOperationException"),
        (vec![target], "{}", "MissingAuthenticationTokenException"),
        (vec![target, ("authorization", "AWS4-HMAC-SHA256 x")], "{}", "IncompleteSignatureException"),
        (vec![target, signed], "", "SerializationException"),
        (vec![target, signed], "[]", "SerializationException"),
        (vec![target, signed], "{\"Limit\":\"1\"}", "SerializationException"),
        (vec![target, signed], &long, "SerializationException"),
        (vec![target, signed], "{\"Limit\":0}", "ValidationException"),
    ] {
        let answer = mock.post("/", &headers, body.to_owned()).await;
        assert_eq!(answer.status, 400, "{headers:?} {answer:?}");
        assert_eq!(answer.json()["__type"], exception, "{headers:?}");
    }
}

#[tokio::test]
async fn every_limit_is_checked_here_with_the_words_of_aws() {
    let mock = Mock::start_with(&[]);
    let key = mock.create_plain_key().await;
    let too_long = "A".repeat(5464);
    let long_context = json!({ "k": "v".repeat(8192) });
    let cases = [
        (
            "Encrypt",
            json!({ "KeyId": key, "Plaintext": "" }),
            "Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1",
        ),
        (
            "Encrypt",
            json!({ "KeyId": key, "Plaintext": too_long }),
            "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096",
        ),
        (
            "Decrypt",
            json!({ "CiphertextBlob": "A".repeat(8196) }),
            "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length less than or equal to 6144",
        ),
        (
            "Decrypt",
            json!({}),
            "Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null",
        ),
        (
            "Encrypt",
            json!({ "KeyId": key, "Plaintext": "AAAA", "EncryptionContext": long_context }),
            "Value at 'encryptionContext' failed to satisfy constraint: Member must have length less than or equal to 8192",
        ),
        (
            "ReEncrypt",
            json!({ "CiphertextBlob": "AAAA", "DestinationKeyId": key, "DestinationEncryptionContext": long_context }),
            "Value at 'destinationEncryptionContext' failed to satisfy constraint: Member must have length less than or \
             equal to 8192",
        ),
        (
            "GenerateDataKey",
            json!({ "KeyId": key, "NumberOfBytes": 1025 }),
            "Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024",
        ),
        (
            "GenerateRandom",
            json!({ "NumberOfBytes": 0 }),
            "Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1",
        ),
        (
            "GenerateDataKey",
            json!({ "KeyId": key, "KeySpec": "AES_512" }),
            "Value 'AES_512' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, \
             AES_128]",
        ),
        (
            "ScheduleKeyDeletion",
            json!({ "KeyId": key, "PendingWindowInDays": 6 }),
            "Value '6' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value greater than or equal \
             to 7",
        ),
        (
            "ListKeys",
            json!({ "Limit": 1001 }),
            "Value '1001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000",
        ),
        (
            "CreateAlias",
            json!({ "AliasName": "alias/a b", "TargetKeyId": key }),
            "Value 'alias/a b' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression \
             pattern: ^[a-zA-Z0-9:/_-]+$",
        ),
        (
            "CreateCustomKeyStore",
            json!({ "CustomKeyStoreName": "a", "XksProxyUriEndpoint": "https://localhost:8443" }),
            "Value 'https://localhost:8443' at 'xksProxyUriEndpoint' failed to satisfy constraint: Member must satisfy \
             regular expression pattern: ^https://[a-zA-Z0-9.-]+$",
        ),
        (
            "CreateCustomKeyStore",
            json!({ "CustomKeyStoreName": "a", "XksProxyUriPath": "/kms/xks/v1/" }),
            r"Value '/kms/xks/v1/' at 'xksProxyUriPath' failed to satisfy constraint: Member must satisfy regular expression pattern: ^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$",
        ),
        (
            "ListKeys",
            json!({ "ResourceOwners": [] }),
            "Value at 'resourceOwners' failed to satisfy constraint: Member must have length greater than or equal to 1",
        ),
        (
            "Encrypt",
            json!({ "KeyId": key, "Plaintext": "AAAA", "GrantTokens": vec!["t"; 11] }),
            "Value at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10",
        ),
        (
            "DescribeKey",
            json!({}),
            "Value null at 'keyId' failed to satisfy constraint: Member must not be null",
        ),
        (
            "TagResource",
            json!({ "KeyId": key, "Tags": [{ "TagKey": "", "TagValue": "" }] }),
            "Value '' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length greater than or \
             equal to 1",
        ),
    ];
    for (operation, body, sentence) in cases {
        let answer = mock.fail(operation, body).await;
        assert_eq!(
            answer,
            ("ValidationException".into(), format!("1 validation error detected: {sentence}"))
        );
    }
}

#[tokio::test]
async fn every_length_and_range_has_its_end() {
    let mock = Mock::start_with(&[]);
    let key = mock.create_plain_key().await;
    let long = |length| "a".repeat(length);
    let longest = |max: usize| format!("Member must have length less than or equal to {max}");
    let service = format!("com.amazonaws.vpce.us-east-1.vpce-svc-{}", long(27));
    let tags = json!([{ "TagKey": "a", "TagValue": long(257) }]);
    for (operation, body, member, fault) in [
        ("CreateKey", json!({ "XksKeyId": long(129) }), "xksKeyId", longest(128)),
        ("CreateKey", json!({ "Description": long(8193) }), "description", longest(8192)),
        ("CreateKey", json!({ "Policy": long(131_073) }), "policy", longest(131_072)),
        ("CreateKey", json!({ "Tags": tags }), "tags.1.member.tagValue", longest(256)),
        ("ListKeys", json!({ "Marker": long(1025) }), "marker", longest(1024)),
        (
            "DescribeKey",
            json!({ "KeyId": key, "GrantTokens": [long(8193)] }),
            "grantTokens.1.member",
            longest(8192),
        ),
        (
            "CreateCustomKeyStore",
            json!({ "CustomKeyStoreName": "a", "XksProxyVpcEndpointServiceName": service }),
            "xksProxyVpcEndpointServiceName",
            longest(64),
        ),
        (
            "CreateCustomKeyStore",
            json!({ "CustomKeyStoreName": "a", "XksProxyVpcEndpointServiceOwner": "1".repeat(13) }),
            "xksProxyVpcEndpointServiceOwner",
            longest(12),
        ),
        (
            "EnableKeyRotation",
            json!({ "KeyId": key, "RotationPeriodInDays": 2561 }),
            "rotationPeriodInDays",
            "Member must have value less than or equal to 2560".to_owned(),
        ),
        ("ListKeys", json!({ "ResourceOwners": vec!["SELF"; 3] }), "resourceOwners", longest(2)),
    ] {
        let (exception, message) = mock.fail(operation, body).await;
        let sentence = format!("at '{member}' failed to satisfy constraint: {fault}");
        assert_eq!(exception, "ValidationException", "{sentence}");
        assert!(message.contains(&sentence), "{sentence} is not in {message:.300}");
    }
}

#[tokio::test]
async fn the_clock_goes_a_hundred_years_ahead_or_behind_and_no_further() {
    let mock = Mock::start_with(&[]);
    let set = async |body: serde_json::Value| {
        mock.post("/_mock/clock", &[("content-type", "application/json")], body.to_string()).await.status
    };
    let century_secs: i64 = 100 * 365 * 86_400;
    for ahead_secs in [century_secs, -century_secs] {
        assert_eq!(set(json!({ "aheadSecs": ahead_secs })).await, 200);
        assert_eq!(set(json!({ "advanceSecs": ahead_secs.signum() })).await, 422);
        for path in ["/page.json", "/metrics"] {
            mock.read(path).await;
        }
    }
    for too_far in [i64::MIN, -century_secs - 1, century_secs + 1, i64::MAX] {
        assert_eq!(set(json!({ "aheadSecs": too_far })).await, 422, "{too_far}");
    }
    let clock: serde_json::Value = serde_json::from_str(&mock.read("/_mock/clock").await).unwrap();
    assert_eq!(clock["aheadSecs"], -century_secs);
}

#[tokio::test]
async fn trouble_inside_aws_comes_when_it_is_asked_for() {
    let mock = Mock::start_with(&[]);
    let fail = async |body: serde_json::Value| {
        mock.post("/_mock/fail", &[("content-type", "application/json")], body.to_string()).await.status
    };
    for (exception, status) in [
        ("KeyUnavailableException", 500),
        ("DependencyTimeoutException", 503),
        ("KMSInternalException", 500),
        ("ThrottlingException", 400),
    ] {
        assert_eq!(fail(json!({ "calls": 2, "exception": exception })).await, 204);
        for _ in 0..2 {
            let answer = mock.send("CreateKey", &json!({})).await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.json()["__type"], exception);
        }
        assert_eq!(mock.call("ListKeys", json!({})).await["Keys"], json!([]));
    }
    // The last word counts.
    for calls in [2, 0] {
        fail(json!({ "calls": calls, "exception": "KMSInternalException" })).await;
    }
    mock.create_plain_key().await;
    for wrong in [json!({ "calls": 1, "exception": "NotFoundException" }), json!({ "calls": -1 })] {
        assert_eq!(fail(wrong).await, 422);
    }
}

#[tokio::test]
async fn every_operation_of_the_api_is_answered() {
    let mock = Mock::start_with(&[]);
    for operation in mock_kms::api::Operation::all() {
        let answer = mock.send(operation.name(), &json!({})).await;
        let exception =
            if answer.status == 200 { serde_json::Value::Null } else { answer.json()["__type"].clone() };
        assert!(
            answer.status == 200
                || ["ValidationException", "UnsupportedOperationException"]
                    .contains(&exception.as_str().unwrap()),
            "{}: {answer:?}",
            operation.name()
        );
    }
}
