//! The [`Backend`] of the mirrored directory: each operation is done by the module that holds its rules.

use std::cell::Cell;
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{fstatfs, readlinkat};
use splicefs_core::sys::creds::{As, Guard, Standing};
use splicefs_core::{
    Attr, Backend, Caller, Cookie, CreateFlags, DirSink, Entry, Errno, Ioctl, Listener, Make, Name,
    OpenFlags, Opened, Ownership, ReadPlan, RenameFlags, Result, SeekTo, SetAttr, Span, StatFs, WriteMode,
    XattrFlags, sys,
};

use crate::fsclass::FsClass;
use crate::lend::directory_of;
use crate::node::Place;
use crate::{Dir, File, Node, Passthrough, stat};

impl Backend for Passthrough {
    type Node = Node;
    type File = File;
    type Dir = Dir;

    const NAME: &'static str = "passthrough";
    const OWNERSHIP: Ownership = Ownership::Shared;
    // What others have changed is looked for.
    const HEARS_OPENS: bool = true;
    const HAS_BACKING: bool = true;

    fn root(&self) -> Arc<Node> {
        self.tree.root()
    }

    fn depends_on_caller(&self, node: &Arc<Node>) -> bool {
        self.is_served && self.tree.is_pseudo(node)
    }

    fn look_as(&self, caller: &Caller, node: &Arc<Node>) -> Result<Guard> {
        if !self.depends_on_caller(node) {
            return Ok(Guard::none());
        }
        match caller.standing()? {
            Standing::Own => Ok(Guard::none()),
            Standing::Assumable => caller.act(As::Caller, true),
            // Root may see what the daemon sees.
            Standing::Foreign if caller.uid == 0 => Ok(Guard::none()),
            Standing::Foreign => Err(Errno::EACCES.into()),
        }
    }

    fn lookup(&self, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        if self.is_served {
            self.tree.refuse_own_process(parent, name)?;
            return self.tree.lookup_held(parent, name);
        }
        self.allowed(|| vec![parent.clone()], || self.tree.lookup(parent, name))
    }

    fn getattr(&self, node: &Arc<Node>, file: Option<&File>) -> Result<Attr> {
        let look = || match file {
            Some(file) => stat::of_fd(file.fd()),
            None => self.tree.statx(node),
        };
        let look = || self.tree.look_truly(node, look);
        let st = self.allowed(|| directory_of(node).into_iter().collect(), look)?;
        self.tree.notice_links(node, st.stx_nlink);
        Ok(self.tree.attr(&st))
    }

    fn setattr(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        file: Option<&File>,
        change: &SetAttr,
    ) -> Result<Attr> {
        self.writable()?;
        let lent = Cell::new(false);
        let nodes = || {
            lent.set(true);
            // Who sets a mode is not lent another; nor does it take one.
            let used = if change.mode.is_none() { Some(node.clone()) } else { directory_of(node) };
            used.into_iter().collect()
        };
        let mut attr = self.allowed(nodes, || self.tree.set_attr(caller, node, file, change))?;
        if lent.get() {
            // Not with the mode of that moment.
            attr = self.getattr(node, file)?;
        }
        self.tree.notice_links(node, attr.nlink);
        Ok(attr)
    }

    fn readlink(&self, caller: &Caller, node: &Arc<Node>) -> Result<Vec<u8>> {
        let fd = self.tree.descriptor(node)?;
        // Where a link of procfs leads is not for everyone to know.
        let pseudo = self.tree.class(node)?.is_pseudo();
        let _as_caller = pseudo.then(|| caller.act(As::Caller, true)).transpose()?;
        let target = readlinkat(&fd, c"", Vec::new())?.into_bytes();
        match node.place() {
            // The link says who reads it, which here is the daemon; it is to say who asked.
            Place::At(_, name) if self.tree.class(node)? == FsClass::Proc => {
                own_process_link(caller, &name, target)
            }
            _ => Ok(target),
        }
    }

    fn make(&self, caller: &Caller, parent: &Arc<Node>, name: &Name, what: Make<'_>) -> Result<Entry<Node>> {
        self.writable()?;
        let made = self.allowed(|| vec![parent.clone()], || self.tree.make(caller, parent, name, what))?;
        let is_foreign = self.is_served && caller.standing()? != Standing::Own;
        if is_foreign { self.tree.hold(parent, name, made) } else { Ok(made) }
    }

