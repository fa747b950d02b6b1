//! Nodes: what a name of the merged tree leads to, and where it is in the layers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;
use splicefs_core::{FileKind, Identified, Layer, Living, Name, NodeId, Protection};

use crate::entries::Entries;
use crate::listing::Listing;
use crate::lowers::{Hides, LayerIndex, LowerDir, LowerNode, Lowers};
use crate::protect::KnownProtection;

/// What is particular to directories.
pub(crate) struct DirState {
    /// Held for writing over every change of the directory's names, for reading while one is looked up.
    pub(crate) entries: Entries,
    /// The upper directory has become opaque since the node was found: nothing is merged any more.
    opaque: AtomicBool,
    /// What is known of the upper directory's whiteouts.
    hides: OnceLock<Arc<Hides>>,
    /// The same of the lower directories, in their order.
    lower_hides: Box<[Arc<Hides>]>,
    /// Whether entries of the upper directory have an origin, once that has been read.
    pub(crate) impure: OnceLock<AtomicBool>,
    /// The merged names, as long as someone reads them and nothing changes.
    pub(crate) listing: Mutex<Weak<Listing>>,
}

impl DirState {
    fn new(hides: Option<Arc<Hides>>, lower_hides: Vec<Arc<Hides>>) -> Self {
        let known = OnceLock::new();
        if let Some(hides) = hides {
            known.get_or_init(|| hides);
        }
        Self {
            entries: Entries::default(),
            opaque: AtomicBool::new(false),
            hides: known,
            lower_hides: lower_hides.into(),
            impure: OnceLock::new(),
            listing: Mutex::new(Weak::new()),
        }
    }

    /// What is known of the upper directory's whiteouts.
    pub(crate) fn hides(&self) -> &Arc<Hides> {
        self.hides.get_or_init(Arc::default)
    }
}

/// Where a node is in the merged tree.
pub(crate) enum Place<L: Layer, U: Layer> {
    /// The root.
    Root,
    /// Under this name, one of perhaps several.
    At(Arc<Node<L, U>>, Name),
    /// Nowhere: it has been removed, or was made without a name.
    Nowhere,
}

impl<L: Layer, U: Layer> Clone for Place<L, U> {
    fn clone(&self) -> Self {
        match self {
            Self::Root => Self::Root,
            Self::At(parent, name) => Self::At(parent.clone(), name.clone()),
            Self::Nowhere => Self::Nowhere,
        }
    }
}

impl<L: Layer, U: Layer> Place<L, U> {
    /// What tells the name from every other.
    fn key(&self) -> Option<Key> {
        match self {
            Self::At(parent, name) => Some(Key::named(parent.id, name)),
            Self::Root | Self::Nowhere => None,
        }
    }
}

/// What tells one node from every other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Key {
    /// The node of the upper layer.
    Upper(NodeId),
    /// A layer and its node.
    Lower(LayerIndex, NodeId),
    /// A name in a directory: hard links of a lower file, each of which is to be copied up on its own.
    Named(Box<(NodeId, Name)>),
}

impl Key {
    /// The topmost counterpart of what is in no upper layer.
    pub(crate) fn lower<L: Layer>(topmost: &LowerNode<L>) -> Self {
        Self::Lower(topmost.index, topmost.node.id())
    }

    /// The name in the directory of that id.
    pub(crate) fn named(parent: NodeId, name: &Name) -> Self {
        Self::Named(Box::new((parent, name.clone())))
    }
}

/// By what a node is found besides its upper counterpart.
mod found_by {
    pub(super) const NOTHING: u8 = 0;
    /// Its topmost lower counterpart.
    pub(super) const LOWER: u8 = 1;
    /// The name that it is at.
    pub(super) const NAME: u8 = 2;
}

/// For the number of names of a file that is not in the index.
const NOT_INDEXED: u32 = u32::MAX;

