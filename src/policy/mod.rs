//! Secondary authorization: who may do what with which external key, said in Cedar (docs/authorization.md).
//!
//! What is decided is the caller's business with KMS as KMS states it in the request metadata. Policies are read with the
//! configuration and held against the schema, strictly: what could not be evaluated for some request is not loaded. What
//! fails to evaluate all the same denies: Cedar by itself would skip such a policy, and a `forbid` with it.

mod arn;
#[cfg(feature = "cedar")]
mod engine;
#[cfg(not(feature = "cedar"))]
#[path = "absent.rs"]
mod engine;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use xks_spec::{ExternalKeyId, Operation, RequestMetadata};

pub use engine::Policies;

/// What policies may look at, in Cedar's schema language.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// Longest `@id`, in bytes: it goes into every record of a denial.
pub const MAX_ID_BYTES: usize = 128;

/// The operations that policies decide on. GetHealthStatus has no caller and no key, and is not among them.
// SPEC(HEALTH-AUTHZ-001): secondary authorization never applies to GetHealthStatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOperation {
    /// Encrypt.
    Encrypt,
    /// Decrypt.
    Decrypt,
    /// GetKeyMetadata.
    GetKeyMetadata,
}

impl KeyOperation {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Encrypt, Self::Decrypt, Self::GetKeyMetadata];

    /// The operation's name in the specification, the log and the policies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.operation().name()
    }

    /// The same among all operations.
    #[must_use]
    pub const fn operation(self) -> Operation {
        match self {
            Self::Encrypt => Operation::Encrypt,
            Self::Decrypt => Operation::Decrypt,
            Self::GetKeyMetadata => Operation::GetKeyMetadata,
        }
    }
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Name of the key store.
    pub store: &'a str,
    /// What is to be done.
    pub operation: KeyOperation,
    /// With which key.
    pub key: &'a ExternalKeyId,
    /// For whom, and everything else that KMS says.
    pub metadata: &'a RequestMetadata,
}

/// Why a request is denied. Its text is for log and audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// What led to it.
    pub reason: DenialReason,
    /// Id of the policy that decided: of several the first by name. None where no policy permits it.
    pub policy: Option<Arc<str>>,
}

/// What led to a denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenialReason {
    /// A `forbid` applies.
    Forbid,
    /// No `permit` applies.
    NoPermit,
    /// A policy cannot be evaluated for this request, in Cedar's words.
    EvaluationError(Box<str>),
}

impl DenialReason {
    /// Short word for the metric and for `policy test`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Forbid => "forbid",
            Self::NoPermit => "no_permit",
            Self::EvaluationError(_) => "evaluation_error",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.policy.as_deref().unwrap_or("?");
        match &self.reason {
            DenialReason::Forbid => write!(f, "policy {policy} forbids it"),
            DenialReason::NoPermit => f.write_str("no policy permits it"),
            DenialReason::EvaluationError(problem) => {
                write!(f, "policy {policy} cannot be evaluated, which denies: {problem}")
            }
        }
    }
}

/// A policy file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    /// Where it was.
    pub path: PathBuf,
    /// What was in it.
    pub text: String,
}

/// What is wrong with the policies of a store.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyFault {
    /// The program was built without Cedar.
    #[error("this xks-proxy was built without Cedar (cargo feature \"cedar\"): it can evaluate no policies")]
    NotBuilt,
    /// The files hold no policy at all: everything would be denied.
    #[error("there is no policy in these files: every request would be denied")]
    Empty,
    /// Something at a place in a file.
    #[error("{}{}: {problem}", path.display(), at(*.line))]
    InFile {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
}

fn at(line: Option<usize>) -> String {
    line.map(|line| format!(" line {line}")).unwrap_or_default()
}

#[cfg(test)]
#[cfg(feature = "cedar")]
mod tests;
