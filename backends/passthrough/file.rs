//! Open files: opening, reading plans, writing.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{
    FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fstat, fsync, ftruncate,
    seek,
};
use rustix::io::{Errno as Os, ReadWriteFlags, pread, pwrite, pwritev2};
use splicefs_core::sys::creds::{As, Guard};
use splicefs_core::{
    Caller, CopyReason, Errno, Error, FileExtent, FileKind, OpenFlags, Opened, ReadPlan, Result, SeekTo,
    Segment, Span, Via, WriteMode, sys,
};

use crate::fsclass::FsClass;
use crate::node::{Node, Place};
use crate::setattr::refuse_leased;
use crate::stat;
use crate::tree::{Tree, open_beneath, stale_if_gone};

/// Holes shorter than this are read as data: finding and sending them apart costs more than it saves.
const SHORTEST_HOLE: u64 = 64 * 1024;
/// A plan has at most this many segments; what comes after is read as data.
const MOST_SEGMENTS: usize = 8;

/// Where reads of a file come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Contents {
    /// Pages of the source's page cache.
    Pages,
    /// A block device of this many bytes.
    Device(u64),
    /// Made as they are read; the size says nothing.
    Pseudo,
    /// As `Pseudo`, and without offsets.
    Stream,
}

/// An open source file.
#[derive(Debug)]
pub struct File {
    fd: Arc<OwnedFd>,
    /// A second descriptor, with `O_DIRECT`, where the caller asked for that. The first one takes what the kernel writes
    /// back from its page cache meanwhile (mmap(2)), whose lengths `O_DIRECT` would refuse.
    direct: Option<OwnedFd>,
    contents: Contents,
    /// What kind of file system the file is of.
    class: FsClass,
    /// The source takes nothing but appended bytes (chattr(1) `+a`), and the descriptor writes at the end alone.
    append_only: bool,
    /// Held from seeking to writing, in files that are written where they stand.
    position: Mutex<()>,
}

/// The flags of open(2) that are passed on to the source. `O_APPEND` is not: it would send the write-back of a mapped
/// page to the end of the file; the writes that do append say so one by one.
fn passed_on(flags: OpenFlags, noatime: bool) -> OFlags {
    let mut passed = OFlags::from_bits_retain(flags.0.cast_unsigned())
        & (OFlags::RWMODE | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME);
    if noatime {
        passed |= OFlags::NOATIME;
    }
    passed
}

impl Tree {
    /// Opens the source file of `node`.
    pub(crate) fn open_file(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        flags: OpenFlags,
        noatime: bool,
    ) -> Result<Opened<File>> {
        if node.identity().kind() == FileKind::BlockDevice {
            return self.open_device(node, flags);
        }
        // What procfs shows depends on who opens and reads it.
        let _as_caller = self.class(node)?.is_pseudo().then(|| caller.act(As::Caller, true)).transpose()?;
        let passed = passed_on(flags, noatime);
        let fd = match self.open_node(node, passed) {
            // O_NOATIME is the owner's alone to ask for; an append-only file is opened for writing with O_APPEND alone.
            Err(e) if e.errno() == Errno::EPERM => {
                let append = if flags.has(libc::O_APPEND) { OFlags::APPEND } else { OFlags::empty() };
                self.open_node(node, (passed - OFlags::NOATIME) | append)
            }
            other => other,
        }?;
        if flags.has(libc::O_TRUNC) {
            self.truncate_opened(caller, &fd, flags)?;
        }
        self.opened(node, Arc::new(fd), flags)
    }

