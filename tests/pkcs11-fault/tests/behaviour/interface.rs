//! The C interface itself: all 68 functions, forwarded, counted, and failing on demand.

// The functions are called as C programs do.
#![allow(unsafe_code)]

use crate::support::*;
use cryptoki_sys::*;
use libloading::os::unix::Library;
use pkcs11_fault::{Ckr, Fault, Function, GcmIv, Rule};
use std::path::Path;
use std::thread;

/// The function list of a module that stays loaded.
fn function_list(path: &Path) -> CK_FUNCTION_LIST {
    type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
    // SAFETY: a PKCS#11 module.
    let library = unsafe { Library::new(path) }.unwrap();
    // SAFETY: the function has this type in every PKCS#11 module.
    let get = unsafe { library.get::<GetFunctionList>(b"C_GetFunctionList") }.unwrap();
    let mut list = std::ptr::null_mut();
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { get(&mut list) }, CKR_OK);
    // SAFETY: the module's list, which stays as long as the module.
    let list = unsafe { *list };
    std::mem::forget(library);
    list
}

/// An argument that is NULL or 0, whatever its type.
trait Nothing {
    const NOTHING: Self;
}

macro_rules! nothing {
    ($($type:ty),*) => { $(impl Nothing for $type { const NOTHING: Self = 0; })* };
}

nothing!(CK_BBOOL, CK_ULONG);

impl<T> Nothing for *mut T {
    const NOTHING: Self = std::ptr::null_mut();
}

impl<T> Nothing for Option<T> {
    const NOTHING: Self = None;
}

/// Calls a function with arguments that are NULL or 0.
fn call(list: &CK_FUNCTION_LIST, function: Function) -> CK_RV {
    macro_rules! calls {
        ($($function:ident $name:ident $($n:ident)*;)*) => {
            match function {
                $(Function::$function => {
                    let entry = list.$name.expect("every function is there");
                    // SAFETY: no module looks behind NULL before it is initialised.
                    unsafe { entry($(calls!(@ $n)),*) }
                })*
            }
        };
        (@ $n:ident) => { Nothing::NOTHING };
    }
    calls! {
        Initialize C_Initialize a; Finalize C_Finalize a; GetInfo C_GetInfo a;
        GetFunctionList C_GetFunctionList a; GetSlotList C_GetSlotList a b c; GetSlotInfo C_GetSlotInfo a b;
        GetTokenInfo C_GetTokenInfo a b; GetMechanismList C_GetMechanismList a b c;
        GetMechanismInfo C_GetMechanismInfo a b c; InitToken C_InitToken a b c d; InitPIN C_InitPIN a b c;
        SetPIN C_SetPIN a b c d e; OpenSession C_OpenSession a b c d e; CloseSession C_CloseSession a;
        CloseAllSessions C_CloseAllSessions a; GetSessionInfo C_GetSessionInfo a b;
        GetOperationState C_GetOperationState a b c; SetOperationState C_SetOperationState a b c d e;
        Login C_Login a b c d; Logout C_Logout a; CreateObject C_CreateObject a b c d;
        CopyObject C_CopyObject a b c d e; DestroyObject C_DestroyObject a b; GetObjectSize C_GetObjectSize a b c;
        GetAttributeValue C_GetAttributeValue a b c d; SetAttributeValue C_SetAttributeValue a b c d;
        FindObjectsInit C_FindObjectsInit a b c; FindObjects C_FindObjects a b c d;
        FindObjectsFinal C_FindObjectsFinal a; EncryptInit C_EncryptInit a b c; Encrypt C_Encrypt a b c d e;
        EncryptUpdate C_EncryptUpdate a b c d e; EncryptFinal C_EncryptFinal a b c;
        DecryptInit C_DecryptInit a b c; Decrypt C_Decrypt a b c d e; DecryptUpdate C_DecryptUpdate a b c d e;
        DecryptFinal C_DecryptFinal a b c; DigestInit C_DigestInit a b; Digest C_Digest a b c d e;
        DigestUpdate C_DigestUpdate a b c; DigestKey C_DigestKey a b; DigestFinal C_DigestFinal a b c;
        SignInit C_SignInit a b c; Sign C_Sign a b c d e; SignUpdate C_SignUpdate a b c; SignFinal C_SignFinal a b c;
        SignRecoverInit C_SignRecoverInit a b c; SignRecover C_SignRecover a b c d e; VerifyInit C_VerifyInit a b c;
        Verify C_Verify a b c d e; VerifyUpdate C_VerifyUpdate a b c; VerifyFinal C_VerifyFinal a b c;
        VerifyRecoverInit C_VerifyRecoverInit a b c; VerifyRecover C_VerifyRecover a b c d e;
        DigestEncryptUpdate C_DigestEncryptUpdate a b c d e; DecryptDigestUpdate C_DecryptDigestUpdate a b c d e;
        SignEncryptUpdate C_SignEncryptUpdate a b c d e; DecryptVerifyUpdate C_DecryptVerifyUpdate a b c d e;
        GenerateKey C_GenerateKey a b c d e; GenerateKeyPair C_GenerateKeyPair a b c d e f g h;
        WrapKey C_WrapKey a b c d e f; UnwrapKey C_UnwrapKey a b c d e f g h; DeriveKey C_DeriveKey a b c d e f;
        SeedRandom C_SeedRandom a b c; GenerateRandom C_GenerateRandom a b c;
        GetFunctionStatus C_GetFunctionStatus a; CancelFunction C_CancelFunction a;
        WaitForSlotEvent C_WaitForSlotEvent a b c;
    }
}

