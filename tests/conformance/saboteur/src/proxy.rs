//! What all parts of the saboteur share: the fault, the HSM, the credentials.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde_json::Value;
use xks_spec::ErrorName;

use crate::fault::Fault;
use crate::hsm::Hsm;
use crate::setup::{Accepted, Credential, STORES, Store};

/// A running proxy's state.
pub(crate) struct Proxy {
    fault: Option<Fault>,
    pub(crate) hsm: Hsm,
    accepted: Mutex<Accepted>,
    /// For [`Fault::AuthorizationCached`].
    pub(crate) authorized: Mutex<HashSet<String>>,
    /// For the faults that count encryptions.
    pub(crate) encryptions: AtomicU64,
    /// Requests of Encrypt and Decrypt, for [`Fault::SomeAnswersLate`].
    pub(crate) key_uses: AtomicU64,
    /// For [`Fault::OneRequestAtATime`].
    pub(crate) turnstile: tokio::sync::Mutex<()>,
    /// For [`Fault::HealthCachedForEver`].
    pub(crate) first_health: OnceLock<Value>,
}

/// Why a request is refused: what becomes an error's status and body.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) name: ErrorName,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(name: ErrorName, message: impl Into<String>) -> Self {
        Self { name, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorName::ValidationException, message)
    }
}

impl Proxy {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            hsm: Hsm::new(),
            accepted: Mutex::new(Accepted::First),
            authorized: Mutex::default(),
            encryptions: AtomicU64::new(0),
            key_uses: AtomicU64::new(0),
            turnstile: tokio::sync::Mutex::default(),
            first_health: OnceLock::new(),
        }
    }

    /// Whether this mistake is made.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(crate) fn accept(&self, accepted: Accepted) {
        if !self.has(Fault::RotationNeedsRestart) {
            *self.accepted.lock().unwrap() = accepted;
        }
    }

    /// The credentials that open `store` now.
    pub(crate) fn credentials(&self, store: usize) -> Vec<Credential> {
        let accepted = *self.accepted.lock().unwrap();
        let of = |store: &Store| match accepted {
            Accepted::First => vec![store.credential],
            Accepted::Both if self.has(Fault::SecondCredentialRefused) => vec![store.credential],
            Accepted::Next if !self.has(Fault::RemovedCredentialAccepted) => vec![store.next_credential],
            Accepted::Both | Accepted::Next => vec![store.credential, store.next_credential],
        };
        if self.has(Fault::CredentialOfAnyStore) {
            return STORES.iter().flat_map(of).collect();
        }
        of(&STORES[store])
    }

    /// Base64 for answers.
    pub(crate) fn encode(&self, bytes: &[u8]) -> String {
        if self.has(Fault::UrlSafeAnswers) {
            return URL_SAFE.encode(bytes);
        }
        if self.has(Fault::UnpaddedAnswers) {
            return STANDARD_NO_PAD.encode(bytes);
        }
        STANDARD.encode(bytes)
    }
}
