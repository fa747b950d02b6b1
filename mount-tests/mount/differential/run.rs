//! Performs operations below a root and says what they answered, without naming the root.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    XattrFlags,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, umask};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::mapping::write_mapped;
use super::op::{At, Object, Op, SLOTS, Special, Step, Time, Whence, Who};
use crate::posix::script::{os, summary};

/// What an operation answered: a value as text, or an error number.
pub(crate) type Answer = Result<String, Errno>;

/// What is compared of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum View {
    /// Everything: both are file systems of one kind.
    Exact,
    /// What a merged tree shows: not how much room its parts take, nor where their holes are, which depends on how they
    /// were copied up.
    Merged,
}

/// One of the file systems under comparison.
pub(crate) struct Side {
    pub(crate) root: PathBuf,
    pub(crate) view: View,
    slots: [Option<OwnedFd>; SLOTS],
}

/// Runs `action` as someone else in this thread, which must have a umask of its own and be root.
fn as_who<T>(who: Who, mask: u32, action: impl FnOnce() -> T) -> T {
    let become_who = |id: u32, groups: &[u32]| -> rustix::io::Result<()> {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid, root) = (Uid::from_raw(id), Gid::from_raw(id), Uid::from_raw(0));
        // Root remains the saved uid: the way back.
        set_thread_res_uid(root, root, root)?;
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, root)
    };
    umask(Mode::from_raw_mode(mask));
    if who != Who::Root {
        become_who(who.id(), who.groups()).expect("taking on an identity");
    }
    let result = action();
    if who != Who::Root {
        become_who(0, &[]).expect("becoming root again");
    }
    result
}

fn done<T>(result: Result<T, Errno>) -> Answer {
    result.map(|_| "ok".to_owned())
}

fn timespec(time: Time) -> Timespec {
    match time {
        Time::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
        Time::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Time::Omit => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    }
}

/// Attributes without times, inode number and device number of the file system.
pub(crate) fn describe(stat: &Stat, view: View) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = stat.st_mode & 0o7777;
    let size = match view {
        View::Exact => format!(" size={} blocks={}", stat.st_size, stat.st_blocks),
        View::Merged if kind == FileType::Directory => String::new(),
        View::Merged => format!(" size={}", stat.st_size),
    };
    let rdev = if stat.st_rdev == 0 { String::new() } else { format!(" rdev={:#x}", stat.st_rdev) };
    // A directory has 1 from when it is merged: then as many as the kernel had seen before may be shown.
    let links = if view == View::Merged && kind == FileType::Directory {
        String::new()
    } else {
        format!(" links={}", stat.st_nlink)
    };
    format!("{kind:?} {mode:04o} {}:{}{links}{size}{rdev}", stat.st_uid, stat.st_gid)
}

impl Side {
    /// Will work in `root`, which need not exist yet.
    pub(crate) fn new(root: PathBuf, view: View) -> Self {
        Self { root, view, slots: [const { None }; SLOTS] }
    }

    pub(crate) fn path(&self, at: &At) -> PathBuf {
        if at.0.is_empty() { self.root.clone() } else { self.root.join(at.relative()) }
    }

    pub(crate) fn slot(&self, slot: usize) -> Result<BorrowedFd<'_>, Errno> {
        self.slots[slot].as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// Whether something is held open that FUSE does not tell a daemon of: with `O_PATH`, or what is neither a file nor a
    /// directory.
    pub(crate) fn holds_unseen(&self) -> bool {
        self.slots.iter().flatten().any(|fd| {
            let stat = rustix::fs::fstat(fd).expect("fstat");
            let kind = FileType::from_raw_mode(stat.st_mode);
            let path = rustix::fs::fcntl_getfl(fd).expect("fcntl").contains(OFlags::PATH);
            path || !matches!(kind, FileType::RegularFile | FileType::Directory)
        })
    }

    /// Whether the object is held open.
    pub(crate) fn is_open(&self, object: &Object) -> bool {
        let Ok(stat) = self.stat(object) else { return false };
        let opened = self.slots.iter().flatten().map(|fd| rustix::fs::fstat(fd).expect("fstat"));
        opened.into_iter().any(|open| (open.st_dev, open.st_ino) == (stat.st_dev, stat.st_ino))
    }

    /// Whether something without a name is held open.
    pub(crate) fn holds_nameless(&self) -> bool {
        self.slots.iter().flatten().any(|fd| rustix::fs::fstat(fd).expect("fstat").st_nlink == 0)
    }