    fn link(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        self.writable()?;
        let nodes = || directory_of(node).into_iter().chain([parent.clone()]).collect();
        self.allowed(nodes, || self.tree.link(node, parent, name))
    }

    fn unlink(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        self.remove(&Caller::DAEMON, parent, name, false)
    }

    fn rmdir(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        self.remove(&Caller::DAEMON, parent, name, true)
    }

    fn remove(&self, caller: &Caller, parent: &Arc<Node>, name: &Name, directory: bool) -> Result<()> {
        self.writable()?;
        self.allowed(|| vec![parent.clone()], || self.tree.remove(caller, parent, name, directory))
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (&Arc<Node>, &Name),
        to: (&Arc<Node>, &Name),
        flags: RenameFlags,
    ) -> Result<()> {
        self.writable()?;
        let nodes = || {
            let moved = [from, to].into_iter().filter_map(|(dir, name)| self.moved_directory(dir, name));
            [from.0.clone(), to.0.clone()].into_iter().chain(moved).collect()
        };
        self.allowed(nodes, || self.tree.rename(caller, from, to, flags))
    }

    fn open(&self, caller: &Caller, node: &Arc<Node>, flags: OpenFlags) -> Result<Opened<File>> {
        if flags.writes() || flags.has(libc::O_TRUNC) {
            self.writable()?;
        }
        self.allowed(|| vec![node.clone()], || self.tree.open_file(caller, node, flags, self.noatime))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        self.writable()?;
        let created =
            self.allowed(|| vec![parent.clone()], || self.tree.create(caller, parent, name, mode, flags))?;
        if self.is_served {
            self.tree.hold_created(caller, &created.0.node, &created.1.file)?;
        }
        Ok(created)
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        self.writable()?;
        self.allowed(|| vec![parent.clone()], || self.tree.tmpfile(caller, parent, mode, flags))
    }

