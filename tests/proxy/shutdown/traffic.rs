//! Clients that go on all through a shutdown, behind a load balancer that polls `/ping`: none of them sees a failure.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use xks_harness::client::plain_get;
use xks_harness::{Connection, Http, Proxy, Setup};

use super::{assert_clean_exit, encrypt};

/// Between two polls of a load balancer.
const POLL: Duration = Duration::from_millis(50);
/// Requests that must have been served by the second proxy alone before a test ends.
const AFTERWARDS: usize = 100;

/// Two proxies, and what the load balancer thinks of the first.
struct Fleet {
    first: SocketAddr,
    second: SocketAddr,
    first_is_healthy: AtomicBool,
    is_over: AtomicBool,
    served: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// kmsRequestIds of requests of which the client was told that they were not processed.
    not_processed: Mutex<Vec<String>>,
}

impl Fleet {
    fn new(first: &Proxy, second: &Proxy) -> Arc<Self> {
        Arc::new(Self {
            first: first.address,
            second: second.address,
            first_is_healthy: AtomicBool::new(true),
            is_over: AtomicBool::new(false),
            served: AtomicUsize::new(0),
            failures: Mutex::default(),
            not_processed: Mutex::default(),
        })
    }

    /// Where the load balancer sends new connections.
    fn target(&self) -> SocketAddr {
        if self.first_is_healthy.load(Ordering::Relaxed) { self.first } else { self.second }
    }

    fn succeed(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Waits until that many more requests have been served.
    async fn wait_for(&self, more: usize) {
        let until = self.served.load(Ordering::Relaxed) + more;
        while self.served.load(Ordering::Relaxed) < until {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Two answers other than 200 in a row make a target unhealthy; connections that are open stay open.
async fn poll_ping(fleet: Arc<Fleet>, ping: SocketAddr) {
    let mut misses = 0;
    while misses < 2 {
        misses = if plain_get(ping, "/ping").await.0 == 200 { 0 } else { misses + 1 };
        sleep(POLL).await;
    }
    fleet.first_is_healthy.store(false, Ordering::Relaxed);
}

/// Stops the first proxy under the clients' load and ends with the clients.
async fn shut_down_under(server: &str, spawn_clients: impl Fn(&Arc<Fleet>, &mut JoinSet<()>)) {
    let setup = Setup { server: server.to_owned(), ..Setup::default() };
    let (mut first, second) = (Proxy::start(&setup).await, Proxy::start(&setup).await);
    let fleet = Fleet::new(&first, &second);
    let mut clients = JoinSet::new();
    spawn_clients(&fleet, &mut clients);
    clients.spawn(poll_ping(Arc::clone(&fleet), first.ping));
    fleet.wait_for(AFTERWARDS).await;
    first.signal("TERM");
    assert_clean_exit(&mut first).await;
    fleet.wait_for(AFTERWARDS).await;
    fleet.is_over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let failures = fleet.failures.lock().unwrap();
    assert!(
        failures.is_empty(),
        "{} failures: {:?}\n{}",
        failures.len(),
        failures.first(),
        first.all_output()
    );
}

/// A new connection for each request.
async fn connect_again_and_again(fleet: Arc<Fleet>, http: Http) {
    while !fleet.is_over() {
        let target = fleet.target();
        let answer = async {
            let mut connection =
                Connection::try_open(target, http).await.map_err(|error| error.to_string())?;
            connection.try_send(&encrypt()).await.map_err(|error| format!("{error:?}"))
        };
        match answer.await {
            Ok(answer) if answer.status == 200 => fleet.succeed(),
            Ok(answer) => fleet.fail(format!("{http:?}: {answer:?}")),
            Err(error) => fleet.fail(format!("{http:?} to {target}: {error}")),
        }
    }
}

/// One connection for as long as it lasts. It is replaced when the proxy has said that it closes, and a request that
/// was not processed for that reason goes to the next one.
async fn keep_alive(fleet: Arc<Fleet>, http: Http, pause: Duration) {
    while !fleet.is_over() {
        let target = fleet.target();
        match Connection::try_open(target, http).await {
            Ok(connection) => use_up(&fleet, connection, pause).await,
            Err(error) => fleet.fail(format!("{http:?} to {target}: {error}")),
        }
    }
}

async fn use_up(fleet: &Fleet, mut connection: Connection, pause: Duration) {
    while !fleet.is_over() && !connection.is_closed() {
        let request = encrypt();
        match connection.try_send(&request).await {
            Ok(answer) if answer.status == 200 => {
                fleet.succeed();
                if answer.headers.get("connection").is_some_and(|value| value == "close") {
                    return;
                }
            }
            Err(error) if is_not_processed(&error) => {
                let body: Value = serde_json::from_slice(&request.body).unwrap();
                let id = body["requestMetadata"]["kmsRequestId"].as_str().unwrap();
                fleet.not_processed.lock().unwrap().push(id.to_owned());
                return;
            }
            other => return fleet.fail(format!("{other:?}")),
        }
        sleep(pause).await;
    }
}

/// The connection had ended before the request was sent, or a GOAWAY says that the request comes after the last that
/// is processed: a client sends it elsewhere.
pub(crate) fn is_not_processed(error: &hyper::Error) -> bool {
    error.is_canceled()
        || error.is_closed()
        || format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_connect_all_through_a_shutdown_see_no_failure() {
    shut_down_under("lame_duck_secs = 2", |fleet, clients| {
        for http in [Http::One, Http::Two, Http::One, Http::Two] {
            clients.spawn(connect_again_and_again(Arc::clone(fleet), http));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_keep_their_connections_all_through_a_shutdown_see_no_failure() {
    shut_down_under("lame_duck_secs = 2", |fleet, clients| {
        for http in [Http::One, Http::Two, Http::One, Http::Two] {
            clients.spawn(keep_alive(Arc::clone(fleet), http, Duration::ZERO));
            // Now and then idle, but not for as long as an idle connection is given.
            clients.spawn(keep_alive(Arc::clone(fleet), http, Duration::from_millis(50)));
        }
    })
    .await;
}
