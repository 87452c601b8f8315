//! What the integration tests stand on: real SoftHSM2 tokens, real certificates, the real `xks-proxy` binary as a
//! process of its own, and a client that signs with AWS's own signer and can break every rule on request.
//!
//! It depends on `xks-spec` for names and limits and never on the proxy: a shared verifier would hide a shared bug.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a broken test set-up is a failed test"
)]

pub mod binary;
pub mod client;
pub mod document;
pub mod faults;
pub mod pki;
pub mod proxy;
pub mod raw;
pub mod request;
pub mod token;

pub use client::{Answer, Connection, Http};
pub use faults::Faults;
pub use pkcs11_fault::{Corrupt, FaultKind, Function, GcmIv, Hang, Random, TokenFlag};
pub use pki::Pki;
pub use proxy::{Proxy, Setup, Store};
pub use raw::RawConnection;
pub use request::{Signing, XksRequest};
pub use token::SoftHsm;
