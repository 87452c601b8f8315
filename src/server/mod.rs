//! The listener that KMS talks to: admission, TLS, HTTP, the order of checks, the answer.

mod activity;
mod admission;
mod answer;
mod body;
mod connection;
mod listener;
mod places;
mod proxy_protocol;
mod record;
mod retirement;
mod service;
mod small;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::DefaultDirectRateLimiter;
use ipnet::IpNet;
use xks_spec::request::SizeLimits;

pub use admission::Connections;
pub use listener::{Drain, serve};
pub use places::Places;
pub use proxy_protocol::{ClientAddress, HeaderFault, client_address};
pub use record::stranger_lines;
pub use retirement::CurrentTls;
pub use small::{SmallTls, serve_admin, serve_ping};

use crate::admin::Readiness;
use crate::audit::Audit;
use crate::keystore::KeyStores;
use crate::metrics::Metrics;
use crate::operations::Fleet;

/// Everything that connections and requests are served with. What an operator may change while the proxy runs is read anew
/// for each connection (TLS) or request (stores, fleet).
pub struct State {
    /// The key stores.
    pub stores: ArcSwap<KeyStores>,
    /// How clients are admitted.
    pub tls: CurrentTls,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where authenticated requests are recorded.
    pub audit: Option<Arc<Audit>>,
    /// How many lines of the log strangers may have: requests that are not authenticated, connections that are not admitted.
    pub stranger_lines: DefaultDirectRateLimiter,
    /// Load balancers, whose connections all begin with a PROXY protocol header.
    pub proxy_protocol_from: Vec<IpNet>,
    /// What `/ping` says.
    pub readiness: Arc<Readiness>,
    /// Sizes.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
    /// What GetHealthStatus says of the fleet.
    pub fleet: ArcSwap<Fleet>,
    /// Places for API requests.
    pub places: Places,
}

impl State {
    /// Whether the log takes one more line that a stranger causes; counts it where it does not.
    fn has_line_for_stranger(&self) -> bool {
        let has_line = self.stranger_lines.check().is_ok();
        if !has_line {
            self.metrics.log_lines_suppressed.inc();
        }
        has_line
    }
}

/// How much is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest values.
    pub sizes: SizeLimits,
    /// Longest head of a request, in bytes.
    pub max_header_bytes: usize,
    /// Most connections.
    pub max_connections: usize,
    /// Most requests at once on one HTTP/2 connection.
    pub max_streams_per_connection: u32,
    /// Most API requests at once.
    pub max_in_flight: usize,
}

impl Limits {
    /// Longest body: the longest values in Base64, and room for metadata, names and escapes.
    #[must_use]
    pub const fn max_body_bytes(&self) -> usize {
        const ROOM_FOR_THE_REST_BYTES: usize = 40 * 1024;
        base64_chars(self.sizes.max_plaintext_bytes)
            + base64_chars(self.sizes.max_aad_bytes)
            + ROOM_FOR_THE_REST_BYTES
    }
}

const fn base64_chars(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// From the handshake's end for the head of the first request.
    pub first_request: Duration,
    /// For the rest of a request's head once it has begun.
    pub header: Duration,
    /// For a request's body.
    pub body: Duration,
    /// Between two requests on a connection.
    pub idle: Duration,
    /// From a connection's beginning until it is asked to make place for a new one.
    pub max_age: Duration,
    /// From a request's first byte to its answer.
    pub request: Duration,
    /// The same for a connection's first request, where KMS's clock began with the connection.
    pub first_request_answer: Duration,
    /// From SIGTERM until new connections are refused.
    pub lame_duck: Duration,
    /// For what is then still being worked on.
    pub drain: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_cap_leaves_room() {
        let sizes = SizeLimits { max_plaintext_bytes: 4300, max_aad_bytes: 8192 };
        let limits = Limits {
            sizes,
            max_header_bytes: 0,
            max_connections: 0,
            max_streams_per_connection: 0,
            max_in_flight: 0,
        };
        assert!(limits.max_body_bytes() >= 5736 + 10924 + 32 * 1024);
    }
}
