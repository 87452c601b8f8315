//! GetKeyPolicy, PutKeyPolicy, ListKeyPolicies. Policies are kept and returned, never evaluated.

use serde_json::{Value, json};

use super::input::Input;
use super::operation::Answer;
use super::service::Call;
use crate::kms::constraint::{self, LIMIT};
use crate::kms::name::Home;
use crate::kms::{Exception, KmsError};

const DEFAULT: &str = "default";

/// The policy of a key that is made without one: the account may do everything.
pub(super) fn default_policy(home: &Home) -> String {
    format!(
        r#"{{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {{
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "arn:aws:iam::{}:root"
    }},
    "Action" : "kms:*",
    "Resource" : "*"
  }} ]
}}"#,
        home.account_id
    )
}

/// # Errors
/// `MalformedPolicyDocumentException` unless the text is a JSON object with statements.
pub(super) fn check_policy(policy: &str) -> Result<(), KmsError> {
    let document: Option<Value> = serde_json::from_str(policy).ok();
    let statements = document.as_ref().and_then(|document| document.get("Statement"));
    if statements.is_some_and(|statements| statements.is_array() || statements.is_object()) {
        return Ok(());
    }
    let message = "Policy contains a statement with one or more invalid elements, or is not valid JSON.";
    Err(KmsError::new(Exception::MalformedPolicyDocumentException, message))
}

pub(super) fn describe(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let policy_name = input.text("PolicyName", &constraint::POLICY_NAME)?;
    input.finish()?;
    call.service.read(|state, _| {
        let key = state.key(call.home(), &name)?;
        check_policy_name(policy_name.as_deref())?;
        Ok(Some(json!({ "Policy": key.policy, "PolicyName": DEFAULT })))
    })
}

pub(super) fn put(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    let policy_name = input.text("PolicyName", &constraint::POLICY_NAME)?;
    let policy = input.required_text("Policy", &constraint::POLICY)?;
    input.is_set("BypassPolicyLockoutSafetyCheck")?;
    input.finish()?;
    check_policy(&policy)?;
    check_policy_name(policy_name.as_deref())?;
    call.service.change(|state, _| state.put_policy(call.home(), &name, policy))?;
    Ok(None)
}

pub(super) fn list(call: &Call<'_>, body: &Value) -> Answer {
    let mut input = Input::new(body)?;
    let name = input.required_text("KeyId", &constraint::KEY_ID)?;
    input.number("Limit", LIMIT)?;
    input.text("Marker", &constraint::MARKER)?;
    input.finish()?;
    call.service.read(|state, _| {
        state.key(call.home(), &name)?;
        Ok(Some(json!({ "PolicyNames": [DEFAULT], "Truncated": false })))
    })
}

/// Every key has one policy, and it is called `default`.
fn check_policy_name(name: Option<&str>) -> Result<(), KmsError> {
    match name {
        None | Some(DEFAULT) => Ok(()),
        Some(_) => Err(KmsError::new(Exception::NotFoundException, "No such policy exists")),
    }
}
