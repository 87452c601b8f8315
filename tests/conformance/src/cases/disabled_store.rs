//! A store that its owner has disabled, deactivated or blocked: cases of several sections.

use mock_kms::xks::{HttpVersion, Proxy, Request};
use xks_spec::ErrorName::{AuthenticationFailedException, InvalidStateException};
use xks_spec::Operation;

use crate::case::{Case, Level, Section, Stop, fail};
use crate::target::Need;
use crate::wire::{Wire, body_of};

/// For the section of SigV4: what a stranger may not learn.
pub(super) fn no_state_oracle() -> Case {
    Case::new(
        Section::Sigv4,
        "no-state-oracle",
        Level::Must,
        "badly signed requests to a disabled store",
        "AuthenticationFailedException",
        |wire| async move {
            for operation in Operation::ALL {
                let (store, mut request) = of_disabled_store(&wire, operation).await?;
                request.signing.secret_access_key =
                    Some("wrong/secret+wrong/secret+wrong/secret+wrong".to_owned());
                wire.send_to(&store, HttpVersion::Http1, &request)
                    .await?
                    .refused(&[AuthenticationFailedException])?;
            }
            Ok("refused alike".to_owned())
        },
    )
    .of(&["ERR-AUTH-001", "AUTH-SIG-001"])
    .needs(&[Need::DisabledStore])
}

/// For the section of the operation.
///
/// The specification lists InvalidStateException for every operation. It uses no key where it describes one or the health.
pub(super) fn asked(operation: Operation) -> Case {
    let (section, may_be_served) = match operation {
        Operation::Encrypt => (Section::Encrypt, false),
        Operation::Decrypt => (Section::Decrypt, false),
        Operation::GetKeyMetadata => (Section::Metadata, true),
        Operation::GetHealthStatus => (Section::Health, true),
    };
    let expects = if may_be_served { "InvalidStateException or success" } else { "InvalidStateException" };
    Case::new(
        section,
        "disabled-store",
        Level::Must,
        format!("{} in a disabled store", operation.name()),
        expects,
        move |wire| async move {
            let (store, request) = of_disabled_store(&wire, operation).await?;
            let seen = wire.send_to(&store, HttpVersion::Http1, &request).await?;
            if may_be_served && seen.answer.status == 200 {
                return Ok("200".to_owned());
            }
            seen.refused(&[InvalidStateException])
        },
    )
    .of(&["ERR-STATE-002"])
    .needs(&[Need::DisabledStore])
}

/// The store, and a request to it that would be right, were it not disabled.
async fn of_disabled_store(wire: &Wire, operation: Operation) -> Result<(Proxy, Request), Stop> {
    let store = wire.target.disabled.clone().map_or_else(|| fail("a disabled store", "none"), Ok)?;
    let key = wire.target.args.more.disabled_store_key_id.as_deref().unwrap_or_default();
    let path = match operation {
        Operation::GetHealthStatus => store.health_path(),
        _ => store.key_path(key, operation),
    };
    let body = if operation == Operation::Decrypt { wire.made_up().await? } else { body_of(operation) };
    Ok((store, Request::post(path, body.to_string())))
}
