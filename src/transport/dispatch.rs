//! From a decoded request to the vfs, and from its answer to a payload.

use splicefs_core::{
    Backend, Caller, Cookie, CreateFlags, Errno, HandleId, Ioctl, Make, Name, NodeId, OpenFlags, RenameFlags,
    Result, SeekTo, SetAttr, SetTime, Span, Timestamp, WriteMode, XattrFlags,
};

use super::answer::{self, BODY, Given, Reply, put};
use super::port::Sent;
use super::readdir::Entries;
use super::request::{Opcode, Request};
use super::root::node;
use super::wire::{
    BatchForgetIn, CopyFileRangeIn, CopyOut, CreateIn, FallocateIn, FlushIn, ForgetIn, ForgetOne, FsyncIn,
    GetattrIn, GetxattrIn, GetxattrOut, InHeader, IoctlIn, IoctlOut, LinkIn, LseekIn, LseekOut, MkdirIn,
    MknodIn, OpenIn, PollIn, PollOut, ReadIn, ReleaseIn, Rename2In, RenameIn, SetattrIn, SetxattrIn, WriteIn,
    WriteOut, flag,
};
use super::worker::Worker;
use crate::vfs::{FOR_EVER, FileRef, Found, LookedUp};
use zerocopy::IntoBytes;

/// The largest value of an attribute (`XATTR_SIZE_MAX`), and of a list of names, in bytes.
const XATTR_MAX: u32 = 64 * 1024;

/// Who asks. Root keeps setuid and setgid bits, unless the request says otherwise.
fn caller(header: &InHeader, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid, umask, fsetid: header.uid == 0 }
}

/// Who asks, where the kernel says whether setuid and setgid bits must go (`kill`).
fn changer(header: &InHeader, kill: bool) -> Caller {
    Caller { fsetid: !kill, ..caller(header, 0) }
}

fn flags(raw: u32) -> OpenFlags {
    OpenFlags(raw.cast_signed())
}

fn create_flags(raw: u32) -> CreateFlags {
    let open = flags(raw);
    CreateFlags { open, exclusive: open.has(libc::O_EXCL) }
}

