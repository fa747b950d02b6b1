//! `cargo run --release --example floor -- MNT [THREADS]`: a file system that keeps nothing and answers everything at once, with the
//! checks that ACLs and extended attributes bring. No daemon that reads `/dev/fuse` and has these is faster (README, Measured).

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

/// As long as a mount of a benchmark lives.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);
/// What tells files from directories: their numbers are odd.
const FILE: u64 = 1;

/// A node is a number, and nothing else.
struct Floor(AtomicU64);

fn attr(ino: INodeNo) -> FileAttr {
    let is_file = ino != INodeNo::ROOT && ino.0 & FILE != 0;
    let (kind, perm) = if is_file { (FileType::RegularFile, 0o644) } else { (FileType::Directory, 0o777) };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        kind,
        perm,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Floor {
    fn new_node(&self, kind: u64) -> FileAttr {
        attr(INodeNo(self.0.fetch_add(2, Ordering::Relaxed) | kind))
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted =
            InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_HANDLE_KILLPRIV_V2 | InitFlags::FUSE_DONT_MASK;
        config
            .add_capabilities(wanted)
            .map_err(|lacking| io::Error::other(format!("the kernel lacks {lacking:?}")))
    }

    /// What exists was made, and is in the kernel's cache since.
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &attr(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&FOR_EVER, &attr(ino));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.entry(&FOR_EVER, &self.new_node(0), Generation(0));
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let file = self.new_node(FILE);
        reply.created(&FOR_EVER, &file, Generation(0), FileHandle(0), FopenFlags::FOPEN_NOFLUSH);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(u32::try_from(data.len()).unwrap_or(0));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.ok();
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: ReplyDirectory) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 0, 0, 4096, 255, 4096);
    }
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let point = arguments.next().ok_or_else(|| io::Error::other("floor MNT [THREADS]"))?;
    let threads = arguments.next().map_or(Ok(2), |n| n.parse()).map_err(io::Error::other)?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("floor".into()), MountOption::DefaultPermissions];
    config.n_threads = Some(threads);
    fuser::mount(Floor(AtomicU64::new(2)), point, &config)
}
