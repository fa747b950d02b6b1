//! The tree of nodes: from names to nodes, and from nodes back to descriptors.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Statx, openat, openat2};
use splicefs_core::{Attr, Entry, Errno, Error, FileKind, Identified, Name, Result, sys};

use crate::fsclass::FsClass;
use crate::modes::{Seen, meant};
use crate::moves::Count;
use crate::node::{Forgotten, Node, Nodes, Place};
use crate::stat::{self, Identity};

/// A look that renames in the directory, or modes that come and go, outrun this often tells what it has seen.
const LOOKS: usize = 64;
/// No tree is this deep; a chain of parents that is has a cycle in it.
pub(crate) const DEEPEST: usize = 1 << 16;

/// The directory that the mount covers, where that lies inside the source.
#[derive(Debug)]
pub(crate) struct Covered {
    parent: (u64, u64),
    name: Name,
    /// What is underneath, opened before mounting.
    fd: Arc<OwnedFd>,
}

/// The source directory as nodes.
///
/// Lock order: the moves of the nodes, then a node's whereabouts, then the leaves (node map, descriptor cache). None is held over a
/// system call on the source.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: Arc<Nodes>,
    root: Arc<Node>,
    /// A second root ([`Tree::adopt`]).
    adopted: OnceLock<Arc<Node>>,
    root_fd: Arc<OwnedFd>,
    root_dev: u64,
    covered: Option<Arc<Covered>>,
    pub(crate) block_devices_as_files: bool,
    /// `/sys/dev/block`, opened before anything is mounted over it; only where block devices are shown as files.
    sizes: Option<OwnedFd>,
}

/// How one component of a path is opened: the component itself, inside the directory, on whatever is mounted there.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, name: &Name, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(dir, name.as_c_str(), flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve)?)
}

/// A descriptor (`O_PATH`) of the directory that `path` leads to.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Covered {
    /// The directory `mount_point`, before it is mounted over.
    pub(crate) fn open(mount_point: &Path) -> Result<Option<Self>> {
        use std::os::unix::ffi::OsStrExt;
        let (Some(parent), Some(name)) = (mount_point.parent(), mount_point.file_name()) else {
            return Ok(None);
        };
        let st = stat::of_fd(open_directory(parent)?)?;
        let fd = Arc::new(open_directory(mount_point)?);
        Ok(Some(Self { parent: (stat::device(&st), st.stx_ino), name: Name::new(name.as_bytes())?, fd }))
    }
}

impl Tree {
    /// The directory that `fd` has open, as nodes among `nodes`.
    pub(crate) fn open(
        nodes: Arc<Nodes>,
        fd: OwnedFd,
        covered: Option<Arc<Covered>>,
        block_devices_as_files: bool,
    ) -> Result<Arc<Self>> {
        let fd = Arc::new(fd);
        let st = stat::of_fd(&fd)?;
        let root = nodes.intern_root(nodes.classes.identity(&st, || Ok(fd.clone()))?, &fd);
        Ok(Arc::new(Self {
            nodes,
            root,
            adopted: OnceLock::new(),
            root_fd: fd,
            root_dev: stat::device(&st),
            covered,
            block_devices_as_files,
            sizes: block_devices_as_files.then(|| open_directory(Path::new("/sys/dev/block"))).transpose()?,
        }))
    }

    /// A second root: the directory `path`, which is reached through the same mount as the first.
    ///
    /// # Errors
    /// `EXDEV` where it is on another mount or file system: nothing could be renamed between the two.
    pub(crate) fn adopt(&self, path: &Path) -> Result<Arc<Node>> {
        let fd = Arc::new(open_directory(path)?);
        let identity = self.nodes.classes.identity(&stat::of_fd(&fd)?, || Ok(fd.clone()))?;
        if identity.file_system() != self.root.identity().file_system() {
            return Err(Errno::EXDEV.into());
        }
        let root = self.nodes.intern_root(identity, &fd);
        self.adopted.get_or_init(|| root.clone());
        Ok(root)
    }

    /// Whether `node` is where this tree begins, or nowhere by name.
    pub(crate) fn has_root(&self, node: &Arc<Node>) -> bool {
        let is = |root: &Arc<Node>| Arc::ptr_eq(root, node);
        is(&self.root)
            || self.adopted.get().is_some_and(is)
            || matches!(node.place(), Place::Pinned(_) | Place::Held(_))
    }

