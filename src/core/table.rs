//! The kernel's references: nodes it has looked up and handles it has opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::error::{Errno, Result};
use crate::id::{HandleId, NodeId};

/// Tables are split so that threads seldom meet in one; a power of two.
pub(crate) const SHARDS: usize = 16;

fn shard_of(id: u64) -> usize {
    usize::try_from(id % SHARDS as u64).unwrap_or(0)
}

/// Gives memory back when a table has become much too large for what it holds. To be called after something was removed.
pub(crate) fn shrink<T>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) {
    /// A table of this size is not worth making smaller.
    const SMALL: usize = 64;
    if table.capacity() > SMALL && table.len() < table.capacity() / 8 {
        table.shrink_to((2 * table.len()).max(SMALL), hash);
    }
}

/// Ids are given out in order, and those of one shard have their lower bits in common.
fn hash_of(id: u64) -> u64 {
    /// 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4).
    const FIBONACCI: u64 = 0x9e37_79b9_7f4a_7c15;
    id.wrapping_mul(FIBONACCI).rotate_left(u64::BITS / 2)
}

/// What the kernel knows by a number.
pub trait Identified {
    /// The number: the same as long as this lives, and never another's.
    fn id(&self) -> NodeId;
}

/// An entry of the largest table there is: one for every name that was walked.
struct Known<N> {
    node: Arc<N>,
    /// A count that has arrived at [`COUNTLESS`] tells nothing any more.
    lookups: u32,
    has_state: bool,
}

/// What so many lookups have been counted of stays for good: to be forgotten too late costs memory, too early a file.
const COUNTLESS: u32 = u32::MAX;

/// The nodes of some ids.
struct Shard<N, S> {
    known: HashTable<Known<N>>,
    /// The states of those that have one, which few do.
    states: HashTable<(NodeId, Arc<S>)>,
}

impl<N, S> Default for Shard<N, S> {
    fn default() -> Self {
        Self { known: HashTable::new(), states: HashTable::new() }
    }
}

impl<N, S> Shard<N, S> {
    fn state(&self, id: NodeId) -> Option<&Arc<S>> {
        self.states.find(hash_of(id.0), |(of, _)| *of == id).map(|(_, state)| state)
    }

    /// Takes out the state of `id`, if `given_up` says so.
    fn take_state(&mut self, id: NodeId, given_up: impl FnOnce(&Arc<S>) -> bool) -> Option<Arc<S>> {
        let entry = self.states.find_entry(hash_of(id.0), |(of, _)| *of == id).ok()?;
        if !given_up(&entry.get().1) {
            return None;
        }
        let ((_, state), _) = entry.remove();
        shrink(&mut self.states, |(of, _)| hash_of(of.0));
        Some(state)
    }
}

/// The nodes the kernel knows, with its count of lookups for each (`nlookup` in fs/fuse/inode.c), and with a state of those
/// that need one.
///
/// Lock order: a shard's lock is a leaf but for that of the state, when [`NodeTable::tidy`] asks. It spans no system call,
/// no reply, and no drop of a node.
pub struct NodeTable<N, S> {
    shards: [Mutex<Shard<N, S>>; SHARDS],
}

impl<N: Identified, S> NodeTable<N, S> {
    /// A table that holds the root, which is never forgotten.
    pub fn new(root: &Arc<N>) -> Self {
        let table = Self { shards: std::array::from_fn(|_| Mutex::default()) };
        table.remember(root);
        table
    }

