//! The members of a request: their types, and the constraints of AWS's service model.
//!
//! A wrong type ends the request at once with `SerializationException`. Broken constraints are collected, and
//! [`Input::finish`] reports all of them in one `ValidationException`, as AWS does.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::kms::constraint::{self, Number, Text};
use crate::kms::context::{EncryptionContext, MAX_CONTEXT_JSON_BYTES};
use crate::kms::{Exception, KmsError};

/// A request's members.
pub(super) struct Input<'a> {
    members: Option<&'a Map<String, Value>>,
    path: String,
    faults: Vec<String>,
}

impl<'a> Input<'a> {
    /// The members of a request's body.
    pub(super) fn new(body: &'a Value) -> Result<Self, KmsError> {
        Ok(Self { members: Some(object(body)?), path: String::new(), faults: Vec::new() })
    }

    /// A text that may be absent.
    pub(super) fn text(&mut self, name: &str, text: &Text) -> Result<Option<String>, KmsError> {
        let value = self.member(name).map(string).transpose()?;
        if let Some(value) = value {
            self.check_text(name, value, text);
        }
        Ok(value.map(str::to_owned))
    }

    /// A text that must be there; empty where it is not, since [`Input::finish`] reports that.
    pub(super) fn required_text(&mut self, name: &str, text: &Text) -> Result<String, KmsError> {
        let value = self.text(name, text)?;
        Ok(value.unwrap_or_else(|| self.missing(name)))
    }

    /// A secret text that must be there; its value is in no message.
    pub(super) fn required_secret(&mut self, name: &str, text: &Text) -> Result<String, KmsError> {
        let Some(value) = self.member(name).map(string).transpose()? else { return Ok(self.missing(name)) };
        for fault in text.faults(value) {
            self.fault(None, name, &fault);
        }
        Ok(value.to_owned())
    }

    /// One of a set of names.
    pub(super) fn choice(
        &mut self,
        name: &str,
        choices: &[&'static str],
    ) -> Result<Option<&'static str>, KmsError> {
        let Some(value) = self.member(name).map(string).transpose()? else { return Ok(None) };
        let choice = choices.iter().find(|choice| **choice == value).copied();
        if choice.is_none() {
            let set = format!("Member must satisfy enum value set: [{}]", choices.join(", "));
            self.fault(Some(value), name, &set);
        }
        Ok(choice)
    }

    /// A whole number.
    pub(super) fn number(&mut self, name: &str, number: Number) -> Result<Option<i64>, KmsError> {
        let Some(value) = self.member(name) else { return Ok(None) };
        let value = value.as_i64().ok_or_else(|| wrong_type(value, "an Integer"))?;
        if let Some(fault) = number.fault(value) {
            self.fault(Some(&value.to_string()), name, &fault);
        }
        Ok(Some(value))
    }

    /// A number of things from 1 up.
    pub(super) fn count(&mut self, name: &str, number: Number) -> Result<Option<usize>, KmsError> {
        Ok(self.number(name, number)?.and_then(|count| usize::try_from(count).ok()))
    }

    /// Yes or no; no where it is absent.
    pub(super) fn is_set(&mut self, name: &str) -> Result<bool, KmsError> {
        let Some(value) = self.member(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong_type(value, "a Boolean"))
    }

    /// Bytes that may be absent.
    pub(super) fn blob(&mut self, name: &str, text: &Text) -> Result<Option<Zeroizing<Vec<u8>>>, KmsError> {
        let Some(value) = self.member(name).map(string).transpose()? else { return Ok(None) };
        let decoded = STANDARD.decode(value).map_err(|_| {
            KmsError::new(Exception::SerializationException, format!("{name} is not valid Base64"))
        })?;
        if let Some(fault) = text.fault_of_length(decoded.len()) {
            self.fault(None, name, &fault);
        }
        Ok(Some(Zeroizing::new(decoded)))
    }

