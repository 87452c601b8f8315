//! A PKCS#11 module that forwards every call to a real module and misbehaves when told.
//!
//! The shared object `libpkcs11_fault.so` is for any program that loads PKCS#11 modules; the README beside this crate
//! is its manual. This library is the same thing for tests in Rust: the rules of a control file as types, its writer,
//! and the reader of the counters.
//!
//! ```
//! use pkcs11_fault::{ControlFile, Corrupt, Fault, Function, Rule};
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("control");
//!
//! let control = ControlFile::new(path);
//! control.write(&[
//!     Rule::new(Fault::DelayMs(50)).on(Function::Encrypt),
//!     Rule::new(Fault::Corrupt(Corrupt::Tag)).label("key-1").times(1),
//! ])?;
//! assert_eq!(
//!     std::fs::read_to_string(control.path())?,
//!     "C_Encrypt delay_ms=50\n* corrupt=tag label=key-1 times=1\n"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod control;
mod counts;
mod fault;
mod function;
mod grammar;
// The C interface: pointers in, pointers out.
#[allow(unsafe_code)]
mod module;
mod names;
mod rule;
mod setup;

pub use control::ControlFile;
pub use counts::{Counts, RuleCount};
pub use fault::{Corrupt, Fault, FaultKind, GcmIv, Hang, Random, TokenFlag, UnknownKeyword};
pub use function::{Function, UnknownFunction};
pub use grammar::{ControlError, parse_rules};
pub use names::{Attribute, Ckr, Mechanism, UnknownName};
pub use rule::{Rule, RuleError};
pub use setup::{CONTROL_VARIABLE, COUNTS_VARIABLE, MODULE_VARIABLE, Setup, SetupError, built_module};
