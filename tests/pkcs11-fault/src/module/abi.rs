//! The C interface: the function list, and one entry for each of its functions.
//!
//! An entry says what the call is about and how it is forwarded. Only `C_GetFunctionList` is exported by name:
//! symbols of the other names could take the place of the real module's own.

// The names are those of the standard.
#![allow(non_snake_case)]

use super::call::{Call, Role, Subject, run};
use super::caller::{Arg, Output};
use super::{attributes, cipher, objects, random, sessions, slots};
use crate::function::{Function, Operation};
use cryptoki_sys::*;
use std::ffi::c_void;

/// The mechanism that an argument names.
///
/// # Safety
/// As for [`Arg::new`].
unsafe fn type_of(mechanism: CK_MECHANISM_PTR) -> Option<CK_MECHANISM_TYPE> {
    // SAFETY: the caller's promise.
    unsafe { Arg::new(mechanism) }.read().map(|mechanism| mechanism.mechanism)
}

/// Entries that are forwarded as they are: about a session, a slot, or nothing.
macro_rules! plain {
    (session: $($name:ident = $function:ident($($argument:ident: $type:ty),*);)*) => { $(
        unsafe extern "C" fn $name(session: CK_SESSION_HANDLE, $($argument: $type),*) -> CK_RV {
            run(Function::$function, Subject::session(session), |call| {
                // SAFETY: the application's own arguments, for which it answers as it would to the real module.
                unsafe { ask!(call.real, $name(call.session, $($argument),*)) }
            })
        }
    )* };
    (slot: $($name:ident = $function:ident($($argument:ident: $type:ty),*);)*) => { $(
        unsafe extern "C" fn $name(slot: CK_SLOT_ID, $($argument: $type),*) -> CK_RV {
            run(Function::$function, Subject::slot(slot), |call| {
                // SAFETY: the application's own arguments, for which it answers as it would to the real module.
                unsafe { ask!(call.real, $name(slot, $($argument),*)) }
            })
        }
    )* };
    (nothing: $($name:ident = $function:ident($($argument:ident: $type:ty),*);)*) => { $(
        unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
            run(Function::$function, Subject::none(), |call| {
                // SAFETY: the application's own arguments, for which it answers as it would to the real module.
                unsafe { ask!(call.real, $name($($argument),*)) }
            })
        }
    )* };
}

plain! { nothing:
    C_GetInfo = GetInfo(info: CK_INFO_PTR);
    C_WaitForSlotEvent = WaitForSlotEvent(flags: CK_FLAGS, slot: *mut CK_SLOT_ID, reserved: *mut c_void);
}

plain! { slot:
    C_InitToken = InitToken(pin: CK_UTF8CHAR_PTR, length: CK_ULONG, label: CK_UTF8CHAR_PTR);
}

