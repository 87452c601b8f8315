//! Whether each key version that the configuration lists is in the tokens, what it may do, and whether it is the key of
//! its check value. For `check` and `keys check`.

use std::collections::HashMap;
use std::time::Duration;

use xks_spec::ExternalKeyId;

use super::report::Report;
use crate::app::Tokens;
use crate::clock::{self, Deadline};
use crate::config::StoreSettings;
use crate::hsm::{CheckValue, Hsm, HsmError, KeyAttributes, KeyKind};
use crate::keystore::{ExternalKey, KeyVersion, VersionState};
use crate::version_records::VersionRecords;

/// How long one call about a key may take.
const KEY_PATIENCE: Duration = Duration::from_secs(10);

/// When a call about a key that begins now is given up.
pub(super) fn deadline() -> Deadline {
    Deadline::after(clock::now(), KEY_PATIENCE)
}

/// Which key objects of which token have been met, and as what.
#[derive(Default)]
pub(super) struct KeyCheck<'r> {
    owners: HashMap<(Box<str>, u64), Owner>,
    /// Whether a check value is printed for each version that has none pinned.
    prints_check_values: bool,
    /// Which key each version was before.
    records: Option<&'r VersionRecords>,
}

#[derive(Clone, PartialEq, Eq)]
struct Owner {
    store: Box<str>,
    id: ExternalKeyId,
    number: u32,
}

impl<'r> KeyCheck<'r> {
    /// Compares each version with what it was before.
    pub(super) fn remembering(records: Option<&'r VersionRecords>) -> Self {
        Self { records, ..Self::default() }
    }

    /// The same, and prints a check value for each version that has none pinned.
    pub(super) fn printing_check_values(records: Option<&'r VersionRecords>) -> Self {
        Self { prints_check_values: true, ..Self::remembering(records) }
    }

    /// Checks the listed keys of a store on each of its tokens.
    pub(super) async fn check_store(&mut self, store: &StoreSettings, tokens: &Tokens, report: &mut Report) {
        let mut keys: Vec<_> = store.keys.listed().collect();
        keys.sort_by_key(|(id, _)| *id);
        for token_name in &store.tokens {
            let Some(token) = tokens.find(token_name) else { continue };
            for (id, key) in &keys {
                for version in key.versions() {
                    let what = Checked { store, token: (token_name, &*token), id, key, version };
                    self.check_version(&what, report).await;
                }
            }
        }
    }

    async fn check_version(&mut self, what: &Checked<'_>, report: &mut Report) {
        let state = what.version.state;
        if state == VersionState::Disabled {
            // Its key may be gone.
            return;
        }
        let (token_name, token) = what.token;
        let material = &what.version.material;
        let attributes = match token.key_attributes(material, deadline()).await.result {
            Ok(attributes) => attributes,
            Err(HsmError::KeyNotFound) if state == VersionState::Staged => {
                return report.notice(&format!(
                    "{what} is not in token {token_name} yet: make it primary nowhere before it is in every token"
                ));
            }
            Err(error) => return report.fault(&format!("{what}: {error}")),
        };
        report_attributes(what, attributes, report);
        self.check_owner(what, attributes.object, report);
        self.check_value(what, report).await;
        self.check_number(what, report).await;
    }

    /// The configuration alone cannot tell that a label here and a CKA_ID there are one key's.
    fn check_owner(&mut self, what: &Checked<'_>, object: u64, report: &mut Report) {
        let (store, id, number) = (&what.store.name, what.id, what.version.number);
        let owner = Owner { store: store.as_ref().into(), id: id.clone(), number };
        let Some(other) = self.owners.insert((what.token.0.into(), object), owner.clone()) else { return };
        let Owner { store: other_store, id: other_id, number: other_number } = &other;
        if other_id == id && *other_store == owner.store {
            report.fault(&format!(
                "store {store} key {id}: versions {number} and {other_number} are one key in the token"
            ));
        } else {
            report.fault(&format!(
                "store {store} key {id} and store {other_store} key {other_id} are one key in the token: each could \
                 decrypt what the other encrypts"
            ));
        }
    }

