//! Requests below the level of mock-kms's client: signed by hand, raw bytes over TLS, ClientHello bytes; and the command
//! lines that repeat them.

pub mod hello;
pub mod paste;
pub mod raw;
pub mod sigv4;
