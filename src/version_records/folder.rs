//! The records on disk: a folder with a file for each key version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::VersionRecordsFault;
use crate::hsm::{KeyLocator, KnownVersion};
use crate::iv_budget::VersionId;
use crate::state_folder::StateFolder;

/// The folder in the state directory.
const FOLDER: &str = "key-versions";
/// The format of the files.
const FORMAT: u32 = 1;

/// A file's content. docs/key-rotation.md describes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
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
}

/// Where the records are. The lock of the counts beside it keeps other processes out.
pub(super) struct Folder(StateFolder);

impl Folder {
    /// Makes the folder if need be.
    pub(super) fn open(state_dir: &Path) -> Result<Self, VersionRecordsFault> {
        Ok(Self(StateFolder::open(state_dir, FOLDER)?))
    }

    /// Every record.
    pub(super) fn read(&self) -> Result<HashMap<VersionId, KnownVersion>, VersionRecordsFault> {
        let version = |(path, record): (PathBuf, Option<Record>)| {
            record.and_then(parse).ok_or(VersionRecordsFault::Damaged(path))
        };
        self.0.read()?.into_iter().map(version).collect()
    }

    /// Puts a record in the place of the one before.
    pub(super) fn write(&self, id: &VersionId, known: &KnownVersion) -> Result<(), VersionRecordsFault> {
        let (label, cka_id) = match &known.locator {
            KeyLocator::Label(label) => (Some(label.to_string()), None),
            KeyLocator::Id(id) => (None, Some(id.iter().map(|byte| format!("{byte:02x}")).collect())),
        };
        let record = Record {
            format: FORMAT,
            store: id.store.to_string(),
            external_key_id: id.key.to_string(),
            key_version: id.version,
            label,
            cka_id,
            check_value: known.check_value.to_string(),
        };
        Ok(self.0.replace(&id.file_in(&self.0), &record)?)
    }
}

fn parse(record: Record) -> Option<(VersionId, KnownVersion)> {
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
    (record.format == FORMAT).then_some((id, known))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if hex.len().is_multiple_of(2) { hex.as_bytes().chunks(2).map(pair).collect() } else { None }
}
