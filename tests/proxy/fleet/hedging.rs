//! Which token is asked first, when a second one is, and when a call is not begun at all.

use std::time::{Duration, Instant};

use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Faults, Function, Setup, Signing, SoftHsm, Store};

use super::{SECOND, asked_second, same_keys, setup, wait_until_both_serve};
use crate::tokens::rig::{RECOVERY, Rig};

/// The configuration's names of the two tokens.
const NAMES: [&str; 2] = ["softhsm", "second"];
/// Calls by which a token shows that it is slow, and does not hang.
const CALLS: usize = 12;

async fn start_with(setup: Setup) -> Rig {
    let rig = Rig::start_with_faults(setup, same_keys(), "");
    rig.proxy.wait_until_ready().await;
    wait_until_both_serve(&rig).await;
    rig
}

async fn seconds(rig: &Rig, reason: &str) -> f64 {
    rig.proxy.metric(&asked_second(NAMES[0], reason)).await
        + rig.proxy.metric(&asked_second(NAMES[1], reason)).await
}

/// Lets both tokens show how long their calls take.
async fn show_pace(rig: &Rig) {
    let send = |_, mut client: crate::tokens::rig::Client| async move {
        for _ in 0..CALLS / 4 {
            client.encrypt("demo").await;
        }
    };
    // As many at once as there are sessions, so that either token has its part.
    let _ = crate::tokens::rig::at_once(rig.clients(4).await, send).await;
}

/// The same as everywhere here, but calls that take long are neither replaced nor mixed with reads of attributes, which do not.
fn calm() -> Setup {
    let calm = |text: &str| {
        text.replace(
            "health_probe_ms = 200, key_attributes_ms = 100",
            "health_probe_ms = 30000, stuck_after_ms = 60000",
        )
    };
    let setup = setup();
    Setup { token: calm(&setup.token), more: calm(&setup.more), ..setup }
}

/// Both tokens are slow, so that a call which takes longer still is none that hangs: only a hedge is in time.
async fn with_a_slow_call(hedges: bool) -> Vec<u16> {
    let lines = format!("hedges = {hedges}\nhedge_after_percent = 40");
    let rig = start_with(Setup { store: lines, ..calm() }).await;
    let mut client = rig.client().await;
    // Saves up for hedges.
    for _ in 0..150 {
        client.encrypt("demo").await.ok();
    }
    let slow = "C_Encrypt delay_ms=700 label=demo";
    rig.faults.set(slow);
    show_pace(&rig).await;
    let hung = seconds(&rig, "hung").await;
    let mut told = Vec::new();
    for name in [LABEL, SECOND] {
        rig.faults.set(&format!("C_Encrypt delay_ms=5000 token={name} label=demo times=1\n{slow}"));
        // They take turns: one of the two meets it.
        for _ in 0..2 {
            told.push(client.encrypt("demo").await.status.as_u16());
        }
    }
    assert_eq!(seconds(&rig, "hung").await, hung, "a slow token does not hang");
    told
}

#[tokio::test]
async fn a_slow_call_is_hedged() {
    assert_eq!(with_a_slow_call(true).await, [200; 4]);
    assert!(with_a_slow_call(false).await.contains(&503), "without hedges it is late");
}

