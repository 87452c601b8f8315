//! The page for looking, at `/`, and what CloudWatch would show, at `/metrics`. Both only read.
//!
//! The page is three static files and one JSON document, which its script fetches every second. No secret is in it:
//! neither credentials nor key material nor plaintext.

mod data;
mod metrics;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use axum::routing::get;
use bytes::Bytes;

use crate::api::Service;
use crate::kms::journal::Journal;
use crate::kms::name::Home;
use crate::kms::{State, Timestamp};

/// What browsers are told to let the page do: its own files, and nothing else.
const SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                               img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'";

/// Serves page and metrics of `service`, which callers reach at `endpoint`, such as `http://127.0.0.1:4599`.
pub fn router(service: &Arc<Service>, endpoint: &str) -> Router {
    let endpoint: Arc<str> = endpoint.into();
    File::ALL.into_iter().fold(Router::new(), |router, file| {
        let (service, endpoint) = (Arc::clone(service), Arc::clone(&endpoint));
        router.route(
            file.path(),
            get(async move || {
                service.read(|state, now| {
                    let (journal, home) = (&service.journal, &service.settings.home);
                    file.answer(&View { state, journal, home, now, endpoint: &endpoint })
                })
            }),
        )
    })
}

/// What is looked at.
#[derive(Clone, Copy)]
struct View<'a> {
    state: &'a State,
    journal: &'a Journal,
    home: &'a Home,
    /// The time by this KMS's clock.
    now: Timestamp,
    /// The endpoint URL, for people to copy.
    endpoint: &'a str,
}

#[derive(Clone, Copy)]
enum File {
    Page,
    Style,
    Script,
    Data,
    Metrics,
}

impl File {
    const ALL: [Self; 5] = [Self::Page, Self::Style, Self::Script, Self::Data, Self::Metrics];

    const fn path(self) -> &'static str {
        match self {
            Self::Page => "/",
            Self::Style => "/page.css",
            Self::Script => "/page.js",
            Self::Data => "/page.json",
            Self::Metrics => "/metrics",
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Page => "text/html; charset=utf-8",
            Self::Style => "text/css; charset=utf-8",
            Self::Script => "text/javascript; charset=utf-8",
            Self::Data => "application/json",
            Self::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    fn content(self, view: &View<'_>) -> Bytes {
        match self {
            Self::Page => Bytes::from_static(include_bytes!("page.html")),
            Self::Style => Bytes::from_static(include_bytes!("page.css")),
            Self::Script => Bytes::from_static(include_bytes!("page.js")),
            Self::Data => data::json(view),
            Self::Metrics => metrics::text(view).into(),
        }
    }

    fn answer(self, view: &View<'_>) -> Response<Body> {
        let mut response = Response::new(Body::from(self.content(view)));
        for (name, value) in [
            (header::CONTENT_TYPE, self.content_type()),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, SECURITY_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