    /// Opens `node` with `flags`: through a descriptor at hand, else by its name, and then it must still be the same.
    pub(crate) fn open_node(&self, node: &Arc<Node>, flags: OFlags) -> Result<OwnedFd> {
        // Without O_NONBLOCK, a FIFO put in the file's place would hold the thread until someone opens its other end.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        if node.descriptor_at_hand().is_none()
            && let Place::At(parent, name) = node.place()
        {
            let dir = self.descriptor(&parent)?;
            let open = || open_beneath(dir.as_fd(), &name, flags, Mode::empty());
            match self.nodes.descriptors.with_room(open).map_err(stale_if_gone) {
                Ok(fd) if self.is(node, &stat::of_fd(&fd)?) => return Ok(fd),
                Err(e) if !matches!(e.errno(), Errno::ESTALE | Errno::EAGAIN) => return Err(e),
                _ => {}
            }
        }
        let path = self.descriptor(node)?;
        let reopen = |flags| self.nodes.descriptors.with_room(|| sys::reopen(&path, flags));
        // A regular file is refused so for no other reason.
        let is_leased = |e: &Error| e.errno() == Errno::EAGAIN && node.identity().kind() == FileKind::Regular;
        reopen(flags).map_err(|e| if is_leased(&e) { Error::Leased } else { e })
    }

    fn truncate_opened(&self, caller: &Caller, fd: &OwnedFd, flags: OpenFlags) -> Result<()> {
        let _guard = caller.clearing(fstat(fd)?.st_mode)?;
        if flags.writes() {
            return Ok(ftruncate(fd, 0)?);
        }
        refuse_leased(fd)?;
        Ok(ftruncate(sys::reopen(fd, OFlags::WRONLY)?, 0)?)
    }

    /// A file for the kernel, from a descriptor of `node`.
    pub(crate) fn opened(
        &self,
        node: &Arc<Node>,
        fd: Arc<OwnedFd>,
        flags: OpenFlags,
    ) -> Result<Opened<File>> {
        let contents = self.contents(node, &fd, flags)?;
        let direct = if flags.has(libc::O_DIRECT) && contents == Contents::Pages {
            let flags = (passed_on(flags, false) | OFlags::DIRECT) - OFlags::NOATIME;
            match self.nodes.descriptors.with_room(|| sys::reopen(&fd, flags)) {
                // A file that was created with a mode which lets nobody open it again: it does without.
                Err(e) if e.errno() == Errno::EACCES => None,
                direct => Some(direct?),
            }
        } else {
            None
        };
        node.opened(&fd);
        let class = self.class(node)?;
        let stream = contents == Contents::Stream;
        let direct_io = stream || contents == Contents::Pseudo;
        let append_only = flags.has(libc::O_APPEND) && rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::APPEND);
        Ok(Opened {
            file: File { fd, direct, contents, class, append_only, position: Mutex::new(()) },
            direct_io,
            stream,
            changed: false,
        })
    }

    fn contents(&self, node: &Arc<Node>, fd: &OwnedFd, flags: OpenFlags) -> Result<Contents> {
        let pseudo = match self.class(node)? {
            class if class.is_pseudo() => true,
            // A file of an unknown file system that says it is empty and is not lies about its size.
            FsClass::Unknown => {
                flags.reads() && fstat(fd)?.st_size == 0 && matches!(pread(fd, &mut [0u8; 1][..], 0), Ok(1))
            }
            _ => false,
        };
        if !pseudo {
            return Ok(Contents::Pages);
        }
        Ok(if seek(fd, SeekFrom::Current(0)) == Err(Os::SPIPE) { Contents::Stream } else { Contents::Pseudo })
    }

    /// Opens a block device that is shown as a regular file, for reading.
    fn open_device(&self, node: &Arc<Node>, flags: OpenFlags) -> Result<Opened<File>> {
        if !self.block_devices_as_files {
            return Err(Errno::ENXIO.into());
        }
        if flags.writes() || flags.has(libc::O_TRUNC) {
            return Err(Errno::EROFS.into());
        }
        let fd = self.open_node(node, OFlags::RDONLY)?;
        let size = sys::ioctl::block_device_size(&fd)?;
        let file = File {
            fd: Arc::new(fd),
            direct: None,
            contents: Contents::Device(size),
            class: FsClass::Unknown,
            append_only: false,
            position: Mutex::new(()),
        };
        Ok(Opened { file, direct_io: false, stream: false, changed: false })
    }
}

impl File {
    /// The descriptor that the file's attributes are those of.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether this is a block device shown as a file.
    pub(crate) fn is_device(&self) -> bool {
        matches!(self.contents, Contents::Device(_))
    }

