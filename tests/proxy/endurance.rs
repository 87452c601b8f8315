//! Two tokens under steady load, with the deadlines that the proxy has unless told otherwise: one after the other hangs, is
//! gone, comes back, holds another key under the same name. And two slow tokens, with hedges and without.
//!
//! Half a minute in every run; minutes, and the comparison, with XKS_LONG_TESTS (`.ci/full`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::request::bytes_of;
use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Faults, Setup, SoftHsm};

use crate::fleet::asked_second;
use crate::tokens::aes_gcm::{KEY, hex, open};
use crate::tokens::rig::{AAD, Client, DEFAULT_DEADLINES, PLAINTEXT, RECOVERY, Rig};

const SECOND: &str = "xks-second";
/// The deadline of every request but a connection's first.
const DEADLINE: Duration = Duration::from_millis(200);
/// Clients, each with a request every [`PERIOD`].
const CLIENTS: usize = 4;
const PERIOD: Duration = Duration::from_millis(40);
/// A thread of the test that only sleeps was this late: what the machine did not give it, it did not give the proxy.
const STALL: Duration = Duration::from_millis(20);

fn is_long() -> bool {
    std::env::var_os("XKS_LONG_TESTS").is_some()
}

/// Two tokens of one module with the same keys.
fn tokens() -> SoftHsm {
    let token = SoftHsm::empty();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    for name in [LABEL, SECOND] {
        token.tool(&["generate", "--token", name, "--label", "xks-health"]);
        import(&token, name, &KEY);
    }
    token
}

fn import(token: &SoftHsm, name: &str, value: &[u8]) {
    token.tool(&["import", "--token", name, "--label", "demo", "--value", &hex(value)]);
}

fn setup(store: &str) -> Setup {
    let lines = "sessions = 2\nintervals = { health_probe_ms = 500 }";
    Setup {
        tokens: r#"["softhsm", "second"]"#.to_owned(),
        token: lines.to_owned(),
        store: store.to_owned(),
        keys: "[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n".to_owned(),
        timeouts: DEFAULT_DEADLINES.to_owned(),
        more: format!(
            "[[tokens]]\nname = \"second\"\nmodule = {:?}\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\n{lines}\n",
            Faults::module().display().to_string()
        ),
        ..Setup::default()
    }
}

async fn start(store: &str) -> Rig {
    let rig = Rig::start_with_faults(setup(store), tokens(), "");
    rig.proxy.wait_until_ready().await;
    wait_for(&rig, "both tokens", |health| health == ["ACTIVE", "ACTIVE"]).await;
    rig.wait_until_it_serves().await;
    rig
}

