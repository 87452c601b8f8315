//! `[admin]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::reader::{Section, Table, Value};
use super::server::{ClientNames, read_tls};
use crate::tls::{CertificateFiles, ListenerTls};

/// Loopback: what the admin listener shows is for the operator alone.
pub(super) const DEFAULT_ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Where and how operators connect.
#[derive(Debug)]
pub struct AdminSettings {
    /// The address.
    pub listen: SocketAddr,
    /// TLS; plain HTTP without.
    pub tls: Option<AdminTls>,
}

/// How the admin listener speaks TLS.
#[derive(Debug)]
pub struct AdminTls {
    /// HTTP/1.1 alone.
    pub listener: ListenerTls,
    /// Where the certificates came from.
    pub certificates: Vec<CertificateFiles>,
}

pub(super) fn read(section: Section<'_>, folder: &Path) -> AdminSettings {
    let mut settings = AdminSettings { listen: DEFAULT_ADMIN_LISTEN, tls: None };
    let Section::Present(mut table) = section else { return settings };
    let value = table.take("listen");
    let listen = value.as_ref().and_then(Value::socket_address);
    let is_insecure_ok = table.take("insecure_ok").and_then(|value| value.boolean()).unwrap_or(false);
    let has_tls = table.take("certificates").is_some();
    settings.tls = if has_tls { read_admin_tls(&mut table, folder) } else { None };
    if !has_tls && let Some(clients) = table.take("client_certificates") {
        clients.fault("needs certificates beside it: in plain HTTP nobody shows any");
    }
    // Whoever reaches this listener reads the metrics: in plain HTTP, that must be meant.
    if let (Some(value), Some(address)) = (value, listen)
        && !address.ip().to_canonical().is_loopback()
        && !has_tls
        && !is_insecure_ok
    {
        value.fault(
            "is plain HTTP that others can reach: use a loopback address, give it certificates, or say insecure_ok = true",
        );
    }
    table.finish();
    settings.listen = listen.unwrap_or(DEFAULT_ADMIN_LISTEN);
    settings
}

fn read_admin_tls(table: &mut Table<'_>, folder: &Path) -> Option<AdminTls> {
    let (listener, certificates, _) = read_tls(table, folder, ClientNames::Common)?;
    Some(AdminTls { listener: listener.http1_only(), certificates })
}
