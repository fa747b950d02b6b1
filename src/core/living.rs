//! Nodes that live, by what tells them apart.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Weak};

use hashbrown::HashTable;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::table::{SHARDS, shrink};

/// The nodes that live, each found by one key or several, which it holds itself: here are neither keys nor nodes, for there
/// is an entry for every name that was ever walked.
///
/// Lock order: a leaf but for what looking at a node's key takes. No node is dropped under it, since that ends in
/// [`Living::remove`].
#[derive(Debug)]
pub struct Living<N> {
    hasher: RandomState,
    shards: [Mutex<HashTable<Lives<N>>>; SHARDS],
}

#[derive(Debug)]
struct Lives<N> {
    /// Of the key. A key can be asked of a node alone, and that may be gone.
    hash: u32,
    node: Weak<N>,
}

/// Other nodes that had the hash of the key: to be dropped when the lock is.
type Others<N> = SmallVec<[Arc<N>; 1]>;

/// The shard takes the upper four bits, a place in the table the lower ones, and a tag there the upper seven.
fn spread(hash: u32) -> u64 {
    u64::from(hash) | u64::from(hash) << 36
}

fn look<N>(
    shard: &HashTable<Lives<N>>,
    hash: u32,
    is: impl Fn(&N) -> bool,
    others: &mut Others<N>,
) -> Option<Arc<N>> {
    let mut found = None;
    shard.find(spread(hash), |lives| {
        if lives.hash != hash {
            return false;
        }
        match lives.node.upgrade() {
            Some(node) if is(&node) => found = Some(node),
            Some(other) => others.push(other),
            None => {}
        }
        found.is_some()
    });
    found
}

impl<N> Default for Living<N> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl<N> Living<N> {
    fn hash<K: Hash>(&self, key: &K) -> (u32, &Mutex<HashTable<Lives<N>>>) {
        const { assert!(SHARDS == 16, "four bits of a hash") };
        let [a, b, c, d, ..] = self.hasher.hash_one(key).to_le_bytes();
        let hash = u32::from_le_bytes([a, b, c, d]);
        (hash, &self.shards[usize::from(d >> 4)])
    }

    /// The node of that key, if it lives; `is` knows it.
    pub fn find<K: Hash>(&self, key: &K, is: impl Fn(&N) -> bool) -> Option<Arc<N>> {
        let (hash, shard) = self.hash(key);
        let mut others = Others::new();
        let shard = shard.lock();
        look(&shard, hash, is, &mut others)
    }

    /// The node of that key, which `is` knows; what `make` makes where none lives.
    pub fn intern<K: Hash>(&self, key: &K, is: impl Fn(&N) -> bool, make: impl FnOnce() -> N) -> Arc<N> {
        let (hash, shard) = self.hash(key);
        let mut others = Others::new();
        let mut shard = shard.lock();
        if let Some(node) = look(&shard, hash, is, &mut others) {
            return node;
        }
        let node = Arc::new(make());
        let lives = Lives { hash, node: Arc::downgrade(&node) };
        shard.insert_unique(spread(hash), lives, |lives| spread(lives.hash));
        node
    }

    /// The node is found by this key, too; no other has it.
    pub fn insert<K: Hash>(&self, key: &K, node: &Arc<N>) {
        let (hash, shard) = self.hash(key);
        let lives = Lives { hash, node: Arc::downgrade(node) };
        shard.lock().insert_unique(spread(hash), lives, |lives| spread(lives.hash));
    }

    /// The node is not found by this key any more. Another that has come to have it is.
    pub fn remove<K: Hash>(&self, key: &K, node: &N) {
        let (hash, shard) = self.hash(key);
        let mut shard = shard.lock();
        // A node of several keys has several entries, which may be neighbours in the table.
        let same = |lives: &Lives<N>| lives.hash == hash && std::ptr::eq(lives.node.as_ptr(), node);
        if let Ok(entry) = shard.find_entry(spread(hash), same) {
            entry.remove();
        }
        shrink(&mut shard, |lives| spread(lives.hash));
    }

    /// All nodes, some of them more than once if they have several keys.
    pub fn all(&self) -> Vec<Arc<N>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().iter().filter_map(|lives| lives.node.upgrade()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node, in a table that its end takes it out of.
    struct Node {
        key: u32,
        table: Arc<Living<Node>>,
    }

    impl Drop for Node {
        fn drop(&mut self) {
            self.table.remove(&self.key, self);
        }
    }

    fn intern(table: &Arc<Living<Node>>, key: u32) -> Arc<Node> {
        table.intern(&key, |node| node.key == key, || Node { key, table: table.clone() })
    }

    fn room(table: &Living<Node>) -> (usize, usize) {
        let shards = table.shards.iter().map(|shard| shard.lock());
        shards.fold((0, 0), |(held, room), shard| (held + shard.len(), room + shard.capacity()))
    }

    #[test]
    fn a_node_is_found_as_long_as_it_lives() {
        let table = Arc::default();
        let nodes: Vec<_> = (0..10_000).map(|key| intern(&table, key)).collect();
        for node in &nodes {
            assert!(Arc::ptr_eq(node, &intern(&table, node.key)));
            assert!(table.find(&node.key, |n| n.key == node.key).is_some());
        }
        assert_eq!(table.all().len(), nodes.len());
        let shards = table.shards.iter().map(|shard| shard.lock().len());
        assert!(shards.clone().min() > Some(400), "uneven: {:?}", shards.collect::<Vec<_>>());
        drop(nodes);
        assert!(table.find(&7, |n| n.key == 7).is_none());
        let (held, room) = room(&table);
        assert!(held == 0 && room < 4000, "{held} held, room for {room}");
    }

    #[test]
    fn what_ends_late_takes_no_other_out() {
        let table: Arc<Living<Node>> = Arc::default();
        let first = intern(&table, 7);
        // As if it were ending while the next is made: nobody knows it.
        let second = table.intern(&7, |_| false, || Node { key: 7, table: table.clone() });
        drop(first);
        assert!(Arc::ptr_eq(&second, &intern(&table, 7)));
    }

    #[test]
    fn who_looks_may_be_the_last_to_hold_another_of_the_same_hash() {
        let table = Arc::default();
        let other = Mutex::new(Some(intern(&table, 7)));
        let look = |_: &Node| {
            drop(other.lock().take());
            false
        };
        assert!(table.find(&7, look).is_none());
        assert_eq!(room(&table).0, 0);
    }

    #[test]
    fn regression_a_key_that_a_node_never_had_takes_no_other_of_it_out() {
        let table: Arc<Living<Node>> = Arc::default();
        let node = intern(&table, 0);
        (1..64).for_each(|key| table.insert(&key, &node));
        (64..100_000).for_each(|key| table.remove(&key, &node));
        for key in 0..64 {
            assert!(table.find(&key, |_| true).is_some(), "{key}");
        }
    }

    #[test]
    fn a_node_of_several_keys_is_found_by_each() {
        let table: Arc<Living<Node>> = Arc::default();
        let node = intern(&table, 7);
        table.insert(&8, &node);
        assert!(table.find(&8, |_| true).is_some_and(|found| Arc::ptr_eq(&found, &node)));
        table.remove(&8, &node);
        assert!(table.find(&8, |_| true).is_none());
    }
}
