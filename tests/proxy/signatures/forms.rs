//! Authorization headers and times of every other form: 401 each, the same words each time, and the proxy goes on.

use std::collections::HashSet;

use xks_harness::{Answer, Proxy, RawConnection, Setup};

use super::by_hand::{ByHand, now};
use super::{assert_not_authenticated, encrypt, logged_reason};

/// Headers that are wrong by their form alone: `good` with something changed.
fn malformed(by_hand: &ByHand) -> Vec<String> {
    let good = by_hand.authorization();
    let (id, scope, signature) = (&by_hand.signing.access_key_id, by_hand.scope(), by_hand.signature());
    let of = |credential: &str, signed: &str, signature: &str| {
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}")
    };
    let credential = format!("{id}/{scope}");
    let signed = "host;x-amz-date";
    let with_credential = |credential: &str| of(credential, signed, &signature);
    let with_signed = |names: &str| of(&credential, names, &signature);
    let with_signature = |signature: &str| of(&credential, signed, signature);
    let date = &scope[..8];
    let names: Vec<_> = (0..100).map(|number| format!("x-{number:03}")).collect();
    let mut all = vec![
        String::new(),
        " ".to_owned(),
        "AWS4-HMAC-SHA256".to_owned(),
        "AWS4-HMAC-SHA256 ".to_owned(),
        "AWS4-HMAC-SHA256 ,".to_owned(),
        "AWS4-HMAC-SHA256 ,,,".to_owned(),
        "AWS4-HMAC-SHA256 =,=,=".to_owned(),
        "AWS4-HMAC-SHA256 Credential".to_owned(),
        "AWS4-HMAC-SHA256 Credential=, SignedHeaders=, Signature=".to_owned(),
        "Basic dXNlcjpwYXNzd29yZA==".to_owned(),
        "Bearer token".to_owned(),
        "null".to_owned(),
        "%s%s%s%n".to_owned(),
        "é".to_owned(),
        "\u{fffd}\u{10ffff}".to_owned(),
        "=".repeat(8000),
        ",".repeat(8000),
        "/".repeat(8000),
        "A".repeat(8000),
        format!("{good}\u{e9}"),
        format!("{good},"),
        format!("{good}, "),
        format!(", {good}"),
        format!("{good}, Extra=1"),
        format!("{good}, Credential={credential}"),
        format!("{good}, Signature={signature}"),
        format!("{good}, SignedHeaders={signed}"),
        format!("{good} {good}"),
        format!("{good}, {good}"),
        format!("\"{good}\""),
        good.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"),
        good.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        good.replace("AWS4-HMAC-SHA256", "aws4-hmac-sha256"),
        good.replace("AWS4-HMAC-SHA256", "AWS3-HMAC-SHA256"),
        good.replace("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256"),
        good.replace("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256\t"),
        good.replace("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256, "),
        good.replace(", ", "; "),
        good.replace(", ", " "),
        good.replace(", ", ",\t"),
        good.replace("Credential=", "credential="),
        good.replace("SignedHeaders=", "Signedheaders="),
        good.replace("Signature=", "signature="),
        good.replace("Credential=", "Credential ="),
        good.replace("Credential=", "Credential= "),
        good.replace("Signature=", "Signature=0x"),
        good.replace("Signature=", "Signature=="),
        good.replace("Credential=", "Credential=\"").replace(", S", "\", S"),
    ];
    all.extend([
        with_credential(""),
        with_credential(id),
        with_credential("/"),
        with_credential("////"),
        with_credential(&format!("/{scope}")),
        with_credential(&format!("{id}//{scope}")),
        with_credential(&format!("{id}/{scope}/")),
        with_credential(&format!("{id}/{scope}/aws4_request")),
        with_credential(&format!("{id} /{scope}")),
        with_credential(&format!("{id}/{date}")),
        with_credential(&format!("{id}/{date}/us-east-1")),
        with_credential(&format!("{id}/{date}/us-east-1/kms-xks-proxy")),
        with_credential(&format!("{id}/{date}/us-east-1/kms-xks-proxy/")),
        with_credential(&format!("{id}/{date}//kms-xks-proxy/aws4_request")),
        with_credential(&format!("{id}/{date}/us-east-1//aws4_request")),
        with_credential(&format!("{id}//us-east-1/kms-xks-proxy/aws4_request")),
        with_credential(&format!("{id}/{date}/us-east-1/kms-xks-proxy/AWS4_REQUEST")),
        with_credential(&format!("{id}/{date}/us-east-1/kms-xks-proxy/aws5_request")),
        with_credential(&format!("{id}/{date}/us-east-1/KMS-XKS-PROXY/aws4_request")),
        with_credential(&format!("{id}/{date}/kms-xks-proxy/us-east-1/aws4_request")),
        with_credential(&format!("{id}/{}/us-east-1/kms-xks-proxy/aws4_request", &date[2..])),
        with_credential(&format!("{id}/{date}T000000Z/us-east-1/kms-xks-proxy/aws4_request")),
        with_credential(&format!("{}/{scope}", id.to_lowercase())),
        with_credential(&format!("{}/{scope}", "A".repeat(5000))),
    ]);
    all.extend([
        with_signed(""),
        with_signed(";"),
        with_signed("host"),
        with_signed("x-amz-date"),
        with_signed("host;"),
        with_signed(";host;x-amz-date"),
        with_signed("host;;x-amz-date"),
        with_signed("host;x-amz-date;"),
        with_signed("x-amz-date;host"),
        with_signed("host;host;x-amz-date"),
        with_signed("host;x-amz-date;x-amz-date"),
        with_signed("Host;x-amz-date"),
        with_signed("HOST;X-AMZ-DATE"),
        with_signed("host; x-amz-date"),
        with_signed("host,x-amz-date"),
        with_signed("host x-amz-date"),
        with_signed("host;x-absent;x-amz-date"),
        with_signed("authorization;host;x-amz-date;x-zzz"),
        with_signed(":authority;x-amz-date"),
        with_signed(":method;:path;host;x-amz-date"),
        with_signed("ho st;host;x-amz-date"),
        with_signed("host;x-amz-date;\u{7f}"),
        with_signed(&format!("host;{};x-amz-date", names.join(";"))),
        with_signed(&"x".repeat(5000)),
    ]);
    all.extend([
        with_signature(""),
        with_signature("0"),
        with_signature(&signature[1..]),
        with_signature(&signature[..63]),
        with_signature(&format!("{signature}0")),
        with_signature(&signature.repeat(2)),
        with_signature(&signature.to_uppercase()),
        with_signature(&"0".repeat(64)),
        with_signature(&"g".repeat(64)),
        with_signature(&"é".repeat(32)),
        with_signature(&" ".repeat(64)),
        with_signature(&format!("{}\u{e9}", &signature[..62])),
        with_signature("-1"),
    ]);
    all
}

