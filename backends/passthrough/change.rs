//! Creating, linking, removing and renaming.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags as OsRename, Statx, linkat, makedev, mkdirat, mknodat,
    openat, renameat_with, symlinkat, unlinkat,
};
use splicefs_core::sys::creds::As;
use splicefs_core::{
    Caller, CreateFlags, Entry, Errno, Error, Identified, Make, Name, OpenFlags, Opened, RenameFlags, Result,
    device,
};

use crate::file::File;
use crate::node::{Forgotten, Node, Place};
use crate::stat;
use crate::taking::Taken;
use crate::tree::{Tree, open_beneath, path_of};

/// Setgid and group execution: a file with both keeps its setgid bit only for members of the group
/// (`mode_strip_sgid` in fs/inode.c).
const SETGID_EXECUTABLE: u32 = 0o2010;
/// Whoever loses the race for a name this often is told so.
const ATTEMPTS: usize = 8;

fn groups_matter(mode: u32) -> bool {
    mode & SETGID_EXECUTABLE == SETGID_EXECUTABLE
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_retain(mode & 0o7777)
}

/// The flags of open(2) that a file is created with.
fn creation_flags(flags: OpenFlags) -> OFlags {
    OFlags::from_bits_retain(flags.0.cast_unsigned())
        & (OFlags::RWMODE | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME)
}

impl Tree {
    pub(crate) fn make(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        what: Make<'_>,
    ) -> Result<Entry<Node>> {
        let dir = self.descriptor(parent)?;
        let at = name.as_c_str();
        {
            let mode = if let Make::Node(mode, _) = what { mode } else { 0 };
            let _guard = caller.act(As::Creator, groups_matter(mode))?;
            match what {
                Make::Directory(mode) => mkdirat(&*dir, at, permissions(mode))?,
                Make::Symlink(target) => symlinkat(target, &*dir, at)?,
                Make::Node(mode, rdev) => {
                    let (major, minor) = device::decode(rdev);
                    let kind = FileType::from_raw_mode(mode);
                    mknodat(&*dir, at, kind, permissions(mode), makedev(major, minor))?;
                }
            }
        }
        self.found(parent, name, &dir)
    }

    /// The entry that was just made under `name`.
    fn found(&self, parent: &Arc<Node>, name: &Name, dir: &OwnedFd) -> Result<Entry<Node>> {
        self.entry(parent, name, dir, || stat::of_name(dir.as_fd(), name.as_c_str()))
    }

    pub(crate) fn create(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        let dir = self.descriptor(parent)?;
        for _ in 0..ATTEMPTS {
            match self.create_new(caller, &dir, name, mode, flags.open) {
                Err(e) if e.errno() == Errno::EEXIST && !flags.exclusive => {}
                Err(e) => return Err(e),
                Ok(fd) => return self.created(parent, name, &dir, fd, flags.open),
            }
            match self.open_existing(caller, &dir, name, mode, flags.open) {
                Err(e) if e.errno() == Errno::ENOENT => {}
                Err(e) => return Err(e),
                Ok(fd) => return self.created(parent, name, &dir, fd, flags.open),
            }
        }
        Err(Errno::EEXIST.into())
    }

