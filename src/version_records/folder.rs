//! The records on disk: a folder with a file for each key version, and one with a file for each store.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::served::{FoundByRule, ServedStore, ServedVersions};
use super::{Version, VersionRecordsFault};
use crate::hsm::{KeyLocator, KnownVersion};
use crate::iv_budget::VersionId;
use crate::state_folder::StateFolder;

/// Their names in the state directory.
const VERSIONS: &str = "key-versions";
const SERVED: &str = "served-versions";
/// The format of the files.
const FORMAT: u32 = 1;

/// Of a key version. docs/key-rotation.md describes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VersionRecord {
    format: u32,
    store: String,
    external_key_id: String,
    key_version: u32,
    /// CKA_LABEL, where the key was found by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// CKA_ID in hexadecimal, where it was found by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    cka_id: Option<String>,
    check_value: String,
    /// Names of the tokens that have it.
    tokens: Vec<Box<str>>,
}

/// Of a store. The same document describes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoreRecord {
    format: u32,
    store: String,
    keys: BTreeMap<String, ServedVersions>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    rule: Option<ServedVersions>,
    #[serde(skip_serializing_if = "FoundByRule::is_empty", default)]
    found: FoundByRule,
}

/// Where the records are. The lock of the counts beside them keeps other processes out.
pub(super) struct Folders {
    versions: StateFolder,
    served: StateFolder,
}

impl Folders {
    /// Makes the folders if need be.
    pub(super) fn open(state_dir: &Path) -> Result<Self, VersionRecordsFault> {
        Ok(Self {
            versions: StateFolder::open(state_dir, VERSIONS)?,
            served: StateFolder::open(state_dir, SERVED)?,
        })
    }

    /// To be read alone; they may not be there.
    pub(super) fn unopened(state_dir: &Path) -> Self {
        Self {
            versions: StateFolder::unopened(state_dir, VERSIONS),
            served: StateFolder::unopened(state_dir, SERVED),
        }
    }

    /// What each version is.
    pub(super) fn versions(&self) -> Result<HashMap<VersionId, Version>, VersionRecordsFault> {
        let version = |(path, record): (PathBuf, Option<VersionRecord>)| {
            record.and_then(parse).ok_or(VersionRecordsFault::Damaged(path))
        };
        self.versions.read()?.into_iter().map(version).collect()
    }

    /// What of each store was served last.
    pub(super) fn served(&self) -> Result<HashMap<Arc<str>, ServedStore>, VersionRecordsFault> {
        let store = |(path, record): (PathBuf, Option<StoreRecord>)| {
            let record = record.filter(|record| record.format == FORMAT);
            let record = record.ok_or(VersionRecordsFault::Damaged(path))?;
            Ok((
                record.store.into(),
                ServedStore { keys: record.keys, rule: record.rule, found: record.found },
            ))
        };
        self.served.read()?.into_iter().map(store).collect()
    }

    /// The file that says what was served of a store.
    pub(super) fn file_of_store(&self, store: &str) -> PathBuf {
        self.served.file(&[store.as_bytes()])
    }

    /// Puts a record in the place of the one before.
    pub(super) fn write_version(&self, id: &VersionId, version: &Version) -> Result<(), VersionRecordsFault> {
        let (label, cka_id) = match &version.known.locator {
            KeyLocator::Label(label) => (Some(label.to_string()), None),
            KeyLocator::Id(id) => (None, Some(id.iter().map(|byte| format!("{byte:02x}")).collect())),
        };
        let record = VersionRecord {
            format: FORMAT,
            store: id.store.to_string(),
            external_key_id: id.key.to_string(),
            key_version: id.version,
            label,
            cka_id,
            check_value: version.known.check_value.to_string(),
            tokens: version.tokens.iter().cloned().collect(),
        };
        Ok(self.versions.replace(&id.file_in(&self.versions), &record)?)
    }

    /// The same for a store.
    pub(super) fn write_served(&self, store: &str, served: &ServedStore) -> Result<(), VersionRecordsFault> {
        let ServedStore { keys, rule, found } = served.clone();
        let record = StoreRecord { format: FORMAT, store: store.to_owned(), keys, rule, found };
        Ok(self.served.replace(&self.file_of_store(store), &record)?)
    }
}

fn parse(record: VersionRecord) -> Option<(VersionId, Version)> {
    let locator = match (record.label, record.cka_id) {
        (Some(label), None) => KeyLocator::Label(label.into()),
        (None, Some(id)) => KeyLocator::Id(bytes(&id)?.into()),
        _ => return None,
    };
    let id = VersionId {
        store: record.store.into(),
        key: record.external_key_id.into(),
        version: record.key_version,
    };
    let known = KnownVersion { locator, check_value: record.check_value.parse().ok()? };
    let version = Version { known, tokens: record.tokens.into_iter().collect() };
    (record.format == FORMAT).then_some((id, version))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if hex.len().is_multiple_of(2) { hex.as_bytes().chunks(2).map(pair).collect() } else { None }
}
