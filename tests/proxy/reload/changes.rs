//! Each kind of change takes effect by a reload, and nothing else does.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use xks_harness::client::{tls, tls_config};
use xks_harness::pki::TestCa;
use xks_harness::proxy::{PATIENCE, main_store, nested_store};
use xks_harness::token::{PIN, SO_PIN};
use xks_harness::{Faults, Function, Http, Pki, Proxy, Setup, SoftHsm, Store};

use super::rig::{Reloading, UNWATCHED, credential, listed, main_store_as};
use super::versions::versions;

fn refused(name: &str, status: u16) -> (u16, String) {
    (status, name.to_owned())
}

#[tokio::test]
async fn keys_come_and_go_and_are_disabled() {
    let reloading = Reloading::start(Setup::default()).await;
    let mut client = reloading.client().await;
    let demo = client.encrypt("demo").await.ok();
    let keys = |disabled: &str| format!("{}{disabled}{}", listed("demo", "demo"), listed("new", "demo-2"));
    let setup = |keys: String| Setup { keys, ..reloading.setup.clone() };
    assert_eq!(client.encrypt("new").await.error(), refused("KeyNotFoundException", 404));

    assert_eq!(reloading.reload_with(&setup(keys(""))).await, "ok");
    client.encrypt("new").await.ok();
    client.decrypt("demo", &demo).await.ok();
    assert_eq!(client.encrypt("demo-2").await.error(), refused("KeyNotFoundException", 404), "it is gone");

    assert_eq!(reloading.reload_with(&setup(keys("enabled = false\n"))).await, "ok");
    assert_eq!(client.decrypt("demo", &demo).await.error(), refused("InvalidStateException", 400));
    client.encrypt("new").await.ok();

    assert_eq!(reloading.reload_with(&setup(keys(""))).await, "ok");
    client.decrypt("demo", &demo).await.ok();
}

#[tokio::test]
async fn versions_change_their_states() {
    let reloading = Reloading::start(Setup::default()).await;
    let mut client = reloading.client().await;
    let first = client.encrypt("demo").await.ok();
    let version = |number: u8, label: &str, state: &str| {
        format!("[[stores.keys.versions]]\nnumber = {number}\nlabel = \"{label}\"\nstate = \"{state}\"\n")
    };
    let keys = |states: [&str; 2]| {
        let [first, second] = states;
        let entry = "[[stores.keys]]\nexternal_key_id = \"demo\"\n";
        format!("{entry}{}{}", version(1, "demo", first), version(2, "demo-2", second))
    };
    let mut second = None;
    for (states, decrypts_first, encrypts_as) in [
        (["primary", "staged"], true, 1),
        (["retired", "primary"], true, 2),
        (["disabled", "primary"], false, 2),
        (["staged", "primary"], true, 2),
        (["primary", "retired"], true, 1),
    ] {
        let setup = Setup { keys: keys(states), ..reloading.setup.clone() };
        assert_eq!(reloading.reload_with(&setup).await, "ok", "{states:?}");
        let answer = client.decrypt("demo", &first).await;
        assert_eq!(answer.status == 200, decrypts_first, "{states:?}: {answer:?}");
        let made = client.encrypt("demo").await.ok();
        let metadata = xks_harness::request::bytes_of(&made["ciphertextMetadata"]);
        assert_eq!(metadata, [1, 0, 0, 0, encrypts_as], "{states:?}");
        if encrypts_as == 2 {
            second = Some(made);
        }
        if let Some(second) = &second {
            client.decrypt("demo", second).await.ok();
        }
    }
}

/// Store `third`, whose key `demo` has the label `third-demo`.
fn third_store() -> Store {
    Store { prefix: "/third".to_owned(), ..main_store_as(0) }
}

fn with_third_store(setup: &Setup) -> Setup {
    let more = format!(
        "{}[[stores]]\nname = \"third\"\nuri_path_prefix = \"/third\"\ntokens = [\"softhsm\"]\nauthorization = \"none\"\n{}{}",
        setup.more,
        listed("demo", "third-demo"),
        credential(&third_store())
    );
    Setup { more, ..setup.clone() }
}