    fn plan_read(&self, file: &File, span: Span, execute: &mut dyn FnMut(&ReadPlan<'_>)) -> Result<()> {
        execute(&file.plan_read(span)?);
        Ok(())
    }

    fn mode(&self, file: &File) -> Result<u32> {
        file.mode()
    }

    fn write(
        &self,
        caller: &Caller,
        file: &File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        self.writable()?;
        let _guard = file.clearing(caller)?;
        file.write(offset, data, mode)
    }

    fn tells_at_close(&self, file: &File) -> bool {
        file.tells_at_close()
    }

    fn flush(&self, file: &File) -> Result<()> {
        self.tree.nodes.descriptors.with_room(|| file.flush())
    }

    fn fsync(&self, file: &File, data_only: bool) -> Result<()> {
        file.fsync(data_only)
    }

    fn fallocate(&self, caller: &Caller, file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        let _guard = file.clearing(caller)?;
        file.fallocate(mode, offset, len)
    }

    fn seek(&self, file: &File, offset: u64, to: SeekTo) -> Result<u64> {
        file.seek(offset, to)
    }

    fn backing(&self, file: &File) -> Option<Arc<OwnedFd>> {
        // The kernel would read without O_NOATIME, which a sealed layer does not need.
        if self.noatime && !self.held.sealed { None } else { file.backing() }
    }

    fn copy_range(&self, caller: &Caller, from: (&File, u64), to: (&File, u64), len: usize) -> Result<usize> {
        self.writable()?;
        let _guard = to.0.clearing(caller)?;
        from.0.copy_range(from.1, to.0, to.1, len)
    }

    fn pollable<'f>(&self, file: &'f File) -> Option<BorrowedFd<'f>> {
        file.pollable()
    }

    fn ioctl_file(&self, file: &File, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        if file.is_device() {
            return Err(Errno::ENOTTY.into());
        }
        self.may_ask(request)?;
        sys::ioctl::pass_on(file.fd().as_fd(), request.command, request.input, request.output_len)
    }

    fn ioctl_dir(&self, dir: &Dir, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        self.may_ask(request)?;
        sys::ioctl::pass_on(dir.fd().as_fd(), request.command, request.input, request.output_len)
    }

    fn hears(&self, node: &Arc<Node>) -> Option<u64> {
        self.tree.nodes.watches.as_ref()?.hears(node)
    }

    fn listener(&self) -> Result<Arc<dyn Listener>> {
        self.deaf.map_or_else(|| Ok(self.tree.clone() as Arc<dyn Listener>), |why| Err(why.into()))
    }

    fn opendir(&self, node: &Arc<Node>) -> Result<Dir> {
        // Once more, if there was no room for it when it was looked up.
        self.tree.watch(node, || self.tree.descriptor(node));
        self.allowed(|| vec![node.clone()], || self.tree.open_dir(node, self.noatime))
    }

    fn read_dir(&self, dir: &Dir, from: Cookie, hint: usize, sink: &mut DirSink<'_>) -> Result<()> {
        self.tree.read_dir(dir, from, hint, sink)
    }

    fn fsyncdir(&self, dir: &Dir, data_only: bool) -> Result<()> {
        dir.fsync(data_only)
    }

    fn file_system_of(&self, node: &Node) -> u64 {
        node.identity().dev()
    }

    fn statfs(&self, node: &Arc<Node>) -> Result<StatFs> {
        let st = fstatfs(&*self.tree.descriptor(node)?)?;
        let narrow = |wide: i64| u32::try_from(wide).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
            bsize: narrow(st.f_bsize),
            frsize: narrow(st.f_frsize),
            namelen: narrow(st.f_namelen),
        })
    }

    fn getxattr(&self, node: &Arc<Node>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        self.allowed(|| vec![node.clone()], || self.tree.get_xattr(node, name, limit))
    }

    fn listxattr(&self, node: &Arc<Node>, limit: usize) -> Result<Vec<u8>> {
        self.allowed(|| vec![node.clone()], || self.tree.list_xattr(node, limit))
    }

    fn setxattr(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.writable()?;
        let nodes = || used_for_attribute(node, name);
        self.allowed(nodes, || self.tree.set_xattr(caller, node, name, value, flags))
    }

    fn removexattr(&self, node: &Arc<Node>, name: &CStr) -> Result<()> {
        self.writable()?;
        self.allowed(|| used_for_attribute(node, name), || self.tree.remove_xattr(node, name))
    }
}

impl Passthrough {
    /// # Errors
    /// `EROFS` where nothing may be changed. Every changing operation asks this first, so that none depends on the mount
    /// of the source to refuse it.
    fn writable(&self) -> Result<()> {
        if self.read_only { Err(Errno::EROFS.into()) } else { Ok(()) }
    }

    /// # Errors
    /// `EROFS` for a request that changes something where nothing may be changed.
    fn may_ask(&self, request: Ioctl<'_>) -> Result<()> {
        if sys::ioctl::changes_attributes(request.command) { self.writable() } else { Ok(()) }
    }
}

/// What an attribute of `node` is set with. An access ACL is a mode as well, and takes none to be set.
fn used_for_attribute(node: &Arc<Node>, name: &CStr) -> Vec<Arc<Node>> {
    let is_mode = name == c"system.posix_acl_access";
    if is_mode { directory_of(node).into_iter().collect() } else { vec![node.clone()] }
}

/// `/proc/self` and `/proc/thread-self` of the caller (proc(5)); any other link as it is.
fn own_process_link(caller: &Caller, name: &Name, target: Vec<u8>) -> Result<Vec<u8>> {
    let names_a_process = target.first().is_some_and(u8::is_ascii_digit);
    match name.as_bytes() {
        b"self" if names_a_process && caller.pid != 0 => Ok(process_of(caller.pid)?.to_string().into_bytes()),
        b"thread-self" if names_a_process && caller.pid != 0 => {
            Ok(format!("{}/task/{}", process_of(caller.pid)?, caller.pid).into_bytes())
        }
        _ => Ok(target),
    }
}

/// The process that the thread belongs to.
fn process_of(thread: u32) -> Result<u32> {
    let mut status = String::new();
    std::fs::File::from(sys::open_proc(&format!("{thread}/status"))?).read_to_string(&mut status)?;
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    process.ok_or_else(|| Errno::ENOENT.into())
}