    /// The device number of the file system that holds the root.
    pub(crate) fn root_dev(&self) -> u64 {
        self.root_dev
    }

    pub(crate) fn root(&self) -> Arc<Node> {
        self.root.clone()
    }

    /// A descriptor of the root.
    pub(crate) fn root_fd(&self) -> BorrowedFd<'_> {
        self.root_fd.as_fd()
    }

    /// The class of the file system that holds `node`.
    pub(crate) fn class(&self, node: &Arc<Node>) -> Result<FsClass> {
        self.nodes.classes.get(node.identity().file_system(), || self.descriptor(node))
    }

    /// The node that `name` leads to.
    pub(crate) fn lookup(&self, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        let dir = self.descriptor(parent)?;
        if let Some(fd) = self.covered_by_the_mount(parent, &dir, name)? {
            let st = stat::of_fd(&fd)?;
            let node = self.nodes.intern_root(self.nodes.classes.identity(&st, || Ok(fd.clone()))?, &fd);
            return Ok(Entry { attr: self.attr(&st), node });
        }
        self.entry(parent, name, &dir, || stat::of_name(dir.as_fd(), name.as_c_str()))
    }

    /// The entry for what `look` shows, which is or was found under `name` in `parent`.
    pub(crate) fn entry(
        &self,
        parent: &Arc<Node>,
        name: &Name,
        dir: &OwnedFd,
        look: impl Fn() -> Result<Statx>,
    ) -> Result<Entry<Node>> {
        for again in (0..LOOKS).rev() {
            let (count, modes, begun) =
                (self.nodes.moves.count(parent.id()), self.nodes.modes.seen(), self.begin_look());
            let st = look()?;
            let identity = self
                .nodes
                .classes
                .identity(&st, || open_beneath(dir.as_fd(), name, OFlags::PATH, Mode::empty()))?;
            let node = self.nodes.intern(identity, || Place::At(parent.clone(), name.clone()));
            if !self.settle(&node, parent, name, st.stx_nlink, count) && again > 0 {
                continue;
            }
            let mut st = self.heed((parent, name, dir), &node, st, begun)?;
            if self.put_right(&node, modes, &mut st) || again == 0 {
                return Ok(Entry { attr: self.attr(&st), node });
            }
        }
        Err(Errno::ESTALE.into())
    }

    /// Puts the mode right that a look after `seen` has shown, as it is meant to be. False: it is to be looked at again.
    fn put_right(&self, node: &Node, seen: Seen, st: &mut Statx) -> bool {
        self.nodes.modes.put_right(node.id(), seen, |before| {
            let now = u32::from(st.stx_mode);
            st.stx_mode = u16::try_from(now & libc::S_IFMT | meant(before, now)).unwrap_or(st.stx_mode);
        })
    }

    /// What `look` shows of `node`, whose mode is what it is meant to be.
    pub(crate) fn look_truly(&self, node: &Node, look: impl Fn() -> Result<Statx>) -> Result<Statx> {
        for again in (0..LOOKS).rev() {
            let seen = self.nodes.modes.seen();
            let mut st = look()?;
            if self.put_right(node, seen, &mut st) || again == 0 {
                return Ok(st);
            }
        }
        Err(Errno::ESTALE.into())
    }

    /// The node that `name` leads to, if it is one that lives; nothing is created.
    pub(crate) fn known(&self, dir: &OwnedFd, name: &Name) -> Option<(Arc<Node>, Statx)> {
        // Where this fails, what is to be done under the name fails as well, and says why.
        let st = stat::of_name(dir.as_fd(), name.as_c_str()).ok()?;
        let open = || open_beneath(dir.as_fd(), name, OFlags::PATH, Mode::empty());
        let identity = self.nodes.classes.identity(&st, open).ok()?;
        Some((self.nodes.find(&identity)?, st))
    }

    /// Refuses to remove or rename the directory that the mount covers, as the kernel refuses it of mount points. Even
    /// to look at it by its name would be a request to ourselves.
    pub(crate) fn refuse_covered(&self, parent: &Node, dir: &OwnedFd, name: &Name) -> Result<()> {
        match self.covered_by_the_mount(parent, dir, name)? {
            Some(_) => Err(Errno::EBUSY.into()),
            None => Ok(()),
        }
    }

    fn covered_by_the_mount(
        &self,
        parent: &Node,
        dir: &OwnedFd,
        name: &Name,
    ) -> Result<Option<Arc<OwnedFd>>> {
        let Some(covered) = self.covered.as_ref().filter(|covered| covered.name == *name) else {
            return Ok(None);
        };
        if parent.identity().dev() != covered.parent.0 {
            return Ok(None);
        }
        let st = stat::of_fd(dir)?;
        Ok(((stat::device(&st), st.stx_ino) == covered.parent).then(|| covered.fd.clone()))
    }

    /// Whether `st`, read from where `node` should be, is that node's.
    pub(crate) fn is(&self, node: &Arc<Node>, st: &Statx) -> bool {
        let birth_counts = self.class_known(node) != Some(FsClass::Overlay);
        Identity::of(st, birth_counts) == *node.identity()
    }

    /// Whether birth times tell the files of the file system of `node` apart.
    pub(crate) fn birth_counts(&self, node: &Arc<Node>) -> Result<bool> {
        Ok(self.class(node)? != FsClass::Overlay)
    }

    fn class_known(&self, node: &Node) -> Option<FsClass> {
        self.nodes
            .classes
            .get(node.identity().file_system(), || Err::<OwnedFd, Error>(Errno::ESTALE.into()))
            .ok()
    }

    /// Remembers that `node`, which has `links` names, was found under `name` in `parent` after so many renames there. False if there
    /// was another since: it may be elsewhere.
    fn settle(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name, links: u32, count: Count) -> bool {
        let is_current = || self.nodes.moves.count(parent.id()) == count;
        if node.is_at(parent, name) {
            return is_current();
        }
        let _forgotten;
        let _noting = self.nodes.moves.noting();
        if !is_current() {
            return false;
        }
        _forgotten = self.place(node, parent, name, links);
        true
    }

    /// The same for one who notes moves.
    fn place(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name, links: u32) -> Forgotten {
        if node.is_at(parent, name) || node.is_removed() {
            // What was found is from before the removal.
            return Forgotten::NOTHING;
        }
        if node.identity().kind() != FileKind::Directory {
            node.found_at(parent, name, links)
        } else if self.is_ancestor(node, parent) {
            // The source was rearranged underneath: by what is remembered the directory would contain itself.
            node.set_place(Place::Lost)
        } else {
            node.set_place(Place::At(parent.clone(), name.clone()))
        }
    }

    /// Remembers that what was `from` is `to` now, for one who notes moves.
    pub(crate) fn moved(
        &self,
        node: &Arc<Node>,
        from: (&Arc<Node>, &Name),
        to: (&Arc<Node>, &Name),
    ) -> Forgotten {
        if node.identity().kind() == FileKind::Directory {
            self.place(node, to.0, to.1, 1)
        } else if node.is_removed() {
            Forgotten::NOTHING
        } else {
            node.renamed(from, to)
        }
    }

    fn is_ancestor(&self, node: &Arc<Node>, of: &Arc<Node>) -> bool {
        let mut current = of.clone();
        for _ in 0..DEEPEST {
            if Arc::ptr_eq(&current, node) {
                return true;
            }
            match current.place() {
                Place::At(parent, _) => current = parent,
                _ => return false,
            }
        }
        true
    }

    /// A descriptor of `node`, often `O_PATH`. Directories on the way to it are opened as far as needed.
    ///
    /// # Errors
    /// `ESTALE` where the source no longer has the node's file under the name it was found by.
    pub(crate) fn descriptor(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = node.descriptor_at_hand() {
            return Ok(fd);
        }
        loop {
            let there = node.place();
            match self.descriptor_by_place(node) {
                Err(e) if e.errno() == Errno::ESTALE && node.turn_from(&there) => {}
                found => return found,
            }
        }
    }

    /// Again where something on the way was moved meanwhile.
    fn descriptor_by_place(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        loop {
            let mut missed = None;
            match self.go_to(node, &mut missed) {
                Err(e) if e.errno() == Errno::ESTALE => {
                    let Some((missed, parent, name)) = missed else { return Err(e) };
                    if !self.nodes.moves.wait_for(missed.id()) && missed.is_at(&parent, &name) {
                        return Err(e);
                    }
                }
                found => return found,
            }
        }
    }

    /// Goes to `node` by the places of the directories on the way. What is not in its place is `missed`, and the place.
    fn go_to(
        &self,
        node: &Arc<Node>,
        missed: &mut Option<(Arc<Node>, Arc<Node>, Name)>,
    ) -> Result<Arc<OwnedFd>> {
        let mut way = Vec::new();
        let mut next = node.clone();
        let mut fd = loop {
            if let Some(fd) = next.descriptor_at_hand() {
                break fd;
            }
            if way.len() > DEEPEST {
                return Err(Error::fault(Errno::ELOOP, "a directory is remembered inside itself"));
            }
            let Place::At(parent, name) = next.place() else { return Err(Errno::ESTALE.into()) };
            way.push((next, parent.clone(), name));
            next = parent;
        };
        for (node, parent, name) in way.into_iter().rev() {
            match self.descriptor_in(&node, &fd, &name) {
                Ok(found) => fd = found,
                Err(e) => {
                    *missed = Some((node, parent, name));
                    return Err(e);
                }
            }
        }
        Ok(fd)
    }

    /// A descriptor of `node`, which was found under `name` in `dir`.
    pub(crate) fn descriptor_in(&self, node: &Arc<Node>, dir: &OwnedFd, name: &Name) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = node.descriptor_at_hand() {
            return Ok(fd);
        }
        let fd = self.open_known(node, dir, name)?;
        self.nodes.descriptors.put(node.id(), fd.clone());
        Ok(fd)
    }

    fn open_known(&self, node: &Arc<Node>, dir: &OwnedFd, name: &Name) -> Result<Arc<OwnedFd>> {
        let open = || open_beneath(dir.as_fd(), name, OFlags::PATH, Mode::empty());
        let fd = self.nodes.descriptors.with_room(open).map_err(stale_if_gone)?;
        if !self.is(node, &stat::of_fd(&fd)?) {
            return Err(Errno::ESTALE.into());
        }
        Ok(Arc::new(fd))
    }

    /// What statx(2) tells of `node` now, without opening anything where that can be helped.
    pub(crate) fn statx(&self, node: &Arc<Node>) -> Result<Statx> {
        if let Some(fd) = node.descriptor_at_hand() {
            return stat::of_fd(&fd);
        }
        if let Place::At(parent, name) = node.place()
            && let Ok(st) = stat::of_name(self.descriptor(&parent)?.as_fd(), name.as_c_str())
            && self.is(node, &st)
        {
            return Ok(st);
        }
        stat::of_fd(&self.descriptor(node)?)
    }

    /// The attributes callers see.
    pub(crate) fn attr(&self, st: &Statx) -> Attr {
        let mut attr = stat::attr(st, self.root_dev);
        if self.block_devices_as_files && attr.kind() == FileKind::BlockDevice {
            let size = self.block_device_size(st);
            attr.mode = libc::S_IFREG | (attr.mode & 0o444);
            attr.size = size;
            attr.blocks = size / 512;
            attr.rdev = 0;
        }
        attr
    }

    /// The size of a block device in bytes, from sysfs, which needs no permission to open the device; 0 where it is gone.
    fn block_device_size(&self, st: &Statx) -> u64 {
        const SECTOR: u64 = 512;
        let Some(sizes) = &self.sizes else { return 0 };
        let path = format!("{}:{}/size", st.stx_rdev_major, st.stx_rdev_minor);
        let mut text = String::new();
        let read = openat(sizes, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|fd| std::fs::File::from(fd).read_to_string(&mut text));
        match (read, text.trim().parse::<u64>()) {
            (Ok(_), Ok(sectors)) => sectors * SECTOR,
            other => {
                log::debug!("no size of block device {path}: {other:?}");
                0
            }
        }
    }

    /// The inode number callers see for `ino` in a directory of the file system `dev`.
    pub(crate) fn shown_ino(&self, ino: u64, dev: u64) -> u64 {
        stat::ino(ino, dev, self.root_dev)
    }
}

/// What is no longer there under its name makes the kernel look again, not report a missing file it can still see.
pub(crate) fn stale_if_gone(e: Error) -> Error {
    match e.errno() {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => Errno::ESTALE.into(),
        _ => e,
    }
}

/// A path to what `fd` has open, for the system calls that take no `O_PATH` descriptor.
pub(crate) fn path_of(fd: &OwnedFd) -> String {
    sys::fd_path(fd.as_fd())
}
