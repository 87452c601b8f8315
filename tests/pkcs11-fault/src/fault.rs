//! The ways in which the module can misbehave.

use crate::function::Function;
use crate::names::{Attribute, Ckr, Mechanism};
use std::fmt;
use std::str::FromStr;

/// One way to misbehave, with its parameters.
///
/// The enum is exhaustive on purpose: a `match` over it, or over [`FaultKind`], stops compiling when a fault is
/// added, so a test matrix cannot forget one.
///
/// A fault marked *event* happens once, at the first call that matches its rule, unless the rule's
/// [`times`](crate::Rule::times) says otherwise; what it did stays done when the rule is removed. Every other
/// fault holds as long as its rule is in the control file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Sleep this many milliseconds, then go on.
    DelayMs(u64),
    /// Block inside the call.
    Hang(Hang),
    /// Answer with this value; the real module is not called.
    Fail(Ckr),
    /// Call the real module, then answer with this value in place of its own.
    ForwardThenFail(Ckr),
    /// Abort the process (`SIGABRT`) inside the call.
    Abort,
    /// Leave this many KiB of memory behind, in RAM, then go on.
    LeakKib(u64),
    /// Refuse the calls that make the token work on data, as a token does that has too much to do.
    Busy(Ckr),
    /// Event: every open session becomes invalid, and with the sessions goes the login.
    DropSessions,
    /// Event: the token is logged out, and answers `CKR_USER_NOT_LOGGED_IN` until the next `C_Login`.
    ForgetLogins,
    /// Event: every object handle that was handed out becomes invalid; a new search hands out new ones.
    InvalidateHandles,
    /// Event: handles of objects of the same class and key type change places, silently.
    PermuteHandles,
    /// Event: every call answers with this value until `C_Finalize` and `C_Initialize`.
    NeedReinit(Ckr),
    /// Flip a bit in what an encryption or decryption returns.
    Corrupt(Corrupt),
    /// The token is not in its slot. `None` answers `CKR_TOKEN_NOT_PRESENT` to calls that name a slot and
    /// `CKR_DEVICE_REMOVED` to calls that name a session.
    RemoveToken(Option<Ckr>),
    /// The AES key with the rule's label has another value. The value depends on the label alone, so it is the same
    /// in every session and process.
    OtherValue,
    /// Treat the IV of `CKM_AES_GCM` encryptions as a vendor's module does.
    GcmIv(GcmIv),
    /// `C_GenerateRandom` returns bytes that are not random.
    Random(Random),
    /// Report an AES-GCM decryption that failed on its data with this value.
    BadTag(Ckr),
    /// Set a flag in what `C_GetTokenInfo` reports.
    TokenFlag(TokenFlag),
    /// The token does not have this mechanism: neither listed nor usable.
    HideMechanism(Mechanism),
    /// `C_OpenSession` answers `CKR_SESSION_COUNT` while this many sessions are open with the token.
    SessionLimit(u64),
    /// `C_OpenSession` refuses a session that is not read-write (AWS CloudHSM).
    RefuseReadOnly(Ckr),
    /// `C_GetAttributeValue` reports this attribute as unavailable.
    HideAttribute {
        /// The attribute type.
        attribute: Attribute,
        /// What the call answers: `CKR_ATTRIBUTE_TYPE_INVALID` and `CKR_ATTRIBUTE_SENSITIVE` are the standard's,
        /// `CKR_OK` hides it silently.
        answer: Ckr,
    },
}

macro_rules! fault_kinds {
    ($($name:ident = $keyword:literal),* $(,)?) => {
        /// A [`Fault`] without its parameters: the rows of a fault matrix.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FaultKind {
            $(#[doc = concat!("`", $keyword, "`, see [`Fault::", stringify!($name), "`]")] $name),*
        }

        impl FaultKind {
            /// Every kind.
            pub const ALL: &'static [FaultKind] = &[$(FaultKind::$name),*];

            /// The word for it in a control file.
            pub const fn keyword(self) -> &'static str {
                match self { $(FaultKind::$name => $keyword),* }
            }
        }
    };
}

fault_kinds! {
    DelayMs = "delay_ms",
    Hang = "hang",
    Fail = "fail",
    ForwardThenFail = "forward_then_fail",
    Abort = "abort",
    LeakKib = "leak_kib",
    Busy = "busy",
    DropSessions = "drop_sessions",
    ForgetLogins = "forget_logins",
    InvalidateHandles = "invalidate_handles",
    PermuteHandles = "permute_handles",
    NeedReinit = "need_reinit",
    Corrupt = "corrupt",
    RemoveToken = "remove_token",
    OtherValue = "other_value",
    GcmIv = "gcm_iv",
    Random = "random",
    BadTag = "bad_tag",
    TokenFlag = "token_flag",
    HideMechanism = "hide_mechanism",
    SessionLimit = "session_limit",
    RefuseReadOnly = "refuse_read_only",
    HideAttribute = "hide_attribute",
}

