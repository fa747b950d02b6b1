//! The [`Backend`]: each operation is done by the module that holds its rules.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use splicefs_core::{
    Attr, Backend, Caller, Cookie, CreateFlags, DirEntry, DirSink, Entry, Errno, FileKind, Ioctl, Make, Name,
    OpenFlags, Opened, Ownership, ReadPlan, RenameFlags, Result, SeekTo, SetAttr, Span, StatFs, WriteMode,
    XattrFlags,
};

use crate::dir::{DOT, DOT_DOT};
use crate::life::InUse;
use crate::node::Body;
use crate::options::{Resize, beyond_group};
use crate::{Dir, File, Node, Tmpfs, file, opened, setattr, xattr};

fn entry(node: Arc<Node>) -> Entry<Node> {
    let attr = node.attr();
    Entry { node, attr }
}

impl Backend for Tmpfs {
    type Node = Node;
    type File = File;
    type Dir = Dir;

    const NAME: &'static str = "tmpfs";
    const OWNERSHIP: Ownership = Ownership::Exclusive;
    // The room of a removed file is free when it is closed.
    const HEARS_OPENS: bool = true;
    const HAS_BACKING: bool = false;

    fn root(&self) -> Arc<Node> {
        self.root.clone()
    }

    fn lookup(&self, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        let node = parent.directory()?.read().get(name)?;
        Ok(entry(node))
    }

    fn getattr(&self, node: &Arc<Node>, _file: Option<&File>) -> Result<Attr> {
        Ok(node.attr())
    }

    fn setattr(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        file: Option<&File>,
        change: &SetAttr,
    ) -> Result<Attr> {
        setattr::set_attr(node, caller, change, file.is_some())?;
        Ok(node.attr())
    }

    fn readlink(&self, _caller: &Caller, node: &Arc<Node>) -> Result<Vec<u8>> {
        let Body::Symlink(target, _) = node.body() else { return Err(Errno::EINVAL.into()) };
        node.accessed();
        Ok(target.to_vec())
    }

    fn make(&self, caller: &Caller, parent: &Arc<Node>, name: &Name, what: Make<'_>) -> Result<Entry<Node>> {
        self.make_node(caller, parent, name, what).map(entry)
    }

    fn link(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name) -> Result<Entry<Node>> {
        self.add_name(node, parent, name)?;
        Ok(entry(node.clone()))
    }

    fn unlink(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        self.remove_file(parent, name)
    }

    fn rmdir(&self, parent: &Arc<Node>, name: &Name) -> Result<()> {
        self.remove_directory(parent, name)
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (&Arc<Node>, &Name),
        to: (&Arc<Node>, &Name),
        flags: RenameFlags,
    ) -> Result<()> {
        self.rename_node(caller, from, to, flags)
    }

    fn open(&self, caller: &Caller, node: &Arc<Node>, flags: OpenFlags) -> Result<Opened<File>> {
        node.content()?;
        if flags.has(libc::O_TRUNC) {
            file::set_size(node, caller, 0, true)?;
        }
        Ok(opened(File::new(node.clone(), flags)))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        self.create_file(caller, parent, name, mode, flags)
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Node>, Opened<File>)> {
        self.create_nameless(caller, parent, mode, flags)
    }

