//! What the files of one mount share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use splicefs_core::{Error, HeapUse};

use crate::limits::Limits;
use crate::memory::available_pages;

/// Length of a page, in bytes: the unit in which files take room, on every host.
pub(crate) const PAGE: u64 = 4096;

/// What the files of one mount share: limits, the descriptors they may hold, and the giving back of memory.
#[derive(Debug)]
pub(crate) struct Store {
    /// What the mount may hold.
    pub(crate) limits: Limits,
    /// Number of descriptors that files may still open.
    descriptors: Arc<AtomicUsize>,
    /// Whether the log says that a file found none.
    refusal_told: Once,
    /// What files take of the daemon's heap.
    pub(crate) heap: HeapUse,
    /// Memory there is for this process, and swap, in pages.
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

/// Memory there is for this process, and swap of the host, in pages (sysinfo(2)).
#[allow(clippy::useless_conversion, reason = "the fields are 32 bits wide on 32-bit hosts")]
fn host_pages() -> u64 {
    let host = rustix::system::sysinfo();
    let swap = u64::from(host.totalswap).saturating_mul(u64::from(host.mem_unit)) / PAGE;
    available_pages().saturating_add(swap)
}

impl Store {
    /// A store of these limits, whose files hold at most `descriptors` descriptors at once.
    pub(crate) fn new(limits: Limits, descriptors: usize) -> Self {
        Self {
            limits,
            descriptors: Arc::new(AtomicUsize::new(descriptors)),
            refusal_told: Once::new(),
            heap: HeapUse::default(),
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

    /// Number of descriptors that files may still open.
    #[cfg(test)]
    pub(crate) fn descriptors_left(&self) -> usize {
        self.descriptors.load(Ordering::Relaxed)
    }
}