/// A file, directory or other object of the merged tree. There is one for every name that was ever walked: what can be told
/// from the rest is not kept.
///
/// Lock order: `copying` of a node, then of its parent, and so on up;
/// `entries` of directories, of several at once none while another is waited for; then the leaves (place, listing, protection, the table of nodes).
pub struct Node<L: Layer, U: Layer> {
    pub(crate) id: NodeId,
    pub(crate) kind: FileKind,
    ino: AtomicU64,
    upper: OnceLock<Arc<U::Node>>,
    /// The id of the counterpart in the upper layer by which the node is found, before it is set when the node is copied up;
    /// 0 without one.
    upper_id: AtomicU64,
    lowers: SmallVec<[LowerNode<L>; 1]>,
    /// The topmost counterpart holds attributes alone, the data is further down.
    pub(crate) metacopy: AtomicBool,
    /// Under the node's one name no lower layer shows anything: it need not be looked for when the name goes.
    pub(crate) alone: AtomicBool,
    /// The contents have been given to the kernel with an open, or need not be.
    pub(crate) prefetched: AtomicBool,
    /// The topmost counterpart had several names when it was found.
    pub(crate) linked: bool,
    /// Names that were removed from a file that is in a lower layer only.
    pub(crate) removed: AtomicU32,
    /// How many names a file in the index has; [`NOT_INDEXED`] of others.
    links: AtomicU32,
    place: Mutex<Place<L, U>>,
    /// What it is protected from, once that has been read: it changes by a request of ours alone.
    pub(crate) protection: KnownProtection,
    /// By what it is found besides its upper counterpart: one of the numbers in [`found_by`].
    found_by: AtomicU8,
    /// Held while the node is copied up.
    pub(crate) copying: Mutex<()>,
    pub(crate) dir: Option<Box<DirState>>,
    nodes: Arc<Nodes<L, U>>,
}

/// What a new node is made of.
pub(crate) struct Parts<L: Layer, U: Layer> {
    pub(crate) kind: FileKind,
    pub(crate) ino: u64,
    pub(crate) upper: Option<Arc<U::Node>>,
    pub(crate) lowers: Lowers<L>,
    pub(crate) metacopy: bool,
    /// How many names a file in the index has.
    pub(crate) links: Option<u32>,
    /// The topmost counterpart has several names.
    pub(crate) linked: bool,
    /// What it is protected from, if that is known.
    pub(crate) protection: Option<Protection>,
    /// Of a directory: what is known of the upper one's whiteouts.
    pub(crate) hides: Option<Arc<Hides>>,
    pub(crate) place: Place<L, U>,
}

impl<L: Layer, U: Layer> Parts<L, U> {
    /// Nothing in any layer yet.
    pub(crate) fn new(kind: FileKind, ino: u64, place: Place<L, U>) -> Self {
        Self {
            kind,
            ino,
            upper: None,
            lowers: Lowers::default(),
            metacopy: false,
            links: None,
            linked: false,
            protection: None,
            hides: None,
            place,
        }
    }
}

impl<L: Layer, U: Layer> Identified for Node<L, U> {
    fn id(&self) -> NodeId {
        self.id
    }
}

impl<L: Layer, U: Layer> Node<L, U> {
    /// The inode number callers see: the same as long as the node lives, but for one of several names of a lower file that
    /// becomes a file of its own by being copied up.
    pub(crate) fn ino(&self) -> u64 {
        self.ino.load(Ordering::Acquire)
    }

