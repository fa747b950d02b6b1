//! A layer with records, as the overlay sees it.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use splicefs_core::{
    Attr, Backend, Caller, Cookie, CreateFlags, DirEntry, DirSink, Entry, Errno, FileHandle, FileKind, Ioctl,
    Layer, Make, Name, OpenFlags, Opened, Ownership, ReadPlan, RenameFlags, Result, SeekTo, SetAttr, Span,
    StatFs, WriteMode, XattrFlags,
};

use super::names::{Meant, Store};
use super::record::Record;
use super::{Recorded, RecordedFile, UNRECORDED_DIRECTORY, UNRECORDED_FILE};
use crate::attributes::XATTR_MAX;

impl<B: Layer> Recorded<B> {
    fn entry(&self, entry: Entry<B::Node>) -> Result<Entry<B::Node>> {
        let attr = self.shown(&entry.node, entry.attr)?;
        Ok(Entry { attr, ..entry })
    }

    fn opened(node: &Arc<B::Node>, opened: Opened<B::File>) -> Opened<RecordedFile<B>> {
        let Opened { file: inner, direct_io, stream, changed } = opened;
        Opened { file: RecordedFile { inner, node: node.clone() }, direct_io, stream, changed }
    }

    /// What was just made gets its record; where that fails, `undo` takes it away again.
    fn record(
        &self,
        store: Store,
        node: &Arc<B::Node>,
        record: &Record,
        undo: impl FnOnce() -> Result<()>,
    ) -> Result<Attr> {
        let recorded = self
            .change_record(store, node, |of_node| *of_node = *record)
            .and_then(|()| self.shown(node, self.inner.getattr(node, None)?));
        recorded.inspect_err(|_| {
            if let Err(e) = undo() {
                log::warn!("what could not get its owner stays: {e}");
            }
        })
    }

    /// Runs `how`, which changes the contents of a file, as the daemon, and takes away what that takes from it first.
    fn change<T>(
        &self,
        caller: &Caller,
        file: &RecordedFile<B>,
        how: impl FnOnce(&Caller) -> Result<T>,
    ) -> Result<T> {
        if self.store.is_none() {
            return how(caller);
        }
        self.drop_privileges(caller, &file.node)?;
        how(&Caller::DAEMON)
    }

    fn make_recorded(
        &self,
        store: Store,
        caller: &Caller,
        (parent, name): (&Arc<B::Node>, &Name),
        what: Make<'_>,
    ) -> Result<Entry<B::Node>> {
        let file = |mode| Make::Node(libc::S_IFREG | mode, 0);
        let (real, mode, stands_for) = match what {
            Make::Directory(mode) => (Make::Directory(UNRECORDED_DIRECTORY), libc::S_IFDIR | mode, None),
            Make::Node(mode, rdev) => match (FileKind::from_mode(mode), Self::stand_in(store, mode, rdev)) {
                (FileKind::Regular, _) | (_, Some(_)) => {
                    (file(UNRECORDED_FILE), mode, Self::stand_in(store, mode, rdev))
                }
                _ => return self.make_real(caller, (parent, name), what, mode),
            },
            Make::Symlink(_) => return self.make_real(caller, (parent, name), what, libc::S_IFLNK),
        };
        let record = Record { stands_for, ..self.born(caller, parent, mode)? };
        let node = self.inner.make(&Caller::DAEMON, parent, name, real)?.node;
        let attr = self.record(store, &node, &record, || match what {
            Make::Directory(_) => self.inner.rmdir(parent, name),
            _ => self.inner.unlink(parent, name),
        })?;
        Ok(Entry { node, attr })
    }

    /// Makes what has no record: it is its maker's where the daemon can make it so.
    fn make_real(
        &self,
        caller: &Caller,
        (parent, name): (&Arc<B::Node>, &Name),
        what: Make<'_>,
        mode: u32,
    ) -> Result<Entry<B::Node>> {
        let Record { uid, gid, .. } = self.born(caller, parent, mode)?;
        self.inner.make(&Caller { uid, gid, ..*caller }, parent, name, what)
    }

