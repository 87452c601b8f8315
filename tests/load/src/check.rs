//! Whether an answer is right.

use std::borrow::Cow;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Wrong};

/// What a right answer holds.
#[derive(Debug, Clone)]
pub enum Expect {
    /// Of an encrypt.
    Encrypt {
        /// Length of the plaintext, which the ciphertext must share.
        plaintext_bytes: usize,
        /// Additional authenticated data, an input of the integrity value.
        aad: Bytes,
        /// Whether an integrity value was asked for.
        cdiv: bool,
        /// Number of the key, for IVs must not repeat under one key.
        key: usize,
    },
    /// Of a decrypt.
    Decrypt {
        /// The plaintext that was encrypted, in Base64.
        plaintext_b64: String,
    },
    /// Of a GetKeyMetadata.
    Metadata,
    /// Of a GetHealthStatus.
    Health,
}

/// The IV of an encrypt and the number of the key it was used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsedIv {
    iv: [u8; 16],
    key: u32,
}

/// The search for repeated IVs.
#[derive(Debug, Clone, serde::Serialize)]
pub struct IvReport {
    /// IVs compared.
    pub checked: usize,
    /// IVs used before under the same key.
    pub repeated: usize,
    /// IVs that found no room in memory and were not compared.
    pub unchecked: u64,
}

/// Answer to an encrypt.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptAnswer<'a> {
    /// Base64, as many bytes as the plaintext.
    #[serde(borrow)]
    pub ciphertext: Cow<'a, str>,
    /// Base64, at most 20 bytes.
    #[serde(borrow, default)]
    pub ciphertext_metadata: Option<Cow<'a, str>>,
    /// Base64, 12 or 16 bytes.
    #[serde(borrow)]
    pub initialization_vector: Cow<'a, str>,
    /// Base64, 16 bytes.
    #[serde(borrow)]
    pub authentication_tag: Cow<'a, str>,
    /// Base64 of a SHA-256, present when asked for.
    #[serde(borrow, default)]
    pub ciphertext_data_integrity_value: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct DecryptAnswer<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetadataAnswer<'a> {
    #[serde(borrow)]
    key_spec: Cow<'a, str>,
    #[serde(borrow)]
    key_usage: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    key_status: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only their presence and type matter")]
struct HealthAnswer<'a> {
    xks_proxy_fleet_size: u64,
    #[serde(borrow)]
    xks_proxy_vendor: Cow<'a, str>,
    #[serde(borrow)]
    xks_proxy_model: Cow<'a, str>,
    #[serde(borrow)]
    ekm_vendor: Cow<'a, str>,
    #[serde(borrow)]
    ekm_fleet_details: Vec<FleetMember<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only their presence and type matter")]
struct FleetMember<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    health_status: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorAnswer<'a> {
    #[serde(borrow)]
    error_name: Cow<'a, str>,
}

/// Judges an answer of any status. `thorough` also decodes the ciphertext and computes the integrity value.
///
/// Returns the IV of a right encrypt.
///
/// # Errors
/// When the status is not 200 or the body breaks the specification.
pub fn judge(expect: &Expect, status: u16, body: &[u8], thorough: bool) -> Result<Option<UsedIv>, Failure> {
    if status != 200 {
        return Err(Failure::Refused { status, error_name: error_name(body) });
    }
    match expect {
        Expect::Encrypt { plaintext_bytes, aad, cdiv, key } => {
            let answer: EncryptAnswer<'_> = parse("encrypt", body)?;
            let iv = check_encrypt(&answer, *plaintext_bytes, *cdiv)?;
            if thorough {
                check_ciphertext(&answer, *plaintext_bytes, aad)?;
            }
            // Far fewer keys than u32::MAX fit in memory.
            Ok(Some(UsedIv { iv, key: u32::try_from(*key).unwrap_or(u32::MAX) }))
        }
        Expect::Decrypt { plaintext_b64 } => {
            let answer: DecryptAnswer<'_> = parse("decrypt", body)?;
            if answer.plaintext == *plaintext_b64 { Ok(None) } else { Err(Wrong::Plaintext.into()) }
        }
        Expect::Metadata => {
            let answer: MetadataAnswer<'_> = parse("metadata", body)?;
            let usable = |usage: &str| answer.key_usage.iter().any(|found| found == usage);
            if answer.key_spec != "AES_256" {
                return Err(Wrong::Value("metadata: keySpec").into());
            }
            if !usable("ENCRYPT") || !usable("DECRYPT") || answer.key_usage.len() > 10 {
                return Err(Wrong::Value("metadata: keyUsage").into());
            }
            if answer.key_status == "ENABLED" {
                Ok(None)
            } else {
                Err(Wrong::Value("metadata: keyStatus").into())
            }
        }
        Expect::Health => {
            let answer: HealthAnswer<'_> = parse("health", body)?;
            let fleet = answer.ekm_fleet_details.len();
            let lawful = answer.xks_proxy_fleet_size > 0 && (1..=10).contains(&fleet);
            if lawful { Ok(None) } else { Err(Wrong::Value("health: fleet size").into()) }
        }
    }
}

