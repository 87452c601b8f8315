//! CPU of a TLS 1.3 handshake with an ECDSA certificate, tickets included, in turns with a bare encrypt on the same core.

use std::sync::Arc;
use std::time::Instant;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use xks_harness::client::{tls, tls_config};
use xks_harness::{Http, Pki, Proxy};
use xks_load::process::ProcessSample;

use super::Part;
use crate::rig::{BareModule, Fault, Rig};
use crate::statistics::{median_of, quotients};
use crate::table::Row;

/// Handshakes at once.
const CLIENTS: usize = 8;
const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let token = rig.token(1);
    let mut bare = BareModule::start(rig, &token, &rig.setup())?;
    let proxy = rig.start(&rig.setup(), token.clone());
    let (mut hybrid, mut classical) = (tls_config(Http::One), without_hybrid()?);
    hybrid.resumption = Resumption::disabled();
    classical.resumption = Resumption::disabled();
    let resumed = tls_config(Http::One);
    let kinds = [
        (&hybrid, HandshakeKind::Full),
        (&classical, HandshakeKind::Full),
        (&resumed, HandshakeKind::Resumed),
    ];
    let (mut bare_us, mut us) = (Vec::new(), [const { Vec::new() }; 3]);
    for _ in 0..rig.rounds {
        bare_us.push(bare.encrypt_us(rig.duration())?.0);
        for ((config, kind), us) in kinds.iter().zip(&mut us) {
            us.push(cost_us(rig, &proxy, config, *kind)?);
        }
    }
    let row = |figure, us: &[f64]| {
        let row = Row::shown(Part::Handshake.name(), figure, median_of(us), "µs");
        row.with_ratio(&quotients(us, &bare_us))
    };
    let [hybrid, classical, resumed] = &us;
    Ok(vec![
        row("CPU of a new connection, full handshake, X25519MLKEM768", hybrid).at_most(300.0).noted(format!(
            "TCP, handshake, tickets, a /ping to read them behind, and the end; a bare encrypt {:.1} µs",
            median_of(&bare_us)
        )),
        row("the same with X25519", classical).at_most(300.0),
        row("the same, resumed", resumed),
    ])
}

fn without_hybrid() -> Result<ClientConfig, rustls::Error> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Pki::shared().roots())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// CPU of the proxy for each connection, in microseconds.
fn cost_us(rig: &Rig, proxy: &Proxy, config: &ClientConfig, kind: HandshakeKind) -> Result<f64, Fault> {
    let (address, until) = (proxy.address, Instant::now() + rig.duration());
    let before = ProcessSample::read(proxy.pid())?;
    let connections = rig.wait(async {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let config = config.clone();
            clients.spawn(async move {
                let (mut connections, mut others) = (0_u32, 0_u32);
                while Instant::now() < until {
                    let mut stream = tls(address, config.clone()).await?;
                    others += u32::from(stream.get_ref().1.handshake_kind() != Some(kind));
                    stream.write_all(PING).await?;
                    stream.read_to_end(&mut Vec::new()).await?;
                    connections += 1;
                }
                // The first of a client that resumes has nothing to resume.
                if others > 1 {
                    Err(std::io::Error::other("a handshake of the other kind"))
                } else {
                    Ok(connections)
                }
            });
        }
        let mut connections = 0;
        while let Some(client) = clients.join_next().await {
            connections += client??;
        }
        Ok::<u32, Fault>(connections)
    })?;
    let after = ProcessSample::read(proxy.pid())?;
    Ok((after.cpu() - before.cpu()).as_secs_f64() * 1e6 / f64::from(connections.max(1)))
}
