//! GetHealthStatus.

use serde_json::{Value, json};
use xks_spec::Operation;

use super::{authorize, in_time};
use crate::body::Body;
use crate::fault::Fault;
use crate::hsm::random;
use crate::proxy::{Proxy, Refusal};

pub(super) async fn answer(proxy: &Proxy, body: &[u8]) -> Result<Value, Refusal> {
    let body = Body::parse(proxy, Operation::GetHealthStatus, body)?;
    authorize(proxy, Operation::GetHealthStatus, "", &body)?;
    let health = report(proxy, is_fit(proxy).await);
    if proxy.has(Fault::HealthCachedForEver) {
        return Ok(proxy.first_health.get_or_init(|| health).clone());
    }
    Ok(health)
}

/// Whether the HSM encrypts and decrypts, with a key that is there for this alone.
pub(crate) async fn is_fit(proxy: &Proxy) -> bool {
    if proxy.has(Fault::HealthConstant) {
        return true;
    }
    let Some(key) = proxy.hsm.keys.iter().find(|key| key.store.is_none()) else { return false };
    let iv = random::<12>();
    let probe = async {
        // The ciphertext may be the corrupt one; that the HSM answers is enough.
        proxy.hsm.encrypt(key, &iv, b"", b"health").await?;
        proxy.hsm.decrypt(key, &iv, b"", b"health", |_| true).await
    };
    matches!(in_time(proxy, probe).await, Ok(Ok(_)))
}

fn report(proxy: &Proxy, is_fit: bool) -> Value {
    let status = match is_fit {
        true if proxy.has(Fault::HealthStatusUnknown) => "OK",
        true => "ACTIVE",
        false => "UNAVAILABLE",
    };
    let entry = |number: usize| {
        let mut entry =
            json!({ "id": format!("memory-{number}"), "model": "In-memory HSM 1", "healthStatus": status });
        if proxy.has(Fault::FleetIdMissing) {
            entry.as_object_mut().unwrap().remove("id");
        }
        entry
    };
    let entries = match () {
        () if proxy.has(Fault::FleetEmpty) => 0,
        () if proxy.has(Fault::FleetOfEleven) => 11,
        () if proxy.has(Fault::FleetOfSessions) => 4,
        () => 1,
    };
    let mut report = json!({
        "xksProxyFleetSize": match () {
            () if proxy.has(Fault::FleetSizeZero) => 0,
            () if proxy.has(Fault::FleetSizeOfThreads) => 8,
            () => 1,
        },
        "xksProxyVendor": "xks-proxy project",
        "xksProxyModel": concat!("xks-saboteur ", env!("CARGO_PKG_VERSION")),
        "ekmVendor": "xks-proxy project",
        "ekmFleetDetails": (1..=entries).map(entry).collect::<Vec<_>>(),
    });
    if proxy.has(Fault::FleetSizeAsText) {
        report["xksProxyFleetSize"] = json!("1");
    }
    if proxy.has(Fault::EkmVendorMissing) {
        report.as_object_mut().unwrap().remove("ekmVendor");
    }
    report
}
