//! `[server]`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;

use ipnet::IpNet;
use rustls::ServerConfig;
use xks_spec::limits::{MAX_FRAMED_AAD_BYTES, MIN_SUPPORTED_AAD_BYTES, MIN_SUPPORTED_PLAINTEXT_BYTES};
use xks_spec::request::SizeLimits;

use super::reader::{Section, Table};
use crate::operations::Fleet;
use crate::server::{Limits, Timeouts};
use crate::tls::{CertificateFiles, TlsIdentity, server_config};

/// Longest plaintext that can be configured.
const MAX_PLAINTEXT_BYTES: u64 = 64 * 1024;

pub(super) struct ServerSettings {
    pub(super) listen: SocketAddr,
    pub(super) tls: ServerConfig,
    pub(super) certificates: Vec<CertificateFiles>,
    pub(super) tls_identity: TlsIdentity,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    pub(super) fleet: Fleet,
    pub(super) proxy_protocol_from: Vec<IpNet>,
}

pub(super) fn read(mut server: Table<'_>, folder: &Path) -> Option<ServerSettings> {
    let listen = server.require("listen").and_then(|value| value.socket_address());
    let fleet_size = server.take("fleet_size").map_or(Some(1), |value| value.integer(1..=1000));
    let lame_duck_secs = server.take("lame_duck_secs").map_or(Some(30), |value| value.integer(0..=900));
    let drain_secs = server.take("drain_secs").map_or(Some(10), |value| value.integer(1..=300));
    let proxy_protocol_from = read_networks(&mut server);
    let tls = read_tls(&mut server, folder);
    let limits = read_limits(server.section("limits"));
    let timeouts = read_timeouts(server.section("timeouts"));
    server.finish();
    let timeouts = Timeouts {
        lame_duck: std::time::Duration::from_secs(lame_duck_secs?),
        drain: std::time::Duration::from_secs(drain_secs?),
        ..timeouts
    };
    let size = NonZeroU32::new(u32::try_from(fleet_size?).ok()?)?;
    let (tls, certificates) = tls?;
    let tls_identity = TlsIdentity::of(&certificates);
    Some(ServerSettings {
        listen: listen?,
        tls,
        certificates,
        tls_identity,
        limits,
        timeouts,
        fleet: Fleet { size },
        proxy_protocol_from,
    })
}

fn read_networks(server: &mut Table<'_>) -> Vec<IpNet> {
    let Some(networks) = server.take("proxy_protocol_from") else { return Vec::new() };
    let parse = |text: &str| {
        // Host bits would make it another network than it seems.
        let network: Option<IpNet> = text.parse().ok().filter(|network: &IpNet| network.trunc() == *network);
        network.ok_or("must be a network such as \"10.0.0.0/16\" or \"2001:db8::/32\"")
    };
    networks.array().iter().filter_map(|network| network.parsed(parse)).collect()
}

fn read_tls(server: &mut Table<'_>, folder: &Path) -> Option<(ServerConfig, Vec<CertificateFiles>)> {
    let certificates = server.require("certificates")?;
    let mut files = Vec::new();
    let mut is_whole = true;
    for mut table in certificates.array().iter().filter_map(super::Value::table) {
        let chain_file = table.require("chain_file").and_then(|value| value.file_in(folder));
        let key_file = table.require("key_file").and_then(|value| value.file_in(folder));
        table.finish();
        match (chain_file, key_file) {
            (Some(chain_file), Some(key_file)) => files.push(CertificateFiles { chain_file, key_file }),
            _ => is_whole = false,
        }
    }
    if !is_whole {
        return None;
    }
    match server_config(&files) {
        Ok(config) => Some((config, files)),
        Err(faults) => {
            for fault in faults {
                certificates.passing_fault(fault.to_string());
            }
            None
        }
    }
}

fn read_limits(mut limits: Section<'_>) -> Limits {
    let plaintext_bytes = MIN_SUPPORTED_PLAINTEXT_BYTES as u64;
    let aad_bytes = MIN_SUPPORTED_AAD_BYTES as u64;
    let sizes = SizeLimits {
        // SPEC(ENC-SIZE-001, DEC-SIZE-001): MUST take 4300 bytes. SPEC(ENC-AAD-005, DEC-AAD-005): MUST take 8192.
        max_plaintext_bytes: limits.size(
            "max_plaintext_bytes",
            plaintext_bytes..=MAX_PLAINTEXT_BYTES,
            plaintext_bytes,
        ),
        max_aad_bytes: limits.size("max_aad_bytes", aad_bytes..=MAX_FRAMED_AAD_BYTES as u64, aad_bytes),
    };
    let read = Limits {
        sizes,
        max_header_bytes: limits.size("max_header_bytes", 8192..=262_144, 16_384),
        max_connections: limits.size("max_connections", 1..=1_000_000, 10_000),
        max_streams_per_connection: u32::try_from(limits.number("max_streams_per_connection", 1..=1000, 128))
            .unwrap_or(u32::MAX),
        max_in_flight: limits.size("max_in_flight", 1..=100_000, 1024),
    };
    limits.finish();
    read
}

fn read_timeouts(mut timeouts: Section<'_>) -> Timeouts {
    let read = Timeouts {
        handshake: timeouts.millis("handshake_ms", 100..=60_000, 5_000),
        first_request: timeouts.millis("first_request_ms", 100..=600_000, 20_000),
        header: timeouts.millis("header_ms", 100..=60_000, 5_000),
        body: timeouts.millis("body_ms", 100..=60_000, 5_000),
        idle: timeouts.millis("idle_ms", 100..=3_600_000, 120_000),
        max_age: timeouts.secs("max_age_secs", 1..=86_400, 900),
        request: timeouts.millis("answer_ms", 10..=60_000, 200),
        first_request_answer: timeouts.millis("first_answer_ms", 10..=60_000, 145),
        lame_duck: std::time::Duration::ZERO,
        drain: std::time::Duration::ZERO,
    };
    timeouts.finish();
    read
}
