//! What tests may do that nobody can do to AWS: move the clock, let calls fail, and have the health checked now.
//!
//! Whoever can reach the KMS can do this. It listens on loopback unless it is told otherwise.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::api::Outage;
use crate::kms::{Exception, KmsError};

/// How far the clock may be from the machine's, in seconds: a hundred years.
const MAX_AHEAD_SECS: i64 = 100 * 365 * 86_400;

/// The clock.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Clock {
    unix_secs: f64,
    ahead_secs: i64,
}

/// How to move the clock: by so much, or to so far ahead of the machine's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Move {
    advance_secs: Option<i64>,
    ahead_secs: Option<i64>,
}

pub(super) async fn read_clock(State(shared): State<Shared>) -> Json<Clock> {
    Json(clock(&shared))
}

pub(super) async fn move_clock(
    State(shared): State<Shared>,
    Json(change): Json<Move>,
) -> Result<Json<Clock>, (StatusCode, String)> {
    let moved = shared.service.change(|state, _| {
        let base = change.ahead_secs.unwrap_or(state.clock_ahead_secs);
        let ahead_secs = base.saturating_add(change.advance_secs.unwrap_or_default());
        if ahead_secs.saturating_abs() > MAX_AHEAD_SECS {
            let message = format!("The clock can be {MAX_AHEAD_SECS} seconds ahead or behind at most.");
            return Err(KmsError::validation(message));
        }
        state.clock_ahead_secs = ahead_secs;
        Ok(())
    });
    moved.map_err(|error| {
        let status = match error.exception {
            Exception::ValidationException => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, error.to_string())
    })?;
    Ok(Json(clock(&shared)))
}

/// Which calls to fail, and how.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failing {
    calls: u32,
    exception: Trouble,
}

/// Exceptions for trouble inside AWS, which nothing in here can have.
#[derive(Clone, Copy, Deserialize)]
#[allow(clippy::enum_variant_names, reason = "the names on the wire")]
enum Trouble {
    DependencyTimeoutException,
    KMSInternalException,
    KeyUnavailableException,
    ThrottlingException,
}

pub(super) async fn fail_calls(State(shared): State<Shared>, Json(failing): Json<Failing>) -> StatusCode {
    let exception = match failing.exception {
        Trouble::DependencyTimeoutException => Exception::DependencyTimeoutException,
        Trouble::KMSInternalException => Exception::KMSInternalException,
        Trouble::KeyUnavailableException => Exception::KeyUnavailableException,
        Trouble::ThrottlingException => Exception::ThrottlingException,
    };
    shared.service.fail_next(Outage { calls: failing.calls, exception });
    StatusCode::NO_CONTENT
}

pub(super) async fn check_health(State(shared): State<Shared>) -> StatusCode {
    shared.service.check_health_once().await;
    StatusCode::NO_CONTENT
}

fn clock(shared: &Shared) -> Clock {
    shared
        .service
        .read(|state, now| Clock { unix_secs: now.as_epoch_secs(), ahead_secs: state.clock_ahead_secs })
}
