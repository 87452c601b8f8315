//! The program `mock-kms`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mock_kms::cli::main()
}