    fn shard(&self, id: NodeId) -> MutexGuard<'_, Shard<N, S>> {
        self.shards[shard_of(id.0)].lock()
    }

    /// The node of `id`.
    ///
    /// # Errors
    /// `ESTALE` for an id the kernel has forgotten or was never given.
    pub fn get(&self, id: NodeId) -> Result<Arc<N>> {
        let shard = self.shard(id);
        let known = shard.known.find(hash_of(id.0), |known| known.node.id() == id);
        known.map(|known| known.node.clone()).ok_or_else(|| Errno::ESTALE.into())
    }

    /// Counts one lookup of the node. Returns whether the kernel did not know it.
    pub fn remember(&self, node: &Arc<N>) -> bool {
        let id = node.id();
        let mut shard = self.shard(id);
        let is = |known: &Known<N>| known.node.id() == id;
        match shard.known.entry(hash_of(id.0), is, |known| hash_of(known.node.id().0)) {
            Entry::Occupied(mut known) => {
                let lookups = &mut known.get_mut().lookups;
                *lookups = lookups.saturating_add(1);
                false
            }
            Entry::Vacant(place) => {
                place.insert(Known { node: node.clone(), lookups: 1, has_state: false });
                true
            }
        }
    }

    /// Whether more than one lookup of `id` is counted.
    pub fn is_looked_up_again(&self, id: NodeId) -> bool {
        let shard = self.shard(id);
        shard.known.find(hash_of(id.0), |known| known.node.id() == id).is_some_and(|known| known.lookups > 1)
    }

    /// Takes back `count` lookups of `id`; the node goes with the last one. Returns whether it went.
    pub fn forget(&self, id: NodeId, count: u64) -> bool {
        if id == NodeId::ROOT {
            return false;
        }
        let mut shard = self.shard(id);
        let Ok(mut known) = shard.known.find_entry(hash_of(id.0), |known| known.node.id() == id) else {
            return false;
        };
        let lookups = &mut known.get_mut().lookups;
        if *lookups == COUNTLESS {
            return false;
        }
        let taken = u32::try_from(count).unwrap_or(COUNTLESS);
        *lookups = lookups.saturating_sub(taken);
        if *lookups > 0 {
            return false;
        }
        let (gone, _) = known.remove();
        shrink(&mut shard.known, |known| hash_of(known.node.id().0));
        let state = if gone.has_state { shard.take_state(id, |_| true) } else { None };
        drop(shard);
        // After the lock: the last reference may close descriptors.
        drop((gone, state));
        true
    }

    /// The state of the node, from now on. Of one that is forgotten meanwhile it goes with who asked.
    pub fn state(&self, node: &N) -> Arc<S>
    where
        S: Default,
    {
        let id = node.id();
        let mut guard = self.shard(id);
        let shard = &mut *guard;
        let Some(known) = shard.known.find_mut(hash_of(id.0), |known| known.node.id() == id) else {
            return Arc::default();
        };
        known.has_state = true;
        let state = shard.states.entry(hash_of(id.0), |(of, _)| *of == id, |(of, _)| hash_of(of.0));
        state.or_insert_with(|| (id, Arc::default())).get().1.clone()
    }

    /// The state of the node, if it has one.
    pub fn state_if_any(&self, node: &N) -> Option<Arc<S>> {
        self.shard(node.id()).state(node.id()).cloned()
    }

    /// Gives the state of the node up, if nobody uses it and `idle` finds nothing that is left to be known.
    pub fn tidy(&self, node: &N, idle: impl FnOnce(&S) -> bool) {
        let id = node.id();
        let mut guard = self.shard(id);
        let shard = &mut *guard;
        let idle = |state: &Arc<S>| Arc::strong_count(state) == 1 && idle(state);
        if shard.take_state(id, idle).is_some()
            && let Some(known) = shard.known.find_mut(hash_of(id.0), |known| known.node.id() == id)
        {
            known.has_state = false;
        }
    }

    /// Number of nodes the kernel knows, the root aside.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().known.len()).sum::<usize>() - 1
    }

    /// Whether the kernel knows the root alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A number, and what is open under it.
struct Opened<T>(u64, Arc<T>);

