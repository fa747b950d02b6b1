//! The overlay as the serving code sees it.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use splicefs_core::{
    Attr, Backend, Caller, Cookie, CreateFlags, DirSink, Entry, Errno, FileKind, Ioctl, Layer, Make, Name,
    NodeId, OpenFlags, Opened, Ownership, Protection, ReadPlan, RenameFlags, Result, SeekTo, SetAttr, Span,
    StatFs, WriteMode, XattrFlags,
};

use crate::copyup::Need;
use crate::file::File;
use crate::lowers::LowerNode;
use crate::node::Node;
use crate::stream::Dir;
use crate::{Overlay, copyup};

impl<L: Layer, U: Layer> Overlay<L, U> {
    /// The target of a symbolic link of a lower layer.
    pub(crate) fn readlink_lower(&self, lower: &LowerNode<L>) -> Result<Vec<u8>> {
        self.lowers[lower.layer()].layer.readlink(&Caller::DAEMON, &lower.node)
    }
}

impl<L: Layer, U: Layer> Backend for Overlay<L, U> {
    type Node = Node<L, U>;
    type File = File<L, U>;
    type Dir = Dir<L, U>;

    const NAME: &'static str = "overlay";
    const OWNERSHIP: Ownership = Ownership::Exclusive;
    const HEARS_OPENS: bool = U::COUNTS_OPENS;
    const HAS_BACKING: bool = U::HAS_BACKING;

    fn root(&self) -> Arc<Self::Node> {
        self.root.clone()
    }

    fn lookup(&self, parent: &Arc<Self::Node>, name: &Name) -> Result<Entry<Self::Node>> {
        let state = parent.dir.as_ref().ok_or(Errno::ENOTDIR)?;
        let _entries = state.entries.read();
        Ok(self.find(parent, name)?.ok_or(Errno::ENOENT)?)
    }

    fn getattr(&self, node: &Arc<Self::Node>, file: Option<&Self::File>) -> Result<Attr> {
        match file {
            Some(file) => self.file_attr(node, file),
            None => self.attr(node),
        }
    }

    fn setattr(
        &self,
        caller: &Caller,
        node: &Arc<Self::Node>,
        file: Option<&Self::File>,
        change: &SetAttr,
    ) -> Result<Attr> {
        self.set_attr(caller, node, file, change)
    }

    fn readlink(&self, caller: &Caller, node: &Arc<Self::Node>) -> Result<Vec<u8>> {
        match (&self.upper, node.upper()) {
            (Some(upper), Some(counterpart)) => upper.layer.readlink(caller, counterpart),
            _ => self.readlink_lower(Self::topmost(node)?),
        }
    }

    fn make(
        &self,
        caller: &Caller,
        parent: &Arc<Self::Node>,
        name: &Name,
        what: Make<'_>,
    ) -> Result<Entry<Self::Node>> {
        self.make_node(caller, parent, name, what)
    }

    fn link(
        &self,
        node: &Arc<Self::Node>,
        parent: &Arc<Self::Node>,
        name: &Name,
    ) -> Result<Entry<Self::Node>> {
        self.link_node(node, parent, name)
    }

    fn unlink(&self, parent: &Arc<Self::Node>, name: &Name) -> Result<()> {
        self.remove(parent, name, false)
    }

    fn rmdir(&self, parent: &Arc<Self::Node>, name: &Name) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn rename(
        &self,
        _caller: &Caller,
        from: (&Arc<Self::Node>, &Name),
        to: (&Arc<Self::Node>, &Name),
        flags: RenameFlags,
    ) -> Result<()> {
        self.rename_node(from, to, flags)
    }

    fn open(&self, caller: &Caller, node: &Arc<Self::Node>, flags: OpenFlags) -> Result<Opened<Self::File>> {
        self.open_file(caller, node, flags)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: &Arc<Self::Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Self::Node>, Opened<Self::File>)> {
        self.create_file(caller, parent, name, mode, flags)
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: &Arc<Self::Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Self::Node>, Opened<Self::File>)> {
        self.create_nameless(caller, parent, mode, flags)
    }

