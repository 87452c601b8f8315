//! deploy/monitoring/dashboard.json before a real Prometheus that scrapes a real proxy: every query returns something.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::proxy::main_store;
use xks_harness::request::{decrypt_body, encrypt_body};
use xks_harness::{Http, Proxy, Setup, XksRequest};

const DASHBOARD: &str = include_str!("../../deploy/monitoring/dashboard.json");
/// Time for Prometheus to start and to scrape often enough.
const PATIENCE: Duration = Duration::from_secs(120);

/// A Prometheus of its own, killed when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes the admin listener every second. It does not say which port it was given: so it gets one that was free a
    /// moment ago, and another where that is not any more.
    async fn scraping(admin: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs: [{{ job_name: xks-proxy, static_configs: [{{ targets: [\"{admin}\"] }}] }}]\n"
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut child = Command::new("prometheus")
                .current_dir(folder.path())
                .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("Prometheus is installed");
            while child.try_wait().unwrap().is_none() {
                if get(address, "/-/ready").is_some() {
                    return Self { child, address, _folder: folder };
                }
                assert!(Instant::now() < until, "Prometheus does not start");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// What a query returns: the numbers of its series.
    fn query(&self, expression: &str) -> Vec<f64> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let text = get(self.address, &format!("/api/v1/query?query={encoded}"));
        let text = text.unwrap_or_else(|| panic!("{expression}"));
        let answer: Value = serde_json::from_str(&text).unwrap();
        let series = answer["data"]["result"].as_array().unwrap();
        series.iter().map(|one| one["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of an answer of 200. HTTP/1.0, so that it comes in one piece.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.0 200").then(|| body.to_owned())
}

/// The queries of all panels, and those that fill the choices at the top, as Grafana would ask them with everything chosen.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    };
    let of_variable = |variable: &Value| {
        let query = variable["query"]["query"].as_str()?;
        let (metric, label) = query.strip_prefix("label_values(")?.strip_suffix(')')?.split_once(", ")?;
        Some((format!("variable {label}"), format!("count by ({label}) ({metric}{{{label}!=\"\"}})")))
    };
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(of_panel);
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(of_variable);
    let chosen = |(title, query): (String, String)| {
        let all = [("$instance", ".*"), ("$store", ".*"), ("$token", ".*"), ("$__rate_interval", "8s")];
        let query = all.iter().fold(query, |query, (name, value)| query.replace(name, value));
        assert!(!query.contains('$'), "{title}: {query}");
        (title, query)
    };
    panels.chain(variables).map(chosen).collect()
}

#[tokio::test]
async fn every_panel_shows_something() {
    let setup = Setup {
        more: "[[stores.credentials]]\naccess_key_id = \"XKSSECONDCREDENTIALABCDEFGH\"\nsecret_access_key = \
               \"second/secret/second/secret/second/secret/00\"\ncreated = \"2026-01-01\"\n[audit]\npath = \"audit.log\"\n"
            .to_owned(),
        ..Setup::default()
    };
    let proxy = Proxy::start(&setup).await;
    let prometheus = Prometheus::scraping(proxy.admin).await;
    let mut connection = proxy.connect(Http::One).await;
    let store = main_store();
    let mut left = queries();
    // There is none where no module has a process of its own.
    let is_here = |query: &str| !query.contains("xks_token_helper_memory");
    left.retain(|(_, query)| is_here(query));
    assert!(left.len() > 50, "{}", left.len());
    let until = Instant::now() + PATIENCE;
    while !left.is_empty() {
        assert!(Instant::now() < until, "nothing is returned by {left:#?}");
        // A rate wants more than one scrape, and a latency requests between them.
        let sealed =
            connection.send(&XksRequest::encrypt(&store, "demo", &encrypt_body(b"x", None, false))).await;
        let body = decrypt_body(&sealed.ok(), None);
        connection.send(&XksRequest::decrypt(&store, "demo", &body)).await.ok();
        connection.send(&XksRequest::metadata(&store, "unmapped")).await;
        let mut without = Vec::new();
        for (title, query) in left {
            // Grafana draws no line through what is not a number.
            if !prometheus.query(&query).iter().any(|value| !value.is_nan()) {
                without.push((title, query));
            }
        }
        left = without;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
