//! Reloads while clients send: no request of theirs fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use xks_harness::client::tls_config_showing;
use xks_harness::pki::{PemPair, TestCa};
use xks_harness::proxy::main_store;
use xks_harness::request::{decrypt_body, encrypt_body};
use xks_harness::{Connection, Http, Pki, Proxy, Setup, Store, XksRequest};

use super::rig::{Reloading, credential, listed, main_store_as};
use crate::shutdown::traffic::is_not_processed;

/// Reloads, as fast as they complete and requests are served.
const RELOADS: usize = 1000;

/// Clients that encrypt and decrypt without a pause, all but the last on one connection for as long as that lasts.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<(JoinHandle<()>, Arc<AtomicUsize>)>,
    turned_away: Arc<AtomicUsize>,
}

impl Load {
    /// The clients show a certificate, where there is one.
    async fn start(
        proxy: &Proxy,
        shown: Option<&PemPair>,
        store_now: impl Fn() -> Store + Clone + Send + Sync + 'static,
    ) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let turned_away = Arc::new(AtomicUsize::new(0));
        let mut clients = Vec::new();
        for (number, http) in [Http::One, Http::Two, Http::One, Http::Two, Http::One].into_iter().enumerate()
        {
            let served = Arc::new(AtomicUsize::new(0));
            let client = Client {
                address: proxy.address,
                http,
                config: tls_config_showing(http, shown),
                is_fickle: number == 4,
                connection: None,
                turned_away: Arc::clone(&turned_away),
            };
            let life = send(client, store_now.clone(), Arc::clone(&is_over), Arc::clone(&served));
            clients.push((tokio::spawn(life), served));
        }
        Self { is_over, clients, turned_away }
    }

    /// Waits until each client has had two more pairs of answers: the second pair was begun later than this.
    async fn go_on(&self) {
        for (client, served) in &self.clients {
            let until = served.load(Ordering::Relaxed) + 4;
            while served.load(Ordering::Relaxed) < until && !client.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// How many requests have been served.
    fn served(&self) -> usize {
        self.clients.iter().map(|(_, served)| served.load(Ordering::Relaxed)).sum()
    }

    /// Waits until more than so many have been.
    async fn serve_more_than(&self, before: usize) {
        while self.served() <= before && !self.clients.iter().any(|(client, _)| client.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Fails if any request has; how many there were.
    async fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        let mut total = 0;
        for (client, served) in self.clients {
            client.await.unwrap();
            total += served.load(Ordering::Relaxed);
        }
        total
    }
}

struct Client {
    address: SocketAddr,
    http: Http,
    /// Sessions are resumed.
    config: ClientConfig,
    /// It wants a new connection for each request.
    is_fickle: bool,
    connection: Option<Connection>,
    /// How often a connection ended before it had served anything.
    turned_away: Arc<AtomicUsize>,
}

impl Client {
    /// Sends a request until it is served: on another connection where the proxy has said that it takes no more on this one, or
    /// has broken off a handshake whose rules have changed.
    async fn send(&mut self, request: &XksRequest) -> Value {
        loop {
            let (mut connection, is_new) = match self.connection.take() {
                Some(connection) if !connection.is_closed() => (connection, false),
                _ => match Connection::open_with(self.address, self.http, self.config.clone()).await {
                    Ok(connection) => (connection, true),
                    Err(_) => {
                        self.turned_away.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                },
            };
            match connection.try_send(request).await {
                Ok(answer) => {
                    let is_over = answer.headers.get("connection").is_some_and(|value| value == "close");
                    self.connection = Some(connection).filter(|_| !is_over && !self.is_fickle);
                    return answer.ok();
                }
                // With TLS 1.3 the client's handshake ends before the proxy's.
                Err(_) if is_new => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => assert!(self.http == Http::Two && is_not_processed(&error), "{error:?}"),
            }
        }
    }
}

async fn send(
    mut client: Client,
    store_now: impl Fn() -> Store + Send,
    is_over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
) {
    while !is_over.load(Ordering::Relaxed) {
        let body = encrypt_body(b"under load", None, true);
        let made = client.send(&XksRequest::encrypt(&store_now(), "demo", &body)).await;
        let body = decrypt_body(&made, None);
        client.send(&XksRequest::decrypt(&store_now(), "demo", &body)).await;
        served.fetch_add(2, Ordering::Relaxed);
    }
}

/// What is changed besides the configuration itself: certificate, policies, roots of clients.
struct Folder {
    folder: TempDir,
    shown: PemPair,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ca, other) = (TestCa::new("clients"), TestCa::new("other clients"));
        let shown = ca.issue(&["tester"], SystemTime::now() + Duration::from_secs(24 * 3600));
        let certificate = Pki::shared().another();
        let files = [
            ("other.pem", certificate.certificate),
            ("other.key", certificate.key),
            ("main.cedar", "@id(\"all\") permit(principal, action, resource);".to_owned()),
            ("clients.pem", ca.pem()),
            ("more-clients.pem", ca.pem() + &other.pem()),
        ];
        files.iter().for_each(|(name, content)| std::fs::write(folder.path().join(name), content).unwrap());
        Self { folder, shown }
    }

    /// As TOML.
    fn path(&self, name: &str) -> String {
        format!("{:?}", self.folder.path().join(name))
    }

    /// Lines of `[server]`.
    fn admitting(&self, roots: &str) -> String {
        let roots = self.path(roots);
        format!(
            "lame_duck_secs = 0\nclient_certificates = {{ ca_file = {roots}, common_names = [\"tester\"] }}"
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reloads_under_load_fail_no_request() {
    let version = |number: u8, label: &str, state: &str| {
        format!("[[stores.keys.versions]]\nnumber = {number}\nlabel = \"{label}\"\nstate = \"{state}\"\n")
    };
    let rotated = |states: [&str; 2]| {
        let entry = "[[stores.keys]]\nexternal_key_id = \"demo\"\n";
        format!("{entry}{}{}", version(1, "demo", states[0]), version(2, "demo-2", states[1]))
    };
    // A ciphertext of version 2 may be on its way at any time: it stays.
    let folder = Folder::new();
    let (server, keys) = (folder.admitting("clients.pem"), rotated(["primary", "retired"]));
    let reloading = Reloading::start(Setup { server, keys, ..Setup::default() }).await;
    let load = Load::start(&reloading.proxy, Some(&folder.shown), main_store).await;
    let base = &reloading.setup;
    let setups = [
        base.clone(),
        Setup { keys: base.keys.clone() + &listed("other", "aes-128"), ..base.clone() },
        Setup { quota: "requests_per_second = 900000".to_owned(), ..base.clone() },
        Setup { keys: rotated(["primary", "staged"]), ..base.clone() },
        Setup { keys: rotated(["retired", "primary"]), ..base.clone() },
        Setup { store: credential(&main_store_as(1)), ..base.clone() },
        Setup { nested_rule: "{ label_prefix = \"nest-\" }".to_owned(), ..base.clone() },
        Setup {
            certificates: format!(
                "[{{ chain_file = {}, key_file = {} }}]",
                folder.path("other.pem"),
                folder.path("other.key")
            ),
            ..base.clone()
        },
        Setup {
            authorization: format!("authorization = \"cedar\"\npolicies = [{}]", folder.path("main.cedar")),
            ..base.clone()
        },
        Setup { server: folder.admitting("more-clients.pem"), ..base.clone() },
    ];
    load.go_on().await;
    for n in 0..RELOADS {
        let before = load.served();
        assert_eq!(reloading.reload_with(&setups[n % setups.len()]).await, "ok", "{n}");
        // No configuration goes by without a request.
        load.serve_more_than(before).await;
    }
    load.go_on().await;
    let (clients, turned_away) = (load.clients.len(), Arc::clone(&load.turned_away));
    let served = load.end().await;
    assert!(served > RELOADS, "{served}");
    // There and back again; each breaks off one handshake of a client at most.
    let changes_of_trust = 2 * RELOADS.div_ceil(setups.len());
    let turned_away = turned_away.load(Ordering::Relaxed);
    assert!(turned_away <= changes_of_trust * clients, "{turned_away}");
    assert_eq!(reloading.proxy.metric("xks_config_generation").await, (RELOADS + 1) as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_rotated_under_load_without_a_failed_request() {
    let reloading = Reloading::start(Setup::default()).await;
    let current = Arc::new(AtomicUsize::new(0));
    let (first, now) = (main_store(), Arc::clone(&current));
    let store_of = move |number: usize| if number == 0 { first.clone() } else { main_store_as(number) };
    let of = store_of.clone();
    let load = Load::start(&reloading.proxy, None, move || of(now.load(Ordering::SeqCst))).await;
    for number in 0..8 {
        let (old, new) = (store_of(number), store_of(number + 1));
        reloading.edit(&credential(&old), &(credential(&old) + "\n" + &credential(&new)));
        assert_eq!(reloading.reload().await, "ok", "{number}: both are known");
        current.store(number + 1, Ordering::SeqCst);
        // Each client has begun its next request with the new one.
        load.go_on().await;
        reloading.edit(&credential(&old), "");
        assert_eq!(reloading.reload().await, "ok", "{number}: the old one is gone");
        load.go_on().await;
    }
    assert_eq!(load.turned_away.load(Ordering::Relaxed), 0);
    load.end().await;
    let last = reloading.client_of(store_of(7)).await.encrypt("demo").await;
    assert_eq!(last.error(), (401, "AuthenticationFailedException".to_owned()));
}
