//! The one log line of a request, and its one audit record where it was authenticated, made when its record is dropped:
//! whatever ends the request, they are there.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use xks_spec::{ExternalKeyId, Operation, RequestMetadata};

use super::State;
use super::service::Peer;
use crate::audit::RequestRecord;
use crate::clock::{self, Deadline};
use crate::error::Error;
use crate::hsm::HsmError;
use crate::keystore::KeyStore;
use crate::operations::Trace;

/// Lines of the log that requests without authentication may have in the long run, and at once: strangers must not fill
/// the disk. The metrics count them all.
const STRANGER_LINES_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();
const STRANGER_LINES_AT_ONCE: NonZeroU32 = NonZeroU32::new(500).unwrap();

/// How many lines strangers may have.
#[must_use]
pub fn stranger_lines() -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_second(STRANGER_LINES_PER_SECOND).allow_burst(STRANGER_LINES_AT_ONCE))
}

/// What is known of a request so far.
pub(super) struct Record {
    state: Arc<State>,
    began_at: Instant,
    peer: SocketAddr,
    balancer: Option<SocketAddr>,
    certificate_subject: Option<Arc<str>>,
    is_http2: bool,
    pub(super) operation: Option<Operation>,
    pub(super) store: Option<Arc<KeyStore>>,
    pub(super) external_key_id: Option<ExternalKeyId>,
    pub(super) access_key_id: Option<Box<str>>,
    /// What a request that is not authenticated says that it is.
    pub(super) claimed_access_key_id: Option<Box<str>>,
    pub(super) trace: Trace,
    /// Length of the body that was read.
    pub(super) request_bytes: usize,
    end: End,
    /// The audit log has it already.
    is_audited: bool,
}

/// How the request ended.
enum End {
    /// The client left, or the handler panicked.
    Abandoned,
    Succeeded {
        answer_bytes: usize,
    },
    Failed(Error),
    /// The connection was closed without an answer.
    Closed(&'static str),
}

impl Record {
    pub(super) fn begin(peer: &Peer, began_at: Instant, is_http2: bool) -> Self {
        Self {
            state: Arc::clone(&peer.state),
            began_at,
            peer: peer.address,
            balancer: peer.balancer,
            certificate_subject: peer.certificate_subject.clone(),
            is_http2,
            operation: None,
            store: None,
            external_key_id: None,
            access_key_id: None,
            claimed_access_key_id: None,
            trace: Trace::default(),
            request_bytes: 0,
            end: End::Abandoned,
            is_audited: false,
        }
    }

    pub(super) fn succeed(&mut self, answer_bytes: usize) {
        self.end = End::Succeeded { answer_bytes };
    }

    /// Waits until the audit record of a success is written, where the configuration wants it.
    ///
    /// # Errors
    /// [`Error::Audit`] where it is not by the deadline.
    pub(super) async fn be_written(&mut self, deadline: Deadline) -> Result<(), Error> {
        let audit = self.state.audit.clone().filter(|audit| audit.must_be_written());
        let (Some(audit), Some(record)) = (audit, self.to_audit()) else { return Ok(()) };
        // From here on the audit log sees to it, though the client leave meanwhile, who then was given no answer.
        self.is_audited = true;
        let end = std::mem::replace(&mut self.end, End::Abandoned);
        audit.write(Box::new(record), deadline).await.map_err(|_| Error::Audit)?;
        self.end = end;
        Ok(())
    }

