//! Rotating as the documentation says, with the stanzas that the command prints.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::proxy::{PATIENCE, main_store, nested_store};
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::{Answer, Connection, Http, Proxy, Setup, SoftHsm, XksRequest};

use super::desk::Desk;
use super::{assert_as_it_should_be, assert_serves};
use crate::reload::rig::{Reloading, UNWATCHED};
use crate::reload::versions::{two_tokens, versions};

const SECRET: &[u8] = b"kept through a rotation";

/// The entries of both steps, as `rotate` printed them.
fn steps(text: &str) -> [String; 2] {
    let (_, rest) = text.split_once("# Step 1").unwrap();
    let (first, second) = rest.split_once("# Step 2").unwrap();
    [first, second].map(|step| step.split_once('\n').unwrap().1.to_owned())
}

fn with_keys(keys: &str) -> Setup {
    Setup { keys: keys.to_owned(), ..Setup::default() }
}

const DEMO: &str = "[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n";

fn rotate_demo(desk: &Desk) -> [String; 2] {
    let (code, text, errors) = desk.keys(&["rotate", "--store", "main", "--key", "demo"]);
    assert_eq!(code, Some(0), "{errors}");
    steps(&text)
}

#[test]
fn rotate_stages_the_next_version_and_then_makes_it_primary() {
    let desk = Desk::new(with_keys(DEMO), SoftHsm::with_keys());
    let [staged, promoted] = rotate_demo(&desk);
    assert_as_it_should_be(&desk.token, "demo@2");
    let states = |entry: &str| -> Vec<String> {
        entry
            .lines()
            .filter(|line| line.starts_with("number") || line.starts_with("state"))
            .map(Into::into)
            .collect()
    };
    assert_eq!(states(&staged), ["number = 1", "state = \"primary\"", "number = 2", "state = \"staged\""]);
    assert_eq!(states(&promoted), ["number = 1", "state = \"retired\"", "number = 2", "state = \"primary\""]);
    for entry in [&staged, &promoted] {
        assert_eq!(entry.matches("check_value = \"v1:").count(), 2, "{entry}");
        let desk = Desk { setup: with_keys(entry), token: Arc::clone(&desk.token) };
        let (code, text, _) = desk.check();
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(text.matches("is the key of its check value").count(), 2, "{text}");
    }
    // One at a time.
    let half_way = Desk { setup: with_keys(&staged), token: Arc::clone(&desk.token) };
    let (code, _, errors) = half_way.keys(&["rotate", "--store", "main", "--key", "demo"]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("version 2 is staged already"), "{errors}");

    let desk = Desk { setup: with_keys(&promoted), token: desk.token };
    let [staged, _] = rotate_demo(&desk);
    assert!(staged.contains("label = \"demo@3\""), "{staged}");
    assert_as_it_should_be(&desk.token, "demo@3");
}

/// Whatever became of versions that only decrypt, the next one is made and its entries are printed.
#[test]
fn rotate_leaves_a_retired_version_unpinned_that_makes_no_check_value() {
    for retired in ["decrypt-only", "not-there"] {
        let keys = versions(&[(1, retired, "retired"), (2, "demo", "primary")]);
        let desk = Desk::new(with_keys(&keys), SoftHsm::with_keys());
        let [staged, _] = rotate_demo(&desk);
        assert_eq!(staged.matches("check_value = \"v1:").count(), 2, "{retired}: {staged}");
        assert!(staged.contains("number = 3"), "{staged}");
    }
}

/// What would keep it from being repeated.
#[test]
fn rotate_makes_no_key_where_a_version_that_is_needed_makes_no_check_value() {
    for primary in ["decrypt-only", "not-there"] {
        let keys = versions(&[(1, "demo", "retired"), (2, primary, "primary")]);
        let desk = Desk::new(with_keys(&keys), SoftHsm::with_keys());
        let before = desk.token.tool(&["list", "--json"]);
        let (code, text, errors) = desk.keys(&["rotate", "--store", "main", "--key", "demo"]);
        assert_eq!((code, text.as_str()), (Some(1), ""), "{errors}");
        assert!(errors.contains(primary), "{errors}");
        assert_eq!(desk.token.tool(&["list", "--json"]), before, "the token is as it was");
    }
}

