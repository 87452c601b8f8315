//! The state in a file: it survives `kill -9`, and `--reset` forgets it.

use serde_json::json;

use crate::fake_proxy::FakeProxy;
use crate::mock::Mock;

#[tokio::test]
async fn everything_survives_a_kill() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let start =
        |more: &[&str]| Mock::start(proxy.address, &[&["--state", file.to_str().unwrap()], more].concat());
    let mock = start(&[]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    let plain = mock.create_plain_key().await;
    mock.call("CreateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": key })).await;
    mock.call("TagResource", json!({ "KeyId": key, "Tags": [{ "TagKey": "a", "TagValue": "b" }] })).await;
    mock.advance_days(2).await;
    let mut blobs = Vec::new();
    for key in [&key, &plain] {
        let answer = mock.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=" })).await;
        blobs.push(answer["CiphertextBlob"].clone());
    }
    let describe = async |mock: &Mock| {
        [
            mock.call("DescribeKey", json!({ "KeyId": "alias/a" })).await,
            mock.call("DescribeCustomKeyStores", json!({})).await,
            mock.call("ListResourceTags", json!({ "KeyId": key })).await,
            mock.call("ListAliases", json!({})).await,
        ]
    };
    let before = describe(&mock).await;
    mock.kill();
    let mock = start(&[]);
    assert_eq!(describe(&mock).await, before);
    for blob in &blobs {
        assert_eq!(mock.call("Decrypt", json!({ "CiphertextBlob": blob })).await["Plaintext"], "aGVsbG8=");
    }
    // Each change is in the file before it is answered.
    for turn in 0..20 {
        mock.call("UpdateKeyDescription", json!({ "KeyId": key, "Description": format!("{turn}") })).await;
    }
    mock.kill();
    let mock = start(&[]);
    let description =
        mock.call("DescribeKey", json!({ "KeyId": key })).await["KeyMetadata"]["Description"].clone();
    assert_eq!(description, "19");
    mock.kill();
    let mock = start(&["--reset"]);
    assert_eq!(mock.call("ListKeys", json!({})).await["Keys"], json!([]));
    mock.kill();
    assert_eq!(start(&[]).call("ListKeys", json!({})).await["Keys"], json!([]));
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let start = || Mock::start_with(&["--state", file.to_str().unwrap()]);
    let mock = start();
    let key = mock.create_plain_key().await;
    mock.kill();
    let answered = std::cell::Cell::new(0);
    for _ in 0..10 {
        let mock = start();
        let write_next = async || {
            let next = answered.get() + 1;
            let body = json!({ "KeyId": key, "Description": format!("{next}") });
            mock.call("UpdateKeyDescription", body).await;
            answered.set(next);
        };
        write_next().await;
        let mut moment = [0];
        aws_lc_rs::rand::fill(&mut moment).unwrap();
        let moment = std::time::Duration::from_millis(u64::from(moment[0] % 32));
        let write_on = async {
            loop {
                write_next().await;
            }
        };
        // Ends in the middle of a call, most likely.
        assert!(tokio::time::timeout(moment, write_on).await.is_err());
        mock.kill();
        let mock = start();
        let described = mock.call("DescribeKey", json!({ "KeyId": key })).await;
        let found: u64 = described["KeyMetadata"]["Description"].as_str().unwrap().parse().unwrap();
        // The call that was under way may have come through, its answer not.
        assert!(found == answered.get() || found == answered.get() + 1, "{found} after {answered:?}");
        answered.set(found);
        mock.kill();
    }
}

#[tokio::test]
async fn connecting_goes_on_after_a_kill() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let mock = Mock::start(proxy.address, &["--state", file.to_str().unwrap()]);
    let store = mock.create_store("one").await;
    proxy.hold(true);
    mock.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": store })).await;
    mock.kill();
    proxy.hold(false);
    let mock = Mock::start(proxy.address, &["--state", file.to_str().unwrap()]);
    assert_eq!(mock.settled_store(&store).await["ConnectionState"], "CONNECTED");
}

#[tokio::test]
async fn connecting_ends_even_where_that_cannot_be_saved() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let mock = Mock::start(proxy.address, &["--state", file.to_str().unwrap()]);
    let store = mock.create_store("one").await;
    proxy.hold(true);
    mock.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": store })).await;
    // In the way of the draft, from now on.
    std::fs::create_dir(folder.path().join("state.json.new")).unwrap();
    proxy.hold(false);
    assert_eq!(mock.settled_store(&store).await["ConnectionState"], "CONNECTED");
    assert_eq!(mock.fail("CreateKey", json!({})).await.0, "KMSInternalException");
}

/// Two processes would undo each other's changes.
#[tokio::test]
async fn a_file_is_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let mock = Mock::start_with(&["--state", file.to_str().unwrap()]);
    let key = mock.create_plain_key().await;
    for more in [&[][..], &["--reset"]] {
        let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_mock-kms"));
        let second = second.args(["serve", "--listen", "127.0.0.1:0", "--state"]).arg(&file).args(more);
        let output = second.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("state.json is in use by another process"), "{stderr}");
    }
    mock.kill();
    let mock = Mock::start_with(&["--state", file.to_str().unwrap()]);
    assert_eq!(mock.key_state(&key).await, "Enabled");
}

#[tokio::test]
async fn without_a_file_all_is_forgotten() {
    let mock = Mock::start_with(&[]);
    mock.create_plain_key().await;
    mock.kill();
    assert_eq!(Mock::start_with(&[]).call("ListKeys", json!({})).await["Keys"], json!([]));
}
