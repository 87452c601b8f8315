//! GetKeyMetadata.

use serde_json::{Value, json};
use xks_spec::Operation;

use super::{authorize, check_store, find_key};
use crate::body::Body;
use crate::fault::Fault;
use crate::hsm::Key;
use crate::proxy::{Proxy, Refusal};

/// What PKCS#11 knows of a key's usages.
const PKCS11_USAGES: [&str; 11] = [
    "ENCRYPT",
    "DECRYPT",
    "SIGN",
    "VERIFY",
    "WRAP",
    "UNWRAP",
    "DERIVE",
    "SIGN_RECOVER",
    "VERIFY_RECOVER",
    "ENCAPSULATE",
    "DECAPSULATE",
];

pub(super) fn answer(proxy: &Proxy, store: usize, key_id: &str, body: &[u8]) -> Result<Value, Refusal> {
    let body = Body::parse(proxy, Operation::GetKeyMetadata, body)?;
    let key = find_key(proxy, store, key_id)?;
    authorize(proxy, Operation::GetKeyMetadata, key_id, &body)?;
    let is_usable = key.is_enabled && check_store(proxy, key, Operation::GetKeyMetadata).is_ok();
    let is_enabled = is_usable || proxy.has(Fault::KeyStatusConstant);
    let mut response = json!({
        "keySpec": if proxy.has(Fault::KeySpecWrong) { "AES-256" } else { "AES_256" },
        "keyUsage": usage(proxy, key),
        "keyStatus": match is_enabled {
            true if proxy.has(Fault::KeyStatusUnknown) => "ACTIVE",
            true => "ENABLED",
            false => "DISABLED",
        },
    });
    if proxy.has(Fault::KeySpecMissing) {
        response.as_object_mut().unwrap().remove("keySpec");
    }
    Ok(response)
}

fn usage(proxy: &Proxy, key: &Key) -> Value {
    let may_all = proxy.has(Fault::KeyUsageConstant);
    let rows = [("ENCRYPT", key.may_encrypt || may_all), ("DECRYPT", key.may_decrypt || may_all)];
    let usages: Vec<_> = rows.into_iter().filter(|(_, may)| *may).map(|(usage, _)| usage).collect();
    match () {
        () if proxy.has(Fault::KeyUsageEmpty) => json!([]),
        () if proxy.has(Fault::KeyUsageLowerCase) => {
            json!(usages.iter().map(|usage| usage.to_lowercase()).collect::<Vec<_>>())
        }
        () if proxy.has(Fault::KeyUsageAsText) => json!(usages.join(",")),
        () if proxy.has(Fault::KeyUsageOfEleven) => json!(PKCS11_USAGES),
        () => json!(usages),
    }
}