plain! { session:
    C_InitPIN = InitPIN(pin: CK_UTF8CHAR_PTR, length: CK_ULONG);
    C_SetPIN = SetPIN(old: CK_UTF8CHAR_PTR, old_length: CK_ULONG, new: CK_UTF8CHAR_PTR, new_length: CK_ULONG);
    C_GetSessionInfo = GetSessionInfo(info: CK_SESSION_INFO_PTR);
    C_GetOperationState = GetOperationState(state: CK_BYTE_PTR, length: CK_ULONG_PTR);
    C_FindObjectsInit = FindObjectsInit(template: CK_ATTRIBUTE_PTR, count: CK_ULONG);
    C_FindObjectsFinal = FindObjectsFinal();
    C_Digest = Digest(data: CK_BYTE_PTR, length: CK_ULONG, digest: CK_BYTE_PTR, digest_length: CK_ULONG_PTR);
    C_DigestUpdate = DigestUpdate(part: CK_BYTE_PTR, length: CK_ULONG);
    C_DigestFinal = DigestFinal(digest: CK_BYTE_PTR, length: CK_ULONG_PTR);
    C_Sign = Sign(data: CK_BYTE_PTR, length: CK_ULONG, signature: CK_BYTE_PTR, signature_length: CK_ULONG_PTR);
    C_SignUpdate = SignUpdate(part: CK_BYTE_PTR, length: CK_ULONG);
    C_SignFinal = SignFinal(signature: CK_BYTE_PTR, length: CK_ULONG_PTR);
    C_SignRecover = SignRecover(
        data: CK_BYTE_PTR, length: CK_ULONG, signature: CK_BYTE_PTR, signature_length: CK_ULONG_PTR
    );
    C_Verify = Verify(data: CK_BYTE_PTR, length: CK_ULONG, signature: CK_BYTE_PTR, signature_length: CK_ULONG);
    C_VerifyUpdate = VerifyUpdate(part: CK_BYTE_PTR, length: CK_ULONG);
    C_VerifyFinal = VerifyFinal(signature: CK_BYTE_PTR, length: CK_ULONG);
    C_VerifyRecover = VerifyRecover(
        signature: CK_BYTE_PTR, length: CK_ULONG, data: CK_BYTE_PTR, data_length: CK_ULONG_PTR
    );
    C_DigestEncryptUpdate = DigestEncryptUpdate(
        part: CK_BYTE_PTR, length: CK_ULONG, encrypted: CK_BYTE_PTR, encrypted_length: CK_ULONG_PTR
    );
    C_DecryptDigestUpdate = DecryptDigestUpdate(
        encrypted: CK_BYTE_PTR, length: CK_ULONG, part: CK_BYTE_PTR, part_length: CK_ULONG_PTR
    );
    C_SignEncryptUpdate = SignEncryptUpdate(
        part: CK_BYTE_PTR, length: CK_ULONG, encrypted: CK_BYTE_PTR, encrypted_length: CK_ULONG_PTR
    );
    C_DecryptVerifyUpdate = DecryptVerifyUpdate(
        encrypted: CK_BYTE_PTR, length: CK_ULONG, part: CK_BYTE_PTR, part_length: CK_ULONG_PTR
    );
    C_SeedRandom = SeedRandom(seed: CK_BYTE_PTR, length: CK_ULONG);
    C_GetFunctionStatus = GetFunctionStatus();
    C_CancelFunction = CancelFunction();
}

/// The list of our functions. Called by name; every other function is called through the list.
///
/// # Safety
/// `list` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn C_GetFunctionList(list: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    run(Function::GetFunctionList, Subject::none(), |_| {
        // SAFETY: the application's own argument.
        let list = unsafe { Arg::new(list) };
        if list.is_null() {
            return CKR_ARGUMENTS_BAD;
        }
        // Applications only read it, by the standard.
        list.write((&raw const FUNCTION_LIST).cast_mut());
        CKR_OK
    })
}

unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    run(Function::Initialize, Subject::none(), |call| sessions::initialize(call, arguments))
}

unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    run(Function::Finalize, Subject::none(), |call| sessions::finalize(call, reserved))
}

unsafe extern "C" fn C_GetSlotList(present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: CK_ULONG_PTR) -> CK_RV {
    // SAFETY: the application's own arguments.
    let (slots, count) = (unsafe { Arg::new(slots) }, unsafe { Arg::new(count) });
    run(Function::GetSlotList, Subject::none(), |call| slots::list(call, present, slots, count))
}

unsafe extern "C" fn C_GetSlotInfo(slot: CK_SLOT_ID, info: CK_SLOT_INFO_PTR) -> CK_RV {
    // SAFETY: the application's own argument.
    let info = unsafe { Arg::new(info) };
    run(Function::GetSlotInfo, Subject::slot(slot), |call| slots::slot_info(call, slot, info))
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: CK_TOKEN_INFO_PTR) -> CK_RV {
    // SAFETY: the application's own argument.
    let info = unsafe { Arg::new(info) };
    run(Function::GetTokenInfo, Subject::slot(slot), |call| slots::token_info(call, slot, info))
}

unsafe extern "C" fn C_GetMechanismList(
    slot: CK_SLOT_ID,
    mechanisms: CK_MECHANISM_TYPE_PTR,
    count: CK_ULONG_PTR,
) -> CK_RV {
    // SAFETY: the application's own arguments.
    let (mechanisms, count) = (unsafe { Arg::new(mechanisms) }, unsafe { Arg::new(count) });
    run(Function::GetMechanismList, Subject::slot(slot), |call| {
        slots::mechanisms(call, slot, mechanisms, count)
    })
}

unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: CK_MECHANISM_INFO_PTR,
) -> CK_RV {
    run(Function::GetMechanismInfo, Subject::slot(slot).mechanism(Some(mechanism)), |call| {
        // SAFETY: the application's own arguments.
        unsafe { ask!(call.real, C_GetMechanismInfo(slot, mechanism, info)) }
    })
}

unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: CK_SESSION_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let session = unsafe { Arg::new(session) };
    run(Function::OpenSession, Subject::slot(slot), |call| {
        sessions::open(call, slot, flags, application, notify, session)
    })
}

unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    run(Function::CloseSession, Subject::session(session), sessions::close)
}

unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    run(Function::CloseAllSessions, Subject::slot(slot), |call| sessions::close_all(call, slot))
}

unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: CK_UTF8CHAR_PTR,
    length: CK_ULONG,
) -> CK_RV {
    run(Function::Login, Subject::session(session), |call| sessions::log_in(call, user, pin, length))
}

unsafe extern "C" fn C_Logout(session: CK_SESSION_HANDLE) -> CK_RV {
    run(Function::Logout, Subject::session(session), sessions::log_out)
}

unsafe extern "C" fn C_SetOperationState(
    session: CK_SESSION_HANDLE,
    state: CK_BYTE_PTR,
    length: CK_ULONG,
    encryption_key: CK_OBJECT_HANDLE,
    authentication_key: CK_OBJECT_HANDLE,
) -> CK_RV {
    run(Function::SetOperationState, Subject::session(session), |call| {
        objects::set_operation_state(call, state, length, [encryption_key, authentication_key])
    })
}

/// Entries about one object, forwarded with its real handle.
macro_rules! object {
    ($($name:ident = $function:ident($role:ident $(, $argument:ident: $type:ty)*);)*) => { $(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            object: CK_OBJECT_HANDLE,
            $($argument: $type),*
        ) -> CK_RV {
            run(Function::$function, Subject::session(session).object(object, Role::$role), |call| {
                // SAFETY: the application's own arguments, for which it answers as it would to the real module.
                unsafe { ask!(call.real, $name(call.session, call.object, $($argument),*)) }
            })
        }
    )* };
}

object! {
    C_GetObjectSize = GetObjectSize(Object, size: CK_ULONG_PTR);
    C_SetAttributeValue = SetAttributeValue(Object, template: CK_ATTRIBUTE_PTR, count: CK_ULONG);
    C_DigestKey = DigestKey(Key);
}

unsafe extern "C" fn C_CreateObject(
    session: CK_SESSION_HANDLE,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    created: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    run(Function::CreateObject, Subject::session(session), |call| {
        // SAFETY: the application's own arguments.
        let rv = unsafe { ask!(call.real, C_CreateObject(call.session, template, count, created)) };
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(created) })
    })
}

unsafe extern "C" fn C_CopyObject(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    created: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    run(Function::CopyObject, Subject::session(session).object(object, Role::Object), |call| {
        // SAFETY: the application's own arguments.
        let rv =
            unsafe { ask!(call.real, C_CopyObject(call.session, call.object, template, count, created)) };
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(created) })
    })
}

unsafe extern "C" fn C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> CK_RV {
    run(Function::DestroyObject, Subject::session(session).object(object, Role::Object), |call| {
        objects::destroy(call, object)
    })
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let template = unsafe { Arg::new(template) };
    run(Function::GetAttributeValue, Subject::session(session).object(object, Role::Object), |call| {
        attributes::get(call, template, count)
    })
}

unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: CK_OBJECT_HANDLE_PTR,
    most: CK_ULONG,
    found: CK_ULONG_PTR,
) -> CK_RV {
    // SAFETY: the application's own arguments.
    let (objects, found) = (unsafe { Arg::new(objects) }, unsafe { Arg::new(found) });
    run(Function::FindObjects, Subject::session(session), |call| objects::find(call, objects, most, found))
}

/// Entries that begin an operation with a key.
macro_rules! init {
    ($($name:ident = $function:ident($operation:ident);)*) => { $(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            mechanism: CK_MECHANISM_PTR,
            key: CK_OBJECT_HANDLE,
        ) -> CK_RV {
            // SAFETY: the application's own argument.
            let type_ = unsafe { type_of(mechanism) };
            let subject = Subject::session(session).object(key, Role::Key).mechanism(type_);
            run(Function::$function, subject, |call| {
                // SAFETY: the application's own arguments, for which it answers as it would to the real module.
                let rv = unsafe { ask!(call.real, $name(call.session, mechanism, call.object)) };
                cipher::began(call, rv, Operation::$operation, None)
            })
        }
    )* };
}

