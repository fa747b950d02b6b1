//! Nodes: source files the kernel or an open handle refers to, and where to find each again.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use splicefs_core::{Identified, Living, Name, NodeId};

use crate::descriptors::Descriptors;
use crate::fsclass::FsClasses;
use crate::modes::Modes;
use crate::moves::Moves;
use crate::recent::Recent;
use crate::stat::Identity;
use crate::watch::Watches;

/// Where a node's file can be found.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Under this name in this directory, when last seen.
    At(Arc<Node>, Name),
    /// Nowhere by name: files removed while in use, or made without a name. The descriptor stays open as long as the
    /// node.
    Pinned(Arc<OwnedFd>),
    /// Under names that are not known, after those that were are gone. The descriptor stays open until the file is found by another.
    Held(Arc<OwnedFd>),
    /// Where something begins: the root of a layer, or what the mount covers. Whatever other way leads to it, in another
    /// layer perhaps, it stays one; the descriptor stays open as long as the node.
    Root(Arc<OwnedFd>),
    /// Nobody knows. The kernel looks the file up again when told `ESTALE`, if it opens it.
    Lost,
}

#[derive(Debug)]
struct Whereabouts {
    place: Place,
    other: Option<Box<OtherWays>>,
}

/// A name in a directory.
type Link = (Arc<Node>, Name);

/// Ways to a node that lead there no more: to be dropped after the locks, since a directory may go with them.
#[must_use]
pub(crate) struct Forgotten(#[allow(dead_code)] Option<Place>, #[allow(dead_code)] Vec<Link>);

impl Forgotten {
    pub(crate) const NOTHING: Self = Self(None, Vec::new());
}

/// Further ways to a node. Few nodes have any.
#[derive(Debug, Default)]
struct OtherWays {
    /// Descriptors of open files, which lead to the node as long as they are open: not closed when last looked at.
    open: Vec<Weak<OwnedFd>>,
    /// Names that the file was found by before it was by its place, and has beside it.
    names: Vec<Link>,
}

/// So many other names of a file are remembered.
const MOST_NAMES: usize = 64;

impl Whereabouts {
    fn is_at(&self, parent: &Arc<Node>, name: &Name) -> bool {
        matches!(&self.place, Place::At(p, n) if Arc::ptr_eq(p, parent) && n == name)
    }

    fn names(&mut self) -> Option<&mut Vec<Link>> {
        self.other.as_mut().map(|other| &mut other.names)
    }

    /// Forgets another name than that of the place, if it is one.
    fn forget_name(&mut self, parent: &Arc<Node>, name: &Name) -> Option<Link> {
        let names = self.names()?;
        let at = names.iter().position(|(p, n)| Arc::ptr_eq(p, parent) && n == name)?;
        Some(names.swap_remove(at))
    }

    /// Takes a name that is not that of the place.
    fn take_name(&mut self) -> Option<Place> {
        self.names()?.pop().map(|(parent, name)| Place::At(parent, name))
    }
}

/// A file, directory or other object of the source.
///
/// Lock order: a node's whereabouts are a leaf but for the descriptor cache's lock; no system call is made under them.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    identity: Identity,
    whereabouts: Mutex<Whereabouts>,
    nodes: Arc<Nodes>,
}

impl Identified for Node {
    fn id(&self) -> NodeId {
        self.id
    }
}

