//! The four XKS operations, one file each, readable from top to bottom. They know neither HTTP nor PKCS#11.

mod aws_sample;
mod ciphertext_metadata;
mod decrypt;
mod encrypt;
mod get_health_status;
mod get_key_metadata;

use std::sync::Arc;

use xks_spec::body::BodyFault;
use xks_spec::request::SizeLimits;
use xks_spec::{ExternalKeyId, Operation, RequestMetadata};

pub use ciphertext_metadata::is_own_ciphertext_metadata;
pub use decrypt::decrypt;
pub use encrypt::encrypt;
pub use get_health_status::{Fleet, get_health_status};
pub use get_key_metadata::get_key_metadata;

use crate::clock::Deadline;
use crate::error::Error;
use crate::hsm::{CallReport, HsmError, KeyAttributes, KeyKind, Outcome, Terms};
use crate::keystore::{ExternalKey, KeyStore, KeyVersion};
use crate::policy::{KeyOperation, Query};

/// What an operation is given besides its body.
pub struct Context<'a> {
    /// The store that was asked.
    pub store: &'a KeyStore,
    /// When the answer is due.
    pub deadline: Deadline,
    /// Longest values taken.
    pub limits: SizeLimits,
    /// Filled on the way, for the log.
    pub trace: &'a mut Trace,
}

/// What an operation learnt, whatever came of it.
#[derive(Debug, Default)]
pub struct Trace {
    /// Who asked.
    pub metadata: Option<RequestMetadata>,
    /// The key version that was used.
    pub key_version: Option<u32>,
    /// Id of the policy that decided, for or against.
    pub policy: Option<Arc<str>>,
    /// AWS's sample proxy made the ciphertext.
    pub is_aws_sample: bool,
    /// What the HSM was asked and how long it took.
    pub hsm: CallReport,
}

impl Context<'_> {
    /// What the id stands for in this store.
    fn find_key(&self, id: &ExternalKeyId) -> Result<Arc<ExternalKey>, Error> {
        self.store.keys.find(id).ok_or(Error::KeyNotMapped)
    }

    /// What the key in the token is. That there is none, or several, is said at once; other failures are kept until
    /// policy and status have been looked at, since they do not depend on the token.
    async fn look_up(&mut self, version: &KeyVersion) -> Result<Result<KeyAttributes, HsmError>, Error> {
        let outcome = self.store.hsm.key_attributes(&version.material, self.deadline).await;
        match self.note(outcome) {
            Err(error @ (HsmError::KeyNotFound | HsmError::KeyAmbiguous { .. })) => Err(error.into()),
            other => Ok(other),
        }
    }

    /// Whether the store's policies allow the operation, for whom KMS says that it is.
    fn authorize(&mut self, operation: KeyOperation, id: &ExternalKeyId) -> Result<(), Error> {
        // SPEC(AUTHZ-POLICY-001, AUTHZ-POLICY-002, AUTHZ-POLICY-003, AUTHZ-INPUT-001): by all of the request metadata.
        // SPEC(META-OPNAME-002, ENC-OPNAME-002, DEC-OPNAME-002): a policy may refuse operations of KMS by name.
        let (Some(policies), Some(metadata)) = (&self.store.policies, &self.trace.metadata) else {
            return Ok(());
        };
        let decision = policies.decide(&Query { store: &self.store.name, operation, key: id, metadata });
        // SPEC(LOG-DENY-001, AUTHZ-LOG-001): SHOULD log the statement that denied.
        self.trace.policy = match &decision {
            Ok(policy) => Some(Arc::clone(policy)),
            Err(denial) => denial.policy.clone(),
        };
        decision.map(drop).map_err(Error::Denied)
    }

    /// Whether store and key are switched on.
    const fn require_enabled(&self, key: &ExternalKey) -> Result<(), Error> {
        // SPEC(ERR-STATE-001, ERR-STATE-002): a disabled key or store is InvalidStateException.
        if !self.store.is_enabled {
            Err(Error::StoreDisabled)
        } else if !key.is_enabled {
            Err(Error::KeyDisabled)
        } else {
            Ok(())
        }
    }

    /// Until when a version of a key may be used for this request, and that it is not disabled meanwhile.
    fn terms(&self, id: &ExternalKeyId, version: u32) -> Terms {
        let (latest, id) = (Arc::clone(&self.store.latest), id.clone());
        let permit = Arc::new(move || latest.permits(&id, version));
        Terms { deadline: self.deadline, permit: Some(permit), on_iv: None }
    }

    /// Notes what a call to the HSM cost and hands on what came of it.
    fn note<T>(&mut self, outcome: Outcome<T>) -> Result<T, HsmError> {
        self.trace.hsm.add(&outcome.report);
        outcome.result
    }
}

/// Whether the key may serve at all: version 1 knows AES-256 alone.
fn require_aes_256(attributes: &KeyAttributes) -> Result<(), Error> {
    if attributes.kind == (KeyKind::Aes { bits: Some(256) }) { Ok(()) } else { Err(Error::KeyNotAes256) }
}

/// Whether the key has an attribute.
const fn require_usage(may: bool, attribute: &'static str) -> Result<(), Error> {
    if may { Ok(()) } else { Err(Error::KeyUsage(attribute)) }
}

fn body_error(operation: Operation) -> impl Fn(BodyFault) -> Error {
    move |fault| Error::Body(fault, operation)
}