    fn plan_read(&self, file: &Self::File, span: Span, execute: &mut dyn FnMut(&ReadPlan<'_>)) -> Result<()> {
        self.plan(file, span, execute)
    }

    fn backing(&self, file: &Self::File) -> Option<Arc<OwnedFd>> {
        self.backing_file(file)
    }

    fn is_worth_prefetching(&self, file: &Self::File) -> bool {
        !file.node.prefetched.load(Ordering::Relaxed) && file.is_lower()
    }

    fn prefetched(&self, file: &Self::File) {
        file.node.prefetched.store(true, Ordering::Relaxed);
    }

    fn only_grows(&self, file: &Self::File) -> Result<bool> {
        Ok(self.protection(&file.node)?.append)
    }

    fn may_refuse_writes(&self, node: &Arc<Self::Node>) -> bool {
        // What cannot be looked at may be refused.
        node.kind == FileKind::Regular
            && (!node.has_upper_data() || self.protection(node).map_or(true, Protection::any))
    }

    fn prepare_write(&self, node: &Arc<Self::Node>) -> Result<()> {
        self.check_opening(node, OpenFlags(libc::O_WRONLY))?;
        self.copy_up(node, Need::All).map(drop)
    }

    fn take_changed(&self) -> Vec<NodeId> {
        self.changed_owners.take()
    }

    fn path_of(&self, node: &Arc<Self::Node>) -> Option<PathBuf> {
        node.path()
    }

    fn mode(&self, file: &Self::File) -> Result<u32> {
        self.file_mode(file)
    }

    fn write(
        &self,
        caller: &Caller,
        file: &Self::File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        self.check_writing(&file.node, mode)?;
        self.on_upper(file, |layer, real| layer.write(caller, real, offset, data, mode))
    }

    fn tells_at_close(&self, _file: &Self::File) -> bool {
        !self.never_tells_at_close()
    }

    fn never_tells_at_close(&self) -> bool {
        // What cannot be looked at is taken for what tells.
        !self.upper.as_ref().is_some_and(|upper| upper.layer.tells_late().unwrap_or(true))
    }

    fn flush(&self, file: &Self::File) -> Result<()> {
        self.flush_file(file)
    }

    fn fsync(&self, file: &Self::File, data_only: bool) -> Result<()> {
        self.fsync_file(file, data_only)
    }

    fn fallocate(&self, caller: &Caller, file: &Self::File, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.check_allocating(&file.node, mode)?;
        self.on_upper(file, |layer, real| layer.fallocate(caller, real, mode, offset, len))
    }

    fn seek(&self, file: &Self::File, offset: u64, to: SeekTo) -> Result<u64> {
        self.seek_file(file, offset, to)
    }

    fn copy_range(
        &self,
        caller: &Caller,
        from: (&Self::File, u64),
        to: (&Self::File, u64),
        len: usize,
    ) -> Result<usize> {
        self.copy_between(caller, from, to, len)
    }

    fn pollable<'f>(&self, _file: &'f Self::File) -> Option<BorrowedFd<'f>> {
        None
    }

    fn ioctl_file(&self, file: &Self::File, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        self.ioctl(file, request)
    }

    fn ioctl_dir(&self, dir: &Self::Dir, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        if splicefs_core::sys::ioctl::changes_attributes(request.command) {
            self.copy_up(&dir.node, copyup::Need::Attributes)?;
        }
        self.ioctl_flags(&dir.node, request, |request| match (&self.upper, dir.node.upper()) {
            (Some(upper), Some(counterpart)) => {
                upper.layer.ioctl_dir(&upper.layer.opendir(counterpart)?, request)
            }
            _ => {
                let lower = Self::topmost(&dir.node)?;
                let layer = &self.lowers[lower.layer()].layer;
                layer.ioctl_dir(&layer.opendir(&lower.node)?, request)
            }
        })
    }

    fn opendir(&self, node: &Arc<Self::Node>) -> Result<Self::Dir> {
        self.open_dir(node)
    }

    fn read_dir(&self, dir: &Self::Dir, from: Cookie, hint: usize, sink: &mut DirSink<'_>) -> Result<()> {
        self.read_open_dir(dir, from, hint, sink)
    }

    fn keeps_entries(&self, dir: &Self::Dir) -> bool {
        // One of several names of a lower file gets a number of its own when it is copied up.
        let whole = |lower: &LowerNode<L>| self.keeps_links(lower.layer());
        self.upper.is_none() || dir.node.lowers().iter().all(whole)
    }

    fn fsyncdir(&self, dir: &Self::Dir, data_only: bool) -> Result<()> {
        let (Some(upper), Some(counterpart)) = (&self.upper, dir.node.upper()) else { return Ok(()) };
        if self.config.volatile {
            return Ok(());
        }
        upper.layer.fsyncdir(&upper.layer.opendir(counterpart)?, data_only)
    }

    fn file_system_of(&self, node: &Self::Node) -> u64 {
        match (&self.upper, node.upper(), node.lowers().first()) {
            (Some(upper), Some(counterpart), _) => upper.layer.file_system_of(counterpart),
            (_, _, Some(lower)) => self.lowers[lower.layer()].layer.file_system_of(&lower.node),
            _ => 0,
        }
    }

    fn statfs(&self, _node: &Arc<Self::Node>) -> Result<StatFs> {
        match (&self.upper, self.root.upper()) {
            (Some(upper), Some(root)) => upper.layer.statfs(root),
            _ => {
                let lower = Self::topmost(&self.root)?;
                self.lowers[lower.layer()].layer.statfs(&lower.node)
            }
        }
    }

    fn getxattr(&self, node: &Arc<Self::Node>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        self.get_xattr(node, name, limit)
    }

    fn listxattr(&self, node: &Arc<Self::Node>, limit: usize) -> Result<Vec<u8>> {
        self.list_xattr(node, limit)
    }

    fn setxattr(
        &self,
        caller: &Caller,
        node: &Arc<Self::Node>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.set_xattr(caller, node, name, value, flags)
    }

    fn removexattr(&self, node: &Arc<Self::Node>, name: &CStr) -> Result<()> {
        self.remove_xattr(node, name)
    }
}
