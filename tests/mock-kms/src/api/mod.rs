//! The operations of the KMS API, one file an operation or small group: parse, ask the model, call the proxy, answer.

mod aliases;
mod cryptography;
mod data_keys;
pub mod failure;
mod input;
mod keys;
mod layers;
mod metadata;
mod operation;
mod policies;
mod proxy;
mod re_encrypt;
mod rotation;
mod service;
mod store_connection;
mod stores;
mod tags;
mod unsupported;

pub use operation::{Answer, Operation};
pub use service::{Call, Outage, Service, Settings};
