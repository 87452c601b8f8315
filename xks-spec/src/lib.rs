//! The wire contract of the AWS KMS External Key Store Proxy API, version 1.0.3: paths, identifiers, limits, JSON
//! bodies, error names, the framing of additional authenticated data and the ciphertext data integrity value.
//!
//! Nothing here does I/O, keeps state or reads a clock. Both sides of the wire use it: the proxy to parse requests
//! and to build answers, clients and conformance tests to build requests and to check answers.
//! `xks-spec/README.md` lists every requirement of the specification with the place that enforces it;
//! `xks-spec/vectors/` holds the same contract as cases that any program can read.

pub mod body;
pub mod credential;
pub mod error;
pub mod framing;
pub mod limits;
pub mod metadata;
pub mod path;
pub mod request;
pub mod response;

pub use error::ErrorName;
pub use metadata::RequestMetadata;
pub use path::{ApiPath, ExternalKeyId, Operation, UriPathPrefix};
