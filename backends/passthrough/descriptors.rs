//! A bounded number of `O_PATH` descriptors of nodes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use splicefs_core::{Errno, NodeId, Result, sys};

/// The part of the descriptor limit that nodes may hold; the rest is for open files, directories and pipes.
const SHARE: u64 = 4;
const AT_LEAST: u64 = 64;
const AT_MOST: u64 = 4096;

/// The descriptors used last. One that is evicted while in use lives until its user is done.
///
/// Lock order: a leaf, held over no system call: what falls out is closed after the lock.
#[derive(Debug)]
pub(crate) struct Descriptors(Mutex<LruCache<NodeId, Arc<OwnedFd>>>);

impl Descriptors {
    /// A cache for the descriptor limit (`RLIMIT_NOFILE`) in force.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(sys::descriptor_share(SHARE, AT_LEAST, AT_MOST))))
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<OwnedFd>> {
        self.0.lock().get(&id).cloned()
    }

    pub(crate) fn put(&self, id: NodeId, fd: Arc<OwnedFd>) {
        let _closed_after_the_lock = self.0.lock().push(id, fd);
    }

    pub(crate) fn remove(&self, id: NodeId) {
        let _closed_after_the_lock = self.0.lock().pop(&id);
    }

    /// Runs `open`; where it finds no room for one more descriptor, half of the cache is closed and it runs again.
    pub(crate) fn with_room<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(e) if matches!(e.errno(), Errno::EMFILE | Errno::ENFILE) => {
                self.shed();
                open()
            }
            other => other,
        }
    }

    fn shed(&self) {
        let mut cache = self.0.lock();
        let shed: Vec<_> = (0..cache.len().div_ceil(2)).filter_map(|_| cache.pop_lru()).collect();
        drop(cache);
        log::debug!("out of descriptors: closed {} cached ones", shed.len());
    }
}
