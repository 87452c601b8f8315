//! GetHealthStatus.

use std::num::NonZeroU32;
use std::sync::Arc;

use xks_spec::Operation;
use xks_spec::limits::MAX_FLEET_DETAILS;
use xks_spec::request::parse_metadata_only;
use xks_spec::response::{EkmDetails, GetHealthStatusResponse, HealthStatus as WireStatus};

use super::{Context, body_error};
use crate::error::Error;
use crate::hsm::{HealthStatus, TokenHealth};

/// Who makes this proxy.
const VENDOR: &str = "xks-proxy";
/// Its name and version.
// SPEC(HEALTH-MODEL-001): SHOULD include product name and version.
const MODEL: &str = concat!("xks-proxy ", env!("CARGO_PKG_VERSION"));
/// Said of a token that has never been reached.
const UNKNOWN: &str = "unknown";

/// What a proxy says of the fleet that it is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Number of proxies.
    pub size: NonZeroU32,
}

/// Says how the tokens behind this store were when they were last probed; asks none of them now. Where the proxy refuses
/// every other operation, whatever the reason, they are all UNAVAILABLE.
///
/// # Errors
/// [`Error::Body`], [`Error::StoreDisabled`], or [`Error::HealthNotMeasured`] before the first probe has ended.
pub fn get_health_status(
    context: &mut Context<'_>,
    fleet: Fleet,
    is_refusing: bool,
    body: &[u8],
) -> Result<GetHealthStatusResponse, Error> {
    // SPEC(HEALTH-AUTHZ-001, ERR-DENIED-002, ERR-KEY-002, ERR-VALIDATION-002): neither policy nor key is asked here.
    let operation = Operation::GetHealthStatus;
    parse_metadata_only(body, operation, &mut context.trace.metadata).map_err(body_error(operation))?;
    if !context.store.is_enabled {
        return Err(Error::StoreDisabled);
    }
    // SPEC(HEALTH-CACHE-001, HEALTH-TIME-001): MAY answer what a periodic check found, at once.
    let mut tokens = context.store.hsm.health();
    if tokens.iter().all(|token| token.status.is_none()) {
        return Err(Error::HealthNotMeasured);
    }
    if is_refusing {
        tokens.iter_mut().for_each(|token| token.status = Some(HealthStatus::Unavailable));
    }
    Ok(GetHealthStatusResponse {
        // SPEC(HEALTH-RESP-001, HEALTH-RESP-002, HEALTH-SIZE-001): MUST be an integer greater than zero.
        xks_proxy_fleet_size: fleet.size.get(),
        xks_proxy_vendor: VENDOR.to_owned(),
        xks_proxy_model: MODEL.to_owned(),
        ekm_vendor: ekm_vendor(&tokens),
        ekm_fleet_details: fleet_details(&tokens),
    })
}

/// One entry for each token, or the ten that are worst.
fn fleet_details(tokens: &[TokenHealth]) -> Vec<EkmDetails> {
    let mut worst_first: Vec<_> = tokens.iter().collect();
    if tokens.len() > MAX_FLEET_DETAILS {
        worst_first.sort_by_key(|token| token.status);
    }
    // SPEC(HEALTH-FLEET-005, HEALTH-FLEET-006): one entry for each key manager, one to ten.
    worst_first.iter().take(MAX_FLEET_DETAILS).map(|token| ekm_details(token, tokens)).collect()
}

/// The manufacturers of the tokens, each once.
fn ekm_vendor(tokens: &[TokenHealth]) -> String {
    let mut vendors: Vec<&str> = Vec::new();
    for vendor in
        tokens.iter().filter_map(|token| token.identity.as_ref()).map(|identity| &*identity.manufacturer)
    {
        if !vendors.contains(&vendor) {
            vendors.push(vendor);
        }
    }
    if vendors.is_empty() { UNKNOWN.to_owned() } else { vendors.join(", ") }
}

fn ekm_details(token: &TokenHealth, fleet: &[TokenHealth]) -> EkmDetails {
    let serial = |token: &TokenHealth| token.identity.as_ref().map(|identity| Arc::clone(&identity.serial));
    // SPEC(HEALTH-FLEET-001, HEALTH-FLEET-002): the serial number where there is one and no other token has the same, else
    // the name in the configuration.
    let is_own =
        |own: &Arc<str>| fleet.iter().filter(|other| serial(other).as_ref() == Some(own)).count() == 1;
    let id = serial(token).filter(|own| !own.is_empty() && is_own(own));
    let id = id.map_or_else(|| token.name.to_string(), |serial| serial.to_string());
    // SPEC(HEALTH-FLEET-003, HEALTH-MODEL-002): model and firmware.
    let model = token.identity.as_ref().map_or_else(
        || UNKNOWN.to_owned(),
        |identity| format!("{} firmware {}", identity.model, identity.firmware),
    );
    // SPEC(HEALTH-STATUS-001, HEALTH-STATUS-002, HEALTH-FLEET-004): ACTIVE, DEGRADED or UNAVAILABLE, as measured.
    let health_status = match token.status {
        Some(HealthStatus::Active) => WireStatus::Active,
        Some(HealthStatus::Degraded) => WireStatus::Degraded,
        Some(HealthStatus::Unavailable) | None => WireStatus::Unavailable,
    };
    EkmDetails { id, model, health_status }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::TokenIdentity;

    fn token(name: &str, serial: Option<&str>, status: HealthStatus) -> TokenHealth {
        let identity = serial.map(|serial| {
            Arc::new(TokenIdentity {
                manufacturer: "Acme".into(),
                model: "Box".into(),
                serial: serial.into(),
                firmware: "1.2".into(),
            })
        });
        TokenHealth { name: name.into(), identity, status: Some(status), reason: None }
    }

    #[test]
    fn every_token_has_an_id_of_its_own() {
        let [active, gone] = [HealthStatus::Active, HealthStatus::Unavailable];
        let fleet = [
            token("a", Some("S1"), active),
            token("b", Some("S2"), active),
            token("c", Some("S2"), active),
            token("d", Some(""), active),
            token("e", None, gone),
        ];
        let ids: Vec<_> = fleet_details(&fleet).into_iter().map(|details| details.id).collect();
        assert_eq!(ids, ["S1", "b", "c", "d", "e"]);
    }

    #[test]
    fn of_more_than_ten_tokens_the_worst_are_told() {
        let mut fleet: Vec<_> =
            (0..11).map(|n| token(&n.to_string(), Some(&n.to_string()), HealthStatus::Active)).collect();
        fleet.push(token("last", None, HealthStatus::Unavailable));
        let details = fleet_details(&fleet);
        assert_eq!(details.len(), 10);
        assert_eq!((details[0].id.as_str(), details[0].health_status), ("last", WireStatus::Unavailable));
    }
}
