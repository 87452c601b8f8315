//! A token that is asked no more, until a probe shows that it works.

use super::*;

#[tokio::test]
async fn a_token_that_fails_is_left_out_until_a_probe_succeeds() {
    let rig = start_both().await;
    let mut client = rig.client().await;
    let encrypted = client.encrypt("demo").await.ok();
    for name in [LABEL, SECOND] {
        let of = if name == LABEL { "softhsm" } else { "second" };
        rig.faults.set(&format!(
            "C_Encrypt fail=CKR_DEVICE_ERROR token={name}\nC_Decrypt fail=CKR_DEVICE_ERROR token={name}"
        ));
        for _ in 0..40 {
            client.encrypt_with_integrity_value("demo").await.ok();
            client.assert_decrypts("demo", &encrypted).await;
        }
        let open = format!("xks_token_breaker_open{{token=\"{of}\"}}");
        assert_eq!(rig.proxy.metric(&open).await, 1.0, "{of}");
        rig.faults.clear();
        rig.proxy.wait_for("/metrics", |_, text| text.contains(&format!("{open} 0\n"))).await;
        wait_for_fleet(&rig, ["ACTIVE", "ACTIVE"]).await;
    }
}

/// A probe that finds its key gone has failed too, though it says less of the token than others.
#[tokio::test]
async fn a_token_whose_probe_finds_no_use_of_its_key_stays_out() {
    let rig = start_both().await;
    rig.faults.set(&format!("C_EncryptInit fail=CKR_KEY_HANDLE_INVALID token={SECOND}"));
    let mut client = rig.client().await;
    let open = "xks_token_breaker_open{token=\"second\"}";
    let until = Instant::now() + RECOVERY;
    while rig.proxy.metric(open).await != 1.0 {
        client.encrypt("demo").await.ok();
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    let asked = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&asked_second("softhsm", "failed")));
        line.map(|count| count.trim().to_owned())
    };
    let before = asked(&rig.proxy.admin("/metrics").await.1);
    let probes = rig.faults.calls(Function::EncryptInit);
    let mut served = 0;
    // Several probes fail meanwhile.
    while served < 40 || rig.faults.calls(Function::EncryptInit) < probes + served + 3 {
        client.encrypt("demo").await.ok();
        served += 1;
        assert_eq!(rig.proxy.metric(open).await, 1.0, "after {served}");
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    assert_eq!(asked(&rig.proxy.admin("/metrics").await.1), before, "it was asked first");
    rig.faults.clear();
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&format!("{open} 0\n"))).await;
}

/// Nor is a token out for ever that no probe can say anything of.
#[tokio::test]
async fn a_token_that_cannot_be_probed_is_asked_again() {
    let token = same_keys();
    for name in [LABEL, SECOND] {
        token.tool(&["destroy", "--token", name, "--label", "xks-health"]);
    }
    let no_session_key = "C_GenerateKey fail=CKR_FUNCTION_NOT_SUPPORTED";
    let rig = Rig::start_with_faults(setup(), token, no_session_key);
    rig.proxy.wait_until_ready().await;
    wait_for_fleet(&rig, ["DEGRADED", "DEGRADED"]).await;
    wait_until_both_are_asked(&rig).await;
    rig.faults.set(&format!("{no_session_key}\nC_Encrypt fail=CKR_DEVICE_ERROR token={SECOND}"));
    let mut client = rig.client().await;
    let open = "xks_token_breaker_open{token=\"second\"}";
    let until = Instant::now() + RECOVERY;
    while rig.proxy.metric(open).await != 1.0 {
        client.encrypt("demo").await.ok();
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    rig.faults.set(no_session_key);
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&format!("{open} 0\n"))).await;
}

/// The same where its health key loses its use once the token has proven itself.
#[tokio::test]
async fn a_token_that_can_be_probed_no_more_is_asked_again() {
    let rig = start_both().await;
    rig.proxy.token.tool(&["set", "--token", SECOND, "--label", "xks-health", "--usage", "decrypt"]);
    wait_for_fleet(&rig, ["ACTIVE", "DEGRADED"]).await;
    let open = open_breaker_of_second(&rig).await;
    rig.faults.clear();
    rig.proxy.wait_for("/metrics", |_, text| text.contains(&format!("{open} 0\n"))).await;
}

/// Has requests to the second token fail until it is asked no more, and leaves the rule in place; the metric that says so.
async fn open_breaker_of_second(rig: &Rig) -> &'static str {
    const OPEN: &str = "xks_token_breaker_open{token=\"second\"}";
    let mut client = rig.client().await;
    let until = Instant::now() + RECOVERY;
    rig.faults.set(&format!("C_Encrypt fail=CKR_DEVICE_ERROR token={SECOND}"));
    while rig.proxy.metric(OPEN).await != 1.0 {
        client.encrypt("demo").await.ok();
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    OPEN
}

/// Where one key says that nobody is logged in, and the tokens know better, that is the key's fault alone.
#[tokio::test]
async fn a_key_that_says_falsely_that_nobody_is_logged_in_costs_no_token() {
    let rig = start_both().await;
    let logins = rig.faults.calls(Function::Login);
    let rule = "C_EncryptInit fail=CKR_USER_NOT_LOGGED_IN label=demo";
    rig.faults.set(rule);
    let (mut client, mut other) = (rig.client().await, rig.client().await);
    let until = Instant::now() + RECOVERY;
    // Until both have been asked, and for a while after that.
    while rig.faults.fired(rule) < 6 {
        assert_eq!(outcome(&client.encrypt("demo").await), (500, "InternalException".to_owned()));
        for _ in 0..4 {
            other.encrypt("demo-2").await.ok();
        }
        assert!(Instant::now() < until, "{}", rig.last_lines());
    }
    rig.faults.clear();
    wait_until_both_serve(&rig).await;
    assert_eq!(rig.faults.calls(Function::Login), logins);
}
