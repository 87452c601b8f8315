//! When a connection has to make place for a new one though it works: at its greatest age, or because it was admitted by
//! rules that hold no more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::tls::ListenerTls;

/// Connections that were opened together are retired over this part of the greatest age, in thousandths.
const SPREAD_PERMILLE: u32 = 100;

/// How clients are admitted: the TLS configuration, and which rules of trust it stands for.
pub struct CurrentTls {
    current: ArcSwap<Admission>,
    /// Number of the rules that hold.
    rules: watch::Sender<u64>,
}

/// What one connection is admitted by.
#[derive(Clone)]
pub(super) struct Admission {
    pub(super) tls: Arc<ListenerTls>,
    rules: u64,
}

impl CurrentTls {
    /// The first configuration.
    #[must_use]
    pub fn new(tls: ListenerTls) -> Self {
        let admission = Admission { tls: Arc::new(tls), rules: 0 };
        Self { current: ArcSwap::from_pointee(admission), rules: watch::channel(0).0 }
    }

    /// New connections get this configuration. Where `trust_changes`, connections that were admitted before are retired.
    pub fn publish(&self, tls: ListenerTls, trust_changes: bool) {
        let rules = self.current.load().rules + u64::from(trust_changes);
        self.current.store(Arc::new(Admission { tls: Arc::new(tls), rules }));
        // After the configuration: whoever is admitted by the old one from here on is retired at once.
        self.rules.send_replace(rules);
    }

    pub(super) fn admit(&self) -> Admission {
        Admission::clone(&self.current.load())
    }
}

/// When one connection is retired.
pub(super) struct Retirement {
    too_old_at: Instant,
    admitted_by: u64,
    rules: watch::Receiver<u64>,
}

impl Retirement {
    pub(super) fn new(
        tls: &CurrentTls,
        admission: &Admission,
        accepted_at: Instant,
        max_age: Duration,
        peer: SocketAddr,
    ) -> Self {
        // A client's ports differ: no other randomness is needed.
        let early = max_age * (u32::from(peer.port()) % SPREAD_PERMILLE) / 1000;
        Self {
            too_old_at: accepted_at + max_age - early,
            admitted_by: admission.rules,
            rules: tls.rules.subscribe(),
        }
    }

    /// Waits until the rules change that the connection was, or would be, admitted by.
    pub(super) async fn trust_changed(&self) {
        let mut rules = self.rules.clone();
        if rules.wait_for(|rules| *rules > self.admitted_by).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the connection is to be retired; returns why.
    pub(super) async fn due(&self) -> &'static str {
        tokio::select! {
            () = self.trust_changed() => "trust_changed",
            () = sleep_until(self.too_old_at.into()) => "max_age",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn config() -> ListenerTls {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let resolver = rustls::server::ResolvesServerCertUsingSni::new();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver))
            .into()
    }

    fn retirement(tls: &CurrentTls, admission: &Admission, max_age: Duration) -> Retirement {
        Retirement::new(tls, admission, clock::now(), max_age, ([127, 0, 0, 1], 40_099).into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_trust_retires_who_was_admitted_before_and_nobody_else() {
        let tls = CurrentTls::new(config());
        let age = Duration::from_secs(900);
        let (before, handshaking) = (retirement(&tls, &tls.admit(), age), tls.admit());
        tls.publish(config(), false);
        assert!(tokio::time::timeout(Duration::from_secs(60), before.due()).await.is_err());
        tls.publish(config(), true);
        assert_eq!(before.due().await, "trust_changed");
        assert_eq!(retirement(&tls, &handshaking, age).due().await, "trust_changed");
        let after = retirement(&tls, &tls.admit(), age);
        assert!(tokio::time::timeout(Duration::from_secs(60), after.due()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn none_grows_older_than_allowed() {
        let tls = CurrentTls::new(config());
        let began_at = tokio::time::Instant::now();
        let retirement = retirement(&tls, &tls.admit(), Duration::from_secs(900));
        assert_eq!(retirement.due().await, "max_age");
        let age = began_at.elapsed();
        assert!(age <= Duration::from_secs(900) && age > Duration::from_secs(800), "{age:?}");
    }
}
