//! How a token is reached and used, as the configuration says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::connection::TokenSelector;
use super::iv::IvSource;
use super::profiles::Profile;
use crate::secret::SecretSource;

/// Who logs in to the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UserType {
    /// CKU_USER.
    User,
    /// CKU_SO.
    SecurityOfficer,
    /// A vendor's own, such as Luna's Crypto User, by its CKU value.
    Vendor(u32),
}

/// Which of the reasons not to try a PIN are overridden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForceLogin {
    /// None.
    #[default]
    No,
    /// What the token says of the tries that are left. A PIN that it has refused is still not tried: this is for a service,
    /// which is started again and again.
    TokenFlags,
    /// All, and a PIN that was refused before is tried once more by this process: this is for a person.
    Everything,
}

/// Where a token's module runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// In the proxy's own process.
    #[default]
    None,
    /// In a process of its own, which can be killed and started anew.
    Process,
}

/// How a token is reached and used.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// Where it runs.
    pub isolation: Isolation,
    /// Memory in RAM beyond which the helper process is replaced.
    pub helper_memory_bytes: u64,
    /// Variables that the module wants in the process's environment.
    pub environment: BTreeMap<String, String>,
    /// Which of the module's tokens.
    pub selector: TokenSelector,
    /// Who logs in.
    pub user_type: UserType,
    /// Where the PIN is; `None` for tokens that want no login.
    pub pin: Option<SecretSource>,
    /// Where PINs that the token refused are remembered; without, by the process alone.
    pub state_dir: Option<PathBuf>,
    /// Whether the PIN is tried where it otherwise would not be.
    pub force_login: ForceLogin,
    /// Sessions that work at once.
    pub sessions: usize,
    /// Jobs that may wait for a session.
    pub queue_depth: usize,
    /// What kind of token it is; `None` for the profile of the manufacturer that it states.
    pub profile: Option<&'static Profile>,
    /// Where IVs come from; `None` where the profile says.
    pub iv_source: Option<IvSource>,
    /// Label of the key that health probes use and no store can reach.
    pub health_key_label: Box<str>,
    /// Time between health probes.
    pub probe_interval: Duration,
    /// Oldest health result that is believed.
    pub probe_max_age: Duration,
    /// Oldest key attributes that are believed.
    pub attributes_max_age: Duration,
    /// Time between enumerations of all keys.
    pub reindex_interval: Duration,
    /// A call that takes longer than this is taken to be stuck.
    pub stall_after: Duration,
    /// How long a key that was searched and not found is not searched again.
    pub miss_memory: Duration,
}

impl TokenSettings {
    /// Whether the other settings can be had without starting the token anew: at most the place of the PIN is another.
    #[must_use]
    pub fn is_same_but_for_pin(&self, other: &Self) -> bool {
        let profile = |settings: &Self| settings.profile.map(|profile| profile.name);
        let Self {
            name,
            module,
            isolation,
            helper_memory_bytes,
            environment,
            selector,
            user_type,
            pin,
            state_dir,
            force_login: _,
            sessions,
            queue_depth,
            profile: _,
            iv_source,
            health_key_label,
            probe_interval,
            probe_max_age,
            attributes_max_age,
            reindex_interval,
            stall_after,
            miss_memory,
        } = self;
        (name, module, environment, selector)
            == (&other.name, &other.module, &other.environment, &other.selector)
            && (user_type, pin.is_some()) == (&other.user_type, other.pin.is_some())
            && (sessions, queue_depth) == (&other.sessions, &other.queue_depth)
            && (profile(self), iv_source) == (profile(other), &other.iv_source)
            && (health_key_label, probe_interval) == (&other.health_key_label, &other.probe_interval)
            && (probe_max_age, attributes_max_age) == (&other.probe_max_age, &other.attributes_max_age)
            && (reindex_interval, stall_after) == (&other.reindex_interval, &other.stall_after)
            && *miss_memory == other.miss_memory
            && (isolation, helper_memory_bytes) == (&other.isolation, &other.helper_memory_bytes)
            && *state_dir == other.state_dir
    }
}
