//! Where PINs come from: an option, a file, or the environment, in this order.

use std::path::PathBuf;
use std::{env, fs};

use softhsm_token::AuthPin;

use crate::Failure;
use crate::args::PinArguments;

/// The user's PIN.
pub(crate) fn user(arguments: PinArguments) -> Result<AuthPin, Failure> {
    read(arguments.pin, arguments.pin_file, "pin", "TOKEN_PIN")
}

/// The security officer's PIN.
pub(crate) fn security_officer(pin: Option<String>, pin_file: Option<PathBuf>) -> Result<AuthPin, Failure> {
    read(pin, pin_file, "so-pin", "TOKEN_SO_PIN")
}

fn read(
    pin: Option<String>,
    pin_file: Option<PathBuf>,
    option: &'static str,
    variable: &'static str,
) -> Result<AuthPin, Failure> {
    if let Some(pin) = pin {
        return Ok(pin.into());
    }
    if let Some(path) = pin_file {
        let text = fs::read_to_string(&path).map_err(|source| Failure::PinFile { path, source })?;
        // Editors end a file with a newline that is no part of the PIN.
        return Ok(text.strip_suffix('\n').unwrap_or(&text).into());
    }
    env::var(variable).map(AuthPin::from).map_err(|_| Failure::NoPin { option, variable })
}
