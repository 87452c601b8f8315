//! `xks-proxy check`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::key_check::KeyCheck;
use super::report::Report;
use super::{EXIT_FAILED, complain, leave, load_config};
use crate::app::{Tokens, stores_with_versions, unsafe_at_start};
use crate::audit::{self, AuditSettings};
use crate::clock;
use crate::config::{Config, StoreSettings};
use crate::hsm::{ForceLogin, HealthStatus, Hsm, TokenHealth};
use crate::metrics::Metrics;
use crate::open_files;
use crate::secret;
use crate::tls::{CertificateFiles, ListenerTls, NOTICE_DAYS, ServerChain, TlsFacts, days_until};
use crate::version_records::VersionRecords;

/// How long a token has to be reached and probed.
const TOKEN_PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn run(path: &Path, force_login: ForceLogin) -> u8 {
    let config = match load_config(path, force_login) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut report = Report::default();
    report.good(&format!("the configuration {} is well-formed", path.display()));
    for files in &config.certificates {
        check_certificate(files, config.endpoint.as_deref(), true, &mut report);
    }
    for files in config.admin.tls.iter().flat_map(|tls| &tls.certificates) {
        check_certificate(files, None, false, &mut report);
    }
    report_tls(&config.tls, &mut report);
    check_permissions(&config, &mut report);
    if config.tokens.iter().any(|token| token.pin.is_some() && token.state_dir.is_none()) {
        report.notice(
            "without a state directory ([state] dir) a PIN that a token refuses is tried again at each start, and each \
             command, which can lock the token",
        );
    }
    let stores = stores_with_versions(&config.stores).join(", ");
    if config.iv_budget.dir.is_none() && !stores.is_empty() {
        report.notice(&format!(
            "store {stores}: without a state directory ([state] dir) a start does not know which versions were staged before it \
             makes one primary"
        ));
    }
    if !secret::is_all_locked() {
        report.notice(secret::UNLOCKED_ADVICE);
    }
    check_open_files(config.limits.max_connections, &mut report);
    if let Some(audit) = &config.audit {
        check_audit(audit, &mut report);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let (Ok(runtime), Ok(tokens)) = (runtime, Tokens::start(config.tokens, &Metrics::new())) else {
        complain(&"cannot start threads");
        return EXIT_FAILED;
    };
    let records =
        config.iv_budget.dir.as_deref().and_then(|dir| read_records(dir, &config.stores, &mut report));
    let mut stores = config.stores;
    stores.sort_by(|a, b| a.name.cmp(&b.name));
    runtime.block_on(async {
        for token in tokens.all() {
            settled(&*token).await.iter().for_each(|health| report_token(health, &mut report));
        }
        let mut keys = KeyCheck::remembering(records.as_ref());
        for store in &stores {
            if !store.is_enabled {
                report.notice(&format!("store {} is disabled", store.name));
            }
            if let Some(policies) = &store.policies {
                let count = policies.ids().len();
                report.good(&format!("store {}: {count} authorization policies hold against the schema", store.name));
            }
            if let Some(rule) = store.keys.rule() {
                let prefix = &rule.label_prefix;
                report.good(&format!(
                    "store {}: every other external key is the token's key whose label is {prefix:?} and the id; those \
                     are looked up when they are asked for",
                    store.name
                ));
            }
            keys.check_store(store, &tokens, &mut report).await;
        }
    });
    leave(&tokens, report.end())
}

/// What the state directory knows of key versions, and whether a start would make primary what it may not.
fn read_records(state_dir: &Path, stores: &[StoreSettings], report: &mut Report) -> Option<VersionRecords> {
    let records = match VersionRecords::read(state_dir) {
        Ok(records) => records,
        Err(fault) => {
            report.fault(&fault.to_string());
            return None;
        }
    };
    let problems = unsafe_at_start(stores, &records);
    problems.iter().for_each(|problem| report.fault(problem));
    if problems.is_empty() {
        report.good("no key version becomes primary that was not staged before");
    }
    Some(records)
}

/// Files that other users of the machine can read or change, and should not. A group may be meant.
fn check_permissions(config: &Config, report: &mut Report) {
    const OTHERS_READ: u32 = 0o004;
    const OTHERS_WRITE: u32 = 0o002;
    let may = |path: &Path, what: u32| path.canonicalize().is_ok_and(|path| others_may(&path, what));
    for file in config.files.iter().filter(|file| may(file, OTHERS_WRITE)) {
        report
            .notice(&format!("{} can be changed by every user of this machine: chmod o= it", file.display()));
    }
    for file in config.secret_files.iter().filter(|file| may(file, OTHERS_READ)) {
        report.notice(&format!(
            "{} holds a secret that every user of this machine can read: chmod o= it",
            file.display()
        ));
    }
    let audit_dir = config.audit.as_ref().and_then(|audit| audit.path.parent());
    let dirs = [audit_dir, config.iv_budget.dir.as_deref()];
    for dir in dirs.into_iter().flatten().filter(|dir| may(dir, OTHERS_WRITE)) {
        report.notice(&format!(
            "every user of this machine can put files, and links to others, into {}: chmod o-w it",
            dir.display()
        ));
    }
}

/// Whether everybody may do that with a file, and enter all folders that it is in.
fn others_may(path: &Path, what: u32) -> bool {
    const OTHERS_ENTER: u32 = 0o001;
    let has = |path: &Path, what| {
        std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & what != 0)
    };
    has(path, what) && path.ancestors().skip(1).all(|folder| has(folder, OTHERS_ENTER))
}

