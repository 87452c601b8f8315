//! `[audit]`.

use std::path::Path;

use super::read_secret;
use super::reader::Table;
use crate::audit::{AuditSettings, OnFailure};

/// A shorter key could be guessed.
const MIN_HMAC_KEY_CHARS: usize = 32;

pub(super) fn read(mut table: Table<'_>, folder: &Path) -> Option<AuditSettings> {
    let path = table.require("path").and_then(|value| value.path_in(folder));
    let on_failure = table.take("on_failure").map_or(Some(OnFailure::Continue), |value| {
        value.one_of(&[("continue", OnFailure::Continue), ("refuse", OnFailure::Refuse)])
    });
    let is_synced = table.take("sync").map_or(Some(false), |value| value.boolean());
    let hmac_key = table.take("hmac_key").map(|value| {
        let (_, key) = read_secret(&value, folder)?;
        if key.expose().chars().count() < MIN_HMAC_KEY_CHARS {
            value.fault("must have at least 32 characters, such as `openssl rand -hex 32` makes");
            return None;
        }
        Some(key)
    });
    table.finish();
    let hmac_key = match hmac_key {
        Some(key) => Some(key?),
        None => None,
    };
    Some(AuditSettings { path: path?, on_failure: on_failure?, is_synced: is_synced?, hmac_key })
}
