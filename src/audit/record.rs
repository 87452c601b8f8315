//! What is recorded. docs/audit.md explains every field.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;
use xks_spec::RequestMetadata;

use super::chain::Torn;

/// One record of the chain, but for number and hashes.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Entry {
    /// A request that was authenticated.
    Request(Box<RequestRecord>),
    /// The proxy writes from here on.
    Opened {
        #[serde(serialize_with = "rfc_3339")]
        time: SystemTime,
        reason: OpenReason,
        version: &'static str,
        /// What a crash has left between this record and the one before.
        torn: Option<Torn>,
    },
    /// So many records could not be kept until they could be written.
    Lost { records: u64 },
    /// That record says that its request succeeded, but its caller had left, or had been answered with a failure, before
    /// the record was written.
    Withheld { record: u64 },
    /// The proxy has stopped in order.
    Closed {
        #[serde(serialize_with = "rfc_3339")]
        time: SystemTime,
    },
}

impl Entry {
    pub(super) const OPENED: &'static str = "opened";
    pub(super) const CLOSED: &'static str = "closed";
}

/// Why a file was opened.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum OpenReason {
    /// The process started.
    Start,
    /// The file before it was moved away.
    Rotation,
    /// Writing had failed.
    Recovery,
}

impl OpenReason {
    pub(super) const START: &'static str = "start";
}

/// A request that was authenticated, whatever its end. Never holds plaintext, ciphertext or a secret.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRecord {
    /// When it ended.
    #[serde(serialize_with = "rfc_3339")]
    pub time: SystemTime,
    /// XKS operation.
    pub operation: &'static str,
    /// Name of the key store.
    pub store: Arc<str>,
    /// External key id, for operations on a key.
    pub external_key_id: Option<Box<str>>,
    /// Number of the key version that was used.
    pub key_version: Option<u32>,
    /// `ok`, an errorName, or how it ended without an answer.
    pub outcome: &'static str,
    /// Why, where it is not `ok`.
    pub reason: Option<String>,
    /// Id of the policy that decided.
    pub policy: Option<Arc<str>>,
    /// Whose signature it was.
    pub access_key_id: Box<str>,
    /// Where the request came from: with PROXY protocol, who connected to the load balancer.
    pub peer: SocketAddr,
    /// The load balancer, with PROXY protocol.
    pub balancer: Option<SocketAddr>,
    /// Subject of the client's certificate.
    pub certificate_subject: Option<Arc<str>>,
    /// `1.1` or `2`.
    pub http: &'static str,
    /// Everything that KMS says of its caller; empty where the body could not be read.
    pub request_metadata: MetadataText,
    /// AWS's sample proxy had made the ciphertext.
    pub is_aws_sample: bool,
    /// Serial number of the token that answered.
    pub token_serial: Option<Arc<str>>,
    /// More than one token was asked.
    pub is_hedged: bool,
    /// Calls of the HSM, retries included.
    pub hsm_calls: u32,
    /// From the first byte to the end, in microseconds.
    pub total_us: u64,
    /// Waiting for a session of the token, in microseconds.
    pub queue_us: u64,
    /// Inside the PKCS#11 module, in microseconds.
    pub hsm_us: u64,
    /// Length of the request's body.
    pub request_bytes: usize,
    /// Length of the answer's body; 0 where there was none, or it failed.
    pub answer_bytes: usize,
}

impl RequestRecord {
    /// Outcome of a request that the HSM did, and that was answered with a failure, or not any more, since its record was
    /// not written in time.
    const WITHHELD: &'static str = "withheld";

    pub(super) fn withhold(&mut self) {
        if self.outcome == "ok" {
            self.outcome = Self::WITHHELD;
            self.reason =
                Some("this record was not written in time: the caller was not given the answer".into());
            self.answer_bytes = 0;
        }
    }

    /// About how much memory it takes.
    pub(super) fn size_bytes(&self) -> usize {
        const FIXED_BYTES: usize = 1024;
        FIXED_BYTES + self.request_metadata.0.get().len()
    }
}

/// Request metadata as the text that is written: as a tree, fields of KMS's that nobody knows could take a hundred times the memory
/// of their text.
#[derive(Clone, Debug, Serialize)]
pub struct MetadataText(Box<RawValue>);

impl From<&RequestMetadata> for MetadataText {
    fn from(metadata: &RequestMetadata) -> Self {
        // INVARIANT: it is an object of texts and of what was read from JSON, which is written into memory.
        Self(to_raw_value(metadata).unwrap_or_default())
    }
}

/// UTC with microseconds, always of the same length.
fn rfc_3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = OffsetDateTime::from(*time);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second, micros) = time.to_hms_micro();
    serializer.collect_str(&format_args!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
    ))
}
