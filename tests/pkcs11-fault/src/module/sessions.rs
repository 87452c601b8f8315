//! Initialisation, sessions and logins: what changes the handles that mean anything.

use super::call::Call;
use super::caller::Arg;
use super::handles::Session;
use crate::fault::Fault;
use cryptoki_sys::{
    CK_FLAGS, CK_NOTIFY, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR,
    CKF_RW_SESSION, CKR_OK, CKR_SESSION_COUNT, CKR_USER_ALREADY_LOGGED_IN,
};
use std::ffi::c_void;

pub(super) fn initialize(call: &Call, arguments: *mut c_void) -> CK_RV {
    // SAFETY: the application's own argument: its locking flags and callbacks are the real module's business.
    let rv = unsafe { ask!(call.real, C_Initialize(arguments)) };
    if rv == CKR_OK {
        call.module.handles.reset();
    }
    rv
}

pub(super) fn finalize(call: &Call, reserved: *mut c_void) -> CK_RV {
    // SAFETY: the application's own argument.
    let rv = unsafe { ask!(call.real, C_Finalize(reserved)) };
    if rv == CKR_OK {
        call.module.handles.reset();
    }
    rv
}

pub(super) fn open(
    call: &Call,
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    handle: Arg<CK_SESSION_HANDLE>,
) -> CK_RV {
    // Announced first, so that sessions being opened at the same time count against a limit.
    let open = call.module.handles.begin_opening(slot);
    let wanted = |fault: &Fault| match fault {
        Fault::SessionLimit(limit) if open >= *limit => Some(CKR_SESSION_COUNT),
        Fault::RefuseReadOnly(answer) if flags & CKF_RW_SESSION == 0 => Some(answer.0),
        _ => None,
    };
    let rv = call.struck_with(wanted).unwrap_or_else(|| {
        // SAFETY: the application's own arguments.
        unsafe { ask!(call.real, C_OpenSession(slot, flags, application, notify, handle.pointer())) }
    });
    let session = handle.read().filter(|_| rv == CKR_OK).map(|real| Session::new(call.real, real, slot));
    if let Some(number) = call.module.handles.end_opening(slot, session) {
        handle.write(number);
    }
    rv
}

pub(super) fn close(call: &Call) -> CK_RV {
    // SAFETY: takes no pointer.
    let rv = unsafe { ask!(call.real, C_CloseSession(call.session)) };
    if rv == CKR_OK {
        call.module.handles.closed(call.session_number);
    }
    rv
}

pub(super) fn close_all(call: &Call, slot: CK_SLOT_ID) -> CK_RV {
    // SAFETY: takes no pointer.
    let rv = unsafe { ask!(call.real, C_CloseAllSessions(slot)) };
    if rv == CKR_OK {
        call.module.handles.closed_all(slot);
    }
    rv
}

pub(super) fn log_in(call: &Call, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, length: CK_ULONG) -> CK_RV {
    // SAFETY: the application's own arguments.
    let rv = unsafe { ask!(call.real, C_Login(call.session, user, pin, length)) };
    if let (CKR_OK | CKR_USER_ALREADY_LOGGED_IN, Some(slot)) = (rv, call.slot) {
        call.module.handles.logged_in(slot);
    }
    rv
}

pub(super) fn log_out(call: &Call) -> CK_RV {
    // SAFETY: takes no pointer.
    let rv = unsafe { ask!(call.real, C_Logout(call.session)) };
    if let (CKR_OK, Some(slot)) = (rv, call.slot) {
        call.module.handles.logged_out(slot);
    }
    rv
}
