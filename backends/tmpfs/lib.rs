//! A file system in memory that behaves as the kernel's tmpfs (tmpfs(5), mm/shmem.c) and never populates a hole.
//!
//! - names and what is known of nodes: [`node`], [`dir`], `create`, `remove`, `rename`, `setattr`, `xattr`, `acl`
//! - bytes: `content` (small files in the heap, large ones in a memfd each), handed out by `file`
//! - room: `limits`, `store`, `life`, `orphans`
//!
//! The order of locks stands at [`node::Body`]; the gate of [`Tmpfs`] comes before all of them.

mod acl;
mod backend;
mod content;
mod create;
mod dir;
mod file;
mod layer;
mod life;
mod limits;
mod memory;
mod node;
mod options;
mod orphans;
mod ranges;
mod remove;
mod rename;
mod setattr;
mod store;
mod time;
mod xattr;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use splicefs_core::{NodeId, Opened, Result};

use dir::Directory;
pub use file::File;
use life::InUse;
pub use memory::GroupLimit;
pub use node::Node;
use node::{Body, Meta, Shared};
pub use options::{Atime, DEFAULT_MODE, Limit, Options, PAGE_BYTES, Resize};
use store::Store;

/// Descriptors that files leave to everything else in the process.
const SPARE_DESCRIPTORS: usize = 256;

/// A file system in memory.
pub struct Tmpfs {
    root: Arc<Node>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    inode32: bool,
    /// Held by a rename between directories.
    gate: Mutex<()>,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    node: InUse,
    /// Entries from this position on came after the directory was opened or rewound. They are not listed, or a program
    /// that renames every entry it meets would never come to the end.
    end: AtomicU64,
}

impl Tmpfs {
    /// An empty file system. Large files take descriptors, as many as the process may have open.
    ///
    /// # Errors
    /// `ENOSPC` where not even the root finds room.
    pub fn new(options: &Options) -> Result<Self> {
        let limits = limits::Limits::new(options.pages.map(Into::into), options.inodes.map(Into::into));
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors = descriptors.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let store = Store::new(limits, descriptors.saturating_sub(SPARE_DESCRIPTORS));
        store.limits.take_inode()?;
        let shared = Arc::new(Shared { store, orphans: orphans::Orphans::default(), atime: options.atime });
        let mut meta = Meta::new(libc::S_IFDIR | options.mode & 0o7777, options.uid, options.gid);
        meta.nlink = 2;
        let body = Body::Directory(Box::new(RwLock::new(Directory::new(Weak::new()))));
        let root = Arc::new(Node::new(NodeId::ROOT, NodeId::ROOT.0, shared.clone(), body, meta));
        Ok(Self {
            root,
            shared,
            next_id: AtomicU64::new(NodeId::ROOT.0 + 1),
            inode32: options.inode32,
            gate: Mutex::new(()),
        })
    }
}

/// An opened file as the serving code takes it.
fn opened(file: File) -> Opened<File> {
    Opened { file, direct_io: false, stream: false, changed: false }
}

impl fmt::Debug for Tmpfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tmpfs")
    }
}
