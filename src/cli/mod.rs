//! The command line.

mod audit;
mod check;
mod credentials;
mod doctor;
mod environment;
mod key_check;
mod keys;
mod policy;
mod probe;
mod report;
mod seclusion;
mod serve;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::app::Tokens;
use crate::config::{Config, ConfigError};
use crate::hsm::{ForceLogin, HELPER_COMMAND, serve_as_helper};

/// Everything went well.
const EXIT_OK: u8 = 0;
/// Something could not be done, or `check` found a fault that depends on the token.
const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const EXIT_CONFIG: u8 = 2;

/// `serve` ended in order because only a new process brings a token back: EX_TEMPFAIL of sysexits.h.
const EXIT_RESTART: u8 = 75;

/// An AWS KMS external key store proxy in front of a PKCS#11 HSM.
///
/// AWS KMS sends every use of an external key to this proxy, which has the HSM do it: the key never leaves the HSM.
/// Start with `check`, which says everything that is wrong with a configuration; then `serve`.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve AWS KMS until SIGTERM or SIGINT.
    ///
    /// Logs go to standard output, one JSON object a line, one line a request. SIGTERM makes the proxy not ready at once
    /// (/readyz and /ping say 503), serves on for lame_duck_secs, drains, and exits with 0.
    ///
    /// SIGHUP loads the configuration anew, and so does a change of its files. One that is at fault changes nothing. SIGUSR1
    /// is SIGHUP where keys that can be used now may be lost.
    ///
    /// Started by systemd with Type=notify it says when it is ready, reloading and stopping, and gives the watchdog signs of life.
    ///
    /// Where a token comes back only after its PKCS#11 module is finalised, and a call that never returns is inside the module,
    /// it does the same by itself and exits with 75: have the supervisor start it again (systemd: Restart=on-failure). Other
    /// exit codes: 1 if it cannot serve, 2 if the command line or the configuration is wrong.
    Serve(ServeArgs),
    /// Check a configuration and the tokens, keys and certificates that it names.
    ///
    /// Reads the whole file, logs in to every token, looks up every key that is listed, compares it with what the state
    /// directory knows of its versions, and reports all faults at once. A
    /// file that is at fault itself is reported whole, and what it names is looked at once that is mended. Exit code: 0 if
    /// the proxy can serve everything, 1 if a token, key or certificate is at fault, 2 if the file is.
    Check(CheckArgs),
    /// Examine the tokens of a configuration and say what to set.
    ///
    /// Logs in once to each token and finds out which mechanisms it has, which IV source works, what it says of a bad tag,
    /// how many sessions it gives, how fast it is, and what attributes the listed keys have. Encrypts under the health key
    /// or a session key alone. Exit code: 0 if nothing keeps a token or key from serving, 1 if something does, 2 if the
    /// configuration is wrong.
    Doctor(DoctorArgs),
    /// List, make, rotate and check the keys of a token.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Try out authorization policies.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Verify audit logs.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Make SigV4 credentials.
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Ask a proxy on this machine whether it lives, or is ready: the health check of a container.
    ///
    /// Exit code: 0 if it says yes, 1 if it says no, or nothing.
    Probe(ProbeArgs),
    /// Hold the module of a token with isolation = "process". The proxy starts this itself.
    #[command(name = HELPER_COMMAND, hide = true)]
    HsmHelper {
        /// Name of the token, for whoever looks at a list of processes.
        token: String,
    },
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration; deploy/xks-proxy.example.toml explains every key.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log in although a token says that its PIN is close to being locked (CKF_USER_PIN_COUNT_LOW, _FINAL_TRY, _LOCKED).
    ///
    /// Each such login is logged as a warning. A PIN that the token has refused is not tried even so until its content
    /// changes: a service is restarted without anybody looking. `check --force-login` tries that one, once, and a proxy
    /// that serves meanwhile takes note of its success.
    #[arg(long)]
    force_login: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    login: LoginArgs,
}