    fn plan_read(&self, file: &File, span: Span, execute: &mut dyn FnMut(&ReadPlan<'_>)) -> Result<()> {
        file.plan_read(span, execute)
    }

    fn backing(&self, _file: &Self::File) -> Option<Arc<OwnedFd>> {
        // What the kernel wrote into a memfd by itself, no limit would hold and no time would show.
        None
    }

    fn mode(&self, file: &File) -> Result<u32> {
        Ok(file.mode())
    }

    fn write(
        &self,
        caller: &Caller,
        file: &File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        file.write(caller, offset, data, mode)
    }

    fn tells_at_close(&self, _file: &File) -> bool {
        false
    }

    fn never_tells_at_close(&self) -> bool {
        true
    }

    fn flush(&self, _file: &File) -> Result<()> {
        Ok(())
    }

    /// `ENOSYS` tells the kernel that there is nothing to be done, and it asks no more.
    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS.into())
    }

    fn fallocate(&self, caller: &Caller, file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        file.fallocate(caller, mode, offset, len)
    }

    fn seek(&self, file: &File, offset: u64, to: SeekTo) -> Result<u64> {
        file.seek(offset, to)
    }

    fn copy_range(&self, caller: &Caller, from: (&File, u64), to: (&File, u64), len: usize) -> Result<usize> {
        from.0.copy_range(caller, from.1, to.0, to.1, len)
    }

    fn pollable<'f>(&self, _file: &'f File) -> Option<BorrowedFd<'f>> {
        None
    }

    fn ioctl_file(&self, _file: &File, _request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        Err(Errno::ENOTTY.into())
    }

    fn ioctl_dir(&self, _dir: &Dir, _request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        Err(Errno::ENOTTY.into())
    }

    fn opendir(&self, node: &Arc<Node>) -> Result<Dir> {
        let end = AtomicU64::new(node.directory()?.read().end());
        Ok(Dir { node: InUse::new(node.clone()), end })
    }

    fn read_dir(&self, dir: &Dir, from: Cookie, _hint: usize, sink: &mut DirSink<'_>) -> Result<()> {
        dir.read(from, sink)
    }

    fn fsyncdir(&self, _dir: &Dir, _data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS.into())
    }

    fn statfs(&self, _node: &Arc<Node>) -> Result<StatFs> {
        self.shared.orphans.settle();
        Ok(self.shared.store.limits.statfs())
    }

    fn getxattr(&self, node: &Arc<Node>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        xattr::get(node, name, limit)
    }

    fn listxattr(&self, node: &Arc<Node>, limit: usize) -> Result<Vec<u8>> {
        xattr::list(node, limit)
    }

    fn setxattr(
        &self,
        _caller: &Caller,
        node: &Arc<Node>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        xattr::set(node, name, value, flags)
    }

    fn removexattr(&self, node: &Arc<Node>, name: &CStr) -> Result<()> {
        xattr::remove(node, name)
    }

    fn reconfigure(&self, options: &str) -> Result<()> {
        let Resize { pages, inodes } = Resize::parse(options).map_err(|wrong| {
            log::debug!("cannot resize to `{options}`: {wrong}");
            Errno::EINVAL
        })?;
        let plain = |limit: Option<Option<std::num::NonZeroU64>>| limit.map(|limit| limit.map(Into::into));
        self.shared.store.limits.resize(plain(pages), plain(inodes))?;
        if let Some(limit) = pages.and_then(beyond_group) {
            log::warn!(
                "`{options}` is more than the memory control group of the daemon allows ({} bytes, {}): at that it is killed, and the files are lost",
                limit.bytes,
                limit.file.display()
            );
        }
        Ok(())
    }
}

impl Dir {
    /// Hands on `.`, `..` and the entries after `from`, until `sink` takes no more.
    fn read(&self, Cookie(from): Cookie, sink: &mut DirSink<'_>) -> Result<()> {
        let directory = self.node.directory()?;
        if from == Cookie::START.0 {
            self.end.store(directory.read().end(), Ordering::Relaxed);
            self.node.accessed();
        }
        let dots = [(DOT, &b"."[..]), (DOT_DOT, b"..")];
        for (position, name) in dots.into_iter().filter(|(position, _)| *position > from) {
            let parent = (position == DOT_DOT).then(|| directory.read().parent()).flatten();
            let ino = parent.map_or(self.node.ino(), |parent| parent.ino());
            let entry = DirEntry { name, ino, kind: FileKind::Directory, next: Cookie(position) };
            if sink(entry) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
        self.read_entries(from, sink)
    }

    /// Entries are handed on without the lock: what takes them looks each one up again.
    fn read_entries(&self, mut from: u64, sink: &mut DirSink<'_>) -> Result<()> {
        /// So many entries are taken under one lock.
        const BATCH: usize = 64;
        let end = self.end.load(Ordering::Relaxed);
        loop {
            let batch: Vec<_> = {
                let directory = self.node.directory()?.read();
                let entries = directory.after(from, end).take(BATCH);
                entries.map(|(position, entry)| (position, entry.name.clone(), entry.node.clone())).collect()
            };
            for (position, name, node) in &batch {
                let next = Cookie(*position);
                let entry = DirEntry { name: name.as_bytes(), ino: node.ino(), kind: node.kind(), next };
                if sink(entry) == ControlFlow::Break(()) {
                    return Ok(());
                }
                from = *position;
            }
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }
}