    pub(crate) fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Release);
    }

    /// The counterpart in the upper layer, if there is one.
    pub(crate) fn upper(&self) -> Option<&Arc<U::Node>> {
        self.upper.get()
    }

    /// The counterparts in lower layers, the topmost first. A directory's are merged; of a file the last one holds the data.
    pub(crate) fn lowers(&self) -> &[LowerNode<L>] {
        match &self.dir {
            Some(dir) if dir.opaque.load(Ordering::Acquire) => &[],
            _ => &self.lowers,
        }
    }

    /// The lower directories that are merged in this one, the topmost first.
    pub(crate) fn lower_dirs(&self) -> impl Iterator<Item = LowerDir<L>> {
        self.as_dirs(self.lowers())
    }

    /// The directory in that lower layer, merged or not.
    pub(crate) fn lower_dir_in(&self, layer: usize) -> Option<LowerDir<L>> {
        self.as_dirs(&self.lowers).find(|dir| dir.layer() == layer)
    }

    fn as_dirs<'a>(&'a self, lowers: &'a [LowerNode<L>]) -> impl Iterator<Item = LowerDir<L>> + 'a {
        let hides = self.dir.iter().flat_map(|dir| &dir.lower_hides);
        lowers.iter().zip(hides).map(|(lower, hides)| LowerDir { lower: lower.clone(), hides: hides.clone() })
    }

    /// The directory's upper counterpart has become opaque.
    pub(crate) fn set_opaque(&self) {
        if let Some(dir) = &self.dir {
            dir.opaque.store(true, Ordering::Release);
        }
    }

    /// Whether the contents are in the upper layer.
    pub(crate) fn has_upper_data(&self) -> bool {
        self.upper.get().is_some() && !self.metacopy.load(Ordering::Acquire)
    }

    /// The node has been copied up. By the counterpart's key it is found already.
    pub(crate) fn set_upper(&self, upper: Arc<U::Node>) {
        if self.upper.set(upper).is_err() {
            log::error!("a node was copied up twice");
        }
    }

    /// How many names the node has, if it is a file in the index.
    pub(crate) fn links(&self) -> Option<u32> {
        Some(self.links.load(Ordering::Acquire)).filter(|&links| links != NOT_INDEXED)
    }

    /// The node is in the index, and has this many names.
    pub(crate) fn set_links(&self, links: u32) {
        self.links.store(links, Ordering::Release);
    }

    /// Counts names of a file in the index; how many there are then.
    pub(crate) fn change_links(&self, by: i32) -> Option<u32> {
        let count = |links| (links != NOT_INDEXED).then(|| u32::saturating_add_signed(links, by));
        self.links.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).ok().and_then(count)
    }

    /// The keys it is found by.
    fn keys(&self) -> impl Iterator<Item = Key> {
        let upper = match self.upper_id.load(Ordering::Acquire) {
            0 => None,
            id => Some(Key::Upper(NodeId(id))),
        };
        let other = match self.found_by.load(Ordering::Acquire) {
            found_by::LOWER => self.lowers.first().map(Key::lower),
            found_by::NAME => self.place.lock().key(),
            _ => None,
        };
        upper.into_iter().chain(other)
    }

    /// Whether it is found by that key.
    fn has(&self, key: &Key) -> bool {
        self.keys().any(|own| own == *key)
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.dir.is_some()
    }

    pub(crate) fn place(&self) -> Place<L, U> {
        self.place.lock().clone()
    }

    pub(crate) fn set_place(&self, place: Place<L, U>) {
        // The old place may hold the last reference to a directory: it is dropped after the lock.
        let old = std::mem::replace(&mut *self.place.lock(), place);
        self.left(&old);
    }

    /// The node is not found any more by the name of a place that it has left.
    fn left(&self, old: &Place<L, U>) {
        let (name, nothing) = (found_by::NAME, found_by::NOTHING);
        if self.found_by.compare_exchange(name, nothing, Ordering::AcqRel, Ordering::Acquire).is_ok()
            && let Some(key) = old.key()
        {
            self.nodes.living.remove(&key, self);
        }
    }

    pub(crate) fn is_at(&self, parent: &Arc<Self>, name: &Name) -> bool {
        matches!(&*self.place.lock(), Place::At(p, n) if Arc::ptr_eq(p, parent) && n == name)
    }

    /// Its path from the root, by one of its names; `None` of what has none any more.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut place = self.place();
        while let Place::At(parent, name) = place {
            names.push(name);
            place = parent.place();
        }
        let is_rooted = matches!(place, Place::Root);
        is_rooted.then(|| names.iter().rev().map(Name::as_os_str).collect())
    }

    /// The name that the node was found under is gone.
    pub(crate) fn unplace(&self, parent: &Arc<Self>, name: &Name) {
        let mut place = self.place.lock();
        if matches!(&*place, Place::At(p, n) if Arc::ptr_eq(p, parent) && n == name) {
            let old = std::mem::replace(&mut *place, Place::Nowhere);
            drop(place);
            self.left(&old);
        }
    }

    /// The names of the directory have changed.
    pub(crate) fn names_changed(&self) {
        if let Some(dir) = &self.dir {
            *dir.listing.lock() = Weak::new();
        }
    }
}

