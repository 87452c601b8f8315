//! Encryption and decryption: IVs, corrupted outputs, and what a bad tag is called.

use super::call::Call;
use super::caller::{Arg, Output, count, ulong};
use super::gcm::{Finish, Gcm};
use super::handles::Running;
use crate::fault::{Corrupt, Fault};
use crate::function::Operation;
use cryptoki_sys::{
    CK_BYTE, CK_MECHANISM, CK_RV, CK_ULONG, CKR_AEAD_DECRYPT_FAILED, CKR_BUFFER_TOO_SMALL, CKR_DATA_INVALID,
    CKR_DATA_LEN_RANGE, CKR_ENCRYPTED_DATA_INVALID, CKR_ENCRYPTED_DATA_LEN_RANGE, CKR_FUNCTION_FAILED,
    CKR_GENERAL_ERROR, CKR_OK,
};

/// What real modules answer when the ciphertext or its tag is wrong.
const DECRYPTION_FAILED: [CK_RV; 7] = [
    CKR_GENERAL_ERROR,
    CKR_FUNCTION_FAILED,
    CKR_ENCRYPTED_DATA_INVALID,
    CKR_ENCRYPTED_DATA_LEN_RANGE,
    CKR_AEAD_DECRYPT_FAILED,
    CKR_DATA_INVALID,
    CKR_DATA_LEN_RANGE,
];

pub(super) fn encrypt_init(call: &Call, mechanism: Arg<CK_MECHANISM>) -> CK_RV {
    let mut gcm = None;
    let mut replaced = None;
    if let Some(asked) = mechanism.read() {
        gcm = match Gcm::for_encryption(call, &asked) {
            Ok(gcm) => gcm,
            Err(rv) => return rv,
        };
        replaced = gcm.as_mut().map(|gcm| gcm.mechanism(&asked));
    }
    let mechanism = replaced.as_mut().map_or(mechanism.pointer(), std::ptr::from_mut);
    // SAFETY: the application's own mechanism, or one of ours whose parameters `gcm` keeps.
    let rv = unsafe { ask!(call.real, C_EncryptInit(call.session, mechanism, call.object)) };
    began(call, rv, Operation::Encrypt, gcm)
}

pub(super) fn decrypt_init(call: &Call, mechanism: Arg<CK_MECHANISM>) -> CK_RV {
    let gcm = mechanism.read().and_then(|asked| Gcm::for_decryption(&asked));
    // SAFETY: the application's own arguments.
    let rv = unsafe { ask!(call.real, C_DecryptInit(call.session, mechanism.pointer(), call.object)) };
    began(call, rv, Operation::Decrypt, gcm)
}

/// Notes an operation that an `Init` has begun.
pub(super) fn began(call: &Call, rv: CK_RV, operation: Operation, gcm: Option<Gcm>) -> CK_RV {
    if let Some(session) = call.live.as_ref().filter(|_| rv == CKR_OK) {
        session.begin(operation, Running { key: call.named_object, gcm });
    }
    rv
}

/// `C_EncryptUpdate`, which returns ciphertext and nothing else.
pub(super) fn encrypt_some(
    call: &Call,
    output: Output,
    forward: impl FnOnce(*mut CK_BYTE, *mut CK_ULONG) -> CK_RV,
) -> CK_RV {
    let rv = forward(output.bytes.pointer(), output.length.pointer());
    if let Some(ciphertext) = written(output, rv) {
        corrupt(call, Corrupt::Ciphertext, ciphertext.first_mut());
    }
    ended(call, rv, Operation::Encrypt, true);
    rv
}

