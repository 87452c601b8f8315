//! What an awsPrincipalArn and a kmsKeyArn say, part by part.

#![cfg_attr(not(feature = "cedar"), allow(dead_code, reason = "policies alone look at the parts"))]

/// Kind of a caller that is an AWS service by its name.
const AWS_SERVICE: &str = "aws-service";
/// Kind of AWS's own doings.
const AWS_INTERNAL: &str = "aws-internal";
/// Kind of everything else that is no ARN of an identity.
const OTHER: &str = "other";

/// The parts that every ARN has; a part that is empty is empty here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arn<'a> {
    partition: &'a str,
    service: &'a str,
    region: &'a str,
    account: &'a str,
    resource: &'a str,
}

impl<'a> Arn<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next();
        let (prefix, partition, service) = (next()?, next()?, next()?);
        let arn = Self { partition, service, region: next()?, account: next()?, resource: next()? };
        let is_whole =
            prefix == "arn" && [partition, service, arn.resource].iter().all(|part| !part.is_empty());
        is_whole.then_some(arn)
    }
}

/// Who called KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Principal<'a> {
    pub(super) kind: &'a str,
    pub(super) partition: Option<&'a str>,
    pub(super) service: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) account: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) session: Option<&'a str>,
}

impl<'a> Principal<'a> {
    const fn of_kind(kind: &'a str) -> Self {
        Self { kind, partition: None, service: None, region: None, account: None, name: None, session: None }
    }

    /// Of an awsPrincipalArn, which need not be an ARN.
    pub(super) fn of(text: &'a str) -> Self {
        match Arn::parse(text) {
            Some(arn) => Self::of_arn(arn),
            None if text == "AWS Internal" => Self::of_kind(AWS_INTERNAL),
            None if is_service_name(text) => Self { name: Some(text), ..Self::of_kind(AWS_SERVICE) },
            None => Self::of_kind(OTHER),
        }
    }

    fn of_arn(arn: Arn<'a>) -> Self {
        let (kind, rest) = match arn.resource.split_once('/') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (arn.resource, None),
        };
        // An ARN must not pass for what is none.
        let kind = if kind.is_empty() || [AWS_SERVICE, AWS_INTERNAL].contains(&kind) { OTHER } else { kind };
        let (name, session) = match rest {
            // Sessions of roles have no path, and what follows the role's name is the session's.
            Some(rest) if kind == "assumed-role" => match rest.split_once('/') {
                Some((name, session)) => (Some(name), Some(session)),
                None => (Some(rest), None),
            },
            // A path may come before the name, which no other of the account has, whatever its path.
            Some(rest) => (rest.rsplit('/').next(), None),
            None => (None, None),
        };
        Self {
            kind,
            partition: Some(arn.partition),
            service: Some(arn.service),
            region: present(arn.region),
            account: present(arn.account),
            name: name.and_then(present),
            session: session.and_then(present),
        }
    }
}

fn present(part: &str) -> Option<&str> {
    (!part.is_empty()).then_some(part)
}

/// Such as `ec2.amazonaws.com` or `s3.cn-north-1.amazonaws.com.cn`.
fn is_service_name(text: &str) -> bool {
    let name = text.strip_suffix(".amazonaws.com").or_else(|| text.strip_suffix(".amazonaws.com.cn"));
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.is_some_and(|name| name.split('.').all(is_label))
}

/// A KMS key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KmsKey<'a> {
    pub(super) partition: &'a str,
    pub(super) region: &'a str,
    pub(super) account: &'a str,
    pub(super) id: &'a str,
}

impl<'a> KmsKey<'a> {
    /// Of a kmsKeyArn; none where it is not the ARN of a KMS key.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let Arn { partition, service, region, account, resource } = Arn::parse(text)?;
        let id = resource.strip_prefix("key/")?;
        let is_whole = service == "kms" && [region, account, id].iter().all(|part| !part.is_empty());
        is_whole.then_some(Self { partition, region, account, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_told_apart() {
        let of = |text| {
            let Principal { kind, account, name, session, .. } = Principal::of(text);
            (kind, account, name, session)
        };
        let account = Some("111122223333");
        for (text, kind, name, session) in [
            ("arn:aws:iam::111122223333:user/Alice", "user", Some("Alice"), None),
            ("arn:aws:iam::111122223333:user/a/b/Alice", "user", Some("Alice"), None),
            ("arn:aws:iam::111122223333:role/path/app", "role", Some("app"), None),
            (
                "arn:aws:sts::111122223333:assumed-role/app/i-0abc",
                "assumed-role",
                Some("app"),
                Some("i-0abc"),
            ),
            ("arn:aws:sts::111122223333:assumed-role/app", "assumed-role", Some("app"), None),
            ("arn:aws:sts::111122223333:assumed-role/app/", "assumed-role", Some("app"), None),
            ("arn:aws:sts::111122223333:federated-user/x", "federated-user", Some("x"), None),
            ("arn:aws:iam::111122223333:root", "root", None, None),
            ("arn:aws:iam::111122223333:user/", "user", None, None),
            (
                "arn:aws:iam::111122223333:aws-service/ec2.amazonaws.com",
                "other",
                Some("ec2.amazonaws.com"),
                None,
            ),
            ("arn:aws:iam::111122223333:/x", "other", Some("x"), None),
        ] {
            assert_eq!(of(text), (kind, account, name, session), "{text}");
        }
        let other = Principal::of("arn:aws-us-gov:iam:us-gov-west-1::user/A:B");
        assert_eq!((other.partition, other.service), (Some("aws-us-gov"), Some("iam")));
        assert_eq!((other.region, other.account, other.name), (Some("us-gov-west-1"), None, Some("A:B")));
    }

    #[test]
    fn what_is_no_arn_has_a_kind_and_no_account() {
        for (text, kind, name) in [
            ("AWS Internal", "aws-internal", None),
            ("ec2.amazonaws.com", "aws-service", Some("ec2.amazonaws.com")),
            ("s3.cn-north-1.amazonaws.com.cn", "aws-service", Some("s3.cn-north-1.amazonaws.com.cn")),
            ("aws internal", "other", None),
            (".amazonaws.com", "other", None),
            ("ec2.amazonaws.com.evil.example", "other", None),
            ("", "other", None),
            ("arn:aws:iam::111122223333", "other", None),
            ("arn:aws:iam::111122223333:", "other", None),
            ("arn:::::x", "other", None),
            ("xarn:aws:iam::111122223333:user/Alice", "other", None),
        ] {
            assert_eq!(Principal::of(text), Principal { name, ..Principal::of_kind(kind) }, "{text}");
        }
    }

    #[test]
    fn kms_keys_are_those_of_kms() {
        let key = KmsKey { partition: "aws", region: "eu-central-1", account: "1", id: "mrk-a/b" };
        assert_eq!(KmsKey::of("arn:aws:kms:eu-central-1:1:key/mrk-a/b"), Some(key));
        for text in [
            "arn:aws:kms:eu-central-1:1:alias/a",
            "arn:aws:s3:eu-central-1:1:key/a",
            "arn:aws:kms::1:key/a",
            "a",
        ] {
            assert_eq!(KmsKey::of(text), None, "{text}");
        }
    }
}
