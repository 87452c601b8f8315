//! The course of a call: what the rules do before it, the real call, what the rules do after it.

use super::handles::{Found, Session};
use super::live::{LiveRule, Rules};
use super::real::Real;
use super::{Module, abandon, events, other_value, report};
use crate::fault::{Fault, FaultKind, Hang};
use crate::function::Function;
use crate::names::{Ckr, Mechanism};
use crate::rule::Rule;
use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CKA_LABEL,
    CKR_CRYPTOKI_NOT_INITIALIZED, CKR_DEVICE_REMOVED, CKR_GENERAL_ERROR, CKR_KEY_HANDLE_INVALID,
    CKR_MECHANISM_INVALID, CKR_OBJECT_HANDLE_INVALID, CKR_SESSION_HANDLE_INVALID, CKR_TOKEN_NOT_PRESENT,
    CKR_UNWRAPPING_KEY_HANDLE_INVALID, CKR_USER_NOT_LOGGED_IN, CKR_WRAPPING_KEY_HANDLE_INVALID,
};
use std::cell::OnceCell;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

/// How often a hanging call looks whether its rule is still there.
const HANG_POLL: Duration = Duration::from_millis(2);

/// What an object is in a call: it decides what an invalid handle is called.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Object,
    Key,
    WrappingKey,
    UnwrappingKey,
}

/// What a call is about, as the application names it.
#[derive(Clone, Copy, Default)]
pub(super) struct Subject {
    slot: Option<CK_SLOT_ID>,
    session: Option<CK_SESSION_HANDLE>,
    object: Option<(CK_OBJECT_HANDLE, Role)>,
    mechanism: Option<CK_MECHANISM_TYPE>,
}

impl Subject {
    pub(super) fn none() -> Self {
        Subject::default()
    }

    pub(super) fn slot(slot: CK_SLOT_ID) -> Self {
        Subject { slot: Some(slot), ..Subject::default() }
    }

    pub(super) fn session(session: CK_SESSION_HANDLE) -> Self {
        Subject { session: Some(session), ..Subject::default() }
    }

    pub(super) fn object(self, object: CK_OBJECT_HANDLE, role: Role) -> Self {
        Subject { object: Some((object, role)), ..self }
    }

    pub(super) fn mechanism(self, mechanism: Option<CK_MECHANISM_TYPE>) -> Self {
        Subject { mechanism, ..self }
    }
}

/// A call in progress.
pub(super) struct Call {
    pub(super) function: Function,
    pub(super) module: &'static Module,
    pub(super) real: &'static Real,
    pub(super) slot: Option<CK_SLOT_ID>,
    /// The session as the application names it.
    pub(super) session_number: CK_SESSION_HANDLE,
    /// The session as the real module names it.
    pub(super) session: CK_SESSION_HANDLE,
    /// Our own session, unless the application names one that we never saw.
    pub(super) live: Option<Arc<Session>>,
    /// The object that the real module is to use.
    pub(super) object: CK_OBJECT_HANDLE,
    /// The object that the application named, as the real module names it. Another one only where a key is
    /// [substituted](Fault::OtherValue).
    pub(super) named_object: CK_OBJECT_HANDLE,
    subject: Subject,
    rules: Rules,
    epoch: u64,
    answer_after: Option<Ckr>,
    label: OnceCell<Option<String>>,
}

/// Takes so long, and not the 50 µs more that Linux allows itself with every sleep.
fn delay(delay_ms: u64) {
    // Where the kernel refuses, the delay is only less exact.
    let _ = rustix::thread::set_current_timer_slack(Some(NonZeroU64::MIN));
    sleep(Duration::from_millis(delay_ms));
}

/// Leaves memory behind that is in RAM: every byte of it has been written.
fn leak(kib: u64) {
    let bytes = usize::try_from(kib.saturating_mul(1024)).unwrap_or(usize::MAX);
    let mut memory = Vec::new();
    if memory.try_reserve_exact(bytes).is_ok() {
        memory.resize(bytes, 0xa5_u8);
    }
    std::hint::black_box(memory.leak());
}

