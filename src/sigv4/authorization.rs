//! The `Authorization` header: `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`.

use super::AuthenticationFault;

/// The one signing algorithm.
pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// What ends every credential scope.
pub(super) const SCOPE_END: &str = "aws4_request";
/// More signed headers than any signer lists.
const MAX_SIGNED_HEADERS: usize = 64;

/// The header taken apart. Borrows from the header's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Authorization<'a> {
    pub(super) access_key_id: &'a str,
    /// `date/region/service/aws4_request`, as it came.
    pub(super) scope: &'a str,
    pub(super) date: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    /// Names joined by `;`, lower case, sorted, none twice.
    pub(super) signed_headers: &'a str,
    /// 64 lower-case hexadecimal digits.
    pub(super) signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Takes the three parts in any order, each once and nothing else.
    pub(super) fn parse(value: &'a str) -> Result<Self, AuthenticationFault> {
        let malformed = AuthenticationFault::Malformed;
        // SPEC(AUTH-HEADER-002, AUTH-ALG-001): the header's form; no other algorithm.
        let parts = value
            .strip_prefix(ALGORITHM)
            .and_then(|rest| rest.strip_prefix(' '))
            .ok_or(malformed("it does not start with AWS4-HMAC-SHA256 and a space"))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in parts.split(',') {
            let (name, value) =
                part.trim_matches(' ').split_once('=').ok_or(malformed("a part without ="))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(malformed("an unknown part")),
            };
            if slot.replace(value).is_some() {
                return Err(malformed("a part that is there twice"));
            }
        }
        let (access_key_id, scope) = credential
            .ok_or(malformed("no Credential"))?
            .split_once('/')
            .ok_or(malformed("a Credential without a scope"))?;
        let [date, region, service] = split_scope(scope)?;
        let signed_headers = signed_headers.ok_or(malformed("no SignedHeaders"))?;
        check_names(signed_headers)?;
        let signature = signature.ok_or(malformed("no Signature"))?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if signature.len() != 64 || !signature.bytes().all(is_hex) {
            return Err(malformed("a Signature that is not 64 lower-case hexadecimal digits"));
        }
        if access_key_id.is_empty() {
            return Err(malformed("an empty access key id"));
        }
        Ok(Self { access_key_id, scope, date, region, service, signed_headers, signature })
    }

    pub(super) fn signed_header_names(&self) -> impl Iterator<Item = &'a str> {
        self.signed_headers.split(';')
    }
}

fn split_scope(scope: &str) -> Result<[&str; 3], AuthenticationFault> {
    // SPEC(AUTH-SCOPE-001): date/Region/service/aws4_request.
    let mut parts = scope.split('/');
    let (date, region, service, end) = (parts.next(), parts.next(), parts.next(), parts.next());
    match (date, region, service, end, parts.next()) {
        (Some(date), Some(region), Some(service), Some(SCOPE_END), None) if !region.is_empty() => {
            Ok([date, region, service])
        }
        _ => Err(AuthenticationFault::Malformed("a scope that is not date/region/service/aws4_request")),
    }
}

