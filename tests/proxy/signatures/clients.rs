//! What AWS's own signer makes of odd requests is accepted.

use xks_harness::{Http, Proxy, Setup, XksRequest};

use super::encrypt;

async fn assert_accepted(proxy: &Proxy, request: &XksRequest, what: &str) {
    for http in Http::BOTH {
        let answer = proxy.connect(http).await.send(request).await;
        assert_eq!(answer.status, 200, "{what} {http:?}: {:?}", answer.body);
    }
}

#[tokio::test]
async fn a_checksum_header_is_accepted() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut request = encrypt();
    request.signing.as_mut().unwrap().sends_checksum = true;
    assert_accepted(&proxy, &request, "checksum").await;
}

#[tokio::test]
async fn many_repeated_and_spaced_headers_are_accepted() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut many = encrypt();
    let names = [
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "cookie",
        "dnt",
        "from",
        "if-match",
        "origin",
        "pragma",
        "range",
        "referer",
        "via",
        "warning",
        "x-a",
        "x-a-b",
        "x-amz-security-token",
        "x-amz-target",
        "x-b",
        "x-c",
        "x-d",
        "x-e",
        "x-f",
        "x-g",
        "x-h",
        "x-i",
        "x-j",
        "x-k",
        "x-l",
        "x-m",
    ];
    many.headers.extend(names.map(|name| (name, format!("value of {name}, \"quoted\"; q=0.5"))));
    assert_accepted(&proxy, &many, "many").await;

    let mut repeated = encrypt();
    repeated.headers.extend(["one", "two", "two", "a, b", "three"].map(|value| ("x-many", value.to_owned())));
    assert_accepted(&proxy, &repeated, "repeated").await;

    let mut spaced = encrypt();
    for (name, value) in [
        ("x-inner", "a   b     c"),
        ("x-outer", "   a   "),
        ("x-both", "  a  b  "),
        ("x-empty", ""),
        ("x-quoted", "\"a   b\""),
    ] {
        spaced.headers.push((name, value.to_owned()));
    }
    assert_accepted(&proxy, &spaced, "spaced").await;
}

#[tokio::test]
async fn one_connection_carries_many_signatures() {
    let proxy = Proxy::start(&Setup::default()).await;
    for http in Http::BOTH {
        let mut connection = proxy.connect(http).await;
        for round in 0..50 {
            let is_right = round % 3 != 0;
            let mut request = encrypt();
            if !is_right {
                request.signing.as_mut().unwrap().secret_access_key = "x".repeat(43);
            }
            let answer = connection.send(&request).await;
            assert_eq!(answer.status, if is_right { 200 } else { 401 }, "{http:?} {round}");
        }
    }
}
