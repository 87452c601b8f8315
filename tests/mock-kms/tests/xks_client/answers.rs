//! Answers that are malformed, oversized or lies.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mock_kms::xks::{Ciphertext, Failure, MAX_ANSWER_BYTES, Malformed};
use serde_json::{Value, json};
use xks_spec::ErrorName;
use xks_spec::response::KeyStatus;

use crate::stub::{Manners, Step, Stub, encrypted, healthy, http, metadata, proxy, says};

fn base64(length: usize) -> Value {
    json!(STANDARD.encode(vec![9; length]))
}

fn length(field: &'static str, found: usize, expected: &str) -> Malformed {
    Malformed::Length { field, found, expected: expected.to_owned() }
}

#[tokio::test]
async fn a_right_answer_is_taken_and_right_requests_are_made() {
    let stub = Stub::start(|request| match () {
        _ if request.head.starts_with("POST /stub/kms/xks/v1/keys/key-1/encrypt ") => {
            says(200, &encrypted(&request.json()))
        }
        _ if request.head.starts_with("POST /stub/kms/xks/v1/keys/key-1/decrypt ") => {
            says(200, &json!({ "plaintext": request.json()["ciphertext"] }))
        }
        _ if request.head.starts_with("POST /stub/kms/xks/v1/keys/key-1/metadata ") => says(
            200,
            &json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED" }),
        ),
        _ => says(200, &healthy()),
    })
    .await;
    let client = stub.patient_client();
    let exchange =
        client.encrypt(&proxy(), "key-1", &metadata("GenerateDataKey"), b"secret", Some(b"aad")).await;
    let ciphertext = exchange.outcome.unwrap();
    let expected = Ciphertext {
        ciphertext: b"secret".to_vec(),
        metadata: Some(vec![3; 20]),
        iv: vec![1; 12],
        tag: vec![2; 16],
    };
    assert_eq!(ciphertext, expected);
    let exchange = client.decrypt(&proxy(), "key-1", &metadata("Decrypt"), &ciphertext, Some(b"aad")).await;
    assert_eq!(exchange.outcome.unwrap().as_slice(), b"secret");
    let exchange = client.key_metadata(&proxy(), "key-1", &metadata("CreateKey")).await;
    assert_eq!(exchange.outcome.unwrap().key_status, KeyStatus::Enabled);
    let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
    assert_eq!(exchange.outcome.unwrap().xks_proxy_fleet_size, 1);
    assert_eq!((exchange.report.tries, exchange.report.answer_bytes), (1, Some(healthy().to_string().len())));

    let received = stub.received();
    assert_eq!(received[0].header("content-type"), Some("application/json"));
    assert_eq!(received[0].header("host"), Some("xks.example.com"));
    let authorization = received[0].header("authorization").unwrap();
    assert!(authorization.contains("SignedHeaders=host;x-amz-date,"), "{authorization}");
    assert!(authorization.contains("/us-east-1/kms-xks-proxy/aws4_request"), "{authorization}");
    let names: Vec<_> = received[0].head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
    assert_eq!(
        names.len(),
        5,
        "no header but host, content-type, content-length and the signature: {names:?}"
    );
    let body = received[1].json();
    assert_eq!(body["requestMetadata"]["kmsOperation"], "Decrypt");
    assert_eq!(body["additionalAuthenticatedData"], STANDARD.encode("aad"));
    assert_eq!(body["ciphertextMetadata"], base64_of(&[3; 20]));
    assert_eq!(body["initializationVector"], base64_of(&[1; 12]));
    assert_eq!(body["authenticationTag"], base64_of(&[2; 16]));
    assert_eq!(received[3].head.lines().next(), Some("POST /stub/kms/xks/v1/health HTTP/1.1"));
}

