//! `cargo run --release --example floor -- MNT [THREADS [SOURCE [unopened]]]`: a file system that keeps nothing and answers everything at once, with the
//! checks that ACLs and extended attributes bring. With SOURCE it has the names and sizes of that directory, and every file is
//! zeros, which is opened unless it is said otherwise. No daemon that reads `/dev/fuse` and has these is faster (README, Measured).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

/// As long as a mount of a benchmark lives.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);
/// What tells files from directories: their numbers are odd.
const FILE: u64 = 1;

/// The most that a READ asks for.
const ZEROS: &[u8] = &[0; 1 << 20];

/// What a node of the source has.
struct Shown {
    size: u64,
    entries: Vec<(OsString, INodeNo)>,
}

/// A node is a number, and nothing else, unless it is shown.
struct Floor {
    next: AtomicU64,
    owner: (u32, u32),
    shown: HashMap<INodeNo, Shown>,
    unopened: bool,
}

fn attr(ino: INodeNo, size: u64, (uid, gid): (u32, u32)) -> FileAttr {
    let is_file = ino != INodeNo::ROOT && ino.0 & FILE != 0;
    let (kind, perm) = if is_file { (FileType::RegularFile, 0o644) } else { (FileType::Directory, 0o777) };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        kind,
        perm,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Floor {
    fn new_id(&self, kind: u64) -> INodeNo {
        INodeNo(self.next.fetch_add(2, Ordering::Relaxed) | kind)
    }

    fn new_node(&self, kind: u64) -> FileAttr {
        attr(self.new_id(kind), 0, self.owner)
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        attr(ino, self.shown.get(&ino).map_or(0, |shown| shown.size), self.owner)
    }

    fn entries(&self, ino: INodeNo) -> &[(OsString, INodeNo)] {
        self.shown.get(&ino).map_or(&[], |shown| &shown.entries)
    }

    /// Shows what is in the directory.
    fn show(&mut self, ino: INodeNo, dir: &Path) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let id = self.new_id(if metadata.is_dir() { 0 } else { FILE });
            entries.push((entry.file_name(), id));
            if metadata.is_dir() {
                self.show(id, &entry.path())?;
            } else {
                self.shown.insert(id, Shown { size: metadata.len(), entries: Vec::new() });
            }
        }
        self.shown.insert(ino, Shown { size: 0, entries });
        Ok(())
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS;
        config
            .add_capabilities(wanted)
            .map_err(|lacking| io::Error::other(format!("the kernel lacks {lacking:?}")))
    }

    /// What exists is shown, or was made, and is in the kernel's cache since.
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.entries(parent).iter().find(|(entry, _)| entry == name) {
            Some((_, ino)) => reply.entry(&FOR_EVER, &self.attr(*ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.unopened {
            // The kernel opens by itself from then on.
            return reply.error(Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.attr(ino).size.saturating_sub(offset);
        let length = usize::try_from(left.min(u64::from(size))).unwrap_or(0).min(ZEROS.len());
        reply.data(&ZEROS[..length]);
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (name, ino)) in self.entries(ino).iter().enumerate().skip(from) {
            let full = reply.add(*ino, index as u64 + 1, name, &FOR_EVER, &self.attr(*ino), Generation(0));
            if full {
                break;
            }
        }
        reply.ok();
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attr(ino));
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
        reply.attr(&FOR_EVER, &self.attr(ino));
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
    let point =
        arguments.next().ok_or_else(|| io::Error::other("floor MNT [THREADS [SOURCE [unopened]]]"))?;
    let threads = arguments.next().map_or(Ok(2), |n| n.parse()).map_err(io::Error::other)?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("floor".into()), MountOption::DefaultPermissions];
    config.n_threads = Some(threads);
    let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut floor = Floor { next: AtomicU64::new(2), owner, shown: HashMap::new(), unopened: false };
    if let Some(source) = arguments.next() {
        floor.show(INodeNo::ROOT, Path::new(&source))?;
    }
    floor.unopened = arguments.next().is_some_and(|word| word == "unopened");
    fuser::mount(floor, point, &config)
}
