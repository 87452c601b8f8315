//! Benchmarks of what every request passes through: signature, parsing, framing, policies, an operation, and the TLS
//! handshake.
//!
//! ```sh
//! cargo bench --bench hot_path                 # all; or a part of a name behind it
//! cargo bench --bench hot_path -- --save-baseline before
//! cargo bench --bench hot_path -- --baseline before
//! ```
//!
//! `cargo test` runs each once. What the whole proxy costs, the kernel's share included, `benches/run` measures.
#![allow(clippy::unwrap_used, reason = "a benchmark whose set-up fails has failed")]

mod framing;
mod handshake;
mod operations;
mod parsing;
#[cfg(feature = "cedar")]
mod policies;
mod sigv4;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    sigv4::measure(&mut criterion);
    parsing::measure(&mut criterion);
    framing::measure(&mut criterion);
    #[cfg(feature = "cedar")]
    policies::measure(&mut criterion);
    operations::measure(&mut criterion);
    handshake::measure(&mut criterion);
    criterion.final_summary();
}

/// Bytes of plaintext and of AAD: a data key in a usual context, and the longest that every proxy must take.
const SIZES_BYTES: [(usize, usize); 2] = [(32, 100), (4300, 8192)];

/// The body of an Encrypt of so many bytes.
fn encrypt_body(plaintext_bytes: usize, aad_bytes: usize, wants_integrity_value: bool) -> Vec<u8> {
    let (plaintext, aad) = (vec![0x5a; plaintext_bytes], vec![0x61; aad_bytes]);
    let body = xks_harness::request::encrypt_body(&plaintext, Some(&aad), wants_integrity_value);
    body.to_string().into_bytes()
}
