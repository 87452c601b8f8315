//! Cedar: policies from their files, and the decision on one request.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy, PolicyId,
    PolicySet, Request, RestrictedExpression, Schema, ValidationMode, Validator,
};
use miette::Diagnostic;

use super::arn::{KmsKey, Principal};
use super::{Denial, DenialReason, MAX_ID_BYTES, PolicyFault, PolicySource, Query, SCHEMA};

/// How much of Cedar's words on a policy that cannot be evaluated is kept.
const MAX_PROBLEM_CHARS: usize = 400;

/// The policies of a store, held against the schema.
#[derive(Debug)]
pub struct Policies {
    set: PolicySet,
    ids: BTreeMap<PolicyId, Arc<str>>,
    names: &'static Names,
    authorizer: Authorizer,
}

/// The types of the schema, and the schema itself: reading it takes longer than reading a set of policies.
// INVARIANT: the schema is a constant that the tests read.
static NAMES: LazyLock<Option<Names>> = LazyLock::new(Names::new);

#[derive(Debug)]
struct Names {
    caller: EntityTypeName,
    key_store: EntityTypeName,
    external_key: EntityTypeName,
    action: EntityTypeName,
    other: EntityUid,
    schema: Schema,
    validator: Validator,
}

impl Names {
    fn new() -> Option<Self> {
        let name = |text| EntityTypeName::from_str(text).ok();
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).ok()?;
        Some(Self {
            caller: name("Caller")?,
            key_store: name("KeyStore")?,
            external_key: name("ExternalKey")?,
            action: name("Action")?,
            other: EntityUid::from_type_name_and_id(name("OtherMetadata")?, EntityId::new("request")),
            validator: Validator::new(schema.clone()),
            schema,
        })
    }
}

impl Policies {
    /// All policies of these files together.
    ///
    /// # Errors
    /// Every [`PolicyFault`] that is found.
    pub fn load(sources: &[PolicySource]) -> Result<Self, Vec<PolicyFault>> {
        let names = NAMES.as_ref().ok_or_else(|| vec![PolicyFault::NotBuilt])?;
        let mut loading = Loading { set: PolicySet::new(), ids: BTreeMap::new(), faults: Vec::new() };
        for source in sources {
            loading.add(source, &names.validator);
        }
        let Loading { set, ids, mut faults } = loading;
        if ids.is_empty() && faults.is_empty() {
            faults.push(PolicyFault::Empty);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self { set, ids, names, authorizer: Authorizer::new() })
    }

