//! Bodies that are no JSON, or not the JSON that the operation wants.

use std::process;

use serde_json::{Value, json};
use xks_harness::request::bytes_of;
use xks_spec::Operation;

use super::{Fixture, decrypt, refused};

const VALIDATION: &str = "ValidationException";
const CIPHERTEXT: &str = "InvalidCiphertextException";

/// Sends `good` with one field replaced, or removed where there is no value, and returns the refusal.
async fn refusal_of_field(
    fixture: &mut Fixture,
    operation: Operation,
    field: &str,
    value: Option<&Value>,
) -> (u16, String) {
    let mut body = fixture.good_body(operation);
    match value {
        Some(value) => body[field] = value.clone(),
        None => drop(body.as_object_mut().unwrap().remove(field)),
    }
    fixture.send(operation, &body).await.refusal()
}

/// Values of a Base64 field that are none; null is as good as absent.
fn not_base64() -> Vec<Value> {
    let texts = [
        "AAA",
        "A",
        "AAAA=",
        "AA=",
        "AA===",
        "=",
        "====",
        "A=AA",
        "AAAA AAAA",
        " AAAA",
        "AAAA\n",
        "AA\r\nAA",
        "-_-_",
        "AB==",
        "AAB=",
        "hello world!",
        "ÄÄÄÄ",
        "AAAA\u{0}",
        "%41%41",
        "AAAAA===",
    ];
    let others =
        [json!(7), json!(-1.5), json!(true), json!([]), json!([65, 65]), json!({}), json!({ "a": "AAAA" })];
    texts.into_iter().map(Value::from).chain(others).collect()
}

#[tokio::test]
async fn encrypt_refuses_every_bad_plaintext_aad_and_algorithm() {
    let mut fixture = Fixture::start().await;
    let mut cases: Vec<(&str, Option<Value>)> = Vec::new();
    for field in ["plaintext", "additionalAuthenticatedData"] {
        cases.extend(not_base64().into_iter().map(|value| (field, Some(value))));
    }
    let algorithms =
        [json!(""), json!("aes_gcm"), json!("AES_GCM "), json!("AES_CBC"), json!(1), json!(["AES_GCM"])];
    cases.extend(algorithms.map(|value| ("encryptionAlgorithm", Some(value))));
    let hashes = [json!(""), json!("SHA-256"), json!("sha_256"), json!("SHA_512"), json!(256), json!({})];
    cases.extend(hashes.map(|value| ("ciphertextDataIntegrityValueAlgorithm", Some(value))));
    for field in ["plaintext", "encryptionAlgorithm"] {
        cases.extend([(field, None), (field, Some(Value::Null))]);
    }
    cases.push(("plaintext", Some(json!(""))));
    for (field, value) in cases {
        let refusal = refusal_of_field(&mut fixture, Operation::Encrypt, field, value.as_ref()).await;
        assert_eq!(refusal, refused(400, VALIDATION), "{field} {value:?}");
    }
}

#[tokio::test]
async fn optional_fields_that_are_null_are_absent() {
    let mut fixture = Fixture::start().await;
    let mut body = fixture.good_body(Operation::Encrypt);
    body["additionalAuthenticatedData"] = Value::Null;
    body["ciphertextDataIntegrityValueAlgorithm"] = Value::Null;
    let encrypted = fixture.send(Operation::Encrypt, &body).await.ok();
    assert_eq!(encrypted.get("ciphertextDataIntegrityValue"), None);
    let decrypted = decrypt(&mut fixture.connection, "demo", &encrypted, None).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), b"Hello World!");
}

#[tokio::test]
async fn decrypt_calls_every_bad_part_of_the_ciphertext_an_invalid_ciphertext() {
    let mut fixture = Fixture::start().await;
    let wrong_lengths = [
        ("ciphertext", vec![]),
        ("initializationVector", vec![0, 1, 11, 13, 15, 17, 32]),
        ("authenticationTag", vec![0, 1, 4, 12, 15, 17, 32]),
        ("ciphertextMetadata", vec![0, 1, 4, 6, 20, 21, 255]),
    ];
    for (field, lengths) in wrong_lengths {
        let mut values: Vec<Option<Value>> = not_base64().into_iter().map(Some).collect();
        values.extend([None, Some(Value::Null), Some(json!(""))]);
        values.extend(
            lengths.into_iter().map(|length| Some(json!(xks_harness::request::base64(&vec![1; length])))),
        );
        for value in values {
            let refusal = refusal_of_field(&mut fixture, Operation::Decrypt, field, value.as_ref()).await;
            assert_eq!(refusal, refused(400, CIPHERTEXT), "{field} {value:?}");
        }
    }
}