fn length(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

impl<B: Backend> Worker<B> {
    /// Does what the request asks for.
    pub(super) fn dispatch(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        use Opcode as O;
        match opcode {
            O::Forget | O::BatchForget | O::Interrupt | O::Destroy => self.unanswered(opcode, request),
            O::Lookup | O::Readlink | O::Symlink | O::Mknod | O::Mkdir | O::Link => {
                self.entries(opcode, request)
            }
            O::Unlink | O::Rmdir | O::Rename | O::Rename2 => self.removals(opcode, request),
            O::Getattr | O::Setattr | O::Statfs => self.attributes(opcode, request),
            O::Open | O::Create | O::Tmpfile | O::Flush | O::Release | O::Fsync => {
                self.handles(opcode, request)
            }
            O::Read | O::Write => self.data(opcode, request),
            O::Fallocate | O::Lseek | O::CopyFileRange | O::CopyFileRange64 => self.ranges(opcode, request),
            O::Ioctl | O::Poll => self.control(opcode, request),
            O::Opendir | O::Readdir | O::Readdirplus | O::Releasedir | O::Fsyncdir => {
                self.directories(opcode, request)
            }
            O::Setxattr | O::Getxattr | O::Listxattr | O::Removexattr => self.xattrs(opcode, request),
        }
    }

    fn unanswered(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        match opcode {
            Opcode::Forget => {
                let forget: ForgetIn = request.take()?;
                self.vfs.forget(node(request.header.nodeid), forget.nlookup);
            }
            Opcode::BatchForget => {
                let batch: BatchForgetIn = request.take()?;
                for _ in 0..batch.count {
                    let one: ForgetOne = request.take()?;
                    self.vfs.forget(node(one.nodeid), one.nlookup);
                }
            }
            Opcode::Destroy => return Ok(Reply::Empty),
            _ => {}
        }
        Ok(Reply::None)
    }

    fn entries(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let id = node(request.header.nodeid);
        let plain = caller(&request.header, 0);
        let found = match opcode {
            Opcode::Readlink => {
                let target = self.vfs.readlink(&plain, id)?;
                self.out.clear();
                self.out.extend_from_slice(&target);
                return Ok(BODY);
            }
            Opcode::Lookup => {
                let name = request.name()?;
                if let Some(named) = self.port.root.found(request.header.nodeid, name.as_bytes()) {
                    let shown = self.vfs.getattr(&plain, NodeId::ROOT, None)?;
                    put(&mut self.out, &answer::entry(&Found { id: named, shown, lifetime: FOR_EVER }));
                    return Ok(BODY);
                }
                return self.lookup(&plain, request.header.unique, id, &name);
            }
            Opcode::Mknod => {
                let MknodIn { mode, rdev, umask, .. } = request.take()?;
                let name = request.name()?;
                self.vfs.make(&caller(&request.header, umask), id, &name, Make::Node(mode, rdev))?
            }
            Opcode::Mkdir => {
                let MkdirIn { mode, umask } = request.take()?;
                let name = request.name()?;
                self.vfs.make(&caller(&request.header, umask), id, &name, Make::Directory(mode))?
            }
            Opcode::Symlink => {
                let (name, target) = (request.name()?, request.text()?);
                self.vfs.make(&plain, id, &name, Make::Symlink(target.to_bytes()))?
            }
            _ => {
                let LinkIn { oldnodeid } = request.take()?;
                self.vfs.link(node(oldnodeid), id, &request.name()?)?
            }
        };
        put(&mut self.out, &answer::entry(&found));
        Ok(Reply::Body(Given { node: Some(found.id), ..Given::NOTHING }))
    }

    fn lookup(&mut self, caller: &Caller, unique: u64, parent: NodeId, name: &Name) -> Result<Reply> {
        let (out, port) = (&mut self.out, &self.port);
        let (sent, node) = self.vfs.lookup(caller, parent, name, |looked_up| match looked_up {
            LookedUp::Missing(lifetime) => {
                put(out, &answer::no_entry(*lifetime));
                (port.reply(unique, out), None)
            }
            LookedUp::Found(found) => {
                put(out, &answer::entry(found));
                (port.reply(unique, out), Some(found.id))
            }
        })?;
        if sent == Sent::Gone {
            self.take_back(Given { node, ..Given::NOTHING });
        }
        Ok(Reply::Sent)
    }

    fn removals(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let parent = node(request.header.nodeid);
        let by = caller(&request.header, 0);
        match opcode {
            Opcode::Unlink => self.vfs.unlink(&by, parent, &request.name()?)?,
            Opcode::Rmdir => self.vfs.rmdir(&by, parent, &request.name()?)?,
            _ => {
                let Rename2In { newdir, flags, .. } = if opcode == Opcode::Rename2 {
                    request.take()?
                } else {
                    let RenameIn { newdir } = request.take()?;
                    Rename2In { newdir, ..Rename2In::default() }
                };
                let (from, to) = (request.name()?, request.name()?);
                self.vfs.rename(&by, (parent, &from), (node(newdir), &to), RenameFlags(flags))?;
            }
        }
        Ok(Reply::Empty)
    }

    fn attributes(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let id = node(request.header.nodeid);
        match opcode {
            Opcode::Statfs => put(&mut self.out, &answer::statfs(&self.vfs.statfs(id)?)),
            Opcode::Getattr => {
                let get: GetattrIn = request.take()?;
                let handle = (get.flags & flag::GETATTR_FH != 0).then_some(HandleId(get.fh));
                put(
                    &mut self.out,
                    &answer::attr(&self.vfs.getattr(&caller(&request.header, 0), id, handle)?),
                );
            }
            _ => {
                let set: SetattrIn = request.take()?;
                if set.valid & !(flag::FATTR_FH | flag::FATTR_LOCKOWNER) == 0 && self.vfs.asks_to_write() {
                    let by = caller(&request.header, 0);
                    put(&mut self.out, &answer::attr(&self.vfs.prepare_write(&by, id)?));
                    return Ok(BODY);
                }
                let handle = (set.valid & flag::FATTR_FH != 0).then_some(HandleId(set.fh));
                let by = if set.valid & flag::FATTR_SIZE != 0 {
                    changer(&request.header, set.valid & flag::FATTR_KILL_SUIDGID != 0)
                } else {
                    caller(&request.header, 0)
                };
                self.vfs.setattr(&by, id, handle, &changes(&set), |shown| {
                    put(&mut self.out, &answer::attr(shown));
                    self.port.reply(request.header.unique, &self.out);
                })?;
                return Ok(Reply::Sent);
            }
        }
        Ok(BODY)
    }

    fn handles(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let id = node(request.header.nodeid);
        match opcode {
            Opcode::Open => {
                let open: OpenIn = request.take()?;
                let by = changer(&request.header, open.open_flags & flag::OPEN_KILL_SUIDGID != 0);
                let (unique, out, port) = (request.header.unique, &mut self.out, &self.port);
                let (sent, handle) =
                    self.vfs.open(&by, id, flags(open.flags), &mut self.engine, |handle| {
                        put(out, &answer::open(handle));
                        (port.reply(unique, out), handle.id)
                    })?;
                if sent == Sent::Gone {
                    self.take_back(Given { file: Some(handle), ..Given::NOTHING });
                }
                Ok(Reply::Sent)
            }
            Opcode::Create | Opcode::Tmpfile => {
                let CreateIn { flags, mode, umask, .. } = request.take()?;
                let (by, how) = (caller(&request.header, umask), create_flags(flags));
                let (found, handle) = if opcode == Opcode::Create {
                    self.vfs.create(&by, id, &request.name()?, mode, how)?
                } else {
                    self.vfs.tmpfile(&by, id, mode, how)?
                };
                put(&mut self.out, &answer::entry(&found));
                self.out.extend_from_slice(answer::open(&handle).as_bytes());
                Ok(Reply::Body(Given { node: Some(found.id), file: Some(handle.id), dir: None }))
            }
            Opcode::Flush => {
                let FlushIn { fh, .. } = request.take()?;
                self.vfs.flush(HandleId(fh))?;
                Ok(Reply::Empty)
            }
            Opcode::Release => {
                let ReleaseIn { fh, .. } = request.take()?;
                self.vfs.release(HandleId(fh))?;
                Ok(Reply::Empty)
            }
            _ => {
                let FsyncIn { fh, fsync_flags, .. } = request.take()?;
                self.vfs.fsync(file(request, fh), fsync_flags & flag::FSYNC_FDATASYNC != 0)?;
                Ok(Reply::Empty)
            }
        }
    }

    fn data(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        if opcode == Opcode::Read {
            let read: ReadIn = request.take()?;
            let len = length(u64::from(read.size)).min(self.max_read);
            let span = Span { offset: read.offset, len };
            let by = caller(&request.header, 0);
            self.vfs.read(
                &by,
                FileRef { flags: flags(read.flags), ..file(request, read.fh) },
                span,
                &mut self.engine,
                &*self.port,
                request.header.unique,
            )?;
            return Ok(Reply::Sent);
        }
        let write: WriteIn = request.take()?;
        let data = request.bytes(write.size)?;
        let from_page_cache = write.write_flags & flag::WRITE_CACHE != 0;
        let opened_with = flags(write.flags);
        let append = opened_with.has(libc::O_APPEND) && !from_page_cache;
        let by = changer(&request.header, write.write_flags & flag::WRITE_KILL_SUIDGID != 0);
        let mode = WriteMode { append, from_page_cache };
        let file = FileRef { flags: opened_with, ..file(request, write.fh) };
        let written = self.vfs.write(&by, file, write.offset, data, mode)?;
        put(&mut self.out, &WriteOut { size: u32::try_from(written).unwrap_or(write.size), padding: 0 });
        Ok(BODY)
    }

    fn ranges(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let by = caller(&request.header, 0);
        match opcode {
            Opcode::Fallocate => {
                let FallocateIn { fh, offset, length, mode, .. } = request.take()?;
                self.vfs.fallocate(&by, file(request, fh), mode, offset, length)?;
                return Ok(Reply::Empty);
            }
            Opcode::Lseek => {
                let seek: LseekIn = request.take()?;
                let to = match seek.whence.cast_signed() {
                    libc::SEEK_DATA => SeekTo::Data,
                    libc::SEEK_HOLE => SeekTo::Hole,
                    _ => return Err(Errno::EINVAL.into()),
                };
                let offset = self.vfs.seek(file(request, seek.fh), seek.offset, to)?;
                put(&mut self.out, &LseekOut { offset });
            }
            _ => {
                let copy: CopyFileRangeIn = request.take()?;
                let from = (file(request, copy.fh_in), copy.off_in);
                let target = FileRef { node: node(copy.nodeid_out), ..file(request, copy.fh_out) };
                let to = (target, copy.off_out);
                let copied = self.vfs.copy_range(&by, from, to, length(copy.len))?;
                if opcode == Opcode::CopyFileRange64 {
                    put(&mut self.out, &CopyOut { bytes_copied: copied as u64 });
                } else {
                    put(
                        &mut self.out,
                        &WriteOut { size: u32::try_from(copied).unwrap_or(u32::MAX), padding: 0 },
                    );
                }
            }
        }
        Ok(BODY)
    }

    fn control(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        if opcode == Opcode::Poll {
            let poll: PollIn = request.take()?;
            let waiter = (poll.flags & flag::POLL_SCHEDULE_NOTIFY != 0).then_some(poll.kh);
            let revents = self.vfs.poll(file(request, poll.fh), poll.events, waiter)?;
            put(&mut self.out, &PollOut { revents, padding: 0 });
            return Ok(BODY);
        }
        let ioctl: IoctlIn = request.take()?;
        if ioctl.flags & flag::IOCTL_UNRESTRICTED != 0 {
            return Err(Errno::ENOTTY.into());
        }
        let id = node(request.header.nodeid);
        let input = request.bytes(ioctl.in_size)?;
        let wanted = Ioctl { command: ioctl.cmd, input, output_len: length(u64::from(ioctl.out_size)) };
        let (result, bytes) = if ioctl.flags & flag::IOCTL_DIR != 0 {
            self.vfs.ioctl_dir(id, HandleId(ioctl.fh), wanted)?
        } else {
            self.vfs.ioctl_file(file(request, ioctl.fh), wanted)?
        };
        put(&mut self.out, &IoctlOut { result, flags: 0, in_iovs: 1, out_iovs: 1 });
        self.out.extend_from_slice(&bytes);
        Ok(BODY)
    }

    fn directories(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let id = node(request.header.nodeid);
        let by = caller(&request.header, 0);
        match opcode {
            Opcode::Opendir => {
                let (handle, kept) = self.vfs.opendir(&by, id)?;
                put(&mut self.out, &answer::opendir(handle, kept));
                Ok(Reply::Body(Given { dir: Some(handle), ..Given::NOTHING }))
            }
            Opcode::Readdir => {
                let read: ReadIn = request.take()?;
                let size = length(u64::from(read.size)).min(self.max_read);
                let mut entries = Entries::new(&mut self.out, size);
                let mut add = |entry: splicefs_core::DirEntry<'_>| entries.add(entry);
                self.vfs.readdir(&by, id, HandleId(read.fh), Cookie(read.offset), size, &mut add)?;
                Ok(BODY)
            }
            Opcode::Readdirplus => {
                let read: ReadIn = request.take()?;
                let size = length(u64::from(read.size)).min(self.max_read);
                let mut entries = Entries::new(&mut self.out, size);
                let (handle, from) = (HandleId(read.fh), Cookie(read.offset));
                // An entry with its node takes about five times the room of one without.
                let _answering =
                    self.vfs.readdirplus(&by, id, handle, from, size / 5, &mut |entry, found| {
                        entries.add_plus(entry, found.as_ref())
                    })?;
                self.port.reply(request.header.unique, &self.out);
                Ok(Reply::Sent)
            }
            Opcode::Releasedir => {
                let ReleaseIn { fh, .. } = request.take()?;
                self.vfs.releasedir(HandleId(fh))?;
                Ok(Reply::Empty)
            }
            _ => {
                let FsyncIn { fh, fsync_flags, .. } = request.take()?;
                self.vfs.fsyncdir(HandleId(fh), fsync_flags & flag::FSYNC_FDATASYNC != 0)?;
                Ok(Reply::Empty)
            }
        }
    }

    fn xattrs(&mut self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply> {
        let id = node(request.header.nodeid);
        let by = caller(&request.header, 0);
        match opcode {
            Opcode::Setxattr => {
                let set: SetxattrIn = request.take()?;
                let name = request.text()?;
                let value = request.bytes(set.size)?;
                // fuse_set_acl asks for it with a default ACL as well, which takes no bits natively (posix_acl_update_mode).
                let kill_sgid = set.setxattr_flags & flag::SETXATTR_ACL_KILL_SGID != 0
                    && name == c"system.posix_acl_access";
                let flags = XattrFlags { flags: set.flags.cast_signed(), kill_sgid };
                self.vfs.setxattr(&by, id, name, value, flags)?;
                return Ok(Reply::Empty);
            }
            Opcode::Removexattr => {
                self.vfs.removexattr(id, request.text()?)?;
                return Ok(Reply::Empty);
            }
            _ => {}
        }
        let GetxattrIn { size, .. } = request.take()?;
        if size == 0 {
            // A caller that asks for the size alone gives none to keep to.
            let size = match opcode {
                Opcode::Getxattr => self.vfs.xattr_length(&by, id, request.text()?)?,
                _ => self.vfs.listxattr(&by, id, length(u64::from(XATTR_MAX)))?.len(),
            };
            put(&mut self.out, &GetxattrOut { size: u32::try_from(size).unwrap_or(XATTR_MAX), padding: 0 });
            return Ok(BODY);
        }
        let limit = length(u64::from(size.min(XATTR_MAX)));
        let value = match opcode {
            Opcode::Getxattr => self.vfs.getxattr(&by, id, request.text()?, limit)?,
            _ => self.vfs.listxattr(&by, id, limit)?,
        };
        self.out.clear();
        self.out.extend_from_slice(&value);
        Ok(BODY)
    }
}

/// The file that a request means by `fh`.
fn file(request: &Request<'_>, fh: u64) -> FileRef {
    FileRef { node: node(request.header.nodeid), handle: HandleId(fh), flags: OpenFlags(0) }
}

/// What a SETATTR changes.
fn changes(set: &SetattrIn) -> SetAttr {
    let given = |bit: u32| set.valid & bit != 0;
    let time = |bit, now, sec: u64, nsec| {
        given(bit).then(|| {
            if given(now) { SetTime::Now } else { SetTime::At(Timestamp { sec: sec.cast_signed(), nsec }) }
        })
    };
    SetAttr {
        mode: given(flag::FATTR_MODE).then_some(set.mode),
        uid: given(flag::FATTR_UID).then_some(set.uid),
        gid: given(flag::FATTR_GID).then_some(set.gid),
        size: given(flag::FATTR_SIZE).then_some(set.size),
        atime: time(flag::FATTR_ATIME, flag::FATTR_ATIME_NOW, set.atime, set.atimensec),
        mtime: time(flag::FATTR_MTIME, flag::FATTR_MTIME_NOW, set.mtime, set.mtimensec),
    }
}
