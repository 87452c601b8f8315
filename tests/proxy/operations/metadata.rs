//! `requestMetadata`: required fields required, everything else taken and kept.

use serde_json::{Value, json};
use xks_harness::RawConnection;
use xks_harness::client::raw_http1;
use xks_harness::request::{base64, new_request_id};
use xks_spec::Operation;

use super::{Fixture, refused, request};

const VALIDATION: &str = "ValidationException";

fn required(operation: Operation) -> &'static [&'static str] {
    match operation {
        Operation::GetKeyMetadata => &["awsPrincipalArn", "kmsOperation", "kmsRequestId"],
        Operation::Encrypt | Operation::Decrypt => {
            &["awsPrincipalArn", "kmsKeyArn", "kmsOperation", "kmsRequestId"]
        }
        Operation::GetHealthStatus => &["kmsOperation", "kmsRequestId"],
    }
}

/// Every type that is not text; null is as good as absent.
fn not_text() -> [Value; 6] {
    [json!(7), json!(1.5), json!(true), json!([]), json!(["text"]), json!({ "text": "text" })]
}

#[tokio::test]
async fn a_required_field_that_is_absent_null_or_no_text_is_a_validation_error() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        for field in required(operation) {
            let good = fixture.good_body(operation);
            let mut absent = good.clone();
            absent["requestMetadata"].as_object_mut().unwrap().remove(*field);
            let mut bodies = vec![absent];
            for value in [Value::Null].into_iter().chain(not_text()) {
                let mut body = good.clone();
                body["requestMetadata"][field] = value;
                bodies.push(body);
            }
            for body in bodies {
                let refusal = fixture.send(operation, &body).await.refusal();
                assert_eq!(refusal, refused(400, VALIDATION), "{operation} {field} {body}");
            }
        }
    }
}

#[tokio::test]
async fn request_metadata_itself_must_be_an_object() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        let good = fixture.good_body(operation);
        let mut absent = good.clone();
        absent.as_object_mut().unwrap().remove("requestMetadata");
        let mut bodies = vec![absent];
        for value in [json!(null), json!([]), json!({}), json!("text"), json!(7), json!(true)] {
            let mut body = good.clone();
            body["requestMetadata"] = value;
            bodies.push(body);
        }
        for body in bodies {
            let refusal = fixture.send(operation, &body).await.refusal();
            assert_eq!(refusal, refused(400, VALIDATION), "{operation} {body}");
        }
    }
}

#[tokio::test]
async fn the_required_fields_alone_are_enough() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        let mut body = fixture.good_body(operation);
        body["requestMetadata"]
            .as_object_mut()
            .unwrap()
            .retain(|name, _| required(operation).contains(&name.as_str()));
        fixture.send(operation, &body).await.ok();
        for field in ["awsSourceVpc", "awsSourceVpce", "kmsViaService"] {
            body["requestMetadata"][field] = Value::Null;
        }
        fixture.send(operation, &body).await.ok();
    }
}

#[tokio::test]
async fn optional_fields_that_are_no_text_are_validation_errors() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        for field in ["awsSourceVpc", "awsSourceVpce", "kmsViaService"] {
            for value in not_text() {
                let mut body = fixture.good_body(operation);
                body["requestMetadata"][field] = value;
                let refusal = fixture.send(operation, &body).await.refusal();
                assert_eq!(refusal, refused(400, VALIDATION), "{operation} {body}");
            }
        }
    }
}

#[tokio::test]
async fn unknown_fields_are_taken_at_every_level_and_those_of_the_metadata_kept() {
    let mut fixture = Fixture::start().await;
    let unknown =
        json!({ "text": "text", "list": [1, { "deep": [null, [true]] }], "number": -1.5e300, "": {} });
    for operation in Operation::ALL {
        let mut body = fixture.good_body(operation);
        for (name, value) in unknown.as_object().unwrap() {
            body[name] = value.clone();
            body["requestMetadata"][name] = value.clone();
        }
        body["requestMetadata"]["kmsRequestId"] = json!(new_request_id());
        fixture.send(operation, &body).await.ok();
        let id = body["requestMetadata"]["kmsRequestId"].as_str().unwrap();
        let line = fixture.proxy.request_log(id);
        let kept: Value = serde_json::from_str(line["other_metadata"].as_str().unwrap()).unwrap();
        assert_eq!(kept, unknown, "{operation}");
    }
}