    /// The ids of all policies, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<Arc<str>> {
        let mut ids: Vec<_> = self.ids.values().cloned().collect();
        ids.sort();
        ids
    }

    /// The id of a policy that permits it: of several the first by name.
    ///
    /// # Errors
    /// [`Denial`] where one forbids it, none permits it, or any cannot be evaluated.
    pub fn decide(&self, query: &Query<'_>) -> Result<Arc<str>, Denial> {
        let (request, entities) = self.input(query).map_err(|problem| Denial {
            reason: DenialReason::EvaluationError(problem.into()),
            policy: None,
        })?;
        let response = self.authorizer.is_authorized(&request, &self.set, &entities);
        let diagnostics = response.diagnostics();
        // Cedar skips what errs: a forbid would then forbid nothing.
        let errors = diagnostics.errors().map(|error| (self.id(error_policy(error)), error));
        if let Some((policy, error)) = errors.min_by(|(a, _), (b, _)| a.cmp(b)) {
            let problem = one_line(error).chars().take(MAX_PROBLEM_CHARS).collect::<String>();
            return Err(Denial { reason: DenialReason::EvaluationError(problem.into()), policy });
        }
        let policy = diagnostics.reason().filter_map(|id| self.id(id)).min();
        match (response.decision(), policy) {
            (Decision::Allow, Some(policy)) => Ok(policy),
            (_, policy @ Some(_)) => Err(Denial { reason: DenialReason::Forbid, policy }),
            (_, None) => Err(Denial { reason: DenialReason::NoPermit, policy: None }),
        }
    }

    fn id(&self, id: &PolicyId) -> Option<Arc<str>> {
        self.ids.get(id).cloned()
    }

    /// The request in Cedar's terms, held against the schema.
    fn input(&self, query: &Query<'_>) -> Result<(Request, Entities), String> {
        let Query { store, operation, key, metadata } = *query;
        let names = &self.names;
        let uid = |name: &EntityTypeName, id: &str| {
            EntityUid::from_type_name_and_id(name.clone(), EntityId::new(id))
        };
        let arn = metadata.aws_principal_arn.as_deref().unwrap_or_default();
        let principal = Principal::of(arn);
        let caller = [
            ("arn", Some(arn)),
            ("kind", Some(principal.kind)),
            ("partition", principal.partition),
            ("service", principal.service),
            ("region", principal.region),
            ("account", principal.account),
            ("name", principal.name),
            ("session", principal.session),
        ];
        let caller_uid = uid(&names.caller, arn);
        let store_uid = uid(&names.key_store, store);
        let key_uid = uid(&names.external_key, &format!("{store}/{key}"));
        let tags = metadata.other.iter().map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (name.clone(), RestrictedExpression::new_string(text))
        });
        let key_attributes = [("id", Some(key.as_str())), ("store", Some(store))];
        let entities = [
            Entity::new_with_tags(caller_uid.clone(), texts(caller), [], []),
            Entity::new_with_tags(key_uid.clone(), texts(key_attributes), [store_uid.clone()], []),
            Ok(Entity::with_uid(store_uid)),
            Entity::new_with_tags(names.other.clone(), [], [], tags),
        ];
        let entities =
            entities.into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| one_line(&error))?;
        // The attributes are of the types that the schema says, by construction; the tests hold them against it.
        let entities = Entities::from_entities(entities, None).map_err(|error| one_line(&error))?;
        let context = self.context(query)?;
        let action = uid(&names.action, operation.name());
        let request = Request::new(caller_uid, action, key_uid, context, Some(&names.schema));
        Ok((request.map_err(|error| one_line(&error))?, entities))
    }

    fn context(&self, query: &Query<'_>) -> Result<Context, String> {
        let metadata = query.metadata;
        let mut pairs: Vec<_> = texts([
            ("kmsKeyArn", metadata.kms_key_arn.as_deref()),
            ("kmsOperation", metadata.kms_operation.as_deref()),
            ("kmsRequestId", metadata.kms_request_id.as_deref()),
            ("kmsViaService", metadata.kms_via_service.as_deref()),
            ("awsSourceVpc", metadata.aws_source_vpc.as_deref()),
            ("awsSourceVpce", metadata.aws_source_vpce.as_deref()),
        ])
        .collect();
        if let Some(KmsKey { partition, region, account, id }) =
            metadata.kms_key_arn.as_deref().and_then(KmsKey::of)
        {
            let parts = texts([
                ("partition", Some(partition)),
                ("region", Some(region)),
                ("account", Some(account)),
                ("id", Some(id)),
            ]);
            let key = RestrictedExpression::new_record(parts).map_err(|error| one_line(&error))?;
            pairs.push(("kmsKey".to_owned(), key));
        }
        pairs.push(("other".to_owned(), RestrictedExpression::new_entity_uid(self.names.other.clone())));
        Context::from_pairs(pairs).map_err(|error| one_line(&error))
    }
}

