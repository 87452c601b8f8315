//! AES-GCM by exactly two PKCS#11 calls, init and work, into one buffer of ours, and a key's attributes by one.
//!
//! `cryptoki` asks for the output's size first, which is a third round trip on a network HSM, and decrypts into a
//! buffer that nobody wipes; attributes take it two calls, which with ten thousand keys are ten thousand round trips more.
//! This module, the only one of the proxy that has `unsafe` for PKCS#11, calls the module's function list itself. Everything
//! else goes through `cryptoki`.
#![allow(
    unsafe_code,
    reason = "calls C_EncryptInit, C_Encrypt, C_DecryptInit, C_Decrypt and C_GetAttributeValue through the C interface"
)]

use std::ffi::c_void;
use std::path::Path;
use std::ptr;

use cryptoki::error::{Rv, RvError};
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_BYTE_PTR, CK_FUNCTION_LIST, CK_GCM_PARAMS, CK_MECHANISM, CK_OBJECT_HANDLE,
    CK_RV, CK_SESSION_HANDLE, CK_ULONG, CK_UNAVAILABLE_INFORMATION, CKM_AES_GCM,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::module::ModuleFault;
use super::{Sealed, TAG_BYTES};

/// Length of the IVs that we give, or give room for, in bytes.
pub(super) const IV_BYTES: usize = 12;
/// Length of the IVs that a token appends, in bytes.
const APPENDED_IV_BYTES: usize = 16;

/// Room for the value of an attribute, in bytes. A label or an id that fills it is read by two calls.
const ATTRIBUTE_BYTES: usize = 256;

const TAG_BITS: CK_ULONG = 8 * TAG_BYTES as CK_ULONG;

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Work =
    unsafe extern "C" fn(CK_SESSION_HANDLE, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, *mut CK_ULONG) -> CK_RV;