/// The limit is this command's: whoever starts the proxy may give it another.
fn check_open_files(max_connections: usize, report: &mut Report) {
    let possible = open_files::raise_limit();
    if possible < max_connections {
        report.notice(&format!(
            "of max_connections = {max_connections} only {possible} fit into the limit on open files that this command \
             has: {}",
            open_files::ADVICE
        ));
    }
}

fn check_audit(settings: &AuditSettings, report: &mut Report) {
    let name = settings.path.display();
    match audit::examine(settings) {
        Err(fault) => report.fault(&fault.to_string()),
        Ok(None) => report.good(&format!("audit log {name} is new")),
        Ok(Some(head)) => report.good(&format!("audit log {name} goes on behind record {}", head.seq)),
    }
}

fn report_tls(tls: &ListenerTls, report: &mut Report) {
    let TlsFacts { provider, is_fips, suites, groups } = tls.facts();
    let fips = if is_fips { "in FIPS mode" } else { "not in FIPS mode" };
    report.good(&format!(
        "TLS by {provider}, {fips}; suites {}; groups {}",
        suites.join(", "),
        groups.join(", ")
    ));
}

fn check_certificate(
    files: &CertificateFiles,
    endpoint: Option<&str>,
    is_for_kms: bool,
    report: &mut Report,
) {
    let name = files.chain_file.display();
    let now = clock::wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let chain = match ServerChain::of(files, endpoint) {
        Ok(chain) => chain,
        Err(fault) => return report.fault(&fault.to_string()),
    };
    if now < chain.leaf_begins_unix_secs {
        report.fault(&format!("certificate {name} is not valid yet"));
    }
    let issuers = chain.issuers_end_unix_secs.map(|end| ("a certificate above", end));
    for (what, end) in [("certificate", chain.leaf_ends_unix_secs)].into_iter().chain(issuers) {
        let days = days_until(end, now);
        let text = format!("{what} {name} is valid for {days} more days");
        match () {
            () if now >= end => report.fault(&format!("{what} {name} has expired")),
            () if days < NOTICE_DAYS => report.notice(&text),
            () => report.good(&text),
        }
    }
    for oddity in chain.oddities.iter().filter(|_| is_for_kms) {
        report.notice(&format!("certificate {name}: {oddity}"));
    }
}

/// The health of a token once it has been reached and probed, or when that has taken too long.
pub(super) async fn settled(token: &dyn Hsm) -> Vec<TokenHealth> {
    let until = clock::now() + TOKEN_PATIENCE;
    loop {
        let health = token.health();
        let is_measured = health.iter().all(|token| token.status.is_some());
        if is_measured || clock::now() >= until {
            return health;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn report_token(health: &TokenHealth, report: &mut Report) {
    let identity = health.identity.as_ref().map_or_else(String::new, |identity| {
        format!(
            " ({} {}, serial number {}, firmware {})",
            identity.manufacturer, identity.model, identity.serial, identity.firmware
        )
    });
    let reason = health.reason.as_deref().unwrap_or("it did not answer in time");
    let name = &health.name;
    match health.status {
        Some(HealthStatus::Active) => {
            report.good(&format!("token {name}{identity} encrypts and decrypts"));
        }
        Some(HealthStatus::Degraded) => {
            report.notice(&format!("token {name}{identity} is degraded: {reason}"));
        }
        Some(HealthStatus::Unavailable) | None => report.fault(&format!("token {name}: {reason}")),
    }
}