    /// What the audit log keeps; nothing of a request that was not authenticated.
    fn to_audit(&self) -> Option<RequestRecord> {
        let hsm = &self.trace.hsm;
        Some(RequestRecord {
            time: clock::wall_clock(),
            operation: self.operation?.name(),
            store: Arc::clone(&self.store.as_ref()?.name),
            external_key_id: self.external_key_id.as_ref().map(|id| id.as_str().into()),
            key_version: self.trace.key_version,
            outcome: self.outcome(),
            reason: self.reason(),
            policy: self.trace.policy.clone(),
            access_key_id: self.access_key_id.clone()?,
            peer: self.peer,
            balancer: self.balancer,
            certificate_subject: self.certificate_subject.clone(),
            http: self.http(),
            request_metadata: self.trace.metadata.as_ref().unwrap_or(&RequestMetadata::default()).into(),
            is_aws_sample: self.trace.is_aws_sample,
            token_serial: hsm.token_serial.clone(),
            is_hedged: hsm.is_hedged,
            hsm_calls: hsm.attempts,
            total_us: micros(self.began_at.elapsed()),
            queue_us: micros(hsm.queue_time),
            hsm_us: micros(hsm.call_time),
            request_bytes: self.request_bytes,
            answer_bytes: match self.end {
                End::Succeeded { answer_bytes } => answer_bytes,
                _ => 0,
            },
        })
    }

    const fn http(&self) -> &'static str {
        if self.is_http2 { "2" } else { "1.1" }
    }

    /// Whether it has a line in the log: those of strangers are limited.
    fn has_line(&self) -> bool {
        self.access_key_id.is_some() || self.state.has_line_for_stranger()
    }

    pub(super) fn fail(&mut self, error: Error) {
        match &error {
            Error::Authentication(fault) => {
                self.state.metrics.authentication_failures.with_label_values(&[fault.label()]).inc();
            }
            Error::UnknownKeyVersion(_) => {
                let store = self.store.as_ref().map_or("none", |store| &store.name);
                self.state.metrics.unknown_key_versions.with_label_values(&[store]).inc();
            }
            Error::Denied(denial) => {
                let store = self.store.as_ref().map_or("none", |store| &store.name);
                self.state.metrics.policy_denials.with_label_values(&[store, denial.reason.label()]).inc();
            }
            _ => {}
        }
        let store = self.store.as_ref().map_or("none", |store| &store.name);
        self.state.metrics.errors.with_label_values(&[store, self.kind(&error)]).inc();
        if let Some(reason) = self.throttled_for(&error) {
            self.state.metrics.throttled.with_label_values(&[store, reason]).inc();
        }
        self.end = End::Failed(error);
    }

    /// What ran out, where the request is throttled.
    fn throttled_for(&self, error: &Error) -> Option<&'static str> {
        match error {
            Error::OverQuota if self.operation == Some(Operation::GetHealthStatus) => Some("health_quota"),
            Error::OverQuota => Some("store_quota"),
            Error::TooManyInFlight => Some("in_flight"),
            Error::Hsm(HsmError::QueueFull | HsmError::TooManySearches) => Some("token"),
            _ => None,
        }
    }

    pub(super) fn close(&mut self, reason: &'static str) {
        self.end = End::Closed(reason);
    }

    /// How KMS counts an error. What strangers can make of their own is kept apart, or they could wake somebody.
    fn kind(&self, error: &Error) -> &'static str {
        match error {
            error if error.to_wire().name.is_retryable() => "retryable",
            _ if self.access_key_id.is_none() => "not_authenticated",
            _ => "non_retryable",
        }
    }

    fn outcome(&self) -> &'static str {
        match &self.end {
            End::Abandoned => "abandoned",
            End::Succeeded { .. } => "ok",
            End::Failed(error) => error.to_wire().name.as_str(),
            End::Closed(_) => "closed",
        }
    }

    fn reason(&self) -> Option<String> {
        match &self.end {
            End::Abandoned | End::Succeeded { .. } => None,
            End::Failed(error) => Some(error.to_string()),
            End::Closed(reason) => Some((*reason).to_owned()),
        }
    }

    /// The label of its end in the metrics.
    fn error_label(&self) -> &'static str {
        match &self.end {
            End::Succeeded { .. } => "none",
            // Nobody knows who left.
            End::Abandoned if self.access_key_id.is_none() => "incomplete",
            _ => self.outcome(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.began_at.elapsed();
        let operation = self.operation.map_or("none", Operation::name);
        let store = self.store.as_ref().map_or("none", |store| &store.name);
        self.state.metrics.requests.with_label_values(&[operation, store, self.error_label()]).inc();
        if self.trace.is_aws_sample && matches!(self.end, End::Succeeded { .. }) {
            self.state.metrics.aws_sample_decrypts.with_label_values(&[store]).inc();
        }
        if self.trace.hsm.unverified > 0 {
            let failures = u64::from(self.trace.hsm.unverified);
            self.state.metrics.integrity_failures.with_label_values(&[store]).inc_by(failures);
        }
        // How long a stranger takes over a body says nothing of the proxy.
        if self.access_key_id.is_some() {
            let seconds = self.state.metrics.request_seconds.with_label_values(&[operation, store]);
            seconds.observe(total.as_secs_f64());
        }
        if let Some(audit) = self.state.audit.as_ref().filter(|_| !self.is_audited)
            && let Some(record) = self.to_audit()
        {
            audit.push(Box::new(record));
        }
        if self.has_line() {
            self.log(total);
        }
    }
}

