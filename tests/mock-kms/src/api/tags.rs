//! TagResource, UntagResource, ListResourceTags.

use serde_json::{Value, json};

use super::input::Input;
use super::operation::Answer;
use super::service::Call;
use super::stores::paged;
use crate::kms::constraint::{self, LIMIT, Text};
use crate::kms::key::MAX_TAGS;
use crate::kms::page::page;

pub(super) fn tag(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let tags = input.tags("Tags")?;
    if !input.has("Tags") {
        input.missing("Tags");
    }
    input.finish()?;
    call.service.change(|state, _| state.change_key(call.home(), &name, |key| key.add_tags(tags)))?;
    Ok(None)
}

pub(super) fn untag(call: &Call<'_>, body: &Value) -> Answer {
    static TAG_KEYS: Text = Text::of_length(0, MAX_TAGS);
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let keys = input.texts("TagKeys", &constraint::TAG_KEY, &TAG_KEYS)?;
    if !input.has("TagKeys") {
        input.missing("TagKeys");
    }
    input.finish()?;
    call.service.change(|state, _| {
        state.change_key(call.home(), &name, |key| {
            key.tags.retain(|tag, _| !keys.contains(tag));
            Ok(())
        })
    })?;
    Ok(None)
}

pub(super) fn list(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let limit = input.count("Limit", LIMIT)?;
    let marker = input.text("Marker", &constraint::MARKER)?;
    input.finish()?;
    call.service.read(|state, _| {
        let tags = state.key(call.home(), &name)?.tags.iter();
        let tags = tags.map(|(key, value)| (key.as_str(), json!({ "TagKey": key, "TagValue": value })));
        let page = page(tags, marker.as_deref(), limit.unwrap_or(MAX_TAGS).min(MAX_TAGS))?;
        Ok(Some(paged("Tags", page)))
    })
}
