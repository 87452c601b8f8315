//! What the module does, seen through `cryptoki`, over a real SoftHSM2 token.
//!
//! Every fault has a test that shows it at work, counted, and gone when its rule is gone.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod support;

mod calls;
mod crypto;
mod interface;
mod recovery;
mod setting_up;
mod tokens;
