//! Whose signature, for where and when.

use std::process::Command;
use std::time::{Duration, Instant};

use xks_harness::binary::program;
use xks_harness::proxy::{main_store, nested_store};
use xks_harness::{Answer, Http, Proxy, RawConnection, Setup, Signing, SoftHsm, XksRequest};

use super::by_hand::ByHand;
use super::{assert_not_authenticated, authority, encrypt, logged_reason};

/// Sends an Encrypt request signed so, and returns the reason in the log.
async fn send(proxy: &Proxy, signing: &Signing) -> (Answer, String) {
    let request = XksRequest { signing: Some(signing.clone()), ..encrypt() };
    let mut connection = RawConnection::open(proxy.address).await;
    let bytes = xks_harness::client::raw_http1(&request, &authority(proxy));
    let answer = connection.exchange(&bytes).await.unwrap();
    let reason = logged_reason(proxy, connection.local_address());
    (answer, reason)
}

/// The same within a second of signing, however busy the machine is: at the edges a second decides.
async fn send_promptly(proxy: &Proxy, signing: &Signing) -> (Answer, String) {
    for _ in 0..100 {
        let began_at = Instant::now();
        let outcome = send(proxy, signing).await;
        if began_at.elapsed() < Duration::from_secs(1) {
            return outcome;
        }
    }
    panic!("this machine is too slow to tell seconds apart");
}

#[tokio::test]
async fn five_minutes_either_way_are_accepted_and_no_more() {
    let proxy = Proxy::start(&Setup::default()).await;
    for skew_secs in [-299, -150, 0, 150, 299] {
        let signing = Signing { skew_secs, ..main_store().signing };
        assert_eq!(send_promptly(&proxy, &signing).await.0.status, 200, "{skew_secs}");
    }
    for skew_secs in [-302, 302, -3600, 3600, -86_400, 86_400, -400_000_000, 400_000_000] {
        let signing = Signing { skew_secs, ..main_store().signing };
        let (answer, reason) = send_promptly(&proxy, &signing).await;
        assert_not_authenticated(&answer, &skew_secs.to_string());
        // Seconds may have passed since it was signed.
        let logged: i64 =
            reason.split("time is ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((skew_secs - 60..=skew_secs).contains(&logged), "{skew_secs}: {reason}");
    }
}

#[tokio::test]
async fn another_service_is_refused() {
    let proxy = Proxy::start(&Setup::default()).await;
    for service in ["kms", "service", "execute-api", "kms-xks-proxy2", "Kms-xks-proxy", "kms-xks"] {
        let signing = Signing { service: service.to_owned(), ..main_store().signing };
        let (answer, reason) = send(&proxy, &signing).await;
        assert_not_authenticated(&answer, service);
        assert!(reason.contains("service"), "{reason}");
    }
}

#[tokio::test]
async fn any_region_will_do_unless_the_store_is_pinned_to_one() {
    const REGIONS: [&str; 5] = ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "new-region-9"];
    let proxy = Proxy::start(&Setup::default()).await;
    for region in REGIONS {
        let signing = Signing { region: region.to_owned(), ..main_store().signing };
        assert_eq!(send(&proxy, &signing).await.0.status, 200, "{region}");
    }
    let pinned = Setup { store: "region = \"us-east-1\"".to_owned(), ..Setup::default() };
    let proxy = Proxy::start(&pinned).await;
    for region in REGIONS.into_iter().chain(["US-EAST-1", "us-east-11", "us-east-"]) {
        let signing = Signing { region: region.to_owned(), ..main_store().signing };
        let (answer, reason) = send(&proxy, &signing).await;
        if region == "us-east-1" {
            assert_eq!(answer.status, 200);
        } else {
            assert_not_authenticated(&answer, region);
            assert!(reason.contains("Region"), "{reason}");
        }
    }
    // The other store is not pinned.
    let mut nested = nested_store();
    nested.signing.region = "eu-central-1".to_owned();
    proxy.connect(Http::Two).await.send(&XksRequest::health(&nested)).await.ok();
}

#[tokio::test]
async fn the_scope_is_of_the_day_of_the_request() {
    let proxy = Proxy::start(&Setup::default()).await;
    for date in ["20150830", "20991231", "00000000"] {
        let mut by_hand = ByHand::new(&proxy);
        by_hand.scope_date = Some(date.to_owned());
        let (answer, peer) = by_hand.send(&proxy).await;
        assert_not_authenticated(&answer, date);
        assert!(logged_reason(&proxy, peer).contains("date"), "{date}");
    }
}

