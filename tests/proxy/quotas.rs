//! Quotas of a store: what is over them is throttled and counted, and nobody else pays for it.

use xks_harness::proxy::{main_store, nested_store};
use xks_harness::{Http, Proxy, Setup, XksRequest};

/// Most requests until a quota of one a second is used up, on however slow a machine.
const MAX_REQUESTS: usize = 10_000;

fn counted(store: &str, reason: &str) -> String {
    format!("xks_throttled_total{{reason=\"{reason}\",store=\"{store}\"}}")
}

#[tokio::test]
async fn a_store_over_its_quota_is_throttled_alone_and_counted() {
    let quota = "requests_per_second = 1\nburst = 2".to_owned();
    let proxy = Proxy::start(&Setup { quota, ..Setup::default() }).await;
    let mut connection = proxy.connect(Http::One).await;
    let (mut served, mut throttled) = (0, 0);
    while throttled < 3 {
        assert!(served < MAX_REQUESTS, "the quota never ran out");
        let answer = connection.send(&XksRequest::metadata(&main_store(), "demo")).await;
        if answer.status == 200 {
            served += 1;
            assert!(served >= 2 || throttled == 0);
        } else {
            assert_eq!(answer.refusal(), (429, "ThrottlingException".to_owned()));
            throttled += 1;
        }
        // A flood on one store leaves the other, and health, as they were.
        let other = connection.send(&XksRequest::metadata(&nested_store(), "a")).await;
        assert_eq!(other.refusal(), (404, "KeyNotFoundException".to_owned()));
    }
    assert!(served >= 2, "the burst is served");
    connection.send(&XksRequest::health(&main_store())).await.ok();
    assert_eq!(proxy.metric(&counted("main", "store_quota")).await, 3.0);
    assert_eq!(proxy.metric(&counted("nested", "store_quota")).await, 0.0);
    assert_eq!(proxy.metric(&counted("main", "health_quota")).await, 0.0);
}

#[tokio::test]
async fn health_over_its_quota_is_throttled_alone_and_counted() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::One).await;
    let (mut served, mut throttled) = (0, 0);
    while throttled < 3 {
        assert!(served < MAX_REQUESTS, "the quota never ran out");
        let answer = connection.send(&XksRequest::health(&main_store())).await;
        if answer.status == 200 {
            served += 1;
        } else {
            assert_eq!(answer.refusal(), (429, "ThrottlingException".to_owned()));
            throttled += 1;
        }
    }
    assert!(served >= 20, "those of a second are served");
    connection.send(&XksRequest::metadata(&main_store(), "demo")).await.ok();
    assert_eq!(proxy.metric(&counted("main", "health_quota")).await, 3.0);
    assert_eq!(proxy.metric(&counted("main", "store_quota")).await, 0.0);
}