#[tokio::test]
async fn stores_come_and_go() {
    let reloading = Reloading::start(Setup::default()).await;
    let third = third_store();
    reloading.proxy.token.generate("third-demo", &[]);
    let with_third = with_third_store(&reloading.setup);
    let mut client = reloading.client_of(third).await;
    assert_eq!(client.encrypt("demo").await.error(), refused("InvalidUriPathException", 404));
    assert_eq!(reloading.reload_with(&with_third).await, "ok");
    // It was waited for: the proxy is ready all the time, and so is the store.
    let made = client.encrypt("demo").await.ok();
    assert_eq!(reloading.proxy.admin("/readyz").await.0, 200);
    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
    assert_eq!(client.decrypt("demo", &made).await.error(), refused("InvalidUriPathException", 404));
    assert_eq!(reloading.reload_with(&with_third).await, "ok");
    client.decrypt("demo", &made).await.ok();
    let disabled = Setup { store: "enabled = false".to_owned(), ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&disabled).await, "ok");
    let answer = reloading.client().await.encrypt("demo").await;
    assert_eq!(answer.error(), refused("InvalidStateException", 400));
}

/// Keys that two stores cannot use on one token are two, and one once the other store is gone.
#[tokio::test]
async fn keys_out_of_use_on_a_token_are_those_of_all_stores_that_are_served() {
    let token = SoftHsm::with_keys();
    token.generate("demo", &["--id", "02", "--duplicate"]);
    for id in ["03", "04"] {
        token.generate("third-demo", &["--id", id, "--duplicate"]);
    }
    let alone = Setup { more: UNWATCHED.to_owned(), ..Setup::default() };
    let both = with_third_store(&alone);
    let reloading = Reloading { proxy: Proxy::start_on(&both, token.into()).await, setup: both };
    let out = |count: u8| format!("xks_token_keys_out{{reason=\"ambiguous\",token=\"softhsm\"}} {count}\n");
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(&out(2))).await;
    assert_eq!(reloading.reload_with(&alone).await, "ok");
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(&out(1))).await;
}

