//! Where the process may open few files: strangers who hold them keep neither a signed client nor the operator out.

use std::process::Command;

use tokio::net::TcpStream;
use tokio::time::timeout;
use xks_harness::binary::program;
use xks_harness::proxy::{PATIENCE, main_store};
use xks_harness::{Connection, Http, Proxy, Setup, SoftHsm, XksRequest};

/// A proxy that waits for long on each connection, started by `launcher`.
async fn proxy(launcher: &[&str], limits: &str) -> Proxy {
    let timeouts = ["handshake_ms", "first_request_ms", "header_ms", "body_ms", "idle_ms"]
        .map(|name| format!("{name} = {}", PATIENCE.as_millis()));
    let timeouts = format!("{}\n{}", Setup::default().timeouts, timeouts.join("\n"));
    let launcher = launcher.iter().copied().map(str::to_owned).collect();
    Proxy::start(&Setup { launcher, limits: limits.to_owned(), timeouts, ..Setup::default() }).await
}

async fn strangers(proxy: &Proxy, count: usize) -> Vec<TcpStream> {
    let mut strangers = Vec::new();
    for _ in 0..count {
        strangers.push(TcpStream::connect(proxy.address).await.unwrap());
    }
    strangers
}

/// A signed client on a new connection, and whoever looks whether the process lives, are served in the time that a stranger
/// may keep a connection.
async fn expect_service(proxy: &Proxy) {
    for http in Http::BOTH {
        let service = async {
            let mut connection = Connection::open(proxy.address, http).await;
            connection.send(&XksRequest::metadata(&main_store(), "demo")).await
        };
        let answer = timeout(PATIENCE / 2, service).await.expect("a signed client is not served");
        assert_eq!(answer.status, 200);
        let (status, _) = timeout(PATIENCE / 2, proxy.admin("/livez")).await.expect("/livez does not answer");
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn strangers_do_not_take_the_last_files_that_may_be_open() {
    // The soft limit is raised. Of 256 files connections get half.
    let proxy = proxy(&["prlimit", "--nofile=64:256"], "").await;
    let told = proxy.wait_for_log(|line| line["max_connections"] == 10_000);
    assert_eq!((told["level"].as_str(), told["possible"].as_u64()), (Some("WARN"), Some(128)), "{told}");
    let mut held = strangers(&proxy, 300).await;
    for _ in 0..3 {
        expect_service(&proxy).await;
        // They come back whenever one of them was turned out.
        held.extend(strangers(&proxy, 10).await);
    }
    // Those that are told to go are counted until they have gone.
    let open =
        |metrics: &str| metrics.lines().find_map(|line| line.strip_prefix("xks_connections ")?.parse().ok());
    proxy.wait_for("/metrics", |_, text| open(text).is_some_and(|open: usize| open <= 128)).await;
}

#[tokio::test]
async fn where_files_run_out_all_the_same_the_oldest_stranger_goes() {
    let proxy = proxy(&[], "max_connections = 150").await;
    let _held = strangers(&proxy, 150).await;
    proxy.wait_for("/metrics", |_, text| text.contains("\nxks_connections 150\n")).await;
    let arguments = ["--pid", &proxy.pid().to_string(), "--nofile=96:"];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
    expect_service(&proxy).await;
    let evicted = "xks_connections_closed_total{reason=\"evicted\"}";
    assert!(proxy.metric(evicted).await >= 1.0);
}

#[test]
fn check_notices_where_max_connections_do_not_fit() {
    let token = SoftHsm::with_keys();
    let folder = tempfile::tempdir().unwrap();
    for (limits, is_noticed) in [("", true), ("max_connections = 128", false)] {
        let config = Setup { limits: limits.to_owned(), ..Setup::default() }.write(folder.path(), &token);
        let mut check = Command::new("prlimit");
        check.arg("--nofile=64:256").arg(program("xks-proxy")).args(["check", "--config"]).arg(config);
        let said = String::from_utf8(check.output().unwrap().stdout).unwrap();
        let notice = "notice  of max_connections = 10000 only 128 fit into the limit on open files";
        assert_eq!(said.contains(notice), is_noticed, "{said}");
    }
}
