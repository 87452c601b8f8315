//! `xks-conformance`: the command.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    ExitCode::from(xks_conformance::cli::Cli::parse().execute().await)
}