/// Parses the answer to an encrypt.
///
/// # Errors
/// When it has not the shape of one.
pub fn encrypt_answer(body: &[u8]) -> Result<EncryptAnswer<'_>, Wrong> {
    parse("encrypt", body)
}

fn parse<'a, T: Deserialize<'a>>(operation: &'static str, body: &'a [u8]) -> Result<T, Wrong> {
    serde_json::from_slice(body).map_err(|_| Wrong::Shape(operation))
}

/// The `errorName` of an error's body. It comes from outside and becomes a label, so it is kept short and printable.
fn error_name(body: &[u8]) -> String {
    match serde_json::from_slice::<ErrorAnswer<'_>>(body) {
        Ok(answer) => answer.error_name.chars().filter(char::is_ascii_graphic).take(64).collect(),
        Err(_) => "without errorName".to_owned(),
    }
}

fn check_encrypt(answer: &EncryptAnswer<'_>, plaintext_bytes: usize, cdiv: bool) -> Result<[u8; 16], Wrong> {
    let mut iv = [0; 16];
    let iv_bytes = decode_short(&answer.initialization_vector, &mut iv);
    if !matches!(iv_bytes, Some(12 | 16)) {
        return Err(Wrong::Value("encrypt: initializationVector length"));
    }
    if iv == [0; 16] {
        return Err(Wrong::Value("encrypt: initializationVector of zeros"));
    }
    if decode_short(&answer.authentication_tag, &mut [0; 16]) != Some(16) {
        return Err(Wrong::Value("encrypt: authenticationTag length"));
    }
    if answer.ciphertext.len() != plaintext_bytes.div_ceil(3) * 4 {
        return Err(Wrong::Value("encrypt: ciphertext length"));
    }
    if let Some(metadata) = &answer.ciphertext_metadata
        && decode_short(metadata, &mut [0; 20]).is_none()
    {
        return Err(Wrong::Value("encrypt: ciphertextMetadata"));
    }
    if cdiv && answer.ciphertext_data_integrity_value.is_none() {
        return Err(Wrong::Value("encrypt: ciphertextDataIntegrityValue absent"));
    }
    Ok(iv)
}

/// Decodes Base64 into `into` and returns the number of bytes; nothing where it does not fit.
fn decode_short(text: &str, into: &mut [u8]) -> Option<usize> {
    // The decoder demands room for whole groups of three bytes.
    let mut room = [0; 24];
    let length = BASE64_STANDARD.decode_slice(text, &mut room).ok()?;
    into.get_mut(..length)?.copy_from_slice(&room[..length]);
    Some(length)
}

fn check_ciphertext(answer: &EncryptAnswer<'_>, plaintext_bytes: usize, aad: &[u8]) -> Result<(), Wrong> {
    let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| Wrong::Value("encrypt: Base64"));
    let ciphertext = decode(&answer.ciphertext)?;
    if ciphertext.len() != plaintext_bytes {
        return Err(Wrong::Value("encrypt: ciphertext length"));
    }
    let Some(cdiv) = &answer.ciphertext_data_integrity_value else { return Ok(()) };
    let metadata = answer.ciphertext_metadata.as_deref().unwrap_or_default();
    // Order of the inputs: specification, Appendix C.
    let digest = Sha256::new()
        .chain_update(aad)
        .chain_update(decode(metadata)?)
        .chain_update(decode(&answer.initialization_vector)?)
        .chain_update(&ciphertext)
        .chain_update(decode(&answer.authentication_tag)?)
        .finalize();
    if decode(cdiv)? == digest.as_slice() { Ok(()) } else { Err(Wrong::Cdiv) }
}

