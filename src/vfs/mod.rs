//! Between a transport and a backend: which node and which open file a request means, and what the kernel may cache.
//!
//! Everything here takes and returns the project's own types; FUSE's are the transport's.

mod caching;
mod dirs;
mod files;
mod hearing;
mod iomode;
mod length;
mod lookups;
mod lost;
mod names;
mod poll;
mod prefetch;
mod replied;
mod turns;
mod unopened;
mod writeback;
mod xattrs;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use splicefs_core::{
    Attr, Backend, Entry, HandleId, HandleTable, HeapUse, Identified, Listener, Name, NodeId, NodeTable,
    Result,
};

pub use caching::{Cache, Caching, FOR_EVER, Kept, Shown};
pub use hearing::Hearing;
use hearing::{Told, Uncertain};
pub use iomode::{BackingId, Way};
use iomode::{Bypass, IoMode};
use length::Length;
use lookups::Lookups;
use poll::Wakeups;
pub use turns::Turn;
use turns::Turns;
pub use unopened::FileRef;
use unopened::{Unopened, Use};
use writeback::{Fetching, Modified};
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
    /// Attributes and contents of the node have changed, or a directory's entries. Not to be called while a request is being
    /// served.
    ///
    /// # Errors
    /// Those of the transport.
    fn node_changed(&self, id: NodeId) -> io::Result<()>;
    /// Has the kernel write back what was written to the file from `offset` on, and drop its pages from there: returns when that is done.
    /// Others must be there meanwhile to answer the WRITEs.
    ///
    /// # Errors
    /// Those of the transport.
    fn write_back(&self, id: NodeId, offset: u64) -> io::Result<()>;
    /// The name may lead elsewhere now. Not to be called while a request is being served.
    ///
    /// # Errors
    /// Those of the transport.
    fn name_changed(&self, dir: NodeId, name: &Name) -> io::Result<()>;
    /// These are the contents of the file from its beginning. It waits for the locks of its pages, which reads hold until they are
    /// answered, and overwrites what was written to them: not to be called while anybody has the file open.
    ///
    /// # Errors
    /// Those of the transport.
    fn contents(&self, id: NodeId, bytes: &[u8]) -> io::Result<()>;
    /// Every name may lead elsewhere now.
    ///
    /// # Errors
    /// Those of the transport; `EINVAL` where the kernel has no such message.
    fn all_names_changed(&self) -> io::Result<()>;
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

/// What is kept of a node whose contents are used.
pub(crate) struct Used {
    pub(crate) length: Length,
    io_mode: IoMode,
    /// How many open files of it are programs that are run.
    running: AtomicUsize,
    /// What [`Backend::hears`] said when data was last left in the page cache, or [`UNHEARD`].
    heard: AtomicU64,
    modified: Modified,
    /// Something that was written to it could not be kept, and that was logged.
    lost: AtomicBool,
}

/// About what a node that the kernel knows takes, in bytes, its backend's part included.
const NODE_BYTES: usize = 200;

/// No number of [`Backend::hears`].
const UNHEARD: u64 = u64::MAX;

impl Default for Used {
    fn default() -> Self {
        Self {
            length: Length::default(),
            io_mode: IoMode::default(),
            running: AtomicUsize::new(0),
            modified: Modified::default(),
            heard: AtomicU64::new(UNHEARD),
            lost: AtomicBool::new(false),
        }
    }
}

impl Used {
    /// Whether it is as it would be made anew. What the kernel was told of times (`modified`) counts as long as pages may be
    /// written back, which is until the file is closed.
    fn is_idle(&self) -> bool {
        self.length.is_settled()
            && self.io_mode.bypass() == Bypass::Never
            && self.running.load(Ordering::Relaxed) == 0
            && self.heard.load(Ordering::Relaxed) == UNHEARD
            && !self.lost.load(Ordering::Relaxed)
    }
}

/// An open file.
pub(crate) struct OpenFile<B: Backend> {
    pub(crate) node: Arc<B::Node>,
    pub(crate) used: Arc<Used>,
    pub(crate) file: B::File,
    /// What the file holds depends on who asks (procfs), so it is read and written as the caller.
    pub(crate) made_for_caller: bool,
    way: Way,
    writes: bool,
    /// It is a program that is run. The process holds it open until it ends.
    runs: bool,
}

