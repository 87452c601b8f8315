//! One signature on another request, and one answer for every reason.

use std::collections::HashSet;

use http::Method;
use http_body_util::Full;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::request::encrypt_body;
use xks_harness::{Http, Proxy, Setup, Signing, XksRequest};

use super::by_hand::ByHand;
use super::{assert_not_authenticated, authority, encrypt};

#[tokio::test]
async fn a_signature_is_not_good_for_another_path_store_method_or_body() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let signed = connection.http_request(&encrypt());
        let uri = |path: &str| match http {
            Http::One => path.parse().unwrap(),
            Http::Two => format!("https://{}{path}", authority(&proxy)).parse().unwrap(),
        };
        for path in [
            "/main/kms/xks/v1/keys/demo-2/encrypt",
            "/main/kms/xks/v1/keys/demo/decrypt",
            "/main/kms/xks/v1/keys/demo/metadata",
            "/main/kms/xks/v1/health",
            "/main/nested/kms/xks/v1/keys/demo/encrypt",
            "/main/nested/kms/xks/v1/health",
        ] {
            let mut replayed = signed.clone();
            *replayed.uri_mut() = uri(path);
            assert_not_authenticated(&connection.try_send_http(replayed).await.unwrap(), path);
        }
        let mut replayed = signed.clone();
        *replayed.body_mut() = Full::from(encrypt_body(b"other", None, false).to_string());
        assert_not_authenticated(&connection.try_send_http(replayed).await.unwrap(), "body");
        let mut replayed = signed.clone();
        *replayed.method_mut() = Method::GET;
        assert_eq!(connection.try_send_http(replayed).await.unwrap().status, 405);
        connection.try_send_http(signed).await.unwrap().ok();
    }
}

/// A request signed with another method's name is not good for POST.
#[tokio::test]
async fn the_method_is_signed() {
    let proxy = Proxy::start(&Setup::default()).await;
    for method in ["GET", "PUT", "post", ""] {
        let signed = ByHand { method: method.to_owned(), ..ByHand::new(&proxy) };
        let authorization = signed.authorization();
        let sent = ByHand { method: "POST".to_owned(), ..signed };
        let mut connection = xks_harness::RawConnection::open(proxy.address).await;
        let answer = connection.exchange(&sent.raw(&authorization)).await.unwrap();
        assert_not_authenticated(&answer, method);
    }
}

/// Signers that normalise paths sign another one than they send.
#[tokio::test]
async fn the_path_is_signed_as_it_is_sent() {
    let proxy = Proxy::start(&Setup::default()).await;
    for (sent, signed) in [
        // `.` and `..` are key ids.
        ("/main/kms/xks/v1/keys/../metadata", "/main/kms/xks/v1/metadata"),
        ("/main/kms/xks/v1/keys/./encrypt", "/main/kms/xks/v1/keys/encrypt"),
        ("/main/kms/xks/v1/keys/demo/encrypt", "/kms/xks/v1/keys/demo/encrypt"),
        ("/main/kms/xks/v1/keys/demo/encrypt", "/main/kms/xks/v1/keys/demo/encrypt/"),
        ("/main/kms/xks/v1/keys/demo/encrypt", "/main/kms/xks/v1/keys/%64emo/encrypt"),
        ("/main/kms/xks/v1/keys/demo/encrypt", ""),
    ] {
        let mut by_hand = ByHand::new(&proxy);
        sent.clone_into(&mut by_hand.path);
        by_hand.signed_path = Some(signed.to_owned());
        assert_not_authenticated(&by_hand.send(&proxy).await.0, signed);
    }
    let mut dots = ByHand::new(&proxy);
    "/main/kms/xks/v1/keys/../encrypt".clone_into(&mut dots.path);
    assert_eq!(dots.send(&proxy).await.0.refusal(), (404, "KeyNotFoundException".to_owned()));
}

#[tokio::test]
async fn every_reason_has_the_same_answer_to_the_byte() {
    let proxy = Proxy::start(&Setup::default()).await;
    let right = main_store().signing;
    let id_of_another_store = nested_store().signing;
    let signings = [
        None,
        Some(Signing { secret_access_key: "x".repeat(43), ..right.clone() }),
        Some(Signing { access_key_id: "A".repeat(26), ..right.clone() }),
        Some(Signing { service: "kms".to_owned(), ..right.clone() }),
        Some(Signing { skew_secs: 1000, ..right.clone() }),
        Some(Signing { skew_secs: -1000, ..right }),
        Some(id_of_another_store),
    ];
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        let mut seen = HashSet::new();
        for signing in &signings {
            let answer = connection.send(&XksRequest { signing: signing.clone(), ..encrypt() }).await;
            assert_not_authenticated(&answer, "strangers");
            let mut headers = answer.headers.clone();
            headers.remove("date");
            seen.insert(format!("{headers:?} {:?}", answer.body));
        }
        assert_eq!(seen.len(), 1, "{http:?} {seen:?}");
    }
}
