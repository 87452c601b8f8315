//! A client of the AWS KMS External Key Store Proxy API that calls a proxy just as AWS KMS does.
//!
//! [`Client`] signs with AWS's own signer (`host` and `x-amz-date` signed, nothing else), gives each try 250 ms from the
//! moment it begins to connect, tries once more when the network was too slow, keeps connections open, speaks HTTP/1.1
//! and HTTP/2, and shows a client certificate when it has one. Its typed operations check everything that KMS is said
//! to check of an answer: [`Client::health_status`], [`Client::key_metadata`], [`Client::encrypt`], [`Client::decrypt`].
//!
//! Tests of a proxy want to break rules. [`Client::send`] sends any [`Request`] and hands back the bare answer: what is
//! signed and what is sent can differ ([`Signing`]), time can be off, and the connection can be slow, cut in pieces or
//! dropped ([`Shaping`]). [`Request::edit`] has the last word on the HTTP request, and [`Client::open_tls`] gives the
//! bare TLS stream to whoever must send bytes that no HTTP library would.
//!
//! ```no_run
//! use mock_kms::xks::{Client, Proxy, RequestMetadata};
//!
//! # async fn health() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder()
//!     .resolve("xks.example.com", "127.0.0.1:8443".parse()?)
//!     .trust_ca_pem(&std::fs::read("ca.pem")?)?
//!     .build()?;
//! let secret = "secret+secret/secret+secret/secret+secret/0";
//! let proxy = Proxy::new("xks.example.com", "/demo/kms/xks/v1", "AKIDAKIDAKIDAKIDAKID", secret, "us-east-1");
//! let metadata = RequestMetadata {
//!     kms_operation: Some("KmsHealthCheck".to_owned()),
//!     kms_request_id: Some("4112f4d6-db54-4af4-ae30-c55a22a8dfae".to_owned()),
//!     ..RequestMetadata::default()
//! };
//! let exchange = client.health_status(&proxy, &metadata).await;
//! println!("{:?} in {:?}", exchange.outcome, exchange.report.total);
//! # Ok(())
//! # }
//! ```

mod answer;
mod builder;
mod certificate;
mod client;
mod connection;
mod failure;
mod operations;
mod pool;
mod request;
mod shaping;
mod signing;

pub use answer::{Answer, MAX_ANSWER_BYTES};
pub use builder::{BuildError, ClientBuilder};
pub use certificate::Certificate;
pub use client::{Client, Exchange, Report};
pub use connection::HttpVersion;
pub use failure::{Failure, Malformed, Refusal};
pub use operations::Ciphertext;
pub use request::{Edit, Proxy, Request};
pub use shaping::Shaping;
pub use signing::{SERVICE, Signature, Signing};
pub use xks_spec::RequestMetadata;
