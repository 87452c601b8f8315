//! EnableKeyRotation, DisableKeyRotation, GetKeyRotationStatus: a mark on keys in KMS; nothing rotates.

use serde_json::{Value, json};

use super::input::Input;
use super::keys::key_name;
use super::operation::Answer;
use super::service::Call;
use super::unsupported::check_in_kms;
use crate::kms::constraint::{self, Number};
use crate::kms::key::{DEFAULT_ROTATION_PERIOD_DAYS, Key};

const ROTATION_PERIOD_DAYS: Number = Number { min: 90, max: 2560 };

pub(super) fn enable(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let period_days = input.number("RotationPeriodInDays", ROTATION_PERIOD_DAYS)?;
    input.finish()?;
    change(call, &name, |key| {
        key.is_rotating = true;
        key.rotation_period_days = period_days.unwrap_or(DEFAULT_ROTATION_PERIOD_DAYS);
    })
}

pub(super) fn disable(call: &Call<'_>, body: &Value) -> Answer {
    change(call, &key_name(body)?, |key| key.is_rotating = false)
}

fn change(call: &Call<'_>, name: &str, change: impl FnOnce(&mut Key)) -> Answer {
    call.service.change(|state, _| {
        let key = state.key(call.home(), name)?;
        check_in_kms(call, key)?;
        state.check_usable(call.home(), key)?;
        state.change_key(call.home(), name, |key| {
            change(key);
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
            answer["RotationPeriodInDays"] = json!(key.rotation_period_days);
            answer["NextRotationDate"] =
                json!(key.created.plus_days(key.rotation_period_days).as_epoch_secs());
        }
        Ok(Some(answer))
    })
}
