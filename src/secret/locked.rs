//! Memory for secrets: pages of their own that are never swapped out and stay out of core dumps.

use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Advice, MmapMut};
use zeroize::{Zeroize, Zeroizing};

/// Some secret could not be locked.
static IS_UNLOCKED: AtomicBool = AtomicBool::new(false);

/// Whether every secret that was read so far lies in locked memory. RLIMIT_MEMLOCK says how much of that there may be.
#[must_use]
pub fn is_all_locked() -> bool {
    !IS_UNLOCKED.load(Ordering::Relaxed)
}

/// Warns, once in the life of the process, where it is not so.
pub fn warn_if_unlocked() {
    static HAS_WARNED: AtomicBool = AtomicBool::new(false);
    if !is_all_locked() && !HAS_WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!("{}", super::UNLOCKED_ADVICE);
    }
}

/// Bytes that are wiped when dropped.
pub(super) struct LockedBytes {
    memory: Memory,
    length: usize,
}

/// Never all of the process's memory (mlockall): vendors' libraries would find none left to lock or even to allocate.
enum Memory {
    Pages(MmapMut),
    Heap(Zeroizing<Vec<u8>>),
}

impl LockedBytes {
    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        // No mapping is empty.
        let memory = match MmapMut::map_anon(bytes.len().max(1)) {
            Ok(mut pages) => {
                let is_kept_in = pages.lock().is_ok();
                #[cfg(target_os = "linux")]
                let is_kept_in = pages.advise(Advice::DontDump).is_ok() && is_kept_in;
                if !is_kept_in {
                    IS_UNLOCKED.store(true, Ordering::Relaxed);
                }
                pages[..bytes.len()].copy_from_slice(bytes);
                Memory::Pages(pages)
            }
            Err(_) => {
                IS_UNLOCKED.store(true, Ordering::Relaxed);
                Memory::Heap(Zeroizing::new(bytes.to_vec()))
            }
        };
        Self { memory, length: bytes.len() }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        let all = match &self.memory {
            Memory::Pages(pages) => pages.as_ref(),
            Memory::Heap(bytes) => bytes.as_slice(),
        };
        &all[..self.length]
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        if let Memory::Pages(pages) = &mut self.memory {
            pages.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_copied() {
        for length in [0, 1, 44, 4096, 4097] {
            let bytes = vec![0x5a; length];
            assert_eq!(LockedBytes::copy_of(&bytes).as_slice(), bytes);
        }
    }
}