#[tokio::test]
async fn every_malformed_authorization_is_refused_alike() {
    let proxy = Proxy::start(&Setup::default()).await;
    let by_hand = ByHand::new(&proxy);
    // A signature of digits alone has no upper case: with another body it has another.
    let by_hand = if by_hand.signature() == by_hand.signature().to_uppercase() {
        ByHand { body: b"{}".to_vec(), ..by_hand }
    } else {
        by_hand
    };
    let mut connection = RawConnection::open(proxy.address).await;
    let mut bodies = HashSet::new();
    for authorization in malformed(&by_hand) {
        // HTTP itself forbids this one byte in a header.
        if authorization.contains('\u{7f}') {
            continue;
        }
        let answer = connection.exchange(&by_hand.raw(&authorization)).await.unwrap();
        assert_not_authenticated(&answer, &authorization);
        bodies.insert(answer.body);
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    connection.exchange(&by_hand.raw(&by_hand.authorization())).await.unwrap().ok();
}

/// Signed by hand, so that nothing but the form of SignedHeaders is at fault.
#[tokio::test]
async fn signed_headers_must_be_sorted_lower_case_and_each_once() {
    let proxy = Proxy::start(&Setup::default()).await;
    let cases: [&[&str]; 4] = [
        &["x-amz-date", "host"],
        &["host", "host", "x-amz-date"],
        &["Host", "x-amz-date"],
        &["host", "x-amz-date", "X-Note"],
    ];
    for names in cases {
        let mut by_hand = ByHand::new(&proxy);
        by_hand.add("x-note", "note").sign(names);
        let (answer, peer) = by_hand.send(&proxy).await;
        assert_not_authenticated(&answer, &format!("{names:?}"));
        assert!(logged_reason(&proxy, peer).contains("SignedHeaders"), "{names:?}");
    }
}

#[tokio::test]
async fn the_three_parts_may_come_in_any_order_with_and_without_spaces() {
    let proxy = Proxy::start(&Setup::default()).await;
    let by_hand = ByHand::new(&proxy);
    let credential = format!("Credential={}/{}", by_hand.signing.access_key_id, by_hand.scope());
    let (signed, signature) = ("SignedHeaders=host;x-amz-date", format!("Signature={}", by_hand.signature()));
    let mut connection = RawConnection::open(proxy.address).await;
    for authorization in [
        format!("AWS4-HMAC-SHA256 {credential}, {signed}, {signature}"),
        format!("AWS4-HMAC-SHA256 {credential},{signed},{signature}"),
        format!("AWS4-HMAC-SHA256 {signature}, {credential}, {signed}"),
        format!("AWS4-HMAC-SHA256 {signed},  {signature},{credential}"),
    ] {
        connection.exchange(&by_hand.raw(&authorization)).await.unwrap().ok();
    }
}

#[tokio::test]
async fn times_of_every_other_form_are_refused() {
    let proxy = Proxy::start(&Setup::default()).await;
    let right = now(&xks_harness::proxy::main_store().signing);
    let (day, time) = right.split_at(8);
    let year = &day[..4];
    let bad = [
        "",
        "0",
        day,
        &right[..15],
        &format!("{right}Z"),
        &format!("{right} "),
        &right.to_lowercase(),
        &right.replace('T', " "),
        &right.replace('Z', "+"),
        &format!("{day}T{}", &time[..6]),
        &format!("{year}-{}-{}T{}:{}:{}Z", &day[4..6], &day[6..], &time[1..3], &time[3..5], &time[5..7]),
        &format!("{year}1301T000000Z"),
        &format!("{year}0230T000000Z"),
        &format!("{year}0100T000000Z"),
        &format!("{day}T240000Z"),
        &format!("{day}T006000Z"),
        &format!("{day}T000060Z"),
        "00000000T000000Z",
        "99999999T999999Z",
        "99991231T235959Z",
        "19691231T235959Z",
        "20150830T123600Z",
        "-0260101T000000Z",
        "2026010\u{664}T00000Z",
        "Mon, 23 Nov 2026 19:00:00 GMT",
        "1767225600",
    ];
    for date in bad {
        // A space at the end is no part of the value: the header is right with it.
        if date.trim() == right {
            continue;
        }
        let mut by_hand = ByHand::new(&proxy);
        by_hand.set("x-amz-date", date);
        by_hand.scope_date = Some(day.to_owned());
        let (answer, _) = by_hand.send(&proxy).await;
        assert_not_authenticated(&answer, date);
        by_hand.scope_date = date.get(..8).map(str::to_owned);
        assert_not_authenticated(&by_hand.send(&proxy).await.0, date);
    }
}

#[tokio::test]
async fn what_must_be_there_once_is_neither_absent_nor_there_twice() {
    let proxy = Proxy::start(&Setup::default()).await;
    for name in ["host", "x-amz-date", "authorization"] {
        let mut by_hand = ByHand::new(&proxy);
        let authorization = by_hand.authorization();
        let value = by_hand.value(name).unwrap_or(&authorization).to_owned();
        // Twice the same, and another before and after the right one, over one connection each.
        for (before, after) in [(None, Some(&*value)), (None, Some("other")), (Some("other"), None)] {
            let mut twice = by_hand.clone();
            if let Some(value) = before {
                twice.headers.insert(0, (name.to_owned(), value.to_owned()));
            }
            if let Some(value) = after {
                twice.add(name, value);
            }
            let mut connection = RawConnection::open(proxy.address).await;
            let answer: Answer = connection.exchange(&twice.raw(&authorization)).await.unwrap();
            assert_not_authenticated(&answer, &format!("{name} {before:?} {after:?}"));
            assert!(
                logged_reason(&proxy, connection.local_address()).contains(&format!("more than one {name}"))
            );
            // Even where both were signed.
            if name != "authorization" {
                assert_not_authenticated(&twice.send(&proxy).await.0, &format!("{name} twice, signed"));
            }
        }
        if name != "authorization" {
            by_hand.remove(name);
            let mut connection = RawConnection::open(proxy.address).await;
            let answer = connection.exchange(&by_hand.raw(&authorization)).await.unwrap();
            assert_not_authenticated(&answer, name);
            assert!(logged_reason(&proxy, connection.local_address()).contains(&format!("no {name}")));
        }
    }
    let mut connection = RawConnection::open(proxy.address).await;
    let unsigned = xks_harness::XksRequest { signing: None, ..encrypt() };
    let answer = connection.exchange(&xks_harness::client::raw_http1(&unsigned, "localhost")).await.unwrap();
    assert_not_authenticated(&answer, "no authorization");
    assert!(logged_reason(&proxy, connection.local_address()).contains("no authorization"));
}
