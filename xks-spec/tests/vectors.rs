//! The vectors of `xks-spec/vectors/`, which other implementers can read too, hold for this crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use xks_spec::body::BodyFault;
use xks_spec::framing::{ciphertext_data_integrity_value, frame_aad};
use xks_spec::request::{DecryptRequest, EncryptRequest, SizeLimits, parse_metadata_only};
use xks_spec::{ApiPath, ErrorName, Operation};

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases: Vec<Value> = serde_json::from_value(vectors["cases"].take()).unwrap();
    assert!(!cases.is_empty());
    cases
}

fn operation(name: &Value) -> Operation {
    *Operation::ALL.iter().find(|operation| name == operation.name()).unwrap()
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn aad_is_framed_as_in_the_vectors() {
    for case in cases("aad_framing.json") {
        let framed = frame_aad(&hex(&case["aad"]), &hex(&case["ciphertext_metadata"]));
        let expected = (!case["framed"].is_null()).then(|| hex(&case["framed"]));
        assert_eq!(framed, expected, "{}", case["name"]);
    }
}

#[test]
fn integrity_values_are_those_of_the_vectors() {
    for case in cases("integrity_value.json") {
        let field = |name: &str| STANDARD.decode(case[name].as_str().unwrap()).unwrap();
        let sealed = [field("ciphertext"), field("authenticationTag")].concat();
        let value = ciphertext_data_integrity_value(
            &field("additionalAuthenticatedData"),
            &field("ciphertextMetadata"),
            &field("initializationVector"),
            &sealed,
        );
        assert_eq!(STANDARD.encode(value), case["ciphertextDataIntegrityValue"], "{}", case["name"]);
    }
}

#[test]
fn paths_are_read_as_in_the_vectors() {
    for case in cases("paths.json") {
        let read = ApiPath::parse(case["path"].as_str().unwrap());
        let expected = &case["is"];
        match read {
            Err(_) => assert!(expected.is_null(), "{case}"),
            Ok(path) => {
                assert_eq!(expected["prefix"], path.prefix, "{case}");
                assert_eq!(expected["operation"], path.operation.name(), "{case}");
                let id = path.external_key_id.as_ref().map(xks_spec::ExternalKeyId::as_str);
                assert_eq!(expected.get("externalKeyId").and_then(Value::as_str), id, "{case}");
            }
        }
    }
}

#[test]
fn the_error_table_is_that_of_the_vectors() {
    let cases = cases("errors.json");
    assert_eq!(cases.len(), ErrorName::ALL.len());
    for (case, name) in cases.iter().zip(ErrorName::ALL) {
        assert_eq!(case["errorName"], name.as_str());
        assert_eq!(case["httpStatus"], name.http_status());
        assert_eq!(case["retryable"], name.is_retryable());
        for operation in Operation::ALL {
            let is_listed =
                case["operations"].as_array().unwrap().iter().any(|listed| listed == operation.name());
            assert_eq!(is_listed, name.is_listed_for(operation), "{name} {operation}");
        }
    }
}

#[test]
fn bodies_are_taken_or_refused_as_in_the_vectors() {
    const LIMITS: SizeLimits = SizeLimits { max_plaintext_bytes: 4300, max_aad_bytes: 8192 };
    for case in cases("bodies.json") {
        let operation = operation(&case["operation"]);
        let body = case["body"].as_str().unwrap().as_bytes();
        let result: Result<(), BodyFault> = match operation {
            Operation::Encrypt => EncryptRequest::parse(body, LIMITS, &mut None).map(drop),
            Operation::Decrypt => DecryptRequest::parse(body, LIMITS, &mut None).map(drop),
            Operation::GetKeyMetadata | Operation::GetHealthStatus => {
                parse_metadata_only(body, operation, &mut None).map(drop)
            }
        };
        let seen = match result {
            Ok(()) => "ok",
            Err(fault) => fault.error_name(operation).as_str(),
        };
        assert!(case["expect"].as_array().unwrap().iter().any(|one| one == seen), "{seen}: {case}");
    }
}