    /// Bytes that must be there; none where they are not.
    pub(super) fn required_blob(&mut self, name: &str, text: &Text) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let value = self.blob(name, text)?;
        Ok(value.unwrap_or_else(|| Zeroizing::new(self.missing(name).into_bytes())))
    }

    /// An encryption context; the empty one where it is absent.
    pub(super) fn context(&mut self, name: &str) -> Result<EncryptionContext, KmsError> {
        let Some(value) = self.member(name) else { return Ok(EncryptionContext::default()) };
        let pairs = object(value)?.iter().map(|(key, value)| Ok((key.clone(), string(value)?.to_owned())));
        let context = EncryptionContext::new(pairs.collect::<Result<_, KmsError>>()?);
        if context.is_none() {
            let fault = format!("Member must have length less than or equal to {MAX_CONTEXT_JSON_BYTES}");
            self.fault(None, name, &fault);
        }
        Ok(context.unwrap_or_default())
    }

    /// Tags; none where they are absent.
    pub(super) fn tags(&mut self, name: &str) -> Result<BTreeMap<String, String>, KmsError> {
        let mut tags = BTreeMap::new();
        for (index, value) in self.list(name)?.iter().enumerate() {
            let mut tag = Input {
                members: Some(object(value)?),
                path: format!("{}.", member_path(name, index)),
                faults: Vec::new(),
            };
            let key = tag.required_text("TagKey", &constraint::TAG_KEY)?;
            let value = tag.required_text("TagValue", &constraint::TAG_VALUE)?;
            self.faults.append(&mut tag.faults);
            if key.starts_with("aws:") {
                let message = "aws: prefixed tag key names are not allowed for external use";
                return Err(KmsError::new(Exception::TagException, message));
            }
            if tags.insert(key, value).is_some() {
                return Err(KmsError::new(Exception::TagException, "Duplicate tag keys"));
            }
        }
        Ok(tags)
    }

    /// A list of as many texts as `length` allows; none where it is absent.
    pub(super) fn texts(&mut self, name: &str, text: &Text, length: &Text) -> Result<Vec<String>, KmsError> {
        let list = self.list(name)?;
        if self.has(name)
            && let Some(fault) = length.fault_of_length(list.len())
        {
            self.fault(None, name, &fault);
        }
        let mut texts = Vec::new();
        for (index, value) in list.iter().enumerate() {
            let value = string(value)?;
            for fault in text.faults(value) {
                self.faults.push(sentence(Some(value), &member_path(name, index), &fault));
            }
            texts.push(value.to_owned());
        }
        Ok(texts)
    }

    /// A structure inside this one. Its faults must be handed back with [`Input::absorb`].
    pub(super) fn nested(&mut self, name: &str) -> Result<Option<Input<'a>>, KmsError> {
        let Some(value) = self.member(name) else { return Ok(None) };
        let path = format!("{}{}.", self.path, lower_first(name));
        Ok(Some(Input { members: Some(object(value)?), path, faults: Vec::new() }))
    }

    /// Takes over the faults of a structure inside this one.
    pub(super) fn absorb(&mut self, mut nested: Input<'a>) {
        self.faults.append(&mut nested.faults);
    }

    /// Whether a member is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.member(name).is_some()
    }

    /// Whether a member is there and the empty text.
    pub(super) fn is_empty_text(&self, name: &str) -> bool {
        self.member(name).and_then(Value::as_str) == Some("")
    }

    /// Notes that a required member is absent.
    pub(super) fn missing(&mut self, name: &str) -> String {
        let path = format!("{}{}", self.path, lower_first(name));
        let fault = format!("Value null at '{path}' failed to satisfy constraint: Member must not be null");
        self.faults.push(fault);
        String::new()
    }

    /// Ends the parsing.
    ///
    /// # Errors
    /// `ValidationException` with every broken constraint.
    pub(super) fn finish(self) -> Result<(), KmsError> {
        let count = self.faults.len();
        if count == 0 {
            return Ok(());
        }
        let errors = if count == 1 { "error" } else { "errors" };
        Err(KmsError::validation(format!("{count} validation {errors} detected: {}", self.faults.join("; "))))
    }

    fn member(&self, name: &str) -> Option<&'a Value> {
        self.members.and_then(|members| members.get(name)).filter(|value| !value.is_null())
    }

    fn list(&self, name: &str) -> Result<&'a [Value], KmsError> {
        match self.member(name) {
            None => Ok(&[]),
            Some(value) => value.as_array().map(Vec::as_slice).ok_or_else(|| wrong_type(value, "a List")),
        }
    }

    fn check_text(&mut self, name: &str, value: &str, text: &Text) {
        for fault in text.faults(value) {
            self.fault(Some(value), name, &fault);
        }
    }

    fn fault(&mut self, value: Option<&str>, name: &str, fault: &str) {
        self.faults.push(sentence(value, &format!("{}{}", self.path, lower_first(name)), fault));
    }
}

fn sentence(value: Option<&str>, path: &str, fault: &str) -> String {
    let value = value.map_or_else(String::new, |value| format!(" '{value}'"));
    format!("Value{value} at '{path}' failed to satisfy constraint: {fault}")
}

fn member_path(name: &str, index: usize) -> String {
    format!("{}.{}.member", lower_first(name), index + 1)
}

fn lower_first(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + letters.as_str())
}

fn object(value: &Value) -> Result<&Map<String, Value>, KmsError> {
    value.as_object().ok_or_else(|| wrong_type(value, "a Map"))
}

