//! `[server]`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;

use ipnet::IpNet;
use xks_spec::limits::{MAX_FRAMED_AAD_BYTES, MIN_SUPPORTED_AAD_BYTES, MIN_SUPPORTED_PLAINTEXT_BYTES};
use xks_spec::request::SizeLimits;

use super::reader::{Section, Table};
use crate::operations::Fleet;
use crate::server::{Limits, Timeouts};
use crate::tls::{CertificateFiles, ClientCertificates, ListenerTls, TlsFault, TlsIdentity, kms_common_name};

/// Longest plaintext that can be configured.
const MAX_PLAINTEXT_BYTES: u64 = 64 * 1024;

pub(super) struct ServerSettings {
    pub(super) listen: SocketAddr,
    pub(super) tls: ListenerTls,
    pub(super) certificates: Vec<CertificateFiles>,
    pub(super) tls_identity: TlsIdentity,
    pub(super) endpoint: Option<String>,
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
    let endpoint = server.take("endpoint").map(|value| value.parsed(parse_host_name));
    let tls = read_tls(&mut server, folder, ClientNames::KmsAndCommon);
    let limits = read_limits(server.section("limits"));
    let timeouts = read_timeouts(server.section("timeouts"));
    server.finish();
    let timeouts = Timeouts {
        lame_duck: std::time::Duration::from_secs(lame_duck_secs?),
        drain: std::time::Duration::from_secs(drain_secs?),
        ..timeouts
    };
    let size = NonZeroU32::new(u32::try_from(fleet_size?).ok()?)?;
    let (tls, certificates, tls_identity) = tls?;
    let endpoint = match endpoint {
        Some(endpoint) => Some(endpoint?),
        None => None,
    };
    Some(ServerSettings {
        listen: listen?,
        tls,
        certificates,
        tls_identity,
        endpoint,
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

/// Which names of clients a listener may be told to accept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientNames {
    /// KMS's of some Regions, and others.
    KmsAndCommon,
    /// Whole common names.
    Common,
}

/// `certificates` and `client_certificates` of a listener's table.
pub(super) fn read_tls(
    server: &mut Table<'_>,
    folder: &Path,
    client_names: ClientNames,
) -> Option<(ListenerTls, Vec<CertificateFiles>, TlsIdentity)> {
    let clients_value = server.take("client_certificates");
    let clients = clients_value.as_ref();
    let clients =
        clients.map(|value| value.table().and_then(|table| read_clients(table, folder, client_names)));
    let certificates = server.require("certificates")?;
    let mut files = Vec::new();
    let mut is_whole = true;
    for mut table in certificates.array().iter().filter_map(super::Value::table) {
        let chain_file = table.require("chain_file").and_then(|value| value.file_in(folder));
        let key_file = table
            .require("key_file")
            .and_then(|value| value.file_in(folder).inspect(|file| value.note_secret(Some(file.clone()))));
        table.finish();
        match (chain_file, key_file) {
            (Some(chain_file), Some(key_file)) => files.push(CertificateFiles { chain_file, key_file }),
            _ => is_whole = false,
        }
    }
    if !is_whole {
        return None;
    }
    let clients = match clients {
        Some(clients) => Some(clients?),
        None => None,
    };
    let clients = clients.as_ref();
    match ListenerTls::new(&files, clients) {
        Ok(config) => {
            let identity = TlsIdentity::of(&files, clients);
            Some((config, files, identity))
        }
        Err(faults) => {
            for fault in faults {
                let is_of_clients =
                    clients.is_some_and(|clients| fault == TlsFault::Chain(clients.ca_file.clone()));
                let section = clients_value.as_ref().filter(|_| is_of_clients).unwrap_or(&certificates);
                section.passing_fault(fault.to_string());
            }
            None
        }
    }
}

/// `client_certificates`: the authority and the subjects are both needed.
fn read_clients(mut table: Table<'_>, folder: &Path, names: ClientNames) -> Option<ClientCertificates> {
    let ca_file = table.require("ca_file").and_then(|value| value.file_in(folder));
    let of_regions = match names {
        ClientNames::KmsAndCommon => read_names(&mut table, "regions", parse_region),
        ClientNames::Common => Some(Vec::new()),
    };
    let others = read_names(&mut table, "common_names", parse_common_name);
    if [&of_regions, &others].iter().all(|names| names.as_ref().is_some_and(Vec::is_empty)) {
        let keys = if names == ClientNames::Common { "common_names" } else { "regions or common_names" };
        table.fault(format!(
            "{keys} must say whose certificates are accepted: an authority has many customers"
        ));
    }
    table.finish();
    let common_names = [of_regions?, others?].concat();
    Some(ClientCertificates { ca_file: ca_file?, common_names })
        .filter(|clients| !clients.common_names.is_empty())
}

fn read_names(
    table: &mut Table<'_>,
    key: &'static str,
    parse: fn(&str) -> Result<String, &'static str>,
) -> Option<Vec<String>> {
    let Some(value) = table.take(key) else { return Some(Vec::new()) };
    let names = value.array();
    if names.is_empty() {
        value.fault("must not be empty where it is given");
    }
    let names: Vec<_> = names.iter().map(|name| name.parsed(parse)).collect();
    names.into_iter().collect()
}

/// KMS's common name in a Region: what is no Region would never be shown by any client.
fn parse_region(text: &str) -> Result<String, &'static str> {
    let parts: Vec<_> = text.split('-').collect();
    let is_word = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    match parts.as_slice() {
        [words @ .., number]
            if words.len() >= 2
                && words.iter().all(is_word)
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            Ok(kms_common_name(text))
        }
        _ => Err("must be an AWS Region, such as \"eu-central-1\""),
    }
}

fn parse_common_name(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains('*') {
        return Err("must be a whole common name: it is compared exactly, and * stands for nothing");
    }
    Ok(text.to_owned())
}

/// The host of a XksProxyUriEndpoint, which some will write whole.
fn parse_host_name(text: &str) -> Result<String, &'static str> {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.contains('.') && text.split('.').all(is_label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("must be the host name of the XksProxyUriEndpoint alone, such as \"xks.example.com\"")
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
