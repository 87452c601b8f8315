//! The chain on disk: crashes, restarts, rotation and failures.

mod tampering;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;
use xks_spec::RequestMetadata;

use super::*;

struct Desk {
    folder: TempDir,
    on_failure: OnFailure,
    hmac_key: Option<Secret>,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), on_failure: OnFailure::Continue, hmac_key: None }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    fn settings(&self) -> AuditSettings {
        AuditSettings {
            path: self.path(),
            on_failure: self.on_failure,
            is_synced: false,
            hmac_key: self.hmac_key.clone(),
        }
    }

    fn try_open(&self) -> Result<Audit, AuditFault> {
        Audit::open(self.settings(), &Arc::new(Metrics::new()))
    }

    fn open(&self) -> Audit {
        self.try_open().unwrap()
    }

    /// One life of a process with so many requests.
    fn live(&self, requests: usize) {
        let audit = self.open();
        (0..requests).for_each(|_| audit.push(record()));
        audit.close();
    }

    fn head_path(&self) -> PathBuf {
        self.folder.path().join("audit.log.head")
    }

    /// One life with so many requests, and no end: what a kill leaves. The number of its last record.
    fn die(&self, requests: u64) -> u64 {
        let seq =
            || -> Option<u64> { fs::read_to_string(self.head_path()).ok()?.split(' ').next()?.parse().ok() };
        let last = seq().unwrap_or(0) + 1 + requests;
        let audit = self.open();
        (0..requests).for_each(|_| audit.push(record()));
        wait_until(|| seq() == Some(last));
        let files = [self.path(), self.head_path()].map(|path| (fs::read(&path).unwrap(), path));
        audit.close();
        drop(audit);
        files.iter().for_each(|(content, path)| fs::write(path, content).unwrap());
        last
    }

    /// The file is moved away, as logrotate does.
    fn move_away(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::rename(self.path(), &path).unwrap();
        path
    }

    fn append(&self, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.path()).unwrap().write_all(bytes).unwrap();
    }

    fn hasher(&self) -> Hasher {
        Hasher::new(self.hmac_key.as_ref())
    }

    fn verify(&self, paths: &[PathBuf]) -> Result<Verified, VerifyFault> {
        verify(paths, &self.hasher(), Expected::default())
    }
}

fn record() -> Box<RequestRecord> {
    Box::new(RequestRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001),
        operation: "Encrypt",
        store: "a".into(),
        external_key_id: Some("k".into()),
        key_version: Some(1),
        outcome: "ok",
        reason: None,
        policy: None,
        access_key_id: "ID".into(),
        peer: "192.0.2.1:1".parse().unwrap(),
        balancer: None,
        certificate_subject: None,
        http: "2",
        request_metadata: (&RequestMetadata::default()).into(),
        is_aws_sample: false,
        token_serial: Some("serial".into()),
        is_hedged: false,
        hsm_calls: 1,
        total_us: 10,
        queue_us: 2,
        hsm_us: 3,
        request_bytes: 100,
        answer_bytes: 200,
    })
}

fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn types(path: &Path) -> Vec<String> {
    records(path).iter().map(|record| record["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_handed_over_as_the_log_ends_is_written_before_its_end() {
    let desk = Desk::new();
    let (messages, waiting) = flume::bounded(8);
    let shared = Arc::new(Shared::new(desk.settings(), &Arc::new(Metrics::new()), messages));
    let writer = Writer::open(Arc::clone(&shared)).unwrap();
    (0..3).for_each(|_| shared.send(record(), None).unwrap());
    writer.end(&waiting);
    assert_eq!(types(&desk.path()), ["opened", "request", "request", "request", "closed"]);
    desk.verify(&[desk.path()]).unwrap();
}

/// A log whose thread does not run, and whose last write has failed just now.
fn failing(desk: &Desk) -> (Arc<Shared>, Writer, flume::Receiver<Message>) {
    let (messages, waiting) = flume::bounded(8);
    let shared = Arc::new(Shared::new(desk.settings(), &Arc::new(Metrics::new()), messages));
    let mut writer = Writer::open(Arc::clone(&shared)).unwrap();
    (0..3).for_each(|_| shared.send(record(), None).unwrap());
    writer.fail(&AuditFault::NotAFile(desk.path()));
    (shared, writer, waiting)
}

#[test]
fn the_end_tries_once_more_though_a_try_has_failed_just_now() {
    let desk = Desk::new();
    let (shared, writer, waiting) = failing(&desk);
    writer.end(&waiting);
    assert_eq!(types(&desk.path()), ["opened", "request", "request", "request", "closed"]);
    assert_eq!((shared.metrics.audit_records_lost.get(), shared.unwritten.load(Ordering::Relaxed)), (0, 0));
    desk.verify(&[desk.path()]).unwrap();
}

#[test]
fn what_is_lost_at_the_end_is_told_by_the_next_process() {
    let desk = Desk::new();
    desk.live(1);
    let whole = desk.move_away("whole");
    let (shared, writer, waiting) = failing(&desk);
    // No file can have that name.
    fs::remove_file(desk.path()).unwrap();
    fs::create_dir(desk.path()).unwrap();
    writer.end(&waiting);
    assert_eq!((shared.metrics.audit_records_lost.get(), shared.unwritten.load(Ordering::Relaxed)), (3, 3));
    fs::remove_dir(desk.path()).unwrap();
    for (lives, expected) in
        [(1, vec!["opened", "lost", "request", "closed"]), (2, vec!["opened", "request", "closed"])]
    {
        desk.live(1);
        let next = desk.move_away(&format!("life-{lives}"));
        assert_eq!(types(&next), expected);
    }
    let next = desk.folder.path().join("life-1");
    assert_eq!(records(&next)[1]["records"], 3);
    desk.verify(&[whole, next]).unwrap();
}

#[test]
fn a_record_says_who_did_what_and_nothing_else() {
    let desk = Desk::new();
    desk.live(1);
    assert_eq!(types(&desk.path()), ["opened", "request", "closed"]);
    let text = fs::read_to_string(desk.path()).unwrap();
    let line = text.lines().nth(1).unwrap();
    let start = line.find(r#""type""#).unwrap();
    let end = line.find(r#","hash""#).unwrap();
    let expected = r#""type":"request","time":"2023-11-14T22:13:20.000001Z","operation":"Encrypt","store":"a","externalKeyId":"k","keyVersion":1,"outcome":"ok","reason":null,"policy":null,"accessKeyId":"ID","peer":"192.0.2.1:1","balancer":null,"certificateSubject":null,"http":"2","requestMetadata":{},"isAwsSample":false,"tokenSerial":"serial","isHedged":false,"hsmCalls":1,"totalUs":10,"queueUs":2,"hsmUs":3,"requestBytes":100,"answerBytes":200"#;
    assert_eq!(&line[start..end], expected);
}

#[test]
fn the_chain_goes_on_over_restart_and_rotation() {
    let desk = Desk::new();
    desk.live(3);
    desk.live(2);
    // Moved away while no process was there.
    let first = desk.move_away("audit.log.2");
    let audit = desk.open();
    audit.push(record());
    // Written before the file is moved away.
    wait_until(|| desk.path().exists() && types(&desk.path()).len() == 2);
    let second = desk.move_away("audit.log.1");
    audit.reopen();
    wait_until(|| desk.path().exists() && !records(&desk.path()).is_empty());
    audit.push(record());
    audit.close();
    assert_eq!(records(&desk.path())[0]["reason"], "rotation");
    let files = [desk.path(), second.clone(), first.clone()];
    let verified = desk.verify(&files).unwrap();
    assert_eq!((verified.first, verified.head.seq, verified.is_closed), (1, 14, true));
    // A file that is gone is missed, unless it is the last.
    assert!(matches!(
        desk.verify(&[first.clone(), desk.path()]),
        Err(VerifyFault::Removed { first: 10, last: 11, .. })
    ));
    assert!(matches!(desk.verify(&[second, desk.path()]), Err(VerifyFault::NoBeginning { seq: 10, .. })));
    let before = desk.verify(&[first]).unwrap().head.hash;
    let after = |after| verify(&files[..2], &desk.hasher(), Expected { after: Some(after), head: None });
    assert_eq!(after(before).unwrap().head, verified.head);
    assert!(matches!(after(Hash::NONE), Err(VerifyFault::NotAfter { seq: 10, .. })));
}

#[test]
fn a_file_that_was_not_moved_goes_on() {
    let desk = Desk::new();
    let audit = desk.open();
    wait_until(|| desk.path().exists() && records(&desk.path()).len() == 1);
    audit.reopen();
    audit.push(record());
    audit.close();
    assert_eq!(types(&desk.path()), ["opened", "request", "closed"]);
}

/// Whatever a kill leaves of the last batch, it is a crash, and the chain goes on behind it.
#[test]
fn a_torn_line_is_a_crash_and_no_tampering() {
    let desk = Desk::new();
    desk.live(2);
    let whole = fs::read(desk.path()).unwrap();
    let last_line = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for cut in last_line + 1..whole.len() - 1 {
        fs::write(desk.path(), &whole[..cut]).unwrap();
        fs::remove_file(desk.folder.path().join("audit.log.head")).unwrap();
        let verified = desk.verify(&[desk.path()]).unwrap();
        assert_eq!((verified.head.seq, verified.torn.len(), verified.torn[0].line), (3, 1, 4));
        assert!(verified.is_end_torn, "nothing says yet what it was");
        desk.live(1);
        let verified = desk.verify(&[desk.path()]).unwrap();
        assert_eq!((verified.head.seq, verified.torn.len(), verified.torn[0].line), (6, 1, 4));
        assert!(!verified.is_end_torn, "the record behind it does");
        // What was torn cannot be made another, nor be taken away.
        let text = fs::read(desk.path()).unwrap();
        let mut changed = text.clone();
        changed[last_line] ^= 1;
        fs::write(desk.path(), &changed).unwrap();
        assert!(desk.verify(&[desk.path()]).is_err());
        fs::write(desk.path(), [&text[..last_line], &text[cut + 1..]].concat()).unwrap();
        assert!(desk.verify(&[desk.path()]).is_err());
    }
}

/// Nobody was told that it was written, and it is whole nevertheless.
#[test]
fn a_record_cut_before_its_line_break_is_completed() {
    let desk = Desk::new();
    desk.live(1);
    let whole = fs::read(desk.path()).unwrap();
    fs::write(desk.path(), &whole[..whole.len() - 1]).unwrap();
    assert_eq!(desk.verify(&[desk.path()]).unwrap().torn.len(), 1);
    desk.live(1);
    let verified = desk.verify(&[desk.path()]).unwrap();
    assert_eq!((verified.torn.len(), verified.head.seq), (0, 6));
}

#[test]
fn a_crash_in_the_first_record_or_before_a_rotation_is_a_crash_too() {
    let desk = Desk::new();
    fs::write(desk.path(), br#"{"seq":1,"pre"#).unwrap();
    desk.live(1);
    assert_eq!(desk.verify(&[desk.path()]).unwrap().torn.len(), 1);
    assert_eq!(desk.die(1), 5);
    desk.append(br#"{"seq":6,"#);
    let old = desk.move_away("old");
    desk.live(1);
    let verified = desk.verify(&[old, desk.path()]).unwrap();
    assert_eq!((verified.torn.len(), verified.head.seq), (2, 8));
    // What no next record begins with is no crash.
    for bytes in ["x", r#"{"seq":10,"#, r#"{"seq":9,"prev":"zz"#] {
        let whole = fs::read(desk.path()).unwrap();
        desk.append(bytes.as_bytes());
        let fault = verify(
            &[desk.path()],
            &desk.hasher(),
            Expected { after: Hash::parse(prev(&desk.path()).as_bytes()), head: None },
        );
        assert!(matches!(fault, Err(VerifyFault::Changed { seq: 9, .. })), "{bytes}");
        fs::write(desk.path(), whole).unwrap();
    }
}

/// A process that goes on after a rotation, or has stopped in order, left no torn line.
#[test]
fn what_is_appended_where_nothing_crashed_is_tampering() {
    let desk = Desk::new();
    let audit = desk.open();
    audit.push(record());
    wait_until(|| desk.path().exists() && types(&desk.path()).len() == 2);
    let rotated = desk.move_away("rotated");
    audit.reopen();
    wait_until(|| desk.path().exists() && !records(&desk.path()).is_empty());
    audit.close();
    drop(audit);
    let stopped = desk.move_away("stopped");
    desk.live(1);
    let files = [rotated.clone(), stopped.clone(), desk.path()];
    assert_eq!(desk.verify(&files).unwrap().torn, []);
    for (file, next) in [(&rotated, &stopped), (&stopped, &files[2])] {
        let (whole, next) = (fs::read(file).unwrap(), fs::read(next).unwrap());
        for bytes in [1, 8, 90, 200] {
            fs::write(file, [&whole[..], &next[..bytes]].concat()).unwrap();
            let verified = desk.verify(&files);
            assert!(matches!(verified, Err(VerifyFault::Changed { .. })), "{bytes} of {verified:?}");
        }
        fs::write(file, whole).unwrap();
    }
}

/// What the first record of a file carries of the one before.
fn prev(path: &Path) -> String {
    let first = fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned();
    serde_json::from_str::<Value>(&first).unwrap()["prev"].as_str().unwrap().to_owned()
}

/// What is cut off while nobody writes shows by the head file, even where no head is at hand to compare with.
#[test]
fn a_tail_that_is_cut_before_a_restart_stays_missing() {
    let desk = Desk::new();
    desk.live(5);
    let text = fs::read_to_string(desk.path()).unwrap();
    let cut: String = text.split_inclusive('\n').take(4).collect();
    fs::write(desk.path(), cut).unwrap();
    desk.verify(&[desk.path()]).unwrap();
    desk.live(1);
    assert!(matches!(desk.verify(&[desk.path()]), Err(VerifyFault::Removed { first: 5, last: 7, .. })));
}

#[test]
fn a_kill_between_the_record_and_the_head_file_is_no_gap() {
    let desk = Desk::new();
    desk.live(1);
    let head_path = desk.folder.path().join("audit.log.head");
    let head = fs::read(&head_path).unwrap();
    desk.live(1);
    fs::write(&head_path, head).unwrap();
    desk.live(1);
    assert_eq!(desk.verify(&[desk.path()]).unwrap().head.seq, 9);
}

#[test]
fn two_processes_on_one_file_are_refused() {
    let desk = Desk::new();
    let audit = desk.open();
    assert!(matches!(desk.try_open(), Err(AuditFault::InUse(_))));
    // Nor where the file was moved away meanwhile.
    wait_until(|| desk.path().exists());
    desk.move_away("old");
    assert!(matches!(desk.try_open(), Err(AuditFault::InUse(_))));
    audit.close();
    drop(audit);
    desk.live(1);
}

#[test]
fn two_processes_that_know_one_file_by_two_names_are_refused() {
    let desk = Desk::new();
    let audit = desk.open();
    wait_until(|| desk.path().exists());
    let (hard, soft) = (desk.folder.path().join("hard.log"), desk.folder.path().join("soft.log"));
    fs::hard_link(desk.path(), &hard).unwrap();
    std::os::unix::fs::symlink(desk.path(), &soft).unwrap();
    let open = |path: &Path| {
        let settings = AuditSettings {
            path: path.to_owned(),
            on_failure: desk.on_failure,
            is_synced: false,
            hmac_key: None,
        };
        Audit::open(settings, &Arc::new(Metrics::new()))
    };
    for path in [&hard, &soft] {
        let fault = open(path).map(|_| ()).unwrap_err();
        assert!(matches!(&fault, AuditFault::InUse(named) if named == path), "{fault}");
    }
    audit.close();
    drop(audit);
    open(&hard).unwrap().close();
    assert!(desk.verify(&[hard]).is_ok(), "once nobody has it, the chain goes on under the other name");
}

#[test]
fn what_is_no_audit_file_is_left_alone() {
    let desk = Desk::new();
    fs::write(desk.path(), "root:x:0:0\n").unwrap();
    assert!(matches!(desk.try_open(), Err(AuditFault::NotAnAuditFile(_))));
    assert_eq!(fs::read(desk.path()).unwrap(), b"root:x:0:0\n");
    fs::remove_file(desk.path()).unwrap();
    std::os::unix::fs::symlink("/dev/full", desk.path()).unwrap();
    assert!(matches!(desk.try_open(), Err(AuditFault::NotAFile(_))));
}

#[test]
fn a_key_makes_the_chain_one_that_nobody_else_can_make() {
    let key = |text: &str| Some(Secret::copy_of(&text.repeat(32)));
    let mut desk = Desk { hmac_key: key("a"), ..Desk::new() };
    desk.live(2);
    desk.verify(&[desk.path()]).unwrap();
    desk.hmac_key = key("b");
    assert!(matches!(desk.verify(&[desk.path()]), Err(VerifyFault::Changed { seq: 1, .. })));
    assert!(matches!(desk.try_open(), Err(AuditFault::NotAnAuditFile(_))));
    desk.hmac_key = None;
    assert!(desk.verify(&[desk.path()]).is_err());
}

/// Whoever makes the hashes anew from some record on must stop somewhere, or lose the head.
#[test]
fn a_record_that_was_changed_and_hashed_anew_is_named() {
    let desk = Desk::new();
    desk.live(4);
    let text = fs::read_to_string(desk.path()).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let prev = Hash::parse(records(&desk.path())[2]["prev"].as_str().unwrap().as_bytes()).unwrap();
    let mut forged = Vec::new();
    let mut other = record();
    other.store = "b".into();
    Head { seq: 2, hash: prev }.append(&desk.hasher(), &record::Entry::Request(other), &mut forged);
    lines[2] = String::from_utf8(forged).unwrap().trim_end().to_owned();
    fs::write(desk.path(), lines.join("\n") + "\n").unwrap();
    let fault = desk.verify(&[desk.path()]).unwrap_err();
    assert!(matches!(&fault, VerifyFault::Spliced { seq: 4, .. }), "{fault}");
    assert!(fault.to_string().contains("record 3: either that one was changed"), "{fault}");
}

#[tokio::test]
async fn where_the_new_file_cannot_be_had_the_one_before_goes_on() {
    let desk = Desk { on_failure: OnFailure::Refuse, ..Desk::new() };
    let audit = desk.open();
    let soon = || Deadline::after(clock::now(), Duration::from_secs(60));
    audit.write(record(), soon()).await.unwrap();
    desk.move_away("old");
    fs::create_dir(desk.path()).unwrap();
    audit.reopen();
    audit.write(record(), soon()).await.unwrap();
    assert!(!audit.is_refusing());
    fs::remove_dir(desk.path()).unwrap();
    audit.close();
    assert_eq!(types(&desk.folder.path().join("old")), ["opened", "request", "request", "closed"]);
}

/// Between the last look at who waits and the end of the write, somebody may give up.
#[test]
fn a_success_that_was_written_too_late_is_taken_back() {
    let desk = Desk::new();
    let audit = desk.open();
    audit.close();
    drop(audit);
    let settings =
        AuditSettings { path: desk.path(), on_failure: OnFailure::Refuse, is_synced: false, hmac_key: None };
    let (shared, waiting) = shared(settings);
    shared.close_wanted.store(true, Ordering::Release);
    let mut writer = Writer::open(shared).unwrap();
    let late = |outcome| {
        let (written, _) = oneshot::channel();
        Pending {
            record: Box::new(RequestRecord { outcome, ..*record() }),
            bytes: 0,
            queued_ms: 0,
            written: Some(written),
        }
    };
    writer.acknowledge(vec![(7, late("ok")), (8, late("KeyNotFoundException"))]);
    writer.run(&waiting);
    let records = records(&desk.path());
    let withheld: Vec<_> = records.iter().filter(|record| record["type"] == "withheld").collect();
    assert_eq!(withheld.len(), 1, "{records:?}");
    assert_eq!(withheld[0]["record"], 7);
}

fn shared(settings: AuditSettings) -> (Arc<Shared>, flume::Receiver<Message>) {
    let (messages, waiting) = flume::bounded(2);
    let shared = Shared::new(settings, &Arc::new(Metrics::new()), messages);
    (Arc::new(shared), waiting)
}

/// A queue that is full costs records, which are counted, and no time.
#[test]
fn a_sink_that_hangs_costs_records_and_delays_nobody() {
    let desk = Desk::new();
    let (shared, waiting) = shared(desk.open().shared.settings.clone());
    let hung = Audit { shared };
    (0..5).for_each(|_| hung.push(record()));
    assert_eq!(waiting.len(), 2);
    assert_eq!(hung.shared.lost.load(Ordering::Relaxed), 3);
    assert_eq!(hung.shared.metrics.audit_records_lost.get(), 3);
    // Nor do few records that are long take more memory than is theirs.
    let mut long = record();
    let other = serde_json::json!({ "x": " ".repeat(MAX_QUEUED_BYTES) });
    long.request_metadata = (&serde_json::from_value::<RequestMetadata>(other).unwrap()).into();
    drop(waiting.drain());
    hung.push(long);
    hung.push(record());
    assert_eq!(hung.shared.lost.load(Ordering::Relaxed), 4);
}

fn wait_until(is_so: impl Fn() -> bool) {
    let until = clock::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(clock::now() < until, "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}
