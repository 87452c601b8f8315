//! A proxy whose configuration a test replaces.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::request::{decrypt_body, encrypt_body};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, SoftHsm, Store, XksRequest};

/// Reloads are the test's doing alone.
pub(crate) const UNWATCHED: &str = "[reload]\nwatch = false\n";

/// What a reload may come to.
const OUTCOMES: [&str; 6] = ["ok", "faulty", "needs_restart", "keys_lost", "unsafe_versions", "failed"];

pub(crate) struct Reloading {
    pub(crate) proxy: Proxy,
    /// As it was started.
    pub(crate) setup: Setup,
}

impl Reloading {
    /// A proxy on a token with the development keys that does not look at its files unless it is told to.
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::start_on(setup, SoftHsm::with_keys()).await
    }

    pub(crate) async fn start_on(setup: Setup, token: SoftHsm) -> Self {
        let setup = Setup { more: setup.more + UNWATCHED, ..setup };
        Self { proxy: Proxy::start_on(&setup, token.into()).await, setup }
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.proxy.folder().join("xks-proxy.toml")
    }

    /// Puts another configuration in the place of the one that is there.
    pub(crate) fn write(&self, setup: &Setup) {
        let _ = setup.write(self.proxy.folder(), &self.proxy.token);
    }

    /// The same with a part of the text replaced.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config_file()).unwrap();
        assert!(text.contains(from), "{from} is not in the configuration");
        fs::write(self.config_file(), text.replacen(from, to, 1)).unwrap();
    }

    async fn counts(&self) -> [f64; OUTCOMES.len()] {
        let (_, text) = self.proxy.admin("/metrics").await;
        OUTCOMES.map(|outcome| {
            let name = format!("xks_config_reloads_total{{outcome=\"{outcome}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name));
            value.map_or(0.0, |value| value.parse().unwrap())
        })
    }

    /// Runs `ask` and waits for the one reload that it causes; what came of it.
    pub(crate) async fn outcome_of(&self, ask: impl FnOnce(&Self)) -> &'static str {
        let before = self.counts().await;
        ask(self);
        self.next_outcome(before).await
    }

    async fn next_outcome(&self, before: [f64; OUTCOMES.len()]) -> &'static str {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.counts().await;
            if let Some(outcome) = (0..OUTCOMES.len()).find(|outcome| now[*outcome] > before[*outcome]) {
                return OUTCOMES[outcome];
            }
            assert!(Instant::now() < until, "no reload\n{}", self.proxy.all_output());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Reloads by SIGHUP; what came of it.
    pub(crate) async fn reload(&self) -> &'static str {
        self.outcome_of(|this| this.proxy.signal("HUP")).await
    }

    /// Writes a configuration and reloads; what came of it.
    pub(crate) async fn reload_with(&self, setup: &Setup) -> &'static str {
        self.write(setup);
        self.reload().await
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(main_store()).await
    }

    pub(crate) async fn client_of(&self, store: Store) -> Client {
        Client { connection: self.proxy.connect(Http::Two).await, store }
    }

    /// The lines of `/readyz?verbose`.
    pub(crate) async fn verbose(&self) -> String {
        self.proxy.admin("/readyz?verbose").await.1
    }
}

/// A client of one store on one connection.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) store: Store,
}

impl Client {
    pub(crate) async fn encrypt(&mut self, key: &str) -> Answer {
        let body = encrypt_body(b"x", None, false);
        self.connection.send(&XksRequest::encrypt(&self.store, key, &body)).await
    }

    pub(crate) async fn decrypt(&mut self, key: &str, encrypted: &serde_json::Value) -> Answer {
        let body = decrypt_body(encrypted, None);
        self.connection.send(&XksRequest::decrypt(&self.store, key, &body)).await
    }

    pub(crate) async fn health(&mut self) -> Answer {
        self.connection.send(&XksRequest::health(&self.store)).await
    }
}

/// A listed key under a label.
pub(crate) fn listed(id: &str, label: &str) -> String {
    format!("[[stores.keys]]\nexternal_key_id = \"{id}\"\nlabel = \"{label}\"\n")
}

/// A credential of the store before.
pub(crate) fn credential(store: &Store) -> String {
    format!(
        "[[stores.credentials]]\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
        store.signing.access_key_id, store.signing.secret_access_key
    )
}

/// Store `main` under other credentials.
pub(crate) fn main_store_as(number: usize) -> Store {
    let id = format!("ROTATEDTESTKEYID234567{}", ["ABCD", "ABCE", "ABCF", "ABCG"][number % 4]);
    let secret = format!("rotated+secret/rotated+secret/rotated+secre{}", number % 4);
    let signing = xks_harness::Signing::new(&id, &secret);
    Store { signing, ..main_store() }
}