async fn wait_for(rig: &Rig, what: &str, is_so: impl Fn(&[String]) -> bool) {
    let until = Instant::now() + RECOVERY;
    loop {
        let answer = rig.client().await.health().await;
        if answer.status == 200 {
            let details = answer.json()["ekmFleetDetails"].as_array().unwrap().clone();
            let status = |token: &Value| token["healthStatus"].as_str().unwrap().to_owned();
            if is_so(&details.iter().map(status).collect::<Vec<_>>()) {
                return;
            }
        }
        assert!(Instant::now() < until, "waited in vain for {what}: {:?}\n{}", answer.body, rig.last_lines());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// When the machine did not run a thread that wanted to.
#[derive(Default)]
struct Stalls {
    is_over: AtomicBool,
    found: Mutex<Vec<(Instant, Instant)>>,
}

impl Stalls {
    fn watch() -> Arc<Self> {
        let stalls = Arc::new(Self::default());
        let watcher = Arc::clone(&stalls);
        std::thread::spawn(move || {
            const NAP: Duration = Duration::from_millis(2);
            while !watcher.is_over.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(NAP);
                if before.elapsed() > NAP + STALL {
                    watcher.found.lock().unwrap().push((before, Instant::now()));
                }
            }
        });
        stalls
    }

    fn overlap(&self, began: Instant, ended: Instant) -> bool {
        self.found.lock().unwrap().iter().any(|(from, to)| *from < ended && *to > began)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    latencies: Mutex<Vec<Duration>>,
    failures: Mutex<Vec<String>>,
    ivs: Mutex<HashSet<Vec<u8>>>,
    /// Timed out while the machine stalled.
    excused: AtomicUsize,
}

/// Encrypts and decrypts at a steady rate until told to stop.
async fn drive(mut client: Client, seen: Arc<Seen>, stalls: Arc<Stalls>, is_over: Arc<AtomicBool>) {
    // A connection's first request has less time.
    client.health().await;
    let mut last: Option<Value> = None;
    let mut due = tokio::time::interval(PERIOD);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !is_over.load(Ordering::Relaxed) {
        due.tick().await;
        let began = Instant::now();
        let sealed = last.take();
        let answer = match &sealed {
            None => client.encrypt("demo").await,
            Some(sealed) => client.decrypt("demo", sealed).await,
        };
        let (took, is_stalled) = (began.elapsed(), stalls.overlap(began, Instant::now()));
        if answer.status == 200 {
            let body = answer.json();
            let wrong = match sealed {
                Some(_) => bytes_of(&body["plaintext"]) != PLAINTEXT,
                None => {
                    let iv = bytes_of(&body["initializationVector"]);
                    let is_bad = open(&KEY, &body, AAD).as_deref() != Some(PLAINTEXT)
                        || !seen.ivs.lock().unwrap().insert(iv);
                    last = Some(body);
                    is_bad
                }
            };
            if wrong {
                seen.failures.lock().unwrap().push("a wrong answer".to_owned());
            }
        } else if is_stalled && answer.error().1 == "DependencyTimeoutException" {
            seen.excused.fetch_add(1, Ordering::Relaxed);
        } else {
            let failure = format!("{:?} after {took:?}", answer.error());
            seen.failures.lock().unwrap().push(failure);
        }
        if !is_stalled || took <= DEADLINE {
            seen.latencies.lock().unwrap().push(took);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Hung,
    Killed,
    Rekeyed,
}

/// Troubles a token for a while, and waits until it is well again.
async fn trouble(rig: &Rig, name: &str, place: usize, what: Trouble, lasts: Duration) {
    match what {
        Trouble::Hung => rig.faults.set(&format!("* hang until_removed token={name}")),
        Trouble::Killed => rig.faults.set(&format!("* remove_token token={name}")),
        Trouble::Rekeyed => {
            rig.proxy.token.tool(&["destroy", "--token", name, "--label", "demo"]);
            import(&rig.proxy.token, name, b"another key under the same name.");
        }
    }
    wait_for(rig, &format!("{name} to be {what:?}"), |health| health[place] != "ACTIVE").await;
    tokio::time::sleep(lasts).await;
    match what {
        Trouble::Hung | Trouble::Killed => rig.faults.clear(),
        Trouble::Rekeyed => {
            rig.proxy.token.tool(&["destroy", "--token", name, "--label", "demo"]);
            import(&rig.proxy.token, name, &KEY);
        }
    }
    wait_for(rig, "both tokens", |health| health == ["ACTIVE", "ACTIVE"]).await;
}

/// Not one request fails, and 99 in 100 are answered by their deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_after_the_other_hangs_is_killed_and_rekeyed_and_no_request_fails() {
    let (rounds, lasts) =
        if is_long() { (4, Duration::from_secs(10)) } else { (1, Duration::from_millis(1500)) };
    let rig = start("").await;
    let (seen, stalls) = (Arc::new(Seen::default()), Stalls::watch());
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in rig.clients(CLIENTS).await {
        let (seen, stalls, is_over) = (Arc::clone(&seen), Arc::clone(&stalls), Arc::clone(&is_over));
        clients.push(tokio::spawn(drive(client, seen, stalls, is_over)));
    }
    for _ in 0..rounds {
        for what in [Trouble::Hung, Trouble::Killed, Trouble::Rekeyed] {
            for (place, name) in [LABEL, SECOND].into_iter().enumerate() {
                trouble(&rig, name, place, what, lasts).await;
                let failures = seen.failures.lock().unwrap().clone();
                assert!(failures.is_empty(), "{name} {what:?}: {failures:?}\n{}", rig.last_lines());
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let mut latencies = seen.latencies.lock().unwrap().clone();
    latencies.sort_unstable();
    let p99 = latencies[latencies.len() * 99 / 100];
    let excused = seen.excused.load(Ordering::Relaxed);
    println!(
        "{} requests, no failure of the proxy; p50 {:?}, p99 {p99:?}, longest {:?}; {excused} timed out while the machine stalled",
        latencies.len(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() - 1],
    );
    assert!(p99 < DEADLINE, "{p99:?}");
    assert!(excused * 50 <= latencies.len(), "the machine stalled too often to judge the rest: {excused}");
}

/// What C_Encrypt takes on a token that is well, and on one that is slowed tenfold.
const WELL_MS: u64 = 10;
const SLOW_MS: u64 = 10 * WELL_MS;
/// Two tokens with two sessions each.
const SESSIONS: u64 = 4;

/// Offers encryptions at a rate, whatever becomes of them; how many were right and in time.
async fn offer(rig: &Rig, rate: u64, lasts: Duration) -> (u64, u64) {
    let (idle, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    for mut client in rig.clients(96).await {
        client.health().await;
        idle.send(client).unwrap();
    }
    let in_time = Arc::new(AtomicUsize::new(0));
    let mut due = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate).unwrap());
    let until = Instant::now() + lasts;
    let (mut offered, mut tasks) = (0, Vec::new());
    while Instant::now() < until {
        due.tick().await;
        offered += 1;
        let Ok(mut client) = waiting.try_recv() else { continue };
        let (idle, in_time) = (idle.clone(), Arc::clone(&in_time));
        tasks.push(tokio::spawn(async move {
            let answer = client.encrypt("demo").await;
            in_time.fetch_add(usize::from(answer.status == 200), Ordering::Relaxed);
            let _ = idle.send(client);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    (in_time.load(Ordering::Relaxed) as u64, offered)
}

/// A hedge is more work. Where both tokens are slow it must not take from what they can do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hedges_cost_no_goodput_while_both_tokens_are_slow() {
    let (rounds, lasts) = if is_long() { (4, Duration::from_secs(8)) } else { (1, Duration::from_secs(2)) };
    let settings = [("with hedges", "hedges = true"), ("without", "hedges = false")];
    let rigs = [start(settings[0].1).await, start(settings[1].1).await];
    for rig in &rigs {
        rig.faults.set(&format!("C_Encrypt delay_ms={SLOW_MS} label=demo"));
    }
    let capacity = SESSIONS * 1000 / WELL_MS;
    println!("| load | {} | {} |\n|---|---|---|", settings[0].0, settings[1].0);
    for (load, rate) in
        [("as the tokens could do when well", capacity), ("as they can do now", capacity / 10)]
    {
        let rate = rate * 8 / 10;
        let mut goodput = [0; 2];
        let mut offered = [0; 2];
        for _ in 0..rounds {
            for (place, rig) in rigs.iter().enumerate() {
                let (right, sent) = offer(rig, rate, lasts).await;
                goodput[place] += right;
                offered[place] += sent;
            }
        }
        let secs = rounds * lasts.as_secs();
        println!(
            "| 80 % of what {load}, {rate}/s | {}.{}/s | {}.{}/s |",
            goodput[0] / secs,
            goodput[0] * 10 / secs % 10,
            goodput[1] / secs,
            goodput[1] * 10 / secs % 10,
        );
        assert!(goodput[0] > 0 && goodput[1] > 0, "{goodput:?} of {offered:?}");
        if is_long() {
            // Turns of the same kind differ by as much.
            assert!(goodput[0] * 100 >= goodput[1] * 95, "{load}: {goodput:?} of {offered:?}");
        }
    }
    for (rig, (name, _)) in rigs.iter().zip(settings) {
        let mut asked = 0.0;
        for token in ["softhsm", "second"] {
            for reason in ["failed", "hung", "hedge"] {
                asked += rig.proxy.metric(&asked_second(token, reason)).await;
            }
        }
        println!("{name}: a second token was asked {asked} times");
    }
}
