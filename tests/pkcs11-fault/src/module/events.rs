//! Faults that change what the module knows, once, and leave it to the application to recover.
//!
//! Each of them waits for a call at which there is something to change, so a rule that stands in the control file
//! from the beginning is not used up by `C_Initialize`.

use super::Module;
use super::call::Call;
use super::live::LiveRule;
use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SLOT_ID, CKA_CLASS, CKA_KEY_TYPE};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The slots among these that the rule covers, if there are any and the rule strikes.
fn struck_slots(call: &Call, live: &LiveRule, slots: HashSet<CK_SLOT_ID>) -> Vec<CK_SLOT_ID> {
    let covered = |slot: &CK_SLOT_ID| call.covers_slot(&live.rule, Some(*slot));
    let slots: Vec<_> = slots.into_iter().filter(covered).collect();
    if !slots.is_empty() && call.struck_by(live) { slots } else { Vec::new() }
}

pub(super) fn drop_sessions(call: &Call, live: &LiveRule) {
    for slot in struck_slots(call, live, call.module.handles.open_slots()) {
        remove_token(call.module, slot);
    }
}

/// Drops the sessions with a slot, and the login with them.
///
/// The real login would end with the last real session, but that one may be held open by a call that has not
/// returned.
pub(super) fn remove_token(module: &Module, slot: CK_SLOT_ID) {
    if module.handles.open_slots().contains(&slot) {
        module.real.log_out(slot);
        module.handles.drop_sessions(slot);
    }
}

pub(super) fn forget_logins(call: &Call, live: &LiveRule) {
    for slot in struck_slots(call, live, call.module.handles.slots_logged_in()) {
        call.real.log_out(slot);
        call.module.handles.forget_login(slot);
    }
}

pub(super) fn invalidate_handles(call: &Call, live: &LiveRule) {
    for slot in struck_slots(call, live, call.module.handles.slots_with_objects()) {
        call.module.handles.invalidate_objects(slot);
    }
}

/// Permutes among all objects of a token, so that one handle is enough to go wrong with. A token without two objects
/// of the same kind has nothing to permute.
pub(super) fn permute_handles(call: &Call, live: &LiveRule) {
    if live.is_spent() {
        return;
    }
    let mut groups_by_slot: HashMap<_, _> = call
        .module
        .handles
        .slots_with_objects()
        .into_iter()
        .map(|slot| (slot, objects_by_kind(call, slot)))
        .collect();
    groups_by_slot.retain(|_, groups| !groups.is_empty());
    for slot in struck_slots(call, live, groups_by_slot.keys().copied().collect()) {
        for group in groups_by_slot.remove(&slot).unwrap_or_default() {
            call.module.handles.rotate_objects(slot, &group);
        }
    }
}

/// The objects of a token that share class and key type with another one.
fn objects_by_kind(call: &Call, slot: CK_SLOT_ID) -> Vec<Vec<CK_OBJECT_HANDLE>> {
    let groups = call.real.with_session(slot, |session| {
        let substitutes = call.module.handles.substitutes(slot);
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for object in call.real.objects(session) {
            let attribute = |of| call.real.number(session, object, of);
            if !substitutes.contains(&object) {
                groups.entry((attribute(CKA_CLASS), attribute(CKA_KEY_TYPE))).or_default().push(object);
            }
        }
        groups
    });
    groups.unwrap_or_default().into_values().filter(|group| group.len() > 1).collect()
}
