//! CreateAlias, UpdateAlias, DeleteAlias, ListAliases.

use serde_json::{Value, json};

use super::input::Input;
use super::operation::Answer;
use super::service::Call;
use super::stores::paged;
use crate::kms::KmsError;
use crate::kms::constraint::{self, LIMIT};
use crate::kms::page::page;

const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 100;

pub(super) fn create(call: &Call<'_>, body: &Value) -> Answer {
    let (name, target) = name_and_target(body)?;
    call.service.change(|state, now| state.create_alias(call.home(), &name, &target, now))?;
    Ok(None)
}

pub(super) fn update(call: &Call<'_>, body: &Value) -> Answer {
    let (name, target) = name_and_target(body)?;
    call.service.change(|state, now| state.update_alias(call.home(), &name, &target, now))?;
    Ok(None)
}

fn name_and_target(body: &Value) -> Result<(String, String), KmsError> {
    let mut input = Input::new(body)?;
    let name = input.required_text("AliasName", &constraint::ALIAS_NAME)?;
    let target = input.required_text("TargetKeyId", &constraint::KEY_ID)?;
    input.finish()?;
    Ok((name, target))
}

pub(super) fn delete(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("AliasName", &constraint::ALIAS_NAME)?;
    input.finish()?;
    call.service.change(|state, _| state.delete_alias(call.home(), &name))?;
    Ok(None)
}

pub(super) fn list(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let key = input.text("KeyId", &constraint::KEY_ID)?;
    let limit = input.count("Limit", LIMIT)?;
    let marker = input.text("Marker", &constraint::MARKER)?;
    input.finish()?;
    call.service.read(|state, _| {
        let key_id = key.map(|key| state.key(call.home(), &key).map(|key| key.id.clone())).transpose()?;
        let aliases = state.aliases.values();
        let aliases = aliases.filter(|alias| key_id.as_ref().is_none_or(|id| *id == alias.target_key_id));
        let entries = aliases.map(|alias| {
            let entry = json!({
                "AliasName": alias.name,
                "AliasArn": call.home().alias_arn(&alias.name),
                "TargetKeyId": alias.target_key_id,
                "CreationDate": alias.created.as_epoch_secs(),
                "LastUpdatedDate": alias.updated.as_epoch_secs(),
            });
            (alias.name.as_str(), entry)
        });
        let page = page(entries, marker.as_deref(), limit.unwrap_or(DEFAULT_PAGE).min(MAX_PAGE))?;
        Ok(Some(paged("Aliases", page)))
    })
}
