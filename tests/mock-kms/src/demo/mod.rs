//! `mock-kms demo`: token, proxy, KMS and a caller on one machine, the whole way there and back, layer by layer.

mod caller;
mod envelope;
mod folder;
mod layers;
mod paste;
mod proxy;
mod story;
mod terminal;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use thiserror::Error;

use crate::cli::interrupted;
use terminal::Terminal;

/// Options of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// The folder that softhsm-setup.sh made, or is to make [default: .dev beside the script]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The proxy's program [default: xks-proxy, built by cargo if need be]
    #[arg(long, value_name = "PROGRAM")]
    pub proxy: Option<PathBuf>,
    /// Where the KMS listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The file to encrypt, which is only read [default: a short text]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How long one try of a call to the proxy may take, connecting included. AWS KMS gives it 250
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..))]
    pub proxy_timeout_ms: u64,
    /// Leave proxy and KMS running until Ctrl-C, and show how to call them
    #[arg(long)]
    pub keep_running: bool,
    /// Whether to use colours
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Why the demo stopped.
#[derive(Debug, Error)]
enum Stop {
    /// A file or program is not as it must be.
    #[error("{0}")]
    Setup(String),
    /// The proxy did not start.
    #[error("{0}")]
    Proxy(String),
    /// KMS refused what it should have done.
    #[error("{operation} failed: {refusal}")]
    Refused {
        /// The KMS operation.
        operation: &'static str,
        /// What KMS said.
        refusal: caller::Refusal,
    },
    /// Something is not so that must be so.
    #[error("not proven: {0}")]
    NotProven(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// The terminal is gone.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

impl Stop {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Refused { .. } | Self::NotProven(_) => ExitCode::FAILURE,
            Self::Setup(_) | Self::Proxy(_) | Self::Output(_) => ExitCode::from(2),
            Self::Interrupted => ExitCode::from(130),
        }
    }
}

/// Runs the demo. Exit codes: 0 when all was proven, 1 when something was not, 2 when the demo could not be set up, 130 when
/// it was interrupted.
#[must_use]
pub fn run(arguments: &DemoArgs) -> ExitCode {
    let mut terminal = Terminal::new(arguments.color);
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(tell(arguments, &mut terminal)),
        Err(error) => Err(Stop::Setup(format!("cannot start: {error}"))),
    };
    let Err(stop) = outcome else { return ExitCode::SUCCESS };
    terminal.failed(&stop.to_string());
    stop.exit_code()
}

async fn tell(arguments: &DemoArgs, terminal: &mut Terminal) -> Result<(), Stop> {
    let mut scene = tokio::select! {
        told = story::tell(arguments, terminal) => told?,
        () = interrupted() => return Err(Stop::Interrupted),
    };
    if arguments.keep_running {
        scene.explain(terminal)?;
        interrupted().await;
    }
    scene.end().await
}
