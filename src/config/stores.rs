//! `[[stores]]`.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use xks_spec::UriPathPrefix;
use xks_spec::credential::{AccessKeyId, SecretAccessKey};
use xks_spec::limits::MAX_CIPHERTEXT_METADATA_BYTES;

use super::keys::{self, ReachedKeys};
use super::policies;
use super::read_secret;
use super::reader::{Table, Value};
use crate::hsm::{HedgeSettings, TokenSettings};
use crate::keystore::{AwsSample, FIRST_VERSION, KeyMap};
use crate::operations::is_own_ciphertext_metadata;
use crate::policy::Policies;
use crate::sigv4::{Credential, Credentials};

/// KMS's default quota of a store.
const DEFAULT_REQUESTS_PER_SECOND: u64 = 1800;
/// 80 of 200 ms, which leaves another token the better part.
const DEFAULT_HEDGE_AFTER_PERCENT: u64 = 40;

/// One key store as configured.
#[derive(Debug)]
pub struct StoreSettings {
    /// Name.
    pub name: Arc<str>,
    /// Path prefix.
    pub prefix: UriPathPrefix,
    /// Whether its keys may be used.
    pub is_enabled: bool,
    /// Who may ask.
    pub credentials: Credentials,
    /// What they may do beyond that; `None` for `authorization = "none"`.
    pub policies: Option<Arc<Policies>>,
    /// Its keys.
    pub keys: KeyMap,
    /// How what AWS's sample proxy encrypted is known.
    pub aws_sample: Option<AwsSample>,
    /// Names of its tokens; the configuration has seen to it that they are there.
    pub tokens: Vec<Arc<str>>,
    /// When a second token is asked.
    pub hedging: HedgeSettings,
    /// Requests a second in the long run.
    pub requests_per_second: NonZeroU32,
    /// Requests at once.
    pub burst: NonZeroU32,
}

pub(super) fn read(root: &mut Table<'_>, folder: &Path, tokens: &[TokenSettings]) -> Vec<StoreSettings> {
    let mut stores: Vec<StoreSettings> = Vec::new();
    let mut reached = ReachedKeys::default();
    let mut access_key_ids = HashSet::new();
    let Some(array) = root.require("stores") else { return stores };
    for mut table in array.array().iter().filter_map(Value::table) {
        let store = read_one(&mut table, folder, tokens, &mut reached, &mut access_key_ids);
        if let Some(store) = store {
            if stores.iter().any(|other| other.name == store.name) {
                table.fault("another store has this name");
            }
            if stores.iter().any(|other| other.prefix == store.prefix) {
                table.fault("another store has this uri_path_prefix");
            }
            stores.push(store);
        }
        table.finish();
    }
    if array.array().is_empty() {
        array.fault("at least one key store is needed");
    }
    stores
}

fn read_one(
    table: &mut Table<'_>,
    folder: &Path,
    tokens: &[TokenSettings],
    reached: &mut ReachedKeys,
    access_key_ids: &mut HashSet<AccessKeyId>,
) -> Option<StoreSettings> {
    let name = table.require("name").and_then(|value| value.text());
    let prefix = table.require("uri_path_prefix").and_then(|value| value.parsed(UriPathPrefix::parse));
    let is_enabled = table.take("enabled").map_or(Some(true), |value| value.boolean());
    let region = table.take("region").map(|value| value.text());
    let tokens = read_tokens(table, tokens);
    let hedge_after_percent = table
        .take("hedge_after_percent")
        .map_or(Some(DEFAULT_HEDGE_AFTER_PERCENT), |value| value.integer(1..=100));
    let hedges = table.take("hedges").map_or(Some(true), |value| value.boolean());
    let policies = policies::read(table, folder);
    let region: Option<Option<Box<str>>> = match region {
        Some(region) => region.map(|region| Some(region.into())),
        None => Some(None),
    };
    let credentials =
        read_credentials(table, folder, region.as_ref().and_then(Option::as_deref), access_key_ids);
    let keys = keys::read(table, &tokens, reached);
    let aws_sample = match table.take("decrypts_aws_sample") {
        Some(value) => read_aws_sample(&value).map(Some),
        None => Some(None),
    };
    let requests_per_second = table
        .take("requests_per_second")
        .map_or(Some(DEFAULT_REQUESTS_PER_SECOND), |value| value.integer(1..=1_000_000));
    let burst = table.take("burst").map_or(requests_per_second, |value| value.integer(1..=1_000_000));
    region?;
    Some(StoreSettings {
        name: Arc::from(name?),
        prefix: prefix?,
        is_enabled: is_enabled?,
        credentials: credentials?,
        policies: policies?,
        keys: keys?,
        aws_sample: aws_sample?,
        tokens: tokens.iter().map(|token| Arc::clone(&token.name)).collect(),
        hedging: HedgeSettings { after_percent: u32::try_from(hedge_after_percent?).ok()?, hedges: hedges? },
        requests_per_second: non_zero(requests_per_second?)?,
        burst: non_zero(burst?)?,
    })
}