impl Record {
    fn log(&self, total: Duration) {
        let (outcome, reason) = (self.outcome(), self.reason());
        let operation = self.operation.map_or("none", Operation::name);
        let store = self.store.as_ref().map_or("none", |store| &store.name);
        let none = RequestMetadata::default();
        let metadata = self.trace.metadata.as_ref().unwrap_or(&none);
        let other =
            (!metadata.other.is_empty()).then(|| serde_json::to_string(&metadata.other).unwrap_or_default());
        let hsm = &self.trace.hsm;
        // SPEC(META-LOG-001, ENC-LOG-001, DEC-LOG-001, HEALTH-LOG-001): SHOULD log kmsRequestId.
        // SPEC(LOG-META-001): SHOULD log the request metadata. SPEC(LOG-EKM-001): MAY log the key manager.
        // SPEC(LOG-TIME-001, LOG-RESULT-001, LOG-RESULT-002): SHOULD log time taken, success and error.
        // SPEC(LOG-SECRET-001, ENC-SECRET-001, DEC-SECRET-001): MUST NOT log plaintext: the record never has any.
        tracing::info!(
            target: "request",
            operation,
            store,
            external_key_id = self.external_key_id.as_ref().map(ExternalKeyId::as_str),
            outcome,
            reason,
            access_key_id = self.access_key_id.as_deref(),
            claimed_access_key_id = self.claimed_access_key_id.as_deref(),
            kmsRequestId = metadata.kms_request_id.as_deref().map(shortened),
            kmsOperation = metadata.kms_operation.as_deref().map(shortened),
            kmsKeyArn = metadata.kms_key_arn.as_deref().map(shortened),
            kmsViaService = metadata.kms_via_service.as_deref().map(shortened),
            awsPrincipalArn = metadata.aws_principal_arn.as_deref().map(shortened),
            awsSourceVpc = metadata.aws_source_vpc.as_deref().map(shortened),
            awsSourceVpce = metadata.aws_source_vpce.as_deref().map(shortened),
            other_metadata = other.as_deref().map(shortened),
            policy = self.trace.policy.as_deref(),
            key_version = self.trace.key_version,
            aws_sample = self.trace.is_aws_sample.then_some(true),
            integrity_failures = Some(hsm.unverified).filter(|failures| *failures > 0),
            token_serial = hsm.token_serial.as_deref(),
            hsm_calls = hsm.attempts,
            total_us = micros(total),
            queue_us = micros(hsm.queue_time),
            hsm_us = micros(hsm.call_time),
            peer = %self.peer,
            balancer = self.balancer.map(tracing::field::display),
            certificate_subject = self.certificate_subject.as_deref(),
            http = self.http(),
        );
    }
}

/// What the log keeps of a text: a line that waits to be written takes memory.
fn shortened(text: &str) -> &str {
    /// Twice the longest ARN that KMS knows.
    const MAX_BYTES: usize = 4096;
    let is_end = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=MAX_BYTES.min(text.len())).rev().find(is_end).unwrap_or(0);
    &text[..end]
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
