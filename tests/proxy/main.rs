//! Tests of the running proxy: the real binary, real TLS, a real SoftHSM2 token, real clients.
//!
//! One module a subject. `tests/harness` starts what they need.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod audit;
mod authorization;
mod command_line;
mod connections;
mod dashboard;
mod development;
mod endurance;
mod fault_matrix;
mod fleet;
mod golden;
mod health;
mod isolation;
mod iv_budget;
mod keys_command;
mod memory;
mod metrics;
mod migration;
mod observability;
mod operations;
mod oracle;
mod order_of_checks;
mod quotas;
mod reload;
mod shutdown;
mod signatures;
mod supervisor;
mod tokens;
mod transport;
mod versions;