#[tokio::test]
async fn decrypt_calls_every_other_bad_field_a_validation_error() {
    let mut fixture = Fixture::start().await;
    for value in not_base64() {
        let field = "additionalAuthenticatedData";
        let refusal = refusal_of_field(&mut fixture, Operation::Decrypt, field, Some(&value)).await;
        assert_eq!(refusal, refused(400, VALIDATION), "{field} {value}");
    }
    for value in [None, Some(Value::Null), Some(json!("")), Some(json!("AES_CBC")), Some(json!(["AES_GCM"]))]
    {
        let field = "encryptionAlgorithm";
        let refusal = refusal_of_field(&mut fixture, Operation::Decrypt, field, value.as_ref()).await;
        assert_eq!(refusal, refused(400, VALIDATION), "{field} {value:?}");
    }
}

const FIELDS: [&str; 5] = [
    "requestMetadata",
    "plaintext",
    "encryptionAlgorithm",
    "additionalAuthenticatedData",
    "ciphertextDataIntegrityValueAlgorithm",
];

#[tokio::test]
async fn what_is_no_json_object_is_a_validation_error() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        let parsed = fixture.good_body(operation);
        let good = parsed.to_string();
        let fields = &good[1..good.len() - 1];
        let bodies = [
            String::new(),
            " ".to_owned(),
            "null".to_owned(),
            "true".to_owned(),
            "7".to_owned(),
            "\"text\"".to_owned(),
            "[]".to_owned(),
            "{}".to_owned(),
            format!("[{good}]"),
            // The values alone, in the order in which the specification has them.
            json!([parsed["requestMetadata"]]).to_string(),
            json!(FIELDS.map(|field| &parsed[field])).to_string(),
            format!("{good}{good}"),
            format!("{good},"),
            format!("{good} x"),
            format!("{good}\0"),
            format!("{good}]"),
            format!("\u{feff}{good}"),
            format!("\u{c}{good}"),
            format!("{{{fields},}}"),
            format!("{{{fields}"),
            good.replace('"', "'"),
            good.replace(':', "="),
            good.replacen("\"requestMetadata\"", "requestMetadata", 1),
            format!("/* comment */{good}"),
            good[..good.len() / 2].to_owned(),
            format!("{{{fields},\"x\":NaN}}"),
            format!("{{{fields},\"x\":01}}"),
            format!("{{{fields},\"x\":\"\n\"}}"),
        ];
        for body in bodies {
            let refusal = fixture.send_bytes(operation, body.clone().into_bytes()).await.refusal();
            assert_eq!(refusal, refused(400, VALIDATION), "{operation} {body}");
        }
        let spaced = format!(" \t\r\n{good} \t\r\n");
        fixture.send_bytes(operation, spaced.into_bytes()).await.ok();
    }
}

#[tokio::test]
async fn a_field_given_twice_is_a_validation_error() {
    let mut fixture = Fixture::start().await;
    for operation in Operation::ALL {
        let good = fixture.good_body(operation);
        for (name, value) in good.as_object().unwrap() {
            let escaped = format!("\\u{:04x}{}", name.as_bytes()[0], &name[1..]);
            for again in [name, &escaped] {
                for second in [value, &Value::Null] {
                    let body = good.to_string().replacen('{', &format!("{{\"{again}\":{second},"), 1);
                    let refusal = fixture.send_bytes(operation, body.clone().into_bytes()).await.refusal();
                    assert_eq!(refusal, refused(400, VALIDATION), "{operation} {body}");
                }
            }
        }
        for twice in [
            "\"kmsOperation\":\"x\"",
            "\"kms\\u004fperation\":\"x\"",
            "\"new\":1,\"new\":1",
            "\"kmsRequestId\":null",
        ] {
            let inside = format!("\"requestMetadata\":{{{twice},");
            let body = good.to_string().replacen("\"requestMetadata\":{", &inside, 1);
            let refusal = fixture.send_bytes(operation, body.clone().into_bytes()).await.refusal();
            assert_eq!(refusal, refused(400, VALIDATION), "{operation} {body}");
        }
    }
}

#[tokio::test]
async fn nesting_of_any_depth_ends_in_an_answer() {
    let mut fixture = Fixture::start().await;
    let depth = 20_000;
    let deep = [
        format!("{}{}", "[".repeat(depth), "]".repeat(depth)),
        format!("{}1{}", "{\"a\":".repeat(depth / 3), "}".repeat(depth / 3)),
        "[".repeat(2 * depth),
    ];
    for operation in Operation::ALL {
        let good = fixture.good_body(operation).to_string();
        for value in &deep {
            // A field that nobody knows may be skipped or refused; in the metadata, which is kept, it is refused.
            let outside = good.replacen('{', &format!("{{\"deep\":{value},"), 1);
            let answer = fixture.send_bytes(operation, outside.into_bytes()).await;
            assert!(answer.status == 200 || answer.refusal() == refused(400, VALIDATION), "{answer:?}");
            let inside = format!("\"requestMetadata\":{{\"deep\":{value},");
            let inside = good.replacen("\"requestMetadata\":{", &inside, 1);
            let refusal = fixture.send_bytes(operation, inside.into_bytes()).await.refusal();
            assert_eq!(refusal, refused(400, VALIDATION), "{operation}");
            let whole = fixture.send_bytes(operation, value.clone().into_bytes()).await.refusal();
            assert_eq!(whole, refused(400, VALIDATION), "{operation}");
        }
    }
    for (field, name) in [("plaintext", VALIDATION), ("ciphertext", CIPHERTEXT)] {
        let operation = if field == "plaintext" { Operation::Encrypt } else { Operation::Decrypt };
        let mut body = fixture.good_body(operation);
        body[field] = json!("here");
        let body = body.to_string().replace("\"here\"", &deep[0]);
        assert_eq!(fixture.send_bytes(operation, body.into_bytes()).await.refusal(), refused(400, name));
    }
    assert!(fixture.proxy.is_running(), "{}", process::id());
}

