//! Verifying a signature that holds: head, hash of the body, comparison.

use std::hint::black_box;
use std::time::SystemTime;

use criterion::{BenchmarkId, Criterion};
use http::{HeaderMap, HeaderValue, Method};
use xks_harness::Signing;
use xks_proxy::sigv4::{Credential, Credentials, SignedHead, check_head};
use xks_spec::credential::{AccessKeyId, SecretAccessKey};

use crate::{SIZES_BYTES, encrypt_body};

const ID: &str = "XKSBENCHID234567ABCDEFGHIJ";
const SECRET: &str = "bench/secret+bench/secret+bench/secret+bench0";
const PATH: &str = "/main/kms/xks/v1/keys/demo/encrypt";

/// What KMS presents, and nothing else.
pub(crate) fn credentials() -> Credentials {
    let id = AccessKeyId::parse(ID).unwrap();
    Credentials::new(vec![Credential::new(id, &SecretAccessKey::parse(SECRET).unwrap(), None)]).unwrap()
}

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sigv4_verify");
    let credentials = credentials();
    for (plaintext_bytes, aad_bytes) in SIZES_BYTES {
        let body = encrypt_body(plaintext_bytes, aad_bytes, false);
        let url = format!("https://localhost{PATH}");
        let mut headers = HeaderMap::from_iter(Signing::new(ID, SECRET).headers("POST", &url, &[], &body));
        headers.insert("host", HeaderValue::from_static("localhost"));
        let now = SystemTime::now();
        let head = SignedHead { method: &Method::POST, path: PATH, headers: &headers, authority: None };
        group.bench_function(
            BenchmarkId::from_parameter(format!("body of {} bytes", body.len())),
            |bencher| {
                bencher.iter(|| {
                    let pending = check_head(black_box(head), &credentials, now).unwrap();
                    pending.verify(black_box(&body)).unwrap()
                });
            },
        );
    }
    group.finish();
}