/// Counts the IVs that were used before under the same key. Sorts `ivs`.
pub fn repeated_ivs(ivs: &mut [UsedIv]) -> usize {
    ivs.sort_unstable();
    ivs.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The worked example of the specification, Appendix C.
    fn example() -> (Expect, Value) {
        let expect = Expect::Encrypt {
            plaintext_bytes: 12,
            aad: Bytes::from_static(b"project=nile,department=marketing"),
            cdiv: true,
            key: 3,
        };
        let answer = json!({
            "authenticationTag": "vBxN2ncH1oEkR8WVXpmyYQ==",
            "ciphertext": "ghxkK1txeDNn3q8Y",
            "ciphertextDataIntegrityValue": "qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc=",
            "ciphertextMetadata": "a2V5X3ZlcnNpb249MQ==",
            "initializationVector": "HMrlRw85cAJUd5Ax"
        });
        (expect, answer)
    }

    fn verdict(expect: &Expect, answer: &Value) -> Result<Option<UsedIv>, Failure> {
        judge(expect, 200, answer.to_string().as_bytes(), true)
    }

    #[test]
    fn the_worked_example_passes_and_any_change_to_it_is_found() {
        let (expect, answer) = example();
        let used = verdict(&expect, &answer).unwrap().unwrap();
        assert_eq!((used.key, &used.iv[..2], &used.iv[12..]), (3, &[0x1c, 0xca][..], &[0; 4][..]));
        let changes = [
            ("ciphertext", json!("ghxkK1txeDNn3q8Z"), "ciphertextDataIntegrityValue differs"),
            ("ciphertext", json!("ghxkK1txeDNn3q8YAAAA"), "encrypt: ciphertext length"),
            ("ciphertext", json!(null), "encrypt: JSON shape"),
            ("ciphertextMetadata", json!("a2V5X3ZlcnNpb249Mg=="), "ciphertextDataIntegrityValue differs"),
            ("ciphertextMetadata", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAA"), "encrypt: ciphertextMetadata"),
            ("initializationVector", json!("AAAAAAAAAAAAAAAA"), "encrypt: initializationVector of zeros"),
            ("initializationVector", json!("HMrlRw85cAI="), "encrypt: initializationVector length"),
            ("authenticationTag", json!("vBxN2ncH1oEkR8WV"), "encrypt: authenticationTag length"),
            ("ciphertextDataIntegrityValue", json!(null), "encrypt: ciphertextDataIntegrityValue absent"),
        ];
        for (field, value, wrong) in changes {
            let mut changed = answer.clone();
            changed[field] = value;
            let failure = verdict(&expect, &changed).unwrap_err();
            assert_eq!(failure.to_string(), format!("wrong answer: {wrong}"), "{field}");
        }
    }

    #[test]
    fn answers_of_the_other_operations_are_checked() {
        let decrypt = Expect::Decrypt { plaintext_b64: "QUJD".to_owned() };
        assert!(verdict(&decrypt, &json!({"plaintext": "QUJD"})).is_ok());
        assert_eq!(verdict(&decrypt, &json!({"plaintext": "QUJE"})), Err(Wrong::Plaintext.into()));
        let key =
            json!({"keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT", "WRAP"], "keyStatus": "ENABLED"});
        assert!(verdict(&Expect::Metadata, &key).is_ok());
        for (field, value) in [
            ("keySpec", json!("AES_128")),
            ("keyUsage", json!(["ENCRYPT"])),
            ("keyStatus", json!("DISABLED")),
            ("keyStatus", json!(1)),
        ] {
            let mut changed = key.clone();
            changed[field] = value;
            assert!(verdict(&Expect::Metadata, &changed).is_err(), "{changed}");
        }
        let member = json!({"id": "1", "model": "m", "healthStatus": "ACTIVE"});
        let health = |fleet: Value, size: i64| {
            json!({"xksProxyFleetSize": size, "xksProxyVendor": "v", "xksProxyModel": "m", "ekmVendor": "e",
                   "ekmFleetDetails": fleet})
        };
        assert!(verdict(&Expect::Health, &health(json!([member]), 1)).is_ok());
        assert!(verdict(&Expect::Health, &health(json!([]), 1)).is_err());
        assert!(verdict(&Expect::Health, &health(json!([member]), 0)).is_err());
    }

    #[test]
    fn refusals_carry_a_short_printable_name() {
        let name = |status, body: &[u8]| judge(&Expect::Health, status, body, false).unwrap_err().to_string();
        assert_eq!(name(429, br#"{"errorName":"ThrottlingException"}"#), "HTTP 429 ThrottlingException");
        assert_eq!(name(502, b"<html>"), "HTTP 502 without errorName");
        let long = json!({ "errorName": format!("\n{}", "x".repeat(1000)) }).to_string();
        assert_eq!(name(500, long.as_bytes()).len(), "HTTP 500 ".len() + 64);
    }

    #[test]
    fn an_iv_may_repeat_under_another_key_only() {
        let used = |iv, key| UsedIv { iv: [iv; 16], key };
        let mut ivs = [used(1, 1), used(2, 1), used(1, 2), used(1, 1), used(1, 1)];
        assert_eq!(repeated_ivs(&mut ivs), 2);
    }
}
