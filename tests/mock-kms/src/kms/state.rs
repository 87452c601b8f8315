//! Everything that this KMS remembers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::alias::Alias;
use super::key::Key;
use super::store::Store;

/// Stores, keys, aliases and the clock's offset. The operations are in the modules of what they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// By id.
    pub stores: BTreeMap<String, Store>,
    /// By id.
    pub keys: BTreeMap<String, Key>,
    /// By name.
    pub aliases: BTreeMap<String, Alias>,
    /// How far the clock is ahead of the machine's, in seconds.
    pub clock_ahead_secs: i64,
}
