//! Return values, attribute types and mechanism types: numbers in C, names in a control file.

use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_RV};
use std::fmt;
use std::str::FromStr;

/// The text is neither a known name nor a hexadecimal number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is neither a known {prefix} name nor a hexadecimal number such as 0x80000001")]
pub struct UnknownName {
    text: String,
    prefix: &'static str,
}

macro_rules! named_number {
    ($(#[$doc:meta])* $type:ident($raw:ty), $prefix:literal, [$($name:ident),* $(,)?]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(pub $raw);

        impl $type {
            /// The known names with their numbers. Any other number is written in hexadecimal.
            pub const NAMES: &'static [(&'static str, $raw)] =
                &[$((stringify!($name), cryptoki_sys::$name)),*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match Self::NAMES.iter().find(|(_, number)| *number == self.0) {
                    Some((name, _)) => f.pad(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let named = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
                let number = || <$raw>::from_str_radix(text.strip_prefix("0x")?, 16).ok();
                named
                    .or_else(number)
                    .map(Self)
                    .ok_or_else(|| UnknownName { text: text.to_owned(), prefix: $prefix })
            }
        }
    };
}

named_number!(
    /// A return value, `CKR_…`: written by name where it has one, else in hexadecimal.
    Ckr(CK_RV),
    "CKR_",
    [
        CKR_OK, CKR_CANCEL, CKR_HOST_MEMORY, CKR_SLOT_ID_INVALID, CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED,
        CKR_ARGUMENTS_BAD, CKR_NO_EVENT, CKR_NEED_TO_CREATE_THREADS, CKR_CANT_LOCK, CKR_ATTRIBUTE_READ_ONLY,
        CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_VALUE_INVALID,
        CKR_ACTION_PROHIBITED, CKR_DATA_INVALID, CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY,
        CKR_DEVICE_REMOVED, CKR_ENCRYPTED_DATA_INVALID, CKR_ENCRYPTED_DATA_LEN_RANGE,
        CKR_AEAD_DECRYPT_FAILED, CKR_FUNCTION_CANCELED, CKR_FUNCTION_NOT_PARALLEL,
        CKR_FUNCTION_NOT_SUPPORTED, CKR_KEY_HANDLE_INVALID, CKR_KEY_SIZE_RANGE, CKR_KEY_TYPE_INCONSISTENT,
        CKR_KEY_NOT_NEEDED, CKR_KEY_CHANGED, CKR_KEY_NEEDED, CKR_KEY_INDIGESTIBLE,
        CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_KEY_NOT_WRAPPABLE, CKR_KEY_UNEXTRACTABLE, CKR_MECHANISM_INVALID,
        CKR_MECHANISM_PARAM_INVALID, CKR_OBJECT_HANDLE_INVALID, CKR_OPERATION_ACTIVE,
        CKR_OPERATION_NOT_INITIALIZED, CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE,
        CKR_PIN_EXPIRED, CKR_PIN_LOCKED, CKR_SESSION_CLOSED, CKR_SESSION_COUNT, CKR_SESSION_HANDLE_INVALID,
        CKR_SESSION_PARALLEL_NOT_SUPPORTED, CKR_SESSION_READ_ONLY, CKR_SESSION_EXISTS,
        CKR_SESSION_READ_ONLY_EXISTS, CKR_SESSION_READ_WRITE_SO_EXISTS, CKR_SIGNATURE_INVALID,
        CKR_SIGNATURE_LEN_RANGE, CKR_TEMPLATE_INCOMPLETE, CKR_TEMPLATE_INCONSISTENT, CKR_TOKEN_NOT_PRESENT,
        CKR_TOKEN_NOT_RECOGNIZED, CKR_TOKEN_WRITE_PROTECTED, CKR_UNWRAPPING_KEY_HANDLE_INVALID,
        CKR_UNWRAPPING_KEY_SIZE_RANGE, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, CKR_USER_ALREADY_LOGGED_IN,
        CKR_USER_NOT_LOGGED_IN, CKR_USER_PIN_NOT_INITIALIZED, CKR_USER_TYPE_INVALID,
        CKR_USER_ANOTHER_ALREADY_LOGGED_IN, CKR_USER_TOO_MANY_TYPES, CKR_WRAPPED_KEY_INVALID,
        CKR_WRAPPED_KEY_LEN_RANGE, CKR_WRAPPING_KEY_HANDLE_INVALID, CKR_WRAPPING_KEY_SIZE_RANGE,
        CKR_WRAPPING_KEY_TYPE_INCONSISTENT, CKR_RANDOM_SEED_NOT_SUPPORTED, CKR_RANDOM_NO_RNG,
        CKR_DOMAIN_PARAMS_INVALID, CKR_CURVE_NOT_SUPPORTED, CKR_BUFFER_TOO_SMALL, CKR_SAVED_STATE_INVALID,
        CKR_INFORMATION_SENSITIVE, CKR_STATE_UNSAVEABLE, CKR_CRYPTOKI_NOT_INITIALIZED,
        CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_MUTEX_BAD, CKR_MUTEX_NOT_LOCKED, CKR_NEW_PIN_MODE,
        CKR_NEXT_OTP, CKR_EXCEEDED_MAX_ITERATIONS, CKR_FIPS_SELF_TEST_FAILED, CKR_LIBRARY_LOAD_FAILED,
        CKR_PIN_TOO_WEAK, CKR_PUBLIC_KEY_INVALID, CKR_FUNCTION_REJECTED, CKR_TOKEN_RESOURCE_EXCEEDED,
        CKR_OPERATION_CANCEL_FAILED, CKR_KEY_EXHAUSTED, CKR_PENDING, CKR_SESSION_ASYNC_NOT_SUPPORTED,
        CKR_SEED_RANDOM_REQUIRED, CKR_OPERATION_NOT_VALIDATED, CKR_TOKEN_NOT_INITIALIZED,
        CKR_PARAMETER_SET_NOT_SUPPORTED, CKR_VENDOR_DEFINED,
    ]
);

named_number!(
    /// An attribute type, `CKA_…`: written by name where it is a usual one, else in hexadecimal.
    Attribute(CK_ATTRIBUTE_TYPE),
    "CKA_",
    [
        CKA_CLASS, CKA_TOKEN, CKA_PRIVATE, CKA_LABEL, CKA_UNIQUE_ID, CKA_APPLICATION, CKA_VALUE,
        CKA_OBJECT_ID, CKA_CERTIFICATE_TYPE, CKA_ISSUER, CKA_SERIAL_NUMBER, CKA_AC_ISSUER, CKA_OWNER,
        CKA_ATTR_TYPES, CKA_TRUSTED, CKA_CERTIFICATE_CATEGORY, CKA_URL, CKA_HASH_OF_SUBJECT_PUBLIC_KEY,
        CKA_HASH_OF_ISSUER_PUBLIC_KEY, CKA_NAME_HASH_ALGORITHM, CKA_CHECK_VALUE, CKA_KEY_TYPE, CKA_SUBJECT,
        CKA_ID, CKA_SENSITIVE, CKA_ENCRYPT, CKA_DECRYPT, CKA_WRAP, CKA_UNWRAP, CKA_SIGN, CKA_SIGN_RECOVER,
        CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_DERIVE, CKA_START_DATE, CKA_END_DATE, CKA_MODULUS,
        CKA_MODULUS_BITS, CKA_PUBLIC_EXPONENT, CKA_PRIVATE_EXPONENT, CKA_PRIME_1, CKA_PRIME_2,
        CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_COEFFICIENT, CKA_PUBLIC_KEY_INFO, CKA_PRIME, CKA_SUBPRIME,
        CKA_BASE, CKA_PRIME_BITS, CKA_SUBPRIME_BITS, CKA_VALUE_BITS, CKA_VALUE_LEN, CKA_EXTRACTABLE,
        CKA_LOCAL, CKA_NEVER_EXTRACTABLE, CKA_ALWAYS_SENSITIVE, CKA_KEY_GEN_MECHANISM, CKA_MODIFIABLE,
        CKA_COPYABLE, CKA_DESTROYABLE, CKA_EC_PARAMS, CKA_EC_POINT, CKA_ALWAYS_AUTHENTICATE,
        CKA_WRAP_WITH_TRUSTED, CKA_MECHANISM_TYPE, CKA_VENDOR_DEFINED, CKA_WRAP_TEMPLATE,
        CKA_UNWRAP_TEMPLATE, CKA_DERIVE_TEMPLATE, CKA_ALLOWED_MECHANISMS,
    ]
);

named_number!(
    /// A mechanism type, `CKM_…`: written by name where it is a usual one, else in hexadecimal.
    Mechanism(CK_MECHANISM_TYPE),
    "CKM_",
    [
        CKM_AES_KEY_GEN, CKM_AES_ECB, CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_CTR, CKM_AES_GCM, CKM_AES_CCM,
        CKM_AES_CMAC, CKM_AES_GMAC, CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_PAD, CKM_AES_KEY_WRAP_KWP,
        CKM_GENERIC_SECRET_KEY_GEN, CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP,
        CKM_RSA_PKCS_PSS, CKM_SHA256_RSA_PKCS, CKM_EC_KEY_PAIR_GEN, CKM_ECDSA, CKM_ECDSA_SHA256,
        CKM_ECDH1_DERIVE, CKM_SHA_1, CKM_SHA256, CKM_SHA384, CKM_SHA512, CKM_SHA256_HMAC, CKM_SHA384_HMAC,
        CKM_SHA512_HMAC,
    ]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for &(name, number) in Ckr::NAMES {
            assert_eq!(name.parse(), Ok(Ckr(number)));
            assert_eq!(Ckr(number).to_string().parse(), Ok(Ckr(number)));
        }
        assert_eq!(Ckr(cryptoki_sys::CKR_DEVICE_ERROR).to_string(), "CKR_DEVICE_ERROR");
        assert_eq!("0x30".parse(), Ok(Ckr(cryptoki_sys::CKR_DEVICE_ERROR)));
        assert_eq!(Ckr(0x8000_0001).to_string(), "0x80000001");
        assert_eq!("CKA_VALUE_LEN".parse(), Ok(Attribute(cryptoki_sys::CKA_VALUE_LEN)));
        assert_eq!("CKM_AES_GCM".parse(), Ok(Mechanism(cryptoki_sys::CKM_AES_GCM)));
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "48", "0x", "0xg", "-0x1", "CKR_", "CKR_NO_SUCH", "CKA_VALUE", "device_error"] {
            assert!(text.parse::<Ckr>().is_err(), "{text}");
        }
    }
}
