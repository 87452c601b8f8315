//! A full disk, by a limit on the size of the proxy's files, and one that hangs, by a lease on the file that it opens.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use xks_harness::client::plain_get;
use xks_harness::proxy::main_store;
use xks_harness::{Connection, Faults, Function, Http, Proxy, RawConnection, XksRequest};

use super::{AuditFolder, accept, encrypt, end, requests};

/// Lets no file of the proxy grow beyond that; `unlimited` lifts it.
fn limit_file_size(proxy: &Proxy, bytes: &str) {
    let status = Command::new("prlimit")
        .args(["--pid", &proxy.pid().to_string(), &format!("--fsize={bytes}:")])
        .status();
    assert!(status.unwrap().success());
}

/// No room for one more record, but for a part of it.
fn fill_the_disk(proxy: &Proxy, folder: &AuditFolder) {
    let bytes = std::fs::metadata(folder.path()).unwrap().len() + 50;
    limit_file_size(proxy, &bytes.to_string());
}

async fn wait_until_failing(proxy: &Proxy, is_failing: bool) {
    let wanted = format!("\nxks_audit_failing {}\n", u8::from(is_failing));
    proxy.wait_for("/metrics", |_, text| text.contains(&wanted)).await;
}

/// Requests that a full disk has no room for.
const WITHOUT_ROOM: usize = 20;

/// A proxy that has written one record, and has served as many more as [`WITHOUT_ROOM`] since its disk is full.
async fn start_and_fill_the_disk(folder: &AuditFolder) -> (Proxy, Connection) {
    let proxy = Proxy::start(&folder.setup("")).await;
    let mut connection = proxy.connect(Http::Two).await;
    connection.send(&encrypt()).await.ok();
    folder.wait_for_requests(1).await;
    fill_the_disk(&proxy, folder);
    for _ in 0..WITHOUT_ROOM {
        connection.send(&encrypt()).await.ok();
    }
    wait_until_failing(&proxy, true).await;
    (proxy, connection)
}

fn audit_lag(metrics: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix("xks_audit_lag_seconds "));
    line.unwrap().parse().unwrap()
}

async fn health(connection: &mut Connection) -> String {
    let health = connection.send(&XksRequest::health(&main_store())).await.ok();
    health["ekmFleetDetails"][0]["healthStatus"].as_str().unwrap().to_owned()
}

async fn expect_refusal(proxy: &Proxy, connection: &mut Connection) {
    for request in [encrypt(), XksRequest::metadata(&main_store(), "demo")] {
        assert_eq!(connection.send(&request).await.refusal(), (500, "InternalException".to_owned()));
    }
    assert_eq!(health(connection).await, "UNAVAILABLE");
    assert_eq!(plain_get(proxy.ping, "/ping").await.0, 503);
    assert!(proxy.admin("/readyz?verbose").await.1.contains("audit log: cannot be written"));
}

#[tokio::test]
async fn a_full_disk_costs_no_request_and_no_record_where_requests_go_on() {
    let folder = AuditFolder::new();
    let (proxy, mut connection) = start_and_fill_the_disk(&folder).await;
    connection.send(&encrypt()).await.ok();
    assert_eq!(health(&mut connection).await, "ACTIVE");
    assert!(proxy.metric("xks_audit_write_failures_total").await >= 1.0);
    // The oldest record waits longer and longer, and not any more once it is written.
    proxy.wait_for("/metrics", |_, text| audit_lag(text) >= 1.5).await;
    limit_file_size(&proxy, "unlimited");
    folder.wait_for_requests(WITHOUT_ROOM + 3).await;
    wait_until_failing(&proxy, false).await;
    proxy.wait_for("/metrics", |_, text| audit_lag(text) == 0.0).await;
    assert_eq!(proxy.metric("xks_audit_records_lost_total").await, 0.0);
    end(proxy).await;
    assert!(folder.requests().iter().all(|record| record["outcome"] == "ok"));
    assert!(!accept(&[folder.path()]).contains("torn"), "what was written in part is taken back");
}

