//! A null target with faults to order, and runs against it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use xks_load::client::HttpVersion;
use xks_load::echo::{EchoServer, Reply};
use xks_load::engine::{Engine, OpenLoop, Outcome, Plan};
use xks_load::schedule::Arrivals;
use xks_load::target::{Target, TargetArgs};
use xks_load::workload::WorkloadSettings;

/// Credentials of every test.
pub(crate) const ACCESS_KEY_ID: &str = "AKIDLOADTESTAAAAAAAA";
/// Its secret.
pub(crate) const SECRET_ACCESS_KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I";

/// Starts a server that answers by `respond`.
pub(crate) fn serve(respond: impl Fn(u64, &Parts, &[u8]) -> Reply + Send + Sync + 'static) -> EchoServer {
    EchoServer::start(([127, 0, 0, 1], 0).into(), Arc::new(respond)).unwrap()
}

/// Writes the server's certificate to a file of its own.
pub(crate) fn certificate_file(server: &EchoServer) -> PathBuf {
    let name = format!("echo-{}.pem", server.address.port());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, &server.certificate_pem).unwrap();
    file
}

/// The server as a target.
pub(crate) fn target(server: &EchoServer) -> Target {
    let args = TargetArgs {
        host: Some(format!("localhost:{}", server.address.port())),
        uri_prefix: "tenant-a".to_owned(),
        access_key_id: Some(ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(SECRET_ACCESS_KEY.to_owned()),
        region: "eu-west-1".to_owned(),
        key_id: vec!["key-0".to_owned(), "key-1".to_owned()],
        stores_file: None,
        key_id_pattern: None,
        trust_ca: Some(certificate_file(server)),
        client_cert: None,
        client_key: None,
        resolve: Some(format!("localhost={}", server.address)),
        target_pid: None,
    };
    args.target().unwrap()
}

/// Requests of `mix` from a small pool.
pub(crate) fn settings(mix: &str) -> WorkloadSettings {
    WorkloadSettings {
        mix: mix.parse().unwrap(),
        plaintext_bytes: 32,
        aad_bytes: 17,
        cdiv: true,
        pool: 8,
        principal_arn: "arn:aws:iam::123456789012:user/Alice".to_owned(),
        kms_key_arn: "arn:aws:kms:eu-west-1:123456789012:key/k".to_owned(),
        seed: 1,
    }
}

/// A closed loop of `max_requests` over `connections`. Its duration is only a bound.
pub(crate) fn closed(max_requests: u64, connections: u32) -> Plan {
    Plan {
        open: None,
        http: HttpVersion::Http1,
        tls_resumption: false,
        warmup: Duration::ZERO,
        duration: Duration::from_secs(300),
        max_requests,
        connections,
        streams: 1,
        threads: 1,
        timeout: Duration::from_secs(30),
        presign: None,
        thorough_every: 1,
        check_ivs: false,
        seed: 1,
    }
}

/// An open loop of `rate_per_sec` over `duration` and `connections`.
pub(crate) fn open(rate_per_sec: f64, duration: Duration, connections: u32) -> Plan {
    let open = OpenLoop {
        arrivals: Arrivals::Fixed,
        rate_per_sec,
        new_connections_per_sec: 0.0,
        max_outstanding: 10_000,
    };
    Plan { open: Some(open), duration, ..closed(u64::MAX, connections) }
}

/// Runs `plan` with `mix` against `server`.
pub(crate) fn run(server: &EchoServer, mix: &str, plan: Plan) -> Outcome {
    Engine::prepare(&target(server), &settings(mix), plan).unwrap().run().unwrap()
}