init! {
    C_SignInit = SignInit(Sign);
    C_SignRecoverInit = SignRecoverInit(SignRecover);
    C_VerifyInit = VerifyInit(Verify);
    C_VerifyRecoverInit = VerifyRecoverInit(VerifyRecover);
}

unsafe extern "C" fn C_DigestInit(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR) -> CK_RV {
    // SAFETY: the application's own argument.
    let type_ = unsafe { type_of(mechanism) };
    run(Function::DigestInit, Subject::session(session).mechanism(type_), |call| {
        // SAFETY: the application's own arguments.
        unsafe { ask!(call.real, C_DigestInit(call.session, mechanism)) }
    })
}

/// Entries that begin an encryption or decryption, in which a rule may look at the parameters.
macro_rules! cipher_init {
    ($($name:ident = $function:ident($course:path);)*) => { $(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            mechanism: CK_MECHANISM_PTR,
            key: CK_OBJECT_HANDLE,
        ) -> CK_RV {
            // SAFETY: the application's own argument.
            let mechanism = unsafe { Arg::new(mechanism) };
            let type_ = mechanism.read().map(|mechanism| mechanism.mechanism);
            let subject = Subject::session(session).object(key, Role::Key).mechanism(type_);
            run(Function::$function, subject, |call| $course(call, mechanism))
        }
    )* };
}

cipher_init! {
    C_EncryptInit = EncryptInit(cipher::encrypt_init);
    C_DecryptInit = DecryptInit(cipher::decrypt_init);
}

/// Entries that return ciphertext or plaintext, in which a rule may change it.
macro_rules! cipher {
    ($($name:ident = $function:ident($course:path $(, $argument:ident: $type:ty)*);)*) => { $(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            $($argument: $type,)*
            bytes: CK_BYTE_PTR,
            length: CK_ULONG_PTR,
        ) -> CK_RV {
            // SAFETY: the application's own arguments.
            let output = unsafe { Output::new(bytes, length) };
            run(Function::$function, Subject::session(session), |call: &Call| {
                $course(call, output, |bytes, length| {
                    // SAFETY: the application's own arguments, or the same buffer with less of its length.
                    unsafe { ask!(call.real, $name(call.session, $($argument,)* bytes, length)) }
                })
            })
        }
    )* };
}

cipher! {
    C_Encrypt = Encrypt(cipher::encrypt_last, data: CK_BYTE_PTR, data_length: CK_ULONG);
    C_EncryptUpdate = EncryptUpdate(cipher::encrypt_some, part: CK_BYTE_PTR, part_length: CK_ULONG);
    C_EncryptFinal = EncryptFinal(cipher::encrypt_last);
    C_Decrypt = Decrypt(cipher::decrypt_last, encrypted: CK_BYTE_PTR, encrypted_length: CK_ULONG);
    C_DecryptUpdate = DecryptUpdate(cipher::decrypt_some, part: CK_BYTE_PTR, part_length: CK_ULONG);
    C_DecryptFinal = DecryptFinal(cipher::decrypt_last);
}

unsafe extern "C" fn C_GenerateKey(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let type_ = unsafe { type_of(mechanism) };
    run(Function::GenerateKey, Subject::session(session).mechanism(type_), |call| {
        // SAFETY: the application's own arguments.
        let rv = unsafe { ask!(call.real, C_GenerateKey(call.session, mechanism, template, count, key)) };
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(key) })
    })
}

unsafe extern "C" fn C_GenerateKeyPair(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    public: CK_ATTRIBUTE_PTR,
    public_count: CK_ULONG,
    private: CK_ATTRIBUTE_PTR,
    private_count: CK_ULONG,
    public_key: CK_OBJECT_HANDLE_PTR,
    private_key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let type_ = unsafe { type_of(mechanism) };
    run(Function::GenerateKeyPair, Subject::session(session).mechanism(type_), |call| {
        #[rustfmt::skip]
        // SAFETY: the application's own arguments.
        let rv = unsafe { ask!(call.real, C_GenerateKeyPair(
            call.session, mechanism, public, public_count, private, private_count, public_key, private_key
        )) };
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(public_key) });
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(private_key) })
    })
}

