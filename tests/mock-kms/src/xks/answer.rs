//! What a proxy answered, and whether KMS could read it.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use xks_spec::ErrorName;

use super::connection::HttpVersion;
use super::failure::{Failure, Malformed, Refusal};

/// Longest answer that is read, in bytes. The longest lawful one, a Decrypt of 4,300 bytes, has under 6,000.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// An HTTP answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP version of the connection.
    pub version: HttpVersion,
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The media type of the body without its parameters; empty where there is none.
    #[must_use]
    pub fn content_type(&self) -> &str {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }

    /// The body of a 200, read as KMS reads it.
    ///
    /// # Errors
    /// [`Failure::Refused`] for an error of the documented form, [`Failure::Malformed`] for everything else.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        if self.status != 200 && self.status < 400 {
            return Err(Malformed::Status(self.status).into());
        }
        if !self.content_type().eq_ignore_ascii_case("application/json") {
            return Err(Malformed::ContentType(self.content_type().to_owned()).into());
        }
        if self.status == 200 { Ok(self.parse()?) } else { Err(self.refusal()?) }
    }

    fn refusal(&self) -> Result<Failure, Malformed> {
        let body: ErrorBody = self.parse()?;
        let known = ErrorName::ALL.into_iter().find(|name| name.as_str() == body.error_name);
        let error_name = known.ok_or(Malformed::UnknownErrorName(body.error_name))?;
        Ok(Failure::Refused(Refusal { error_name, error_message: body.error_message, status: self.status }))
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Malformed> {
        let fault = |fault: String| Malformed::Json { status: self.status, fault };
        // serde would also fill a struct from an array.
        if self.body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(fault("not an object".to_owned()));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            // serde_json's own text would quote the answer, which may hold a plaintext.
            let kind = match error.classify() {
                Category::Data => "a field is missing or of a wrong kind",
                Category::Eof => "it ends too early",
                Category::Io | Category::Syntax => "a syntax error",
            };
            fault(format!("{kind}, seen at line {} column {}", error.line(), error.column()))
        })
    }
}

/// The error body with any name: an unknown one is a fault of its own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody {
    error_name: String,
    error_message: Option<String>,
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::Value;

    use super::*;

    fn answer(status: u16, content_type: &'static str, body: &'static str) -> Result<Value, Failure> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Answer { version: HttpVersion::Http1, status, headers, body: Bytes::from_static(body.as_bytes()) }
            .read()
    }

    #[test]
    fn takes_json_objects_with_status_200_alone() {
        assert_eq!(answer(200, "application/json", "{}"), Ok(serde_json::json!({})));
        assert_eq!(answer(200, "Application/JSON; charset=utf-8", " {}"), Ok(serde_json::json!({})));
        assert_eq!(answer(201, "application/json", "{}"), Err(Malformed::Status(201).into()));
        assert_eq!(answer(301, "text/html", ""), Err(Malformed::Status(301).into()));
        for body in ["", "[]", "\"{}\"", "{", "{} {}", "{}x"] {
            let outcome = answer(200, "application/json", body);
            assert!(
                matches!(outcome, Err(Failure::Malformed(Malformed::Json { status: 200, .. }))),
                "{body}"
            );
        }
        for content_type in ["text/html", "", "application/jsonx", "text/json"] {
            let expected = Err(Malformed::ContentType(content_type.to_owned()).into());
            assert_eq!(answer(200, content_type, "{}"), expected);
            assert_eq!(answer(502, content_type, "<html>"), expected);
        }
    }

    #[test]
    fn reads_every_error_name_whatever_its_status() {
        for error_name in ErrorName::ALL {
            for status in [error_name.http_status(), 400, 599] {
                let body = Box::leak(format!(r#"{{"errorName":"{error_name}"}}"#).into_boxed_str());
                let refusal = Refusal { error_name, error_message: None, status };
                assert_eq!(answer(status, "application/json", body), Err(Failure::Refused(refusal)));
            }
        }
        let body = r#"{"errorName":"KeyNotFoundException","errorMessage":"no such key","more":1}"#;
        let Err(Failure::Refused(refusal)) = answer(404, "application/json", body) else { panic!() };
        assert_eq!(refusal.error_message.as_deref(), Some("no such key"));
    }

    #[test]
    fn an_error_body_of_another_form_is_malformed() {
        let unknown = Malformed::UnknownErrorName("KeyNotFound".to_owned());
        assert_eq!(answer(404, "application/json", r#"{"errorName":"KeyNotFound"}"#), Err(unknown.into()));
        for body in ["{}", r#"{"errorName":1}"#, r#"{"errorName":null}"#, r#"{"errorMessage":"x"}"#] {
            let outcome = answer(500, "application/json", body);
            assert!(
                matches!(outcome, Err(Failure::Malformed(Malformed::Json { status: 500, .. }))),
                "{body}"
            );
        }
    }

    #[test]
    fn a_fault_quotes_nothing_of_the_body() {
        let outcome = Answer {
            version: HttpVersion::Http2,
            status: 200,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
            body: Bytes::from_static(br#"{"plaintext":["the plaintext"]}"#),
        }
        .read::<xks_spec::response::DecryptResponse>();
        let text = format!("{:?}", outcome.err().unwrap());
        assert!(!text.contains("the plaintext"), "{text}");
    }
}