/// Nobody could bring an alert to its end that is about a store that is gone.
#[tokio::test]
async fn the_iv_budget_of_a_store_that_is_gone_is_shown_no_more() {
    const OF_THIRD: &str = "xks_iv_budget_used_ratio{store=\"third\"}";
    const OF_MAIN: &str = "xks_iv_budget_used_ratio{store=\"main\"}";
    let reloading = Reloading::start(Setup::default()).await;
    reloading.proxy.token.generate("third-demo", &[]);
    assert_eq!(reloading.reload_with(&with_third_store(&reloading.setup)).await, "ok");
    reloading.client_of(third_store()).await.encrypt("demo").await.ok();
    reloading.proxy.wait_for("/metrics", |_, text| text.contains(OF_THIRD)).await;
    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
    let mut client = reloading.client().await;
    // Each change shows that all stores were looked at once more; the first look may have begun before.
    for _ in 0..3 {
        let before = reloading.proxy.metric(OF_MAIN).await;
        client.encrypt("demo").await.ok();
        while reloading.proxy.metric(OF_MAIN).await <= before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let (_, text) = reloading.proxy.admin("/metrics").await;
    assert!(!text.contains(OF_THIRD), "{text}");
    assert!(!text.contains("xks_iv_budget_over_half{store=\"third\"}"), "{text}");
}

#[tokio::test]
async fn a_key_moves_to_another_store() {
    let setup = Setup { keys: listed("demo", "demo") + &listed("demo-2", "demo-2"), ..Setup::default() };
    let reloading = Reloading::start(setup).await;
    let mut main = reloading.client().await;
    let made = main.encrypt("demo").await.ok();
    // What stands at the end of the file belongs to store `nested`.
    let moved = Setup {
        keys: listed("demo-2", "demo-2"),
        more: format!("{}{}", listed("demo", "demo"), reloading.setup.more),
        ..reloading.setup.clone()
    };
    assert_eq!(reloading.reload_with(&moved).await, "ok");
    assert_eq!(main.encrypt("demo").await.error(), refused("KeyNotFoundException", 404));
    let mut nested = reloading.client_of(nested_store()).await;
    nested.decrypt("demo", &made).await.ok();
    // Without the entry the rule would make a key of that id, which is not there: removing it has to be meant.
    assert_eq!(reloading.reload_with(&reloading.setup).await, "keys_lost");
    assert_eq!(reloading.outcome_of(|this| this.proxy.signal("USR1")).await, "ok");
    main.decrypt("demo", &made).await.ok();
    assert_eq!(nested.encrypt("demo").await.error(), refused("KeyNotFoundException", 404));
}

#[tokio::test]
async fn quotas_change_and_one_that_stays_keeps_its_count() {
    let tight = |more: &str| Setup {
        quota: "requests_per_second = 1\nburst = 1".to_owned(),
        store: more.to_owned(),
        ..Setup::default()
    };
    let reloading = Reloading::start(Setup::default()).await;
    let unwatched = |setup: Setup| Setup { more: reloading.setup.more.clone(), ..setup };
    let mut client = reloading.client().await;
    for _ in 0..5 {
        client.encrypt("demo").await.ok();
    }
    assert_eq!(reloading.reload_with(&unwatched(tight(""))).await, "ok");
    let until = Instant::now() + PATIENCE;
    // The bucket fills within a second: on a slow machine it takes more than one try to see that it was kept.
    loop {
        while client.encrypt("demo").await.status == 200 {}
        let empty_at = Instant::now();
        assert_eq!(reloading.reload_with(&unwatched(tight("region = \"us-east-1\""))).await, "ok");
        let answer = client.encrypt("demo").await;
        if empty_at.elapsed() < Duration::from_millis(900) {
            assert_eq!(answer.error(), refused("ThrottlingException", 429));
            break;
        }
        assert!(Instant::now() < until);
    }
    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
    for _ in 0..5 {
        client.encrypt("demo").await.ok();
    }
}

async fn presented(reloading: &Reloading) -> Vec<u8> {
    let stream = tls(reloading.proxy.address, tls_config(Http::One)).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections() {
    let certificates = "[{ chain_file = \"ecdsa.pem\", key_file = \"ecdsa.key\" }]".to_owned();
    let reloading = Reloading::start(Setup { certificates, ..Setup::default() }).await;
    let mut client = reloading.client().await;
    let before = presented(&reloading).await;
    assert_eq!(reloading.reload().await, "ok");
    assert_eq!(presented(&reloading).await, before);
    let another = Pki::shared().another();
    fs::write(reloading.proxy.folder().join("ecdsa.pem"), &another.certificate).unwrap();
    fs::write(reloading.proxy.folder().join("ecdsa.key"), &another.key).unwrap();
    assert_eq!(reloading.reload().await, "ok");
    assert_ne!(presented(&reloading).await, before);
    client.encrypt("demo").await.ok();
    assert!(!client.connection.is_closed(), "trust has not changed");
}

/// What is on the disk by the time that tokens have answered is not what is served.
#[tokio::test]
async fn the_metrics_of_a_certificate_are_of_the_one_that_is_served() {
    let end_in_days = |days: u64| SystemTime::now() + Duration::from_secs(days * 24 * 3600);
    let issue = |days| TestCa::new("a CA").issue_server("localhost", "localhost", end_in_days(days));
    let faults = Faults::new();
    faults.set("");
    let setup = Setup {
        certificates: "[{ chain_file = \"ecdsa.pem\", key_file = \"ecdsa.key\" }]".to_owned(),
        keys: versions(&[(1, "demo", "primary"), (2, "demo-2", "staged")]),
        ..Setup::default()
    };
    let reloading = Reloading::start(faults.between(setup)).await;
    // The tokens are asked for the version, and hang.
    faults.set("C_Decrypt hang until_removed label=demo-2");
    let next = Setup {
        keys: versions(&[(1, "demo", "retired"), (2, "demo-2", "primary")]),
        ..reloading.setup.clone()
    };
    let (served, later) = (issue(200), issue(300));
    let chain = reloading.proxy.folder().join("ecdsa.pem");
    let reload = reloading.outcome_of(|this| {
        this.write(&next);
        fs::write(&chain, &served.certificate).unwrap();
        fs::write(this.proxy.folder().join("ecdsa.key"), &served.key).unwrap();
        this.proxy.signal("HUP");
    });
    let meanwhile = async {
        faults.wait_until_inside(Function::Decrypt, 1).await;
        fs::write(&chain, &later.certificate).unwrap();
        faults.clear();
    };
    assert_eq!(tokio::join!(reload, meanwhile).0, "ok");
    let end = "xks_certificate_not_after_timestamp_seconds{certificate=\"0\",part=\"leaf\"}";
    let end = Duration::from_secs_f64(reloading.proxy.metric(end).await);
    assert!(SystemTime::UNIX_EPOCH + end < end_in_days(250), "{end:?}");
}

#[tokio::test]
async fn the_log_level_changes() {
    let reloading = Reloading::start(Setup::default()).await;
    let count = || {
        let lines = reloading.proxy.log_lines();
        lines.iter().filter(|line| line["target"] == "request").count()
    };
    let with = |level: &str| Setup {
        more: format!("{}[log]\nlevel = \"{level}\"\n", reloading.setup.more),
        ..reloading.setup.clone()
    };
    let mut client = reloading.client().await;
    assert_eq!(reloading.reload_with(&with("warn")).await, "ok");
    client.encrypt("demo").await.ok();
    assert_eq!(reloading.reload_with(&with("info")).await, "ok");
    let before = count();
    client.encrypt("demo").await.ok();
    let _ =
        reloading.proxy.wait_for_log(|line| line["target"] == "request" && line["external_key_id"] == "demo");
    assert_eq!((before, count()), (0, 1));
}

#[tokio::test]
async fn the_fleet_size_changes() {
    let reloading = Reloading::start(Setup::default()).await;
    let mut client = reloading.client().await;
    assert_eq!(client.health().await.ok()["xksProxyFleetSize"], 1);
    let setup = Setup { server: "lame_duck_secs = 0\nfleet_size = 3".to_owned(), ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&setup).await, "ok");
    assert_eq!(client.health().await.ok()["xksProxyFleetSize"], 3);
}

#[tokio::test]
async fn tokens_come_and_go() {
    const SECOND: &str = "xks-second";
    let token = SoftHsm::with_keys();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    for label in ["demo", "xks-health"] {
        token.tool(&["generate", "--token", SECOND, "--label", label]);
    }
    let reloading = Reloading::start_on(Setup::default(), token).await;
    let third = Store { prefix: "/third".to_owned(), ..main_store_as(0) };
    let more = format!(
        "{}[[tokens]]\nname = \"second\"\nmodule = {:?}\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\n[[stores]]\n\
         name = \"third\"\nuri_path_prefix = \"/third\"\ntokens = [\"second\"]\nauthorization = \"none\"\n{}{}",
        reloading.setup.more,
        SoftHsm::module().display().to_string(),
        listed("demo", "demo"),
        credential(&third)
    );
    let with_second = Setup { more, ..reloading.setup.clone() };
    for _ in 0..2 {
        assert_eq!(reloading.reload_with(&with_second).await, "ok");
        let mut client = reloading.client_of(third.clone()).await;
        client.encrypt("demo").await.ok();
        assert!(reloading.verbose().await.contains("token second active\n"));
        assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
        assert_eq!(client.encrypt("demo").await.error(), refused("InvalidUriPathException", 404));
        assert!(!reloading.verbose().await.contains("token second"));
        assert!(!reloading.proxy.admin("/metrics").await.1.contains("xks_token_health{token=\"second\"}"));
        let mut main = reloading.client().await;
        main.encrypt("demo").await.ok();
    }
    let _ = reloading.proxy.wait_for_log(|line| line["token"] == "second" && line["has_stopped"] == true);
}

/// Nothing has changed, and nothing says that it has.
#[tokio::test]
async fn a_reload_that_is_refused_leaves_the_metrics_as_they_are() {
    let [kept, refused_one] = [main_store_as(1), main_store_as(2)];
    let created = |store: &Store, day: u8| format!("{}created = \"2026-01-0{day}\"\n", credential(store));
    let setup = Setup { keys: listed("demo", "demo"), store: created(&kept, 1), ..Setup::default() };
    let reloading = Reloading::start(setup).await;
    let made_at = |text: &str| {
        let id = &kept.signing.access_key_id;
        let series =
            format!("xks_credential_created_timestamp_seconds{{access_key_id=\"{id}\",store=\"main\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
    };
    let before = made_at(&reloading.proxy.admin("/metrics").await.1);
    assert!(before.is_some());
    let next = Setup {
        keys: versions(&[(1, "demo", "retired"), (2, "demo-2", "primary")]),
        store: created(&kept, 2) + &created(&refused_one, 3),
        ..with_third_store(&reloading.setup)
    };
    assert_eq!(reloading.reload_with(&next).await, "unsafe_versions");
    let (_, text) = reloading.proxy.admin("/metrics").await;
    assert_eq!(made_at(&text), before);
    assert!(!text.contains(&refused_one.signing.access_key_id), "{text}");
    assert!(!text.contains("store=\"third\""), "{text}");
    // A date that is gone is gone, though the credential stays.
    let dateless = Setup { store: credential(&kept), ..reloading.setup.clone() };
    assert_eq!(reloading.reload_with(&dateless).await, "ok");
    assert_eq!(made_at(&reloading.proxy.admin("/metrics").await.1), None);
    reloading.client_of(kept.clone()).await.encrypt("demo").await.ok();
}

#[tokio::test]
async fn the_last_use_of_a_credential_is_told_before_it_goes() {
    let [old, new] = [main_store(), main_store_as(1)];
    let reloading = Reloading::start(Setup::default()).await;
    let both = Setup { store: credential(&new), ..reloading.setup.clone() };
    let last_used = |store: &Store| {
        let id = store.signing.access_key_id.clone();
        let proxy = &reloading.proxy;
        async move {
            let labels = format!("{{access_key_id=\"{id}\",store=\"main\"}}");
            proxy.metric(&format!("xks_credential_last_used_timestamp_seconds{labels}")).await
        }
    };
    assert_eq!(reloading.reload_with(&both).await, "ok");
    assert_eq!(last_used(&old).await, 0.0, "nobody has come yet");
    reloading.client().await.encrypt("demo").await.ok();
    let at = last_used(&old).await;
    assert!(at > 1_700_000_000.0, "{at}");
    assert_eq!(last_used(&new).await, 0.0);
    reloading.client_of(new.clone()).await.encrypt("demo").await.ok();
    let _ = reloading.proxy.wait_for_log(|line| {
        line["message"].as_str().is_some_and(|text| text.starts_with("first use of a credential"))
            && line["access_key_id"] == new.signing.access_key_id
    });
    reloading.edit(&credential(&old), "");
    assert_eq!(reloading.reload().await, "ok");
    let line = reloading
        .proxy
        .wait_for_log(|line| line["access_key_id"] == old.signing.access_key_id && line["is_kept"] == false);
    assert_eq!(line["last_used_unix_secs"].as_f64(), Some(at));
    assert_eq!(last_used(&old).await, 0.0, "and the metric is gone");
    assert!(last_used(&new).await > 0.0);
    let answer = reloading.client().await.encrypt("demo").await;
    assert_eq!(answer.error(), refused("AuthenticationFailedException", 401));
    reloading.client_of(new).await.encrypt("demo").await.ok();
}
