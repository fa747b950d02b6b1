//! The kernel's references: nodes it has looked up and handles it has opened.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::error::{Errno, Result};
use crate::id::{HandleId, NodeId};

/// Tables are split so that threads seldom meet in one; a power of two.
const SHARDS: usize = 16;

fn shard_of(id: u64) -> usize {
    usize::try_from(id % SHARDS as u64).unwrap_or(0)
}

/// Gives memory back when a table has become much too large for what it holds. To be called after something was removed.
pub fn shrink<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    /// A table of this size is not worth making smaller.
    const SMALL: usize = 64;
    if table.capacity() > SMALL && table.len() < table.capacity() / 8 {
        table.shrink_to((2 * table.len()).max(SMALL));
    }
}

struct Remembered<T> {
    value: Arc<T>,
    lookups: u64,
}

/// The nodes the kernel knows, with its count of lookups for each (`nlookup` in fs/fuse/inode.c).
///
/// Lock order: a shard's lock is a leaf. It spans no system call, no reply, and no drop of a node.
pub struct NodeTable<T> {
    root: Arc<T>,
    shards: [Mutex<HashMap<u64, Remembered<T>>>; SHARDS],
}

impl<T> NodeTable<T> {
    /// A table that holds the root, which is never forgotten.
    pub fn new(root: Arc<T>) -> Self {
        Self { root, shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// The node of `id`.
    ///
    /// # Errors
    /// `ESTALE` for an id the kernel has forgotten or was never given.
    pub fn get(&self, id: NodeId) -> Result<Arc<T>> {
        if id == NodeId::ROOT {
            return Ok(self.root.clone());
        }
        let shard = self.shards[shard_of(id.0)].lock();
        shard.get(&id.0).map(|r| r.value.clone()).ok_or_else(|| Errno::ESTALE.into())
    }

    /// Counts one lookup of `id`, whose value `make` builds when the kernel did not know it.
    pub fn remember(&self, id: NodeId, make: impl FnOnce() -> T) -> Arc<T> {
        if id == NodeId::ROOT {
            return self.root.clone();
        }
        let mut shard = self.shards[shard_of(id.0)].lock();
        let remembered =
            shard.entry(id.0).or_insert_with(|| Remembered { value: Arc::new(make()), lookups: 0 });
        remembered.lookups += 1;
        remembered.value.clone()
    }

    /// Takes back `count` lookups of `id`; the node goes with the last one. Returns whether it went.
    pub fn forget(&self, id: NodeId, count: u64) -> bool {
        // Dropped after the lock: the last reference may close descriptors.
        let gone = {
            let mut shard = self.shards[shard_of(id.0)].lock();
            let left = shard.get_mut(&id.0).map(|remembered| {
                remembered.lookups = remembered.lookups.saturating_sub(count);
                remembered.lookups
            });
            let gone = if left == Some(0) { shard.remove(&id.0) } else { None };
            shrink(&mut shard);
            gone
        };
        gone.is_some()
    }

    /// Number of nodes the kernel knows, the root aside.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether the kernel knows the root alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is open, by the number the kernel was given for it.
///
/// Lock order: a shard's lock is a leaf, as in [`NodeTable`].
pub struct HandleTable<T> {
    next: AtomicU64,
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
}

impl<T> Default for HandleTable<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), shards: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl<T> HandleTable<T> {
    /// Adds an open file and returns the number to give out for it.
    pub fn insert(&self, value: T) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.shards[shard_of(id)].write().insert(id, Arc::new(value));
        HandleId(id)
    }

    /// The open file of `id`.
    ///
    /// # Errors
    /// `EBADF` for a number that is not open.
    pub fn get(&self, id: HandleId) -> Result<Arc<T>> {
        self.shards[shard_of(id.0)].read().get(&id.0).cloned().ok_or_else(|| Errno::EBADF.into())
    }

    /// Takes an open file out; it is closed when the last request that uses it is done.
    ///
    /// # Errors
    /// `EBADF` for a number that is not open.
    pub fn remove(&self, id: HandleId) -> Result<Arc<T>> {
        let mut shard = self.shards[shard_of(id.0)].write();
        let removed = shard.remove(&id.0).ok_or(Errno::EBADF)?;
        shrink(&mut shard);
        Ok(removed)
    }

    /// Number of open files.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether nothing is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_goes_with_its_last_lookup() {
        let table = NodeTable::new(Arc::new(0));
        for _ in 0..3 {
            table.remember(NodeId(7), || 7);
        }
        table.forget(NodeId(7), 2);
        assert_eq!(*table.get(NodeId(7)).unwrap(), 7);
        table.forget(NodeId(7), 1);
        assert_eq!(table.get(NodeId(7)).unwrap_err().errno(), Errno::ESTALE);
        assert!(table.is_empty());
    }

    #[test]
    fn a_table_that_has_been_large_does_not_stay_so() {
        let table = NodeTable::new(Arc::new(0));
        for id in 2..100_000 {
            table.remember(NodeId(id), || 7);
        }
        let room =
            |table: &NodeTable<i32>| -> usize { table.shards.iter().map(|s| s.lock().capacity()).sum() };
        assert!(room(&table) > 90_000);
        for id in 2..100_000 {
            table.forget(NodeId(id), 1);
        }
        assert!(room(&table) < 4000, "room for {}", room(&table));
    }

    #[test]
    fn more_forgets_than_lookups_and_unknown_ids_do_no_harm() {
        let table = NodeTable::new(Arc::new(0));
        table.remember(NodeId(7), || 7);
        table.forget(NodeId(7), u64::MAX);
        table.forget(NodeId(7), 1);
        table.forget(NodeId::ROOT, u64::MAX);
        assert_eq!(*table.get(NodeId::ROOT).unwrap(), 0);
    }

    #[test]
    fn handles_are_never_reused() {
        let table = HandleTable::default();
        let first = table.insert("a");
        assert_eq!(*table.remove(first).unwrap(), "a");
        let second = table.insert("b");
        assert_ne!(first, second);
        assert_eq!(table.get(first).unwrap_err().errno(), Errno::EBADF);
        assert_eq!(table.remove(first).unwrap_err().errno(), Errno::EBADF);
        assert_eq!(table.len(), 1);
    }
}
