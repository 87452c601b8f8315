//! Framing the AAD, and the integrity value.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use xks_spec::framing::{ciphertext_data_integrity_value, frame_aad};

use crate::SIZES_BYTES;

const METADATA: [u8; 5] = [1, 0, 0, 0, 1];

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for (plaintext_bytes, aad_bytes) in SIZES_BYTES {
        let (aad, sealed) = (vec![0x61; aad_bytes], vec![0x5a; plaintext_bytes + 16]);
        group.bench_function(BenchmarkId::new("AAD", aad_bytes), |bencher| {
            bencher.iter(|| frame_aad(black_box(&aad), &METADATA).unwrap());
        });
        group.bench_function(BenchmarkId::new("integrity value", plaintext_bytes), |bencher| {
            bencher.iter(|| ciphertext_data_integrity_value(black_box(&aad), &METADATA, &[1; 12], &sealed));
        });
    }
    group.finish();
}
