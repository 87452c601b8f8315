//! The one log line of a request, written when its record is dropped: whatever ends the request, the line is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xks_spec::{ExternalKeyId, Operation, RequestMetadata};

use crate::error::Error;
use crate::keystore::KeyStore;
use crate::metrics::Metrics;
use crate::operations::Trace;

/// What is known of a request so far.
pub(super) struct Record {
    metrics: Arc<Metrics>,
    began_at: Instant,
    peer: SocketAddr,
    is_http2: bool,
    pub(super) operation: Option<Operation>,
    pub(super) store: Option<Arc<KeyStore>>,
    pub(super) external_key_id: Option<ExternalKeyId>,
    pub(super) access_key_id: Option<Box<str>>,
    /// What a request that is not authenticated says that it is.
    pub(super) claimed_access_key_id: Option<Box<str>>,
    pub(super) trace: Trace,
    end: End,
}

/// How the request ended.
enum End {
    /// The client left, or the handler panicked.
    Abandoned,
    Succeeded,
    Failed(Error),
    /// The connection was closed without an answer.
    Closed(&'static str),
}

impl Record {
    pub(super) fn begin(metrics: &Arc<Metrics>, began_at: Instant, peer: SocketAddr, is_http2: bool) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            began_at,
            peer,
            is_http2,
            operation: None,
            store: None,
            external_key_id: None,
            access_key_id: None,
            claimed_access_key_id: None,
            trace: Trace::default(),
            end: End::Abandoned,
        }
    }

    pub(super) fn succeed(&mut self) {
        self.end = End::Succeeded;
    }

    pub(super) fn fail(&mut self, error: Error) {
        match &error {
            Error::Authentication(fault) => {
                self.metrics.authentication_failures.with_label_values(&[fault.label()]).inc();
            }
            Error::UnknownKeyVersion(_) => {
                let store = self.store.as_ref().map_or("none", |store| &store.name);
                self.metrics.unknown_key_versions.with_label_values(&[store]).inc();
            }
            _ => {}
        }
        self.end = End::Failed(error);
    }

    pub(super) fn close(&mut self, reason: &'static str) {
        self.end = End::Closed(reason);
    }

    fn outcome(&self) -> (&'static str, Option<String>) {
        match &self.end {
            End::Abandoned => ("abandoned", None),
            End::Succeeded => ("ok", None),
            End::Failed(error) => (error.to_wire().name.as_str(), Some(error.to_string())),
            End::Closed(reason) => ("closed", Some((*reason).to_owned())),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.began_at.elapsed();
        let (outcome, reason) = self.outcome();
        let operation = self.operation.map_or("none", Operation::name);
        let store = self.store.as_ref().map_or("none", |store| &store.name);
        let error = if outcome == "ok" { "none" } else { outcome };
        self.metrics.requests.with_label_values(&[operation, store, error]).inc();
        if self.trace.is_aws_sample && outcome == "ok" {
            self.metrics.aws_sample_decrypts.with_label_values(&[store]).inc();
        }
        self.metrics.request_seconds.with_label_values(&[operation, store]).observe(total.as_secs_f64());
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
            key_version = self.trace.key_version,
            aws_sample = self.trace.is_aws_sample.then_some(true),
            token_serial = hsm.token_serial.as_deref(),
            hsm_calls = hsm.attempts,
            total_us = micros(total),
            queue_us = micros(hsm.queue_time),
            hsm_us = micros(hsm.call_time),
            peer = %self.peer,
            http = if self.is_http2 { "2" } else { "1.1" },
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
