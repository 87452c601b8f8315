//! What is left in the process's memory once a request has been answered and its connection closed: neither plaintext nor,
//! outside locked pages, a secret.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::Value;
use xks_harness::proxy::main_store;
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::token::PIN;
use xks_harness::{Function, Http, Proxy, Setup, XksRequest};

use crate::reload::Reloading;
use crate::tokens::rig::Rig;

/// Nowhere else in the process, and in this test only as a pattern to be made of a seed.
fn marker(seed: u8) -> Vec<u8> {
    (0..48_u8).map(|n| n.wrapping_mul(73).wrapping_add(seed).rotate_left(3) ^ 0xa5).collect()
}

/// What to look for: the middle of the bytes and of their Base64, so that an end that was overwritten hides nothing.
fn patterns(secret: &[u8]) -> Vec<Vec<u8>> {
    let text = xks_harness::request::base64(secret).into_bytes();
    [secret, &text].iter().map(|form| form[form.len() / 3..][..form.len() / 3].to_vec()).collect()
}

/// A stretch of the process's memory that can be read.
struct Mapping {
    start: u64,
    length: usize,
    name: String,
    /// Nobody else sees what is written there.
    is_private: bool,
    is_locked: bool,
}

/// Smaller pages do not exist.
const PAGE_BYTES: usize = 4096;

impl Mapping {
    /// Its bytes, and how many of them were read. Page by page, since one that cannot be read hides none of the others.
    fn read(&self, memory: &File) -> (Vec<u8>, usize) {
        let (mut bytes, mut read) = (vec![0; self.length], 0);
        let starts = (self.start..).step_by(PAGE_BYTES);
        for (page, start) in bytes.chunks_mut(PAGE_BYTES).zip(starts) {
            if memory.read_exact_at(page, start).is_ok() {
                read += page.len();
            }
        }
        (bytes, read)
    }
}

fn mappings(process_id: u32) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{process_id}/smaps")).unwrap().lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "VmFlags:" {
            all.last_mut().unwrap().is_locked = words.any(|flag| flag == "lo");
        } else if let Some((start, end)) = first.split_once('-') {
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            let rights = words.next().unwrap();
            let (is_readable, is_private) = (rights.starts_with('r'), rights.ends_with('p'));
            let name = words.nth(3).unwrap_or_default().to_owned();
            // The kernel's own pages cannot be read.
            let length = if is_readable && !name.starts_with("[v") { end - start } else { 0 };
            let length = usize::try_from(length).unwrap();
            all.push(Mapping { start, length, name, is_private, is_locked: false });
        }
    }
    all
}

/// Where a pattern lies in the proxy's memory.
fn found(proxy: &Proxy, pattern: &[u8]) -> Vec<Mapping> {
    found_in(proxy.pid(), pattern)
}

/// Where a pattern lies in a process's memory. Some of that may go while it is read; a search that has not seen nearly all
/// of it would show nothing.
fn found_in(process_id: u32, pattern: &[u8]) -> Vec<Mapping> {
    let memory =
        File::open(format!("/proc/{process_id}/mem")).expect("only root may look into the proxy's memory");
    let (mut found, mut private_bytes, mut read_bytes) = (Vec::new(), 0, 0);
    for mapping in mappings(process_id) {
        let (bytes, read) = mapping.read(&memory);
        if mapping.is_private {
            private_bytes += mapping.length;
            read_bytes += read;
        }
        if contains(&bytes, pattern) {
            found.push(mapping);
        }
    }
    assert!(
        private_bytes > 0 && read_bytes >= private_bytes / 100 * 99,
        "of {private_bytes} bytes {read_bytes} were read"
    );
    found
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == pattern[0]) {
        at += next;
        if bytes[at..].starts_with(pattern) {
            return true;
        }
        at += 1;
    }
    false
}

fn describe(found: &[Mapping]) -> Vec<String> {
    found.iter().map(|mapping| format!("{:#x} {}", mapping.start, mapping.name)).collect()
}

/// Encrypts and decrypts over a connection that is closed then, and waits until the proxy has forgotten it.
async fn round_trip(proxy: &Proxy, http: Http, plaintext: &[u8]) -> Value {
    let mut connection = proxy.connect(http).await;
    let body = encrypt_body(plaintext, Some(b"context"), true);
    let encrypted = connection.send(&XksRequest::encrypt(&main_store(), "demo", &body)).await.ok();
    let body = decrypt_body(&encrypted, Some(b"context"));
    let decrypted = connection.send(&XksRequest::decrypt(&main_store(), "demo", &body)).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), plaintext);
    drop(connection);
    proxy.wait_for("/metrics", |_, text| text.lines().any(|line| line == "xks_connections 0")).await;
    encrypted
}

/// In the middle of an encryption the plaintext is there to be found.
async fn is_found_in_mid_request(rig: &Rig, plaintext: &[u8]) {
    // Of the key that stores use, not of that which health probes use.
    rig.faults.set("C_Encrypt hang until_removed label=demo");
    let mut connection = rig.proxy.connect(Http::One).await;
    let request = XksRequest::encrypt(&main_store(), "demo", &encrypt_body(plaintext, None, false));
    let pending = tokio::spawn(async move { connection.send(&request).await.ok() });
    rig.faults.wait_until_inside(Function::Encrypt, 1).await;
    let [raw, _] = patterns(plaintext).try_into().unwrap();
    assert!(!found(&rig.proxy, &raw).is_empty(), "the search finds nothing, and so shows nothing");
    rig.faults.clear();
    pending.await.unwrap();
}

