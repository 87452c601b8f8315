//! `xks-proxy keys`: the keys of a token, for the person who makes and rotates them. Nothing secret is printed: a check
//! value is a ciphertext of a known text.

mod list;
mod make;
mod stanza;

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use xks_spec::ExternalKeyId;

use super::check::settled;
use super::key_check::{KeyCheck, deadline};
use super::report::Report;
use super::{EXIT_FAILED, EXIT_OK, LoginArgs, complain, leave, load_config};
use crate::app::Tokens;
use crate::config::{Config, StoreSettings};
use crate::hsm::{
    CheckValue, HealthStatus, HsmError, KeyLocator, KeyManager, KeyMaterial, ManageFault, ManagedKey,
    Modules, TokenSettings,
};
use crate::keystore::VersionState;
use crate::metrics::Metrics;
use crate::version_records::VersionRecords;

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// List the secret keys of a token, what each may do, and which external key it is.
    List(TokenArgs),
    /// Make a key in a token and print its entry for the configuration.
    ///
    /// AES-256, sensitive, not extractable, for encryption and decryption alone. A label that exists is never overwritten
    /// nor made twice. With --store and --key the label is the one that the configuration has for that key, or else the
    /// external key id; with --token and --label it is any key, such as the health key xks-health.
    Create(CreateArgs),
    /// Make the next version of an external key and print its entry for the configuration, in two steps.
    ///
    /// Step 1 stages the new version: every proxy must know it before any encrypts with it. Step 2 makes it primary and
    /// retires the one before. For a store with a key_rule, without --key, the next version of every key is made.
    Rotate(RotateArgs),
    /// Look up every key version and compare it with its check value; print the check values that are not pinned yet.
    ///
    /// Exit code: 0 if every version is in the token and is the key of its check value, 1 if not, 2 if the file is wrong.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The key store whose token is meant.
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// The token, by its name in the configuration; needed where neither the configuration nor the store has but one.
    #[arg(long, value_name = "NAME")]
    token: Option<String>,
    #[command(flatten)]
    login: LoginArgs,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    at: TokenArgs,
    /// The external key id of the new key, in the store of --store.
    #[arg(long, value_name = "ID", value_parser = parse_id, requires = "store", required_unless_present = "label")]
    key: Option<ExternalKeyId>,
    /// CKA_LABEL of the new key.
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    at: TokenArgs,
    /// The external key id; without it, every key that the store's key_rule makes.
    #[arg(long, value_name = "ID", value_parser = parse_id, requires = "store")]
    key: Option<ExternalKeyId>,
    /// CKA_LABEL of the new version; without it, that of the version before with @ and the new number.
    #[arg(long, value_name = "LABEL", requires = "key")]
    label: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// One key store; all without.
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    #[command(flatten)]
    login: LoginArgs,
}

fn parse_id(text: &str) -> Result<ExternalKeyId, String> {
    ExternalKeyId::parse(text).map_err(|fault| fault.to_string())
}

pub(super) fn run(command: &KeysCommand) -> u8 {
    let (KeysCommand::List(TokenArgs { config: path, login, .. })
    | KeysCommand::Create(CreateArgs { at: TokenArgs { config: path, login, .. }, .. })
    | KeysCommand::Rotate(RotateArgs { at: TokenArgs { config: path, login, .. }, .. })
    | KeysCommand::Check(CheckArgs { config: path, login, .. })) = command;
    let mut config = match load_config(path, login.force()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    config.stores.sort_by(|a, b| a.name.cmp(&b.name));
    let outcome = match command {
        KeysCommand::List(args) => list::list(&config, args),
        KeysCommand::Create(args) => make::create(&config, args),
        KeysCommand::Rotate(args) => make::rotate(&config, args),
        KeysCommand::Check(args) => check(&config, args),
    };
    outcome.unwrap_or_else(|refusal| {
        complain(&refusal);
        EXIT_FAILED
    })
}

/// Why a command did nothing, or not all.
struct Refusal(String);

impl Refusal {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ManageFault> for Refusal {
    fn from(fault: ManageFault) -> Self {
        Self(fault.to_string())
    }
}

type Done = Result<u8, Refusal>;

/// The store and the token that the arguments mean.
struct Target<'c> {
    store: Option<&'c StoreSettings>,
    token: &'c TokenSettings,
}

impl<'c> Target<'c> {
    fn of(config: &'c Config, args: &TokenArgs) -> Result<Self, Refusal> {
        let store = args.store.as_deref().map(|name| find_store(config, name)).transpose()?;
        let candidates: Vec<&TokenSettings> = config
            .tokens
            .iter()
            .filter(|token| store.is_none_or(|store| store.tokens.contains(&token.name)))
            .filter(|token| args.token.as_deref().is_none_or(|name| *token.name == *name))
            .collect();
        match candidates.as_slice() {
            [token] => Ok(Self { store, token }),
            [] => Err(Refusal::new("no such token: --token names one of the configuration, or of the store")),
            _ => Err(Refusal::new("there are several tokens: say which one with --token")),
        }
    }

    fn connect(&self) -> Result<KeyManager, Refusal> {
        let name = &self.token.name;
        KeyManager::connect(self.token, &Modules::default())
            .map_err(|fault| Refusal(format!("token {name}: {fault}")))
    }

    /// What the token makes of the known text under each key. It is asked as it is when it serves, so that a key of which
    /// this fails would not encrypt either.
    fn check_values(&self, locators: &[KeyLocator]) -> Result<Vec<Result<CheckValue, HsmError>>, Refusal> {
        let (runtime, tokens) = start(vec![self.token.clone()])?;
        let made = runtime.block_on(async {
            let mut made = Vec::with_capacity(locators.len());
            for token in tokens.all() {
                let _ = settled(&*token).await;
                for locator in locators {
                    let material = KeyMaterial { locator: locator.clone(), check_value: None };
                    made.push(CheckValue::make(&*token, &material, deadline()).await);
                }
            }
            made
        });
        // A thread that hangs is left behind: the process is about to end.
        let _ = tokens.stop();
        Ok(made)
    }

    /// The same of a key that has just been made.
    fn check_value_of_new(&self, locator: &KeyLocator) -> Result<CheckValue, Refusal> {
        let made =
            self.check_values(std::slice::from_ref(locator))?.pop().unwrap_or(Err(HsmError::KeyNotFound));
        made.map_err(|error| {
            Refusal(format!(
                "the key with {locator} was made and makes no check value: {error}. Once that is mended, `xks-proxy keys check` \
                 prints the value of a key that the configuration lists; or destroy this key, and try again"
            ))
        })
    }
}

fn find_store<'c>(config: &'c Config, name: &str) -> Result<&'c StoreSettings, Refusal> {
    let store = config.stores.iter().find(|store| *store.name == *name);
    store.ok_or_else(|| Refusal::new("the configuration has no store with the name that --store gives"))
}

