//! Rotation of credentials, by the owner's hook.

use mock_kms::xks::{HttpVersion, Proxy};
use xks_spec::ErrorName::AuthenticationFailedException;
use xks_spec::Operation;

use super::health::changed;
use crate::case::{Case, Finding, Level, Section, Stop, fail};
use crate::target::Need;
use crate::wire::Wire;

/// Hook actions: `credentials-first`, `credentials-both`, `credentials-next`.
///
/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let case = |name: &'static str,
                level: Level,
                action: &'static str,
                old: bool,
                new: bool,
                requirements: &[&'static str]| {
        let does = format!("hook {action}: the old credential {}, the next one {}", word(old), word(new));
        Case::new(
            Section::Rotation,
            name,
            level,
            does,
            "exactly so, without a restart",
            move |wire| async move {
                let next = wire.target.next.clone().map_or_else(|| fail("a next credential", "none"), Ok)?;
                let work = async {
                    serves(&wire, wire.proxy(), old).await?;
                    serves(&wire, &next, new).await
                };
                changed(&wire, action, work).await
            },
        )
        .of(requirements)
        .needs(&[Need::RotationHook])
    };
    vec![
        case("before", Level::Must, "credentials-first", true, false, &["AUTH-KEY-002"]),
        case("both", Level::Should, "credentials-both", true, true, &["AUTH-ROT-001", "AUTH-ROT-002"]),
        case("removed", Level::Must, "credentials-next", false, true, &["AUTH-ROT-004", "AUTH-ROT-002"]),
    ]
}

const fn word(is_accepted: bool) -> &'static str {
    if is_accepted { "is accepted" } else { "is refused" }
}

async fn serves(wire: &Wire, proxy: &Proxy, is_accepted: bool) -> Finding {
    let seen = wire.send_to(proxy, HttpVersion::Http1, &wire.request(Operation::GetHealthStatus)).await?;
    if is_accepted {
        seen.ok().map_err(|stop: Stop| stop)?;
        return Ok("200".to_owned());
    }
    seen.refused(&[AuthenticationFailedException])
}
