//! `xks-proxy check`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xks_spec::ExternalKeyId;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, complain, environment, print};
use crate::app::Tokens;
use crate::clock::{self, Deadline};
use crate::config::Config;
use crate::hsm::{HealthStatus, Hsm, HsmError, KeyAttributes, KeyKind, TokenHealth};
use crate::keystore::KeyStores;
use crate::metrics::Metrics;
use crate::tls::{CertificateFiles, validity_unix_secs};

/// How long a token has to be reached and probed.
const TOKEN_PATIENCE: Duration = Duration::from_secs(20);
/// How long looking up one key may take.
const KEY_PATIENCE: Duration = Duration::from_secs(10);
/// A certificate that ends sooner deserves a word.
const CERTIFICATE_NOTICE_SECS: i64 = 30 * 24 * 3600;

pub(super) fn run(path: &Path) -> u8 {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIG;
        }
    };
    if let Err(error) = environment::ensure(&config.tokens) {
        complain(&format!("cannot set the environment of the PKCS#11 modules: {error}"));
        return EXIT_FAILED;
    }
    let mut report = Report::default();
    report.good(&format!("the configuration {} is well-formed", path.display()));
    for files in &config.certificates {
        check_certificate(files, &mut report);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let (Ok(runtime), Ok(tokens)) = (runtime, Tokens::start(config.tokens, &Metrics::new())) else {
        complain(&"cannot start threads");
        return EXIT_FAILED;
    };
    let (stores, _) = tokens.stores(config.stores);
    runtime.block_on(async {
        for token in tokens.all() {
            check_token(&*token, &mut report).await;
        }
        check_stores(&stores, &mut report).await;
    });
    report.end(tokens.stop())
}

/// What has been found, printed as it is found.
#[derive(Default)]
struct Report {
    faults: usize,
    notices: usize,
}

impl Report {
    fn good(&mut self, what: &str) {
        print(&format!("ok      {what}"));
    }

    fn notice(&mut self, what: &str) {
        self.notices += 1;
        print(&format!("notice  {what}"));
    }

    fn fault(&mut self, what: &str) {
        self.faults += 1;
        print(&format!("FAULT   {what}"));
    }

    fn end(&self, is_clean: bool) -> u8 {
        print(&format!("{} faults, {} notices", self.faults, self.notices));
        let code = if self.faults == 0 { EXIT_OK } else { EXIT_FAILED };
        if !is_clean {
            // A thread is stuck in a module, whose destructors must not run beside it.
            signal_hook::low_level::exit(i32::from(code));
        }
        code
    }
}

fn check_certificate(files: &CertificateFiles, report: &mut Report) {
    let name = files.chain_file.display();
    let now = clock::wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    match validity_unix_secs(&files.chain_file) {
        Err(fault) => report.fault(&fault.to_string()),
        Ok((begin, _)) if now < begin => report.fault(&format!("certificate {name} is not valid yet")),
        Ok((_, end)) if now >= end => report.fault(&format!("certificate {name} has expired")),
        Ok((_, end)) => {
            let days = (end - now) / (24 * 3600);
            let text = format!("certificate {name} is valid for {days} more days");
            if end - now < CERTIFICATE_NOTICE_SECS { report.notice(&text) } else { report.good(&text) }
        }
    }
}

async fn check_token(token: &dyn Hsm, report: &mut Report) {
    let until = clock::now() + TOKEN_PATIENCE;
    loop {
        let health = token.health();
        let is_measured = health.iter().all(|token| token.status.is_some());
        if is_measured || clock::now() >= until {
            health.iter().for_each(|health| report_token(health, report));
            return;
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

async fn check_stores(stores: &KeyStores, report: &mut Report) {
    let mut stores: Vec<_> = stores.iter().collect();
    stores.sort_by(|a, b| a.name.cmp(&b.name));
    let mut owners: HashMap<_, (&str, &ExternalKeyId)> = HashMap::new();
    for store in stores {
        let mut keys: Vec<_> = store.keys.listed().collect();
        keys.sort_by_key(|(id, _)| *id);
        if !store.is_enabled {
            report.notice(&format!("store {} is disabled", store.name));
        }
        if let Some(prefix) = store.keys.rule_prefix() {
            report.good(&format!(
                "store {}: every other external key is the token's key whose label is {prefix:?} and the id; those are \
                 looked up when they are asked for",
                store.name
            ));
        }
        for (id, key) in keys {
            let material = &key.primary.material;
            let locator = &material.locator;
            let found = store.hsm.key_attributes(material, Deadline::after(clock::now(), KEY_PATIENCE)).await;
            report_key(&format!("store {}: key {id} ({locator})", store.name), &found.result, report);
            let Ok(attributes) = found.result else { continue };
            // The configuration alone cannot tell that a label here and a CKA_ID there are one key's.
            let token = store.hsm.health().first().map(|token| Arc::clone(&token.name));
            let other = owners.insert((token, attributes.object), (&store.name, id));
            if let Some((other_store, other_id)) = other.filter(|(other, _)| **other != *store.name) {
                report.fault(&format!(
                    "store {} key {id} and store {other_store} key {other_id} are one key in the token: \
                     each store could decrypt what the other encrypts",
                    store.name
                ));
            }
        }
    }
}

fn report_key(name: &str, found: &Result<KeyAttributes, HsmError>, report: &mut Report) {
    let attributes = match found {
        Ok(attributes) => attributes,
        Err(error) => return report.fault(&format!("{name}: {error}")),
    };
    let usages = attributes.usages;
    match attributes.kind {
        KeyKind::Aes { bits: Some(256) } if usages.encrypt && usages.decrypt => {
            report.good(&format!("{name} is an AES-256 key that may encrypt and decrypt"));
        }
        KeyKind::Aes { bits: Some(256) } => {
            let lacks = match (usages.encrypt, usages.decrypt) {
                (false, false) => "neither encrypt nor decrypt",
                (true, _) => "not decrypt",
                (false, true) => "not encrypt",
            };
            report.notice(&format!("{name} may {lacks}: KMS creates no key from it"));
        }
        KeyKind::Aes { bits: Some(bits) } => {
            report
                .notice(&format!("{name} is an AES-{bits} key and not AES-256: KMS creates no key from it"));
        }
        KeyKind::Aes { bits: None } => {
            report.notice(&format!(
                "{name} is an AES key whose length the token does not tell: KMS creates no key from it"
            ));
        }
        KeyKind::Other(_) => report.notice(&format!("{name} is no AES key: KMS creates no key from it")),
    }
}