    fn create_new(
        &self,
        caller: &Caller,
        dir: &OwnedFd,
        name: &Name,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<OwnedFd> {
        let _guard = caller.act(As::Creator, groups_matter(mode))?;
        let flags = creation_flags(flags) | OFlags::CREATE | OFlags::EXCL;
        self.nodes.descriptors.with_room(|| open_beneath(dir.as_fd(), name, flags, permissions(mode)))
    }

    /// Someone else made the name since the kernel looked. The kernel has not checked the permission to open what is there now: it does
    /// when it is told `ESTALE`, and looks the name up once more. Only what the source allows to the caller itself is opened at once, so
    /// that who loses such a race twice need not be told of it.
    ///
    /// With `O_CREAT` once more, since there is more that forbids to open a file so (`may_create_in_sticky` in fs/namei.c).
    fn open_existing(
        &self,
        caller: &Caller,
        dir: &OwnedFd,
        name: &Name,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<OwnedFd> {
        if flags.has(libc::O_TRUNC) {
            // Reads that are on their way must be waited for, as opening by node does.
            return Err(Errno::ESTALE.into());
        }
        let is_file = |st: &Statx| FileType::from_raw_mode(u32::from(st.stx_mode)).is_file();
        let guard = caller.act_without_capabilities().inspect_err(|e| log::debug!("{e}"));
        let Ok(Some(_guard)) = guard else { return Err(Errno::ESTALE.into()) };
        let opened = || {
            // A link or a special file is the kernel's to follow or open.
            if !is_file(&stat::of_name(dir.as_fd(), name.as_c_str())?) {
                return Err(Error::from(Errno::ESTALE));
            }
            let passed = creation_flags(flags) | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
            open_beneath(dir.as_fd(), name, passed, permissions(mode))
        };
        // A lease is waited for elsewhere (EAGAIN).
        let fd = self.nodes.descriptors.with_room(opened).map_err(|e| match e.errno() {
            Errno::ELOOP | Errno::ENXIO | Errno::EAGAIN | Errno::EISDIR | Errno::EACCES | Errno::EPERM => {
                Errno::ESTALE.into()
            }
            _ => e,
        })?;
        if is_file(&stat::of_fd(&fd)?) { Ok(fd) } else { Err(Errno::ESTALE.into()) }
    }

    fn created(
        &self,
        parent: &Arc<Node>,
        name: &Name,
        dir: &OwnedFd,
        fd: OwnedFd,
        flags: OpenFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        let entry = self.entry(parent, name, dir, || stat::of_fd(&fd))?;
        let opened = self.opened(&entry.node, Arc::new(fd), flags)?;
        Ok((entry, opened))
    }

    pub(crate) fn tmpfile(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        let dir = self.descriptor(parent)?;
        let fd = {
            let _guard = caller.act(As::Creator, groups_matter(mode))?;
            let mut how = creation_flags(flags.open) | OFlags::TMPFILE | OFlags::CLOEXEC;
            if flags.exclusive {
                how |= OFlags::EXCL;
            }
            let open = || Ok(openat(&*dir, c".", how, permissions(mode))?);
            Arc::new(self.nodes.descriptors.with_room(open)?)
        };
        let st = stat::of_fd(&fd)?;
        let identity = crate::stat::Identity::of(&st, self.birth_counts(parent)?);
        let node = self.nodes.intern(identity, || Place::Pinned(fd.clone()));
        let opened = self.opened(&node, fd, flags.open)?;
        Ok((Entry { attr: self.attr(&st), node }, opened))
    }

    pub(crate) fn link(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        let file = self.descriptor(node)?;
        let dir = self.descriptor(parent)?;
        linkat(CWD, path_of(&file), &*dir, name.as_c_str(), AtFlags::SYMLINK_FOLLOW)?;
        if node.is_removed() {
            // A file made without a name (O_TMPFILE) has one now.
            drop(node.set_place(Place::At(parent.clone(), name.clone())));
        }
        self.found(parent, name, &dir)
    }

    pub(crate) fn remove(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        directory: bool,
    ) -> Result<()> {
        let dir = self.descriptor(parent)?;
        self.refuse_covered(parent, &dir, name)?;
        let mut victim = self.victim(parent, name, &dir);
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let _under_way = self.nodes.moves.begin(victim.iter().map(|victim| victim.node.id()));
        self.taking(caller, &[Taken { dir: &dir, name }], |_| Ok(unlinkat(&*dir, name.as_c_str(), flags)?))?;
        if let Some(victim) = &mut victim {
            drop(victim.detach(parent, name));
        }
        Ok(())
    }

    /// What is known by `name` and would lose it.
    fn victim(&self, parent: &Arc<Node>, name: &Name, dir: &OwnedFd) -> Option<Victim> {
        let (node, st) = self.known(dir, name)?;
        let has_others = st.stx_nlink > 1 && !FileType::from_raw_mode(u32::from(st.stx_mode)).is_dir();
        if !node.is_at(parent, name) {
            return Some(Victim { node, fd: None, has_others });
        }
        let fd = self.descriptor(&node);
        let fd = fd.inspect_err(|e| log::debug!("a file to be removed cannot be held open: {e}")).ok()?;
        Some(Victim { node, fd: Some(fd), has_others })
    }

    pub(crate) fn rename(
        &self,
        caller: &Caller,
        from: (&Arc<Node>, &Name),
        to: (&Arc<Node>, &Name),
        flags: RenameFlags,
    ) -> Result<()> {
        let (from_dir, to_dir) = (self.descriptor(from.0)?, self.descriptor(to.0)?);
        self.refuse_covered(from.0, &from_dir, from.1)?;
        self.refuse_covered(to.0, &to_dir, to.1)?;
        let exchange = flags.0 & libc::RENAME_EXCHANGE != 0;
        let moved = self.known(&from_dir, from.1);
        let back = if exchange { self.known(&to_dir, to.1) } else { None };
        let mut victim = if exchange { None } else { self.victim(to.0, to.1, &to_dir) };
        let nodes = [&moved, &back].into_iter().flatten().map(|(node, _)| node.id());
        let nodes = nodes.chain(victim.iter().map(|victim| victim.node.id()));
        let _under_way = self.nodes.moves.begin(nodes);
        let (from_name, to_name) = (from.1.as_c_str(), to.1.as_c_str());
        let rename = |acting: bool, flags: u32| {
            let whiteout = flags & libc::RENAME_WHITEOUT != 0 && !acting;
            let _guard = whiteout.then(|| caller.act(As::Creator, false)).transpose()?;
            let flags = OsRename::from_bits_retain(flags);
            Ok(renameat_with(&*from_dir, from_name, &*to_dir, to_name, flags)?)
        };
        let taken = [Taken { dir: &from_dir, name: from.1 }, Taken { dir: &to_dir, name: to.1 }];
        let both = [(from.0, moved.as_ref()), (to.0, back.as_ref())];
        let directories =
            if Arc::ptr_eq(from.0, to.0) { &[][..] } else { &both[..1 + usize::from(exchange)] };
        self.renaming(caller, taken, directories, flags, rename)?;
        // Renaming one hard link of a file to another does nothing, and both names stay (rename(2)).
        if let (Some((moved, _)), Some(victim)) = (&moved, &victim)
            && Arc::ptr_eq(moved, &victim.node)
        {
            return Ok(());
        }
        // Dropped when everything is noted.
        let _forgotten: [_; 3];
        let _noting = self.nodes.moves.noting();
        self.nodes.moves.moved([from.0.id(), to.0.id()]);
        _forgotten = [
            victim.as_mut().map(|victim| victim.detach(to.0, to.1)),
            moved.as_ref().map(|(moved, _)| self.moved(moved, from, to)),
            back.as_ref().map(|(back, _)| self.moved(back, to, from)),
        ];
        Ok(())
    }
}

/// A node about to lose a name, with a descriptor that outlives the name by which it was found last.
struct Victim {
    node: Arc<Node>,
    fd: Option<Arc<OwnedFd>>,
    has_others: bool,
}

impl Victim {
    /// The name is gone: another one, or the descriptor, is the way to the node from now on.
    fn detach(&mut self, parent: &Arc<Node>, name: &Name) -> Forgotten {
        self.node.lost_name(parent, name, &mut self.fd, self.has_others)
    }
}
