//! An XKS proxy with keys in memory that keeps every rule of the specification that can be seen from outside, until one
//! [`Fault`] is switched on: then it makes that one mistake. A conformance suite that passes the proxy without a fault and
//! notices each one with a fault is worth trusting.
//!
//! Each fault is one `if proxy.has(Fault::…)` where a right proxy does the right thing. Nothing here depends on the
//! project's own proxy, whose bugs would be shared. What cannot be seen from outside it leaves out, such as logs.
//! Its secrets are known to the world; it guards nothing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test proxy that cannot start is a failed test"
)]

mod body;
mod both_lengths;
mod connection;
mod control;
mod fault;
mod hello;
mod hsm;
mod operations;
mod pki;
mod proxy;
mod service;
pub mod setup;
mod sigv4;
mod tls;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use fault::Fault;
pub use hsm::HsmState;
pub use pki::{ClientIdentity, Identity};
pub use setup::{Accepted, Credential, HOST, STORES, Store, keys};

use crate::pki::Pki;
use crate::proxy::Proxy;

/// A running proxy on loopback. Dropping it ends it and its connections.
pub struct Saboteur {
    proxy: Arc<Proxy>,
    addr: SocketAddr,
    mtls_addr: SocketAddr,
    control_addr: SocketAddr,
    _listeners: JoinSet<()>,
}

impl Saboteur {
    /// Starts one on free ports, with one mistake or none. Every one of a process has the same certificates.
    pub async fn start(fault: Option<Fault>) -> Self {
        let proxy = Arc::new(Proxy::new(fault));
        let [main, mtls, control] = [bind().await, bind().await, bind().await];
        let addr_of = |listener: &TcpListener| listener.local_addr().unwrap();
        let (addr, mtls_addr, control_addr) = (addr_of(&main), addr_of(&mtls), addr_of(&control));
        let mut listeners = JoinSet::new();
        for (listener, is_mtls) in [(main, false), (mtls, true)] {
            let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&proxy, is_mtls)));
            listeners.spawn(connection::listen(Arc::clone(&proxy), listener, acceptor));
        }
        listeners.spawn(control::listen(Arc::clone(&proxy), control));
        Self { proxy, addr, mtls_addr, control_addr, _listeners: listeners }
    }

    /// Where it serves; its name there is [`HOST`].
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it serves the same to clients that show [`ClientIdentity::Kms`].
    #[must_use]
    pub fn mtls_addr(&self) -> SocketAddr {
        self.mtls_addr
    }

    /// Where hook commands reach it, by plain HTTP: `POST /credentials/first`, `/credentials/both`,
    /// `/credentials/next`, `/hsm/healthy`, `/hsm/failing`, `/hsm/silent`,
    /// `/hsm/corrupting`.
    #[must_use]
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// The root of the server's certificate and of those of clients, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &'static str {
        &Pki::shared().root_pem
    }

    /// A certificate for a client to show.
    #[must_use]
    pub fn client_identity(&self, which: ClientIdentity) -> &'static Identity {
        Pki::shared().client(which)
    }

    /// Rotates the credentials of both stores. At the start the first are accepted.
    pub fn accept(&self, accepted: Accepted) {
        self.proxy.accept(accepted);
    }

    /// Has the HSM work, fail, fall silent or corrupt what it encrypts.
    pub fn set_hsm(&self, state: HsmState) {
        self.proxy.hsm.set_state(state);
    }

    /// Writes `ca.pem`, and `<name>.pem` and `<name>.key` of every [`ClientIdentity`], into `folder`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_certificates(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("ca.pem"), self.ca_pem())?;
        for which in ClientIdentity::ALL {
            let identity = self.client_identity(which);
            std::fs::write(folder.join(format!("{}.pem", which.name())), &identity.chain_pem)?;
            std::fs::write(folder.join(format!("{}.key", which.name())), &identity.key_pem)?;
        }
        Ok(())
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}