unsafe extern "C" fn C_WrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    wrapping_key: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    wrapped: CK_BYTE_PTR,
    length: CK_ULONG_PTR,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let type_ = unsafe { type_of(mechanism) };
    let subject = Subject::session(session).object(wrapping_key, Role::WrappingKey).mechanism(type_);
    run(Function::WrapKey, subject, |call| match call.object(key, Role::Key) {
        // SAFETY: the application's own arguments.
        Ok(key) => unsafe {
            ask!(call.real, C_WrapKey(call.session, mechanism, call.object, key, wrapped, length))
        },
        Err(rv) => rv,
    })
}

unsafe extern "C" fn C_UnwrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    unwrapping_key: CK_OBJECT_HANDLE,
    wrapped: CK_BYTE_PTR,
    length: CK_ULONG,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let type_ = unsafe { type_of(mechanism) };
    let subject = Subject::session(session).object(unwrapping_key, Role::UnwrappingKey).mechanism(type_);
    run(Function::UnwrapKey, subject, |call| {
        #[rustfmt::skip]
        // SAFETY: the application's own arguments.
        let rv = unsafe { ask!(call.real, C_UnwrapKey(
            call.session, mechanism, call.object, wrapped, length, template, count, key
        )) };
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(key) })
    })
}

unsafe extern "C" fn C_DeriveKey(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    base_key: CK_OBJECT_HANDLE,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let type_ = unsafe { type_of(mechanism) };
    let subject = Subject::session(session).object(base_key, Role::Key).mechanism(type_);
    run(Function::DeriveKey, subject, |call| {
        // SAFETY: the application's own arguments.
        let rv = unsafe {
            ask!(call.real, C_DeriveKey(call.session, mechanism, call.object, template, count, key))
        };
        // SAFETY: the application's own argument.
        objects::created(call, rv, unsafe { Arg::new(key) })
    })
}

unsafe extern "C" fn C_GenerateRandom(
    session: CK_SESSION_HANDLE,
    bytes: CK_BYTE_PTR,
    length: CK_ULONG,
) -> CK_RV {
    // SAFETY: the application's own argument.
    let bytes = unsafe { Arg::new(bytes) };
    run(Function::GenerateRandom, Subject::session(session), |call| random::generate(call, bytes, length))
}

macro_rules! function_list {
    ($($name:ident),* $(,)?) => {
        static FUNCTION_LIST: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            $($name: Some($name)),*
        };
    };
}

function_list![
    C_Initialize,
    C_Finalize,
    C_GetInfo,
    C_GetFunctionList,
    C_GetSlotList,
    C_GetSlotInfo,
    C_GetTokenInfo,
    C_GetMechanismList,
    C_GetMechanismInfo,
    C_InitToken,
    C_InitPIN,
    C_SetPIN,
    C_OpenSession,
    C_CloseSession,
    C_CloseAllSessions,
    C_GetSessionInfo,
    C_GetOperationState,
    C_SetOperationState,
    C_Login,
    C_Logout,
    C_CreateObject,
    C_CopyObject,
    C_DestroyObject,
    C_GetObjectSize,
    C_GetAttributeValue,
    C_SetAttributeValue,
    C_FindObjectsInit,
    C_FindObjects,
    C_FindObjectsFinal,
    C_EncryptInit,
    C_Encrypt,
    C_EncryptUpdate,
    C_EncryptFinal,
    C_DecryptInit,
    C_Decrypt,
    C_DecryptUpdate,
    C_DecryptFinal,
    C_DigestInit,
    C_Digest,
    C_DigestUpdate,
    C_DigestKey,
    C_DigestFinal,
    C_SignInit,
    C_Sign,
    C_SignUpdate,
    C_SignFinal,
    C_SignRecoverInit,
    C_SignRecover,
    C_VerifyInit,
    C_Verify,
    C_VerifyUpdate,
    C_VerifyFinal,
    C_VerifyRecoverInit,
    C_VerifyRecover,
    C_DigestEncryptUpdate,
    C_DecryptDigestUpdate,
    C_SignEncryptUpdate,
    C_DecryptVerifyUpdate,
    C_GenerateKey,
    C_GenerateKeyPair,
    C_WrapKey,
    C_UnwrapKey,
    C_DeriveKey,
    C_SeedRandom,
    C_GenerateRandom,
    C_GetFunctionStatus,
    C_CancelFunction,
    C_WaitForSlotEvent,
];
