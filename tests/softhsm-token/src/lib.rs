//! Makes and changes PKCS#11 tokens for development and tests: SoftHSM2 above all.
//!
//! `pkcs11-tool` cannot set every attribute of a secret key; here each one is written down in a template
//! ([`KeySpec`]). The command line in `main.rs` is a thin layer over [`Module`], [`Token`] and [`initialize`].
//!
//! Not for production keys: an imported value is plain memory, and nothing here survives a hostile module.
//!
//! A PKCS#11 module is initialised once a process. [`Module`] does it on loading and undoes it on drop, so there
//! must be one at a time.

mod error;
mod hex;
mod key;
mod listing;
mod module;
mod token;
mod usage;

pub use cryptoki::types::AuthPin;
pub use error::{Error, Result};
pub use hex::Hex;
pub use key::{KeyFilter, KeySpec};
pub use listing::ObjectInfo;
pub use module::{INSTALL_PATHS, Module, installed_module};
pub use token::{Initialized, Token, initialize};
pub use usage::{Usage, Usages};