/// What is open, by the number the kernel was given for it.
///
/// Lock order: a shard's lock is a leaf, as in [`NodeTable`].
pub struct HandleTable<T> {
    next: AtomicU64,
    shards: [RwLock<HashTable<Opened<T>>>; SHARDS],
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
        let mut shard = self.shards[shard_of(id)].write();
        shard.insert_unique(hash_of(id), Opened(id, Arc::new(value)), |open| hash_of(open.0));
        HandleId(id)
    }

    /// The open file of `id`.
    ///
    /// # Errors
    /// `EBADF` for a number that is not open.
    pub fn get(&self, id: HandleId) -> Result<Arc<T>> {
        let shard = self.shards[shard_of(id.0)].read();
        let open = shard.find(hash_of(id.0), |open| open.0 == id.0).ok_or(Errno::EBADF)?;
        Ok(open.1.clone())
    }

    /// Takes an open file out; it is closed when the last request that uses it is done.
    ///
    /// # Errors
    /// `EBADF` for a number that is not open.
    pub fn remove(&self, id: HandleId) -> Result<Arc<T>> {
        let mut shard = self.shards[shard_of(id.0)].write();
        let entry = shard.find_entry(hash_of(id.0), |open| open.0 == id.0).map_err(|_| Errno::EBADF)?;
        let (Opened(_, removed), _) = entry.remove();
        shrink(&mut shard, |open| hash_of(open.0));
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

    struct Node(NodeId);

    impl Identified for Node {
        fn id(&self) -> NodeId {
            self.0
        }
    }

    fn table() -> NodeTable<Node, AtomicU64> {
        NodeTable::new(&Arc::new(Node(NodeId::ROOT)))
    }

    #[test]
    fn a_node_goes_with_its_last_lookup() {
        let table = table();
        let node = Arc::new(Node(NodeId(7)));
        assert!(table.remember(&node) && !table.is_looked_up_again(NodeId(7)));
        assert!(!table.remember(&node) && !table.remember(&node) && table.is_looked_up_again(NodeId(7)));
        assert!(!table.forget(NodeId(7), 2) && !table.is_looked_up_again(NodeId(7)));
        assert!(Arc::ptr_eq(&table.get(NodeId(7)).unwrap(), &node));
        assert!(table.forget(NodeId(7), 1));
        assert_eq!(table.get(NodeId(7)).err().map(|e| e.errno()), Some(Errno::ESTALE));
        assert!(table.is_empty() && Arc::strong_count(&node) == 1);
    }

    #[test]
    fn a_table_that_has_been_large_does_not_stay_so() {
        let table = table();
        for id in 2..100_000 {
            table.remember(&Arc::new(Node(NodeId(id))));
        }
        let room = || -> usize { table.shards.iter().map(|s| s.lock().known.capacity()).sum() };
        assert!(room() > 90_000 && table.len() == 99_998);
        for id in 2..100_000 {
            assert!(table.get(NodeId(id)).is_ok_and(|node| node.0 == NodeId(id)));
            table.forget(NodeId(id), 1);
        }
        assert!(room() < 4000, "room for {}", room());
    }

    #[test]
    fn more_forgets_than_lookups_and_unknown_ids_do_no_harm() {
        let table = table();
        table.remember(&Arc::new(Node(NodeId(7))));
        table.forget(NodeId(7), u64::MAX);
        table.forget(NodeId(7), 1);
        table.forget(NodeId::ROOT, u64::MAX);
        assert!(table.get(NodeId::ROOT).is_ok());
    }

    #[test]
    fn a_node_with_more_lookups_than_can_be_counted_stays() {
        let table = table();
        let node = Arc::new(Node(NodeId(7)));
        table.remember(&node);
        table.shard(NodeId(7)).known.iter_mut().for_each(|known| known.lookups = COUNTLESS - 1);
        assert!(!table.forget(NodeId(7), 1) && !table.remember(&node) && !table.remember(&node));
        assert!(!table.forget(NodeId(7), u64::from(COUNTLESS)));
        assert!(table.get(NodeId(7)).is_ok());
        assert_eq!(size_of::<Known<Node>>(), 16);
    }

    #[test]
    fn a_state_stays_as_long_as_it_is_used_or_says_something() {
        let table = table();
        let node = Arc::new(Node(NodeId(7)));
        table.remember(&node);
        assert!(table.state_if_any(&node).is_none());
        let idle = |state: &AtomicU64| state.load(Ordering::Relaxed) == 0;
        let state = table.state(&node);
        table.tidy(&node, idle);
        assert!(Arc::ptr_eq(&state, &table.state(&node)), "it is used");
        state.store(1, Ordering::Relaxed);
        drop(state);
        table.tidy(&node, idle);
        table.state_if_any(&node).expect("it says something").store(0, Ordering::Relaxed);
        table.tidy(&node, idle);
        assert!(table.state_if_any(&node).is_none());
        table.forget(NodeId(7), 1);
        table.state(&node).store(1, Ordering::Relaxed);
        assert!(table.state_if_any(&node).is_none(), "it is not known");
        table.remember(&node);
        table.state(&node).store(1, Ordering::Relaxed);
        table.forget(NodeId(7), 1);
        table.remember(&node);
        assert!(table.state_if_any(&node).is_none(), "it went with the node");
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
