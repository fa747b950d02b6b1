//! Making nodes and giving them names.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use splicefs_core::{
    Caller, CreateFlags, Entry, Errno, FileKind, Make, Name, NodeId, Opened, Result, ownership,
};

use crate::content::Content;
use crate::dir::Directory;
use crate::file::{self, File};
use crate::node::{Body, Meta, Node};
use crate::store::PAGE;
use crate::{Tmpfs, opened};

/// Targets of links up to this length, with their NUL, take no page (`SHORT_SYMLINK_LEN` in mm/shmem.c).
const SHORT_SYMLINK: usize = 128;

impl Tmpfs {
    /// The meta data of a node that `caller` makes in `parent`: its owner, and its mode and ACLs as the umask or the
    /// parent's default ACL have it (`inode_init_owner` in fs/inode.c, `posix_acl_create` in fs/posix_acl.c).
    fn inherit(parent: &Node, caller: &Caller, mode: u32) -> Meta {
        let parent = parent.meta();
        let kind = FileKind::from_mode(mode);
        let (gid, mode) = ownership::inherited(parent.mode, parent.gid, caller, mode);
        let mut meta = Meta::new(mode, caller.uid, gid);
        if kind == FileKind::Symlink {
            return meta;
        }
        let Some(default) = parent.attributes.as_ref().and_then(|a| a.default.as_ref()) else {
            meta.mode &= !(caller.umask & 0o777);
            return meta;
        };
        let (access, permissions) = default.create(mode & 0o777);
        meta.mode = mode & !0o777 | permissions;
        let inherited = (kind == FileKind::Directory).then(|| default.clone());
        if access.is_some() || inherited.is_some() {
            let attributes = meta.attributes.get_or_insert_default();
            attributes.access = access;
            attributes.default = inherited;
        }
        meta
    }

    /// A node with an inode of its own, and pages for a long link.
    ///
    /// # Errors
    /// `ENOSPC` where the limits leave none.
    fn new_node(&self, mut meta: Meta, body: Body) -> Result<Arc<Node>> {
        let limits = &self.shared.store.limits;
        limits.take_inode()?;
        if let Body::Symlink(_, pages) = &body
            && let Err(e) = limits.take_pages(*pages)
        {
            limits.give_inode();
            return Err(e);
        }
        if matches!(body, Body::Directory(_)) {
            meta.nlink += 1;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Zero is no inode number to readdir(3).
        let ino = if self.inode32 { (id & u64::from(u32::MAX)).max(1) } else { id };
        Ok(Arc::new(Node::new(NodeId(id), ino, self.shared.clone(), body, meta)))
    }

    /// Makes a node with a name.
    pub(crate) fn make_node(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        what: Make<'_>,
    ) -> Result<Arc<Node>> {
        let mode = match what {
            Make::Directory(mode) => libc::S_IFDIR | mode & 0o7777,
            Make::Node(mode, _) if mode & libc::S_IFMT == 0 => libc::S_IFREG | mode & 0o7777,
            Make::Node(mode, _) => mode,
            Make::Symlink(target) if target.len() as u64 >= PAGE => return Err(Errno::ENAMETOOLONG.into()),
            Make::Symlink(_) => libc::S_IFLNK | 0o777,
        };
        self.shared.orphans.patiently(|| {
            let mut directory = parent.directory()?.write();
            directory.check_alive()?;
            if directory.find(name).is_some() {
                return Err(Errno::EEXIST.into());
            }
            let mut meta = Self::inherit(parent, caller, mode);
            meta.nlink = 1;
            let node = self.new_node(meta, body(parent, mode, what)?)?;
            directory.add(name, node.clone());
            let mut of_parent = parent.meta();
            if node.kind() == FileKind::Directory {
                of_parent.nlink += 1;
            }
            of_parent.modified();
            Ok(node)
        })
    }

    /// A whiteout, which is to be put in the place of an entry of `parent` (`shmem_whiteout`).
    pub(crate) fn new_whiteout(&self, caller: &Caller, parent: &Node) -> Result<Arc<Node>> {
        let mut meta = Self::inherit(parent, caller, libc::S_IFCHR);
        meta.nlink = 1;
        self.new_node(meta, Body::Special(0))
    }

    /// Creates and opens a regular file, or opens the one that has appeared meanwhile.
    pub(crate) fn create_file(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        let mode = libc::S_IFREG | mode & 0o7777;
        let node = match self.make_node(caller, parent, name, Make::Node(mode, 0)) {
            Err(e) if e.errno() == Errno::EEXIST && !flags.exclusive => {
                let node = parent.directory()?.read().get(name)?;
                if node.kind() != FileKind::Regular {
                    return Err(e);
                }
                if flags.open.has(libc::O_TRUNC) {
                    file::set_size(&node, caller, 0, true)?;
                }
                node
            }
            made => made?,
        };
        let attr = node.attr();
        Ok((Entry { node: node.clone(), attr }, opened(File::new(node, flags.open))))
    }

    /// Creates and opens a file without a name.
    pub(crate) fn create_nameless(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        parent.directory()?.read().check_alive()?;
        let node = self.shared.orphans.patiently(|| {
            let meta = Self::inherit(parent, caller, libc::S_IFREG | mode & 0o7777);
            self.new_node(meta, Body::File(RwLock::new(Content::new())))
        })?;
        let attr = node.attr();
        Ok((Entry { node: node.clone(), attr }, opened(File::new(node, flags.open))))
    }

    /// Gives `node` one more name.
    pub(crate) fn add_name(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name) -> Result<()> {
        self.shared.orphans.patiently(|| {
            let mut directory = parent.directory()?.write();
            directory.check_alive()?;
            if directory.find(name).is_some() {
                return Err(Errno::EEXIST.into());
            }
            if node.kind() == FileKind::Directory {
                return Err(Errno::EPERM.into());
            }
            node.gain_name()?;
            directory.add(name, node.clone());
            parent.meta().modified();
            Ok(())
        })
    }
}

/// What a node of `mode` holds when it is made in `parent`.
fn body(parent: &Arc<Node>, mode: u32, what: Make<'_>) -> Result<Body> {
    let number = if let Make::Node(_, rdev) = what { rdev } else { 0 };
    Ok(match (FileKind::from_mode(mode), what) {
        (FileKind::Directory, _) => {
            Body::Directory(Box::new(RwLock::new(Directory::new(Arc::downgrade(parent)))))
        }
        (_, Make::Symlink(target)) => {
            let pages = u64::from(target.len() + 1 > SHORT_SYMLINK);
            Body::Symlink(target.into(), pages)
        }
        (FileKind::Regular, _) => Body::File(RwLock::new(Content::new())),
        (FileKind::CharDevice | FileKind::BlockDevice, _) => Body::Special(number),
        (FileKind::Fifo | FileKind::Socket, _) => Body::Special(0),
        (FileKind::Symlink | FileKind::Unknown, _) => return Err(Errno::EINVAL.into()),
    })
}