/// As long as it is full, and what it then loses is on record.
#[tokio::test]
async fn what_a_disk_that_is_full_at_the_end_loses_is_told_in_the_log_and_by_the_next_process() {
    let folder = AuditFolder::new();
    let (proxy, _connection) = start_and_fill_the_disk(&folder).await;
    proxy.signal("TERM");
    assert_eq!(proxy.wait_for_log(lost_at_the_end)["records"], WITHOUT_ROOM);
    end(proxy).await;
    // As big as before, without what was written in part.
    end(Proxy::start(&folder.setup("")).await).await;
    let lost: Vec<_> = all(&folder).into_iter().filter(|record| record["type"] == "lost").collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!(lost[0]["records"], WITHOUT_ROOM);
    accept(&[folder.path()]);
}

/// The end does not wait for it, and says what that costs.
#[tokio::test]
async fn what_a_disk_that_hangs_at_the_end_loses_is_told_in_the_log() {
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup("")).await;
    let mut connection = proxy.connect(Http::Two).await;
    let _lease = rotate_into_a_hang(&proxy, &folder);
    wait_until_failing(&proxy, true).await;
    for _ in 0..3 {
        connection.send(&encrypt()).await.ok();
    }
    drop(connection);
    proxy.signal("TERM");
    assert_eq!(proxy.wait_for_log(lost_at_the_end)["records"], 3);
    end(proxy).await;
}

fn lost_at_the_end(line: &Value) -> bool {
    line["message"] == "audit records are lost: they could not be written before the end"
}

fn all(folder: &AuditFolder) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.path()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_full_disk_lets_no_success_leave_where_each_must_be_on_record() {
    let folder = AuditFolder::new();
    let proxy = Proxy::start(&folder.setup("on_failure = \"refuse\"\nsync = true")).await;
    let mut connection = proxy.connect(Http::Two).await;
    for count in 1..=5 {
        connection.send(&encrypt()).await.ok();
        assert_eq!(folder.requests().len(), count, "the record is there before the answer");
    }
    fill_the_disk(&proxy, &folder);
    // The first finds out.
    assert_eq!(connection.send(&encrypt()).await.refusal(), (500, "InternalException".to_owned()));
    expect_refusal(&proxy, &mut connection).await;
    wait_until_failing(&proxy, true).await;
    limit_file_size(&proxy, "unlimited");
    wait_until_failing(&proxy, false).await;
    proxy.wait_until_ready().await;
    connection.send(&encrypt()).await.ok();
    assert_eq!(health(&mut connection).await, "ACTIVE");
    end(proxy).await;
    assert!(!accept(&[folder.path()]).contains("torn"), "what was written in part is taken back");
    let outcomes: Vec<_> = folder.requests().iter().map(|record| record["outcome"].clone()).collect();
    let ok = |count| vec![Value::from("ok"); count];
    // The HSM had encrypted when it was found out; what came behind was refused before.
    let refused = ["withheld", "InternalException", "InternalException", "ok"].map(Value::from).to_vec();
    assert_eq!(outcomes, [ok(5), refused, ok(2)].concat());
}

/// A lease: whoever opens the file waits until it is given back, for 45 s at most.
struct Lease(Child);

impl Lease {
    fn take(folder: &AuditFolder) -> Self {
        const PROGRAM: &str = "
import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'w')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('taken', flush=True)
sys.stdin.read()
";
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "taken\n");
        Self(child)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Moves the file away, as logrotate does, so that opening the new one hangs.
fn rotate_into_a_hang(proxy: &Proxy, folder: &AuditFolder) -> Lease {
    std::fs::rename(folder.path(), folder.path().with_extension("1")).unwrap();
    let lease = Lease::take(folder);
    proxy.signal("HUP");
    lease
}

