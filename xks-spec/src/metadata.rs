//! `requestMetadata`: who called KMS, for which operation, on which KMS key (Appendix B and each operation).

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::body::BodyFault;
use crate::path::Operation;

/// The request metadata as KMS sent it. Nothing in it is validated beyond presence and being text: the signature
/// covers it, and KMS may add fields, operations and principals that are no ARN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestMetadata {
    /// ARN of the caller of KMS, or a service principal, or `AWS Internal`.
    pub aws_principal_arn: Option<String>,
    /// VPC from which KMS was called.
    pub aws_source_vpc: Option<String>,
    /// VPC endpoint through which KMS was called.
    pub aws_source_vpce: Option<String>,
    /// ARN of the KMS key.
    pub kms_key_arn: Option<String>,
    /// KMS operation that led to this request.
    pub kms_operation: Option<String>,
    /// Id of the request to KMS, as CloudTrail shows it. Opaque.
    pub kms_request_id: Option<String>,
    /// AWS service that called KMS for the caller.
    pub kms_via_service: Option<String>,
    /// Fields that the specification does not name, kept as they came.
    pub other: Map<String, Value>,
}

impl RequestMetadata {
    /// Names on the wire of the fields that must be there for `operation`.
    #[must_use]
    pub const fn required_fields(operation: Operation) -> &'static [&'static str] {
        match operation {
            // SPEC(META-RMD-007, ENC-RMD-009, DEC-RMD-009): the others are OPTIONAL.
            Operation::GetKeyMetadata => &["awsPrincipalArn", "kmsOperation", "kmsRequestId"],
            Operation::Encrypt | Operation::Decrypt => {
                &["awsPrincipalArn", "kmsKeyArn", "kmsOperation", "kmsRequestId"]
            }
            Operation::GetHealthStatus => &["kmsOperation", "kmsRequestId"],
        }
    }

    /// # Errors
    /// [`BodyFault::Missing`] for the first required field that is absent.
    pub fn require_fields(&self, operation: Operation) -> Result<(), BodyFault> {
        let mut required = Self::required_fields(operation).iter();
        match required.find(|name| self.field(name).is_none()) {
            Some(name) => Err(BodyFault::Missing(name)),
            None => Ok(()),
        }
    }

    /// The value of a field that the specification names, by its name on the wire.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.named().into_iter().find(|(known, _)| *known == name).and_then(|(_, value)| value)
    }

    fn named(&self) -> [(&'static str, Option<&str>); 7] {
        [
            ("awsPrincipalArn", self.aws_principal_arn.as_deref()),
            ("awsSourceVpc", self.aws_source_vpc.as_deref()),
            ("awsSourceVpce", self.aws_source_vpce.as_deref()),
            ("kmsKeyArn", self.kms_key_arn.as_deref()),
            ("kmsOperation", self.kms_operation.as_deref()),
            ("kmsRequestId", self.kms_request_id.as_deref()),
            ("kmsViaService", self.kms_via_service.as_deref()),
        ]
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "awsPrincipalArn" => Some(&mut self.aws_principal_arn),
            "awsSourceVpc" => Some(&mut self.aws_source_vpc),
            "awsSourceVpce" => Some(&mut self.aws_source_vpce),
            "kmsKeyArn" => Some(&mut self.kms_key_arn),
            "kmsOperation" => Some(&mut self.kms_operation),
            "kmsRequestId" => Some(&mut self.kms_request_id),
            "kmsViaService" => Some(&mut self.kms_via_service),
            _ => None,
        }
    }
}

impl Serialize for RequestMetadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.named() {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &self.other {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for RequestMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = RequestMetadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RequestMetadata, A::Error> {
        let mut metadata = RequestMetadata::default();
        let mut seen_null = Vec::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            // SPEC(REQ-CHECK-001, META-REQID-001, META-REQID-002, ENC-REQID-001, ENC-REQID-002, DEC-REQID-001,
            // DEC-REQID-002, HEALTH-REQID-001, HEALTH-REQID-002): any text will do, and is kept as it came.
            // SPEC(META-OPNAME-001, ENC-OPNAME-001, DEC-OPNAME-001, HEALTH-OPNAME-001): so with every kmsOperation,
            // SPEC(META-RMD-002, ENC-RMD-002, DEC-RMD-002, REQ-ARN-001, REQ-ARN-002): and every principal and ARN.
            if let Some(slot) = metadata.slot(&name) {
                // A field given twice could be read one way here and another way by whoever signed or logged it.
                if slot.is_some() || seen_null.contains(&name) {
                    return Err(de::Error::custom("a field is given twice"));
                }
                *slot = map.next_value()?;
                if slot.is_none() {
                    seen_null.push(name);
                }
                // SPEC(META-NEW-001, ENC-NEW-001, DEC-NEW-001, HEALTH-NEW-001): KMS may add fields.
            } else if metadata.other.insert(name.into_owned(), map.next_value()?).is_some() {
                return Err(de::Error::custom("a field is given twice"));
            }
        }
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<RequestMetadata, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn keeps_every_field() {
        let json = r#"{"awsPrincipalArn":"AWS Internal","kmsOperation":"BulkEncrypt","kmsRequestId":"","new":{"a":[1]}}"#;
        let metadata = parse(json).unwrap();
        assert_eq!(metadata.aws_principal_arn.as_deref(), Some("AWS Internal"));
        assert_eq!(metadata.kms_operation.as_deref(), Some("BulkEncrypt"));
        assert_eq!(metadata.other["new"]["a"][0], 1);
        assert_eq!(serde_json::to_string(&metadata).unwrap(), json);
    }

    #[test]
    fn names_the_first_missing_field() {
        let metadata = parse(r#"{"awsPrincipalArn":"p","kmsRequestId":"r","kmsOperation":null}"#).unwrap();
        assert_eq!(
            metadata.require_fields(Operation::GetKeyMetadata),
            Err(BodyFault::Missing("kmsOperation"))
        );
        assert_eq!(metadata.require_fields(Operation::Encrypt), Err(BodyFault::Missing("kmsKeyArn")));
    }

    #[test]
    fn refuses_ambiguous_and_mistyped_fields() {
        for json in [
            r#"{"kmsOperation":"a","kmsOperation":"b"}"#,
            r#"{"kmsOperation":null,"kmsOperation":"b"}"#,
            r#"{"x":1,"x":2}"#,
            r#"{"kmsOperation":1}"#,
            r#"{"awsSourceVpc":["vpc"]}"#,
            r#"["a"]"#,
            r#""text""#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
