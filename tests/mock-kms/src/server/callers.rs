//! Who may call: anybody who signs, or only those whose credentials are configured.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::http::request::Parts;
use serde::Deserialize;
use thiserror::Error;

use super::authentication::{Signature, refuse};
use crate::kms::name::Home;
use crate::kms::store::SecretText;
use crate::kms::{Exception, KmsError};

/// Who may call, and as which principal.
pub struct Callers {
    home: Home,
    /// By access key id; nothing is checked where there are none.
    known: BTreeMap<String, Caller>,
}

/// A caller whose signature can be checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caller {
    /// Names the secret.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: SecretText,
    /// What a proxy is told as `awsPrincipalArn`; a user of the access key id's name unless said otherwise.
    pub principal_arn: Option<String>,
}

/// Why a file of callers cannot be used. Shows nothing of what is in it.
#[derive(Debug, Error)]
pub enum CallersError {
    /// It is not of the documented form.
    #[error("not of the form of the README's section on callers, at {0}")]
    Form(String),
    /// Nobody could call.
    #[error("there are no credentials in it")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallersFile {
    credentials: Vec<Caller>,
}

impl Callers {
    /// Anybody who signs for this Region, with whatever credential.
    #[must_use]
    pub const fn anybody(home: Home) -> Self {
        Self { home, known: BTreeMap::new() }
    }

    /// Those in a TOML text: `[[credentials]]` with `access_key_id`, `secret_access_key` and, if wanted,
    /// `principal_arn`.
    ///
    /// # Errors
    /// [`CallersError`].
    pub fn from_toml(home: Home, text: &str) -> Result<Self, CallersError> {
        let file: CallersFile = toml::from_str(text).map_err(|error| {
            let position = error.span().map_or(0, |span| span.start);
            let line = text.get(..position).unwrap_or_default().lines().count().max(1);
            CallersError::Form(format!("line {line}"))
        })?;
        if file.credentials.is_empty() {
            return Err(CallersError::Empty);
        }
        let known = file.credentials.into_iter().map(|caller| (caller.access_key_id.clone(), caller));
        Ok(Self { home, known: known.collect() })
    }

    /// The principal of a request.
    ///
    /// # Errors
    /// The exceptions that AWS answers to a signature that is missing, not whole, of nobody known, or wrong.
    pub(super) fn authenticate(&self, head: &Parts, body: &[u8]) -> Result<String, KmsError> {
        let signature = Signature::parse(head)?;
        if signature.region != self.home.region {
            return Err(refuse(&format!(
                "Credential should be scoped to a valid region, not '{}'.",
                signature.region
            )));
        }
        let known = self.known.get(signature.access_key_id);
        if !self.known.is_empty() {
            let Some(caller) = known else {
                let message = "The security token included in the request is invalid.";
                return Err(KmsError::new(Exception::UnrecognizedClientException, message));
            };
            signature.verify(head, body, caller.secret_access_key.expose(), SystemTime::now())?;
        }
        let configured = known.and_then(|caller| caller.principal_arn.clone());
        Ok(configured.unwrap_or_else(|| {
            format!("arn:aws:iam::{}:user/{}", self.home.account_id, signature.access_key_id)
        }))
    }
}