/// Takes a call through its course. `forward` makes the real call, and may look at the rules on its own.
pub(super) fn run(function: Function, subject: Subject, forward: impl FnOnce(&Call) -> CK_RV) -> CK_RV {
    let course = || {
        let module = Module::instance().ok_or(CKR_GENERAL_ERROR)?;
        let _inside = module.tally.enter(function);
        let mut call = Call::begin(module, function, subject)?;
        call.obey_rules()?;
        call.resolve()?;
        let rv = forward(&call);
        Ok(call.end(rv))
    };
    let answer = catch_unwind(AssertUnwindSafe(course)).unwrap_or_else(|_| {
        report(&format!("panic in {function}"));
        Err(CKR_GENERAL_ERROR)
    });
    match answer {
        Ok(rv) | Err(rv) => rv,
    }
}

/// Where a step of the course answers the call, the answer is its `Err`.
impl Call {
    fn begin(module: &'static Module, function: Function, subject: Subject) -> Result<Self, CK_RV> {
        let is_listing = function == Function::GetFunctionList;
        let rules = match module.control.rules(&module.tally) {
            Ok(rules) => rules,
            // An application that cannot even load the module would not show what it does when calls fail.
            Err(_) if is_listing => Rules::default(),
            Err(_) => return Err(CKR_GENERAL_ERROR),
        };
        let starts_over = is_listing || matches!(function, Function::Initialize | Function::Finalize);
        if let Some(answer) = module.handles.reinit_answer().filter(|_| !starts_over) {
            return Err(answer);
        }
        let slot = subject.slot.or_else(|| module.handles.slot_of(subject.session?));
        let session = subject.session.unwrap_or_default();
        let object = subject.object.map_or(0, |(object, _)| object);
        Ok(Call {
            function,
            module,
            real: &module.real,
            slot,
            session_number: session,
            session,
            live: None,
            object,
            named_object: object,
            subject,
            rules,
            epoch: module.handles.epoch(),
            answer_after: None,
            label: OnceCell::new(),
        })
    }

    /// Lets the rules act that act before the real call, in the order of the control file.
    fn obey_rules(&mut self) -> Result<(), CK_RV> {
        for live in Arc::clone(&self.rules).iter() {
            if !self.concerns(&live.rule) {
                continue;
            }
            match live.rule.fault {
                Fault::DelayMs(delay_ms) if self.struck_by(live) => delay(delay_ms),
                Fault::Hang(hang) if self.struck_by(live) => self.hang(hang, live)?,
                Fault::Fail(Ckr(answer)) | Fault::Busy(Ckr(answer)) if self.struck_by(live) => {
                    return self.refuse(answer);
                }
                Fault::Abort if self.struck_by(live) => std::process::abort(),
                Fault::LeakKib(kib) if self.struck_by(live) => leak(kib),
                Fault::DropSessions => events::drop_sessions(self, live),
                Fault::ForgetLogins => events::forget_logins(self, live),
                Fault::InvalidateHandles => events::invalidate_handles(self, live),
                Fault::PermuteHandles => events::permute_handles(self, live),
                Fault::NeedReinit(Ckr(answer)) if self.struck_by(live) => {
                    self.module.handles.require_reinit(answer);
                    return Err(answer);
                }
                Fault::RemoveToken(answer) if self.needs_token() && self.struck_by(live) => {
                    return Err(self.without_token(answer));
                }
                Fault::HideMechanism(Mechanism(hidden))
                    if self.subject.mechanism == Some(hidden) && self.struck_by(live) =>
                {
                    return Err(CKR_MECHANISM_INVALID);
                }
                // Decided now: afterwards the object or the session may be gone by which the rule is told.
                Fault::ForwardThenFail(answer) if self.answer_after.is_none() && self.struck_by(live) => {
                    self.answer_after = Some(answer);
                }
                // Does not strike this time.
                Fault::DelayMs(_)
                | Fault::Hang(_)
                | Fault::Fail(_)
                | Fault::Busy(_)
                | Fault::Abort
                | Fault::LeakKib(_)
                | Fault::NeedReinit(_)
                | Fault::RemoveToken(_)
                | Fault::HideMechanism(_)
                | Fault::ForwardThenFail(_) => {}
                // Acts within the call that it concerns.
                Fault::Corrupt(_)
                | Fault::OtherValue
                | Fault::GcmIv(_)
                | Fault::Random(_)
                | Fault::BadTag(_)
                | Fault::TokenFlag(_)
                | Fault::SessionLimit(_)
                | Fault::RefuseReadOnly(_)
                | Fault::HideAttribute { .. } => {}
            }
        }
        Ok(())
    }

