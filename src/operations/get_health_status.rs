//! GetHealthStatus.

use std::num::NonZeroU32;

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

/// Says how the tokens behind this store were when they were last probed; asks none of them now.
///
/// # Errors
/// [`Error::Body`], [`Error::StoreDisabled`], or [`Error::HealthNotMeasured`] before the first probe has ended.
pub fn get_health_status(
    context: &mut Context<'_>,
    fleet: Fleet,
    body: &[u8],
) -> Result<GetHealthStatusResponse, Error> {
    // SPEC(HEALTH-AUTHZ-001, ERR-DENIED-002, ERR-KEY-002, ERR-VALIDATION-002): neither policy nor key is asked here.
    let operation = Operation::GetHealthStatus;
    let metadata = parse_metadata_only(body, operation).map_err(body_error(operation))?;
    context.note_metadata(metadata);
    if !context.store.is_enabled {
        return Err(Error::StoreDisabled);
    }
    // SPEC(HEALTH-CACHE-001, HEALTH-TIME-001): MAY answer what a periodic check found, at once.
    let tokens = context.store.hsm.health();
    if tokens.iter().all(|token| token.status.is_none()) {
        return Err(Error::HealthNotMeasured);
    }
    Ok(GetHealthStatusResponse {
        // SPEC(HEALTH-RESP-001, HEALTH-RESP-002, HEALTH-SIZE-001): MUST be an integer greater than zero.
        xks_proxy_fleet_size: fleet.size.get(),
        xks_proxy_vendor: VENDOR.to_owned(),
        xks_proxy_model: MODEL.to_owned(),
        ekm_vendor: ekm_vendor(&tokens),
        // SPEC(HEALTH-FLEET-005, HEALTH-FLEET-006): one entry for each key manager, one to ten.
        ekm_fleet_details: tokens.iter().take(MAX_FLEET_DETAILS).map(ekm_details).collect(),
    })
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

fn ekm_details(token: &TokenHealth) -> EkmDetails {
    // SPEC(HEALTH-FLEET-001, HEALTH-FLEET-002, HEALTH-FLEET-003, HEALTH-MODEL-002): serial number, model and firmware.
    let (id, model) = match &token.identity {
        Some(identity) => {
            (identity.serial.to_string(), format!("{} firmware {}", identity.model, identity.firmware))
        }
        None => (token.name.to_string(), UNKNOWN.to_owned()),
    };
    // SPEC(HEALTH-STATUS-001, HEALTH-STATUS-002, HEALTH-FLEET-004): ACTIVE, DEGRADED or UNAVAILABLE, as measured.
    let health_status = match token.status {
        Some(HealthStatus::Active) => WireStatus::Active,
        Some(HealthStatus::Degraded) => WireStatus::Degraded,
        Some(HealthStatus::Unavailable) | None => WireStatus::Unavailable,
    };
    EkmDetails { id, model, health_status }
}