/// For the commands that a person runs.
#[derive(Clone, Copy, Debug, Args)]
struct LoginArgs {
    /// Try the PIN once, although the token has refused it or says that it is close to locking it.
    ///
    /// Only where the PIN is known to be right: a wrong one may lock the token.
    #[arg(long)]
    force_login: bool,
}

impl LoginArgs {
    const fn force(self) -> ForceLogin {
        if self.force_login { ForceLogin::Everything } else { ForceLogin::No }
    }
}

#[derive(Debug, Args)]
struct ProbeArgs {
    /// Address of the proxy's admin listener.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9464")]
    admin: SocketAddr,
    /// Ask whether it should be sent requests (/readyz), and not only whether it lives (/livez).
    #[arg(long)]
    ready: bool,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    login: LoginArgs,
    /// As JSON, for a bug report or a comparison. No secret is in it.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Find the first record that was changed, removed, reordered or spliced in.
    ///
    /// Takes all files of a chain, in any order. A line that a crash has torn is told apart from tampering. Only with
    /// --expect-head is a tail missed that was cut off. Exit code: 0 if the chain is whole, 1 if it is not, 2 if a file
    /// cannot be read.
    Verify(audit::VerifyArgs),
}

#[derive(Debug, Subcommand)]
enum CredentialsCommand {
    /// Make a new access key id and secret access key for a key store.
    ///
    /// KMS signs its requests with them, and the proxy verifies the signatures: both must be told. With --format one of
    /// the three forms is printed. With --dir all three are written, of one and the same credential, each readable by
    /// its owner alone. Whoever has the secret can use the store's keys.
    New(credentials::NewArgs),
}

/// The command line as clap knows it, of which the manual pages and shell completions are made.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::HsmHelper { .. }) {
        seclusion::offer_itself();
    }
    seclusion::close();
    let code = match command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args.config.config, args.login.force()),
        Command::Doctor(args) => doctor::run(&args.config.config, args.login.force(), args.json),
        Command::Keys(command) => keys::run(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Probe(args) => probe::run(&args),
        Command::Audit(AuditCommand::Verify(args)) => audit::verify(&args),
        Command::Credentials(CredentialsCommand::New(args)) => credentials::new(&args),
        Command::HsmHelper { token: _ } => help_proxy(),
    };
    ExitCode::from(code)
}

/// `xks-proxy hsm-helper`.
fn help_proxy() -> ! {
    let code = match serve_as_helper() {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&format!("{HELPER_COMMAND} is started by the proxy itself: {error}"));
            EXIT_FAILED
        }
    };
    signal_hook::low_level::exit(i32::from(code))
}

/// Ends the tokens' threads, and the process at once where one is stuck: a module's destructors must not run beside it.
fn leave(tokens: &Tokens, code: u8) -> u8 {
    if !tokens.stop() {
        signal_hook::low_level::exit(i32::from(code));
    }
    code
}

/// Tells the person at the terminal; the log is for `serve`.
#[expect(clippy::print_stderr, reason = "the one place that writes to standard error")]
fn complain(problem: &dyn std::fmt::Display) {
    eprintln!("xks-proxy: {problem}");
}

/// Prints a command's result.
#[expect(clippy::print_stdout, reason = "the one place that writes to standard output")]
fn print(text: &dyn std::fmt::Display) {
    println!("{text}");
}

/// The configuration, with the environment that its modules want; the exit code where it cannot be had, and why is said.
fn load_config(path: &Path, force_login: ForceLogin) -> Result<Config, u8> {
    prepare(Config::load(path), force_login)
}

/// The same of one that was loaded.
fn prepare(loaded: Result<Config, ConfigError>, force_login: ForceLogin) -> Result<Config, u8> {
    let mut config = loaded.map_err(|error| {
        complain(&error);
        EXIT_CONFIG
    })?;
    environment::ensure(&config.tokens).map_err(|error| {
        complain(&format!("cannot set the environment of the PKCS#11 modules: {error}"));
        EXIT_FAILED
    })?;
    config.tokens.iter_mut().for_each(|token| token.force_login = force_login);
    Ok(config)
}
