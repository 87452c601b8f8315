//! Reading the bodies of all four operations.

use std::hint::black_box;

use criterion::Criterion;
use serde_json::json;
use xks_harness::request::{decrypt_body, metadata};
use xks_spec::Operation;
use xks_spec::request::{DecryptRequest, EncryptRequest, SizeLimits, parse_metadata_only};

use crate::{SIZES_BYTES, encrypt_body};

pub(crate) const LIMITS: SizeLimits = SizeLimits { max_plaintext_bytes: 4300, max_aad_bytes: 8192 };

/// The body of a Decrypt of what the fake HSM of `operations.rs` makes of as many bytes.
pub(crate) fn body_of_decrypt(plaintext_bytes: usize, aad_bytes: usize) -> Vec<u8> {
    let b64 = xks_harness::request::base64;
    let encrypted = json!({
        "ciphertext": b64(&vec![0x5a; plaintext_bytes]),
        "initializationVector": b64(&[1; 12]),
        "authenticationTag": b64(&[2; 16]),
        // Format 1, key version 1.
        "ciphertextMetadata": b64(&[1, 0, 0, 0, 1]),
    });
    decrypt_body(&encrypted, Some(&vec![0x61; aad_bytes])).to_string().into_bytes()
}

pub(crate) fn body_of_metadata(kms_operation: &str) -> Vec<u8> {
    json!({ "requestMetadata": metadata(kms_operation) }).to_string().into_bytes()
}

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (plaintext_bytes, aad_bytes) in SIZES_BYTES {
        let size = format!("{plaintext_bytes} bytes, {aad_bytes} of AAD");
        let body = encrypt_body(plaintext_bytes, aad_bytes, true);
        group.bench_function(format!("encrypt of {size}"), |bencher| {
            bencher.iter(|| EncryptRequest::parse(black_box(&body), LIMITS, &mut None).is_ok());
        });
        let body = body_of_decrypt(plaintext_bytes, aad_bytes);
        group.bench_function(format!("decrypt of {size}"), |bencher| {
            bencher.iter(|| DecryptRequest::parse(black_box(&body), LIMITS, &mut None).is_ok());
        });
        assert!(
            DecryptRequest::parse(&body, LIMITS, &mut None).is_ok(),
            "the benchmark is of a body that is read whole"
        );
    }
    for (operation, kms_operation) in
        [(Operation::GetKeyMetadata, "CreateKey"), (Operation::GetHealthStatus, "KmsHealthCheck")]
    {
        let body = body_of_metadata(kms_operation);
        group.bench_function(format!("{operation:?}"), |bencher| {
            bencher.iter(|| parse_metadata_only(black_box(&body), operation, &mut None).unwrap());
        });
    }
    group.finish();
}
