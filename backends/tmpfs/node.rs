//! A node: what it is, and what stat(2) tells of it.

use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock};
use splicefs_core::{
    Attr, Caller, Errno, FileKind, Identified, NodeId, Protection, Result, Timestamp, ownership,
};

use crate::content::Content;
use crate::dir::Directory;
use crate::options::Atime;
use crate::orphans::Orphans;
use crate::store::{PAGE, Store};
use crate::time::{access_counts, now};
use crate::xattr::{self, Attributes};

/// About what a node costs in the heap beside its contents: itself, its entry, and what the serving code keeps of it. In
/// bytes, for the estimate of when it is worth while to give memory back.
const WEIGHT: usize = 512;
/// What stat(2) calls a block, in bytes.
const BLOCK: u64 = 512;

/// What a node holds.
///
/// Lock order: the rename gate, then directories (an ancestor before its descendants, others by id), then one file's
/// content, then one [`Meta`], then the limits. Nothing takes two contents or two metas at once.
pub(crate) enum Body {
    File(RwLock<Content>),
    Directory(Box<RwLock<Directory>>),
    /// The target, and the pages it counts for.
    Symlink(Box<[u8]>, u64),
    /// A device (with its number in the kernel's 32-bit encoding), FIFO or socket.
    Special(u32),
}

/// What chmod(2), chown(2), utimensat(2) and link(2) change.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    /// Type and permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names, and for a directory its own `.` and the `..` of each directory in it.
    pub(crate) nlink: u32,
    /// Those who use it ([`crate::life::InUse`]).
    pub(crate) users: u32,
    /// Its room counts as free already ([`crate::life`]).
    pub(crate) room_given: bool,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// Extended attributes and ACLs; most nodes have none.
    pub(crate) attributes: Option<Box<Attributes>>,
}

impl Meta {
    /// A node made now, without a name.
    pub(crate) fn new(mode: u32, uid: u32, gid: u32) -> Self {
        let now = now();
        Self {
            mode,
            uid,
            gid,
            nlink: 0,
            users: 0,
            room_given: false,
            atime: now,
            mtime: now,
            ctime: now,
            attributes: None,
        }
    }

    /// The node changed, its contents did not.
    pub(crate) fn changed(&mut self) {
        self.ctime = now();
    }

    /// The contents changed.
    pub(crate) fn modified(&mut self) {
        self.ctime = now();
        self.mtime = self.ctime;
    }

    /// What a change of contents or owner takes away from a file: setuid and setgid bits unless `caller` may keep them,
    /// file capabilities in any case (`file_remove_privs` in fs/inode.c).
    pub(crate) fn remove_privileges(&mut self, caller: &Caller, store: &Store) {
        if !caller.fsetid {
            self.drop_setid(caller);
        }
        xattr::remove_capabilities(self, store);
    }

    /// Clears setuid and setgid bits, but for a setgid bit that `caller` has a right to.
    pub(crate) fn drop_setid(&mut self, caller: &Caller) {
        self.mode = ownership::without_setid(self.mode, self.gid, caller);
    }
}

/// What all nodes of a mount share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) orphans: Orphans,
    pub(crate) atime: Atime,
}

/// A file, directory, link or special file.
pub struct Node {
    id: NodeId,
    ino: u64,
    shared: Arc<Shared>,
    body: Body,
    meta: Mutex<Meta>,
}

impl Identified for Node {
    fn id(&self) -> NodeId {
        self.id
    }
}

impl Node {
    /// A node, for which an inode and the pages of a link have been taken from the limits; its drop gives them back.
    pub(crate) fn new(id: NodeId, ino: u64, shared: Arc<Shared>, body: Body, meta: Meta) -> Self {
        shared.store.heap.grew(WEIGHT);
        Self { id, ino, shared, body, meta: Mutex::new(meta) }
    }

    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    pub(crate) fn store(&self) -> &Store {
        &self.shared.store
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    /// The kind of node, which never changes.
    pub(crate) fn kind(&self) -> FileKind {
        match &self.body {
            Body::File(_) => FileKind::Regular,
            Body::Directory(_) => FileKind::Directory,
            Body::Symlink(..) => FileKind::Symlink,
            Body::Special(_) => FileKind::from_mode(self.meta().mode),
        }
    }

    pub(crate) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock()
    }

    /// The contents were read.
    pub(crate) fn accessed(&self) {
        let now = now();
        let mut meta = self.meta();
        if access_counts(self.shared.atime, meta.atime, meta.mtime, meta.ctime, now) {
            meta.atime = now;
        }
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// `ENOTDIR` for anything else.
    pub(crate) fn directory(&self) -> Result<&RwLock<Directory>> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    /// The bytes of a regular file.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `EINVAL` for anything else, as read(2).
    pub(crate) fn content(&self) -> Result<&RwLock<Content>> {
        match &self.body {
            Body::File(content) => Ok(content),
            Body::Directory(_) => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// What stat(2) tells. The caller holds none of the node's locks.
    pub(crate) fn attr(&self) -> Attr {
        let (size, pages, rdev) = match &self.body {
            Body::File(content) => {
                let content = content.read();
                (content.size(), content.pages(), 0)
            }
            Body::Directory(directory) => (directory.read().size(), 0, 0),
            Body::Symlink(target, pages) => (target.len() as u64, *pages, 0),
            Body::Special(rdev) => (0, 0, *rdev),
        };
        let meta = self.meta();
        Attr {
            ino: self.ino,
            size,
            blocks: pages * (PAGE / BLOCK),
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
            mode: meta.mode,
            nlink: meta.nlink,
            uid: meta.uid,
            gid: meta.gid,
            rdev,
            blksize: u32::try_from(PAGE).unwrap_or(u32::MAX),
            // There are no such flags.
            protection: Protection::default(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let store = &self.shared.store;
        let room_given = self.meta.get_mut().room_given;
        match &mut self.body {
            Body::File(content) if room_given => content.get_mut().discard(store),
            Body::File(content) => content.get_mut().clear(store),
            Body::Directory(directory) => drop_tree(directory.get_mut()),
            Body::Symlink(_, pages) if !room_given => store.limits.give_pages(*pages),
            Body::Symlink(..) | Body::Special(_) => {}
        }
        if !room_given {
            let attributes = &self.meta.get_mut().attributes;
            store.limits.give_inode_space(attributes.as_ref().map_or(0, |attributes| attributes.space()));
            store.limits.give_inode();
        }
        store.heap.freed(WEIGHT);
        store.heap.trim_if_due();
    }
}

/// Drops what a directory holds, level by level: a tree may be deeper than a stack.
fn drop_tree(directory: &mut Directory) {
    let mut nodes: Vec<_> = directory.take_all().collect();
    while let Some(node) = nodes.pop() {
        if let Some(mut node) = Arc::into_inner(node)
            && let Body::Directory(directory) = &mut node.body
        {
            nodes.extend(directory.get_mut().take_all());
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.id)
    }
}