    /// The name under which the layer keeps the attribute `name`; `private` is the answer for one that is not to be seen.
    fn kept<T>(&self, name: &CStr, private: Errno, with: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
        let Some(store) = self.store else { return with(name) };
        match store.meant(name)? {
            Meant::Kept(name) => with(&name),
            Meant::Private => Err(private.into()),
            Meant::Acl => Err(Errno::EOPNOTSUPP.into()),
        }
    }
}

impl<B: Layer> Backend for Recorded<B> {
    type Node = B::Node;
    type File = RecordedFile<B>;
    type Dir = B::Dir;

    const NAME: &'static str = B::NAME;
    const OWNERSHIP: Ownership = B::OWNERSHIP;
    const HEARS_OPENS: bool = B::HEARS_OPENS;
    const HAS_BACKING: bool = B::HAS_BACKING;

    fn root(&self) -> Arc<B::Node> {
        self.inner.root()
    }

    fn lookup(&self, parent: &Arc<B::Node>, name: &Name) -> Result<Entry<B::Node>> {
        self.entry(self.inner.lookup(parent, name)?)
    }

    fn getattr(&self, node: &Arc<B::Node>, file: Option<&Self::File>) -> Result<Attr> {
        self.shown(node, self.inner.getattr(node, file.map(|file| &file.inner))?)
    }

    fn setattr(
        &self,
        caller: &Caller,
        node: &Arc<B::Node>,
        file: Option<&Self::File>,
        change: &SetAttr,
    ) -> Result<Attr> {
        let file = file.map(|file| &file.inner);
        let Some(store) = self.store else { return self.inner.setattr(caller, node, file, change) };
        match self.store_for(&self.inner.getattr(node, None)?) {
            Some(_) => self.set_recorded(store, caller, (node, file), change),
            None => self.set_real(caller, node, change),
        }
    }

    fn readlink(&self, caller: &Caller, node: &Arc<B::Node>) -> Result<Vec<u8>> {
        self.inner.readlink(caller, node)
    }

    fn make(
        &self,
        caller: &Caller,
        parent: &Arc<B::Node>,
        name: &Name,
        what: Make<'_>,
    ) -> Result<Entry<B::Node>> {
        match self.store {
            Some(store) => self.make_recorded(store, caller, (parent, name), what),
            None => self.inner.make(caller, parent, name, what),
        }
    }

    fn link(&self, node: &Arc<B::Node>, parent: &Arc<B::Node>, name: &Name) -> Result<Entry<B::Node>> {
        self.entry(self.inner.link(node, parent, name)?)
    }

    fn unlink(&self, parent: &Arc<B::Node>, name: &Name) -> Result<()> {
        self.inner.unlink(parent, name)
    }

    fn rmdir(&self, parent: &Arc<B::Node>, name: &Name) -> Result<()> {
        self.inner.rmdir(parent, name)
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (&Arc<B::Node>, &Name),
        to: (&Arc<B::Node>, &Name),
        flags: RenameFlags,
    ) -> Result<()> {
        self.inner.rename(caller, from, to, flags)
    }