type GetAttributes =
    unsafe extern "C" fn(CK_SESSION_HANDLE, CK_OBJECT_HANDLE, *mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV;

/// A function that failed and its return code.
pub(super) type Failure = (&'static str, RvError);

/// The module encrypted, but the output's length is not that of ciphertext, tag and what else was expected. By the standard
/// no C_Encrypt says this code.
pub(super) const OTHER_LENGTH: Failure = ("C_Encrypt", RvError::EncryptedDataLenRange);
/// The module encrypted, but under another IV than the one that it was given. The same holds for this code.
pub(super) const OTHER_IV: Failure = ("C_Encrypt", RvError::EncryptedDataInvalid);

/// The module succeeded, but says of the output that it has a length which it cannot have: a fault of the token, which this
/// code is never taken for anything but.
const IMPOSSIBLE_LENGTH: RvError = RvError::DataLenRange;

/// Who makes the initialization vector of an encryption.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum NewIv {
    /// We do.
    Given([u8; IV_BYTES]),
    /// The token does, and writes it over the zeros that it is given.
    WrittenBack,
    /// The token does, and appends it to ciphertext and tag.
    Appended,
}

/// The object of that number, which the module has given to a session in another process.
pub(super) fn object(number: u64) -> ObjectHandle {
    // SAFETY: a handle is a number and no pointer, and a module says CKR_OBJECT_HANDLE_INVALID of one that it never gave.
    unsafe { ObjectHandle::new_from_raw(number) }
}

/// The five functions of one module.
pub(super) struct Gcm {
    encrypt_init: Init,
    encrypt: Work,
    decrypt_init: Init,
    decrypt: Work,
    get_attributes: GetAttributes,
    /// Keeps the module loaded for as long as its functions can be called.
    _library: cryptoki_sys::Pkcs11,
}

impl Gcm {
    /// Loads the module once more (the system counts references) and takes the functions out of its list.
    pub(super) fn load(path: &Path) -> Result<Self, ModuleFault> {
        let not_loaded = |error: _| ModuleFault::load(path, &error);
        // SAFETY: loading runs the module's initialisers. The operator names the module and trusts it with the keys.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(not_loaded)?;
        let Ok(function_list) = library.C_GetFunctionList.as_ref() else {
            return Err(ModuleFault::NoFunctionList(path.to_owned()));
        };
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: C_GetFunctionList may be called before C_Initialize and writes one pointer to the place given.
        let code = unsafe { function_list(&raw mut list) };
        if Rv::from(code) != Rv::Ok || list.is_null() {
            return Err(ModuleFault::NoFunctionList(path.to_owned()));
        }
        // SAFETY: not null, and PKCS#11 promises a list that lives as long as the module is loaded.
        let list = unsafe { &*list };
        let functions = || {
            Some((
                list.C_EncryptInit?,
                list.C_Encrypt?,
                list.C_DecryptInit?,
                list.C_Decrypt?,
                list.C_GetAttributeValue?,
            ))
        };
        let Some((encrypt_init, encrypt, decrypt_init, decrypt, get_attributes)) = functions() else {
            return Err(ModuleFault::NoFunctionList(path.to_owned()));
        };
        Ok(Self { encrypt_init, encrypt, decrypt_init, decrypt, get_attributes, _library: library })
    }

    /// Those of the `wanted` attributes of an object that it has, by one call.
    ///
    /// # Errors
    /// The return code; [`RvError::BufferTooSmall`] too where a value fills the room that there is for it, which it may have
    /// been cut off to, or the module has left untouched.
    pub(super) fn attributes<const WANTED: usize>(
        &self,
        session: &Session,
        object: ObjectHandle,
        wanted: [AttributeType; WANTED],
    ) -> Result<Vec<Attribute>, RvError> {
        // Of numbers, so that a module may write one to its place as such.
        let mut room: [[CK_ULONG; ATTRIBUTE_BYTES / size_of::<CK_ULONG>()]; WANTED] =
            [[0; ATTRIBUTE_BYTES / size_of::<CK_ULONG>()]; WANTED];
        let mut place = room.iter_mut();
        let mut template = wanted.map(|attribute| CK_ATTRIBUTE {
            type_: attribute.into(),
            pValue: place.next().map_or(ptr::null_mut(), |place| place.as_mut_ptr().cast::<c_void>()),
            ulValueLen: length(ATTRIBUTE_BYTES),
        });
        // SAFETY: session and object belong to this module, as in `call`. Each attribute of the template has a place of the
        // length that it says, in `room`, which outlives the call, and nobody else touches it meanwhile.
        let code = unsafe {
            (self.get_attributes)(session.handle(), object.handle(), template.as_mut_ptr(), length(WANTED))
        };
        match check(code) {
            // What it does not have, or does not show, it has marked.
            Ok(()) | Err(RvError::AttributeSensitive | RvError::AttributeTypeInvalid) => {}
            Err(code) => return Err(code),
        }
        let has_value = |attribute: &&CK_ATTRIBUTE| attribute.ulValueLen != CK_UNAVAILABLE_INFORMATION;
        let mut attributes = Vec::with_capacity(WANTED);
        for attribute in template.iter().filter(has_value) {
            if attribute.ulValueLen >= length(ATTRIBUTE_BYTES) {
                return Err(RvError::BufferTooSmall);
            }
            attributes.extend(Attribute::try_from(*attribute).ok());
        }
        Ok(attributes)
    }

    /// Encrypts. Whether the IV may be used is for the caller to judge: one that the token should have written may be all
    /// zero.
    ///
    /// # Errors
    /// The function that failed and its return code; the session may then be in the middle of an operation.
    pub(super) fn encrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        new_iv: NewIv,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Failure> {
        let mut iv = match new_iv {
            NewIv::Given(iv) => Iv::new(&iv),
            NewIv::WrittenBack => Iv::new(&[0; IV_BYTES]),
            NewIv::Appended => Iv::new(&[]),
        };
        let appended_bytes = if matches!(new_iv, NewIv::Appended) { APPENDED_IV_BYTES } else { 0 };
        let mut output = vec![0; plaintext.len() + TAG_BYTES + appended_bytes];
        let functions = (self.encrypt_init, self.encrypt);
        let written = call(functions, session, key, &mut iv, aad, plaintext, &mut output)
            .map_err(|(is_init, code)| (if is_init { "C_EncryptInit" } else { "C_Encrypt" }, code))?;
        if written != output.len() {
            return Err(OTHER_LENGTH);
        }
        let iv = match new_iv {
            // QUIRK(protectserver): in FIPS mode it puts its own IV in place of the caller's
            // (https://thalesdocs.com/gphsm/ptk/protectserver3/docs/ps_ptk_docs/ptkc_programming/ptkc_mechs/ckm_aes_gcm_old).
            NewIv::Given(given) if iv.bytes() != given => return Err(OTHER_IV),
            NewIv::Given(_) | NewIv::WrittenBack => iv.bytes().to_vec(),
            NewIv::Appended => output.split_off(plaintext.len() + TAG_BYTES),
        };
        Ok(Sealed { iv, ciphertext_and_tag: output })
    }

    /// Decrypts `sealed`, a ciphertext with its tag behind it, into a buffer that is wiped when dropped.
    ///
    /// # Errors
    /// The function that failed and its return code.
    pub(super) fn decrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let Some(plaintext_bytes) = sealed.len().checked_sub(TAG_BYTES) else {
            return Err(("C_Decrypt", RvError::EncryptedDataLenRange));
        };
        // QUIRK(softhsm): it asks for room for the tag too (SoftHSM.cpp, SymDecrypt).
        let mut plaintext = Zeroizing::new(vec![0; sealed.len()]);
        let functions = (self.decrypt_init, self.decrypt);
        let written = call(functions, session, key, &mut Iv::new(iv), aad, sealed, &mut plaintext)
            .map_err(|(is_init, code)| (if is_init { "C_DecryptInit" } else { "C_Decrypt" }, code))?;
        // It was content with the ciphertext: what is wrong is the token.
        if written != plaintext_bytes {
            return Err(("C_Decrypt", IMPOSSIBLE_LENGTH));
        }
        plaintext.truncate(plaintext_bytes);
        Ok(plaintext)
    }
}

