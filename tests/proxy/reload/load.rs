//! Reloads while clients send: no request of theirs fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use xks_harness::proxy::main_store;
use xks_harness::request::{decrypt_body, encrypt_body};
use xks_harness::{Connection, Http, Proxy, Setup, Store, XksRequest};

use super::rig::{Reloading, credential, listed, main_store_as};

/// Reloads, as fast as they complete and requests are served.
const RELOADS: usize = 1000;

/// Clients that encrypt and decrypt without a pause, each on a connection of its own.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<(JoinHandle<()>, Arc<AtomicUsize>)>,
}

impl Load {
    async fn start(proxy: &Proxy, store_now: impl Fn() -> Store + Clone + Send + Sync + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for http in [Http::One, Http::Two, Http::One, Http::Two] {
            let served = Arc::new(AtomicUsize::new(0));
            let connection = proxy.connect(http).await;
            let life = send(connection, store_now.clone(), Arc::clone(&is_over), Arc::clone(&served));
            clients.push((tokio::spawn(life), served));
        }
        Self { is_over, clients }
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

async fn send(
    mut connection: Connection,
    store_now: impl Fn() -> Store + Send,
    is_over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
) {
    while !is_over.load(Ordering::Relaxed) {
        let body = encrypt_body(b"under load", None, true);
        let made = connection.send(&XksRequest::encrypt(&store_now(), "demo", &body)).await.ok();
        let body = decrypt_body(&made, None);
        connection.send(&XksRequest::decrypt(&store_now(), "demo", &body)).await.ok();
        served.fetch_add(2, Ordering::Relaxed);
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
    let base = Setup { keys: rotated(["primary", "retired"]), ..Setup::default() };
    let reloading = Reloading::start(base).await;
    let load = Load::start(&reloading.proxy, main_store).await;
    let base = &reloading.setup;
    let setups = [
        base.clone(),
        Setup { keys: base.keys.clone() + &listed("other", "aes-128"), ..base.clone() },
        Setup { quota: "requests_per_second = 900000".to_owned(), ..base.clone() },
        Setup { keys: rotated(["primary", "staged"]), ..base.clone() },
        Setup { keys: rotated(["retired", "primary"]), ..base.clone() },
        Setup { store: credential(&main_store_as(1)), ..base.clone() },
        Setup { nested_rule: "{ label_prefix = \"nest-\" }".to_owned(), ..base.clone() },
    ];
    load.go_on().await;
    for n in 0..RELOADS {
        let before = load.served();
        assert_eq!(reloading.reload_with(&setups[n % setups.len()]).await, "ok", "{n}");
        // No configuration goes by without a request.
        load.serve_more_than(before).await;
    }
    load.go_on().await;
    let served = load.end().await;
    assert!(served > RELOADS, "{served}");
    assert_eq!(reloading.proxy.metric("xks_config_generation").await, (RELOADS + 1) as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_rotated_under_load_without_a_failed_request() {
    let reloading = Reloading::start(Setup::default()).await;
    let current = Arc::new(AtomicUsize::new(0));
    let (first, now) = (main_store(), Arc::clone(&current));
    let store_of = move |number: usize| if number == 0 { first.clone() } else { main_store_as(number) };
    let of = store_of.clone();
    let load = Load::start(&reloading.proxy, move || of(now.load(Ordering::SeqCst))).await;
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
    load.end().await;
    let last = reloading.client_of(store_of(7)).await.encrypt("demo").await;
    assert_eq!(last.error(), (401, "AuthenticationFailedException".to_owned()));
}