fn texts<const N: usize>(
    pairs: [(&'static str, Option<&str>); N],
) -> impl Iterator<Item = (String, RestrictedExpression)> {
    let texts = pairs.map(|(name, value)| {
        value.map(|value| (name.to_owned(), RestrictedExpression::new_string(value.to_owned())))
    });
    texts.into_iter().flatten()
}

fn error_policy(error: &cedar_policy::AuthorizationError) -> &PolicyId {
    match error {
        cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id(),
    }
}

/// The policies of the files that have been read so far.
struct Loading {
    set: PolicySet,
    ids: BTreeMap<PolicyId, Arc<str>>,
    faults: Vec<PolicyFault>,
}

impl Loading {
    fn add(&mut self, source: &PolicySource, validator: &Validator) {
        let parsed = match PolicySet::from_str(&source.text) {
            Ok(parsed) => parsed,
            Err(errors) => {
                self.faults.extend(errors.iter().map(|error| in_file(source, error)));
                return;
            }
        };
        let mut policies: Vec<_> = parsed.policies().collect();
        policies.sort_by_key(|policy| number(policy));
        for template in parsed.templates() {
            self.fault(
                source,
                format!("{} is a template, which nothing would ever fill in", place(template.id())),
            );
        }
        for policy in policies {
            if let Some(named) = self.named(source, policy) {
                self.validate(source, &named, validator);
                // Two of one id were found before: a policy that is lost may be a forbid.
                if let Err(error) = self.set.add(named) {
                    self.fault(source, one_line(&error));
                }
            }
        }
    }

    /// The policy under its own id.
    fn named(&mut self, source: &PolicySource, policy: &Policy) -> Option<Policy> {
        let place = place(policy.id());
        let Some(id) = policy.annotation("id") else {
            self.fault(source, format!("{place} has no @id(\"…\"), by which log and audit could name it"));
            return None;
        };
        let is_safe = |byte: u8| byte.is_ascii_graphic() && !b"\"\\'`<>{}".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(is_safe) {
            let problem = format!(
                "the @id of {place} must be 1 to {MAX_ID_BYTES} printable ASCII characters without spaces, quotes and brackets"
            );
            self.fault(source, problem);
            return None;
        }
        let new_id = PolicyId::new(id);
        if self.ids.contains_key(&new_id) {
            self.fault(source, format!("{place} has the @id {id:?}, which another policy of the store has"));
            return None;
        }
        self.ids.insert(new_id.clone(), id.into());
        Some(policy.new_id(new_id))
    }

    /// Warnings count: each says that a policy does not do what its author thought.
    fn validate(&mut self, source: &PolicySource, policy: &Policy, validator: &Validator) {
        let Ok(alone) = PolicySet::from_policies([policy.clone()]) else {
            // Not by any policy that is known of; but one that was not looked at must not be loaded.
            return self.fault(source, format!("policy {} cannot be held against the schema", policy.id()));
        };
        let result = validator.validate(&alone, ValidationMode::Strict);
        let errors = result.validation_errors().map(|error| in_file(source, error));
        let warnings = result.validation_warnings().map(|warning| in_file(source, warning));
        self.faults.extend(errors.chain(warnings));
    }

    fn fault(&mut self, source: &PolicySource, problem: String) {
        self.faults.push(PolicyFault::InFile { path: source.path.clone(), line: None, problem });
    }
}

/// Cedar numbers the policies of a text from 0.
fn number(policy: &Policy) -> usize {
    policy.id().to_string().trim_start_matches("policy").parse().unwrap_or(usize::MAX)
}

fn place(id: &PolicyId) -> String {
    let number = id.to_string().trim_start_matches("policy").parse().unwrap_or(0_usize);
    format!("policy {} of the file", number + 1)
}

fn in_file(source: &PolicySource, error: &dyn Diagnostic) -> PolicyFault {
    let offset = error.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
    let before = offset.and_then(|offset| source.text.get(..offset));
    let line = before.map(|before| before.matches('\n').count() + 1);
    let help = error.help().map(|help| format!(" ({})", one_line(&help))).unwrap_or_default();
    PolicyFault::InFile { path: source.path.clone(), line, problem: format!("{}{help}", one_line(&error)) }
}

/// A text that cannot break out of its line.
fn one_line(text: &dyn std::fmt::Display) -> String {
    text.to_string().split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use xks_spec::{ExternalKeyId, RequestMetadata};

    use super::super::KeyOperation;
    use super::*;

    /// Cedar would take an attribute that the schema does not have, and policies rely on the types that it has.
    #[test]
    fn every_input_is_as_the_schema_says() {
        let text = "@id(\"a\") permit(principal, action, resource);".to_owned();
        let policies = Policies::load(&[PolicySource { path: "a".into(), text }]).unwrap();
        let key = ExternalKeyId::parse("a.b-c").unwrap();
        for caller in
            ["arn:a:b:c:d:assumed-role/f/g", "arn:a:b:::root", "AWS Internal", "ec2.amazonaws.com", ""]
        {
            for kms_key in ["arn:aws:kms:x:y:key/z", "none"] {
                let metadata = json!({
                    "awsPrincipalArn": caller, "kmsKeyArn": kms_key, "kmsOperation": "o", "kmsRequestId": "r",
                    "kmsViaService": "s", "awsSourceVpc": "v", "awsSourceVpce": "e", "new": null, "other": [1, "a"],
                });
                let metadata: RequestMetadata = serde_json::from_value(metadata).unwrap();
                for operation in KeyOperation::ALL {
                    let query = Query { store: "s/t", operation, key: &key, metadata: &metadata };
                    let (_, entities) = policies.input(&query).unwrap();
                    Entities::from_entities(entities.iter().cloned(), Some(&policies.names.schema)).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_request_that_is_not_as_the_schema_says_is_denied() {
        let text = "@id(\"a\") permit(principal, action, resource);".to_owned();
        let policies = Policies::load(&[PolicySource { path: "a".into(), text }]).unwrap();
        let key = ExternalKeyId::parse("a").unwrap();
        let metadata = RequestMetadata::default();
        let query = Query { store: "s", operation: KeyOperation::Encrypt, key: &key, metadata: &metadata };
        assert_eq!(policies.decide(&query).unwrap_err().reason.label(), "evaluation_error");
    }
}
