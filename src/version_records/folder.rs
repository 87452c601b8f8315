//! The records on disk: a folder with a file for each key version.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::VersionRecordsFault;
use crate::hsm::{KeyLocator, KnownVersion};
use crate::iv_budget::{VersionId, replace_file};

/// The folder in the state directory.
const FOLDER: &str = "key-versions";
const EXTENSION: &str = "json";
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
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder if need be.
    pub(super) fn open(state_dir: &Path) -> Result<Self, VersionRecordsFault> {
        let folder = state_dir.join(FOLDER);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| fault("cannot make the folder", &folder, source))?;
        Ok(Self(folder))
    }

    /// Every record.
    pub(super) fn read(&self) -> Result<HashMap<VersionId, KnownVersion>, VersionRecordsFault> {
        let failed = |source| fault("cannot read the folder", &self.0, source);
        let mut known = HashMap::new();
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // Others are writes that a crash has cut short.
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let content = fs::read(&path).map_err(|source| fault("cannot read", &path, source))?;
            let record = serde_json::from_slice(&content).ok().and_then(parse);
            let Some((id, version)) = record else { return Err(VersionRecordsFault::Damaged(path)) };
            known.insert(id, version);
        }
        Ok(known)
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
        let path = self.0.join(id.file_name()).with_extension(EXTENSION);
        replace_file(&self.0, &path, &record).map_err(|source| fault("cannot write", &path, source))
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

fn fault(action: &'static str, path: &Path, source: io::Error) -> VersionRecordsFault {
    VersionRecordsFault::Io { action, path: path.to_owned(), source }
}
