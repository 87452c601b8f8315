//! The demo as a user runs it, and the page that it leaves open, in a real browser.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod command;
#[path = "../installed/mod.rs"]
mod installed;
mod page;
mod scene;