    /// Finds the session and the object that the application means.
    fn resolve(&mut self) -> Result<(), CK_RV> {
        if self.module.handles.epoch() != self.epoch {
            // The module was finalised while the call was held up; the session may be another one's by now.
            return Err(CKR_CRYPTOKI_NOT_INITIALIZED);
        }
        let Some(number) = self.subject.session else { return Ok(()) };
        match self.module.handles.session(number) {
            Found::Live(session) => {
                self.session = session.handle;
                self.live = Some(session);
            }
            Found::Dead => return Err(CKR_SESSION_HANDLE_INVALID),
            Found::Unknown => {}
        }
        let Some(slot) = self.slot else { return Ok(()) };
        if self.function.needs_login() && self.module.handles.login_is_forgotten(slot) {
            return self.refuse(CKR_USER_NOT_LOGGED_IN);
        }
        if let Some((object, role)) = self.subject.object {
            self.named_object = self.object(object, role)?;
            // Of the attributes, only some are the value's.
            self.object = match self.function {
                Function::GetAttributeValue => self.named_object,
                _ => other_value::key_to_use(self, self.named_object)?,
            };
        }
        Ok(())
    }

    fn end(&self, rv: CK_RV) -> CK_RV {
        match self.answer_after {
            Some(Ckr(answer)) => {
                abandon::operation(self.real, self.function, self.session);
                answer
            }
            None => rv,
        }
    }

    /// The real handle of an object.
    pub(super) fn object(&self, object: CK_OBJECT_HANDLE, role: Role) -> Result<CK_OBJECT_HANDLE, CK_RV> {
        let Some(slot) = self.slot else { return Ok(object) };
        match self.module.handles.object(slot, object) {
            Found::Live(real) => Ok(real),
            Found::Unknown => Ok(object),
            Found::Dead => Err(match role {
                Role::Object => CKR_OBJECT_HANDLE_INVALID,
                Role::Key => CKR_KEY_HANDLE_INVALID,
                Role::WrappingKey => CKR_WRAPPING_KEY_HANDLE_INVALID,
                Role::UnwrappingKey => CKR_UNWRAPPING_KEY_HANDLE_INVALID,
            }),
        }
    }

    /// Answers without the real call. To the application, the answer has ended the operation.
    fn refuse(&self, answer: CK_RV) -> Result<(), CK_RV> {
        if let Some(session) = self.known_session() {
            abandon::operation(self.real, self.function, session.handle);
            if let Some(operation) = self.function.operation() {
                session.end(operation);
            }
        }
        Err(answer)
    }

