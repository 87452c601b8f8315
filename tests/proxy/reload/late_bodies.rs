//! Requests whose heads came before a reload, and whose bodies come after it: the configuration that holds then decides.

use std::fs;

use xks_harness::client::raw_http1;
use xks_harness::proxy::main_store;
use xks_harness::request::encrypt_body;
use xks_harness::{RawConnection, Setup, XksRequest};

use super::rig::{Reloading, credential, main_store_as};

/// A proxy that waits for bodies longer than any test does.
async fn patient(setup: Setup) -> Reloading {
    let timeouts = format!("{}\nbody_ms = 60000", Setup::default().timeouts);
    Reloading::start(Setup { timeouts, ..setup }).await
}

/// A request of which the proxy has the head.
struct Begun {
    connection: RawConnection,
    body: Vec<u8>,
}

impl Begun {
    async fn send(reloading: &Reloading) -> Self {
        let proxy = &reloading.proxy;
        let request = XksRequest::encrypt(&main_store(), "demo", &encrypt_body(b"x", None, false));
        let bytes = raw_http1(&request, &format!("localhost:{}", proxy.address.port()));
        let mut connection = RawConnection::open(proxy.address).await;
        connection.send(&bytes[..bytes.len() - request.body.len()]).await;
        proxy.wait_for("/metrics", |_, text| text.contains("\nxks_requests_in_flight 1\n")).await;
        Self { connection, body: request.body }
    }

    /// Sends the body; status and errorName of the answer, or `None` where it succeeds.
    async fn end(mut self) -> Option<(u16, String)> {
        let answer = self.connection.exchange(&self.body).await.unwrap();
        (answer.status != 200).then(|| answer.refusal())
    }
}

fn refused(name: &str, status: u16) -> Option<(u16, String)> {
    Some((status, name.to_owned()))
}

#[tokio::test]
async fn a_credential_that_is_gone_by_then_authenticates_nobody() {
    let reloading = patient(Setup::default()).await;
    let [old, new] = [main_store(), main_store_as(1)].map(|store| credential(&store));
    let begun = Begun::send(&reloading).await;
    reloading.edit(&old, &format!("{old}{new}"));
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(begun.end().await, None, "it is still there");

    let begun = Begun::send(&reloading).await;
    reloading.edit(&old, "");
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(begun.end().await, refused("AuthenticationFailedException", 401));
}

#[tokio::test]
async fn policies_that_hold_by_then_decide() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("main.cedar");
    fs::write(&policies, "@id(\"all\") permit(principal, action, resource);").unwrap();
    let authorization = format!("authorization = \"cedar\"\npolicies = [{policies:?}]");
    let reloading = patient(Setup { authorization, ..Setup::default() }).await;
    let begun = Begun::send(&reloading).await;
    fs::write(&policies, "@id(\"nobody\") forbid(principal, action, resource);").unwrap();
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(begun.end().await, refused("AccessDeniedException", 403));
}

#[tokio::test]
async fn a_store_that_is_gone_by_then_is_not_found() {
    let reloading = patient(Setup::default()).await;
    let begun = Begun::send(&reloading).await;
    reloading.edit("uri_path_prefix = \"/main\"\n", "uri_path_prefix = \"/moved\"\n");
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(begun.end().await, refused("InvalidUriPathException", 404));
}
