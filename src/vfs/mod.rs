//! Between a transport and a backend: which node and which open file a request means, and what the kernel may cache.
//!
//! Everything here takes and returns the project's own types; FUSE's are the transport's.

mod caching;
mod dirs;
mod files;
mod iomode;
mod length;
mod names;
mod poll;
mod unopened;
mod writeback;
mod xattrs;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use splicefs_core::{Attr, Backend, Entry, HandleId, HandleTable, NodeId, NodeTable, Result};

pub use caching::{Caching, FOR_EVER, Shown};
use iomode::IoMode;
pub use iomode::{BackingId, Way};
use length::Length;
use poll::Wakeups;
pub use unopened::FileRef;
use unopened::{Unopened, Use};
use writeback::Modified;
pub use xattrs::{Facilities, Facility, RECONFIGURE_XATTR, Report, STATS_XATTR, Stats};

/// Who may see what beyond permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The user who mounted, who may read `stats`.
    pub owner: u32,
    /// Only that user and root get in (`allow_root`).
    pub owner_and_root_only: bool,
    /// The kernel has been told that files have POSIX ACLs.
    pub acls: bool,
}

/// What the vfs tells the kernel unasked.
pub trait Kernel: Send + Sync + 'static {
    /// Wakes the waiter of poll(2) that the kernel gave this number.
    ///
    /// # Errors
    /// Those of the transport.
    fn wake(&self, waiter: u64) -> io::Result<()>;
    /// The node's attributes are no longer those the kernel was told of. Safe to call while a request is being served.
    ///
    /// # Errors
    /// Those of the transport.
    fn attributes_changed(&self, id: NodeId) -> io::Result<()>;
    /// Has the kernel keep a file that it is to read and write by itself, with the rights that the calling thread has now.
    ///
    /// # Errors
    /// `EPERM` where the daemon may not, `ELOOP` where the file's own file system is stacked too high.
    fn open_backing(&self, file: BorrowedFd<'_>) -> Result<BackingId>;
    /// The kernel need not keep the file for opens to come.
    ///
    /// # Errors
    /// Those of the transport.
    fn close_backing(&self, id: BackingId) -> Result<()>;
}

/// A node the kernel knows.
pub(crate) struct VNode<B: Backend> {
    pub(crate) node: Arc<B::Node>,
    pub(crate) length: Length,
    io_mode: IoMode,
    modified: Modified,
}

impl<B: Backend> VNode<B> {
    fn new(node: Arc<B::Node>) -> Self {
        Self { node, length: Length::default(), io_mode: IoMode::default(), modified: Modified::default() }
    }
}

/// An open file.
pub(crate) struct OpenFile<B: Backend> {
    pub(crate) vnode: Arc<VNode<B>>,
    pub(crate) file: B::File,
    /// What the file holds depends on who asks (procfs), so it is read and written as the caller.
    pub(crate) made_for_caller: bool,
    way: Way,
    writes: bool,
}

/// A mounted file system.
pub struct Vfs<B: Backend> {
    pub(crate) backend: B,
    nodes: NodeTable<VNode<B>>,
    files: HandleTable<OpenFile<B>>,
    unopened: Unopened<B>,
    dirs: HandleTable<B::Dir>,
    caching: Caching,
    access: Access,
    stats: Stats,
    kernel: Arc<dyn Kernel>,
    wakeups: Wakeups,
}

/// A node as the kernel is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The node's id.
    pub id: NodeId,
    /// Its attributes.
    pub shown: Shown,
}

/// A handle as the kernel is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle {
    /// Its number.
    pub id: HandleId,
    /// How reads and writes are served.
    pub way: Way,
    /// What the page cache of the kernel holds of the file is still what the file holds.
    pub keep: bool,
    /// The file has no offsets.
    pub stream: bool,
    /// Nothing is written through it, so that closing it has nothing to tell.
    pub read_only: bool,
}

impl<B: Backend> Vfs<B> {
    /// Serves `backend` to `kernel`.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new(
        backend: B,
        caching: Caching,
        access: Access,
        stats: Stats,
        kernel: Arc<dyn Kernel>,
    ) -> io::Result<Self> {
        let root = VNode::new(backend.root());
        Ok(Self {
            nodes: NodeTable::new(Arc::new(root)),
            files: HandleTable::default(),
            unopened: Unopened::new(),
            dirs: HandleTable::default(),
            backend,
            caching,
            access,
            stats,
            wakeups: Wakeups::new(kernel.clone())?,
            kernel,
        })
    }

    /// The kernel may have attributes of the node that a request has just changed behind its back.
    fn attributes_changed(&self, id: NodeId) {
        if let Err(e) = self.kernel.attributes_changed(id) {
            log::warn!("the kernel keeps old attributes of node {id} for a while: {e}");
        }
    }

    /// What the kernel may keep.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Whether a request of `uid` is let in at all. What the kernel sends on its own account (write-back, forget,
    /// release) carries no user and is not asked about.
    pub fn admits(&self, uid: u32) -> bool {
        !self.access.owner_and_root_only || uid == 0 || uid == self.access.owner
    }

    fn node(&self, id: NodeId) -> Result<Arc<VNode<B>>> {
        self.nodes.get(id)
    }

    /// What the kernel is told of a node's attributes.
    fn show(&self, vnode: &VNode<B>, attr: Attr) -> Shown {
        Shown { attr, lifetime: self.caching.attr_of(vnode.io_mode.bypass()) }
    }

    /// Counts a lookup of the entry's node.
    fn remember(&self, entry: Entry<B::Node>) -> (Found, Arc<VNode<B>>) {
        let id = self.backend.id(&entry.node);
        let vnode = self.nodes.remember(id, || VNode::new(entry.node));
        (Found { id, shown: self.show(&vnode, entry.attr) }, vnode)
    }
}
