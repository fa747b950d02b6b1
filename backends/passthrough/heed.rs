//! Which nodes are watched, when, and what is made of an event.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Statx;
use splicefs_core::{Change, Identified, Listener, Name, NodeId, Result};

use crate::node::{Node, Place};
use crate::stat;
use crate::tree::Tree;
use crate::watch::{Watches, needs_watch};

impl Tree {
    fn watches(&self) -> Option<&Watches> {
        self.nodes.watches.as_ref()
    }

    /// To be asked before a file is looked at that is then handed to [`Tree::heed`].
    pub(crate) fn begin_look(&self) -> u64 {
        self.watches().map_or(0, Watches::begin)
    }

    /// Sees to it that changes of `node` are heard of, as far as that can be: it was found under `name` in `parent` by a look
    /// that began at `begun`. Returns what it is like then: `st`, or what a second look shows if it is watched only now.
    pub(crate) fn heed(
        &self,
        (parent, name, dir): (&Arc<Node>, &Name, &OwnedFd),
        node: &Arc<Node>,
        st: Statx,
        begun: u64,
    ) -> Result<Statx> {
        let Some(watches) = self.watches() else { return Ok(st) };
        // What is mounted on a name has another directory, which is told of it (`fsnotify_parent`).
        let mounted = node.identity().file_system() != parent.identity().file_system();
        if !mounted && !needs_watch(node.identity().kind(), st.stx_nlink) {
            if node.is_at(parent, name) {
                watches.named(parent, name, node, begun);
                if !node.is_at(parent, name) {
                    // Who has moved it meanwhile may not have found the name.
                    watches.unnamed(node.id(), &Place::At(parent.clone(), name.clone()));
                }
            }
            return Ok(st);
        }
        self.notice_links(node, st.stx_nlink);
        if watches.is_watched(node, begun) {
            return Ok(st);
        }
        let open = || self.descriptor_in(node, dir, name);
        if self.watch(node, open) { stat::of_fd(open()?) } else { Ok(st) }
    }

    /// A file that has other names than the one it was found by is not heard of by that one any more.
    pub(crate) fn notice_links(&self, node: &Node, names: u32) {
        if let Some(watches) = self.watches()
            && names != 1
        {
            watches.unnamed(node.id(), &node.place());
        }
    }

    /// Watches `node`, which `open` opens, if its file system tells of every change. Returns whether it is watched.
    pub(crate) fn watch(&self, node: &Arc<Node>, open: impl Fn() -> Result<Arc<OwnedFd>>) -> bool {
        let Some(watches) = self.watches() else { return false };
        let watched = || -> Result<bool> {
            let class = self.nodes.classes.get(node.identity().file_system(), &open)?;
            Ok(class.is_local() && watches.add(node, &*open()?))
        };
        watched().unwrap_or_else(|e| {
            log::debug!("a file of the source cannot be watched: {e}");
            false
        })
    }

    /// The node that `name` leads to in the directory now, if it is one that lives.
    fn look(&self, dir: NodeId, name: &Name) -> Option<NodeId> {
        let parent = self.watches()?.node(dir)?;
        // Where the directory is gone, so are its names.
        let fd = self.descriptor(&parent).ok()?;
        if self.refuse_covered(&parent, &fd, name).is_err() {
            return None;
        }
        self.known(&fd, name).map(|(node, _)| node.id())
    }
}

impl Listener for Tree {
    fn ready(&self) -> BorrowedFd<'_> {
        // Only a tree with watches is handed out as a listener; the root's descriptor is never readable.
        self.watches().map_or_else(|| self.root_fd(), Watches::fd)
    }

    fn hear(&self, sink: &mut dyn FnMut(Change)) -> Result<()> {
        self.watches().map_or(Ok(()), |watches| watches.hear(sink))
    }

    fn touched(&self, change: &Change) -> Vec<NodeId> {
        let Some(watches) = self.watches() else { return Vec::new() };
        match change {
            Change::Node(id) => vec![*id],
            Change::Named(dir, name) => {
                watches.child(*dir, name, false).or_else(|| self.look(*dir, name)).into_iter().collect()
            }
            Change::Name(dir, name) => {
                let was = watches.child(*dir, name, true);
                let is = self.look(*dir, name).filter(|is| Some(*is) != was);
                was.into_iter().chain(is).collect()
            }
            Change::Anything => {
                watches.forget_names();
                self.nodes.all()
            }
        }
    }

    fn watches(&self) -> usize {
        self.watches().map_or(0, Watches::len)
    }
}

impl Node {
    /// The node is no longer at `place`.
    pub(crate) fn left(&self, place: &Place) {
        if let Some(watches) = &self.nodes().watches {
            watches.unnamed(self.id(), place);
        }
    }
}