    fn open(&self, caller: &Caller, node: &Arc<B::Node>, flags: OpenFlags) -> Result<Opened<Self::File>> {
        if self.store.is_none() {
            return Ok(Self::opened(node, self.inner.open(caller, node, flags)?));
        }
        let opened = self.inner.open(&Caller::DAEMON, node, flags)?;
        if flags.has(libc::O_TRUNC) {
            self.drop_privileges(caller, node)?;
        }
        Ok(Self::opened(node, opened))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: &Arc<B::Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<B::Node>, Opened<Self::File>)> {
        let Some(store) = self.store else {
            let (entry, opened) = self.inner.create(caller, parent, name, mode, flags)?;
            let opened = Self::opened(&entry.node, opened);
            return Ok((entry, opened));
        };
        let record = self.born(caller, parent, libc::S_IFREG | mode)?;
        let exclusive = CreateFlags { exclusive: true, ..flags };
        let made = self.inner.create(&Caller::DAEMON, parent, name, UNRECORDED_FILE, exclusive);
        let (entry, opened) = match made {
            // Someone else made it since the kernel looked; it looks again.
            Err(e) if e.errno() == Errno::EEXIST && !flags.exclusive => return Err(Errno::ESTALE.into()),
            other => other?,
        };
        let attr = self.record(store, &entry.node, &record, || self.inner.unlink(parent, name))?;
        let opened = Self::opened(&entry.node, opened);
        Ok((Entry { attr, ..entry }, opened))
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: &Arc<B::Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<B::Node>, Opened<Self::File>)> {
        let Some(store) = self.store else {
            let (entry, opened) = self.inner.tmpfile(caller, parent, mode, flags)?;
            let opened = Self::opened(&entry.node, opened);
            return Ok((entry, opened));
        };
        let record = self.born(caller, parent, libc::S_IFREG | mode)?;
        let (entry, opened) = self.inner.tmpfile(&Caller::DAEMON, parent, UNRECORDED_FILE, flags)?;
        // Without a name it goes by itself.
        let attr = self.record(store, &entry.node, &record, || Ok(()))?;
        let opened = Self::opened(&entry.node, opened);
        Ok((Entry { attr, ..entry }, opened))
    }