/// The functions that answer without an initialised module.
const BEFORE_INITIALISATION: [Function; 2] = [Function::Initialize, Function::GetFunctionList];

staged! {
    fn every_function_is_forwarded_and_counted(stage) {
        let real = function_list(&softhsm());
        let fault = function_list(&module());
        assert_eq!((fault.version.major, fault.version.minor), (2, 40));
        for function in Function::ALL.into_iter().filter(|function| !BEFORE_INITIALISATION.contains(function)) {
            let before = stage.counts().calls(function);
            assert_eq!(Ckr(call(&fault, function)), Ckr(call(&real, function)), "{function}");
            assert_eq!(stage.counts().calls(function), before + 1, "{function}");
            assert_eq!(stage.counts().inside(function), 0, "{function}");
        }
        // Two names of one module, so it is initialised through either.
        assert_eq!(call(&fault, Function::Initialize), CKR_OK);
        assert_eq!(call(&real, Function::Initialize), CKR_CRYPTOKI_ALREADY_INITIALIZED);
        assert_eq!(call(&fault, Function::Initialize), CKR_CRYPTOKI_ALREADY_INITIALIZED);
        assert_eq!(call(&real, Function::Finalize), CKR_OK);
        assert_eq!(call(&fault, Function::GetFunctionList), CKR_ARGUMENTS_BAD);
    }

    fn every_function_fails_on_demand(stage) {
        let fault = function_list(&module());
        for function in Function::ALL {
            let rule = Rule::new(Fault::Fail(Ckr(0x8000_0000 + function as CK_RV))).on(function);
            stage.rule(&rule);
            assert_eq!(call(&fault, function), 0x8000_0000 + function as CK_RV, "{function}");
            assert_eq!(stage.fired(&rule), 1);
        }
        let everything = Rule::new(Fault::Fail(Ckr(CKR_DEVICE_ERROR)));
        stage.rule(&everything);
        for function in Function::ALL {
            let expected = if function == Function::GetFunctionList { CKR_ARGUMENTS_BAD } else { CKR_DEVICE_ERROR };
            assert_eq!(call(&fault, function), expected, "{function}");
        }
        assert_eq!(stage.fired(&everything), 67);
        stage.control.clear().unwrap();
        assert_eq!(call(&fault, Function::GetInfo), CKR_CRYPTOKI_NOT_INITIALIZED);
    }

    fn every_return_value_can_be_had(stage) {
        let fault = function_list(&module());
        for &(name, value) in Ckr::NAMES {
            stage.control.write_text(&format!("C_GetInfo fail={name}\n")).unwrap();
            assert_eq!(call(&fault, Function::GetInfo), value, "{name}");
        }
    }

    fn calls_inside_at_once_are_counted(stage) {
        let token = stage.token();
        let sessions: Vec<_> = (0..5).map(|_| token.open()).collect();
        let rule = Rule::new(Fault::Hang(pkcs11_fault::Hang::UntilRemoved)).on(Function::GenerateRandom);
        stage.rule(&rule);
        thread::scope(|scope| {
            for session in sessions {
                scope.spawn(move || session.generate_random_vec(4).unwrap());
            }
            eventually("all are inside", || stage.counts().inside(Function::GenerateRandom) == 5);
            stage.control.clear().unwrap();
        });
        let counts = stage.counts();
        assert_eq!(counts.most_inside(Function::GenerateRandom), 5);
        assert_eq!(counts.inside(Function::GenerateRandom), 0);
        assert_eq!(counts.calls(Function::GenerateRandom), 5);
        assert_eq!(counts.most_inside(Function::Login), 1);
    }

    /// The appended IV counts in every length that the module returns.
    fn an_appended_iv_needs_its_room(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key").handle();
        stage.rule(&Rule::new(Fault::GcmIv(GcmIv::Appended)));
        let list = function_list(&module());
        let mut parameters = CK_GCM_PARAMS {
            pIv: std::ptr::null_mut(),
            ulIvLen: 0,
            ulIvBits: 0,
            pAAD: AAD.as_ptr().cast_mut(),
            ulAADLen: AAD.len().try_into().unwrap(),
            ulTagBits: 128,
        };
        let mut mechanism = CK_MECHANISM {
            mechanism: CKM_AES_GCM,
            pParameter: (&raw mut parameters).cast(),
            ulParameterLen: size_of::<CK_GCM_PARAMS>().try_into().unwrap(),
        };
        // SAFETY: parameters as the standard wants them.
        let rv = unsafe { list.C_EncryptInit.unwrap()(session.handle(), &mut mechanism, key) };
        assert_eq!(rv, CKR_OK);
        let needed = PLAINTEXT.len() + TAG_BYTES + 16;
        let mut output = vec![0xee; needed + 1];
        let mut encrypt = |room: usize, is_query: bool| {
            let (data, bytes) = (PLAINTEXT.as_ptr().cast_mut(), PLAINTEXT.len().try_into().unwrap());
            let place = if is_query { std::ptr::null_mut() } else { output.as_mut_ptr() };
            let mut length = room.try_into().unwrap();
            // SAFETY: input and output of the given lengths.
            let rv = unsafe { list.C_Encrypt.unwrap()(session.handle(), data, bytes, place, &mut length) };
            (Ckr(rv), usize::try_from(length).unwrap())
        };
        assert_eq!(encrypt(0, true), (Ckr(CKR_OK), needed));
        for room in [0, 15, 16, PLAINTEXT.len() + TAG_BYTES, needed - 1] {
            assert_eq!(encrypt(room, false), (Ckr(CKR_BUFFER_TOO_SMALL), needed), "{room}");
        }
        assert_eq!(encrypt(needed, false), (Ckr(CKR_OK), needed));
        assert_eq!(output[needed], 0xee);
        let (ciphertext, iv) = output[..needed].split_at(PLAINTEXT.len() + TAG_BYTES);
        assert_eq!(decrypt_with(&session, find_key(&session, "key"), iv, ciphertext).unwrap(), PLAINTEXT);
    }

    /// Without faults the module is not to be seen: handles are the real module's own.
    fn handles_are_the_real_ones(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let real = function_list(&softhsm());
        let mut size = 0;
        // SAFETY: a place for the answer.
        let rv = unsafe { real.C_GetObjectSize.unwrap()(session.handle(), key.handle(), &mut size) };
        assert_eq!(rv, CKR_OK);
    }
}
