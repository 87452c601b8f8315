//! What is not right changes nothing, and says so.

use std::fs;

use xks_harness::Setup;

use super::rig::{Reloading, listed};

/// The log line of a refused reload, and what `/readyz?verbose` says.
async fn told(reloading: &Reloading, problem: &str) {
    let _ = reloading.proxy.wait_for_log(|line| {
        line["message"] == "the configuration on disk is not right"
            && line["problem"].as_str().is_some_and(|text| text.contains(problem))
    });
    let verbose = reloading.verbose().await;
    assert!(verbose.starts_with("ready\n"), "{verbose}");
    assert!(verbose.contains("a later configuration was refused") && verbose.contains(problem), "{verbose}");
    assert_eq!(reloading.proxy.metric("xks_config_refused").await, 1.0);
}

#[tokio::test]
async fn a_faulty_file_changes_nothing() {
    let reloading = Reloading::start(Setup::default()).await;
    let mut client = reloading.client().await;
    let before = client.encrypt("demo").await.ok();
    let secret = "hunter2-hunter2";
    for (from, to, problem) in [
        ("[[stores]]", "[[stores]", "this is not TOML"),
        ("authorization = \"none\"", "authorization = \"hunter2-hunter2\"", "stores[0].authorization"),
        ("label = \"demo\"", "lable = \"hunter2-hunter2\"", "did you mean label?"),
    ] {
        reloading.edit(from, to);
        assert_eq!(reloading.reload().await, "faulty", "{to}");
        told(&reloading, problem).await;
        assert_eq!(reloading.proxy.metric("xks_config_generation").await, 1.0);
        client.encrypt("demo").await.ok();
        client.decrypt("demo", &before).await.ok();
        reloading.write(&reloading.setup);
    }
    fs::remove_file(reloading.config_file()).unwrap();
    assert_eq!(reloading.reload().await, "faulty");
    told(&reloading, "cannot read the configuration").await;
    client.encrypt("demo").await.ok();

    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
    assert_eq!(reloading.proxy.metric("xks_config_refused").await, 0.0);
    assert_eq!(reloading.proxy.metric("xks_config_generation").await, 2.0);
    let verbose = reloading.verbose().await;
    assert!(verbose.contains("configuration 2 loaded") && !verbose.contains("refused"), "{verbose}");
    assert!(!reloading.proxy.all_output().contains(secret));
}

#[tokio::test]
async fn what_needs_a_restart_is_said_and_nothing_else_changes_either() {
    let reloading = Reloading::start(Setup::default()).await;
    let keys = reloading.setup.keys.clone() + &listed("new", "encrypted");
    for (changed, setting) in [
        (Setup { limits: "max_in_flight = 7".to_owned(), ..reloading.setup.clone() }, "server.limits"),
        (Setup { timeouts: "idle_ms = 7000".to_owned(), ..reloading.setup.clone() }, "server.timeouts"),
        (Setup { token: "sessions = 3".to_owned(), ..reloading.setup.clone() }, "tokens: softhsm"),
        (
            Setup {
                environment: vec![("XKS_TEST_RELOAD".to_owned(), "1".to_owned())],
                ..reloading.setup.clone()
            },
            "tokens: environment",
        ),
    ] {
        assert_eq!(reloading.reload_with(&Setup { keys: keys.clone(), ..changed }).await, "needs_restart");
        told(&reloading, setting).await;
        told(&reloading, "a change needs a restart").await;
        assert_eq!(reloading.client().await.encrypt("new").await.error().0, 404);
    }
    reloading.write(&reloading.setup);
    reloading.edit("[admin]\nlisten = \"127.0.0.1:0\"", "[admin]\nlisten = \"127.0.0.1:1\"");
    assert_eq!(reloading.reload().await, "needs_restart");
    told(&reloading, "admin.listen").await;
    reloading.client().await.encrypt("demo").await.ok();
}
