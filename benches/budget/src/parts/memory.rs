//! Memory above the bare module's, and what each idle connection takes.

use std::time::Duration;

use xks_harness::proxy::main_store;
use xks_harness::{Connection, Http, Proxy, XksRequest};

use super::Part;
use crate::machine::{Holdings, KIB, MIB};
use crate::rig::{BareModule, Fault, Rig};
use crate::statistics::Interval;
use crate::table::Row;

/// Connections before the first look: what is allocated once is no connection's.
const FIRST: u32 = 100;
/// Connections between the two looks, at most.
const FURTHER: u32 = 2000;
/// Long enough for what the last request left to be done.
const SETTLING: Duration = Duration::from_secs(2);

/// What one round found, in bytes.
struct Round {
    idle: f64,
    of_bare: f64,
    each: f64,
}

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let further = FURTHER.min(rig.connections);
    let rounds: Vec<_> = (0..rig.rounds).map(|_| round(rig, further)).collect::<Result<_, _>>()?;
    let of = |value: fn(&Round) -> f64, unit: f64| -> Interval {
        Interval::of(&rounds.iter().map(|round| value(round) / unit).collect::<Vec<_>>())
    };
    let row = |figure, Interval { median, low, high, coverage }: Interval, unit, more: &str| {
        let note = format!("{low:.1}–{high:.1} {unit}, {:.0} %; {more}", 100.0 * coverage);
        Row::shown(Part::Memory.name(), figure, median, unit).noted(note)
    };
    let above = of(|round| round.idle - round.of_bare, MIB);
    let each = of(|round| round.each, KIB);
    let (idle, of_bare) = (of(|round| round.idle, MIB).median, of(|round| round.of_bare, MIB).median);
    let processes = format!("proxy {idle:.1} MiB, module {of_bare:.1} MiB");
    let connections = format!("{further} connections of HTTP/1.1, each after one request");
    Ok(vec![
        row("resident above a bare module, idle", above, "MiB", &processes).at_most(12.0),
        row("resident for each further idle TLS connection", each, "KiB", &connections).at_most(24.0),
    ])
}

/// A proxy and a module that have just started: what an earlier round left in an allocator is in none.
fn round(rig: &Rig, further: u32) -> Result<Round, Fault> {
    let token = rig.token(1);
    let bare = BareModule::start(rig, &token, &rig.setup())?;
    let proxy = rig.start(&rig.setup(), token.clone());
    std::thread::sleep(SETTLING);
    let (idle, of_bare) = (rss_bytes(proxy.pid())?, rss_bytes(bare.pid())?);
    rig.wait(async {
        let mut connections = open(&proxy, FIRST).await;
        let before = settled(&proxy).await?;
        connections.extend(open(&proxy, further).await);
        let after = settled(&proxy).await?;
        if connections.iter().any(Connection::is_closed) {
            return Err("connections were closed meanwhile".into());
        }
        Ok(Round { idle, of_bare, each: (after - before) / f64::from(further) })
    })
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
