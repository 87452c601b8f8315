//! The command line of `softhsm-token`: reads arguments and PINs, calls the library, reports.

mod args;
mod pin;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use softhsm_token::{Error, KeyFilter, Module, Token, initialize, installed_module};

use args::{
    Arguments, Command, GenerateArguments, ImportArguments, InitArguments, KeyArguments, TokenArguments,
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Token(#[from] Error),
    #[error("cannot read the PIN file {}: {source}", path.display())]
    PinFile { path: PathBuf, source: io::Error },
    #[error("a PIN is missing: give --{option}, --{option}-file or the environment variable {variable}")]
    NoPin { option: &'static str, variable: &'static str },
    #[error("cannot write the listing: {0}")]
    Listing(#[from] serde_json::Error),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoPin { .. } | Self::Token(Error::KeyBits(_) | Error::TokenLabelLength(_)) => 2,
            Self::Token(error) if error.is_not_found() => 3,
            _ => 1,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()).and_then(|report| Ok(writeln!(io::stdout(), "{report}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where even standard error is closed, the exit code has to do.
            let _ = writeln!(io::stderr(), "softhsm-token: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs the command, and returns what to say about it.
fn run(arguments: Arguments) -> Result<String, Failure> {
    let module_path = arguments.module.map_or_else(installed_module, Ok)?;
    let open = |token: TokenArguments| -> Result<Token, Failure> {
        let pin = pin::user(token.pin)?;
        Ok(Token::open(Module::load(&module_path)?, token.token.as_deref(), &pin)?)
    };
    match arguments.command {
        Command::Module => Ok(module_path.display().to_string()),
        Command::Init(InitArguments { label, so_pin, so_pin_file, pin, no_pin }) => {
            let so_pin = pin::security_officer(so_pin, so_pin_file)?;
            let pin = if no_pin { None } else { Some(pin::user(pin)?) };
            let outcome = initialize(&Module::load(&module_path)?, &label, &so_pin, pin.as_ref())?;
            Ok(report::initialized(&label, outcome))
        }
        Command::Generate(GenerateArguments { token, label, id, bits, count, label_prefix, new_key }) => {
            let spec = new_key.spec(id);
            let numbered =
                (0..count.unwrap_or(0)).map(|n| format!("{}{n}", label_prefix.as_deref().unwrap_or("")));
            let made = open(token)?.generate(label.clone().into_iter().chain(numbered), bits, &spec)?;
            Ok(report::generated(label.as_deref(), made))
        }
        Command::Import(ImportArguments { token, key, value, new_key }) => {
            let made = open(token)?.import(&key.label, value.0, &new_key.spec(key.id))?;
            Ok(report::made(&key.label, made))
        }
        Command::Destroy { token, key } => {
            let destroyed = open(token)?.destroy(filter(&key))?;
            Ok(format!("{}: {destroyed} destroyed", key.label))
        }
        Command::Set { token, key, usage } => {
            let changed = open(token)?.set_usages(filter(&key), &usage)?;
            Ok(format!("{}: {usage} on {changed}", key.label))
        }
        Command::List { token, json } => {
            let objects = open(token)?.list()?;
            if json { Ok(serde_json::to_string_pretty(&objects)?) } else { Ok(report::table(&objects)) }
        }
    }
}

fn filter(key: &KeyArguments) -> KeyFilter<'_> {
    KeyFilter { label: &key.label, id: key.id.as_ref().map(|id| id.0.as_slice()) }
}
