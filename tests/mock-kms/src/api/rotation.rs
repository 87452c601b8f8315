//! EnableKeyRotation, DisableKeyRotation, GetKeyRotationStatus: a mark on keys in KMS; nothing rotates.

use serde_json::{Value, json};

use super::input::Input;
use super::keys::key_name;
use super::operation::Answer;
use super::service::Call;
use super::unsupported::check_in_kms;
use crate::kms::constraint::{self, Number};

const ROTATION_PERIOD_DAYS: Number = Number { min: 90, max: 2560 };
const DEFAULT_ROTATION_PERIOD_DAYS: i64 = 365;

pub(super) fn set(call: &Call<'_>, body: &Value, is_rotating: bool) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    input.number("RotationPeriodInDays", ROTATION_PERIOD_DAYS)?;
    input.finish()?;
    call.service.change(|state, _| {
        let key = state.key(call.home(), &name)?;
        check_in_kms(call, key)?;
        state.check_usable(call.home(), key)?;
        state.change_key(call.home(), &name, |key| {
            key.is_rotating = is_rotating;
            Ok(())
        })
    })?;
    Ok(None)
}

pub(super) fn status(call: &Call<'_>, body: &Value) -> Answer {
    let name = key_name(body)?;
    call.service.read(|state, _| {
        let key = state.key(call.home(), &name)?;
        check_in_kms(call, key)?;
        state.check_not_pending_deletion(call.home(), key)?;
        let mut answer =
            json!({ "KeyRotationEnabled": key.is_rotating, "KeyId": call.home().key_arn(&key.id) });
        if key.is_rotating {
            answer["RotationPeriodInDays"] = json!(DEFAULT_ROTATION_PERIOD_DAYS);
            answer["NextRotationDate"] =
                json!(key.created.plus_days(DEFAULT_ROTATION_PERIOD_DAYS).as_epoch_secs());
        }
        Ok(Some(answer))
    })
}
