//! A token with many keys costs a request what a token with few costs.

use std::time::{Duration, Instant};

use xks_harness::proxy::nested_store;
use xks_harness::{Function, Setup, SoftHsm};

use super::rig::Rig;

/// Keys in the token: the long run takes as many as the proxy is promised to bear; making them takes 10 s.
fn key_count() -> usize {
    if std::env::var_os("XKS_LONG_TESTS").is_some() { 10_000 } else { 1_000 }
}

#[tokio::test]
async fn a_request_makes_the_same_calls_however_many_keys_the_token_holds() {
    let keys = key_count();
    let token = SoftHsm::with_keys();
    token.tool(&["generate", "--count", &keys.to_string(), "--label-prefix", "nested-"]);
    let intervals = "intervals = { health_probe_ms = 30000, reindex_secs = 86400 }";
    let setup = Setup { token: format!("sessions = 2\n{intervals}"), ..Setup::default() };
    let rig = Rig::start_with_faults(setup, token, "");
    // SoftHSM2 reads the files of all keys first, which takes a busy disk a minute and more.
    let until = Instant::now() + Duration::from_secs(300);
    while rig.proxy.admin("/readyz").await.0 != 200 {
        assert!(Instant::now() < until, "{}", rig.last_lines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = rig.client_of(nested_store()).await;

    // Once a key that was never asked for is not searched, the index has been made.
    let mut number = keys;
    loop {
        number -= 1;
        let before = rig.faults.calls(Function::FindObjectsInit);
        client.metadata(&number.to_string()).await.ok();
        if rig.faults.calls(Function::FindObjectsInit) == before {
            break;
        }
    }
    const REQUESTS: usize = 100;
    let key = |request: usize| (request * (keys / REQUESTS)).to_string();
    // A key of a rule proves itself at its first request.
    for request in 0..REQUESTS {
        client.encrypt(&key(request)).await.ok();
    }
    let before = rig.faults.counts();
    for request in 0..REQUESTS {
        let key = key(request);
        let encrypted = client.encrypt_with_integrity_value(&key).await.ok();
        client.assert_decrypts(&key, &encrypted).await;
    }
    let after = rig.faults.counts();
    for (function, each) in [
        (Function::EncryptInit, 1),
        (Function::Encrypt, 1),
        (Function::DecryptInit, 2),
        (Function::Decrypt, 2),
        (Function::FindObjectsInit, 0),
        (Function::FindObjects, 0),
        (Function::Login, 0),
    ] {
        let calls = after.calls(function) - before.calls(function);
        assert_eq!(calls, u64::try_from(each * REQUESTS).unwrap(), "{function}");
    }
}
