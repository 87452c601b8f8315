//! The HTTP form of a request: URI and headers.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::Full;

use crate::client::HttpVersion;
use crate::sign::Signature;

/// Headers of every request, for one HTTP version.
#[derive(Debug, Clone)]
pub struct Envelope {
    http: HttpVersion,
    host: HeaderValue,
}

impl Envelope {
    /// Headers of requests to `host` as the signature names it.
    ///
    /// # Errors
    /// When the host cannot stand in a header.
    pub fn new(http: HttpVersion, host: &str) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(Self { http, host: HeaderValue::from_str(host)? })
    }

    /// The URI of `path` as the HTTP version wants it: HTTP/2 has no Host header but an authority.
    ///
    /// # Errors
    /// When the path cannot stand in a URI.
    pub fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        match self.http {
            HttpVersion::Http1 => Ok(Uri::try_from(path)?),
            HttpVersion::Http2 => {
                Uri::builder().scheme("https").authority(self.host.as_bytes()).path_and_query(path).build()
            }
        }
    }

    /// A request ready to be sent.
    pub fn request(&self, uri: Uri, body: Bytes, signature: Signature) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        if self.http == HttpVersion::Http1 {
            headers.insert(HOST, self.host.clone());
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-amz-date", signature.date);
        headers.insert(AUTHORIZATION, signature.authorization);
        request
    }
}