    fn plan_read(&self, file: &Self::File, span: Span, execute: &mut dyn FnMut(&ReadPlan<'_>)) -> Result<()> {
        self.inner.plan_read(&file.inner, span, execute)
    }

    fn backing(&self, file: &Self::File) -> Option<Arc<OwnedFd>> {
        // A write clears bits in the record, which the kernel does not know.
        if self.store.is_some() { None } else { self.inner.backing(&file.inner) }
    }

    fn mode(&self, file: &Self::File) -> Result<u32> {
        match self.store {
            Some(_) => Ok(self.getattr(&file.node, Some(file))?.mode),
            None => self.inner.mode(&file.inner),
        }
    }

    fn write(
        &self,
        caller: &Caller,
        file: &Self::File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        if mode.from_page_cache {
            // Stored through a mapping, by whom is not known: natively that takes nothing away.
            let by = if self.store.is_some() { &Caller::DAEMON } else { caller };
            return self.inner.write(by, &file.inner, offset, data, mode);
        }
        self.change(caller, file, |by| self.inner.write(by, &file.inner, offset, data, mode))
    }

    fn tells_at_close(&self, file: &Self::File) -> bool {
        self.inner.tells_at_close(&file.inner)
    }

    fn flush(&self, file: &Self::File) -> Result<()> {
        self.inner.flush(&file.inner)
    }

    fn fsync(&self, file: &Self::File, data_only: bool) -> Result<()> {
        self.inner.fsync(&file.inner, data_only)
    }

    fn fallocate(&self, caller: &Caller, file: &Self::File, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.change(caller, file, |by| self.inner.fallocate(by, &file.inner, mode, offset, len))
    }

    fn seek(&self, file: &Self::File, offset: u64, to: SeekTo) -> Result<u64> {
        self.inner.seek(&file.inner, offset, to)
    }

    fn copy_range(
        &self,
        caller: &Caller,
        from: (&Self::File, u64),
        to: (&Self::File, u64),
        len: usize,
    ) -> Result<usize> {
        let ((source, offset), (target, to_offset)) = (from, to);
        self.change(caller, target, |by| {
            self.inner.copy_range(by, (&source.inner, offset), (&target.inner, to_offset), len)
        })
    }

    fn pollable<'f>(&self, file: &'f Self::File) -> Option<BorrowedFd<'f>> {
        self.inner.pollable(&file.inner)
    }

    fn ioctl_file(&self, file: &Self::File, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        self.inner.ioctl_file(&file.inner, request)
    }

    fn ioctl_dir(&self, dir: &B::Dir, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        self.inner.ioctl_dir(dir, request)
    }

    fn opendir(&self, node: &Arc<B::Node>) -> Result<B::Dir> {
        self.inner.opendir(node)
    }

    /// A regular file may stand for something else, which only its record tells.
    fn read_dir(&self, dir: &B::Dir, from: Cookie, hint: usize, sink: &mut DirSink<'_>) -> Result<()> {
        if self.store.is_none() {
            return self.inner.read_dir(dir, from, hint, sink);
        }
        self.inner.read_dir(dir, from, hint, &mut |entry: DirEntry<'_>| {
            let kind = if entry.kind == FileKind::Regular { FileKind::Unknown } else { entry.kind };
            sink(DirEntry { kind, ..entry })
        })
    }

    fn keeps_entries(&self, dir: &B::Dir) -> bool {
        self.inner.keeps_entries(dir)
    }

    fn fsyncdir(&self, dir: &B::Dir, data_only: bool) -> Result<()> {
        self.inner.fsyncdir(dir, data_only)
    }

    fn file_system_of(&self, node: &B::Node) -> u64 {
        self.inner.file_system_of(node)
    }

    fn statfs(&self, node: &Arc<B::Node>) -> Result<StatFs> {
        self.inner.statfs(node)
    }

    fn getxattr(&self, node: &Arc<B::Node>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
        self.kept(name, Errno::ENODATA, |name| self.inner.getxattr(node, name, limit))
    }

    fn listxattr(&self, node: &Arc<B::Node>, limit: usize) -> Result<Vec<u8>> {
        // Without records, `security.` attributes are the layer's own; so they are in this store.
        let Some(store) = self.store.or(self.recorded.then_some(Store::Security)) else {
            return self.inner.listxattr(node, limit);
        };
        // What is not shown must not make the rest seem too long.
        let all = self.inner.listxattr(node, XATTR_MAX)?;
        let names = all.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        let mut list = Vec::with_capacity(all.len());
        for name in names.filter_map(|name| store.shown(name)) {
            list.extend_from_slice(name);
            list.push(0);
        }
        if list.len() > limit { Err(Errno::ERANGE.into()) } else { Ok(list) }
    }

    fn setxattr(
        &self,
        caller: &Caller,
        node: &Arc<B::Node>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let by = if self.store.is_some() { &Caller::DAEMON } else { caller };
        self.kept(name, Errno::EPERM, |name| self.inner.setxattr(by, node, name, value, flags))
    }

    fn removexattr(&self, node: &Arc<B::Node>, name: &CStr) -> Result<()> {
        self.kept(name, Errno::EPERM, |name| self.inner.removexattr(node, name))
    }
}

impl<B: Layer> Layer for Recorded<B> {
    const COUNTS_OPENS: bool = B::COUNTS_OPENS;

    fn tells_late(&self) -> Result<bool> {
        self.inner.tells_late()
    }

    fn file_system(&self) -> u64 {
        self.inner.file_system()
    }

    fn uuid(&self) -> [u8; 16] {
        self.inner.uuid()
    }

    fn handle(&self, node: &Arc<B::Node>) -> Result<Option<FileHandle>> {
        self.inner.handle(node)
    }

    fn inode_of(&self, handle: &FileHandle) -> Result<Option<u64>> {
        self.inner.inode_of(handle)
    }

    fn make_whiteout(&self, dir: &Arc<B::Node>, name: &Name) -> Result<()> {
        // A device has no record.
        self.inner.make_whiteout(dir, name)
    }

    fn release_whiteout(&self) {
        self.inner.release_whiteout();
    }

    fn descriptor<'f>(&self, file: &'f Self::File) -> Option<BorrowedFd<'f>> {
        self.inner.descriptor(&file.inner)
    }
}