fn start(tokens: Vec<TokenSettings>) -> Result<(tokio::runtime::Runtime, Tokens), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    match (runtime, Tokens::start(tokens, &Metrics::new())) {
        (Ok(runtime), Ok(tokens)) => Ok((runtime, tokens)),
        _ => Err(Refusal::new("cannot start threads")),
    }
}

/// `xks-proxy keys check`.
fn check(config: &Config, args: &CheckArgs) -> Done {
    let stores: Vec<&StoreSettings> = match &args.store {
        Some(name) => vec![find_store(config, name)?],
        None => config.stores.iter().collect(),
    };
    let is_used = |token: &&TokenSettings| stores.iter().any(|store| store.tokens.contains(&token.name));
    let used: Vec<TokenSettings> = config.tokens.iter().filter(is_used).cloned().collect();
    let mut report = Report::default();
    let records = config.iv_budget.dir.as_deref().map(VersionRecords::read).transpose();
    let records = records.unwrap_or_else(|fault| {
        report.fault(&fault.to_string());
        None
    });
    let mut listings = Vec::new();
    for token in &used {
        // One login alone, before the threads of the token come: a wrong PIN is tried once.
        listings.push((&token.name, Target { store: None, token }.connect()?.keys()?));
    }
    let (runtime, tokens) = start(used.clone())?;
    runtime.block_on(async {
        for token in tokens.all() {
            for health in settled(&*token).await {
                if health.status.is_none_or(|status| status == HealthStatus::Unavailable) {
                    let reason = health.reason.as_deref().unwrap_or("it did not answer in time");
                    report.fault(&format!("token {}: {reason}", health.name));
                }
            }
        }
        let mut keys = KeyCheck::printing_check_values(records.as_ref());
        for store in &stores {
            keys.check_store(store, &tokens, &mut report).await;
        }
    });
    for store in &stores {
        for (token, keys) in listings.iter().filter(|(token, _)| store.tokens.contains(token)) {
            check_rule(store, token, keys, &mut report);
        }
    }
    Ok(leave(&tokens, report.end()))
}

/// Whether each key that the store's rule makes has its primary and its staged versions in the token.
fn check_rule(store: &StoreSettings, token: &str, keys: &[ManagedKey], report: &mut Report) {
    let Some(rule) = store.keys.rule() else { return };
    let ids = list::ids_by_rule(store, keys);
    for (number, state) in rule.versions() {
        let lacks = |id: &&ExternalKeyId| {
            let locator = KeyLocator::Label(rule.label(id, number));
            !keys.iter().any(|key| key.answers_to(&locator))
        };
        let lacking: Vec<_> = ids.iter().filter(lacks).map(ToString::to_string).collect();
        let text = format!("store {}: by its rule, version {number}, {state}", store.name);
        match state {
            VersionState::Primary | VersionState::Staged if lacking.is_empty() => {
                report.good(&format!("{text}, of all {} keys is in token {token}", ids.len()));
            }
            VersionState::Primary => report.fault(&format!(
                "{text}, is missing in token {token}: {} cannot encrypt",
                lacking.join(", ")
            )),
            VersionState::Staged => report.notice(&format!(
                "{text}, is missing in token {token} for {}: make it primary nowhere before `keys rotate` has made it",
                lacking.join(", ")
            )),
            // A key that was made after a rotation never had the versions before.
            VersionState::Retired | VersionState::Disabled => {}
        }
    }
}
