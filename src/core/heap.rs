//! When memory that was freed goes back to the system: the allocator keeps it for what comes next.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::memory;

/// Freed bytes under which no memory is given back.
const LEAST_TRIM: u64 = 8 << 20;

/// The part of the memory in use that must have been freed before some is given back: the cost of looking for it grows
/// with what is in use.
const TRIM_SHARE: u64 = 8;

/// What is known of the use of the heap for one purpose; estimates, which only decide when to look for memory to give back.
#[derive(Debug)]
pub struct HeapUse {
    /// Bytes in use.
    live: AtomicU64,
    /// Bytes freed since memory was last given back.
    freed: AtomicU64,
    /// How many must have been freed until it is again.
    due: AtomicU64,
}

impl Default for HeapUse {
    fn default() -> Self {
        Self { live: AtomicU64::new(0), freed: AtomicU64::new(0), due: AtomicU64::new(LEAST_TRIM) }
    }
}

impl HeapUse {
    /// Counts `bytes` taken into use.
    pub fn grew(&self, bytes: usize) {
        if bytes != 0 {
            self.live.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Counts `bytes` freed.
    pub fn freed(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let bytes = bytes as u64;
        self.freed.fetch_add(bytes, Ordering::Relaxed);
        let less = |live: u64| Some(live.saturating_sub(bytes));
        // The closure never declines, so there is no failure to tell.
        self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok();
    }

    /// Gives freed memory back to the system where enough has come together; to be called under no lock, for that takes
    /// about a tenth of a second for each GiB.
    pub fn trim_if_due(&self) {
        let freed = self.freed.load(Ordering::Relaxed);
        if freed < self.due.load(Ordering::Relaxed) {
            return;
        }
        // Of several threads that come here at once, one gives back.
        if self.freed.compare_exchange(freed, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let live = self.live.load(Ordering::Relaxed);
            self.due.store(LEAST_TRIM.max(live / TRIM_SHARE), Ordering::Relaxed);
            memory::trim();
        }
    }
}