    /// A number is of one key for ever.
    async fn check_number(&self, what: &Checked<'_>, report: &mut Report) {
        let (token_name, token) = what.token;
        let (material, number) = (&what.version.material, what.version.number);
        let known =
            self.records.and_then(|records| records.known(&what.store.name, what.id.as_str(), number));
        let Some(before) = known.filter(|before| !before.is_overruled_by(material)) else { return };
        match before.check_value.is_of(token, material, deadline()).await {
            Ok(true) => report.good(&format!("{what} is the key that its number stood for before")),
            Ok(false) => report.fault(&format!(
                "{what} in token {token_name} is another key than the one with {} that its number stood for before: give it a \
                 number that was never used. Where this very key is meant, pin its check value under the name that the number \
                 had",
                before.locator
            )),
            Err(error) => {
                report.notice(&format!("{what} could not be compared with the key that its number stood for: {error}"));
            }
        }
    }

    async fn check_value(&self, what: &Checked<'_>, report: &mut Report) {
        let (token_name, token) = what.token;
        let material = &what.version.material;
        let Some(pinned) = &material.check_value else {
            if self.prints_check_values {
                match CheckValue::make(token, material, deadline()).await {
                    Ok(value) => {
                        report
                            .notice(&format!("{what} has no check value pinned: check_value = \"{value}\""));
                    }
                    Err(error) => report.notice(&format!("{what} has no check value pinned: {error}")),
                }
            }
            return;
        };
        match pinned.is_of(token, material, deadline()).await {
            Ok(true) => report.good(&format!("{what} is the key of its check value")),
            Ok(false) => report.fault(&format!(
                "{what} in token {token_name} is another key than the one that its check value is of: what one \
                 encrypts the other cannot decrypt"
            )),
            Err(error) => {
                report.fault(&format!("{what}: the check value could not be compared: {error}"));
            }
        }
    }
}

/// One version of a key on one token.
struct Checked<'a> {
    store: &'a StoreSettings,
    token: (&'a str, &'a dyn Hsm),
    id: &'a ExternalKeyId,
    key: &'a ExternalKey,
    version: &'a KeyVersion,
}

impl std::fmt::Display for Checked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { store, id, key, version, .. } = self;
        write!(f, "store {}: key {id}", store.name)?;
        if !key.others.is_empty() {
            write!(f, " version {}, {}", version.number, version.state)?;
        }
        write!(f, " ({})", version.material.locator)
    }
}

fn report_attributes(what: &Checked<'_>, attributes: KeyAttributes, report: &mut Report) {
    let usages = attributes.usages;
    let has_been_primary = what.version.state == VersionState::Retired;
    match attributes.kind {
        KeyKind::Aes { bits: Some(256) } if usages.encrypt && usages.decrypt => {
            report.good(&format!("{what} is an AES-256 key that may encrypt and decrypt"));
        }
        KeyKind::Aes { bits: Some(256) } if has_been_primary && usages.decrypt => {
            report.good(&format!("{what} is an AES-256 key that may decrypt"));
        }
        KeyKind::Aes { bits: Some(256) } => {
            let lacks = match (usages.encrypt, usages.decrypt) {
                (false, false) => "neither encrypt nor decrypt",
                (true, _) => "not decrypt",
                (false, true) => "not encrypt",
            };
            report.notice(&format!("{what} may {lacks}: KMS creates no key from it"));
        }
        KeyKind::Aes { bits: Some(bits) } => {
            report
                .notice(&format!("{what} is an AES-{bits} key and not AES-256: KMS creates no key from it"));
        }
        KeyKind::Aes { bits: None } => {
            report.notice(&format!(
                "{what} is an AES key whose length the token does not tell: KMS creates no key from it"
            ));
        }
        KeyKind::Other(_) => report.notice(&format!("{what} is no AES key: KMS creates no key from it")),
    }
}
