//! What PKCS#11 return codes mean to the proxy (PKCS#11 2.40, section 5.1), as data.

use cryptoki::error::{Error, RvError};

use super::HsmError;

/// What to make of a return code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// On a decrypt: the tag does not fit.
    BadTag,
    /// A bad tag on some modules, a busy or broken HSM on others: only a known-good decrypt tells.
    BadTagOrFault,
    /// The object handle is no longer valid: the key is gone, or was made anew.
    KeyGone,
    /// The key exists but may not be used so.
    KeyNotPermitted,
    /// This session is of no more use; a new one may be.
    SessionLost,
    /// The login is gone for all sessions.
    LoginLost,
    /// The token or the module is gone.
    TokenLost,
    /// Anything else: not the caller's fault, and perhaps gone at the next try.
    Fault,
}

impl Meaning {
    /// A short word for metrics.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::BadTag => "bad_tag",
            Self::BadTagOrFault => "bad_tag_or_fault",
            Self::KeyGone => "key_gone",
            Self::KeyNotPermitted => "key_not_permitted",
            Self::SessionLost => "session_lost",
            Self::LoginLost => "login_lost",
            Self::TokenLost => "token_lost",
            Self::Fault => "fault",
        }
    }
}

/// In place of a return code: the helper process that the module was in is gone. No module says this.
pub(super) const HELPER_ENDED: RvError = RvError::UnknownErrorCode(u64::MAX);

/// Codes without a row are [`Meaning::Fault`].
const MEANINGS: [(RvError, Meaning); 25] = [
    (RvError::EncryptedDataInvalid, Meaning::BadTag),
    (RvError::EncryptedDataLenRange, Meaning::BadTag),
    (RvError::SignatureInvalid, Meaning::BadTag),
    // QUIRK(softhsm): SoftHSM2 2.6.1 says CKR_GENERAL_ERROR for a bad tag (SoftHSM.cpp, SymDecryptFinal).
    (RvError::GeneralError, Meaning::BadTagOrFault),
    // QUIRK(nshield, cloudhsm): a bad tag on nShield, a busy HSM on CloudHSM.
    (RvError::FunctionFailed, Meaning::BadTagOrFault),
    (RvError::KeyHandleInvalid, Meaning::KeyGone),
    (RvError::ObjectHandleInvalid, Meaning::KeyGone),
    (RvError::KeyFunctionNotPermitted, Meaning::KeyNotPermitted),
    (RvError::KeyTypeInconsistent, Meaning::KeyNotPermitted),
    (RvError::KeySizeRange, Meaning::KeyNotPermitted),
    (RvError::SessionHandleInvalid, Meaning::SessionLost),
    (RvError::SessionClosed, Meaning::SessionLost),
    // An operation that an earlier failure left behind goes with its session.
    (RvError::OperationActive, Meaning::SessionLost),
    (RvError::OperationNotInitialized, Meaning::SessionLost),
    (RvError::UserNotLoggedIn, Meaning::LoginLost),
    (RvError::DeviceRemoved, Meaning::TokenLost),
    (RvError::TokenNotPresent, Meaning::TokenLost),
    (RvError::TokenNotRecognized, Meaning::TokenLost),
    (RvError::SlotIdInvalid, Meaning::TokenLost),
    (RvError::CryptokiNotInitialized, Meaning::TokenLost),
    (HELPER_ENDED, Meaning::TokenLost),
    (RvError::DeviceError, Meaning::Fault),
    (RvError::DeviceMemory, Meaning::Fault),
    (RvError::HostMemory, Meaning::Fault),
    (RvError::SessionCount, Meaning::Fault),
];

/// What a return code means.
pub(super) fn meaning(code: RvError) -> Meaning {
    // PKCS#11 3.0 has a code of its own for a bad tag, which the bindings do not name.
    const CKR_AEAD_DECRYPT_FAILED: u64 = 0x42;
    if code == RvError::UnknownErrorCode(CKR_AEAD_DECRYPT_FAILED) {
        return Meaning::BadTag;
    }
    MEANINGS.iter().find(|(listed, _)| *listed == code).map_or(Meaning::Fault, |(_, meaning)| *meaning)
}

/// Whether the token, or its module, is out of order as a whole: what a module says that needs to be initialised anew.
pub(super) fn is_about_the_whole_token(code: RvError) -> bool {
    code == RvError::DeviceError || meaning(code) == Meaning::TokenLost
}

/// The same of a code by its name.
pub(super) fn names_whole_token(code: &str) -> bool {
    MEANINGS.iter().any(|(listed, _)| is_about_the_whole_token(*listed) && *name(*listed) == *code)
}

/// The return code behind an error of `cryptoki`; its own faults count as CKR_GENERAL_ERROR.
pub(super) const fn code_of(error: &Error) -> RvError {
    match error {
        Error::Pkcs11(code, _) => *code,
        _ => RvError::GeneralError,
    }
}

/// The code's name in PKCS#11, such as `CKR_GENERAL_ERROR`.
pub(super) fn name(code: RvError) -> Box<str> {
    match code {
        HELPER_ENDED => "no answer: the helper process of the module has ended".into(),
        RvError::VendorDefined(value) | RvError::UnknownErrorCode(value) => {
            format!("CKR 0x{value:08x}").into()
        }
        known => {
            let mut name = String::from("CKR");
            for letter in format!("{known:?}").chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name.into()
        }
    }
}

/// A call that failed for a reason that is not the caller's.
pub(super) fn device_error(call: &'static str, code: RvError) -> HsmError {
    HsmError::Device { call, code: name(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_standard() {
        assert_eq!(&*name(RvError::GeneralError), "CKR_GENERAL_ERROR");
        assert_eq!(&*name(RvError::KeyFunctionNotPermitted), "CKR_KEY_FUNCTION_NOT_PERMITTED");
        assert_eq!(&*name(RvError::VendorDefined(0x8000_0001)), "CKR 0x80000001");
    }

    #[test]
    fn no_code_has_two_meanings() {
        for (index, (code, _)) in MEANINGS.iter().enumerate() {
            assert!(MEANINGS[index + 1..].iter().all(|(other, _)| other != code), "{code:?}");
        }
        assert!(names_whole_token("CKR_DEVICE_ERROR") && names_whole_token("CKR_TOKEN_NOT_PRESENT"));
        assert!(!names_whole_token("CKR_PIN_INCORRECT") && !names_whole_token("CKR_FUNCTION_FAILED"));
        assert_eq!(meaning(RvError::UnknownErrorCode(0x42)), Meaning::BadTag);
        assert_eq!(meaning(RvError::DataLenRange), Meaning::Fault);
    }
}
