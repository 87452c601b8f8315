//! An AWS KMS external key store proxy in front of a PKCS#11 HSM.
//!
//! Modules import only from those in rows above their own (`docs/architecture.md`; `tests/layering.rs` enforces it):
//!
//! | row | module |
//! |---|---|
//! | 0 | [`clock`], [`open_files`], [`secret`], [`state_folder`], [`wiping_allocator`] |
//! | 1 | [`metrics`], [`sigv4`], [`policy`] |
//! | 2 | [`tls`], [`hsm`], [`iv_budget`], [`audit`] |
//! | 3 | [`keystore`], [`admin`], [`version_records`] |
//! | 4 | [`error`] |
//! | 5 | [`operations`] |
//! | 6 | [`server`] |
//! | 7 | [`config`] |
//! | 8 | [`app`] |
//! | 9 | [`cli`] |
#![warn(clippy::disallowed_methods)]

pub mod admin;
pub mod app;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod hsm;
pub mod iv_budget;
pub mod keystore;
pub mod metrics;
pub mod open_files;
pub mod operations;
pub mod policy;
pub mod secret;
pub mod server;
pub mod sigv4;
pub mod state_folder;
pub mod tls;
pub mod version_records;
pub mod wiping_allocator;