fn string(value: &Value) -> Result<&str, KmsError> {
    value.as_str().ok_or_else(|| wrong_type(value, "a String"))
}

fn wrong_type(value: &Value, wanted: &str) -> KmsError {
    let found = match value {
        Value::Null => "NULL_VALUE",
        Value::Bool(_) => "BOOLEAN_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
        Value::Array(_) => "ARRAY_VALUE",
        Value::Object(_) => "OBJECT_VALUE",
    };
    KmsError::new(Exception::SerializationException, format!("{found} can not be converted to {wanted}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(body: &Value, read: impl FnOnce(&mut Input<'_>) -> Result<(), KmsError>) -> KmsError {
        let mut input = Input::new(body).unwrap();
        match read(&mut input) {
            Ok(()) => input.finish().unwrap_err(),
            Err(error) => error,
        }
    }

    #[test]
    fn every_broken_constraint_is_named_as_aws_names_it() {
        let body = json!({"XksKeyId": "a/b", "NumberOfBytes": 1025, "KeySpec": "AES", "Plaintext": ""});
        let error = message(&body, |input| {
            input.text("XksKeyId", &constraint::XKS_KEY_ID)?;
            input.number("NumberOfBytes", constraint::NUMBER_OF_BYTES)?;
            input.choice("KeySpec", &["AES_256", "AES_128"])?;
            input.required_blob("Plaintext", &constraint::PLAINTEXT)?;
            input.required_text("KeyId", &constraint::KEY_ID)?;
            Ok(())
        });
        assert_eq!(error.exception, Exception::ValidationException);
        assert_eq!(
            error.message.unwrap(),
            "5 validation errors detected: Value 'a/b' at 'xksKeyId' failed to satisfy constraint: Member must satisfy \
             regular expression pattern: ^[a-zA-Z0-9-_.]+$; Value '1025' at 'numberOfBytes' failed to satisfy \
             constraint: Member must have value less than or equal to 1024; Value 'AES' at 'keySpec' failed to satisfy \
             constraint: Member must satisfy enum value set: [AES_256, AES_128]; Value at 'plaintext' failed to satisfy \
             constraint: Member must have length greater than or equal to 1; Value null at 'keyId' failed to satisfy \
             constraint: Member must not be null"
        );
    }

    #[test]
    fn a_secret_is_in_no_message() {
        let body = json!({"XksProxyAuthenticationCredential": {"RawSecretAccessKey": "s3cret"}});
        let error = message(&body, |input| {
            let mut nested = input.nested("XksProxyAuthenticationCredential")?.unwrap();
            nested.required_secret("RawSecretAccessKey", &constraint::SECRET_ACCESS_KEY)?;
            input.absorb(nested);
            Ok(())
        });
        assert_eq!(
            error.message.unwrap(),
            "1 validation error detected: Value at 'xksProxyAuthenticationCredential.rawSecretAccessKey' failed to \
             satisfy constraint: Member must have length greater than or equal to 43"
        );
    }

    #[test]
    fn wrong_types_are_serialization_exceptions() {
        let body = json!({"KeyId": 1, "Limit": "1", "DryRun": 1, "Plaintext": "%", "EncryptionContext": {"a": 1},
            "Tags": {}, "GrantTokens": [1]});
        type Read = fn(&mut Input<'_>) -> Result<(), KmsError>;
        let reads: [Read; 7] = [
            |input| input.text("KeyId", &constraint::KEY_ID).map(drop),
            |input| input.number("Limit", constraint::LIMIT).map(drop),
            |input| input.is_set("DryRun").map(drop),
            |input| input.blob("Plaintext", &constraint::PLAINTEXT).map(drop),
            |input| input.context("EncryptionContext").map(drop),
            |input| input.tags("Tags").map(drop),
            |input| input.texts("GrantTokens", &constraint::GRANT_TOKEN, &constraint::GRANT_TOKENS).map(drop),
        ];
        for read in reads {
            assert_eq!(message(&body, read).exception, Exception::SerializationException);
        }
        assert!(Input::new(&json!([])).is_err());
    }

    #[test]
    fn tags_are_unique_and_not_those_of_aws() {
        let tags = |tags: Value| message(&json!({ "Tags": tags }), |input| input.tags("Tags").map(drop));
        let duplicate = tags(json!([{"TagKey": "a", "TagValue": "1"}, {"TagKey": "a", "TagValue": "2"}]));
        assert_eq!(duplicate.exception, Exception::TagException);
        assert_eq!(tags(json!([{"TagKey": "aws:a", "TagValue": ""}])).exception, Exception::TagException);
        let text = tags(json!([{"TagKey": "a"}])).message.unwrap();
        assert!(text.contains("'tags.1.member.tagValue'"), "{text}");
    }
}
