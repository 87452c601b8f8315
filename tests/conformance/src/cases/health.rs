//! GetHealthStatus: the form of the answer, and that it is true.

use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

use xks_spec::ErrorName::{DependencyTimeoutException, InternalException};
use xks_spec::Operation;

use super::disabled_store;
use crate::case::{Case, Finding, Level, Section, Stop, expect, fail};
use crate::target::{MoreArgs, Need};
use crate::wire::{Wire, decrypt_body, encrypt_body};

/// The section.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        form(
            "fleet-size",
            Level::Must,
            "xksProxyFleetSize, an integer above zero",
            &["HEALTH-RESP-001", "HEALTH-RESP-002"],
            |answer| {
                let size = answer["xksProxyFleetSize"].as_u64().filter(|size| *size > 0);
                size.map_or_else(
                    || fail("an integer above zero", answer["xksProxyFleetSize"].to_string()),
                    |size| Ok(size.to_string()),
                )
            },
        ),
        form("vendor", Level::Must, "xksProxyVendor", &["HEALTH-RESP-003"], |answer| {
            text(answer, "xksProxyVendor")
        }),
        form("model", Level::Must, "xksProxyModel", &["HEALTH-RESP-004"], |answer| {
            text(answer, "xksProxyModel")
        }),
        form(
            "model-version",
            Level::Should,
            "xksProxyModel with a version in it",
            &["HEALTH-MODEL-001"],
            |answer| {
                let model = text(answer, "xksProxyModel")?;
                expect(model.chars().any(|c| c.is_ascii_digit()), "a version number", &model)?;
                Ok(model)
            },
        ),
        form("ekm-vendor", Level::Must, "ekmVendor", &["HEALTH-RESP-005"], |answer| {
            text(answer, "ekmVendor")
        }),
        form(
            "fleet",
            Level::Must,
            "ekmFleetDetails of one to ten entries",
            &["HEALTH-RESP-006", "HEALTH-FLEET-005"],
            |answer| {
                let entries = fleet(answer)?.len();
                expect((1..=10).contains(&entries), "one to ten", entries.to_string())?;
                Ok(entries.to_string())
            },
        ),
        form("fleet-ids", Level::Must, "an id in each entry", &["HEALTH-FLEET-001"], |answer| {
            each(answer, "id")
        }),
        form("fleet-ids-differ", Level::Should, "ids that differ", &["HEALTH-FLEET-002"], |answer| {
            let ids: Vec<_> = fleet(answer)?.iter().map(|entry| entry["id"].to_string()).collect();
            let different: HashSet<_> = ids.iter().collect();
            expect(different.len() == ids.len(), "all different", format!("{ids:?}"))?;
            Ok(format!("{} different", ids.len()))
        }),
        form("fleet-models", Level::Must, "a model in each entry", &["HEALTH-FLEET-003"], |answer| {
            each(answer, "model")
        }),
        form(
            "fleet-status",
            Level::Must,
            "ACTIVE, DEGRADED or UNAVAILABLE in each entry",
            &["HEALTH-FLEET-004", "HEALTH-STATUS-001"],
            |answer| {
                for entry in fleet(answer)? {
                    let status = entry["healthStatus"].as_str().unwrap_or_default();
                    expect(
                        ["ACTIVE", "DEGRADED", "UNAVAILABLE"].contains(&status),
                        "ACTIVE, DEGRADED or UNAVAILABLE",
                        entry["healthStatus"].to_string(),
                    )?;
                }
                each(answer, "healthStatus")
            },
        ),
        form(
            "serves",
            Level::Must,
            "200, and one key manager that is ACTIVE or DEGRADED",
            &[
                "HEALTH-CODE-001",
                "HEALTH-API-001",
                "HEALTH-PATH-001",
                "HEALTH-STATUS-002",
                "ERR-VALIDATION-002",
                "ERR-DENIED-002",
                "ERR-KEY-002",
            ],
            |answer| {
                let serving =
                    fleet(answer)?.iter().filter(|entry| entry["healthStatus"] != "UNAVAILABLE").count();
                expect(serving > 0, "one that serves", "all are UNAVAILABLE")?;
                Ok(format!("{serving} serve"))
            },
        ),
    ];
    all.push(disabled_store::asked(Operation::GetHealthStatus));
    all.push(counted(
        "fleet-size-true",
        "xksProxyFleetSize, the number of proxies that the owner says there are",
        "HEALTH-SIZE-001",
        |more| more.proxy_count,
        |answer| Ok(answer["xksProxyFleetSize"].as_u64()),
    ));
    all.push(counted(
        "fleet-true",
        "ekmFleetDetails of one entry for each key manager that the owner says there is, ten at most",
        "HEALTH-FLEET-006",
        |more| more.key_manager_count.map(|count| count.min(10)),
        |answer| Ok(u64::try_from(fleet(answer)?.len()).ok()),
    ));
    for (name, action, what) in [
        ("failing", "hsm-failing", "the key manager fails"),
        ("silent", "hsm-silent", "the key manager is silent"),
    ] {
        all.push(broken(name, action, what, &NOT_ACTIVE));
        all.push(broken(&format!("{name}-deep"), action, what, &UNAVAILABLE));
    }
    all.push(
        Case::new(
            Section::Health,
            "failing-operations",
            Level::Must,
            "encrypts and decrypts while the key manager fails (hook hsm-failing)",
            "InternalException or DependencyTimeoutException, never InvalidCiphertextException",
            |wire| async move { while_broken(&wire, "hsm-failing").await },
        )
        .of(&["ERR-INTERNAL-001"])
        .needs(&[Need::HsmHook]),
    );
    all.push(
        Case::new(
            Section::Health,
            "silent-operations",
            Level::Must,
            "encrypts and decrypts while the key manager is silent (hook hsm-silent)",
            "DependencyTimeoutException or InternalException within five seconds",
            |wire| async move { while_broken(&wire, "hsm-silent").await },
        )
        .of(&["ERR-TIMEOUT-001"])
        .needs(&[Need::HsmHook]),
    );
    all
}