#[tokio::test]
async fn no_plaintext_is_left_in_memory_or_output() {
    let rig = Rig::start(Setup::default()).await;
    is_found_in_mid_request(&rig, &marker(1)).await;
    for (seed, http) in [(1, Http::One), (2, Http::One), (3, Http::Two)] {
        round_trip(&rig.proxy, http, &marker(seed)).await;
        for pattern in patterns(&marker(seed)) {
            let left = found(&rig.proxy, &pattern);
            assert!(left.is_empty(), "{http:?}: {:?}", describe(&left));
            assert!(!contains(rig.proxy.all_output().as_bytes(), &pattern));
        }
    }
}

/// The same search finds what is left where freed memory is not wiped: it would find it above.
#[tokio::test]
async fn without_wiping_plaintexts_are_left() {
    let control = ("XKS_CONTROL_RUN".to_owned(), "keep-freed-memory".to_owned());
    let proxy = Proxy::start(&Setup { process_environment: vec![control], ..Setup::default() }).await;
    round_trip(&proxy, Http::One, &marker(4)).await;
    let left: usize = patterns(&marker(4)).iter().map(|pattern| found(&proxy, pattern).len()).sum();
    assert!(left > 0, "freed memory is wiped all the same, or the search does not find it");
}

/// In locked pages, and nowhere else.
fn assert_is_locked(what: &str, places: Vec<Mapping>) {
    assert!(places.iter().any(|place| place.is_locked), "the {what} is nowhere");
    let unlocked: Vec<_> = places.into_iter().filter(|place| !place.is_locked).collect();
    assert!(unlocked.is_empty(), "the {what} lies in {:?}", describe(&unlocked));
}

/// Of 48 characters, and in no other place of this process but the file that it is written to.
const AUDIT_KEY: &str = "8a1f3c5e7092b4d6f8e1a3c5b7d9f0e2a4c6e8b0d2f4a6c8";

#[tokio::test]
async fn secrets_lie_in_locked_pages_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("audit.key"), AUDIT_KEY).unwrap();
    let audit = [("path", "audit.log"), ("hmac_key = { file", "audit.key")]
        .map(|(key, name)| format!("{key} = {:?}", folder.path().join(name).display().to_string()));
    let more = format!("[audit]\n{}\n{} }}\n", audit[0], audit[1]);
    let proxy = Proxy::start(&Setup { more, ..Setup::default() }).await;
    round_trip(&proxy, Http::One, &marker(5)).await;
    let secret = main_store().signing.secret_access_key;
    for (what, secret) in [("secret", secret.as_str()), ("PIN", PIN), ("audit key", AUDIT_KEY)] {
        assert_is_locked(what, found(&proxy, secret.as_bytes()));
        assert!(!proxy.all_output().contains(secret), "the {what} was printed");
    }
}

/// Once, by the first reload for whose secrets no locked page is left.
#[tokio::test]
async fn secrets_of_a_reload_that_cannot_be_locked_are_told_of() {
    // Root may lock whatever the limit, unless it lacks that capability.
    let launcher = ["prlimit", "--memlock=8388608:8388608", "setpriv", "--bounding-set=-ipc_lock"];
    let launcher = launcher.map(str::to_owned).to_vec();
    let reloading = Reloading::start(Setup { launcher, ..Setup::default() }).await;
    let is_it =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("too little memory"));
    let told = || reloading.proxy.log_lines().into_iter().filter(is_it).count();
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(told(), 0);
    let limit = ["--pid", &reloading.proxy.pid().to_string(), "--memlock=4096:4096"];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    for _ in 0..2 {
        assert_eq!(reloading.reload().await, "ok");
        let _ = reloading.proxy.wait_for_log(is_it);
    }
    reloading.proxy.signal("TERM");
    let _ = reloading.proxy.wait_for_log(|line| line["message"] == "stopped");
    assert_eq!(told(), 1);
}

/// A helper has the PIN of its token, the plaintexts that pass through it, and nothing else.
#[tokio::test]
async fn a_helper_keeps_neither_plaintexts_nor_secrets() {
    let setup = Setup { token: "sessions = 2\nisolation = \"process\"".to_owned(), ..Setup::default() };
    let proxy = Proxy::start(&setup).await;
    round_trip(&proxy, Http::One, &marker(6)).await;
    let helper = crate::isolation::helper(&proxy, "softhsm");
    assert!(!found_in(helper, b"hsm-helper").is_empty(), "the search finds nothing, and so shows nothing");
    for process_id in [proxy.pid(), helper] {
        for pattern in patterns(&marker(6)) {
            let left = found_in(process_id, &pattern);
            assert!(left.is_empty(), "{:?}", describe(&left));
        }
    }
    let secret = main_store().signing.secret_access_key;
    let others = found_in(helper, secret.as_bytes());
    assert!(others.is_empty(), "signing secrets are not its business: {:?}", describe(&others));
    let unlocked: Vec<_> =
        found_in(helper, PIN.as_bytes()).into_iter().filter(|place| !place.is_locked).collect();
    assert!(unlocked.is_empty(), "the PIN lies in {:?}", describe(&unlocked));
}

#[tokio::test]
async fn there_are_no_core_dumps() {
    let proxy = Proxy::start(&Setup::default()).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
}
