//! Memory above the bare module's, and what each idle connection takes.

use std::time::Duration;

use xks_harness::proxy::main_store;
use xks_harness::{Connection, Http, Proxy, XksRequest};

use super::Part;
use crate::machine::{Holdings, KIB, MIB};
use crate::rig::{BareModule, Fault, Rig};
use crate::table::Row;

/// Connections before the first look: what is allocated once is no connection's.
const FIRST: u32 = 100;
/// Connections between the two looks, at most.
const FURTHER: u32 = 2000;
/// Long enough for what the last request left to be done.
const SETTLING: Duration = Duration::from_secs(2);

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let token = rig.token(1);
    let bare = BareModule::start(rig, &token, &rig.setup())?;
    let proxy = rig.start(&rig.setup(), token.clone());
    std::thread::sleep(SETTLING);
    let (idle, of_bare) = (rss_bytes(proxy.pid())?, rss_bytes(bare.pid())?);
    let further = FURTHER.min(rig.connections);
    let (before, after) = rig
        .wait(async {
            let mut connections = open(&proxy, FIRST).await;
            let before = settled(&proxy).await;
            connections.extend(open(&proxy, further).await);
            let after = settled(&proxy).await;
            let open = connections.iter().filter(|connection| !connection.is_closed()).count();
            if open < connections.len() {
                Err("connections were closed meanwhile".into())
            } else {
                Ok((before?, after?))
            }
        })
        .map_err(|fault: Fault| fault)?;
    let above =
        Row::shown(Part::Memory.name(), "resident above a bare module, idle", (idle - of_bare) / MIB, "MiB");
    let note = format!("proxy {:.1} MiB, module {:.1} MiB", idle / MIB, of_bare / MIB);
    let each = (after - before) / f64::from(further) / KIB;
    let connection =
        Row::shown(Part::Memory.name(), "resident for each further idle TLS connection", each, "KiB");
    let of_connections = format!("{further} connections of HTTP/1.1, each after one request");
    Ok(vec![above.at_most(12.0).noted(note), connection.at_most(24.0).noted(of_connections)])
}

fn rss_bytes(process_id: u32) -> Result<f64, Fault> {
    Ok(Holdings::of(process_id).ok_or("the process has ended")?.rss_bytes)
}

async fn settled(proxy: &Proxy) -> Result<f64, Fault> {
    tokio::time::sleep(SETTLING).await;
    rss_bytes(proxy.pid())
}

/// Connections that have each carried a request, as KMS's idle ones have.
async fn open(proxy: &Proxy, count: u32) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = proxy.connect(Http::One).await;
        connection.send(&XksRequest::metadata(&main_store(), "0")).await.ok();
        connections.push(connection);
    }
    connections
}
