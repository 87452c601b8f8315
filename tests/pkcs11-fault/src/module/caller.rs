//! The application's memory, as it passes it to the C interface.

use cryptoki_sys::{CK_BYTE, CK_ULONG};

/// A pointer to one value, or to the first of several, or NULL.
pub(super) struct Arg<T>(*mut T);

impl<T> Clone for Arg<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Arg<T> {}

impl<T: Copy> Arg<T> {
    /// Takes an argument of the application's.
    ///
    /// # Safety
    /// The pointer is NULL, or points to memory that is valid for as long as the value lives: for what
    /// [`Arg::read`] and [`Arg::write`] do, and for as many values as [`Arg::values`] is asked for.
    pub(super) unsafe fn new(pointer: *mut T) -> Self {
        Arg(pointer)
    }

    pub(super) fn pointer(self) -> *mut T {
        self.0
    }

    /// The pointer to the value after so many others.
    pub(super) fn skip(self, count: usize) -> Self {
        Arg(self.0.wrapping_add(count))
    }

    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value, unless the pointer is NULL.
    pub(super) fn read(self) -> Option<T> {
        // SAFETY: NULL, or valid by the promise made to `new`.
        unsafe { self.0.as_ref() }.copied()
    }

    /// Sets the value, unless the pointer is NULL.
    pub(super) fn write(self, value: T) {
        // SAFETY: NULL, or valid by the promise made to `new`; the application uses it no other way during the call.
        if let Some(place) = unsafe { self.0.as_mut() } {
            *place = value;
        }
    }

    /// The values, of which the application says that there are so many: none if the pointer is NULL.
    pub(super) fn values<'a>(self, count: usize) -> &'a mut [T] {
        if self.0.is_null() {
            return &mut [];
        }
        // SAFETY: valid by the promise made to `new`; the application uses it no other way during the call.
        unsafe { std::slice::from_raw_parts_mut(self.0, count) }
    }
}

/// A buffer for output and its length: the pair of arguments with which most functions return bytes.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) bytes: Arg<CK_BYTE>,
    pub(super) length: Arg<CK_ULONG>,
}

impl Output {
    /// Takes the application's arguments.
    ///
    /// # Safety
    /// As for [`Arg::new`], of both.
    pub(super) unsafe fn new(bytes: *mut CK_BYTE, length: *mut CK_ULONG) -> Self {
        Output { bytes: Arg(bytes), length: Arg(length) }
    }

    /// Whether the application asks for the length alone.
    pub(super) fn is_query(self) -> bool {
        self.bytes.is_null()
    }
}

/// A count or length of the C interface, as ours.
pub(super) fn count(value: CK_ULONG) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A count or length of ours, as one of the C interface.
pub(super) fn ulong(value: usize) -> CK_ULONG {
    CK_ULONG::try_from(value).unwrap_or(CK_ULONG::MAX)
}