    fn hang(&self, hang: Hang, live: &LiveRule) -> Result<(), CK_RV> {
        loop {
            sleep(HANG_POLL);
            match hang {
                Hang::Forever => {}
                Hang::UntilRemoved => {
                    self.module.control.rules(&self.module.tally).map_err(|_| CKR_GENERAL_ERROR)?;
                    if live.is_removed() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether the call cannot work without the token. The slot itself is still there.
    fn needs_token(&self) -> bool {
        self.slot.is_some() && self.function != Function::GetSlotInfo
    }

    fn without_token(&self, answer: Option<Ckr>) -> CK_RV {
        if let Some(slot) = self.slot {
            events::remove_token(self.module, slot);
        }
        let usual = if self.subject.session.is_some() { CKR_DEVICE_REMOVED } else { CKR_TOKEN_NOT_PRESENT };
        answer.map_or(usual, |Ckr(answer)| answer)
    }
}

/// Rules and their scopes.
impl Call {
    /// The first rule that strikes this call with a fault of the wanted kind.
    pub(super) fn struck_with<T>(&self, wanted: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.rules.iter().find_map(|live| {
            let fault = wanted(&live.rule.fault)?;
            (self.concerns(&live.rule) && self.struck_by(live)).then_some(fault)
        })
    }

    /// Whether a rule of this kind concerns the call, without striking.
    pub(super) fn is_concerned_by(&self, kind: FaultKind) -> bool {
        self.rules.iter().any(|live| live.rule.fault.kind() == kind && self.concerns(&live.rule))
    }

    /// Whether a rule of this kind concerns the call for one slot or another.
    pub(super) fn is_concerned_by_any_slot(&self, kind: FaultKind) -> bool {
        let of_kind =
            |live: &Arc<LiveRule>| live.rule.fault.kind() == kind && live.rule.covers_function(self.function);
        self.rules.iter().any(of_kind)
    }

    /// Every flag that a rule sets.
    pub(super) fn token_flags(&self) -> CK_FLAGS {
        let flags = self.rules.iter().map(|live| match live.rule.fault {
            Fault::TokenFlag(flag) if self.concerns(&live.rule) && self.struck_by(live) => flag.bit(),
            _ => 0,
        });
        flags.fold(0, |all, flag| all | flag)
    }

    /// Whether a rule takes the token out of this slot, for calls that concern every slot.
    pub(super) fn token_is_removed(&self, slot: CK_SLOT_ID) -> bool {
        let removed = self.rules.iter().any(|live| {
            matches!(live.rule.fault, Fault::RemoveToken(_))
                && live.rule.covers_function(self.function)
                && self.covers_slot(&live.rule, Some(slot))
                && self.struck_by(live)
        });
        if removed {
            events::remove_token(self.module, slot);
        }
        removed
    }

    pub(super) fn struck_by(&self, live: &LiveRule) -> bool {
        live.strikes(&self.module.tally)
    }

    /// Whether a slot is in the rule's scope.
    pub(super) fn covers_slot(&self, rule: &Rule, slot: Option<CK_SLOT_ID>) -> bool {
        let label = || self.real.token_label(slot?);
        rule.slot.is_none_or(|only| slot == Some(only)) && (rule.token.is_none() || label() == rule.token)
    }

    /// Whether the call is in the rule's scope.
    fn concerns(&self, rule: &Rule) -> bool {
        rule.covers_function(self.function)
            && self.covers_slot(rule, self.slot)
            && (rule.label.is_none() || *self.label() == rule.label)
    }

    /// The label of the object that the call concerns.
    fn label(&self) -> &Option<String> {
        self.label.get_or_init(|| {
            let session = self.known_session()?;
            let object = match self.subject.object {
                Some((object, role)) => self.object(object, role).ok()?,
                None => session.running(self.function.operation()?, |running| running.key)?,
            };
            let label = self.real.attribute(session.handle, object, CKA_LABEL)?;
            Some(String::from_utf8_lossy(&label).into_owned())
        })
    }

    fn known_session(&self) -> Option<Arc<Session>> {
        match self.module.handles.session(self.subject.session?) {
            Found::Live(session) => Some(session),
            Found::Dead | Found::Unknown => None,
        }
    }
}
