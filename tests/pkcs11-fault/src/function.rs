//! The 68 functions of the PKCS#11 v2.40 function list, and what each of them works on.

use std::fmt;
use std::str::FromStr;

macro_rules! functions {
    ($($name:ident),* $(,)?) => {
        /// A function of the PKCS#11 v2.40 function list, named without its `C_`.
        ///
        /// [`Display`](fmt::Display) and [`FromStr`] use the C name, such as `C_Encrypt`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Function {
            $(#[doc = concat!("`C_", stringify!($name), "`")] $name),*
        }

        impl Function {
            /// Every function, in the order of `CK_FUNCTION_LIST`.
            pub const ALL: [Function; 68] = [$(Function::$name),*];

            /// The C name.
            pub const fn name(self) -> &'static str {
                match self { $(Function::$name => concat!("C_", stringify!($name))),* }
            }
        }
    };
}

functions![
    Initialize,
    Finalize,
    GetInfo,
    GetFunctionList,
    GetSlotList,
    GetSlotInfo,
    GetTokenInfo,
    GetMechanismList,
    GetMechanismInfo,
    InitToken,
    InitPIN,
    SetPIN,
    OpenSession,
    CloseSession,
    CloseAllSessions,
    GetSessionInfo,
    GetOperationState,
    SetOperationState,
    Login,
    Logout,
    CreateObject,
    CopyObject,
    DestroyObject,
    GetObjectSize,
    GetAttributeValue,
    SetAttributeValue,
    FindObjectsInit,
    FindObjects,
    FindObjectsFinal,
    EncryptInit,
    Encrypt,
    EncryptUpdate,
    EncryptFinal,
    DecryptInit,
    Decrypt,
    DecryptUpdate,
    DecryptFinal,
    DigestInit,
    Digest,
    DigestUpdate,
    DigestKey,
    DigestFinal,
    SignInit,
    Sign,
    SignUpdate,
    SignFinal,
    SignRecoverInit,
    SignRecover,
    VerifyInit,
    Verify,
    VerifyUpdate,
    VerifyFinal,
    VerifyRecoverInit,
    VerifyRecover,
    DigestEncryptUpdate,
    DecryptDigestUpdate,
    SignEncryptUpdate,
    DecryptVerifyUpdate,
    GenerateKey,
    GenerateKeyPair,
    WrapKey,
    UnwrapKey,
    DeriveKey,
    SeedRandom,
    GenerateRandom,
    GetFunctionStatus,
    CancelFunction,
    WaitForSlotEvent,
];

/// A kind of cryptographic operation that a session keeps active between its `Init` and its last call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Encrypt,
    Decrypt,
    Sign,
    SignRecover,
    Verify,
    VerifyRecover,
}

impl Function {
    /// Whether a call concerns one slot, directly or through its session.
    pub(crate) const fn concerns_slot(self) -> bool {
        !matches!(
            self,
            Function::Initialize
                | Function::Finalize
                | Function::GetInfo
                | Function::GetFunctionList
                | Function::GetSlotList
                | Function::WaitForSlotEvent
        )
    }

    /// Whether a call concerns one object: through a handle argument, or through the key of the active operation.
    pub(crate) const fn concerns_object(self) -> bool {
        self.operation().is_some()
            || matches!(
                self,
                Function::CopyObject
                    | Function::DestroyObject
                    | Function::GetObjectSize
                    | Function::GetAttributeValue
                    | Function::SetAttributeValue
                    | Function::DigestKey
                    | Function::WrapKey
                    | Function::UnwrapKey
                    | Function::DeriveKey
            )
    }

    /// The keyed operation that the function begins, continues or ends.
    pub(crate) const fn operation(self) -> Option<Operation> {
        Some(match self {
            Function::EncryptInit
            | Function::Encrypt
            | Function::EncryptUpdate
            | Function::EncryptFinal
            | Function::DigestEncryptUpdate
            | Function::SignEncryptUpdate => Operation::Encrypt,
            Function::DecryptInit
            | Function::Decrypt
            | Function::DecryptUpdate
            | Function::DecryptFinal
            | Function::DecryptDigestUpdate
            | Function::DecryptVerifyUpdate => Operation::Decrypt,
            Function::SignInit | Function::Sign | Function::SignUpdate | Function::SignFinal => {
                Operation::Sign
            }
            Function::SignRecoverInit | Function::SignRecover => Operation::SignRecover,
            Function::VerifyInit | Function::Verify | Function::VerifyUpdate | Function::VerifyFinal => {
                Operation::Verify
            }
            Function::VerifyRecoverInit | Function::VerifyRecover => Operation::VerifyRecover,
            _ => return None,
        })
    }

    /// Whether a token that lost its login refuses the call. Searches and digests work without a login.
    pub(crate) const fn needs_login(self) -> bool {
        self.concerns_object()
            || matches!(self, Function::CreateObject | Function::GenerateKey | Function::GenerateKeyPair)
    }

    /// Whether the function makes the token work on data: what a busy token refuses.
    pub(crate) const fn is_work(self) -> bool {
        matches!(
            self,
            Function::Encrypt
                | Function::EncryptUpdate
                | Function::EncryptFinal
                | Function::Decrypt
                | Function::DecryptUpdate
                | Function::DecryptFinal
                | Function::Sign
                | Function::SignUpdate
                | Function::SignFinal
                | Function::Verify
                | Function::VerifyUpdate
                | Function::VerifyFinal
                | Function::GenerateKey
                | Function::GenerateKeyPair
                | Function::WrapKey
                | Function::UnwrapKey
                | Function::DeriveKey
        )
    }

    /// Whether the function takes a mechanism.
    pub(crate) const fn takes_mechanism(self) -> bool {
        matches!(
            self,
            Function::GetMechanismInfo
                | Function::EncryptInit
                | Function::DecryptInit
                | Function::DigestInit
                | Function::SignInit
                | Function::SignRecoverInit
                | Function::VerifyInit
                | Function::VerifyRecoverInit
                | Function::GenerateKey
                | Function::GenerateKeyPair
                | Function::WrapKey
                | Function::UnwrapKey
                | Function::DeriveKey
        )
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the C name of one of the 68 functions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a function of PKCS#11 v2.40, such as C_Encrypt")]
pub struct UnknownFunction(String);

impl FromStr for Function {
    type Err = UnknownFunction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Function::ALL
            .into_iter()
            .find(|function| function.name() == text)
            .ok_or_else(|| UnknownFunction(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for function in Function::ALL {
            assert_eq!(function.to_string().parse(), Ok(function));
        }
        assert_eq!("C_InitPIN".parse(), Ok(Function::InitPIN));
        assert!("Encrypt".parse::<Function>().is_err());
    }

    #[test]
    fn positions_are_indices() {
        for (index, function) in Function::ALL.into_iter().enumerate() {
            assert_eq!(function as usize, index);
        }
    }
}