macro_rules! keywords {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $name:ident = $keyword:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$variant_doc])* $name),* }

        impl $type {
            /// Every variant.
            pub const ALL: &'static [$type] = &[$($type::$name),*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($type::$name => $keyword),* })
            }
        }

        impl FromStr for $type {
            type Err = UnknownKeyword;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($keyword => Ok($type::$name),)*
                    _ => Err(UnknownKeyword { text: text.to_owned(), expected: &[$($keyword),*] }),
                }
            }
        }
    };
}

/// The text is not one of a fault's keywords.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not one of {expected:?}")]
pub struct UnknownKeyword {
    text: String,
    expected: &'static [&'static str],
}

keywords!(
    /// How long a [`Fault::Hang`] blocks.
    Hang {
        /// Until the rule disappears from the control file; the call then goes on as if nothing had happened.
        UntilRemoved = "until_removed",
        /// Until the process ends.
        Forever = "forever",
    }
);

keywords!(
    /// Which part of an output [`Fault::Corrupt`] changes.
    Corrupt {
        /// The first byte of the ciphertext proper, of any mechanism.
        Ciphertext = "ciphertext",
        /// The last byte of an AES-GCM authentication tag.
        Tag = "tag",
        /// The first byte of what a decryption returns.
        Plaintext = "plaintext",
        /// How long it is: one byte less is said to have been decrypted than there is.
        Length = "length",
    }
);

keywords!(
    /// What becomes of the IV of an AES-GCM encryption. Decryption always takes the caller's.
    GcmIv {
        /// The caller passes 12 zero bytes; the module makes a random IV and writes it there when `C_Encrypt` or
        /// `C_EncryptFinal` succeeds (AWS CloudHSM, Entrust nShield). Any other IV is `CKR_MECHANISM_PARAM_INVALID`.
        WrittenBack = "written_back",
        /// The IV is all zeros, of the caller's length, whatever the caller passed; nothing is written back.
        Zeros = "zeros",
        /// The caller passes no IV (NULL and length 0); the module makes one of 16 random bytes and appends it:
        /// ciphertext ‖ tag ‖ IV (Thales Luna in FIPS mode). Any other IV is `CKR_MECHANISM_PARAM_INVALID`.
        Appended = "appended",
        /// As [`GcmIv::WrittenBack`], with the same IV every time.
        Repeated = "repeated",
        /// As [`GcmIv::Appended`], with the same IV every time.
        AppendedRepeated = "appended_repeated",
    }
);

keywords!(
    /// What `C_GenerateRandom` returns in place of random bytes.
    Random {
        /// Zeros.
        Zeros = "zeros",
        /// The same bytes at every call.
        Repeated = "repeated",
    }
);

keywords!(
    /// A flag of `CK_TOKEN_INFO`.
    TokenFlag {
        /// A wrong PIN was given at least once.
        UserPinCountLow = "CKF_USER_PIN_COUNT_LOW",
        /// One more wrong PIN locks the user out.
        UserPinFinalTry = "CKF_USER_PIN_FINAL_TRY",
        /// The user is locked out.
        UserPinLocked = "CKF_USER_PIN_LOCKED",
    }
);

impl TokenFlag {
    /// The flag's bit.
    pub const fn bit(self) -> cryptoki_sys::CK_FLAGS {
        match self {
            TokenFlag::UserPinCountLow => cryptoki_sys::CKF_USER_PIN_COUNT_LOW,
            TokenFlag::UserPinFinalTry => cryptoki_sys::CKF_USER_PIN_FINAL_TRY,
            TokenFlag::UserPinLocked => cryptoki_sys::CKF_USER_PIN_LOCKED,
        }
    }
}

