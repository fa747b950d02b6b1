//! What the files of one mount share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use splicefs_core::Error;
use splicefs_core::sys::memory;

use crate::limits::Limits;

/// Length of a page, in bytes: the unit in which files take room, on every host.
pub(crate) const PAGE: u64 = 4096;

/// Freed bytes under which no memory is given back to the system.
const LEAST_TRIM: u64 = 8 << 20;

/// The part of the memory in use that must have been freed before some is given back: the cost of looking for it grows
/// with what is in use.
const TRIM_SHARE: u64 = 8;

/// What the files of one mount share: limits, the descriptors they may hold, and the giving back of memory.
#[derive(Debug)]
pub(crate) struct Store {
    /// What the mount may hold.
    pub(crate) limits: Limits,
    /// Number of descriptors that files may still open.
    descriptors: Arc<AtomicUsize>,
    /// Whether the log says that a file found none.
    refusal_told: Once,
    heap: HeapUse,
    /// Memory and swap of the host, in pages.
    host_pages: u64,
}

/// The right to hold one descriptor of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is known of the daemon's heap; estimates, which only decide when to look for memory to give back.
#[derive(Debug)]
struct HeapUse {
    /// Bytes in use.
    live: AtomicU64,
    /// Bytes freed since memory was last given back.
    freed: AtomicU64,
    /// How many must have been freed until it is again.
    due: AtomicU64,
}

/// Memory and swap of the host, in pages (sysinfo(2)).
#[allow(clippy::useless_conversion, reason = "the fields are 32 bits wide on 32-bit hosts")]
fn host_pages() -> u64 {
    let host = rustix::system::sysinfo();
    let units = u64::from(host.totalram).saturating_add(u64::from(host.totalswap));
    units.saturating_mul(u64::from(host.mem_unit)) / PAGE
}

impl Store {
    /// A store of these limits, whose files hold at most `descriptors` descriptors at once.
    pub(crate) fn new(limits: Limits, descriptors: usize) -> Self {
        Self {
            limits,
            descriptors: Arc::new(AtomicUsize::new(descriptors)),
            refusal_told: Once::new(),
            heap: HeapUse {
                live: AtomicU64::new(0),
                freed: AtomicU64::new(0),
                due: AtomicU64::new(LEAST_TRIM),
            },
            host_pages: host_pages(),
        }
    }

    /// The right to one more descriptor, where the budget has one left.
    pub(crate) fn take_descriptor(&self) -> Option<Permit> {
        self.descriptors
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .ok()
            .map(|_| Permit(self.descriptors.clone()))
    }

    /// Logs, the first time, that a file of some size has to stay in the heap: nothing is wrong with it, but its reads are
    /// copied.
    pub(crate) fn tell_refusal(&self, why: &Error) {
        self.refusal_told.call_once(|| {
            log::warn!("no memfd for a file ({why}): such files stay in the heap and their reads are copied");
        });
    }

    /// Whether the host could hold `n` more pages if it held nothing else. Reserving what it cannot would end with the
    /// daemon killed for want of memory, not with an error (a limit, tmpfs(5) `size=`, comes before this one).
    pub(crate) fn host_may_hold(&self, n: u64) -> bool {
        self.limits.pages_in_use().saturating_add(n) <= self.host_pages
    }

    /// Counts `bytes` of heap memory taken into use.
    pub(crate) fn grew(&self, bytes: usize) {
        if bytes != 0 {
            self.heap.live.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Counts `bytes` of heap memory freed.
    pub(crate) fn freed(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let bytes = bytes as u64;
        self.heap.freed.fetch_add(bytes, Ordering::Relaxed);
        let less = |live: u64| Some(live.saturating_sub(bytes));
        // The closure never declines, so there is no failure to tell.
        self.heap.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok();
    }

    /// Gives freed memory back to the system where enough has come together; to be called under no lock, for that takes
    /// about a tenth of a second for each GiB.
    pub(crate) fn trim_if_due(&self) {
        let freed = self.heap.freed.load(Ordering::Relaxed);
        if freed < self.heap.due.load(Ordering::Relaxed) {
            return;
        }
        // Of several threads that come here at once, one gives back.
        if self.heap.freed.compare_exchange(freed, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let live = self.heap.live.load(Ordering::Relaxed);
            self.heap.due.store(LEAST_TRIM.max(live / TRIM_SHARE), Ordering::Relaxed);
            memory::trim();
        }
    }

    /// Number of descriptors that files may still open.
    #[cfg(test)]
    pub(crate) fn descriptors_left(&self) -> usize {
        self.descriptors.load(Ordering::Relaxed)
    }
}
