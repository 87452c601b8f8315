//! A signer that can be told to sign wrongly, and is right until then.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use sha2::{Digest, Sha256};
use xks_harness::proxy::main_store;
use xks_harness::{Answer, Proxy, RawConnection, Signing};

use super::{authority, encrypt};

/// An Encrypt request over HTTP/1.1, taken apart.
#[derive(Clone)]
pub(super) struct ByHand {
    pub(super) method: String,
    pub(super) path: String,
    /// As they are sent, but for authorization and content-length.
    pub(super) headers: Vec<(String, String)>,
    /// Names in the order of SignedHeaders.
    pub(super) signed: Vec<String>,
    pub(super) body: Vec<u8>,
    pub(super) signing: Signing,
    /// The scope's date, or that of x-amz-date.
    pub(super) scope_date: Option<String>,
    /// What ends the canonical request in place of the body's hash.
    pub(super) claimed_hash: Option<String>,
    /// The path in the canonical request in place of the one sent.
    pub(super) signed_path: Option<String>,
}

impl ByHand {
    pub(super) fn new(proxy: &Proxy) -> Self {
        let request = encrypt();
        let mut by_hand = Self {
            method: "POST".to_owned(),
            path: request.path,
            headers: Vec::new(),
            signed: ["host", "x-amz-date"].map(str::to_owned).to_vec(),
            body: request.body,
            signing: main_store().signing,
            scope_date: None,
            claimed_hash: None,
            signed_path: None,
        };
        by_hand.add("host", &authority(proxy));
        by_hand.add("x-amz-date", &now(&by_hand.signing));
        by_hand
    }

    /// Adds a header that is not signed.
    pub(super) fn add(&mut self, name: &str, value: &str) -> &mut Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces the value of a header.
    pub(super) fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.remove(name).add(name, value)
    }

    /// Removes a header, wherever it is listed.
    pub(super) fn remove(&mut self, name: &str) -> &mut Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    /// Lists exactly these names as signed.
    pub(super) fn sign(&mut self, names: &[&str]) -> &mut Self {
        self.signed = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn date(&self) -> String {
        let of_header = self.value("x-amz-date").map(|date| date.chars().take(8).collect());
        self.scope_date.clone().or(of_header).unwrap_or_else(|| "20260101".to_owned())
    }

    pub(super) fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date(), self.signing.region, self.signing.service)
    }

    /// The canonical request, as Appendix A builds it.
    fn canonical_request(&self) -> String {
        let path = self.signed_path.as_ref().unwrap_or(&self.path);
        let mut text = format!("{}\n{path}\n\n", self.method);
        for name in &self.signed {
            // A header is named in lower case whatever SignedHeaders says.
            let of_name = |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
            let words = |(_, value): &(String, String)| {
                value.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
            };
            let values: Vec<_> = self.headers.iter().filter(of_name).map(words).collect();
            writeln!(text, "{}:{}", name, values.join(",")).unwrap();
        }
        let hash = self.claimed_hash.clone().unwrap_or_else(|| hex(&Sha256::digest(&self.body)));
        write!(text, "\n{}\n{hash}", self.signed.join(";")).unwrap();
        text
    }

    pub(super) fn signature(&self) -> String {
        let request_hash = hex(&Sha256::digest(self.canonical_request()));
        let date = self.value("x-amz-date").unwrap_or_default();
        let string_to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{request_hash}", self.scope());
        let Signing { secret_access_key, region, service, .. } = &self.signing;
        let key = generate_signing_key(secret_access_key, day(&self.date()), region, service);
        calculate_signature(key, string_to_sign.as_bytes())
    }

    pub(super) fn authorization(&self) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}",
            self.signing.access_key_id,
            self.scope(),
            self.signed.join(";"),
            self.signature()
        )
    }

    /// The whole request with this Authorization header.
    pub(super) fn raw(&self, authorization: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        write!(head, "authorization: {authorization}\r\ncontent-length: {}\r\n\r\n", self.body.len())
            .unwrap();
        [head.as_bytes(), &self.body].concat()
    }

    /// Sends it signed, on a connection of its own, and returns that connection's address too.
    pub(super) async fn send(&self, proxy: &Proxy) -> (Answer, SocketAddr) {
        let mut connection = RawConnection::open(proxy.address).await;
        let answer = connection.exchange(&self.raw(&self.authorization())).await.unwrap();
        (answer, connection.local_address())
    }
}

/// The time of AWS's own signer.
pub(super) fn now(signing: &Signing) -> String {
    let headers = signing.headers("POST", "https://localhost/", &[], b"");
    let (_, date) = headers.into_iter().find(|(name, _)| name == "x-amz-date").unwrap();
    date.to_str().unwrap().to_owned()
}

/// The beginning of a day of the form `YYYYMMDD`; days that are none are the first.
fn day(date: &str) -> std::time::SystemTime {
    let number =
        |range: std::ops::Range<usize>| date.get(range).and_then(|digits| digits.parse::<i64>().ok());
    let (Some(year), Some(month @ 1..=12), Some(day)) = (number(0..4), number(4..6), number(6..8)) else {
        return UNIX_EPOCH;
    };
    // Days since 1970 in the proleptic Gregorian calendar, whose year begins in March here.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    UNIX_EPOCH + Duration::from_secs(u64::try_from(days).unwrap_or(0) * 86_400)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This signer and the proxy could agree on a mistake; AWS's signer is the judge.
#[tokio::test]
async fn the_signer_of_these_tests_signs_as_aws_does() {
    let proxy = Proxy::start(&xks_harness::Setup::default()).await;
    let mut by_hand = ByHand::new(&proxy);
    by_hand.add("content-type", "application/json").add("x-note", "two words");
    by_hand.sign(&["content-type", "host", "x-amz-date", "x-note"]);
    let url = format!("https://{}{}", authority(&proxy), by_hand.path);
    let headers = [("content-type", "application/json"), ("x-note", "two words")];
    let by_aws = by_hand.signing.headers("POST", &url, &headers, &by_hand.body);
    let of_aws = |wanted: &str| {
        let (_, value) = by_aws.iter().find(|(name, _)| name == wanted).unwrap();
        value.to_str().unwrap().to_owned()
    };
    by_hand.set("x-amz-date", &of_aws("x-amz-date"));
    assert_eq!(by_hand.authorization(), of_aws("authorization"));
    by_hand.send(&proxy).await.0.ok();
}