/// `C_Encrypt` and `C_EncryptFinal`: what they return ends with the tag, and with the IV where that is appended.
pub(super) fn encrypt_last(
    call: &Call,
    output: Output,
    forward: impl FnOnce(*mut CK_BYTE, *mut CK_ULONG) -> CK_RV,
) -> CK_RV {
    let running = |running: &Running| {
        let gcm = running.gcm.as_ref();
        (gcm.map_or(0, |gcm| gcm.tag_bytes), gcm.and_then(Gcm::finish))
    };
    let live = call.live.as_ref();
    let (tag_bytes, finish) =
        live.and_then(|session| session.running(Operation::Encrypt, running)).unwrap_or_default();
    let appended_bytes = finish.as_ref().map_or(0, Finish::appended_bytes);
    let Some(room) = output.length.read() else {
        return forward(output.bytes.pointer(), output.length.pointer());
    };

    let mut length = room.saturating_sub(ulong(appended_bytes));
    let rv = forward(output.bytes.pointer(), &mut length);
    if matches!(rv, CKR_OK | CKR_BUFFER_TOO_SMALL) {
        output.length.write(length + ulong(appended_bytes));
    }
    if let Some(bytes) = written(output, rv) {
        let (encrypted, appended) = bytes.split_at_mut(bytes.len().saturating_sub(appended_bytes));
        if encrypted.len() > tag_bytes {
            corrupt(call, Corrupt::Ciphertext, encrypted.first_mut());
        }
        if tag_bytes > 0 {
            corrupt(call, Corrupt::Tag, encrypted.last_mut());
        }
        if let Some(finish) = &finish {
            finish.deliver(appended);
        }
    }
    ended(call, rv, Operation::Encrypt, output.is_query());
    rv
}

/// `C_DecryptUpdate`, which finds nothing wrong with the tag yet.
pub(super) fn decrypt_some(
    call: &Call,
    output: Output,
    forward: impl FnOnce(*mut CK_BYTE, *mut CK_ULONG) -> CK_RV,
) -> CK_RV {
    let rv = forward(output.bytes.pointer(), output.length.pointer());
    if let Some(plaintext) = written(output, rv) {
        corrupt(call, Corrupt::Plaintext, plaintext.first_mut());
    }
    ended(call, rv, Operation::Decrypt, true);
    rv
}

/// `C_Decrypt` and `C_DecryptFinal`, which verify the tag.
pub(super) fn decrypt_last(
    call: &Call,
    output: Output,
    forward: impl FnOnce(*mut CK_BYTE, *mut CK_ULONG) -> CK_RV,
) -> CK_RV {
    let live = call.live.as_ref();
    let is_gcm =
        live.and_then(|session| session.running(Operation::Decrypt, |running| running.gcm.is_some()));
    let rv = forward(output.bytes.pointer(), output.length.pointer());
    if let Some(plaintext) = written(output, rv) {
        corrupt(call, Corrupt::Plaintext, plaintext.first_mut());
        if !plaintext.is_empty() && strikes(call, Corrupt::Length) {
            output.length.write(ulong(plaintext.len() - 1));
        }
    }
    let wanted = |fault: &Fault| match fault {
        Fault::BadTag(answer) => Some(answer.0),
        _ => None,
    };
    let bad_tag = is_gcm == Some(true) && DECRYPTION_FAILED.contains(&rv);
    let answer = bad_tag.then(|| call.struck_with(wanted)).flatten();
    ended(call, rv, Operation::Decrypt, output.is_query());
    answer.unwrap_or(rv)
}

/// What a call has written into the output, if anything.
fn written<'a>(output: Output, rv: CK_RV) -> Option<&'a mut [u8]> {
    let length = output.length.read().filter(|_| rv == CKR_OK && !output.is_query())?;
    Some(output.bytes.values(count(length)))
}

/// Whether a rule says that a part is corrupted.
fn strikes(call: &Call, part: Corrupt) -> bool {
    call.struck_with(|fault| (*fault == Fault::Corrupt(part)).then_some(())).is_some()
}

/// Flips a bit if a rule says so and there is a byte to flip it in.
fn corrupt(call: &Call, part: Corrupt, byte: Option<&mut u8>) {
    if let Some(byte) = byte
        && strikes(call, part)
    {
        *byte ^= 1;
    }
}

/// Forgets an operation that is over. One that succeeded may go on: after a query, and after an update.
fn ended(call: &Call, rv: CK_RV, operation: Operation, goes_on: bool) {
    let is_over = match rv {
        CKR_OK => !goes_on,
        CKR_BUFFER_TOO_SMALL => false,
        _ => true,
    };
    if let Some(session) = call.live.as_ref().filter(|_| is_over) {
        session.end(operation);
    }
}