    /// The descriptor whose pages are all of the contents, where there is one. `O_DIRECT` is not set on it.
    pub(crate) fn pages(&self) -> Option<BorrowedFd<'_>> {
        (self.contents == Contents::Pages).then(|| self.fd.as_fd())
    }

    /// The descriptor of a file that the kernel may serve by itself. Not of one that takes nothing but appended bytes, into
    /// which a mapping could be written; nor of one that may look like one of procfs when it is opened again.
    pub(crate) fn backing(&self) -> Option<Arc<OwnedFd>> {
        (self.contents == Contents::Pages && self.class != FsClass::Unknown && !self.append_only)
            .then(|| self.fd.clone())
    }

    /// A descriptor to wait on, for files that are not always ready.
    pub(crate) fn pollable(&self) -> Option<BorrowedFd<'_>> {
        matches!(self.contents, Contents::Pseudo | Contents::Stream).then(|| self.fd.as_fd())
    }

    /// Type and permission bits.
    pub(crate) fn mode(&self) -> Result<u32> {
        Ok(u32::from(stat::of_fd(&self.fd)?.stx_mode))
    }

    /// Acts as one for whom a change of the contents clears what it clears for `caller`.
    pub(crate) fn clearing(&self, caller: &Caller) -> Result<Guard> {
        // Without a need to know the mode, it is not asked for.
        if caller.fsetid { Ok(Guard::none()) } else { caller.clearing(self.mode()?) }
    }

    /// Where the bytes of `span` are: in the source file, or in a hole of it.
    pub(crate) fn plan_read(&self, span: Span) -> Result<ReadPlan<'_>> {
        let extent = |fd, offset, len, via| Segment::File(FileExtent { fd, offset, len, via });
        match self.contents {
            Contents::Stream => return Ok(ReadPlan::of(extent(self.fd.as_fd(), 0, span.len, Via::Stream))),
            Contents::Pseudo => {
                let via = Via::Copy(CopyReason::Pseudo);
                return Ok(ReadPlan::of(extent(self.fd.as_fd(), span.offset, span.len, via)));
            }
            Contents::Pages | Contents::Device(_) => {}
        }
        if let Some(direct) = &self.direct {
            let via = Via::Copy(CopyReason::Direct);
            return Ok(ReadPlan::of(extent(direct.as_fd(), span.offset, span.len, via)));
        }
        let (size, allocated) = match self.contents {
            Contents::Device(size) => (size, size),
            _ => {
                let st = fstat(&*self.fd)?;
                (u64::try_from(st.st_size).unwrap_or(0), u64::try_from(st.st_blocks).unwrap_or(0) * 512)
            }
        };
        let end = size.min(span.offset.saturating_add(span.len as u64));
        if span.offset >= end {
            return Ok(ReadPlan::end_of_file());
        }
        if allocated < size {
            return self.plan_sparse(span.offset, end);
        }
        Ok(ReadPlan::of(extent(self.fd.as_fd(), span.offset, length(span.offset, end), Via::Splice)))
    }

    /// Data and holes from `offset` up to `end`.
    fn plan_sparse(&self, mut offset: u64, end: u64) -> Result<ReadPlan<'_>> {
        let mut plan = ReadPlan::end_of_file();
        while offset < end {
            let data =
                if plan.segments().len() < MOST_SEGMENTS { self.next_data(offset, end)? } else { offset };
            if data - offset >= SHORTEST_HOLE || (data == end && plan.is_empty()) {
                plan.push(Segment::Zeros(length(offset, data)));
                offset = data;
                continue;
            }
            let hole = if plan.segments().len() < MOST_SEGMENTS { self.next_hole(data, end)? } else { end };
            let len = length(offset, hole);
            plan.push(Segment::File(FileExtent { fd: self.fd.as_fd(), offset, len, via: Via::Splice }));
            offset = hole;
        }
        Ok(plan)
    }

    /// The first data at or after `offset`, at most `end`.
    fn next_data(&self, offset: u64, end: u64) -> Result<u64> {
        match seek(&*self.fd, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data.clamp(offset, end)),
            Err(Os::NXIO) => Ok(end),
            // A source that knows no holes has none.
            Err(Os::INVAL | Os::OPNOTSUPP | Os::SPIPE) => Ok(offset),
            Err(e) => Err(e.into()),
        }
    }

    /// The first hole of some length after `offset`, at most `end`.
    fn next_hole(&self, offset: u64, end: u64) -> Result<u64> {
        match seek(&*self.fd, SeekFrom::Hole(offset)) {
            // Always past `offset`, so that planning comes to an end whatever the source answers.
            Ok(hole) if hole > offset => Ok(hole.min(end)),
            Ok(_) | Err(Os::NXIO | Os::INVAL | Os::OPNOTSUPP | Os::SPIPE) => Ok(end),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes `data`, all of it unless the source runs out of room.
    pub(crate) fn write(&self, offset: u64, data: &[u8], mode: WriteMode) -> Result<usize> {
        let mut written = 0;
        while written < data.len() {
            match self.write_some(offset + written as u64, &data[written..], mode) {
                Ok(0) => break,
                Ok(n) => written += n,
                // What was written is told first; the next write tells why it ended.
                Err(_) if written > 0 => break,
                Err(e) => return Err(e.into()),
            }
            if self.contents != Contents::Pages {
                // One write(2) is one message to such a file; what is left is the caller's to send again.
                break;
            }
        }
        Ok(written)
    }

    fn write_some(&self, offset: u64, data: &[u8], mode: WriteMode) -> rustix::io::Result<usize> {
        match self.contents {
            Contents::Stream => return rustix::io::write(&*self.fd, data),
            // Most files of procfs take no pwrite(2).
            Contents::Pseudo => {
                let _here = self.position.lock();
                seek(&*self.fd, SeekFrom::Start(offset))?;
                return rustix::io::write(&*self.fd, data);
            }
            Contents::Pages | Contents::Device(_) => {}
        }
        if mode.from_page_cache && self.append_only {
            // A mapped page cannot be written back where it belongs; mapping such a file is refused natively.
            return Err(Os::PERM);
        }
        if mode.from_page_cache {
            return pwrite(&*self.fd, data, offset);
        }
        let once = |fd: &OwnedFd| {
            if mode.append {
                pwritev2(fd, &[IoSlice::new(data)], offset, ReadWriteFlags::APPEND)
            } else {
                pwrite(fd, data, offset)
            }
        };
        once(self.direct.as_ref().unwrap_or(&self.fd))
    }

    pub(crate) fn tells_at_close(&self) -> bool {
        self.class.tells_late()
    }

    pub(crate) fn flush(&self) -> Result<()> {
        // Closing a duplicate makes file systems that write on close report what went wrong (NFS).
        let duplicate = self.fd.try_clone()?;
        nix::unistd::close(duplicate)?;
        Ok(())
    }

    pub(crate) fn fsync(&self, data_only: bool) -> Result<()> {
        if data_only {
            fdatasync(&*self.fd)?;
        } else {
            fsync(&*self.fd)?;
        }
        Ok(())
    }

    pub(crate) fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        Ok(fallocate(&*self.fd, FallocateFlags::from_bits_retain(mode), offset, len)?)
    }

    pub(crate) fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        let from = match to {
            SeekTo::Data => SeekFrom::Data(offset),
            SeekTo::Hole => SeekFrom::Hole(offset),
        };
        Ok(seek(&*self.fd, from)?)
    }

    pub(crate) fn copy_range(&self, offset: u64, to: &Self, to_offset: u64, len: usize) -> Result<usize> {
        let (mut offset, mut to_offset) = (offset, to_offset);
        Ok(copy_file_range(&*self.fd, Some(&mut offset), &*to.fd, Some(&mut to_offset), len)?)
    }
}

/// The length from `start` to `end`, which a plan has bounded by what one reply carries.
fn length(start: u64, end: u64) -> usize {
    usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX)
}