impl Node {
    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Where the node was that now is nowhere.
    fn leave(&mut self) -> Place {
        let place = std::mem::replace(&mut self.whereabouts.get_mut().place, Place::Lost);
        self.left(&place);
        place
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn place(&self) -> Place {
        self.whereabouts.lock().place.clone()
    }

    /// Moves the node, unless it is a root.
    pub(crate) fn set_place(&self, place: Place) -> Forgotten {
        let old = {
            let mut whereabouts = self.whereabouts.lock();
            if matches!(whereabouts.place, Place::Root(_)) {
                return Forgotten(Some(place), Vec::new());
            }
            std::mem::replace(&mut whereabouts.place, place)
        };
        self.left(&old);
        Forgotten(Some(old), Vec::new())
    }

    /// The node is found under `name` in `parent` from now on, and has `links` names: those that it was found by before stay known.
    pub(crate) fn found_at(&self, parent: &Arc<Self>, name: &Name, links: u32) -> Forgotten {
        let new = Place::At(parent.clone(), name.clone());
        let (old, forgotten) = {
            let mut whereabouts = self.whereabouts.lock();
            if matches!(whereabouts.place, Place::Root(_)) {
                return Forgotten::NOTHING;
            }
            let mut forgotten: Vec<_> = whereabouts.forget_name(parent, name).into_iter().collect();
            let old = std::mem::replace(&mut whereabouts.place, new);
            if let (Place::At(parent, name), true) = (&old, links > 1) {
                let names = &mut whereabouts.other.get_or_insert_default().names;
                if names.len() < MOST_NAMES {
                    names.push((parent.clone(), name.clone()));
                }
            } else if let Some(names) = whereabouts.names() {
                forgotten.append(names);
            }
            (old, forgotten)
        };
        self.left(&old);
        Forgotten(Some(old), forgotten)
    }

    /// The name is gone, and the file `has_others`. `fd` is a descriptor of it, of one that was found there last; it is taken if it is
    /// needed.
    pub(crate) fn lost_name(
        &self,
        parent: &Arc<Self>,
        name: &Name,
        fd: &mut Option<Arc<OwnedFd>>,
        has_others: bool,
    ) -> Forgotten {
        let (old, forgotten) = {
            let mut whereabouts = self.whereabouts.lock();
            let forgotten = whereabouts.forget_name(parent, name).into_iter().collect();
            if !whereabouts.is_at(parent, name) {
                return Forgotten(None, forgotten);
            }
            let another = if has_others { whereabouts.take_name() } else { None };
            let held = if has_others { Place::Held } else { Place::Pinned };
            let new = another.unwrap_or_else(|| fd.take().map_or(Place::Lost, held));
            (std::mem::replace(&mut whereabouts.place, new), forgotten)
        };
        self.left(&old);
        Forgotten(Some(old), forgotten)
    }

    /// The name `from` is `to` now.
    pub(crate) fn renamed(&self, from: (&Arc<Self>, &Name), to: (&Arc<Self>, &Name)) -> Forgotten {
        let new = (to.0.clone(), to.1.clone());
        let (old, forgotten) = {
            let mut whereabouts = self.whereabouts.lock();
            let forgotten = [from, to].into_iter();
            let forgotten =
                forgotten.filter_map(|(parent, name)| whereabouts.forget_name(parent, name)).collect();
            match &whereabouts.place {
                Place::Root(_) => return Forgotten(None, forgotten),
                // Found by its new name already.
                Place::At(..) if whereabouts.is_at(to.0, to.1) => return Forgotten(None, forgotten),
                Place::At(..) if !whereabouts.is_at(from.0, from.1) => {
                    whereabouts.other.get_or_insert_default().names.push(new);
                    return Forgotten(None, forgotten);
                }
                _ => (std::mem::replace(&mut whereabouts.place, Place::At(new.0, new.1)), forgotten),
            }
        };
        self.left(&old);
        Forgotten(Some(old), forgotten)
    }

    /// The file is not `there`, where it was looked for: whether there is another place to look, by another name that it was found by, or where
    /// others have found it meanwhile.
    pub(crate) fn turn_from(&self, there: &Place) -> bool {
        let old = {
            let mut whereabouts = self.whereabouts.lock();
            match there {
                Place::At(parent, name) if whereabouts.is_at(parent, name) => {}
                Place::At(..) => return true,
                _ => return false,
            }
            let Some(another) = whereabouts.take_name() else { return false };
            std::mem::replace(&mut whereabouts.place, another)
        };
        self.left(&old);
        true
    }

    /// Whether the node's last name is gone.
    pub(crate) fn is_removed(&self) -> bool {
        matches!(self.whereabouts.lock().place, Place::Pinned(_))
    }

    /// Whether the node was found under this very name last.
    pub(crate) fn is_at(&self, parent: &Arc<Self>, name: &Name) -> bool {
        self.whereabouts.lock().is_at(parent, name)
    }

    /// A descriptor that needs no opening: pinned, cached, or that of an open file.
    pub(crate) fn descriptor_at_hand(&self) -> Option<Arc<OwnedFd>> {
        if let Some(fd) = self.nodes.descriptors.get(self.id) {
            return Some(fd);
        }
        let whereabouts = self.whereabouts.lock();
        match &whereabouts.place {
            Place::Pinned(fd) | Place::Held(fd) | Place::Root(fd) => Some(fd.clone()),
            _ => whereabouts.other.as_ref()?.open.iter().find_map(Weak::upgrade),
        }
    }

    /// An open file's descriptor leads to the node from now on, until it is closed.
    pub(crate) fn opened(&self, fd: &Arc<OwnedFd>) {
        let mut whereabouts = self.whereabouts.lock();
        let open = &mut whereabouts.other.get_or_insert_default().open;
        open.retain(|open| open.strong_count() > 0);
        open.push(Arc::downgrade(fd));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.nodes.descriptors.remove(self.id);
        self.nodes.recent.tidy(Some(self.id));
        self.nodes.living.remove(&self.identity, self);
        if let Some(watches) = &self.nodes.watches {
            watches.gone(self.id);
        }
        // Each node holds its parent. Dropped one inside the other, the nodes of a deep tree would overflow the stack.
        let mut next = self.leave();
        while let Place::At(parent, _) = next {
            let Some(mut parent) = Arc::into_inner(parent) else { break };
            next = parent.leave();
        }
    }
}

/// Every node that lives, by identity: hard links are one node. Trees that share one may overlap: what both lead to is
/// one node then, if both lead to it on the same mount.
///
/// Lock order: `moves`, then a node's whereabouts; `modes` are a leaf.
#[derive(Debug)]
pub(crate) struct Nodes {
    next: AtomicU64,
    living: Living<Node>,
    pub(crate) descriptors: Descriptors,
    /// Files of a moment ago, held open.
    pub(crate) recent: Recent,
    pub(crate) classes: FsClasses,
    /// Where changes by others are heard of.
    pub(crate) watches: Option<Watches>,
    /// Nobody looks for a file under a name that it has just lost.
    pub(crate) moves: Moves,
    /// Nobody is shown a mode that is wider than it is meant to be.
    pub(crate) modes: Modes,
}

impl Nodes {
    pub(crate) fn new(watches: Option<Watches>) -> Arc<Self> {
        Arc::new(Self {
            next: AtomicU64::new(NodeId::ROOT.0),
            living: Living::default(),
            descriptors: Descriptors::new(),
            recent: Recent::default(),
            classes: FsClasses::default(),
            watches,
            moves: Moves::default(),
            modes: Modes::default(),
        })
    }