/// Names must be lower case, sorted and unique: that is the order in which both sides write the canonical headers.
fn check_names(signed_headers: &str) -> Result<(), AuthenticationFault> {
    let is_lower_case = |name: &str| !name.bytes().any(|byte| byte.is_ascii_uppercase());
    let mut previous = "";
    for (index, name) in signed_headers.split(';').enumerate() {
        if name <= previous || !is_lower_case(name) || index >= MAX_SIGNED_HEADERS {
            let reason = "SignedHeaders that are not lower-case names, sorted, each once, joined by ;";
            return Err(AuthenticationFault::Malformed(reason));
        }
        previous = name;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &str = "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";

    fn header(credential: &str, signed: &str, signature: &str) -> String {
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}")
    }

    #[test]
    fn reads_the_three_parts_in_any_order() {
        let usual =
            header("AKID/20150830/us-east-1/kms-xks-proxy/aws4_request", "host;x-amz-date", SIGNATURE);
        let read = Authorization::parse(&usual).unwrap();
        assert_eq!(read.access_key_id, "AKID");
        assert_eq!(read.scope, "20150830/us-east-1/kms-xks-proxy/aws4_request");
        assert_eq!((read.date, read.region, read.service), ("20150830", "us-east-1", "kms-xks-proxy"));
        assert_eq!(read.signed_headers, "host;x-amz-date");
        let other_order = format!(
            "AWS4-HMAC-SHA256 Signature={SIGNATURE},SignedHeaders=host;x-amz-date,Credential=AKID/{}",
            read.scope
        );
        assert_eq!(Authorization::parse(&other_order).unwrap(), read);
    }

    #[test]
    fn refuses_every_other_form() {
        let scope = "AKID/20150830/us-east-1/kms-xks-proxy/aws4_request";
        let good = header(scope, "host;x-amz-date", SIGNATURE);
        assert!(Authorization::parse(&good).is_ok());
        for bad in [
            String::new(),
            "Basic dXNlcjpwYXNz".to_owned(),
            "AWS4-HMAC-SHA256".to_owned(),
            "AWS4-HMAC-SHA256 ".to_owned(),
            good.replace("SHA256 ", "SHA256\t"),
            good.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"),
            good.replace("AWS4-HMAC-SHA256", "aws4-hmac-sha256"),
            good.replace(", Signature", " Signature"),
            good.replace("Signature=", "signature="),
            format!("{good},"),
            format!("{good}, Signature={SIGNATURE}"),
            format!("{good}, Extra=1"),
            header("AKID", "host;x-amz-date", SIGNATURE),
            header("/20150830/us-east-1/kms-xks-proxy/aws4_request", "host", SIGNATURE),
            header("AKID/20150830/us-east-1/kms-xks-proxy", "host", SIGNATURE),
            header("AKID/20150830//kms-xks-proxy/aws4_request", "host", SIGNATURE),
            header(&format!("{scope}/"), "host", SIGNATURE),
            header("AKID/20150830/us-east-1/kms-xks-proxy/aws5_request", "host", SIGNATURE),
            header(scope, "", SIGNATURE),
            header(scope, "x-amz-date;host", SIGNATURE),
            header(scope, "host;host;x-amz-date", SIGNATURE),
            header(scope, "Host;x-amz-date", SIGNATURE),
            header(scope, "host;x-amz-date;", SIGNATURE),
            header(scope, "host;x-amz-date", &SIGNATURE[1..]),
            header(scope, "host;x-amz-date", &format!("{SIGNATURE}0")),
            header(scope, "host;x-amz-date", &SIGNATURE.to_uppercase()),
        ] {
            assert!(Authorization::parse(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(value in "\\PC{0,200}|AWS4-HMAC-SHA256 [A-Za-z=,/; ]{0,120}") {
            let _ = Authorization::parse(&value);
        }

        #[test]
        fn what_is_taken_apart_is_what_came(
            id in "[A-Z2-7]{20,30}", date in "[0-9]{8}", region in "[a-z]{2}-[a-z]{4,9}-[1-9]",
            names in prop::collection::btree_set("[a-z][a-z-]{0,12}", 1..8), signature in "[0-9a-f]{64}",
        ) {
            let names = names.into_iter().collect::<Vec<_>>().join(";");
            let value = header(&format!("{id}/{date}/{region}/kms-xks-proxy/aws4_request"), &names, &signature);
            let read = Authorization::parse(&value).unwrap();
            prop_assert_eq!(read.access_key_id, id);
            prop_assert_eq!(read.date, date);
            prop_assert_eq!(read.region, region);
            prop_assert_eq!(read.signed_headers, names);
            prop_assert_eq!(read.signature, signature);
        }
    }
}
