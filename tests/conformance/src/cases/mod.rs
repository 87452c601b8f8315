//! The cases, one file a section.

pub mod aad;
pub mod authorization;
pub mod cdiv;
pub mod concurrency;
pub mod decrypt;
mod disabled_store;
pub mod encrypt;
pub mod errors;
pub mod health;
pub mod isolation;
pub mod iv;
pub mod latency;
pub mod metadata;
pub mod mtls;
pub mod paths;
pub mod rotation;
pub mod sigv4;
pub mod sigv4_accepted;
pub mod sigv4_forms;
pub mod sigv4_strangers;
pub mod slow;
pub mod smuggling;
pub mod tls;
pub mod transport;

use crate::case::Case;

/// Every case, in the order in which they run. Those that look at all answers so far come last.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        tls::cases(),
        transport::cases(),
        paths::cases(),
        sigv4::cases(),
        sigv4_accepted::cases(),
        sigv4_forms::cases(),
        sigv4_strangers::cases(),
        metadata::cases(),
        encrypt::cases(),
        decrypt::cases(),
        cdiv::cases(),
        aad::cases(),
        iv::cases(),
        isolation::cases(),
        authorization::cases(),
        health::cases(),
        concurrency::cases(),
        slow::cases(),
        smuggling::cases(),
        rotation::cases(),
        mtls::cases(),
        latency::cases(),
        errors::cases(),
    ]
    .concat()
}
