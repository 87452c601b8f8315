//! Environment variables that PKCS#11 modules want, such as SOFTHSM2_CONF.
//!
//! They must be set before the process has threads, and setting them from within is not safe. So the process replaces
//! itself by itself with the variables set.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::hsm::TokenSettings;

/// Whether the environment is as the tokens want it.
pub(super) fn is_there(tokens: &[TokenSettings]) -> bool {
    let mut wanted = tokens.iter().flat_map(|token| &token.environment);
    wanted.all(|(name, value)| std::env::var_os(name).as_deref() == Some(OsStr::new(value.as_str())))
}

/// Returns if the environment is as the tokens want it; otherwise starts the process anew in the right one.
///
/// # Errors
/// When the process cannot be started anew.
pub(super) fn ensure(tokens: &[TokenSettings]) -> Result<(), std::io::Error> {
    if is_there(tokens) {
        return Ok(());
    }
    let wanted = tokens.iter().flat_map(|token| &token.environment);
    let mut arguments = std::env::args_os();
    let _program = arguments.next();
    Err(Command::new(std::env::current_exe()?).args(arguments).envs(wanted).exec())
}
