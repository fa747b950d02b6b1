//! The entries of one directory: found by name, listed in the order in which they came.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Weak};

use hashbrown::{DefaultHashBuilder, HashTable};
use splicefs_core::{Errno, Name, Result};

use crate::node::Node;

/// What stat(2) shows as the length of an entry: directories have none, but programs take 0 for a broken one
/// (`BOGO_DIRENT_SIZE` in mm/shmem.c).
const ENTRY_SIZE: u64 = 20;
/// The position of `.`; that of `..` comes next, then the entries.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;
const FIRST: u64 = 3;

/// An entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    pub(crate) node: Arc<Node>,
}

/// The entries of a directory.
///
/// An entry has a position, which grows with each entry that is added and is never used again: that is what makes
/// cookies stable whatever comes and goes (as `simple_offset` in fs/libfs.c).
#[derive(Debug)]
pub(crate) struct Directory {
    /// By position.
    entries: BTreeMap<u64, Entry>,
    /// Positions, by the hash of the name.
    index: HashTable<u64>,
    hasher: DefaultHashBuilder,
    next: u64,
    /// Where `..` leads; nothing for the root, which is its own parent.
    parent: Weak<Node>,
    /// The directory has been removed: nothing can be made in it any more.
    dead: bool,
}

impl Directory {
    /// An empty directory.
    pub(crate) fn new(parent: Weak<Node>) -> Self {
        Self {
            entries: BTreeMap::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            next: FIRST,
            parent,
            dead: false,
        }
    }

    /// What stat(2) shows as its length, in bytes.
    pub(crate) fn size(&self) -> u64 {
        (2 + self.entries.len() as u64) * ENTRY_SIZE
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where `..` leads, unless this is the root.
    pub(crate) fn parent(&self) -> Option<Arc<Node>> {
        self.parent.upgrade()
    }

    pub(crate) fn set_parent(&mut self, parent: &Arc<Node>) {
        self.parent = Arc::downgrade(parent);
    }

    /// The directory is being removed.
    pub(crate) fn die(&mut self) {
        self.dead = true;
    }

    /// # Errors
    /// `ENOENT` once the directory has been removed, as `may_create` in fs/namei.c.
    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.dead { Err(Errno::ENOENT.into()) } else { Ok(()) }
    }

    fn position(&self, name: &[u8]) -> Option<u64> {
        let named =
            |position: &u64| self.entries.get(position).is_some_and(|entry| entry.name.as_bytes() == name);
        self.index.find(self.hasher.hash_one(name), named).copied()
    }

    /// The node that `name` leads to.
    pub(crate) fn find(&self, name: &Name) -> Option<&Arc<Node>> {
        self.entries.get(&self.position(name.as_bytes())?).map(|entry| &entry.node)
    }

    /// The node that `name` leads to.
    ///
    /// # Errors
    /// `ENOENT` where there is none.
    pub(crate) fn get(&self, name: &Name) -> Result<Arc<Node>> {
        self.find(name).cloned().ok_or_else(|| Errno::ENOENT.into())
    }

    /// Adds an entry, last in the order. The caller knows that there is none of that name.
    pub(crate) fn add(&mut self, name: &Name, node: Arc<Node>) {
        let hash = self.hasher.hash_one(name.as_bytes());
        let position = self.next;
        self.next += 1;
        self.entries.insert(position, Entry { name: name.clone(), node });
        let (entries, hasher) = (&self.entries, &self.hasher);
        // Every position in the index has its entry.
        let rehash = |at: &u64| entries.get(at).map_or(0, |entry| hasher.hash_one(entry.name.as_bytes()));
        self.index.insert_unique(hash, position, rehash);
    }

    /// Takes the entry `name` out.
    pub(crate) fn remove(&mut self, name: &Name) -> Option<Arc<Node>> {
        let hash = self.hasher.hash_one(name.as_bytes());
        let position = self.position(name.as_bytes())?;
        if let Ok(found) = self.index.find_entry(hash, |at| *at == position) {
            found.remove();
        }
        let entry = self.entries.remove(&position)?;
        if self.entries.is_empty() {
            self.index = HashTable::new();
        } else if self.index.len() < self.index.capacity() / 8 {
            let (entries, hasher) = (&self.entries, &self.hasher);
            self.index.shrink_to(2 * self.entries.len(), |at| {
                entries.get(at).map_or(0, |entry| hasher.hash_one(entry.name.as_bytes()))
            });
        }
        Some(entry.node)
    }

    /// Lets `name` lead to `node`, at the same position, and returns where it led before.
    pub(crate) fn replace(&mut self, name: &Name, node: Arc<Node>) -> Option<Arc<Node>> {
        let position = self.position(name.as_bytes())?;
        let entry = self.entries.get_mut(&position)?;
        Some(std::mem::replace(&mut entry.node, node))
    }

    /// The position that the next entry will have.
    pub(crate) fn end(&self) -> u64 {
        self.next
    }

    /// The entries at positions after `from` and before `end`, in order.
    pub(crate) fn after(&self, from: u64, end: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let start = from.saturating_add(1).max(FIRST);
        self.entries.range(start..end.max(start)).map(|(position, entry)| (*position, entry))
    }

    /// Takes every entry out.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Arc<Node>> + use<> {
        self.index = HashTable::new();
        std::mem::take(&mut self.entries).into_values().map(|entry| entry.node)
    }
}