/// A mounted file system.
pub struct Vfs<B: Backend> {
    pub(crate) backend: B,
    /// Of most nodes the kernel only wants to know that they are there; they have no state.
    nodes: NodeTable<B::Node, Used>,
    heap: HeapUse,
    files: HandleTable<OpenFile<B>>,
    unopened: Unopened<B>,
    dirs: HandleTable<B::Dir>,
    lookups: Lookups,
    caching: Caching,
    /// Changes that were to be heard of are not any more.
    deaf: AtomicBool,
    told: Told,
    uncertain: Uncertain,
    turns: Turns,
    fetching: Fetching,
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
    /// How long the name leads to it.
    pub lifetime: Duration,
}

/// What a name leads to, as the kernel is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookedUp {
    /// A node, which the kernel holds one more reference to.
    Found(Found),
    /// Nothing, for so long.
    Missing(Duration),
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
    /// Nothing is to be read from the page cache.
    pub direct: bool,
    /// The file has no offsets.
    pub stream: bool,
    /// Closing it has nothing to tell.
    pub closes_silently: bool,
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
        Ok(Self {
            nodes: NodeTable::new(&backend.root()),
            heap: HeapUse::default(),
            files: HandleTable::default(),
            unopened: Unopened::new(Arc::default()),
            dirs: HandleTable::default(),
            lookups: Lookups::new(caching.outlasts_answers()),
            backend,
            caching,
            deaf: AtomicBool::new(false),
            told: Told::default(),
            uncertain: Uncertain::new()?,
            turns: Turns::default(),
            fetching: Fetching::default(),
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

    /// Tells the kernel of attributes that have changed by the way, as those of a directory that was copied up.
    pub(crate) fn tell_changed(&self) {
        for id in self.backend.take_changed() {
            self.attributes_changed(id);
        }
    }

    /// Whether a request of `uid` is let in at all. What the kernel sends on its own account (write-back, forget,
    /// release) carries no user and is not asked about.
    pub fn admits(&self, uid: u32) -> bool {
        !self.access.owner_and_root_only || uid == 0 || uid == self.access.owner
    }

    fn node(&self, id: NodeId) -> Result<Arc<B::Node>> {
        self.nodes.get(id)
    }

    /// What the kernel may keep of the node, or of a directory's names, as things are.
    fn kept(&self, node: &Arc<B::Node>) -> Kept {
        if self.backend.depends_on_caller(node) {
            return Kept::NOTHING;
        }
        self.caching.kept(!self.caching.listens() || self.heard(node) != UNHEARD)
    }

    /// The number of [`Backend::hears`], or [`UNHEARD`].
    fn heard(&self, node: &Arc<B::Node>) -> u64 {
        let deaf = self.deaf.load(Ordering::SeqCst);
        if deaf { UNHEARD } else { self.backend.hears(node).unwrap_or(UNHEARD) }
    }

    /// What hears of changes by others, if they are to be heard of.
    pub fn listener(&self) -> Option<Arc<dyn Listener>> {
        if self.caching.listens() { self.backend.listener().ok() } else { None }
    }

    /// Thread `thread` asks for something, and waits for that itself.
    pub(crate) fn heard_from(&self, thread: u32) {
        self.lookups.heard_from(thread);
    }

    /// One more thread answers requests.
    pub fn join(&self) -> Arc<Turn> {
        self.turns.join()
    }

    /// Whether what the page cache holds of the node may stay there when it is opened: nothing was missed since it was opened
    /// last.
    fn keeps_data(&self, node: &Arc<B::Node>) -> bool {
        if !self.caching.listens() {
            return self.caching.kept(true).contents;
        }
        let heard = self.heard(node);
        self.nodes.state(node).heard.swap(heard, Ordering::Relaxed) == heard
            && self.caching.kept(heard != UNHEARD).contents
    }

    /// Whether the kernel changes the node by itself.
    fn bypass(&self, node: &B::Node) -> Bypass {
        self.nodes.state_if_any(node).map_or(Bypass::Never, |used| used.io_mode.bypass())
    }

    /// What the kernel is told of a node's attributes, which `before` they were looked at it might keep as that says.
    fn show(&self, node: &Arc<B::Node>, attr: Attr, before: Kept) -> Shown {
        let bypass = self.bypass(node);
        Shown { attr, lifetime: before.attr_of(bypass).min(self.kept(node).attr_of(bypass)) }
    }

    /// Counts a lookup of the entry's node. Names of its directory may be kept as `names` says.
    fn remember(&self, entry: Entry<B::Node>, names: Kept) -> (Found, Arc<B::Node>) {
        let Entry { node, attr } = entry;
        if self.nodes.remember(&node) {
            self.heap.grew(NODE_BYTES);
        }
        let shown = self.show(&node, attr, self.caching.kept(true));
        (Found { id: node.id(), shown, lifetime: names.entry }, node)
    }
}
