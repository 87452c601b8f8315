//! GetKeyMetadata.

use xks_spec::request::parse_metadata_only;
use xks_spec::response::{AES_256, DECRYPT, ENCRYPT, GetKeyMetadataResponse, KeyStatus};
use xks_spec::{ExternalKeyId, Operation};

use super::{Context, body_error};
use crate::error::Error;
use crate::hsm::{KeyKind, KeyUsages};
use crate::policy::KeyOperation;

/// Says what the external key truly is, usable or not: KMS decides what it makes of it.
///
/// # Errors
/// [`Error`] where the body is bad, the key does not exist, a policy denies it, or the HSM does not answer.
pub async fn get_key_metadata(
    context: &mut Context<'_>,
    id: &ExternalKeyId,
    body: &[u8],
) -> Result<GetKeyMetadataResponse, Error> {
    // SPEC(ERR-USAGE-003): usages are told here, not judged.
    let operation = Operation::GetKeyMetadata;
    parse_metadata_only(body, operation, &mut context.trace.metadata).map_err(body_error(operation))?;
    let key = context.find_key(id)?;
    let attributes = context.look_up(&key.primary).await?;
    context.authorize(KeyOperation::GetKeyMetadata, id)?;
    let attributes = attributes?;
    context.trace.key_version = Some(key.primary.number);
    // SPEC(META-STATUS-001, META-STATUS-002, META-STATUS-003): ENABLED unless the configuration disables it.
    let is_enabled = context.require_enabled(&key).is_ok();
    Ok(GetKeyMetadataResponse {
        key_spec: key_spec(attributes.kind),
        key_usage: key_usage(attributes.usages),
        key_status: if is_enabled { KeyStatus::Enabled } else { KeyStatus::Disabled },
    })
}

/// CKK values of secret keys (PKCS#11 2.40, section 2 and its profiles) that a token may well hold.
const OTHER_KEYS: [(u64, &str); 4] =
    [(0x10, "GENERIC_SECRET"), (0x13, "DES"), (0x14, "DES2"), (0x15, "DES3")];

fn key_spec(kind: KeyKind) -> String {
    match kind {
        // SPEC(META-RESP-002, META-READY-001): a 256-bit AES key MUST be called AES_256.
        KeyKind::Aes { bits: Some(256) } => AES_256.to_owned(),
        KeyKind::Aes { bits: Some(bits) } => format!("AES_{bits}"),
        KeyKind::Aes { bits: None } => "AES_UNKNOWN_LENGTH".to_owned(),
        KeyKind::Other(value) => {
            let name = OTHER_KEYS.iter().find(|(known, _)| *known == value).map(|(_, name)| *name);
            name.map_or_else(|| format!("CKK_{value:08X}"), str::to_owned)
        }
    }
}

fn key_usage(usages: KeyUsages) -> Vec<String> {
    // SPEC(META-USAGE-001, META-USAGE-002): MUST use ENCRYPT and DECRYPT. SPEC(META-USAGE-003): MAY name others.
    // SPEC(META-USAGE-004): MUST NOT be more than ten; there are seven.
    let usages = [
        (usages.encrypt, ENCRYPT),
        (usages.decrypt, DECRYPT),
        (usages.sign, "SIGN"),
        (usages.verify, "VERIFY"),
        (usages.wrap, "WRAP"),
        (usages.unwrap, "UNWRAP"),
        (usages.derive, "DERIVE"),
    ];
    usages.into_iter().filter(|(may, _)| *may).map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_specs_are_true() {
        assert_eq!(key_spec(KeyKind::Aes { bits: Some(256) }), "AES_256");
        assert_eq!(key_spec(KeyKind::Aes { bits: Some(128) }), "AES_128");
        assert_eq!(key_spec(KeyKind::Other(0x15)), "DES3");
        assert_eq!(key_spec(KeyKind::Other(0x8000_0001)), "CKK_80000001");
    }

    #[test]
    fn usages_may_be_none_and_are_at_most_ten() {
        assert!(key_usage(KeyUsages::default()).is_empty());
        let all = KeyUsages {
            encrypt: true,
            decrypt: true,
            sign: true,
            verify: true,
            wrap: true,
            unwrap: true,
            derive: true,
        };
        assert!(key_usage(all).len() <= xks_spec::limits::MAX_KEY_USAGES);
        assert_eq!(key_usage(all)[..2], ["ENCRYPT", "DECRYPT"]);
    }
}
