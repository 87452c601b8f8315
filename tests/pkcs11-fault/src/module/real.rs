//! The real module: loading it, calling it, and the few questions that we ask it on our own account.

use super::caller::{count, ulong};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_FUNCTION_LIST, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CKF_SERIAL_SESSION, CKR_OK,
};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, CString, OsStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Calls a function of the real module: `ask!(real, C_Login(session, …))`. Unsafe, as every function of a module is.
macro_rules! ask {
    ($real:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $real.list.$function {
            Some(function) => function($($argument),*),
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

/// The function list of the real module.
pub(super) struct Real {
    pub(super) list: CK_FUNCTION_LIST,
}

impl Real {
    /// Loads the module, for the rest of the process.
    pub(super) fn load(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
        // SAFETY: whoever runs this has named the module to run; its initialisers are as trusted as itself.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
        // SAFETY: the symbol has this type in every PKCS#11 module.
        let symbol = unsafe { library.get::<GetFunctionList>(b"C_GetFunctionList\0") }?;
        let mut list = std::ptr::null_mut();
        // SAFETY: the argument is valid, and the standard lets the function be called at any time.
        let rv = unsafe { symbol(&mut list) };
        if rv != CKR_OK {
            return Err(format!("C_GetFunctionList returned {rv:#x}").into());
        }
        // SAFETY: NULL, or the module's own list, which stays.
        let list = unsafe { list.as_ref() }.copied().ok_or("C_GetFunctionList returned no list")?;
        // Unloading it would leave the list dangling.
        std::mem::forget(library);
        Ok(Real { list })
    }

    /// The label of the token in a slot, without the padding.
    pub(super) fn token_label(&self, slot: CK_SLOT_ID) -> Option<String> {
        let mut info = MaybeUninit::<CK_TOKEN_INFO>::uninit();
        // SAFETY: the argument is a place for the answer.
        let rv = unsafe { ask!(self, C_GetTokenInfo(slot, info.as_mut_ptr())) };
        if rv != CKR_OK {
            return None;
        }
        // SAFETY: filled in, for the call succeeded.
        let info = unsafe { info.assume_init() };
        Some(String::from_utf8_lossy(&info.label).trim_end_matches([' ', '\0']).to_owned())
    }

    /// The slots, as `C_GetSlotList` lists them.
    pub(super) fn slots(&self, token_present: bool) -> Result<Vec<CK_SLOT_ID>, CK_RV> {
        listed(|slots, count| {
            // SAFETY: the arguments are a place for the answer and its length, or NULL and a place for the length.
            unsafe { ask!(self, C_GetSlotList(token_present.into(), slots, count)) }
        })
    }

    /// The mechanisms of the token in a slot.
    pub(super) fn mechanisms(&self, slot: CK_SLOT_ID) -> Result<Vec<CK_MECHANISM_TYPE>, CK_RV> {
        listed(|mechanisms, count| {
            // SAFETY: the arguments are a place for the answer and its length, or NULL and a place for the length.
            unsafe { ask!(self, C_GetMechanismList(slot, mechanisms, count)) }
        })
    }

    /// The value of an attribute, if the object has it and shows it.
    pub(super) fn attribute(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        attribute: CK_ATTRIBUTE_TYPE,
    ) -> Option<Vec<u8>> {
        let mut query = CK_ATTRIBUTE { type_: attribute, pValue: std::ptr::null_mut(), ulValueLen: 0 };
        // SAFETY: a template of one, asking for the length.
        let rv = unsafe { ask!(self, C_GetAttributeValue(session, object, &mut query, 1)) };
        if rv != CKR_OK || query.ulValueLen == CK_ULONG::MAX {
            return None;
        }
        let mut value = vec![0; count(query.ulValueLen)];
        query.pValue = value.as_mut_ptr().cast();
        // SAFETY: a template of one, with a place for a value of its length.
        let rv = unsafe { ask!(self, C_GetAttributeValue(session, object, &mut query, 1)) };
        value.truncate(count(query.ulValueLen));
        (rv == CKR_OK).then_some(value)
    }

    /// The value of an attribute that is a number.
    pub(super) fn number(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        attribute: CK_ATTRIBUTE_TYPE,
    ) -> Option<CK_ULONG> {
        let value = self.attribute(session, object, attribute)?;
        Some(CK_ULONG::from_ne_bytes(value.try_into().ok()?))
    }

    /// Every object that is visible now. No search may be active in the session.
    pub(super) fn objects(&self, session: CK_SESSION_HANDLE) -> Vec<CK_OBJECT_HANDLE> {
        let mut objects = Vec::new();
        // SAFETY: an empty template.
        let mut rv = unsafe { ask!(self, C_FindObjectsInit(session, std::ptr::null_mut(), 0)) };
        while rv == CKR_OK {
            let (mut page, mut found) = ([0; 64], 0);
            // SAFETY: a place for as many handles as there is room for, and for their number.
            rv = unsafe {
                ask!(self, C_FindObjects(session, page.as_mut_ptr(), ulong(page.len()), &mut found))
            };
            objects.extend_from_slice(page.get(..count(found)).unwrap_or(&page));
            if found == 0 {
                break;
            }
        }
        // SAFETY: takes no pointer.
        unsafe { ask!(self, C_FindObjectsFinal(session)) };
        objects
    }

    /// Works in a session of our own, which the application does not know of.
    pub(super) fn with_session<T>(
        &self,
        slot: CK_SLOT_ID,
        work: impl FnOnce(CK_SESSION_HANDLE) -> T,
    ) -> Option<T> {
        let (mut session, none) = (0, std::ptr::null_mut());
        // SAFETY: no callback and nothing to pass to it, and a place for the answer.
        let rv = unsafe { ask!(self, C_OpenSession(slot, CKF_SERIAL_SESSION, none, None, &mut session)) };
        if rv != CKR_OK {
            return None;
        }
        let result = work(session);
        self.close(session);
        Some(result)
    }

    /// Logs the application out of the token.
    pub(super) fn log_out(&self, slot: CK_SLOT_ID) {
        // SAFETY: takes no pointer.
        self.with_session(slot, |session| unsafe { ask!(self, C_Logout(session)) });
    }

    pub(super) fn close(&self, session: CK_SESSION_HANDLE) {
        // SAFETY: takes no pointer.
        unsafe { ask!(self, C_CloseSession(session)) };
    }
}

/// Asks for the length, then for as much.
fn listed<T: Copy + Default>(mut ask: impl FnMut(*mut T, *mut CK_ULONG) -> CK_RV) -> Result<Vec<T>, CK_RV> {
    let mut length = 0;
    let rv = ask(std::ptr::null_mut(), &mut length);
    if rv != CKR_OK {
        return Err(rv);
    }
    let mut values = vec![T::default(); count(length)];
    let rv = ask(values.as_mut_ptr(), &mut length);
    values.truncate(count(length));
    if rv == CKR_OK { Ok(values) } else { Err(rv) }
}

/// Makes the system keep this shared object for the rest of the process, and returns its path.
///
/// A call may hang in here after the application has unloaded the module; its code must not go away.
pub(super) fn stay_loaded() -> Result<PathBuf, String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let inside = stay_loaded as fn() -> Result<PathBuf, String> as *const c_void;
    // SAFETY: an address of our own code, and a place for the answer.
    let found = unsafe { libc::dladdr(inside, info.as_mut_ptr()) };
    // SAFETY: all its fields may be zero, which they are at the least.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return Err("the system does not know the path of this shared object".to_owned());
    }
    // SAFETY: the loader's own string, which stays as long as the shared object does.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let name = CString::from(name);
    // SAFETY: a C string; the object is loaded already, so no code runs.
    unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
    Ok(PathBuf::from(OsStr::from_bytes(name.as_bytes())))
}