/// An IV in memory that a module may write to: the interface is not const-correct, and some modules write more than asked.
struct Iv {
    with_slack: Vec<u8>,
    length: usize,
}

impl Iv {
    fn new(iv: &[u8]) -> Self {
        Self { with_slack: [iv, &[0; 16]].concat(), length: iv.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.with_slack[..self.length]
    }

    /// Null where there is none: a module that makes the IV itself takes any pointer for one.
    fn pointer(&mut self) -> CK_BYTE_PTR {
        if self.length == 0 { ptr::null_mut() } else { self.with_slack.as_mut_ptr() }
    }
}

/// Init and work; returns how many bytes were written. The error says whether it was init that failed.
fn call(
    (init, work): (Init, Work),
    session: &Session,
    key: ObjectHandle,
    iv: &mut Iv,
    aad: &[u8],
    input: &[u8],
    output: &mut [u8],
) -> Result<usize, (bool, RvError)> {
    let mut parameters = CK_GCM_PARAMS {
        pIv: iv.pointer(),
        ulIvLen: length(iv.length),
        // QUIRK(luna): reads the length in bits, which PKCS#11 2.40 left out.
        ulIvBits: length(8 * iv.length),
        pAAD: if aad.is_empty() { ptr::null_mut() } else { aad.as_ptr().cast_mut() },
        ulAADLen: length(aad.len()),
        ulTagBits: TAG_BITS,
    };
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: (&raw mut parameters).cast::<c_void>(),
        ulParameterLen: length(size_of::<CK_GCM_PARAMS>()),
    };
    // SAFETY: the session and the object belong to this module, since both came from it through `cryptoki` and the
    // caller's connection holds the two together. Mechanism, parameters and AAD live until this function ends and the IV
    // longer, which is after the operation that refers to them; nobody else touches the IV meanwhile.
    let code = unsafe { init(session.handle(), &raw mut mechanism, key.handle()) };
    check(code).map_err(|code| (true, code))?;
    let mut written = length(output.len());
    let input_pointer: *mut CK_BYTE = input.as_ptr().cast_mut();
    // SAFETY: input and output are live buffers of the lengths given; C_Encrypt and C_Decrypt do not write their input.
    let code = unsafe {
        work(session.handle(), input_pointer, length(input.len()), output.as_mut_ptr(), &raw mut written)
    };
    check(code).map_err(|code| (false, code))?;
    // A module that claims more than it was given room for has already done its harm; it gets no further.
    usize::try_from(written).ok().filter(|written| *written <= output.len()).ok_or((false, IMPOSSIBLE_LENGTH))
}

fn check(code: CK_RV) -> Result<(), RvError> {
    match Rv::from(code) {
        Rv::Ok => Ok(()),
        Rv::Error(code) => Err(code),
    }
}

/// A length of a buffer in memory, which always fits.
const fn length(bytes: usize) -> CK_ULONG {
    bytes as CK_ULONG
}
