//! An open-loop load generator for any XKS proxy (AWS KMS External Key Store Proxy API).
//!
//! Requests leave at instants fixed beforehand, whatever the target does, and latency counts from those instants.
//! A generator that waits for one answer before it sends the next request stops measuring exactly while the target
//! stalls (*coordinated omission*); AWS KMS does not wait, so neither does this one.
//!
//! It knows the wire contract only and shares no code with any proxy.

pub mod check;
pub mod client;
pub mod echo;
pub mod engine;
pub mod failure;
pub mod measure;
pub mod pacer;
pub mod plot;
pub mod prepare;
pub mod process;
pub mod report;
pub mod request;
pub mod schedule;
pub mod sign;
pub mod target;
pub mod versus;
mod worker;
pub mod workload;