    /// The node of that identity, if one lives.
    pub(crate) fn find(&self, identity: &Identity) -> Option<Arc<Node>> {
        self.living.find(identity, |node| node.identity == *identity)
    }

    /// The node of that identity; a new one, found at `place`, if none lives.
    pub(crate) fn intern(self: &Arc<Self>, identity: Identity, place: impl FnOnce() -> Place) -> Arc<Node> {
        let make = || Node {
            id: NodeId(self.next.fetch_add(1, Ordering::Relaxed)),
            identity,
            whereabouts: Mutex::new(Whereabouts { place: place(), other: None }),
            nodes: self.clone(),
        };
        self.living.intern(&identity, |node| node.identity == identity, make)
    }

    /// The node of that identity as a root, reached by `fd` for good.
    pub(crate) fn intern_root(self: &Arc<Self>, identity: Identity, fd: &Arc<OwnedFd>) -> Arc<Node> {
        let node = self.intern(identity, || Place::Root(fd.clone()));
        // One that has been met by another way, or is a root already, lives.
        drop(node.set_place(Place::Root(fd.clone())));
        node
    }

    /// The ids of all nodes that live.
    pub(crate) fn all(&self) -> Vec<NodeId> {
        self.living.all().iter().map(|node| node.id).collect()
    }
}
