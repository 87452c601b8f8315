//! A client that will not let go: what is answered to it up to the end of the drain is on record.

use serde_json::Value;
use xks_harness::proxy::main_store;
use xks_harness::{Proxy, Setup, XksRequest};

use super::{AuditFolder, accept, end};
use crate::connections::frames::{DATA, END_STREAM, FrameConnection, RST_STREAM};

/// Whether the request on that stream is answered with a success before the connection ends.
async fn is_served(connection: &mut FrameConnection, stream: u32, request: &XksRequest) -> bool {
    connection.send_head(stream, request).await;
    connection.send_body(stream, &request.body).await;
    while let Some(frame) = connection.next().await {
        if frame.stream != stream || frame.kind == RST_STREAM {
            continue;
        }
        if frame.kind == DATA && frame.flags & END_STREAM != 0 {
            return String::from_utf8_lossy(&frame.payload).contains("keySpec");
        }
    }
    false
}

#[tokio::test]
async fn every_success_is_on_record_though_a_client_stays_beyond_the_drain() {
    let folder = AuditFolder::new();
    let server = "lame_duck_secs = 0\ndrain_secs = 1".to_owned();
    let proxy =
        Proxy::start(&folder.setup_of("on_failure = \"continue\"", Setup { server, ..Setup::default() }))
            .await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut connection = FrameConnection::open(proxy.address).await;
        connection.answers_pings = false;
        clients.push(tokio::spawn(async move {
            let mut served = Vec::new();
            for stream in (1..).step_by(2) {
                let request = XksRequest::metadata(&main_store(), "demo");
                if !is_served(&mut connection, stream, &request).await {
                    break;
                }
                let body: Value = serde_json::from_slice(&request.body).unwrap();
                served.push(body["requestMetadata"]["kmsRequestId"].clone());
            }
            served
        }));
    }
    folder.wait_for_requests(4).await;
    end(proxy).await;
    let records = folder.requests();
    for client in clients {
        let served = client.await.unwrap();
        assert!(!served.is_empty());
        for id in served {
            let of_it = records.iter().filter(|record| record["requestMetadata"]["kmsRequestId"] == id);
            let outcomes: Vec<_> = of_it.map(|record| &record["outcome"]).collect();
            assert_eq!(outcomes, ["ok"], "{id}");
        }
    }
    accept(&[folder.path()]);
    let text = std::fs::read_to_string(folder.path()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["type"], "closed");
}