fn form(
    name: &str,
    level: Level,
    expects: &str,
    requirements: &[&'static str],
    judge: fn(&Value) -> Finding,
) -> Case {
    Case::new(Section::Health, name, level, "asks for the health status", expects, move |wire| async move {
        judge(&wire.send(&wire.request(Operation::GetHealthStatus)).await?.ok()?)
    })
    .of(requirements)
}

/// What the answer counts, held against what the owner does.
fn counted(
    name: &str,
    expects: &str,
    requirement: &'static str,
    owner: fn(&MoreArgs) -> Option<u64>,
    answered: fn(&Value) -> Result<Option<u64>, Stop>,
) -> Case {
    Case::new(
        Section::Health,
        name,
        Level::Should,
        "asks for the health status",
        expects,
        move |wire| async move {
            let answer = wire.send(&wire.request(Operation::GetHealthStatus)).await?.ok()?;
            let [expected, seen] = [owner(&wire.target.args.more), answered(&answer)?]
                .map(|count| count.map_or_else(|| "no number".to_owned(), |count| count.to_string()));
            expect(expected == seen, &*expected, &*seen)?;
            Ok(seen)
        },
    )
    .of(&[requirement])
    .needs(&[Need::Counts])
}

fn text(answer: &Value, field: &str) -> Finding {
    match answer[field].as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => fail(format!("{field} as text"), answer[field].to_string()),
    }
}

fn fleet(answer: &Value) -> Result<&Vec<Value>, Stop> {
    answer["ekmFleetDetails"]
        .as_array()
        .map_or_else(|| fail("ekmFleetDetails as an array", answer["ekmFleetDetails"].to_string()), Ok)
}

fn each(answer: &Value, field: &str) -> Finding {
    let mut found = Vec::new();
    for entry in fleet(answer)? {
        found.push(text(entry, field)?);
    }
    expect(!found.is_empty(), "an entry", "none")?;
    Ok(found.join(", "))
}

/// A cached result may be a minute old.
const CACHE: Duration = Duration::from_secs(75);

/// What a health status must come to while no key manager works.
struct Truth {
    level: Level,
    expects: &'static str,
    requirements: &'static [&'static str],
    holds: fn(&str) -> bool,
}