    /// Whether a descriptor is of something that is removed and does not know it: a lower file of the kernel's overlayfs.
    pub(crate) fn was_removed_below(&self, slot: usize) -> bool {
        let Ok(fd) = self.slot(slot) else { return false };
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a link of procfs");
        let removed = link.as_os_str().as_bytes().ends_with(b" (deleted)");
        removed && rustix::fs::fstat(fd).expect("fstat").st_nlink > 0
    }

    pub(crate) fn close_all(&mut self) {
        self.slots = [const { None }; SLOTS];
    }

    /// Performs a step as its caller.
    pub(crate) fn perform(&mut self, step: &Step) -> Answer {
        as_who(step.who, step.umask, || self.act(&step.op))
    }

    fn act(&mut self, op: &Op) -> Answer {
        match op {
            Op::Open { slot, path, flags, mode } => {
                // No open waits for the other end of a FIFO.
                let flags = *flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let path = self.path(path);
                self.fill_slot(*slot, || rustix::fs::open(path, flags, Mode::from_raw_mode(*mode)))
            }
            Op::Tmpfile { slot, dir, exclusive, mode } => {
                let exclusive = if *exclusive { OFlags::EXCL } else { OFlags::empty() };
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | exclusive;
                let path = self.path(dir);
                self.fill_slot(*slot, || rustix::fs::open(path, flags, Mode::from_raw_mode(*mode)))
            }
            Op::Close(slot) => done(self.slots[*slot].take().ok_or(Errno::BADF)),
            Op::Mkdir(..) | Op::Mknod(..) | Op::Symlink(..) | Op::Link { .. } | Op::LinkOpen { .. } => {
                self.make(op)
            }
            Op::Unlink(..) | Op::Rmdir(..) | Op::Rename { .. } => self.unmake(op),
            Op::Chmod(..) | Op::Chown(..) | Op::Utimens(..) | Op::Access { .. } => self.change(op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::ListXattr { .. } => self.xattr(op),
            Op::RemoveXattr { .. } | Op::SetAcl { .. } => self.xattr(op),
            Op::Stat(_) | Op::Readdir(_) | Op::Readlink(_) => self.look(op),
            _ => self.data(op),
        }
    }

    fn fill_slot(&mut self, slot: usize, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Answer {
        self.slots[slot] = None;
        let opened = open()?;
        self.slots[slot] = Some(opened);
        Ok("ok".to_owned())
    }

    fn make(&self, op: &Op) -> Answer {
        done(match op {
            Op::Mkdir(path, mode) => rustix::fs::mkdir(self.path(path), Mode::from_raw_mode(*mode)),
            Op::Mknod(path, special, mode) => {
                let (kind, (major, minor)) = match *special {
                    Special::Fifo => (FileType::Fifo, (0, 0)),
                    Special::Socket => (FileType::Socket, (0, 0)),
                    Special::Character(major, minor) => (FileType::CharacterDevice, (major, minor)),
                    Special::Block(major, minor) => (FileType::BlockDevice, (major, minor)),
                    Special::Regular => (FileType::RegularFile, (0, 0)),
                };
                let number = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(CWD, self.path(path), kind, Mode::from_raw_mode(*mode), number)
            }
            Op::Symlink(path, target) => rustix::fs::symlink(target.text(), self.path(path)),
            Op::Link { from, to, follow } => {
                let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                rustix::fs::linkat(CWD, self.path(from), CWD, self.path(to), flags)
            }
            Op::LinkOpen { slot, path } => {
                let open = format!("/proc/self/fd/{}", self.slot(*slot)?.as_raw_fd());
                rustix::fs::linkat(CWD, open, CWD, self.path(path), AtFlags::SYMLINK_FOLLOW)
            }
            other => unreachable!("{other:?} makes nothing"),
        })
    }

    fn unmake(&self, op: &Op) -> Answer {
        done(match op {
            Op::Unlink(path) => rustix::fs::unlink(self.path(path)),
            Op::Rmdir(path) => rustix::fs::rmdir(self.path(path)),
            Op::Rename { from, to, flags } => {
                rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), *flags)
            }
            other => unreachable!("{other:?} removes nothing"),
        })
    }

