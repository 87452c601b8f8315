//! Slots, tokens and mechanisms: what the module reports of them.

use super::call::Call;
use super::caller::{Arg, count, ulong};
use crate::fault::{Fault, FaultKind};
use crate::names::Mechanism;
use cryptoki_sys::{
    CK_BBOOL, CK_FALSE, CK_MECHANISM_TYPE, CK_RV, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG,
    CKF_TOKEN_PRESENT, CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_OK,
};

pub(super) fn list(
    call: &Call,
    token_present: CK_BBOOL,
    slots: Arg<CK_SLOT_ID>,
    length: Arg<CK_ULONG>,
) -> CK_RV {
    if token_present == CK_FALSE || !call.is_concerned_by_any_slot(FaultKind::RemoveToken) {
        // SAFETY: the application's own arguments.
        return unsafe { ask!(call.real, C_GetSlotList(token_present, slots.pointer(), length.pointer())) };
    }
    answer(call.real.slots(true), |slot| !call.token_is_removed(*slot), slots, length)
}

pub(super) fn slot_info(call: &Call, slot: CK_SLOT_ID, info: Arg<CK_SLOT_INFO>) -> CK_RV {
    // SAFETY: the application's own arguments.
    let rv = unsafe { ask!(call.real, C_GetSlotInfo(slot, info.pointer())) };
    if let (CKR_OK, Some(mut value)) = (rv, info.read())
        && call.token_is_removed(slot)
    {
        value.flags &= !CKF_TOKEN_PRESENT;
        info.write(value);
    }
    rv
}

pub(super) fn token_info(call: &Call, slot: CK_SLOT_ID, info: Arg<CK_TOKEN_INFO>) -> CK_RV {
    // SAFETY: the application's own arguments.
    let rv = unsafe { ask!(call.real, C_GetTokenInfo(slot, info.pointer())) };
    if let (CKR_OK, Some(mut value)) = (rv, info.read()) {
        value.flags |= call.token_flags();
        info.write(value);
    }
    rv
}

pub(super) fn mechanisms(
    call: &Call,
    slot: CK_SLOT_ID,
    mechanisms: Arg<CK_MECHANISM_TYPE>,
    length: Arg<CK_ULONG>,
) -> CK_RV {
    if !call.is_concerned_by(FaultKind::HideMechanism) {
        // SAFETY: the application's own arguments.
        return unsafe { ask!(call.real, C_GetMechanismList(slot, mechanisms.pointer(), length.pointer())) };
    }
    let is_shown = |mechanism: &CK_MECHANISM_TYPE| {
        let wanted = |fault: &Fault| (*fault == Fault::HideMechanism(Mechanism(*mechanism))).then_some(());
        call.struck_with(wanted).is_none()
    };
    answer(call.real.mechanisms(slot), is_shown, mechanisms, length)
}

/// Answers with what is shown of a list, or with its length, as the caller asks.
fn answer<T: Copy>(
    all: Result<Vec<T>, CK_RV>,
    is_shown: impl FnMut(&T) -> bool,
    place: Arg<T>,
    length: Arg<CK_ULONG>,
) -> CK_RV {
    let mut shown = match all {
        Ok(all) => all,
        Err(rv) => return rv,
    };
    shown.retain(is_shown);
    let Some(room) = length.read() else { return CKR_ARGUMENTS_BAD };
    length.write(ulong(shown.len()));
    if place.is_null() {
        return CKR_OK;
    }
    if count(room) < shown.len() {
        return CKR_BUFFER_TOO_SMALL;
    }
    place.values(shown.len()).copy_from_slice(&shown);
    CKR_OK
}
