//! What tests may do that nobody can do to AWS: move the clock, and have the health checked now.
//!
//! Whoever can reach the KMS can do this. It listens on loopback unless it is told otherwise.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Shared;

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
        state.clock_ahead_secs = base.saturating_add(change.advance_secs.unwrap_or_default());
        Ok(())
    });
    moved.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(clock(&shared)))
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