/// Other sessions of the same token go on meanwhile, and no hedge is allowed: it is no hedge.
#[tokio::test]
async fn a_call_that_hangs_costs_no_request_though_the_token_answers_others() {
    let rig = start_with(Setup { store: "hedges = false".to_owned(), ..setup() }).await;
    for (place, name) in [LABEL, SECOND].into_iter().enumerate() {
        rig.faults.set(&format!("C_Encrypt hang until_removed token={name} label=demo"));
        let other = rig.client().await;
        let goes_on = tokio::spawn(async move {
            let mut other = other;
            loop {
                other.encrypt("demo-2").await.ok();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let mut client = rig.client().await;
        let until = Instant::now() + RECOVERY;
        let reached = asked_second(NAMES[1 - place], "hung");
        while rig.proxy.metric(&reached).await == 0.0 {
            client.encrypt("demo").await.ok();
            assert!(Instant::now() < until, "{name} was never asked");
        }
        assert!(!goes_on.is_finished(), "another key's request failed");
        goes_on.abort();
        rig.faults.clear();
        super::wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
    }
    assert_eq!(seconds(&rig, "hedge").await, 0.0);
}

#[tokio::test]
async fn one_request_in_twenty_is_hedged_at_most() {
    let rig = start_with(Setup { store: "hedge_after_percent = 5".to_owned(), ..calm() }).await;
    let requests = || async {
        let (_, text) = rig.proxy.admin("/metrics").await;
        let lines = text.lines().filter(|line| line.starts_with("xks_requests_total{"));
        let of = |line: &&str| line.contains("operation=\"Encrypt\"") && line.contains("store=\"main\"");
        lines.filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    // Each call is slow enough for a hedge, after 100 ms, and none hangs.
    rig.faults.set("C_Encrypt delay_ms=150 label=demo");
    show_pace(&rig).await;
    let mut client = rig.client().await;
    for _ in 0..50 {
        client.encrypt("demo").await.ok();
    }
    let (all, hedged) = (requests().await, seconds(&rig, "hedge").await);
    assert!(all > 50.0 && hedged > 0.0);
    // The first one is given in advance.
    assert!(hedged <= 1.0 + all / 20.0, "{hedged} of {all}");
}

/// A store on one of the two tokens alone, by which that token is given work.
fn alone(place: usize) -> (Store, String) {
    let store = Store {
        prefix: format!("/alone-{place}"),
        signing: Signing::new(
            &format!("ALONE{}TESTKEYID234567ABCDE", place + 2),
            "alone+secret/alone+secret/alone+secret/alone+1",
        ),
    };
    let toml = format!(
        "[[stores]]\nname = \"alone-{place}\"\nuri_path_prefix = \"{}\"\ntokens = [\"{}\"]\nauthorization = \"none\"\n\
         [[stores.keys]]\nexternal_key_id = \"busy\"\nlabel = \"busy\"\n\
         [[stores.credentials]]\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
        store.prefix, NAMES[place], store.signing.access_key_id, store.signing.secret_access_key
    );
    (store, toml)
}

/// Two tokens with a store of each alone besides; calls that hang are not replaced meanwhile.
async fn start_with_stores_alone(store: &str) -> Rig {
    let intervals = "intervals = { health_probe_ms = 30000, stuck_after_ms = 60000 }";
    let more = format!(
        "[[tokens]]\nname = \"second\"\nmodule = {:?}\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\nsessions = 2\n{intervals}\n{}{}",
        Faults::module().display().to_string(),
        alone(0).1,
        alone(1).1
    );
    let token = SoftHsm::empty();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    for name in [LABEL, SECOND] {
        for label in ["xks-health", "busy"] {
            token.tool(&["generate", "--token", name, "--label", label]);
        }
        token.tool(&["import", "--token", name, "--label", "demo", "--value", super::ONE_VALUE]);
    }
    let setup = Setup {
        token: format!("sessions = 2\n{intervals}"),
        keys: "[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n".to_owned(),
        store: store.to_owned(),
        more,
        ..setup()
    };
    let rig = Rig::start_with_faults(Setup { timeouts: Setup::default().timeouts, ..setup }, token, "");
    rig.proxy.wait_until_ready().await;
    wait_until_both_serve(&rig).await;
    for place in [0, 1] {
        rig.client_of(alone(place).0).await.encrypt("busy").await.ok();
    }
    rig
}

/// Requests that occupy a token's sessions and wait in its queue until the fault is over.
async fn occupy(rig: &Rig, place: usize, requests: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for _ in 0..requests {
        let mut client = rig.client_of(alone(place).0).await;
        tasks.push(tokio::spawn(async move { drop(client.encrypt("busy").await.ok()) }));
    }
    tasks
}

async fn wait_for_in_flight(rig: &Rig, count: usize) {
    let line = format!("xks_requests_in_flight {count}\n");
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&line)).await;
}

#[tokio::test]
async fn the_token_with_less_to_do_is_asked() {
    let rig = start_with_stores_alone("").await;
    for (less, queued) in [(0, [3, 6]), (1, [6, 3])] {
        rig.faults.set("C_Encrypt hang until_removed label=busy");
        let mut busy = occupy(&rig, 0, queued[0]).await;
        busy.extend(occupy(&rig, 1, queued[1]).await);
        rig.faults.wait_until_inside(Function::Encrypt, 4).await;
        wait_for_in_flight(&rig, 9).await;
        let mut client = rig.client().await;
        let asks = tokio::spawn(async move {
            client.encrypt("demo").await.ok();
            client.request_id
        });
        wait_for_in_flight(&rig, 10).await;
        rig.faults.clear();
        let line = rig.proxy.request_log(&asks.await.unwrap());
        let connected = rig
            .proxy
            .wait_for_log(|line| line["message"] == "connected to the token" && line["token"] == NAMES[less]);
        assert_eq!(line["token_serial"], connected["serial"], "queues of {queued:?}");
        for task in busy {
            task.await.unwrap();
        }
    }
}

/// A hedge is more work: a token that has enough of it gets none.
#[tokio::test]
async fn a_token_without_an_idle_session_is_given_no_hedge() {
    let rig = start_with_stores_alone("hedge_after_percent = 5").await;
    // Its share of the deadline is 1.5 s.
    let slow = format!("C_Encrypt delay_ms=1700 token={LABEL} label=demo\n");
    rig.faults.set(&slow);
    show_pace(&rig).await;
    rig.faults.set(&format!("{slow}C_Encrypt hang until_removed label=busy"));
    let before = seconds(&rig, "hedge").await;
    let busy = occupy(&rig, 1, 8).await;
    rig.faults.wait_until_inside(Function::Encrypt, 2).await;
    wait_for_in_flight(&rig, 8).await;
    let mut client = rig.client().await;
    // The other one is asked first, for it has less to do.
    for _ in 0..2 {
        client.encrypt("demo").await.ok();
    }
    assert_eq!(seconds(&rig, "hedge").await, before);
    // The same once it has idle sessions.
    rig.faults.set(&slow);
    for task in busy {
        task.await.unwrap();
    }
    let until = Instant::now() + RECOVERY;
    while seconds(&rig, "hedge").await == before {
        client.encrypt("demo").await.ok();
        assert!(Instant::now() < until, "it is never given one");
    }
}

/// What would end after its deadline only keeps the next one waiting.
#[tokio::test]
async fn a_call_that_cannot_end_by_its_deadline_is_not_begun() {
    let setup = Setup {
        token: "sessions = 1\nintervals = { health_probe_ms = 30000, stuck_after_ms = 60000 }".to_owned(),
        timeouts: "answer_ms = 1500\nfirst_answer_ms = 1500".to_owned(),
        ..Setup::default()
    };
    let rig = Rig::start(setup).await;
    rig.faults.set("C_Encrypt delay_ms=400 label=demo");
    let mut client = rig.client().await;
    for _ in 0..CALLS / 2 {
        client.encrypt("demo").await;
    }
    let before = rig.faults.calls(Function::Encrypt);
    let send = |_, mut client: crate::tokens::rig::Client| async move { client.encrypt("demo").await.status };
    let told = crate::tokens::rig::at_once(rig.clients(8).await, send).await;
    // Three take 1,200 ms; the fourth's turn comes with 300 ms left. Most are not even let into the queue: 429.
    let begun = rig.faults.calls(Function::Encrypt) - before;
    assert!(begun <= 3, "{begun} begun, {told:?}");
    assert!(told.iter().filter(|status| [429, 503].contains(&status.as_u16())).count() >= 5, "{told:?}");
}
