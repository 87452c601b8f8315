//! A random source that is none.

use super::call::Call;
use super::caller::{Arg, count};
use crate::fault::{Fault, Random};
use cryptoki_sys::{CK_BYTE, CK_RV, CK_ULONG, CKR_OK};

pub(super) fn generate(call: &Call, bytes: Arg<CK_BYTE>, length: CK_ULONG) -> CK_RV {
    // SAFETY: the application's own arguments.
    let rv = unsafe { ask!(call.real, C_GenerateRandom(call.session, bytes.pointer(), length)) };
    if rv != CKR_OK {
        return rv;
    }
    let wanted = |fault: &Fault| match fault {
        Fault::Random(random) => Some(*random),
        _ => None,
    };
    let bytes = bytes.values(count(length));
    match call.struck_with(wanted) {
        Some(Random::Zeros) => bytes.fill(0),
        Some(Random::Repeated) => repeat(bytes),
        None => {}
    }
    rv
}

/// Fills with the bytes that come where something new should.
pub(super) fn repeat(bytes: &mut [u8]) {
    for (byte, value) in bytes.iter_mut().zip((0x51..=0xf0).cycle()) {
        *byte = value;
    }
}
