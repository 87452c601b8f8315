//! The system's allocator, which wipes what it gets back.
//!
//! Plaintexts pass through many hands on their way: TLS, HTTP and JSON libraries each hold a buffer of it that they free
//! without a thought. Wiping at the one place through which all of it goes spares knowing them. Stacks, the kernel's buffers
//! and what a PKCS#11 module allocates are not ours to wipe (docs/divergences.md).
#![allow(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::sync::atomic::{AtomicBool, Ordering};

/// The global allocator of the binary.
pub struct WipingAllocator;

/// False in the control run of the test that looks for plaintexts in memory, which must then find some.
static WIPES: AtomicBool = AtomicBool::new(true);

/// Leaves freed memory as it is. Exists in debug builds alone.
#[cfg(debug_assertions)]
pub fn stop_wiping() {
    WIPES.store(false, Ordering::Relaxed);
}

// SAFETY: the system's allocator does the work; of its own this one writes only to blocks that are still allocated.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    // `realloc` is the trait's own: a new block, a copy, and `dealloc` of the old one, since the system's would free the
    // old block unwiped.

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !cfg!(debug_assertions) || WIPES.load(Ordering::Relaxed) {
            // SAFETY: the block is the caller's, of the layout's size, until it is freed below.
            unsafe { block.write_bytes(0, layout.size()) };
            // SAFETY: no instruction. To the compiler it may read the block, so that the zeros are written though nobody
            // reads them before the block is freed.
            unsafe { asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags)) };
        }
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
