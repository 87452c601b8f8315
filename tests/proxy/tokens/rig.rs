//! A proxy on a token that misbehaves on command, and a client that knows what to expect of it.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xks_harness::binary::program;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::token::{PIN, SO_PIN};
use xks_harness::{
    Answer, Connection, Faults, Function, Http, Proxy, Setup, Signing, SoftHsm, Store, XksRequest,
};

/// What every client encrypts.
pub(crate) const PLAINTEXT: &[u8] = b"what the client wants to keep";
/// What it authenticates along.
pub(crate) const AAD: &[u8] = b"the client's context";

/// Deadlines as they are unless the configuration sets others: 200 ms, 145 ms for a connection's first request.
pub(crate) const DEFAULT_DEADLINES: &str = "";

/// How long it may take until a fault that is over is overcome. Pauses between tries are 5 s at most.
pub(crate) const RECOVERY: Duration = Duration::from_secs(20);

/// A proxy and the faults between it and its token.
pub(crate) struct Rig {
    pub(crate) faults: Faults,
    pub(crate) proxy: Proxy,
}

impl Rig {
    /// A proxy that is ready, on a token with the development keys.
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::start_on(setup, SoftHsm::with_keys()).await
    }

    /// A proxy that is ready and has indexed the keys of the token given.
    pub(crate) async fn start_on(setup: Setup, token: SoftHsm) -> Self {
        let rig = Self::start_with_faults(setup, token, "");
        rig.proxy.wait_until_ready().await;
        rig.settle().await;
        rig
    }

    /// A proxy that meets faults from its first call on; it may never become ready.
    pub(crate) fn start_with_faults(setup: Setup, token: SoftHsm, rules: &str) -> Self {
        let faults = Faults::new();
        faults.set(rules);
        let proxy = Proxy::start_without_waiting(&faults.between(setup), Arc::new(token));
        Self { faults, proxy }
    }

    /// Waits until the index of keys has been made. A key that the index lacks is searched between two steps of making
    /// it, and each step reads some key: once none was read between two searches, all have been.
    pub(crate) async fn settle(&self) {
        let mut client = self.client_of(nested_store()).await;
        let mut before = None;
        let until = Instant::now() + RECOVERY;
        for attempt in 0.. {
            let absent = client.metadata(&format!("not-there-{attempt}")).await;
            if is_internal(&absent) {
                // Another token was ready first.
                assert!(Instant::now() < until, "{}", self.last_lines());
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            assert_eq!(absent.error(), (404, "KeyNotFoundException".to_owned()));
            let read = self.faults.calls(Function::GetAttributeValue);
            if before.replace(read) == Some(read) {
                return;
            }
        }
    }

    /// A client of store `main` on a connection of its own.
    pub(crate) async fn client(&self) -> Client {
        self.client_of(main_store()).await
    }

    /// A client of a store on a connection of its own.
    pub(crate) async fn client_of(&self, store: Store) -> Client {
        let connection = self.proxy.connect(Http::One).await;
        Client { connection, store, request_id: String::new() }
    }

    /// Clients of store `main`.
    pub(crate) async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    /// Encrypts until it works, and returns what came of it.
    ///
    /// What a fault did may still be under way in another session, so that even after a success one more request may
    /// fail.
    pub(crate) async fn wait_until_it_encrypts(&self) -> Value {
        let mut client = self.client().await;
        let until = Instant::now() + RECOVERY;
        loop {
            let answer = client.encrypt("demo").await;
            if answer.status == 200 {
                return answer.json();
            }
            let told = format!("still {:?}\n{}", answer.error(), self.last_lines());
            assert!(Instant::now() < until, "{told}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Encrypts and decrypts until both work.
    pub(crate) async fn wait_until_it_serves(&self) {
        let encrypted = self.wait_until_it_encrypts().await;
        self.wait_until_it_decrypts(&encrypted).await;
    }

    /// Decrypts until it works; until then the token failed, and never the ciphertext.
    pub(crate) async fn wait_until_it_decrypts(&self, encrypted: &Value) {
        let mut client = self.client().await;
        let until = Instant::now() + RECOVERY;
        loop {
            let answer = client.decrypt("demo", encrypted).await;
            if answer.status == 200 {
                assert_eq!(bytes_of(&answer.json()["plaintext"]), PLAINTEXT);
                return;
            }
            assert!(is_internal(&answer), "{:?}", answer.error());
            assert!(Instant::now() < until, "still {:?}\n{}", answer.error(), self.last_lines());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until GetHealthStatus of store `main` says so.
    pub(crate) async fn wait_for_health(&self, wanted: &str) {
        let until = Instant::now() + RECOVERY;
        let mut client = self.client().await;
        loop {
            let answer = client.health().await;
            let status = answer.json()["ekmFleetDetails"][0]["healthStatus"].clone();
            if status == wanted {
                return;
            }
            assert!(Instant::now() < until, "{:?} is not {wanted}\n{}", answer.body, self.last_lines());
            // GetHealthStatus has a quota of its own.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    /// The end of what the log says of the token, for the message of a failed test.
    pub(crate) fn last_lines(&self) -> String {
        let mut lines = self.proxy.log_lines();
        lines.retain(|line| line["target"] != "request");
        let last: Vec<_> = lines.iter().rev().take(10).rev().map(ToString::to_string).collect();
        last.join("\n")
    }

    /// Says everything that is wrong by `xks-proxy check`: its exit code and what it printed.
    pub(crate) fn check(&self) -> (Option<i32>, String) {
        let configuration = self.proxy.folder().join("xks-proxy.toml");
        let output =
            Command::new(program("xks-proxy")).arg("check").arg("--config").arg(configuration).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }
}

/// A client of one store on one connection.
pub(crate) struct Client {
    connection: Connection,
    store: Store,
    /// The kmsRequestId of the request sent last.
    pub(crate) request_id: String,
}

impl Client {
    async fn send(&mut self, request: &XksRequest) -> Answer {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        self.request_id = body["requestMetadata"]["kmsRequestId"].as_str().unwrap().to_owned();
        self.connection.send(request).await
    }

    pub(crate) async fn encrypt(&mut self, key: &str) -> Answer {
        let body = encrypt_body(PLAINTEXT, Some(AAD), false);
        self.send(&XksRequest::encrypt(&self.store, key, &body)).await
    }

    pub(crate) async fn encrypt_with_integrity_value(&mut self, key: &str) -> Answer {
        let body = encrypt_body(PLAINTEXT, Some(AAD), true);
        self.send(&XksRequest::encrypt(&self.store, key, &body)).await
    }

    pub(crate) async fn decrypt(&mut self, key: &str, encrypted: &Value) -> Answer {
        let body = decrypt_body(encrypted, Some(AAD));
        self.send(&XksRequest::decrypt(&self.store, key, &body)).await
    }

    pub(crate) async fn metadata(&mut self, key: &str) -> Answer {
        self.send(&XksRequest::metadata(&self.store, key)).await
    }

    pub(crate) async fn health(&mut self) -> Answer {
        self.send(&XksRequest::health(&self.store)).await
    }

    /// What the store made decrypts to what the client gave it.
    pub(crate) async fn assert_decrypts(&mut self, key: &str, encrypted: &Value) {
        let decrypted = self.decrypt(key, encrypted).await.ok();
        assert_eq!(bytes_of(&decrypted["plaintext"]), PLAINTEXT);
    }
}

/// Adds a second token with the key `demo`, and a store on it.
pub(crate) fn with_second_token(setup: Setup, token: &SoftHsm) -> Setup {
    const LABEL: &str = "xks-second";
    token.tool(&["init", "--label", LABEL, "--so-pin", SO_PIN, "--pin", PIN]);
    for key in ["demo", "xks-health"] {
        token.tool(&["generate", "--token", LABEL, "--label", key]);
    }
    let store = second_store();
    let more = format!(
        r#"
[[tokens]]
name = "second"
module = "{module}"
label = "{LABEL}"
pin = "{PIN}"
sessions = 2
{intervals}
[[stores]]
name = "second"
uri_path_prefix = "{prefix}"
tokens = ["second"]
authorization = "none"
key_rule = {{ label_prefix = "" }}
[[stores.credentials]]
access_key_id = "{id}"
secret_access_key = "{secret}"
"#,
        module = Faults::module().display(),
        intervals = setup.token.lines().find(|line| line.starts_with("intervals")).unwrap_or(""),
        prefix = store.prefix,
        id = store.signing.access_key_id,
        secret = store.signing.secret_access_key,
    );
    Setup { more: setup.more + &more, ..setup }
}

/// The store on the second token.
pub(crate) fn second_store() -> Store {
    let secret = "second+secret/second+secret/second+secret/+1";
    Store { prefix: "/second".to_owned(), signing: Signing::new("SECONDTESTKEYID234567ABCDE", secret) }
}

/// The same ciphertext with another tag.
pub(crate) fn with_bad_tag(encrypted: &Value) -> Value {
    let mut tag = bytes_of(&encrypted["authenticationTag"]);
    tag[15] ^= 1;
    let mut changed = encrypted.clone();
    changed["authenticationTag"] = json!(xks_harness::request::base64(&tag));
    changed
}

/// An answer's status and error name as a pair that a table can hold; `(200, "")` for success.
pub(crate) fn outcome(answer: &Answer) -> (u16, String) {
    if answer.status == 200 { (200, String::new()) } else { answer.error() }
}

/// Failures of the key manager, of which nothing can be said but that they are not the caller's.
pub(crate) fn is_internal(answer: &Answer) -> bool {
    outcome(answer) == (500, "InternalException".to_owned())
}

/// Sends with every client at once and gathers the answers in their order.
pub(crate) async fn at_once<F>(clients: Vec<Client>, send: impl Fn(usize, Client) -> F) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let tasks: Vec<_> =
        clients.into_iter().enumerate().map(|(index, client)| tokio::spawn(send(index, client))).collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}
