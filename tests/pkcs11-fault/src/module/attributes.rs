//! Attributes that are hidden, or that are another key's.

use super::call::Call;
use super::caller::{Arg, count};
use super::other_value;
use crate::fault::{Fault, FaultKind};
use crate::names::Ckr;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_RV, CK_ULONG, CK_UNAVAILABLE_INFORMATION, CKA_CHECK_VALUE, CKA_VALUE, CKR_OK,
};

pub(super) fn get(call: &Call, template: Arg<CK_ATTRIBUTE>, length: CK_ULONG) -> CK_RV {
    let is_touched =
        call.is_concerned_by(FaultKind::HideAttribute) || call.is_concerned_by(FaultKind::OtherValue);
    if !is_touched || template.is_null() {
        // SAFETY: the application's own arguments.
        return unsafe {
            ask!(call.real, C_GetAttributeValue(call.session, call.object, template.pointer(), length))
        };
    }
    // One by one. Every attribute is worked on, whatever becomes of the others, and one error stands for all.
    let mut answer = CKR_OK;
    for attribute in template.values(count(length)) {
        let rv = one(call, attribute);
        if answer == CKR_OK {
            answer = rv;
        }
    }
    answer
}

fn one(call: &Call, attribute: &mut CK_ATTRIBUTE) -> CK_RV {
    let wanted = |fault: &Fault| match fault {
        Fault::HideAttribute { attribute: hidden, answer } if hidden.0 == attribute.type_ => Some(*answer),
        _ => None,
    };
    if let Some(Ckr(answer)) = call.struck_with(wanted) {
        attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return answer;
    }
    let object = match attribute.type_ {
        CKA_VALUE | CKA_CHECK_VALUE => other_value::key_to_use(call, call.object),
        _ => Ok(call.object),
    };
    let object = match object {
        Ok(object) => object,
        Err(rv) => return rv,
    };
    // SAFETY: a template of one: the application's own.
    unsafe { ask!(call.real, C_GetAttributeValue(call.session, object, attribute, 1)) }
}