/// No key manager is healthy.
static NOT_ACTIVE: Truth = Truth {
    level: Level::Must,
    expects: "500 or 503, or no key manager that is ACTIVE",
    requirements: &["HEALTH-STATUS-002", "HEALTH-CACHE-002"],
    holds: |status| status != "ACTIVE",
};

/// None can serve either, as a check that does cryptography sees: DEGRADED would promise that operations succeed.
static UNAVAILABLE: Truth = Truth {
    level: Level::Should,
    expects: "500 or 503, or key managers that are all UNAVAILABLE",
    requirements: &["HEALTH-DEEP-001", "HEALTH-DEEP-002", "HEALTH-DEEP-003", "HEALTH-CACHE-001"],
    holds: |status| status == "UNAVAILABLE",
};

fn broken(name: &str, action: &'static str, what: &str, truth: &'static Truth) -> Case {
    Case::new(
        Section::Health,
        name,
        truth.level,
        format!("asks for the health status while {what} (hook {action}), for 75 seconds at most"),
        truth.expects,
        move |wire| async move {
            // A result that is cached for ever would be that of a healthy key manager.
            wire.send(&wire.request(Operation::GetHealthStatus)).await?.ok()?;
            changed(&wire, action, tells(&wire, truth)).await
        },
    )
    .of(truth.requirements)
    .needs(&[Need::HsmHook])
}

/// Asks until the answer tells of the fault.
async fn tells(wire: &Wire, truth: &Truth) -> Finding {
    let until = tokio::time::Instant::now() + CACHE;
    loop {
        let seen = wire.send(&wire.request(Operation::GetHealthStatus)).await?;
        if seen.answer.status != 200 {
            return seen.refused(&[InternalException, DependencyTimeoutException]);
        }
        let statuses = each(&seen.ok()?, "healthStatus")?;
        if statuses.split(", ").all(truth.holds) {
            return Ok(statuses);
        }
        if tokio::time::Instant::now() > until {
            return fail(truth.expects, statuses);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn while_broken(wire: &Wire, action: &str) -> Finding {
    let encrypted = wire.encrypt(wire.key(), &encrypt_body(b"Hello World!", None, false)).await?;
    let work = async {
        let limit = Duration::from_secs(5);
        let one = |request| async move {
            match tokio::time::timeout(limit, wire.send(&request)).await {
                Ok(seen) => seen?.refused(&[InternalException, DependencyTimeoutException]),
                Err(_) => fail("an answer within five seconds", "none"),
            }
        };
        let first =
            one(wire.encrypt_request(wire.key(), &encrypt_body(b"Hello World!", None, false))).await?;
        let second = one(wire.decrypt_request(wire.key(), &decrypt_body(&encrypted, None))).await?;
        Ok(format!("Encrypt {first}, Decrypt {second}"))
    };
    changed(wire, action, work).await
}

/// What `work` finds while the hook has changed the target, which is restored whatever the finding. Where a case is given up
/// meanwhile, the run restores it.
pub(super) async fn changed(wire: &Wire, action: &str, work: impl Future<Output = Finding>) -> Finding {
    let finding = async {
        let done = wire.target.change(action).await;
        done.or_else(|fault| fail(format!("the hook does {action}"), fault))?;
        work.await
    }
    .await;
    // What failed here says more of the target than what fails later for the same reason.
    let trace = wire.trace();
    let restored = restored(wire).await;
    if finding.is_err() {
        wire.note(trace.request, trace.answer);
    }
    finding.and_then(|seen| restored.map(|()| seen))
}

/// Restores a target that a hook has changed, and waits until it serves: what comes next needs a healthy one.
///
/// # Errors
/// [`Stop::Failed`] where it does not become so.
pub async fn restored(wire: &Wire) -> Result<(), Stop> {
    let done = wire.target.restore().await;
    done.or_else(|fault| fail("the hook restores the target", fault))?;
    let until = tokio::time::Instant::now() + CACHE;
    loop {
        let seen = wire.send(&wire.encrypt_request(wire.key(), &encrypt_body(b"x", None, false))).await?;
        if seen.answer.status == 200 {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            return fail("a target that serves again when it is restored", seen.status());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