/// A number stands for one key for ever, also where the configuration knows it no more.
#[tokio::test]
async fn rotate_gives_no_number_twice() {
    let token = Arc::new(SoftHsm::with_keys());
    for label in ["nested-a", "nested-a@7"] {
        token.generate(label, &[]);
    }
    let state = tempfile::tempdir().unwrap();
    let with = |keys: String, rule: &str| Setup {
        keys,
        nested_rule: format!("{{ label_prefix = \"nested-\", versions = [{rule}] }}"),
        more: format!("[state]\ndir = {:?}\n", state.path().display().to_string()),
        ..Setup::default()
    };
    let first = "{ number = 1, state = \"primary\" }";
    let seventh = format!("{first}, {{ number = 7, state = \"staged\" }}");
    let setup = with(versions(&[(1, "demo", "primary"), (9, "demo-2", "staged")]), &seventh);
    let mut proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
    let mut connection = proxy.connect(Http::One).await;
    let body = encrypt_body(SECRET, None, false);
    connection.send(&XksRequest::encrypt(&nested_store(), "a", &body)).await.ok();
    // A version of the rule is met with its first ciphertext alone.
    let mut sealed = connection.send(&XksRequest::encrypt(&nested_store(), "a", &body)).await.ok();
    sealed["ciphertextMetadata"] = xks_harness::request::base64(&[1, 0, 0, 0, 7]).into();
    connection.send(&XksRequest::decrypt(&nested_store(), "a", &decrypt_body(&sealed, None))).await;
    proxy.signal("TERM");
    assert!(proxy.wait_for_exit().success(), "{}", proxy.all_output());

    let desk = Desk { setup: with(versions(&[(1, "demo", "primary")]), first), token };
    let [staged, _] = rotate_demo(&desk);
    assert!(staged.contains("number = 10") && staged.contains("label = \"demo@10\""), "{staged}");
    let (code, text, errors) = desk.keys(&["rotate", "--store", "nested"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("made version 8 of 1 keys"), "{text}");
}

#[tokio::test]
async fn rotate_makes_the_next_version_of_every_key_of_a_rule() {
    let token = SoftHsm::with_keys();
    for label in ["nested-a", "nested-b"] {
        token.generate(label, &[]);
    }
    let desk = Desk::new(with_keys(DEMO), token);
    let (code, text, errors) = desk.keys(&["rotate", "--store", "nested"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("made version 2 of 2 keys"), "{text}");
    for label in ["nested-a@2", "nested-b@2"] {
        assert_as_it_should_be(&desk.token, label);
    }
    let rule = |step: &str| step.trim().strip_prefix("key_rule = ").unwrap().to_owned();
    let [staged, promoted] = steps(&text).map(|step| rule(&step));
    let setup = |nested_rule: &str| Setup { nested_rule: nested_rule.to_owned(), ..with_keys(DEMO) };

    // A key that came meanwhile has no version 2 yet.
    desk.token.generate("nested-c", &[]);
    let desk = Desk { setup: setup(&staged), token: desk.token };
    let (code, text, _) = desk.keys(&["check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("version 2, staged, is missing in token softhsm for c:"), "{text}");
    let too_early = Desk { setup: setup(&promoted), token: Arc::clone(&desk.token) };
    let (code, text, _) = too_early.keys(&["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("version 2, primary, is missing in token softhsm: c cannot encrypt"), "{text}");
    let (code, text, errors) = desk.keys(&["rotate", "--store", "nested"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("made version 2 of 1 keys in token softhsm; 3 have it now"), "{text}");
    assert_serves(&setup(&promoted), &desk.token, &nested_store(), "c").await;
}

/// Traffic to whichever proxies are live: what one encrypts another decrypts.
struct Traffic {
    live: Mutex<Vec<SocketAddr>>,
    is_over: AtomicBool,
    /// Round trips of each task.
    rounds: [AtomicUsize; TASKS],
    kept: Mutex<Vec<Value>>,
}

const TASKS: usize = 3;
/// Round trips of each task between two changes: so many that each pair of proxies has been met.
const ROUNDS: usize = 12;

impl Traffic {
    fn start(live: Vec<SocketAddr>) -> (Arc<Self>, Vec<tokio::task::JoinHandle<()>>) {
        let traffic = Arc::new(Self {
            live: Mutex::new(live),
            is_over: AtomicBool::new(false),
            rounds: Default::default(),
            kept: Mutex::default(),
        });
        let tasks = (0..TASKS).map(|task| tokio::spawn(Arc::clone(&traffic).run(task))).collect();
        (traffic, tasks)
    }

    async fn run(self: Arc<Self>, task: usize) {
        for round in 0_usize.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let live = self.live.lock().unwrap().clone();
            let from = live[round % live.len()];
            let to = live[(round / live.len() + task) % live.len()];
            let body = encrypt_body(SECRET, Some(b"context"), false);
            let made = send(from, &XksRequest::encrypt(&main_store(), "demo", &body)).await.ok();
            assert_decrypts(to, &made).await;
            self.kept.lock().unwrap().push(made);
            self.rounds[task].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until each task has done so many more round trips: then none uses an address that is no longer live.
    async fn go_on(&self) {
        let until = Instant::now() + PATIENCE;
        let goals: Vec<_> = self.rounds.iter().map(|done| done.load(Ordering::Relaxed) + ROUNDS).collect();
        while self.rounds.iter().zip(&goals).any(|(done, goal)| done.load(Ordering::Relaxed) < *goal) {
            assert!(Instant::now() < until, "a request has failed, and with it its task");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Replaces a proxy by one with another configuration, as a load balancer sees a restart.
    async fn replace(&self, place: usize, proxies: &mut [Proxy], setup: &Setup) {
        let token = Arc::clone(&proxies[place].token);
        let new = Proxy::start_on(setup, token).await;
        self.live.lock().unwrap()[place] = new.address;
        self.go_on().await;
        let mut old = std::mem::replace(&mut proxies[place], new);
        old.signal("TERM");
        assert!(old.wait_for_exit().success());
    }

    fn versions(&self) -> BTreeSet<u8> {
        let metadata = |made: &Value| bytes_of(&made["ciphertextMetadata"])[4];
        self.kept.lock().unwrap().iter().map(metadata).collect()
    }
}

async fn send(address: SocketAddr, request: &XksRequest) -> Answer {
    Connection::open(address, Http::One).await.send(request).await
}

async fn assert_decrypts(address: SocketAddr, made: &Value) {
    let body = decrypt_body(made, Some(b"context"));
    let decrypted = send(address, &XksRequest::decrypt(&main_store(), "demo", &body)).await.ok();
    assert_eq!(bytes_of(&decrypted["plaintext"]), SECRET);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_rotate_one_after_the_other_under_load_and_no_request_fails() {
    let token = Arc::new(SoftHsm::with_keys());
    let mut proxies = Vec::new();
    for _ in 0..2 {
        proxies.push(Proxy::start_on(&with_keys(DEMO), Arc::clone(&token)).await);
    }
    let (traffic, tasks) = Traffic::start(proxies.iter().map(|proxy| proxy.address).collect());
    traffic.go_on().await;

    let desk = Desk { setup: with_keys(DEMO), token };
    let [staged, promoted] = tokio::task::spawn_blocking(move || rotate_demo(&desk)).await.unwrap();
    for place in [0, 1] {
        traffic.replace(place, &mut proxies, &with_keys(&staged)).await;
    }
    assert_eq!(traffic.versions(), BTreeSet::from([1]), "a staged version encrypts nothing");
    traffic.replace(0, &mut proxies, &with_keys(&promoted)).await;
    assert_eq!(traffic.versions(), BTreeSet::from([1, 2]));
    traffic.replace(1, &mut proxies, &with_keys(&promoted)).await;
    traffic.go_on().await;

    traffic.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        // A request that failed has ended its task.
        task.await.unwrap();
    }
    let made = encrypt_body(SECRET, Some(b"context"), false);
    for proxy in &proxies {
        let made = send(proxy.address, &XksRequest::encrypt(&main_store(), "demo", &made)).await.ok();
        assert_eq!(bytes_of(&made["ciphertextMetadata"]), [1, 0, 0, 0, 2]);
        let unknown = proxy.metric("xks_unknown_key_versions_total{store=\"main\"}").await;
        assert!(unknown.abs() < 0.5);
    }
    let kept = std::mem::take(&mut *traffic.kept.lock().unwrap());
    for made in kept.iter().step_by(1 + kept.len() / 40) {
        assert_decrypts(proxies[0].address, made).await;
    }
}

/// As in life: neither proxy restarts, and each store has two tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_reload_one_after_the_other_on_two_tokens_under_load_and_no_request_fails() {
    let value = |byte: u8| format!("{byte:02x}").repeat(32);
    let (setup, token) = two_tokens(&[("demo", &value(1)), ("demo@2", &value(2))]);
    let token = Arc::new(token);
    let setup = Setup { more: setup.more + UNWATCHED, ..setup };
    let mut proxies = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::start_on(&setup, Arc::clone(&token)).await;
        // A version becomes primary only where every token has it.
        proxy.wait_for("/readyz?verbose", |_, text| text.contains("token second active\n")).await;
        proxies.push(Reloading { proxy, setup: setup.clone() });
    }
    let (traffic, tasks) = Traffic::start(proxies.iter().map(|reloading| reloading.proxy.address).collect());
    traffic.go_on().await;
    let mut seen = BTreeSet::from([1]);
    for (states, encrypts_from) in [(["primary", "staged"], 1), (["retired", "primary"], 2)] {
        let keys = versions(&[(1, "demo", states[0]), (2, "demo@2", states[1])]);
        for reloading in &proxies {
            let setup = Setup { keys: keys.clone(), ..setup.clone() };
            assert_eq!(reloading.reload_with(&setup).await, "ok", "{}", reloading.verbose().await);
            traffic.go_on().await;
            seen.insert(encrypts_from);
            assert_eq!(traffic.versions(), seen);
        }
    }
    traffic.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    for reloading in &proxies {
        let unknown = reloading.proxy.metric("xks_unknown_key_versions_total{store=\"main\"}").await;
        assert!(unknown.abs() < 0.5);
    }
    let kept = std::mem::take(&mut *traffic.kept.lock().unwrap());
    for made in kept.iter().step_by(1 + kept.len() / 40) {
        assert_decrypts(proxies[0].proxy.address, made).await;
    }
}

/// Why staging comes first.
#[tokio::test]
async fn a_proxy_that_was_not_told_of_a_version_refuses_what_it_made() {
    let desk = Desk::new(with_keys(DEMO), SoftHsm::with_keys());
    let [_, promoted] = rotate_demo(&desk);
    let ahead = Proxy::start_on(&with_keys(&promoted), Arc::clone(&desk.token)).await;
    let behind = Proxy::start_on(&with_keys(DEMO), Arc::clone(&desk.token)).await;
    let body = encrypt_body(SECRET, Some(b"context"), false);
    let made = send(ahead.address, &XksRequest::encrypt(&main_store(), "demo", &body)).await.ok();
    let body = decrypt_body(&made, Some(b"context"));
    let refusal = send(behind.address, &XksRequest::decrypt(&main_store(), "demo", &body)).await.refusal();
    assert_eq!(refusal, (400, "InvalidCiphertextException".to_owned()));
    assert!((behind.metric("xks_unknown_key_versions_total{store=\"main\"}").await - 1.0).abs() < 0.5);
}
