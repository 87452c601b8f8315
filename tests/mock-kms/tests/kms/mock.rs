//! A running `mock-kms`, and the shortest way to call it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::{Pki, Proxy, Setup};

/// Any credential will do.
pub(crate) const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AKIDTEST/20220101/us-east-1/kms/aws4_request, \
                                        SignedHeaders=host;x-amz-date, Signature=00";

/// A process `mock-kms serve`, killed when dropped.
pub(crate) struct Mock {
    child: Child,
    /// Where it listens.
    pub(crate) url: String,
    _folder: TempDir,
}

/// An answer of the KMS API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

impl Mock {
    /// Starts one that finds the proxy of the name `localhost` at `proxy`, with more arguments.
    pub(crate) fn start(proxy: SocketAddr, more: &[&str]) -> Self {
        let resolve = format!("localhost={proxy}");
        let fast = ["--connect-ms", "0", "--proxy-timeout-ms", "30000"];
        let defaults = fast.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten().copied();
        let arguments: Vec<_> =
            ["--resolve", &resolve].into_iter().chain(defaults).chain(more.iter().copied()).collect();
        Self::start_with(&arguments)
    }

    /// Starts one with nothing but a free port, and the test CA where the arguments name no other.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Pki::shared().write(folder.path());
        let ca_file = folder.path().join("ca.pem");
        let trusts_test_ca = !arguments.contains(&"--ca-file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_mock-kms"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(trusts_test_ca.then(|| ["--ca-file".as_ref(), ca_file.as_os_str()]).into_iter().flatten())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("mock-kms listens on ").unwrap_or_else(|| panic!("{line:?}"));
        Self { url: url.to_owned(), child, _folder: folder }
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.url.rsplit_once('/').unwrap().1.parse().unwrap()
    }

    /// Calls an operation.
    pub(crate) async fn send(&self, operation: &str, body: &Value) -> Answer {
        let target = format!("TrentService.{operation}");
        let headers = [("x-amz-target", target.as_str()), ("authorization", AUTHORIZATION)];
        self.post("/", &headers, body.to_string()).await
    }

    /// Calls an operation that must succeed.
    pub(crate) async fn call(&self, operation: &str, body: Value) -> Value {
        let answer = self.send(operation, &body).await;
        assert_eq!(answer.status, 200, "{operation} {body}: {}", answer.text);
        if answer.text.is_empty() { Value::Null } else { answer.json() }
    }

    /// Calls an operation that must fail, and gives exception and message.
    pub(crate) async fn fail(&self, operation: &str, body: Value) -> (String, String) {
        let answer = self.send(operation, &body).await;
        assert_ne!(answer.status, 200, "{operation} {body}: {}", answer.text);
        let error = answer.json();
        let text = |member: &str| error[member].as_str().unwrap_or_default().to_owned();
        (text("__type"), text("message"))
    }

    /// Posts anything.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.request(Request::post(path), headers, body.into()).await
    }

    /// Reads a page that must be there.
    pub(crate) async fn read(&self, path: &str) -> String {
        let answer = self.request(Request::get(path), &[], Bytes::new()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.text
    }

    async fn request(
        &self,
        request: http::request::Builder,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = request.header("host", self.address().to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    /// Moves the clock.
    pub(crate) async fn advance_days(&self, days: i64) {
        let body = json!({ "advanceSecs": days * 86_400 }).to_string();
        let answer = self.post("/_mock/clock", &[("content-type", "application/json")], body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Makes a store for `localhost` with the store `main` of the test proxies.
    pub(crate) async fn create_store(&self, name: &str) -> String {
        let answer = self.call("CreateCustomKeyStore", store_members(name)).await;
        answer["CustomKeyStoreId"].as_str().unwrap().to_owned()
    }

    /// The same, connected.
    pub(crate) async fn connected_store(&self, name: &str) -> String {
        let id = self.create_store(name).await;
        self.connect(&id).await;
        id
    }

    /// Connects, which must succeed.
    pub(crate) async fn connect(&self, id: &str) {
        self.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": id })).await;
        let store = self.settled_store(id).await;
        assert_eq!(store["ConnectionState"], "CONNECTED", "{store}");
    }

    /// A store's entry, once it is neither `CONNECTING` nor `DISCONNECTING`.
    pub(crate) async fn settled_store(&self, id: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let store = self.store(id).await;
            if !store["ConnectionState"].as_str().unwrap().ends_with("ING") {
                return store;
            }
            assert!(Instant::now() < until, "{store}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A store's entry.
    pub(crate) async fn store(&self, id: &str) -> Value {
        let answer = self.call("DescribeCustomKeyStores", json!({ "CustomKeyStoreId": id })).await;
        answer["CustomKeyStores"][0].clone()
    }

    /// Makes a key in a store and gives its ARN.
    pub(crate) async fn create_xks_key(&self, store_id: &str, xks_key_id: &str) -> String {
        let answer = self.call("CreateKey", xks_key_members(store_id, xks_key_id)).await;
        answer["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// Makes a key in KMS and gives its ARN.
    pub(crate) async fn create_plain_key(&self) -> String {
        let answer = self.call("CreateKey", json!({})).await;
        answer["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn key_state(&self, key: &str) -> String {
        let answer = self.call("DescribeKey", json!({ "KeyId": key })).await;
        answer["KeyMetadata"]["KeyState"].as_str().unwrap().to_owned()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What CreateCustomKeyStore wants for the store `main` of the test proxies.
pub(crate) fn store_members(name: &str) -> Value {
    let store = main_store();
    json!({
        "CustomKeyStoreName": name,
        "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
        "XksProxyConnectivity": "PUBLIC_ENDPOINT",
        "XksProxyUriEndpoint": "https://localhost",
        "XksProxyUriPath": format!("{}/kms/xks/v1", store.prefix),
        "XksProxyAuthenticationCredential": {
            "AccessKeyId": store.signing.access_key_id,
            "RawSecretAccessKey": store.signing.secret_access_key,
        },
    })
}

/// What CreateKey wants for a key in a store.
pub(crate) fn xks_key_members(store_id: &str, xks_key_id: &str) -> Value {
    json!({ "Origin": "EXTERNAL_KEY_STORE", "CustomKeyStoreId": store_id, "XksKeyId": xks_key_id })
}

/// `members` with some changed, or removed where the new value is null.
pub(crate) fn with(mut members: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        members[name] = value.clone();
    }
    members
}

/// A real proxy on SoftHSM2, and a KMS that finds it.
pub(crate) async fn real() -> (Proxy, Mock) {
    let proxy = Proxy::start(&Setup::default()).await;
    let mock = Mock::start(proxy.address, &[]);
    (proxy, mock)
}