const SECOND_ID: &str = "SECONDTESTKEYID234567ABCDE";
const SECOND_SECRET: &str = "second+test+secret/second+test+secret/second1";

fn second_credential() -> String {
    format!(
        "[[stores.credentials]]\naccess_key_id = \"{SECOND_ID}\"\nsecret_access_key = \"{SECOND_SECRET}\"\n"
    )
}

#[tokio::test]
async fn two_credentials_of_a_store_serve_side_by_side_each_with_its_own_secret() {
    let setup = Setup { keys: second_credential() + &Setup::default().keys, ..Setup::default() };
    let proxy = Proxy::start(&setup).await;
    let first = main_store().signing;
    let second = Signing::new(SECOND_ID, SECOND_SECRET);
    for signing in [&first, &second, &first, &second] {
        assert_eq!(send(&proxy, signing).await.0.status, 200, "{}", signing.access_key_id);
    }
    for (signing, other) in [(&first, &second), (&second, &first)] {
        let mixed = Signing { secret_access_key: other.secret_access_key.clone(), ..signing.clone() };
        assert_not_authenticated(&send(&proxy, &mixed).await.0, &signing.access_key_id);
    }
    // Neither is known to the other store.
    for signing in [first, second] {
        let mut nested = nested_store();
        nested.signing = signing;
        let answer = proxy.connect(Http::Two).await.send(&XksRequest::health(&nested)).await;
        assert_not_authenticated(&answer, &nested.signing.access_key_id);
    }
}

#[test]
fn a_configuration_with_one_access_key_id_twice_is_refused() {
    let same_store = second_credential().repeat(2) + &Setup::default().keys;
    let other_store = second_credential().replace(SECOND_ID, &nested_store().signing.access_key_id);
    for keys in [same_store, other_store + &Setup::default().keys] {
        let folder = tempfile::tempdir().unwrap();
        let config = Setup { keys, ..Setup::default() }.write(folder.path(), &SoftHsm::with_keys());
        let output =
            Command::new(program("xks-proxy")).arg("check").arg("--config").arg(config).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!output.status.success() && text.contains("already in use"), "{text}");
        assert!(!text.contains(SECOND_SECRET), "{text}");
    }
}

#[tokio::test]
async fn the_log_names_the_access_key_id_that_was_claimed() {
    let proxy = Proxy::start(&Setup::default()).await;
    let unknown = Signing { access_key_id: "UNKNOWNKEYID234567ABCDEFGH".to_owned(), ..main_store().signing };
    let (answer, _) = send(&proxy, &unknown).await;
    assert_not_authenticated(&answer, "unknown");
    let _ = proxy.wait_for_log(|line| line["claimed_access_key_id"] == unknown.access_key_id);
    let (answer, _) =
        send(&proxy, &Signing { access_key_id: "A".repeat(3000), ..main_store().signing }).await;
    assert_not_authenticated(&answer, "too long");
    let _ = proxy.wait_for_log(|line| line["claimed_access_key_id"] == "A".repeat(64));
    assert!(!proxy.all_output().contains(&main_store().signing.secret_access_key));
}

/// While credentials are rotated, the operator must see which of the two fails.
#[tokio::test]
async fn the_log_names_the_claimed_access_key_id_of_every_signature_that_could_be_read() {
    let proxy = Proxy::start(&Setup::default()).await;
    let right = main_store().signing;
    let id = right.access_key_id.clone();
    for signing in [
        Signing { secret_access_key: "x".repeat(43), ..right.clone() },
        Signing { skew_secs: -400, ..right.clone() },
        Signing { service: "kms".to_owned(), ..right },
    ] {
        let request = XksRequest { signing: Some(signing), ..encrypt() };
        let mut connection = RawConnection::open(proxy.address).await;
        connection.exchange(&xks_harness::client::raw_http1(&request, &authority(&proxy))).await.unwrap();
        let peer = connection.local_address().to_string();
        let line = proxy.wait_for_log(|line| line["peer"] == peer);
        assert!(line.to_string().contains(&id), "{line}");
    }
}
