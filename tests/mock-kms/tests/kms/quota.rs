//! The quota of a store.

use std::sync::Arc;

use serde_json::json;

use crate::fake_proxy::FakeProxy;
use crate::mock::Mock;

#[tokio::test]
async fn a_store_that_has_had_its_share_is_throttled_and_its_proxy_left_alone() {
    let proxy = FakeProxy::start().await;
    let mock = Mock::start(proxy.address, &["--requests-per-second", "1"]);
    let store = mock.connected_store("one").await;
    let key = mock.create_xks_key(&store, "demo").await;
    let plain = mock.create_plain_key().await;
    proxy.take_seen();
    let encrypt = |key: &str| json!({ "KeyId": key, "Plaintext": "aGVsbG8=" });
    // So many at once cannot take so many seconds.
    let mock = Arc::new(mock);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (mock, body) = (Arc::clone(&mock), encrypt(&key));
        calls.spawn(async move { mock.send("Encrypt", &body).await });
    }
    let answers = calls.join_all().await;
    let granted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(proxy.take_seen().len(), granted);
    let refused = answers.iter().find(|answer| answer.status != 200).unwrap();
    let message = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json(), json!({ "__type": "ThrottlingException", "message": message }));
    // The quota is of the store, not of KMS, and of cryptography, not of management.
    mock.call("Encrypt", encrypt(&plain)).await;
    mock.call("DescribeKey", json!({ "KeyId": key })).await;
    mock.create_xks_key(&store, "demo-2").await;
}
