//! Mutual TLS, on the address that serves with it, by certificates from the owner's folder.

use mock_kms::xks::{Failure, HttpVersion};
use xks_spec::Operation;

use crate::case::{Case, Level, Section, fail};
use crate::target::{Need, TargetError};
use crate::wire::Wire;

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new(
            Section::Mtls,
            "kms",
            Level::Should,
            "shows a certificate with KMS's common name (kms.pem)",
            "200",
            |wire| async move {
                ask(&wire, Some("kms"))
                    .await?
                    .map(|()| "200".to_owned())
                    .or_else(|failure| fail("200", failure.to_string()))
            },
        )
        .of(&["AUTH-MTLS-001", "AUTH-MTLS-002", "AUTH-MTLS-003"])
        .needs(&[Need::Mtls]),
        refused("none", None, Level::Should, "shows no certificate", &["AUTH-MTLS-001"]),
    ];
    for (name, does, requirements) in [
        ("expired", "shows a certificate that has run out", &["AUTH-MTLS-005"][..]),
        ("not-yet-valid", "shows a certificate of tomorrow", &["AUTH-MTLS-005"]),
        ("other-name", "shows a certificate with another common name", &["AUTH-MTLS-004"]),
        ("longer-name", "shows a certificate whose common name ends in KMS's", &["AUTH-MTLS-004"]),
        ("other-region", "shows a certificate of KMS in another Region", &["AUTH-MTLS-004"]),
        ("two-names", "shows a certificate with two common names", &["AUTH-MTLS-004"]),
        ("other-issuer", "shows a certificate of another authority", &["AUTH-MTLS-005"]),
        ("self-signed", "shows a certificate signed by itself", &["AUTH-MTLS-005"]),
    ] {
        all.push(refused(name, Some(name), Level::Must, does, requirements));
    }
    all
}

fn refused(
    name: &str,
    certificate: Option<&'static str>,
    level: Level,
    does: &str,
    requirements: &[&'static str],
) -> Case {
    Case::new(Section::Mtls, name, level, does, "the handshake ends", move |wire| async move {
        match ask(&wire, certificate).await? {
            Ok(()) => fail("the handshake ends", "200"),
            Err(failure @ (Failure::Tls(_) | Failure::Broken(_))) => Ok(failure.to_string()),
            Err(failure) => fail("the handshake ends", failure.to_string()),
        }
    })
    .of(requirements)
    .needs(&[Need::Mtls])
}

async fn ask(wire: &Wire, certificate: Option<&str>) -> Result<Result<(), Failure>, crate::case::Stop> {
    let (client, route) = match wire.target.mtls_client(certificate) {
        Ok(found) => found,
        Err(TargetError::File(path, error)) => {
            return fail(format!("the file {}", path.display()), error.to_string());
        }
        Err(error) => return fail("a client certificate", error.to_string()),
    };
    let sent = wire
        .send_with(
            (&client, &route),
            wire.proxy(),
            HttpVersion::Http1,
            &wire.request(Operation::GetHealthStatus),
        )
        .await;
    Ok(match sent {
        Ok(seen) if seen.answer.status == 200 => Ok(()),
        Ok(seen) => Err(Failure::NotSent(seen.status())),
        Err(failure) => Err(failure),
    })
}