impl Fault {
    /// The fault without its parameters.
    pub const fn kind(&self) -> FaultKind {
        match self {
            Fault::DelayMs(_) => FaultKind::DelayMs,
            Fault::Hang(_) => FaultKind::Hang,
            Fault::Fail(_) => FaultKind::Fail,
            Fault::ForwardThenFail(_) => FaultKind::ForwardThenFail,
            Fault::Abort => FaultKind::Abort,
            Fault::LeakKib(_) => FaultKind::LeakKib,
            Fault::Busy(_) => FaultKind::Busy,
            Fault::DropSessions => FaultKind::DropSessions,
            Fault::ForgetLogins => FaultKind::ForgetLogins,
            Fault::InvalidateHandles => FaultKind::InvalidateHandles,
            Fault::PermuteHandles => FaultKind::PermuteHandles,
            Fault::NeedReinit(_) => FaultKind::NeedReinit,
            Fault::Corrupt(_) => FaultKind::Corrupt,
            Fault::RemoveToken(_) => FaultKind::RemoveToken,
            Fault::OtherValue => FaultKind::OtherValue,
            Fault::GcmIv(_) => FaultKind::GcmIv,
            Fault::Random(_) => FaultKind::Random,
            Fault::BadTag(_) => FaultKind::BadTag,
            Fault::TokenFlag(_) => FaultKind::TokenFlag,
            Fault::HideMechanism(_) => FaultKind::HideMechanism,
            Fault::SessionLimit(_) => FaultKind::SessionLimit,
            Fault::RefuseReadOnly(_) => FaultKind::RefuseReadOnly,
            Fault::HideAttribute { .. } => FaultKind::HideAttribute,
        }
    }

    /// Whether the fault is an event: it happens once, and what it did outlives its rule.
    pub const fn is_event(&self) -> bool {
        matches!(
            self,
            Fault::DropSessions
                | Fault::ForgetLogins
                | Fault::InvalidateHandles
                | Fault::PermuteHandles
                | Fault::NeedReinit(_)
        )
    }

    /// Whether a call of the function can meet the fault. A rule that names any other function is refused.
    pub const fn acts_in(&self, function: Function) -> bool {
        use Function as F;
        match self {
            Fault::DelayMs(_)
            | Fault::Hang(_)
            | Fault::Fail(_)
            | Fault::ForwardThenFail(_)
            | Fault::Abort
            | Fault::LeakKib(_) => true,
            Fault::Busy(_) => function.is_work(),
            Fault::DropSessions | Fault::ForgetLogins | Fault::InvalidateHandles | Fault::PermuteHandles => {
                !matches!(function, F::GetFunctionList)
            }
            Fault::NeedReinit(_) => !matches!(function, F::GetFunctionList | F::Initialize | F::Finalize),
            Fault::Corrupt(Corrupt::Ciphertext) => {
                matches!(function, F::Encrypt | F::EncryptUpdate | F::EncryptFinal)
            }
            Fault::Corrupt(Corrupt::Tag) => matches!(function, F::Encrypt | F::EncryptFinal),
            Fault::Corrupt(Corrupt::Plaintext) => {
                matches!(function, F::Decrypt | F::DecryptUpdate | F::DecryptFinal)
            }
            Fault::Corrupt(Corrupt::Length) => matches!(function, F::Decrypt),
            Fault::RemoveToken(_) => function.concerns_slot() || matches!(function, F::GetSlotList),
            Fault::OtherValue => matches!(
                function,
                F::EncryptInit
                    | F::DecryptInit
                    | F::SignInit
                    | F::VerifyInit
                    | F::WrapKey
                    | F::UnwrapKey
                    | F::DeriveKey
                    | F::GetAttributeValue
            ),
            Fault::GcmIv(_) => matches!(function, F::EncryptInit),
            Fault::Random(_) => matches!(function, F::GenerateRandom),
            Fault::BadTag(_) => matches!(function, F::Decrypt | F::DecryptFinal),
            Fault::TokenFlag(_) => matches!(function, F::GetTokenInfo),
            Fault::HideMechanism(_) => function.takes_mechanism() || matches!(function, F::GetMechanismList),
            Fault::SessionLimit(_) | Fault::RefuseReadOnly(_) => matches!(function, F::OpenSession),
            Fault::HideAttribute { .. } => matches!(function, F::GetAttributeValue),
        }
    }

    /// Whether a rule may narrow the fault to one object label.
    pub(crate) const fn takes_label(&self) -> bool {
        match self {
            Fault::DelayMs(_)
            | Fault::Hang(_)
            | Fault::Fail(_)
            | Fault::ForwardThenFail(_)
            | Fault::Abort
            | Fault::LeakKib(_)
            | Fault::Busy(_)
            | Fault::Corrupt(_)
            | Fault::OtherValue
            | Fault::GcmIv(_)
            | Fault::BadTag(_)
            | Fault::HideAttribute { .. } => true,
            Fault::DropSessions
            | Fault::ForgetLogins
            | Fault::InvalidateHandles
            | Fault::PermuteHandles
            | Fault::NeedReinit(_)
            | Fault::RemoveToken(_)
            | Fault::Random(_)
            | Fault::TokenFlag(_)
            | Fault::HideMechanism(_)
            | Fault::SessionLimit(_)
            | Fault::RefuseReadOnly(_) => false,
        }
    }
}
