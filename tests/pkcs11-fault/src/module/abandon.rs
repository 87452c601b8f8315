//! Ending a real operation of which the application believes that an error has ended it.
//!
//! By the standard, an error ends the active operation. When the error is ours, the real operation must end all the
//! same, or the next `Init` would answer `CKR_OPERATION_ACTIVE`. PKCS#11 v2.40 has no call for that, so we carry the
//! operation through, and throw the result away.

use super::caller::ulong;
use super::real::Real;
use crate::function::Function;
use cryptoki_sys::{CK_BYTE, CK_SESSION_HANDLE};

/// Data for operations that nobody wants the result of: a block, so that most mechanisms take it.
const INPUT: [CK_BYTE; 16] = [0; 16];
/// Large enough for what operations on such data return, signatures included.
const OUTPUT_BYTES: usize = 4096;

/// Ends the operation that an error of this function ends.
pub(super) fn operation(real: &Real, function: Function, session: CK_SESSION_HANDLE) {
    let (mut input, mut output) = (INPUT, [0; OUTPUT_BYTES]);
    let (data, bytes) = (input.as_mut_ptr(), ulong(INPUT.len()));
    let (result, length) = (output.as_mut_ptr(), &mut ulong(OUTPUT_BYTES));
    macro_rules! end {
        ($($name:ident($($argument:expr),*)),+) => {{
            // SAFETY: input and output are our own and of these lengths.
            $(unsafe { ask!(real, $name(session $(, $argument)*)) };)+
        }};
    }
    use Function as F;
    match function {
        F::Encrypt => end!(C_Encrypt(data, bytes, result, length)),
        F::EncryptUpdate | F::EncryptFinal => end!(C_EncryptFinal(result, length)),
        F::Decrypt => end!(C_Decrypt(data, bytes, result, length)),
        F::DecryptUpdate | F::DecryptFinal => end!(C_DecryptFinal(result, length)),
        F::Digest => end!(C_Digest(data, bytes, result, length)),
        F::DigestUpdate | F::DigestKey | F::DigestFinal => end!(C_DigestFinal(result, length)),
        F::Sign => end!(C_Sign(data, bytes, result, length)),
        F::SignUpdate | F::SignFinal => end!(C_SignFinal(result, length)),
        F::SignRecover => end!(C_SignRecover(data, bytes, result, length)),
        F::Verify => end!(C_Verify(data, bytes, data, bytes)),
        F::VerifyUpdate | F::VerifyFinal => end!(C_VerifyFinal(data, bytes)),
        F::VerifyRecover => end!(C_VerifyRecover(data, bytes, result, length)),
        F::DigestEncryptUpdate => {
            end!(C_DigestFinal(result, length), C_EncryptFinal(result, &mut ulong(OUTPUT_BYTES)));
        }
        F::DecryptDigestUpdate => {
            end!(C_DecryptFinal(result, length), C_DigestFinal(result, &mut ulong(OUTPUT_BYTES)));
        }
        F::SignEncryptUpdate => {
            end!(C_SignFinal(result, length), C_EncryptFinal(result, &mut ulong(OUTPUT_BYTES)));
        }
        F::DecryptVerifyUpdate => end!(C_DecryptFinal(result, length), C_VerifyFinal(data, bytes)),
        F::FindObjectsFinal => end!(C_FindObjectsFinal()),
        // The others end nothing.
        _ => {}
    }
}
