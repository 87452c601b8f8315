//! `xks-proxy policy`: authorization policies, tried out before they decide.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::report::Report;
use super::{EXIT_CONFIG, EXIT_OK, complain, print};
use crate::config::{Config, PolicyCase, read_policy_cases};
use crate::policy::{Policies, PolicySource, Query, SCHEMA};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Have policies decide on the cases of a file, and compare.
    ///
    /// The policies are those of the stores of a configuration, or files that are given one by one. docs/authorization.md has
    /// the form of cases. No token is asked. Exit code: 0 if every case is decided as it says, 1 if one is not, 2 if
    /// policies, cases or configuration are wrong.
    Test(TestArgs),
    /// Print what policies may look at, in Cedar's schema language, for editors and other tools.
    Schema,
}

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// The configuration whose stores name the policies.
    #[arg(long, value_name = "FILE", required_unless_present = "policies", conflicts_with = "policies")]
    config: Option<PathBuf>,
    /// A file of policies, for every store that the cases name; may be given several times.
    #[arg(long = "policy", value_name = "FILE")]
    policies: Vec<PathBuf>,
    /// The cases, TOML or JSON.
    #[arg(required = true, value_name = "CASES")]
    cases: Vec<PathBuf>,
}

pub(super) fn run(command: &PolicyCommand) -> u8 {
    match command {
        PolicyCommand::Schema => {
            print(&SCHEMA.trim_end());
            EXIT_OK
        }
        PolicyCommand::Test(args) => test(args).unwrap_or(EXIT_CONFIG),
    }
}

/// The exit code; `None` where there is nothing to compare, and why is said.
fn test(args: &TestArgs) -> Option<u8> {
    let stores = Stores::load(args)?;
    let cases: Vec<_> = args.cases.iter().map(|path| read_cases(path)).collect();
    let cases: Vec<_> = cases.into_iter().collect::<Option<_>>()?;
    let mut report = Report::default();
    for case in cases.iter().flatten() {
        match stores.of(case).and_then(|policies| compare(case, policies)) {
            Ok(decision) => report.good(&format!("{}: {decision}", case.name)),
            Err(difference) => report.fault(&format!("{}: {difference}", case.name)),
        }
    }
    Some(report.end())
}

/// Whose policies decide.
enum Stores {
    Every(Box<Policies>),
    OfConfig(HashMap<Arc<str>, Option<Arc<Policies>>>),
}

impl Stores {
    fn load(args: &TestArgs) -> Option<Self> {
        if let Some(path) = &args.config {
            let config = Config::load(path).map_err(|error| complain(&error)).ok()?;
            let stores = config.stores.into_iter().map(|store| (store.name, store.policies));
            return Some(Self::OfConfig(stores.collect()));
        }
        let sources: Vec<_> = args.policies.iter().map(|path| read(path)).collect();
        let sources =
            sources.into_iter().map(|source| source.map(|(path, text)| PolicySource { path, text }));
        let policies = Policies::load(&sources.collect::<Option<Vec<_>>>()?);
        policies
            .map_err(|faults| faults.iter().for_each(|fault| complain(fault)))
            .ok()
            .map(Box::new)
            .map(Self::Every)
    }

    fn of(&self, case: &PolicyCase) -> Result<&Policies, String> {
        match self {
            Self::Every(policies) => Ok(policies),
            Self::OfConfig(stores) => match stores.get(&*case.store) {
                Some(Some(policies)) => Ok(policies),
                Some(None) => {
                    Err(format!("store {} has authorization = \"none\": everything is allowed", case.store))
                }
                None => Err(format!("the configuration has no store {}", case.store)),
            },
        }
    }
}

fn read(path: &Path) -> Option<(PathBuf, String)> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some((path.to_owned(), text)),
        Err(error) => {
            complain(&format!("cannot read {}: {}", path.display(), error.kind()));
            None
        }
    }
}

fn read_cases(path: &Path) -> Option<Vec<PolicyCase>> {
    let (_, text) = read(path)?;
    let cases = read_policy_cases(&text);
    cases
        .map_err(|faults| faults.iter().for_each(|fault| complain(&format!("{}: {fault}", path.display()))))
        .ok()
}

/// What was decided; else how that differs from what the case expects.
fn compare(case: &PolicyCase, policies: &Policies) -> Result<String, String> {
    let query =
        Query { store: &case.store, operation: case.operation, key: &case.key, metadata: &case.metadata };
    let (is_allowed, policy, reason, decision) = match policies.decide(&query) {
        Ok(policy) => (true, Some(Arc::clone(&policy)), None, format!("allowed, policy {policy} permits it")),
        Err(denial) => {
            let decision = format!("denied, {denial}");
            (false, denial.policy, Some(denial.reason.label()), decision)
        }
    };
    let is_as_expected = is_allowed == case.is_allowed
        && case.policy.as_deref().is_none_or(|expected| policy.as_deref() == Some(expected))
        && case.reason.is_none_or(|expected| reason == Some(expected));
    if is_as_expected {
        return Ok(decision);
    }
    let mut expected = if case.is_allowed { "allow".to_owned() } else { "deny".to_owned() };
    for (word, what) in [("by policy", case.policy.as_deref()), ("for", case.reason)] {
        expected.push_str(&what.map(|what| format!(" {word} {what}")).unwrap_or_default());
    }
    let ids = policies.ids().join(", ");
    Err(format!("expected: {expected}; but it is {decision} (policies asked: {ids})"))
}
