//! HTTP/2 has no Host header of its own: `:authority` stands for it.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use xks_harness::{Answer, Connection, Http, Proxy, Setup};

use super::by_hand::ByHand;
use super::{assert_not_authenticated, authority};

/// Sends it over HTTP/2: what is called `:authority` or `host` goes into the URI, `host` also as a header if wanted.
async fn send(connection: &mut Connection, by_hand: &ByHand, authority: &str, host: Option<&str>) -> Answer {
    let mut request: Request<Full<Bytes>> = Request::post(format!("https://{authority}{}", by_hand.path))
        .body(Full::from(by_hand.body.clone()))
        .unwrap();
    let headers = request.headers_mut();
    for (name, value) in by_hand.headers.iter().filter(|(name, _)| name != "host" && name != ":authority") {
        headers.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    headers.insert("authorization", by_hand.authorization().parse().unwrap());
    if let Some(host) = host {
        headers.insert("host", host.parse().unwrap());
    }
    connection.try_send_http(request).await.unwrap()
}

/// Signs `host`, `:authority`, or both.
fn signed(proxy: &Proxy, names: &[&str]) -> ByHand {
    let mut by_hand = ByHand::new(proxy);
    by_hand.add(":authority", &authority(proxy)).sign(names);
    by_hand
}

const WAYS: [&[&str]; 3] =
    [&["host", "x-amz-date"], &[":authority", "x-amz-date"], &[":authority", "host", "x-amz-date"]];

#[tokio::test]
async fn host_and_authority_may_be_signed_and_are_the_same() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let here = authority(&proxy);
    for names in WAYS {
        let by_hand = signed(&proxy, names);
        send(&mut connection, &by_hand, &here, None).await.ok();
        send(&mut connection, &by_hand, &here, Some(&here)).await.ok();
    }
}

#[tokio::test]
async fn a_host_header_that_differs_from_the_authority_is_refused() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let here = authority(&proxy);
    for names in WAYS {
        let by_hand = signed(&proxy, names);
        for other in ["elsewhere", "localhost", ""] {
            let answer = send(&mut connection, &by_hand, &here, Some(other)).await;
            assert_not_authenticated(&answer, &format!("{names:?}, host {other}"));
        }
        // The right host as header does not help where the authority is another.
        let answer = send(&mut connection, &by_hand, "elsewhere", Some(&here)).await;
        assert_not_authenticated(&answer, &format!("{names:?}, another authority"));
    }
}

#[tokio::test]
async fn another_authority_than_the_signed_one_is_refused() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    for names in WAYS {
        let by_hand = signed(&proxy, names);
        for other in ["elsewhere", "localhost", "LOCALHOST:1", "user@localhost"] {
            let answer = send(&mut connection, &by_hand, other, None).await;
            assert_not_authenticated(&answer, &format!("{names:?}, {other}"));
        }
    }
}

#[tokio::test]
async fn host_or_authority_must_be_signed() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let here = authority(&proxy);
    for names in [&["x-amz-date"][..], &["host"], &[":authority"], &[":path", "host", "x-amz-date"]] {
        let answer = send(&mut connection, &signed(&proxy, names), &here, None).await;
        assert_not_authenticated(&answer, &format!("{names:?}"));
    }
}

#[tokio::test]
async fn headers_that_must_be_there_once_are_not_taken_twice() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let by_hand = ByHand::new(&proxy);
    let date = by_hand.value("x-amz-date").unwrap().to_owned();
    for (name, value) in [("x-amz-date", &date), ("authorization", &by_hand.authorization())] {
        let mut request = Request::post(format!("https://{}{}", authority(&proxy), by_hand.path))
            .header("x-amz-date", &date)
            .header("authorization", by_hand.authorization())
            .body(Full::from(by_hand.body.clone()))
            .unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
        assert_not_authenticated(&connection.try_send_http(request).await.unwrap(), name);
    }
}
