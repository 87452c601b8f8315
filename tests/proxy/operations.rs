//! The four operations, end to end.

mod bodies;
mod framing;
mod isolation;
mod keys;
mod metadata;
mod round_trips;
mod tampering;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use xks_harness::proxy::main_store;
use xks_harness::request::{decrypt_body, encrypt_body, metadata, new_request_id};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, XksRequest};
use xks_spec::Operation;

/// A running proxy, a connection to it, and a body for each operation on the key `demo` that is right.
struct Fixture {
    proxy: Proxy,
    connection: Connection,
    encrypted: Value,
}

impl Fixture {
    async fn start() -> Self {
        let proxy = Proxy::start(&Setup::default()).await;
        let mut connection = proxy.connect(Http::Two).await;
        let encrypted = encrypt(&mut connection, "demo", b"Hello World!", Some(b"project=nile")).await;
        Self { proxy, connection, encrypted }
    }

    fn good_body(&self, operation: Operation) -> Value {
        match operation {
            Operation::GetKeyMetadata => json!({ "requestMetadata": metadata("CreateKey") }),
            Operation::Encrypt => encrypt_body(b"Hello World!", Some(b"project=nile"), true),
            Operation::Decrypt => decrypt_body(&self.encrypted, Some(b"project=nile")),
            Operation::GetHealthStatus => json!({
                "requestMetadata": { "kmsRequestId": new_request_id(), "kmsOperation": "KmsHealthCheck" }
            }),
        }
    }

    /// Sends bytes as the body of a well-signed request on `demo`. Health has a small quota of its own, which is not
    /// what these tests are about: they wait for it.
    async fn send_bytes(&mut self, operation: Operation, body: Vec<u8>) -> Answer {
        let request = XksRequest { body, ..request(operation, "demo", &Value::Null) };
        for _ in 0..1000 {
            let answer = self.connection.send(&request).await;
            if operation != Operation::GetHealthStatus || answer.status != 429 {
                return answer;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("health is out of quota for ever");
    }

    async fn send(&mut self, operation: Operation, body: &Value) -> Answer {
        self.send_bytes(operation, body.to_string().into_bytes()).await
    }
}

/// A request to store `main`.
fn request(operation: Operation, key: &str, body: &Value) -> XksRequest {
    let store = main_store();
    let segment = operation.path_segment();
    let path = match operation {
        Operation::GetHealthStatus => format!("{}/kms/xks/v1/{segment}", store.prefix),
        _ => format!("{}/kms/xks/v1/keys/{key}/{segment}", store.prefix),
    };
    XksRequest::new(&store.signing, path, body)
}

/// What Encrypt answers under a key of store `main`.
async fn encrypt(connection: &mut Connection, key: &str, plaintext: &[u8], aad: Option<&[u8]>) -> Value {
    connection.send(&request(Operation::Encrypt, key, &encrypt_body(plaintext, aad, false))).await.ok()
}

/// What Decrypt answers under a key of store `main`.
async fn decrypt(connection: &mut Connection, key: &str, encrypted: &Value, aad: Option<&[u8]>) -> Answer {
    connection.send(&request(Operation::Decrypt, key, &decrypt_body(encrypted, aad))).await
}

/// Status and errorName of an error.
fn refused(status: u16, name: &str) -> (u16, String) {
    (status, name.to_owned())
}

/// The setup's key of that label, listed under the same id; further lines of its entry.
fn listed_key(label: &str, more: &str) -> String {
    format!("[[stores.keys]]\nexternal_key_id = \"{label}\"\nlabel = \"{label}\"\n{more}\n")
}