fn base64_of(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

type Lie = (&'static str, fn(&mut Value), Malformed);

#[tokio::test]
async fn lies_about_a_ciphertext_are_caught() {
    let json_fault = |fault: &str| Malformed::Json { status: 200, fault: fault.to_owned() };
    let missing = "a field is missing or of a wrong kind, seen at line 1 column ";
    let lies: Vec<Lie> = vec![
        ("one byte short", |a| a["ciphertext"] = base64(5), length("ciphertext", 5, "6")),
        ("one byte long", |a| a["ciphertext"] = base64(7), length("ciphertext", 7, "6")),
        ("empty", |a| a["ciphertext"] = json!(""), length("ciphertext", 0, "6")),
        (
            "21 bytes of metadata",
            |a| a["ciphertextMetadata"] = base64(21),
            length("ciphertextMetadata", 21, "at most 20"),
        ),
        (
            "13 bytes of IV",
            |a| a["initializationVector"] = base64(13),
            length("initializationVector", 13, "12 or 16"),
        ),
        (
            "no byte of IV",
            |a| a["initializationVector"] = json!(""),
            length("initializationVector", 0, "12 or 16"),
        ),
        ("a tag of 12 bytes", |a| a["authenticationTag"] = base64(12), length("authenticationTag", 12, "16")),
        (
            "Base64 without padding",
            |a| a["authenticationTag"] = json!("AgICAgICAgICAgICAgICAg"),
            Malformed::Base64("authenticationTag"),
        ),
        ("Base64 for URLs", |a| a["ciphertext"] = json!("__--____"), Malformed::Base64("ciphertext")),
        ("another CDIV", |a| a["ciphertextDataIntegrityValue"] = base64(32), Malformed::IntegrityValueWrong),
        ("half a CDIV", |a| a["ciphertextDataIntegrityValue"] = base64(16), Malformed::IntegrityValueWrong),
        ("another ciphertext", |a| a["ciphertext"] = base64(6), Malformed::IntegrityValueWrong),
        ("another tag", |a| a["authenticationTag"] = base64(16), Malformed::IntegrityValueWrong),
        ("another IV", |a| a["initializationVector"] = base64(16), Malformed::IntegrityValueWrong),
        ("metadata swapped", |a| a["ciphertextMetadata"] = base64(20), Malformed::IntegrityValueWrong),
        ("metadata dropped", |a| a["ciphertextMetadata"] = Value::Null, Malformed::IntegrityValueWrong),
        ("no CDIV", |a| a["ciphertextDataIntegrityValue"] = Value::Null, Malformed::IntegrityValueMissing),
        ("no IV", |a| drop(a.as_object_mut().unwrap().remove("initializationVector")), json_fault(missing)),
        ("a number", |a| a["ciphertext"] = json!(1), json_fault(missing)),
        ("an array", |a| *a = json!([a.clone()]), json_fault("not an object")),
    ];
    let told: Vec<_> = lies.iter().map(|(_, lie, _)| *lie).collect();
    let stub = Stub::start(move |request| {
        let mut answer = encrypted(&request.json());
        told[request.number](&mut answer);
        says(200, &answer)
    })
    .await;
    let client = stub.patient_client();
    for (name, _, expected) in lies {
        let exchange = client.encrypt(&proxy(), "key", &metadata("Encrypt"), b"secret", None).await;
        let found = exchange.outcome.unwrap_err();
        match (&found, &expected) {
            (Failure::Malformed(Malformed::Json { fault, .. }), Malformed::Json { fault: start, .. }) => {
                assert!(fault.starts_with(start), "{name}: {fault}");
            }
            _ => assert_eq!(found, Failure::Malformed(expected), "{name}"),
        }
        assert_eq!(exchange.report.tries, 1, "{name}");
    }
}

#[tokio::test]
async fn a_plaintext_of_another_length_is_a_lie() {
    let stub = Stub::start(|request| says(200, &json!({ "plaintext": base64(request.number) }))).await;
    let client = stub.patient_client();
    let ciphertext = Ciphertext { ciphertext: vec![0; 1], metadata: None, iv: vec![0; 12], tag: vec![0; 16] };
    for (number, is_right) in [(0, false), (1, true), (2, false)] {
        let exchange = client.decrypt(&proxy(), "key", &metadata("Decrypt"), &ciphertext, None).await;
        let outcome = exchange.outcome.map(|plaintext| plaintext.len());
        let expected = if is_right { Ok(1) } else { Err(length("plaintext", number, "1").into()) };
        assert_eq!(outcome, expected);
    }
    assert!(stub.received()[0].json().get("ciphertextMetadata").is_none());
}

#[tokio::test]
async fn lies_about_health_and_keys_are_caught() {
    let with = |field: &'static str, value: Value| {
        let mut answer = healthy();
        answer[field] = value;
        answer
    };
    let manager = json!({ "id": "1", "model": "m", "healthStatus": "ACTIVE" });
    let mut answers = vec![
        (with("xksProxyFleetSize", json!(0)), Some(Malformed::FleetSize)),
        (with("ekmFleetDetails", json!([])), Some(Malformed::FleetDetails(0))),
        (with("ekmFleetDetails", vec![manager.clone(); 10].into()), None),
        (with("ekmFleetDetails", vec![manager; 11].into()), Some(Malformed::FleetDetails(11))),
    ];
    let key = |usages: usize| json!({ "keySpec": "AES_256", "keyUsage": vec!["WRAP"; usages], "keyStatus": "DISABLED" });
    answers.extend([(key(10), None), (key(11), Some(Malformed::KeyUsages(11)))]);
    let told: Vec<_> = answers.iter().map(|(answer, _)| answer.clone()).collect();
    let stub = Stub::start(move |request| says(200, &told[request.number])).await;
    let client = stub.patient_client();
    for (answer, expected) in answers {
        let failure = if answer.get("keySpec").is_some() {
            client.key_metadata(&proxy(), "key", &metadata("CreateKey")).await.outcome.err()
        } else {
            client.health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome.err()
        };
        assert_eq!(failure, expected.map(Failure::Malformed), "{answer}");
    }
    for status in ["", "active", "HEALTHY"] {
        let mut answer = healthy();
        answer["ekmFleetDetails"][0]["healthStatus"] = json!(status);
        let stub = Stub::start(move |_| says(200, &answer)).await;
        let outcome =
            stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome;
        assert!(matches!(outcome, Err(Failure::Malformed(Malformed::Json { .. }))), "{status}: {outcome:?}");
    }
}

#[tokio::test]
async fn every_documented_error_is_read_and_nothing_else() {
    let stub = Stub::start(|request| {
        let name = ErrorName::ALL.get(request.number).map_or("KeyNotFound", |name| name.as_str());
        says(404, &json!({ "errorName": name, "errorMessage": "for people" }))
    })
    .await;
    let client = stub.patient_client();
    for error_name in ErrorName::ALL {
        let exchange = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        let Err(Failure::Refused(refusal)) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
        assert_eq!((refusal.error_name, refusal.status), (error_name, 404));
        assert_eq!(refusal.error_message.as_deref(), Some("for people"));
    }
    let outcome = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome;
    assert_eq!(outcome, Err(Malformed::UnknownErrorName("KeyNotFound".to_owned()).into()));
}

/// With either HTTP version, and each on a connection that the next request can go on using or cannot.
#[tokio::test]
async fn what_is_no_documented_answer_is_malformed() {
    let body = healthy().to_string();
    let long = format!("{body}{}", " ".repeat(MAX_ANSWER_BYTES - body.len() + 1));
    let most = &long[..MAX_ANSWER_BYTES];
    let cases: Vec<(Vec<u8>, Option<Malformed>)> = vec![
        (http(200, "application/json", most.as_bytes()), None),
        (http(200, "application/json", long.as_bytes()), Some(Malformed::TooLong(MAX_ANSWER_BYTES))),
        (
            http(502, "text/html", b"<h1>Bad Gateway</h1>"),
            Some(Malformed::ContentType("text/html".to_owned())),
        ),
        (http(200, "text/plain", body.as_bytes()), Some(Malformed::ContentType("text/plain".to_owned()))),
        (http(202, "application/json", body.as_bytes()), Some(Malformed::Status(202))),
        (http(302, "application/json", body.as_bytes()), Some(Malformed::Status(302))),
        (
            http(200, "application/json", b""),
            Some(Malformed::Json { status: 200, fault: "not an object".to_owned() }),
        ),
    ];
    for is_http2 in [false, true] {
        let told: Vec<_> = cases.iter().map(|(answer, _)| answer.clone()).collect();
        let manners = Manners { is_http2, ..Manners::default() };
        let stub =
            Stub::start_with(manners, move |request| vec![Step::Send(told[request.number].clone())]).await;
        let client = stub.patient_client();
        for (answer, expected) in &cases {
            let outcome = client.health_status(&proxy(), &metadata("KmsHealthCheck")).await.outcome;
            let found = outcome.err();
            let start = &String::from_utf8_lossy(answer)[..60];
            assert_eq!(found, expected.clone().map(Failure::Malformed), "{is_http2} {start}");
        }
    }
}

#[tokio::test]
async fn what_is_not_http_is_malformed() {
    for bytes in [
        b"220 smtp.example.com ready\r\n\r\n".to_vec(),
        b"HTTP/9.1 200 OK\r\n\r\n".to_vec(),
        b"HTTP/1.1 2000 OK\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n".to_vec(),
    ] {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let stub = Stub::start(move |_| vec![Step::Send(bytes.clone()), Step::Stall]).await;
        let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        let found = exchange.outcome.unwrap_err();
        assert!(matches!(found, Failure::Malformed(Malformed::Http(_))), "{text}: {found:?}");
        assert_eq!((exchange.report.tries, stub.connections()), (1, 1), "{text}");
    }
}

/// The server agrees on HTTP/2 and speaks another protocol.
#[tokio::test]
async fn what_is_not_http2_is_malformed() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0, 0, 1, 0, 0, 0, 0, 0, 0, 9]] {
        let manners = Manners { speaks_instead_of_http2: bytes, is_http2: true, ..Manners::default() };
        let stub = Stub::start_with(manners, |_| Vec::new()).await;
        let exchange = stub.patient_client().health_status(&proxy(), &metadata("KmsHealthCheck")).await;
        let found = exchange.outcome.unwrap_err();
        assert!(matches!(found, Failure::Malformed(Malformed::Http(_))), "{found:?}");
        assert_eq!(exchange.report.tries, 1);
    }
}