#[tokio::test]
async fn a_disk_that_hangs_refuses_everything_or_nothing_as_configured() {
    for mode in ["continue", "refuse"] {
        let folder = AuditFolder::new();
        let proxy = Proxy::start(&folder.setup(&format!("on_failure = \"{mode}\""))).await;
        let mut connection = proxy.connect(Http::Two).await;
        connection.send(&encrypt()).await.ok();
        folder.wait_for_requests(1).await;
        let lease = rotate_into_a_hang(&proxy, &folder);
        wait_until_failing(&proxy, true).await;
        if mode == "refuse" {
            expect_refusal(&proxy, &mut connection).await;
        } else {
            connection.send(&encrypt()).await.ok();
            // Its record waits, though the thread that hangs has not taken it.
            proxy.wait_for("/metrics", |_, text| audit_lag(text) > 1.0).await;
            assert_eq!(health(&mut connection).await, "ACTIVE");
            assert_eq!(plain_get(proxy.ping, "/ping").await.0, 200);
        }
        drop(lease);
        wait_until_failing(&proxy, false).await;
        connection.send(&encrypt()).await.ok();
        end(proxy).await;
        let old = folder.path().with_extension("1");
        let further = if mode == "refuse" { 4 } else { 3 };
        assert_eq!((requests(&old).len(), folder.requests().len()), (1, further), "{mode}");
        accept(&[old, folder.path()]);
    }
}

/// The HSM has done its work, the record waits for the disk, and the client leaves.
#[tokio::test]
async fn a_client_that_leaves_while_its_record_is_being_written_has_one() {
    let folder = AuditFolder::new();
    let faults = Faults::new();
    let proxy = Proxy::start(&faults.between(folder.setup("on_failure = \"refuse\""))).await;
    faults.set("C_Encrypt hang until_removed");
    let mut connection = RawConnection::open(proxy.address).await;
    let peer = connection.local_address().to_string();
    let authority = format!("localhost:{}", proxy.address.port());
    connection.send(&xks_harness::client::raw_http1(&encrypt(), &authority)).await;
    faults.wait_until_inside(Function::Encrypt, 1).await;
    let lease = rotate_into_a_hang(&proxy, &folder);
    wait_until_failing(&proxy, true).await;
    faults.clear();
    // The record has been handed over.
    proxy.wait_for("/metrics", |_, text| audit_lag(text) > 0.0).await;
    drop(connection);
    let line = proxy.wait_for_log(|line| line["peer"] == peer.as_str());
    assert_eq!(line["outcome"], "abandoned", "nobody was given an answer");
    drop(lease);
    wait_until_failing(&proxy, false).await;
    end(proxy).await;
    let records = folder.requests();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["outcome"], "withheld");
    accept(&[folder.path().with_extension("1"), folder.path()]);
}

/// A deadline that passes while the record is being written: the caller has a failure, and the record says so.
#[tokio::test]
async fn an_answer_whose_record_is_late_is_withheld() {
    let folder = AuditFolder::new();
    let faults = Faults::new();
    let setup = xks_harness::Setup {
        timeouts: "answer_ms = 4000\nfirst_answer_ms = 4000".to_owned(),
        ..xks_harness::Setup::default()
    };
    let proxy = Proxy::start(&faults.between(folder.setup_of("on_failure = \"refuse\"", setup))).await;
    faults.set("C_Encrypt hang until_removed");
    let mut connection = proxy.connect(Http::Two).await;
    let request = tokio::spawn(async move { connection.send(&encrypt()).await.error().1 });
    faults.wait_until_inside(Function::Encrypt, 1).await;
    let lease = rotate_into_a_hang(&proxy, &folder);
    wait_until_failing(&proxy, true).await;
    faults.clear();
    let error = request.await.unwrap();
    drop(lease);
    wait_until_failing(&proxy, false).await;
    end(proxy).await;
    let records = folder.requests();
    assert_eq!(records.len(), 1, "{records:?}");
    // A machine so busy that the HSM was too late already says that instead.
    match error.as_str() {
        "InternalException" => assert_eq!(records[0]["outcome"], "withheld"),
        other => assert_eq!(records[0]["outcome"], other),
    }
}
