//! Object handles on their way between the application and the real module.

use super::call::{Call, Role};
use super::caller::{Arg, count, ulong};
use cryptoki_sys::{CK_BYTE, CK_OBJECT_HANDLE, CK_RV, CK_ULONG, CKR_OK};

/// Gives the application its handle for an object that the call has made.
pub(super) fn created(call: &Call, rv: CK_RV, handle: Arg<CK_OBJECT_HANDLE>) -> CK_RV {
    if let (CKR_OK, Some(slot), Some(real)) = (rv, call.slot, handle.read()) {
        handle.write(call.module.handles.hand_out(slot, real));
    }
    rv
}

pub(super) fn destroy(call: &Call, number: CK_OBJECT_HANDLE) -> CK_RV {
    // SAFETY: takes no pointer.
    let rv = unsafe { ask!(call.real, C_DestroyObject(call.session, call.object)) };
    if let (CKR_OK, Some(slot)) = (rv, call.slot) {
        call.module.handles.destroyed(slot, number);
    }
    rv
}

/// Finds objects, but for those that we made.
pub(super) fn find(
    call: &Call,
    handles: Arg<CK_OBJECT_HANDLE>,
    most: CK_ULONG,
    found: Arg<CK_ULONG>,
) -> CK_RV {
    let forward = |handles: *mut CK_OBJECT_HANDLE, most| {
        // SAFETY: the application's own arguments, or the unused rest of its array.
        unsafe { ask!(call.real, C_FindObjects(call.session, handles, most, found.pointer())) }
    };
    let Some(slot) = call.slot.filter(|_| !handles.is_null() && !found.is_null()) else {
        return forward(handles.pointer(), most);
    };
    let substitutes = call.module.handles.substitutes(slot);
    let mut kept = 0;
    loop {
        let (rest, room) = (handles.skip(kept), count(most) - kept);
        let rv = forward(rest.pointer(), ulong(room));
        if rv != CKR_OK {
            return rv;
        }
        let page = rest.values(found.read().map_or(0, count).min(room));
        let mut shown = 0;
        for index in 0..page.len() {
            if !substitutes.contains(&page[index]) {
                page[shown] = call.module.handles.hand_out(slot, page[index]);
                shown += 1;
            }
        }
        kept += shown;
        // A page that is not full ends the search for most applications, so we fill it up.
        if shown == page.len() {
            break;
        }
    }
    found.write(ulong(kept));
    CKR_OK
}

/// `C_SetOperationState`, whose two key handles may be 0.
pub(super) fn set_operation_state(
    call: &Call,
    state: *mut CK_BYTE,
    length: CK_ULONG,
    keys: [CK_OBJECT_HANDLE; 2],
) -> CK_RV {
    let [encryption, authentication] = match keys.map(|key| call.object(key, Role::Key)) {
        [Ok(encryption), Ok(authentication)] => [encryption, authentication],
        [Err(rv), _] | [_, Err(rv)] => return rv,
    };
    // SAFETY: the application's own arguments.
    unsafe { ask!(call.real, C_SetOperationState(call.session, state, length, encryption, authentication)) }
}