/// A good Encrypt body whose text `HERE` is replaced by bytes.
fn with_bytes(body: &Value, bytes: &[u8]) -> Vec<u8> {
    let text = body.to_string();
    let (before, after) = text.split_once("HERE").unwrap();
    [before.as_bytes(), bytes, after.as_bytes()].concat()
}

const NOT_UTF8: [&[u8]; 5] = [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"];

#[tokio::test]
async fn text_that_is_not_utf8_is_a_validation_error() {
    let mut fixture = Fixture::start().await;
    for bytes in NOT_UTF8 {
        for field in ["kmsRequestId", "awsPrincipalArn", "unknown", "HERE"] {
            let mut body = fixture.good_body(Operation::Encrypt);
            body["requestMetadata"][field] = json!(if field == "HERE" { "text" } else { "HERE" });
            let body = with_bytes(&body, bytes);
            let refusal = fixture.send_bytes(Operation::Encrypt, body).await.refusal();
            assert_eq!(refusal, refused(400, VALIDATION), "{field} {bytes:?}");
        }
        for field in ["plaintext", "additionalAuthenticatedData", "encryptionAlgorithm"] {
            let mut body = fixture.good_body(Operation::Encrypt);
            body[field] = json!("HERE");
            let refusal = fixture.send_bytes(Operation::Encrypt, with_bytes(&body, bytes)).await.refusal();
            assert_eq!(refusal, refused(400, VALIDATION), "{field} {bytes:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_not_utf8_is_a_validation_error_even_where_nobody_looks() {
    let mut fixture = Fixture::start().await;
    for bytes in NOT_UTF8 {
        let mut body = fixture.good_body(Operation::Encrypt);
        body["unknown"] = json!("HERE");
        let refusal = fixture.send_bytes(Operation::Encrypt, with_bytes(&body, bytes)).await.refusal();
        assert_eq!(refusal, refused(400, VALIDATION), "{bytes:?}");
    }
}

#[tokio::test]
async fn escapes_are_read_as_what_they_stand_for() {
    let mut fixture = Fixture::start().await;
    // "A/+8" and "/w==", each character in another way.
    for (text, expected) in [("\\u0041\\/\\u002b8", &[3, 255, 188][..]), ("\\u002Fw=\\u003d", &[255])] {
        let mut body = fixture.good_body(Operation::Encrypt);
        body["plaintext"] = json!("HERE");
        body["encryptionAlgorithm"] = json!("AES");
        let body = with_bytes(&body, text.as_bytes());
        let body = String::from_utf8(body).unwrap().replace("\"AES\"", "\"\\u0041ES_GC\\u004d\"");
        let body = body.replace("\"plaintext\"", "\"pl\\u0061intext\"");
        let encrypted = fixture.send_bytes(Operation::Encrypt, body.into_bytes()).await.ok();
        let decrypted =
            decrypt(&mut fixture.connection, "demo", &encrypted, Some(b"project=nile")).await.ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), expected);
    }
    let body = fixture.good_body(Operation::Decrypt).to_string().replace('=', "\\u003d").replace('/', "\\/");
    let decrypted = fixture.send_bytes(Operation::Decrypt, body.into_bytes()).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), b"Hello World!");
    for half_a_pair in ["\\ud800", "\\udc00x", "\\ud800\\u0041"] {
        let mut body = fixture.good_body(Operation::Encrypt);
        body["requestMetadata"]["kmsRequestId"] = json!("HERE");
        let body = with_bytes(&body, half_a_pair.as_bytes());
        assert_eq!(fixture.send_bytes(Operation::Encrypt, body).await.refusal(), refused(400, VALIDATION));
    }
}

#[tokio::test]
async fn an_error_message_never_repeats_what_the_body_held() {
    let mut fixture = Fixture::start().await;
    for operation in [Operation::Encrypt, Operation::Decrypt] {
        let good = fixture.good_body(operation);
        // The request metadata is what the log is for.
        for field in good.as_object().unwrap().keys().filter(|field| *field != "requestMetadata") {
            for value in [json!("hunter2!"), json!(["hunter2!"]), json!({ "hunter2!": "hunter2!" })] {
                let mut body = good.clone();
                body[field] = value;
                let answer = fixture.send(operation, &body).await;
                assert_eq!(answer.refusal().0, 400);
                assert!(!String::from_utf8_lossy(&answer.body).contains("hunter2"), "{operation} {field}");
            }
        }
    }
    assert!(!fixture.proxy.all_output().contains("hunter2"));
}
