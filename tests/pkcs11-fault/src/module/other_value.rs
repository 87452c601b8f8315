//! A key with another value behind the same label.
//!
//! The other value is an AES key of the same length, a session object in the real token. It is made from the label
//! alone: every session and every process gets the same one, as if the token held it.

use super::call::Call;
use super::caller::{count, ulong};
use super::{lock, report};
use crate::fault::{Fault, FaultKind};
use crate::names::Ckr;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_FALSE, CK_OBJECT_HANDLE, CK_RV, CK_TRUE, CKA_CLASS, CKA_DECRYPT,
    CKA_ENCRYPT, CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_LABEL, CKA_PRIVATE, CKA_SENSITIVE, CKA_SIGN, CKA_TOKEN,
    CKA_UNWRAP, CKA_VALUE, CKA_VALUE_LEN, CKA_VERIFY, CKA_WRAP, CKK_AES, CKO_SECRET_KEY, CKR_OK,
};

/// The key that the real module is to use where the application names this one.
pub(super) fn key_to_use(call: &Call, key: CK_OBJECT_HANDLE) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let is_meant = call.is_concerned_by(FaultKind::OtherValue) && is_aes_key(call, key);
    match call.struck_with(|fault| (is_meant && *fault == Fault::OtherValue).then_some(())) {
        Some(()) => substitute(call, key),
        None => Ok(key),
    }
}

fn is_aes_key(call: &Call, key: CK_OBJECT_HANDLE) -> bool {
    let number = |attribute| call.real.number(call.session, key, attribute);
    number(CKA_CLASS) == Some(CKO_SECRET_KEY) && number(CKA_KEY_TYPE) == Some(CKK_AES)
}

/// The key with the other value: the session's own, made when it is first needed.
fn substitute(call: &Call, key: CK_OBJECT_HANDLE) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let Some(session) = &call.live else { return Ok(key) };
    let known = lock(&session.substitutes).get(&key).copied();
    if let Some(substitute) = known {
        return Ok(substitute);
    }
    let label = call.real.attribute(call.session, key, CKA_LABEL).unwrap_or_default();
    let length = call.real.number(call.session, key, CKA_VALUE_LEN).map_or(32, count);
    let substitute = create(call, key, &mut other_value(&label, length))?;
    lock(&session.substitutes).insert(key, substitute);
    Ok(substitute)
}

fn create(call: &Call, key: CK_OBJECT_HANDLE, value: &mut [u8]) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let (mut class, mut key_type) = (CKO_SECRET_KEY, CKK_AES);
    let (mut yes, mut no) = (CK_TRUE, CK_FALSE);
    // What the key shows of its value, the substitute shows of its own.
    let flag = |attribute| call.real.attribute(call.session, key, attribute) == Some(vec![CK_TRUE]);
    let (mut sensitive, mut extractable) = (u8::from(flag(CKA_SENSITIVE)), u8::from(flag(CKA_EXTRACTABLE)));
    let mut template = vec![
        attribute(CKA_CLASS, &mut class),
        attribute(CKA_KEY_TYPE, &mut key_type),
        attribute(CKA_TOKEN, &mut no),
        attribute(CKA_PRIVATE, &mut no),
        attribute(CKA_SENSITIVE, &mut sensitive),
        attribute(CKA_EXTRACTABLE, &mut extractable),
    ];
    for usage in [CKA_ENCRYPT, CKA_DECRYPT, CKA_SIGN, CKA_VERIFY, CKA_WRAP, CKA_UNWRAP] {
        template.push(attribute(usage, &mut yes));
    }
    let (pointer, length) = (value.as_mut_ptr().cast(), ulong(value.len()));
    template.push(CK_ATTRIBUTE { type_: CKA_VALUE, pValue: pointer, ulValueLen: length });
    let mut created = 0;
    let (first, length) = (template.as_mut_ptr(), ulong(template.len()));
    // SAFETY: a template over values of ours that live longer than the call, and a place for the answer.
    let rv = unsafe { ask!(call.real, C_CreateObject(call.session, first, length, &mut created)) };
    if rv == CKR_OK {
        Ok(created)
    } else {
        report(&format!("other_value: the real module refuses to create a key: {}", Ckr(rv)));
        Err(rv)
    }
}

fn attribute<T>(type_: CK_ATTRIBUTE_TYPE, value: &mut T) -> CK_ATTRIBUTE {
    let length = ulong(size_of::<T>());
    CK_ATTRIBUTE { type_, pValue: std::ptr::from_mut(value).cast(), ulValueLen: length }
}

/// Bytes that differ from label to label (FNV-1a, then SplitMix64). Nothing about them needs to be secret.
fn other_value(label: &[u8], length: usize) -> Vec<u8> {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut state = label.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_ne_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}