    fn data(&self, op: &Op) -> Answer {
        match op {
            Op::Pread { slot, offset, length } => {
                let mut buffer = vec![0; *length];
                let count = rustix::io::pread(self.slot(*slot)?, &mut buffer[..], *offset)?;
                Ok(format!("{count}: {}", summary(&buffer[..count])))
            }
            Op::Pwrite { slot, offset, data } => {
                rustix::io::pwrite(self.slot(*slot)?, &data.bytes(), *offset).map(|n| n.to_string())
            }
            Op::Append { slot, parts, seek } => {
                let file = self.slot(*slot)?;
                if *seek {
                    rustix::fs::seek(file, SeekFrom::End(0))?;
                }
                let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.bytes()).collect();
                let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                let count = rustix::io::writev(file, &parts)?;
                let place = rustix::fs::seek(file, SeekFrom::Current(0)).map_err(Errno::raw_os_error);
                Ok(format!("{count}, then at {place:?}"))
            }
            Op::Truncate(path, length) => {
                let length = i64::try_from(*length).unwrap_or(-1);
                let result = nix::unistd::truncate(&self.path(path), length);
                done(result.map_err(|e| Errno::from_raw_os_error(e as i32)))
            }
            Op::Ftruncate(slot, length) => done(rustix::fs::ftruncate(self.slot(*slot)?, *length)),
            Op::Fallocate { slot, mode, offset, length } => {
                done(rustix::fs::fallocate(self.slot(*slot)?, *mode, *offset, *length))
            }
            Op::Seek { slot, whence, offset } => {
                let to = match whence {
                    Whence::Data => SeekFrom::Data(*offset),
                    Whence::Hole => SeekFrom::Hole(*offset),
                    Whence::Set => SeekFrom::Start(*offset),
                    Whence::End => SeekFrom::End(0),
                };
                rustix::fs::seek(self.slot(*slot)?, to).map(|place| place.to_string())
            }
            Op::CopyRange { from, to, from_offset, to_offset, length } => {
                let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
                let (from, to) = (self.slot(*from)?, self.slot(*to)?);
                rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), *length)
                    .map(|n| n.to_string())
            }
            Op::MapWrite { slot, place, data } => {
                const WITHIN: u64 = 4 << 20;
                let file = self.slot(*slot)?;
                let stat = rustix::fs::fstat(file)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size == 0 {
                    return Err(Errno::NXIO);
                }
                let offset = u64::from(*place) % size.min(WITHIN);
                let length = data.length.min(usize::try_from(size - offset).unwrap_or(usize::MAX));
                done(write_mapped(file, offset, &data.bytes()[..length]))
            }
            Op::Fsync(slot) => done(rustix::fs::fsync(self.slot(*slot)?)),
            other => unreachable!("{other:?} is not about data"),
        }
    }

    fn change(&self, op: &Op) -> Answer {
        match op {
            Op::Chmod(object, mode) => {
                let mode = Mode::from_raw_mode(*mode);
                done(match object {
                    Object::Follow(path) => rustix::fs::chmod(self.path(path), mode),
                    Object::NoFollow(path) => {
                        rustix::fs::chmodat(CWD, self.path(path), mode, AtFlags::SYMLINK_NOFOLLOW)
                    }
                    Object::Open(slot) => rustix::fs::fchmod(self.slot(*slot)?, mode),
                })
            }
            Op::Chown(object, uid, gid) => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                done(match object {
                    Object::Follow(path) => rustix::fs::chown(self.path(path), uid, gid),
                    Object::NoFollow(path) => {
                        rustix::fs::chownat(CWD, self.path(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    }
                    Object::Open(slot) => rustix::fs::fchown(self.slot(*slot)?, uid, gid),
                })
            }
            Op::Utimens(object, accessed, modified) => {
                let times =
                    Timestamps { last_access: timespec(*accessed), last_modification: timespec(*modified) };
                let set = |path: &At, flags| rustix::fs::utimensat(CWD, self.path(path), &times, flags);
                match object {
                    Object::Follow(path) => set(path, AtFlags::empty())?,
                    Object::NoFollow(path) => set(path, AtFlags::SYMLINK_NOFOLLOW)?,
                    Object::Open(slot) => rustix::fs::futimens(self.slot(*slot)?, &times)?,
                }
                // What was given comes back; the rest depends on the clock.
                let stat = as_who(Who::Root, 0, || self.stat(object))?;
                let atime = matches!(accessed, Time::At(..)).then_some((stat.st_atime, stat.st_atime_nsec));
                let mtime = matches!(modified, Time::At(..)).then_some((stat.st_mtime, stat.st_mtime_nsec));
                Ok(format!("atime {atime:?} mtime {mtime:?}"))
            }
            Op::Access { path, mode, effective } => {
                let flags = if *effective { AtFlags::EACCESS } else { AtFlags::empty() };
                let access = rustix::fs::Access::from_bits_retain(*mode);
                done(rustix::fs::accessat(CWD, self.path(path), access, flags))
            }
            other => unreachable!("{other:?} changes no attribute"),
        }
    }

    pub(crate) fn stat(&self, object: &Object) -> Result<Stat, Errno> {
        match object {
            Object::Follow(path) => rustix::fs::stat(self.path(path)),
            Object::NoFollow(path) => rustix::fs::lstat(self.path(path)),
            Object::Open(slot) => rustix::fs::fstat(self.slot(*slot)?),
        }
    }

    fn xattr(&self, op: &Op) -> Answer {
        match op {
            Op::SetXattr { object, name, value, flags } => {
                self.set_xattr(object, name, &value.bytes(), XattrFlags::from_bits_retain(*flags))
            }
            Op::SetAcl { object, kind, acl } => {
                self.set_xattr(object, kind.attribute(), &acl.0, XattrFlags::empty())
            }
            Op::GetXattr { object, name, room } => {
                let mut value = vec![0; *room];
                let length = match object {
                    Object::Follow(path) => rustix::fs::getxattr(self.path(path), *name, &mut value[..]),
                    Object::NoFollow(path) => rustix::fs::lgetxattr(self.path(path), *name, &mut value[..]),
                    Object::Open(slot) => rustix::fs::fgetxattr(self.slot(*slot)?, *name, &mut value[..]),
                }?;
                Ok(format!("{length}: {}", summary(&value[..length.min(*room)])))
            }
            Op::ListXattr { object, room } => {
                let mut names = vec![0; *room];
                let length = match object {
                    Object::Follow(path) => rustix::fs::listxattr(self.path(path), &mut names[..]),
                    Object::NoFollow(path) => rustix::fs::llistxattr(self.path(path), &mut names[..]),
                    Object::Open(slot) => rustix::fs::flistxattr(self.slot(*slot)?, &mut names[..]),
                }?;
                let mut names: Vec<_> = names[..length.min(*room)].split(|&byte| byte == 0).collect();
                names.sort_unstable();
                let names: Vec<_> = names.iter().map(|name| name.escape_ascii().to_string()).collect();
                Ok(format!("{length}: {}", names.join(" ")))
            }
            Op::RemoveXattr { object, name } => done(match object {
                Object::Follow(path) => rustix::fs::removexattr(self.path(path), *name),
                Object::NoFollow(path) => rustix::fs::lremovexattr(self.path(path), *name),
                Object::Open(slot) => rustix::fs::fremovexattr(self.slot(*slot)?, *name),
            }),
            other => unreachable!("{other:?} is not about extended attributes"),
        }
    }

    fn set_xattr(&self, object: &Object, name: &str, value: &[u8], flags: XattrFlags) -> Answer {
        done(match object {
            Object::Follow(path) => rustix::fs::setxattr(self.path(path), name, value, flags),
            Object::NoFollow(path) => rustix::fs::lsetxattr(self.path(path), name, value, flags),
            Object::Open(slot) => rustix::fs::fsetxattr(self.slot(*slot)?, name, value, flags),
        })
    }

    fn look(&self, op: &Op) -> Answer {
        match op {
            Op::Stat(object) => self.stat(object).map(|stat| describe(&stat, self.view)),
            Op::Readdir(object) => {
                let open = |path: &Path, flags| {
                    let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    rustix::fs::open(path, flags, Mode::empty())
                };
                let directory = match object {
                    Object::Follow(path) => open(&self.path(path), OFlags::empty())?,
                    Object::NoFollow(path) => open(&self.path(path), OFlags::NOFOLLOW)?,
                    Object::Open(slot) => rustix::fs::openat(
                        self.slot(*slot)?,
                        ".",
                        OFlags::RDONLY | OFlags::CLOEXEC,
                        Mode::empty(),
                    )?,
                };
                let entries = entries(directory)?;
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(name, kind, _)| format!("{} {kind:?}", name.to_string_lossy()))
                    .collect();
                Ok(entries.join(", "))
            }
            Op::Readlink(path) => {
                let target = os(fs::read_link(self.path(path)))?;
                Ok(summary(target.as_os_str().as_bytes()))
            }
            other => unreachable!("{other:?} does not only look"),
        }
    }
}

/// Names, types and inode numbers of a directory, sorted.
pub(crate) fn entries(directory: OwnedFd) -> Result<Vec<(CString, FileType, u64)>, Errno> {
    let mut entries = Vec::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        entries.push((CStr::to_owned(entry.file_name()), entry.file_type(), entry.ino()));
    }
    entries.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(entries)
}