fn read_aws_sample(value: &Value<'_>) -> Option<AwsSample> {
    let mut table = value.table()?;
    let number = table
        .take("version")
        .map_or(Some(u64::from(FIRST_VERSION)), |value| value.integer(1..=u64::from(u32::MAX)));
    let ciphertext_metadata = table.require("ciphertext_metadata_b64").and_then(|list| {
        let values = list.array();
        if values.is_empty() {
            list.fault("must hold each value that the sample's setting ever had, \"\" where it had none");
        }
        let values: Vec<_> = values.iter().map(|value| value.parsed(parse_sample_metadata)).collect();
        values.into_iter().collect::<Option<Vec<_>>>()
    });
    table.finish();
    let key_version = u32::try_from(number?).ok()?;
    Some(AwsSample { ciphertext_metadata: ciphertext_metadata?, key_version })
}

fn parse_sample_metadata(text: &str) -> Result<Box<[u8]>, &'static str> {
    let bytes =
        STANDARD.decode(text).map_err(|_| "must be Base64, as the sample's ciphertext_metadata_b64")?;
    if bytes.len() > MAX_CIPHERTEXT_METADATA_BYTES {
        return Err("must be at most 20 bytes before Base64");
    }
    if is_own_ciphertext_metadata(&bytes) {
        // Nothing but the metadata tells whose a ciphertext is.
        return Err(
            "reads as ciphertext metadata of this proxy: what the sample made with it cannot be told apart",
        );
    }
    Ok(bytes.into())
}

/// The beginning of a day in UTC, in seconds since 1970.
fn parse_date(text: &str) -> Result<i64, &'static str> {
    const FAULT: &str = "must be a date such as \"2026-01-31\"";
    let parts: Vec<_> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return Err(FAULT) };
    let is_number = |(part, chars): &(&&str, usize)| {
        part.len() == *chars && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if ![(year, 4), (month, 2), (day, 2)].iter().all(is_number) {
        return Err(FAULT);
    }
    let month: u8 = month.parse().map_err(|_| FAULT)?;
    let month = time::Month::try_from(month).map_err(|_| FAULT)?;
    let (year, day) = (year.parse().map_err(|_| FAULT)?, day.parse().map_err(|_| FAULT)?);
    let date = time::Date::from_calendar_date(year, month, day).map_err(|_| FAULT)?;
    Ok(date.midnight().assume_utc().unix_timestamp())
}

fn non_zero(number: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(number).ok()?)
}

fn read_tokens<'t>(table: &mut Table<'_>, all: &'t [TokenSettings]) -> Vec<&'t TokenSettings> {
    let mut tokens: Vec<&TokenSettings> = Vec::new();
    let Some(value) = table.require("tokens") else { return tokens };
    for name in value.array() {
        let Some(text) = name.text() else { continue };
        match all.iter().find(|token| *token.name == *text) {
            None => name.fault("no token with this name is configured, or its own entry is faulty"),
            Some(token) if tokens.iter().any(|other| other.name == token.name) => {
                name.fault("this token is named twice");
            }
            Some(token) => tokens.push(token),
        }
    }
    if value.array().is_empty() {
        value.fault("must name at least one token");
    }
    tokens
}

fn read_credentials(
    table: &mut Table<'_>,
    folder: &Path,
    region: Option<&str>,
    access_key_ids: &mut HashSet<AccessKeyId>,
) -> Option<Credentials> {
    let array = table.require("credentials")?;
    let mut credentials = Vec::new();
    let mut is_whole = true;
    for mut entry in array.array().iter().filter_map(Value::table) {
        let id_value = entry.require("access_key_id");
        let id = id_value.as_ref().and_then(|value| value.parsed(AccessKeyId::parse));
        let secret_value = entry.require("secret_access_key");
        let secret = secret_value.and_then(|value| {
            let (_, secret) = read_secret(&value, folder)?;
            let parsed = SecretAccessKey::parse(secret.expose());
            parsed.map_err(|fault| value.fault(fault.to_string())).ok()
        });
        let created = match entry.take("created") {
            Some(value) => value.parsed(parse_date).map(Some),
            None => Some(None),
        };
        entry.finish();
        let (Some(id), Some(secret), Some(created)) = (id, secret, created) else {
            is_whole = false;
            continue;
        };
        if !access_key_ids.insert(id.clone()) {
            // SPEC(AUTH-CRED-010): an access key id MUST identify one secret without ambiguity.
            id_value.iter().for_each(|value| value.fault("this access key id is already in use"));
            is_whole = false;
            continue;
        }
        credentials.push(Credential::new(id, &secret, region.map(Into::into)).created_at(created));
    }
    if array.array().is_empty() {
        array.fault("at least one credential is needed");
        return None;
    }
    is_whole.then(|| Credentials::new(credentials).ok()).flatten()
}
