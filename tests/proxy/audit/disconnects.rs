//! Clients that leave, and deadlines that pass: one record each, whenever it happens.

use serde_json::Value;
use xks_harness::client::raw_http1;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Faults, Function, Http, Proxy, RawConnection, Setup, SoftHsm, XksRequest};

use super::{AuditFolder, encrypt, end};
use crate::connections::frames::{self, CANCEL, FrameConnection, RST_STREAM};
use crate::tokens::rig::Rig;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    CloseOnHttp1,
    ResetOnHttp2,
    CloseOnHttp2,
}

const WAYS: [Way; 3] = [Way::CloseOnHttp1, Way::ResetOnHttp2, Way::CloseOnHttp2];

/// A client whose request is on its way.
enum Sent {
    One(RawConnection),
    Two(FrameConnection),
}

impl Sent {
    async fn begin(proxy: &Proxy, request: &XksRequest, way: Way) -> Self {
        if way == Way::CloseOnHttp1 {
            let mut connection = RawConnection::open(proxy.address).await;
            let authority = format!("localhost:{}", proxy.address.port());
            connection.send(&raw_http1(request, &authority)).await;
            return Self::One(connection);
        }
        let mut connection = FrameConnection::open(proxy.address).await;
        connection.send_head(1, request).await;
        connection.send_body(1, &request.body).await;
        Self::Two(connection)
    }

    fn address(&self) -> String {
        match self {
            Self::One(connection) => connection.local_address().to_string(),
            Self::Two(connection) => connection.local_address().to_string(),
        }
    }

    /// Leaves, and is seen to have left by the line in the log.
    async fn leave(self, proxy: &Proxy, way: Way) -> Value {
        let peer = self.address();
        let mut kept = None;
        if let (Self::Two(mut connection), Way::ResetOnHttp2) = (self, way) {
            connection.send(&frames::frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())).await;
            kept = Some(connection);
        }
        let line = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
        drop(kept);
        line
    }
}

/// The one record of that client, once everything has ended.
async fn only_record(folder: &AuditFolder, proxy: Proxy, peer: &Value) -> Value {
    end(proxy).await;
    let records = folder.requests();
    let mut of_peer = records.iter().filter(|record| record["peer"] == *peer);
    let record = of_peer.next().unwrap_or_else(|| panic!("no record of {peer}: {records:?}"));
    assert_eq!(of_peer.next(), None, "{records:?}");
    record.clone()
}

fn patient() -> Setup {
    Setup { token: "sessions = 1\nintervals = { stuck_after_ms = 60000 }".to_owned(), ..Setup::default() }
}

/// The key is still being looked for.
#[tokio::test]
async fn before_the_hsm_call() {
    for way in WAYS {
        let folder = AuditFolder::new();
        let Rig { faults, proxy } = Rig::start_on(folder.setup_of("", patient()), SoftHsm::with_keys()).await;
        faults.set("C_FindObjectsInit hang until_removed");
        let body = encrypt_body(b"a plaintext", None, false);
        let sent = Sent::begin(&proxy, &XksRequest::encrypt(&nested_store(), "unheard-of", &body), way).await;
        faults.wait_until_inside(Function::FindObjectsInit, 1).await;
        let line = sent.leave(&proxy, way).await;
        faults.clear();
        let record = only_record(&folder, proxy, &line["peer"]).await;
        assert_eq!(
            (&record["outcome"], &record["store"]),
            (&"abandoned".into(), &"nested".into()),
            "{way:?}"
        );
        assert_eq!(record["requestMetadata"], body["requestMetadata"]);
    }
}

#[tokio::test]
async fn during_the_hsm_call_and_the_one_that_verifies_it() {
    for (function, rule) in [
        (Function::Encrypt, "C_Encrypt hang until_removed"),
        (Function::Decrypt, "C_Decrypt hang until_removed"),
    ] {
        for way in WAYS {
            let folder = AuditFolder::new();
            let Rig { faults, proxy } =
                Rig::start_on(folder.setup_of("", patient()), SoftHsm::with_keys()).await;
            faults.set(rule);
            // An integrity value costs a decrypt after the encrypt.
            let body = encrypt_body(b"a plaintext", None, true);
            let sent = Sent::begin(&proxy, &XksRequest::encrypt(&main_store(), "demo", &body), way).await;
            faults.wait_until_inside(function, 1).await;
            let line = sent.leave(&proxy, way).await;
            faults.clear();
            let record = only_record(&folder, proxy, &line["peer"]).await;
            assert_eq!(record["outcome"], "abandoned", "{way:?} {record}");
            // Both calls are one turn at the token, of which nobody was left to be told.
            assert_eq!(record["hsmCalls"], 0, "{way:?} {record}");
        }
    }
}

/// The answer is ready, and nobody reads it.
#[tokio::test]
async fn after_the_hsm_call() {
    for way in WAYS {
        let folder = AuditFolder::new();
        let proxy = Proxy::start(&folder.setup("")).await;
        let sent = Sent::begin(&proxy, &encrypt(), way).await;
        let peer = sent.address();
        let _ = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
        let line = sent.leave(&proxy, way).await;
        let record = only_record(&folder, proxy, &line["peer"]).await;
        assert_eq!(record["outcome"], "ok", "{way:?}");
    }
}

#[tokio::test]
async fn a_deadline_that_passes() {
    let folder = AuditFolder::new();
    let faults = Faults::new();
    let setup = Setup { timeouts: "answer_ms = 300\nfirst_answer_ms = 300".to_owned(), ..Setup::default() };
    let proxy = Proxy::start(&faults.between(folder.setup_of("", setup))).await;
    faults.set("C_Encrypt hang until_removed");
    let mut connection = proxy.connect(Http::Two).await;
    assert_eq!(connection.send(&encrypt()).await.error().1, "DependencyTimeoutException");
    faults.clear();
    end(proxy).await;
    let records = folder.requests();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["outcome"], "DependencyTimeoutException");
    assert_eq!(records[0]["answerBytes"], 0);
}
