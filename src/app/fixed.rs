//! Settings that hold from the start of the process to its end.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::tokens::Tokens;
use crate::audit::AuditSettings;
use crate::config::Config;
use crate::hsm::TokenSettings;
use crate::server::{Limits, Timeouts};

/// What a reload does not change.
#[derive(Debug)]
pub(super) struct Fixed {
    listen: SocketAddr,
    admin_listen: SocketAddr,
    ping_listen: Option<SocketAddr>,
    limits: Limits,
    timeouts: Timeouts,
    state_dir: Option<PathBuf>,
    proxy_protocol_from: Vec<IpNet>,
    audit: Option<AuditSettings>,
}

impl Fixed {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            listen: config.listen,
            admin_listen: config.admin.listen,
            ping_listen: config.ping_listen,
            limits: config.limits,
            timeouts: config.timeouts,
            state_dir: config.iv_budget.dir.clone(),
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            audit: config.audit.clone(),
        }
    }

    /// The settings in which a configuration differs, and that it may not.
    pub(super) fn changes(
        &self,
        next: &Config,
        tokens: &Tokens,
        has_environment: fn(&[TokenSettings]) -> bool,
    ) -> Vec<String> {
        let settings = [
            ("server.listen", self.listen == next.listen),
            ("admin.listen", self.admin_listen == next.admin.listen),
            ("ping.listen", self.ping_listen == next.ping_listen),
            ("server.limits", self.limits == next.limits),
            ("server.timeouts, lame_duck_secs and drain_secs", self.timeouts == next.timeouts),
            ("server.proxy_protocol_from", self.proxy_protocol_from == next.proxy_protocol_from),
            ("audit", self.audit == next.audit),
            ("state.dir", self.state_dir == next.iv_budget.dir),
            ("tokens: environment", has_environment(&next.tokens)),
        ];
        let mut changes: Vec<_> =
            settings.iter().filter(|(_, is_same)| !is_same).map(|(name, _)| (*name).to_owned()).collect();
        for settings in &next.tokens {
            let running = tokens.named(&settings.name);
            if running.is_some_and(|token| !token.settings().is_same_but_for_pin(settings)) {
                changes.push(format!("tokens: {}, in more than its pin", settings.name));
            }
        }
        changes
    }
}
