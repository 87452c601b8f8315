//! The client against a proxy that stalls, drops, babbles and lies, and against the real one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod answers;
mod connections;
mod knobs;
mod real;
mod stub;
mod time;
mod tls;