impl<L: Layer, U: Layer> Drop for Node<L, U> {
    fn drop(&mut self) {
        for key in self.keys() {
            self.nodes.living.remove(&key, self);
        }
        // Each node holds its parent. Dropped one inside the other, the nodes of a deep tree would overflow the stack.
        let mut next = std::mem::replace(self.place.get_mut(), Place::Nowhere);
        while let Place::At(parent, _) = next {
            let Some(mut parent) = Arc::into_inner(parent) else { break };
            next = std::mem::replace(parent.place.get_mut(), Place::Nowhere);
        }
    }
}

/// Every node that lives, by what it is in the layers.
pub(crate) struct Nodes<L: Layer, U: Layer> {
    next: AtomicU64,
    living: Living<Node<L, U>>,
}

impl<L: Layer, U: Layer> Nodes<L, U> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { next: AtomicU64::new(NodeId::ROOT.0), living: Living::default() })
    }

    /// The node of that key; a new one if none lives.
    pub(crate) fn intern(self: &Arc<Self>, key: Option<Key>, parts: Parts<L, U>) -> Arc<Node<L, U>> {
        let make = |key: Option<&Key>| {
            let Lowers { nodes: lowers, hides } = parts.lowers;
            let dir =
                (parts.kind == FileKind::Directory).then(|| Box::new(DirState::new(parts.hides, hides)));
            let (upper_id, found_by) = match key {
                Some(Key::Upper(id)) => (id.0, found_by::NOTHING),
                Some(Key::Lower(..)) => (0, found_by::LOWER),
                Some(Key::Named(_)) => (0, found_by::NAME),
                None => (0, found_by::NOTHING),
            };
            Node {
                id: NodeId(self.next.fetch_add(1, Ordering::Relaxed)),
                kind: parts.kind,
                ino: AtomicU64::new(parts.ino),
                upper: parts.upper.map_or_else(OnceLock::new, OnceLock::from),
                upper_id: AtomicU64::new(upper_id),
                lowers,
                metacopy: AtomicBool::new(parts.metacopy),
                alone: AtomicBool::new(false),
                prefetched: AtomicBool::new(false),
                linked: parts.linked,
                removed: AtomicU32::new(0),
                links: AtomicU32::new(parts.links.unwrap_or(NOT_INDEXED)),
                place: Mutex::new(parts.place),
                protection: KnownProtection::new(parts.protection),
                found_by: AtomicU8::new(found_by),
                copying: Mutex::new(()),
                dir,
                nodes: self.clone(),
            }
        };
        match key {
            Some(key) => self.living.intern(&key, |node| node.has(&key), || make(Some(&key))),
            None => Arc::new(make(None)),
        }
    }

    /// The node of that key, if it lives.
    pub(crate) fn known(&self, key: &Key) -> Option<Arc<Node<L, U>>> {
        self.living.find(key, |node| node.has(key))
    }

    /// The node is found by this upper node as well, which is to become its counterpart. To be called before anyone can come
    /// upon that.
    pub(crate) fn announce(&self, node: &Arc<Node<L, U>>, upper: NodeId) {
        node.upper_id.store(upper.0, Ordering::Release);
        self.living.insert(&Key::Upper(upper), node);
    }

    /// What was announced did not come about.
    pub(crate) fn withdraw(&self, node: &Node<L, U>, upper: NodeId) {
        node.upper_id.store(0, Ordering::Release);
        self.living.remove(&Key::Upper(upper), node);
    }
}

#[cfg(test)]
mod tests {
    use splicefs_passthrough::Passthrough;

    use super::*;

    #[test]
    fn a_node_takes_little_room() {
        // With its counts and the allocator's word it fits a block of 160.
        assert!(size_of::<Node<Passthrough, Passthrough>>() <= 136);
    }
}
