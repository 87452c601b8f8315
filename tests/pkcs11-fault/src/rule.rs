//! A line of the control file: a fault, where it applies, and how often.

use crate::fault::Fault;
use crate::function::Function;
use crate::names::Ckr;
use cryptoki_sys::{CK_RV, CK_SLOT_ID, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID, CKR_OK};

/// A fault with its scope and its trigger: one line of the control file, which
/// [`Display`](std::fmt::Display) writes and [`FromStr`](std::str::FromStr) reads.
///
/// ```
/// use pkcs11_fault::{Ckr, Fault, Function, Rule};
///
/// let rule = Rule::new(Fault::Fail("CKR_DEVICE_ERROR".parse()?)).on(Function::Decrypt).times(3);
/// assert_eq!(rule.to_string(), "C_Decrypt fail=CKR_DEVICE_ERROR times=3");
/// assert_eq!("C_Decrypt fail=CKR_DEVICE_ERROR times=3".parse(), Ok(rule));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// The function in whose calls it happens. `None` is every function in which the fault
    /// [acts](Fault::acts_in), but for `C_GetFunctionList`.
    pub function: Option<Function>,
    /// Only calls that concern this slot, by argument or by session.
    pub slot: Option<CK_SLOT_ID>,
    /// Only calls that concern a slot whose token has this label.
    pub token: Option<String>,
    /// Only calls that concern an object with this `CKA_LABEL`, by handle or as the key of the active operation.
    pub label: Option<String>,
    /// This many matching calls pass unharmed first.
    pub after: u64,
    /// Of the matching calls from then on, every n-th is hit: 1 is each of them.
    pub every: u64,
    /// At most this many calls are hit. `None` is no limit, but for an [event](Fault::is_event), which happens once.
    pub times: Option<u64>,
}

/// What a call may answer that hides an attribute: with another value, callers ignore the attributes altogether.
const HIDING_ANSWERS: [CK_RV; 3] = [CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_SENSITIVE, CKR_OK];

/// Longest text of a rule, in bytes: what a record of the counters file holds.
pub(crate) const MAX_RULE_BYTES: usize = 480;

/// A rule that cannot be read, or that would never do anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RuleError {
    reason: String,
}

impl RuleError {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        RuleError { reason: reason.into() }
    }
}

impl Rule {
    /// A rule for every call in which the fault can act.
    pub const fn new(fault: Fault) -> Self {
        Rule { fault, function: None, slot: None, token: None, label: None, after: 0, every: 1, times: None }
    }

    /// Limits the rule to one function.
    #[must_use]
    pub const fn on(mut self, function: Function) -> Self {
        self.function = Some(function);
        self
    }

    /// Limits the rule to one slot.
    #[must_use]
    pub const fn slot(mut self, slot: CK_SLOT_ID) -> Self {
        self.slot = Some(slot);
        self
    }

    /// Limits the rule to the token with this label.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Limits the rule to objects with this label.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Lets this many matching calls pass first.
    #[must_use]
    pub const fn after(mut self, calls: u64) -> Self {
        self.after = calls;
        self
    }

    /// Hits only every n-th matching call.
    #[must_use]
    pub const fn every(mut self, n: u64) -> Self {
        self.every = n;
        self
    }

    /// Hits at most this many calls.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// How many calls the rule may hit: its own limit, or one for an event.
    pub(crate) const fn limit(&self) -> u64 {
        match self.times {
            Some(times) => times,
            None if self.fault.is_event() => 1,
            None => u64::MAX,
        }
    }

    /// Whether calls of the function are in the rule's scope.
    pub(crate) fn covers_function(&self, function: Function) -> bool {
        match self.function {
            Some(only) => only == function,
            None => function != Function::GetFunctionList && self.fault.acts_in(function),
        }
    }

    /// Refuses a rule that would never do anything.
    ///
    /// # Errors
    /// The fault never acts in the function, the scope cannot apply to it, `every` or `times` is 0, or the text is
    /// longer than 480 bytes.
    pub fn check(&self) -> Result<(), RuleError> {
        let refuse = |reason: String| Err(RuleError::new(reason));
        let keyword = self.fault.kind().keyword();
        if self.every == 0 || self.times == Some(0) {
            return refuse("every= and times= must be at least 1".to_owned());
        }
        if let Some(function) = self.function {
            if !self.fault.acts_in(function) {
                return refuse(format!("{keyword} never acts in {function}"));
            }
            // Of the calls without a slot, only the slot list can leave one out.
            let has_slot = function.concerns_slot() || matches!(self.fault, Fault::RemoveToken(_));
            if (self.slot.is_some() || self.token.is_some()) && !has_slot {
                return refuse(format!("{function} concerns no slot: drop slot= and token="));
            }
            if self.label.is_some() && !function.concerns_object() {
                return refuse(format!("{function} concerns no object: drop label="));
            }
        }
        if self.label.is_some() && !self.fault.takes_label() {
            return refuse(format!("{keyword} does not take label="));
        }
        match self.fault {
            Fault::NeedReinit(_) if self.slot.is_some() || self.token.is_some() => {
                return refuse("need_reinit is the whole module's: drop slot= and token=".to_owned());
            }
            Fault::OtherValue if self.label.is_none() => {
                return refuse("other_value needs label=".to_owned());
            }
            Fault::HideAttribute { answer: Ckr(answer), .. } if !HIDING_ANSWERS.contains(&answer) => {
                return refuse(
                    "answer= is one of CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_SENSITIVE, CKR_OK"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if self.to_string().len() > MAX_RULE_BYTES {
            return refuse(format!("the rule is longer than {MAX_RULE_BYTES} bytes"));
        }
        Ok(())
    }
}
