//! The files of `deploy/` that other programs read: rendered, validated and compared with what the proxy does, offline.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod aws;
mod kubernetes;
mod tools;

/// The repository's folder.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
