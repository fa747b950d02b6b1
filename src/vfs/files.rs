//! Open files.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use splicefs_core::sys::{creds, ioctl};
use splicefs_core::{
    Backend, Caller, CreateFlags, Errno, Error, HandleId, Identified, Ioctl, Name, NodeId, OpenFlags, Opened,
    Result, SeekTo, Span, WriteMode,
};

use super::iomode::Bypass;
use super::unopened::NO_HANDLE;
use super::{FileRef, Found, Handle, OpenFile, Use, Used, Vfs, Way};
use crate::reply::{Engine, Outcome};

/// In the flags of an open, by which the kernel opens a program to run it (`__FMODE_EXEC` in include/linux/fs.h).
const FMODE_EXEC: i32 = 0x20;

/// Writes all of `length` bytes by `write`, which writes some from there on: of a page that it writes back the kernel does not look
/// at how much was written (`fuse_writepage_end` in fs/fuse/file.c), and what is missing would be lost without a word.
fn whole(length: usize, write: impl Fn(usize) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while done < length {
        match write(done)? {
            0 => return Err(Errno::EIO.into()),
            more => done += more,
        }
    }
    Ok(done)
}

impl<B: Backend> Vfs<B> {
    /// An open file for the kernel, which keeps its pages if the file `takes_pages` back.
    fn handle(
        &self,
        node: Arc<B::Node>,
        (opened, takes_pages): (Opened<B::File>, bool),
        flags: OpenFlags,
    ) -> Handle {
        if self.caching.unopened {
            return self.keep_unopened(node, opened, flags);
        }
        let Opened { file, direct_io, stream, changed } = opened;
        let writes = flags.writes();
        let used = self.nodes.state(&node);
        let way = if direct_io || !takes_pages {
            used.io_mode.pass_by();
            Way::Direct
        } else {
            self.enter(&used, &file, writes)
        };
        // A mapping that outlives its descriptor changes the file past the page cache.
        let keep = self.keeps_data(&node) && used.io_mode.bypass() == Bypass::Never;
        // A file that the kernel writes by itself has attributes that it must ask for.
        if changed || (writes && matches!(way, Way::Backed(_))) {
            self.attributes_changed(node.id());
        }
        let closes_silently = !writes || !self.backend.tells_at_close(&file);
        let runs = flags.has(FMODE_EXEC);
        if runs {
            used.running.fetch_add(1, Ordering::Relaxed);
        }
        let open = OpenFile { node, used, file, made_for_caller: direct_io, way, writes, runs };
        let id = self.files.insert(open);
        Handle { id, way, keep, direct: self.caching.direct, stream, closes_silently }
    }

    /// Opens a regular file, and gives the handle to `reply`, whose result is returned. One that is truncated waits for
    /// the reads that are on their way, and others wait for its reply. `engine` gathers what comes with the reply.
    ///
    /// # Errors
    /// `ENOSYS` where files are used without being opened: the kernel takes that as success, and asks no more. `ETXTBSY` if a
    /// program that is run would be truncated.
    pub fn open<R>(
        &self,
        caller: &Caller,
        id: NodeId,
        flags: OpenFlags,
        engine: &mut Engine,
        reply: impl FnOnce(&Handle) -> R,
    ) -> Result<R> {
        if self.caching.unopened {
            return Err(Errno::ENOSYS.into());
        }
        let node = self.node(id)?;
        // Whether the caller may; the backend opens it as the caller by itself.
        drop(self.backend.look_as(caller, &node)?);
        if !flags.has(libc::O_TRUNC) {
            let opened = self.open_backend(caller, &node, flags)?;
            let changed = opened.0.changed;
            let handle = self.handle(node, opened, flags);
            // A copy of its data had the time of copying for a moment. And of what the kernel writes by itself nothing is heard.
            if changed || (flags.writes() && matches!(handle.way, Way::Backed(_))) {
                self.settle(id, caller);
            }
            self.prefetch(caller, &handle, flags, engine);
            return Ok(reply(&handle));
        }
        let used = self.nodes.state(&node);
        if !flags.writes() && used.running.load(Ordering::Relaxed) > 0 {
            // The kernel says so, too, but only after we would have truncated the file (`handle_truncate` in fs/namei.c).
            return Err(Errno::ETXTBSY.into());
        }
        let length = used.length.change();
        let before = self.backend.getattr(&node, None)?;
        let opened = self.open_backend(caller, &node, flags)?;
        if !caller.fsetid && creds::has_special_bits(before.mode) {
            self.attributes_changed(id);
        }
        let handle = self.handle(node, opened, flags);
        self.settle(id, caller);
        let replied = reply(&handle);
        // Past the page cache nothing is filled up with zeros; and the sizes of such files often mean nothing.
        if before.size > 0 && handle.way != Way::Direct {
            length.told_shorter(caller.pid);
        }
        Ok(replied)
    }

