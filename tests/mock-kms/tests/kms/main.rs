//! The program `mock-kms` from outside: its API over HTTP, before a real proxy on SoftHSM2 and before one that lies.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "this is test code, and the lints know only functions marked as tests"
)]

mod answers;
mod clients;
mod command_line;
mod cryptography;
mod documents;
mod fake_proxy;
#[path = "../installed/mod.rs"]
mod installed;
mod keys;
mod mock;
mod proxy_errors;
mod quota;
mod sequences;
mod snapshots;
mod stores;
mod wire;
