//! The credentials of one key store and the signing keys derived from them.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use thiserror::Error;
use xks_spec::credential::{AccessKeyId, GENERATED_SECRET_CHARS, SecretAccessKey};

use super::SERVICE;
use super::authorization::Authorization;
use super::timestamp::Timestamp;
use crate::secret::{Secret, SecretBytes};

/// Signing keys kept for one credential: today's and yesterday's of a few Regions.
const MAX_CACHED_SIGNING_KEYS: usize = 8;

/// One access key id with its secret.
#[derive(Debug)]
pub struct Credential {
    id: AccessKeyId,
    secret: Secret,
    region: Option<Box<str>>,
    created_unix_secs: Option<i64>,
    /// Newest last. Holds only keys that verified a request, so that strangers cannot push them out.
    signing_keys: ArcSwap<Vec<CachedSigningKey>>,
}

#[derive(Clone)]
struct CachedSigningKey {
    date: Box<str>,
    region: Box<str>,
    key: SecretBytes,
}

impl std::fmt::Debug for CachedSigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedSigningKey").field("date", &self.date).finish_non_exhaustive()
    }
}

impl Credential {
    /// A credential, for requests of `region` alone where one is given.
    #[must_use]
    pub fn new(id: AccessKeyId, secret: &SecretAccessKey, region: Option<Box<str>>) -> Self {
        Self {
            id,
            secret: Secret::copy_of(secret.expose()),
            region,
            created_unix_secs: None,
            signing_keys: ArcSwap::default(),
        }
    }

    /// The same, made at that time, in seconds since 1970.
    #[must_use]
    pub fn created_at(self, unix_secs: Option<i64>) -> Self {
        Self { created_unix_secs: unix_secs, ..self }
    }

    /// The Region that the credential is pinned to.
    pub(super) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// The key for a request's date, Region and service; derived where it is not at hand.
    pub(super) fn signing_key(
        &self,
        authorization: &Authorization<'_>,
        timestamp: &Timestamp,
    ) -> SecretBytes {
        self.cached_signing_key(authorization).unwrap_or_else(|| self.derive(authorization, timestamp))
    }

    fn cached_signing_key(&self, authorization: &Authorization<'_>) -> Option<SecretBytes> {
        let is_meant = |cached: &&CachedSigningKey| {
            *cached.date == *authorization.date && *cached.region == *authorization.region
        };
        self.signing_keys.load().iter().rev().find(is_meant).map(|cached| cached.key.clone())
    }

    #[cfg(test)]
    pub(super) fn cached_key_count(&self) -> usize {
        self.signing_keys.load().len()
    }

    fn derive(&self, authorization: &Authorization<'_>, timestamp: &Timestamp) -> SecretBytes {
        // SPEC(AUTH-KEY-001): derived of the secret and of date, Region and service of the scope.
        let key = aws_sigv4::sign::v4::generate_signing_key(
            self.secret.expose(),
            timestamp.system_time(),
            authorization.region,
            SERVICE,
        );
        SecretBytes::copy_of(key.as_ref())
    }

    /// Keeps the signing key of a request that has been verified.
    pub(super) fn remember_signing_key(&self, authorization: &Authorization<'_>, timestamp: &Timestamp) {
        if self.cached_signing_key(authorization).is_some() {
            return;
        }
        let cached = CachedSigningKey {
            date: authorization.date.into(),
            region: authorization.region.into(),
            key: self.derive(authorization, timestamp),
        };
        self.signing_keys.rcu(|keys| {
            let surplus = (keys.len() + 1).saturating_sub(MAX_CACHED_SIGNING_KEYS);
            keys.iter().skip(surplus).cloned().chain([cached.clone()]).collect::<Vec<_>>()
        });
    }
}

/// The credentials of one key store; several at once, so that they can be rotated.
#[derive(Debug)]
pub struct Credentials {
    by_id: HashMap<AccessKeyId, Credential>,
    decoy: Credential,
}

impl Credentials {
    /// # Errors
    /// [`DuplicateAccessKeyId`] where two have the same id.
    pub fn new(credentials: Vec<Credential>) -> Result<Self, DuplicateAccessKeyId> {
        // SPEC(AUTH-ROT-001): SHOULD support at least two credentials for each path prefix at once.
        let mut by_id = HashMap::with_capacity(credentials.len());
        for credential in credentials {
            if by_id.contains_key(&credential.id) {
                return Err(DuplicateAccessKeyId(credential.id));
            }
            by_id.insert(credential.id.clone(), credential);
        }
        let decoy_id = AccessKeyId::from_random([0; _]);
        let decoy_secret = SecretAccessKey::from_random([0; GENERATED_SECRET_CHARS]);
        Ok(Self { by_id, decoy: Credential::new(decoy_id, &decoy_secret, None) })
    }

    /// The access key ids, each with when its credential was made, in seconds since 1970, where that is known.
    pub fn ages(&self) -> impl Iterator<Item = (&str, Option<i64>)> {
        self.by_id.iter().map(|(id, credential)| (id.as_str(), credential.created_unix_secs))
    }

    /// The credential of that id.
    pub(super) fn find(&self, id: &str) -> Option<&Credential> {
        self.by_id.get(id)
    }

    /// A credential that is nobody's, to spend on unknown ids the work that known ones cost.
    pub(super) const fn decoy(&self) -> &Credential {
        &self.decoy
    }
}

/// Two credentials of a store have this id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("two credentials have the access key id {}", .0.as_str())]
pub struct DuplicateAccessKeyId(pub AccessKeyId);
