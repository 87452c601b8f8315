//! The `xks-proxy` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    xks_proxy::cli::main()
}