#[tokio::test]
async fn an_operation_that_the_specification_does_not_name_is_taken() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        for kms_operation in
            ["BulkEncrypt", "DescribeKey", "", "Ωperation", "AccessDenied", &"x".repeat(1000)]
        {
            let mut body = fixture.good_body(operation);
            body["requestMetadata"]["kmsOperation"] = json!(kms_operation);
            fixture.send(operation, &body).await.ok();
            let id = body["requestMetadata"]["kmsRequestId"].as_str().unwrap();
            assert_eq!(fixture.proxy.request_log(id)["kmsOperation"], kms_operation, "{operation}");
        }
    }
}

#[tokio::test]
async fn principals_need_not_be_arns_and_arns_may_be_long() {
    let mut fixture = Fixture::start().await;
    let arn = |bytes: usize| {
        let start = "arn:aws:sts::123456789012:assumed-role/";
        format!("{start}{}", "r".repeat(bytes - start.len()))
    };
    let principals = [
        "AWS Internal".to_owned(),
        "ec2.amazonaws.com".to_owned(),
        "kms.example".to_owned(),
        arn(2048),
        arn(4096),
    ];
    for operation in Operation::ALL {
        for principal in &principals {
            for field in ["awsPrincipalArn", "kmsKeyArn"] {
                let mut body = fixture.good_body(operation);
                body["requestMetadata"][field] = json!(principal);
                fixture.send(operation, &body).await.ok();
                let id = body["requestMetadata"]["kmsRequestId"].as_str().unwrap();
                assert_eq!(fixture.proxy.request_log(id)[field], *principal, "{operation}");
            }
        }
    }
}

#[tokio::test]
async fn a_request_id_is_any_text_and_logged_as_it_came() {
    let mut fixture = Fixture::start().await;
    let long = "x".repeat(1000);
    let ids =
        ["", " ", "no-uuid", "Überprüfung-鍵-🔑", "a\"b\\c/d", "line\nbreak\r\u{0}\u{1b}[31m\u{2028}", &long];
    for operation in Operation::ALL {
        for id in ids {
            // Who asked tells the line apart, since an id may be empty.
            let marker = new_request_id();
            let mut body = fixture.good_body(operation);
            body["requestMetadata"]["kmsRequestId"] = json!(id);
            body["requestMetadata"]["awsPrincipalArn"] = json!(marker);
            fixture.send(operation, &body).await.ok();
            let line = fixture.proxy.wait_for_log(|line| line["awsPrincipalArn"] == marker);
            assert_eq!(line["kmsRequestId"], id, "{operation}");
        }
    }
}

/// What fails after the metadata was read is found in CloudTrail by its kmsRequestId, as what succeeds is.
#[tokio::test]
async fn requests_that_fail_are_logged_with_their_metadata() {
    let fixture = Fixture::start().await;
    let with = |body: Value, field: &str, value: Value| {
        let mut body = body;
        body[field] = value;
        body
    };
    let encrypt = || fixture.good_body(Operation::Encrypt);
    let decrypt = || fixture.good_body(Operation::Decrypt);
    let cases = [
        ("unknown algorithm", Operation::Encrypt, with(encrypt(), "encryptionAlgorithm", json!("AES_CBC"))),
        ("plaintext missing", Operation::Encrypt, with(encrypt(), "plaintext", Value::Null)),
        ("too long", Operation::Encrypt, with(encrypt(), "plaintext", json!(base64(&[0; 4301])))),
        ("bad tag", Operation::Decrypt, with(decrypt(), "authenticationTag", json!(base64(&[0; 16])))),
        ("short tag", Operation::Decrypt, with(decrypt(), "authenticationTag", json!("AAAA"))),
        ("other version", Operation::Decrypt, with(decrypt(), "ciphertextMetadata", json!("AQAAAAk="))),
    ];
    for (what, operation, body) in cases {
        // Its connection tells the line apart, should the id not be there.
        let mut connection = RawConnection::open(fixture.proxy.address).await;
        let authority = format!("localhost:{}", fixture.proxy.address.port());
        let bytes = raw_http1(&request(operation, "demo", &body), &authority);
        let (_, name) = connection.exchange(&bytes).await.unwrap().refusal();
        let peer = connection.local_address().to_string();
        let line = fixture.proxy.wait_for_log(|line| line["peer"] == peer);
        assert_eq!(line["outcome"], name, "{what}");
        for field in ["kmsRequestId", "kmsOperation", "kmsKeyArn", "awsPrincipalArn", "kmsViaService"] {
            assert_eq!(line[field], body["requestMetadata"][field], "{what}: {line}");
        }
    }
}
