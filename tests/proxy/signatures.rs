//! Verification of SigV4 signatures over the listener: what is accepted, and that everything else is refused alike.

mod by_hand;
mod clients;
mod curl;
mod forms;
mod http2;
mod mutations;
mod replays;
mod scope;
mod signed_parts;

use serde_json::Value;
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{Answer, Proxy, XksRequest};

/// What a client puts into `host`.
fn authority(proxy: &Proxy) -> String {
    format!("localhost:{}", proxy.address.port())
}

/// An Encrypt request that is right.
fn encrypt() -> XksRequest {
    XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"secret", None, false))
}

/// Wants the one answer of every failed authentication.
fn assert_not_authenticated(answer: &Answer, what: &str) {
    assert_eq!(answer.refusal(), (401, "AuthenticationFailedException".to_owned()), "{what}");
}

/// The reason in the log of the only request that came from that address.
fn logged_reason(proxy: &Proxy, peer: std::net::SocketAddr) -> String {
    let line: Value = proxy.wait_for_log(|line| line["peer"] == peer.to_string());
    line["reason"].as_str().unwrap_or("none").to_owned()
}