    /// Creates a file and opens it. The kernel holds a reference to the node, as after a lookup.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Found, Handle)> {
        let parent = self.node(parent)?;
        let names = self.kept(&parent);
        let (entry, opened) = self.backend.create(caller, &parent, name, mode, self.creating(flags))?;
        let (found, node) = self.remember(entry, names);
        Ok((found, self.handle(node, (opened, true), flags.open)))
    }

    /// Creates and opens a file without a name.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: NodeId,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Found, Handle)> {
        let parent = self.node(parent)?;
        let (entry, opened) = self.backend.tmpfile(caller, &parent, mode, self.creating(flags))?;
        let (found, node) = self.remember(entry, self.kept(&parent));
        Ok((found, self.handle(node, (opened, true), flags.open)))
    }

    /// Answers a read on `device`.
    ///
    /// # Errors
    /// Nothing has been answered then.
    pub fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        span: Span,
        engine: &mut Engine,
        device: impl AsFd,
        unique: u64,
    ) -> Result<Outcome> {
        let open = self.opened(file, Use::Read)?;
        let end = span.offset.saturating_add(span.len as u64);
        let crosses_end = || Ok(end > self.backend.getattr(&open.node, Some(&open.file))?.size);
        let _length = open.used.length.keep(caller.pid, crosses_end)?;
        let _as_caller = open.made_for_caller.then(|| caller.act(creds::As::Caller, true)).transpose()?;
        let mut outcome = None;
        self.backend.plan_read(&open.file, span, &mut |plan| {
            outcome = Some(engine.send(&device, unique, plan));
        })?;
        // A backend that gives no plan and no error would leave the caller waiting for ever.
        outcome.ok_or_else(|| Error::fault(Errno::EIO, "a read without a plan"))
    }

    /// Changes contents on behalf of `caller`, for whom setuid and setgid bits are cleared. The kernel has the mode in its
    /// cache, and learns of that.
    fn change<T>(
        &self,
        caller: &Caller,
        open: &OpenFile<B>,
        how: impl FnOnce(&Caller) -> Result<T>,
    ) -> Result<T> {
        open.used.length.heard_from(caller.pid);
        if open.made_for_caller {
            let _as_caller = caller.act(creds::As::Caller, true)?;
            return how(&Caller { fsetid: true, ..*caller });
        }
        let clears = !caller.fsetid && creds::has_special_bits(self.backend.mode(&open.file)?);
        let result = how(&Caller { fsetid: !clears, ..*caller });
        if clears {
            self.attributes_changed(open.node.id());
        }
        result
    }

    /// Writes.
    pub fn write(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        let written = self.write_opened(caller, file, offset, data, mode);
        if mode.from_page_cache { written.map_err(|e| self.lost_write(file.node, e)) } else { written }
    }

    fn write_opened(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        let open = self.opened(file, Use::Write)?;
        if mode.from_page_cache && self.caching.unopened && self.backend.only_grows(&open.file)? {
            // A mapping that an open would have refused.
            return Err(Errno::EPERM.into());
        }
        let append = mode.append && self.appends_to_source(&open)?;
        let mode = WriteMode { append, ..mode };
        let write = |from: usize| {
            let offset = offset + from as u64;
            self.change(caller, &open, |by| self.backend.write(by, &open.file, offset, &data[from..], mode))
        };
        let written =
            if mode.from_page_cache { self.write_back(&open, || whole(data.len(), write)) } else { write(0) };
        self.settle(open.node.id(), caller);
        let written = written?;
        // An open file of ours was opened with these flags.
        if file.is_unopened() && !mode.from_page_cache && file.flags.has(libc::O_DSYNC) {
            self.backend.fsync(&open.file, !file.flags.has(libc::O_SYNC))?;
        }
        Ok(written)
    }

    /// A descriptor of the file is closed.
    ///
    /// # Errors
    /// `ENOSYS` where that tells nothing, or files are not opened in the first place: the kernel asks no more. What it has
    /// to write back it does in any case, and tells of errors.
    pub fn flush(&self, handle: HandleId) -> Result<()> {
        if self.caching.unopened || self.backend.never_tells_at_close() {
            return Err(Errno::ENOSYS.into());
        }
        self.backend.flush(&self.files.get(handle)?.file)
    }

    /// Nothing refers to the open file any longer.
    pub fn release(&self, id: HandleId) -> Result<()> {
        if id == NO_HANDLE {
            return Ok(());
        }
        let open = self.files.remove(id)?;
        self.leave(&open);
        if open.runs {
            open.used.running.fetch_sub(1, Ordering::Relaxed);
        }
        let node = open.node.clone();
        drop(open);
        self.nodes.tidy(&node, Used::is_idle);
        Ok(())
    }

    /// Makes a file durable.
    pub fn fsync(&self, file: FileRef, data_only: bool) -> Result<()> {
        self.backend.fsync(&self.opened(file, Use::Read)?.file, data_only)
    }

    /// As fallocate(2).
    pub fn fallocate(&self, caller: &Caller, file: FileRef, mode: u32, offset: u64, len: u64) -> Result<()> {
        let open = self.opened(file, Use::Write)?;
        let done = self.change(caller, &open, |by| self.backend.fallocate(by, &open.file, mode, offset, len));
        self.settle(open.node.id(), caller);
        done
    }

    /// The next data or hole.
    ///
    /// # Errors
    /// `ENOSYS` where some of the data may not be here yet: the kernel then takes all of every file for data.
    pub fn seek(&self, file: FileRef, offset: u64, to: SeekTo) -> Result<u64> {
        let open = self.opened(file, Use::Read)?;
        self.fetch_written(&open, offset)?;
        self.backend.seek(&open.file, offset, to)
    }

    /// As copy_file_range(2).
    pub fn copy_range(
        &self,
        caller: &Caller,
        from: (FileRef, u64),
        to: (FileRef, u64),
        len: usize,
    ) -> Result<usize> {
        let source = self.opened(from.0, Use::Read)?;
        let target = self.opened(to.0, Use::Write)?;
        let copied = self.change(caller, &target, |by| {
            self.backend.copy_range(by, (&source.file, from.1), (&target.file, to.1), len)
        });
        self.settle(target.node.id(), caller);
        if copied.is_err() {
            // A copy that fails has begun, and set times; the kernel looks at them again after one that succeeds.
            self.attributes_changed(target.node.id());
        }
        copied
    }

    /// As ioctl(2) on a file.
    pub fn ioctl_file(&self, file: FileRef, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)> {
        let result = self.backend.ioctl_file(&self.opened(file, Use::Read)?.file, request)?;
        self.ioctl_done(file.node, request);
        Ok(result)
    }

    /// The kernel has the change time in its cache.
    pub(super) fn ioctl_done(&self, id: NodeId, request: Ioctl<'_>) {
        if ioctl::changes_attributes(request.command) {
            self.attributes_changed(id);
        }
    }
}
