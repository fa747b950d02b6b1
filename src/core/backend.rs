//! What a backend is: a file system without a protocol.

use std::fmt;
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::attr::{Attr, FileKind, SetAttr, StatFs};
use crate::changes::Listener;
use crate::error::{Errno, Result};
use crate::id::{Cookie, NodeId};
use crate::name::Name;
use crate::plan::{ReadPlan, Span};
use crate::sys::creds::{Caller, Guard};
use crate::table::Identified;

/// A node that a name led to.
#[derive(Debug)]
pub struct Entry<N> {
    /// The node.
    pub node: Arc<N>,
    /// Its attributes now.
    pub attr: Attr,
}

/// Flags of open(2), as the kernel hands them over (it keeps `O_CREAT`, `O_EXCL` and `O_NOCTTY` to itself in OPEN).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags(pub i32);

impl OpenFlags {
    /// Whether every bit of `flag` is set.
    pub fn has(self, flag: i32) -> bool {
        self.0 & flag == flag
    }

    /// Whether the file is opened for writing.
    pub fn writes(self) -> bool {
        matches!(self.0 & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
    }

    /// Whether the file is opened for reading.
    pub fn reads(self) -> bool {
        matches!(self.0 & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR)
    }
}

impl fmt::Debug for OpenFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#o}", self.0)
    }
}

/// An open file and what the kernel must know of it.
#[derive(Debug)]
pub struct Opened<F> {
    /// The file.
    pub file: F,
    /// Reads and writes must reach the backend each time: the file's size does not say how much it holds.
    pub direct_io: bool,
    /// The file has no offsets; it is read from where it stands.
    pub stream: bool,
    /// Opening changed attributes other than the size: what the kernel was told of them is true no longer.
    pub changed: bool,
}

/// How [`Backend::create`] and [`Backend::tmpfile`] open what they create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateFlags {
    /// The flags of open(2).
    pub open: OpenFlags,
    /// Fail with `EEXIST` where the name is taken.
    pub exclusive: bool,
}

/// What [`Backend::make`] creates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Make<'a> {
    /// A directory with these permission bits.
    Directory(u32),
    /// A regular file, FIFO, socket or device: mode with type bits, and the device number (kernel's 32-bit encoding).
    Node(u32, u32),
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RenameFlags(pub u32);

/// Flags of setxattr(2), and what FUSE adds to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XattrFlags {
    /// `XATTR_CREATE` or `XATTR_REPLACE`, else 0.
    pub flags: i32,
    /// An access ACL is set by one who is not in the file's group: clear the setgid bit
    /// (`FUSE_SETXATTR_ACL_KILL_SGID`).
    pub kill_sgid: bool,
}

/// How data is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteMode {
    /// At the end of the file, wherever that is (`O_APPEND`).
    pub append: bool,
    /// The kernel writes a page of its cache back: the offset counts even for an appending file, and the length need
    /// not suit `O_DIRECT`.
    pub from_page_cache: bool,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTo {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// A request of ioctl(2) whose buffers the kernel has sized from the command.
#[derive(Clone, Copy, Debug)]
pub struct Ioctl<'a> {
    /// The command.
    pub command: u32,
    /// What the caller hands over.
    pub input: &'a [u8],
    /// How many bytes the caller takes back, at most.
    pub output_len: usize,
}

/// One entry of a directory stream.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The name, which may be `.` or `..`.
    pub name: &'a [u8],
    /// The inode number callers see (`d_ino`).
    pub ino: u64,
    /// The kind, if the directory knows it.
    pub kind: FileKind,
    /// Where the entry after this one is found.
    pub next: Cookie,
}

/// Who changes the files of a backend, and so how far the kernel may rely on what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// Others as well: what the kernel keeps must be asked for again.
    Shared,
    /// The kernel's requests alone: what it keeps stays true.
    Exclusive,
}

/// Takes the entries of a directory until it is full: [`ControlFlow::Break`] says that this entry was not taken.
pub type DirSink<'a> = dyn FnMut(DirEntry<'_>) -> ControlFlow<()> + 'a;

/// A file system: nodes, names, contents, and where the bytes of a read are.
///
/// Callers are checked before the backend is asked (`default_permissions`); the backend sees to what depends on who
/// asks: ownership of what is created, setuid and setgid bits. Every method may be called from several threads.
pub trait Backend: Send + Sync + 'static {
    /// A node. The kernel's references to it are counted by the serving code, which holds one `Arc` for them all.
    type Node: Identified + Send + Sync + 'static;
    /// An open file.
    type File: Send + Sync + 'static;
    /// An open directory stream.
    type Dir: Send + Sync + 'static;

    /// The backend's name on the command line and in `stats`.
    const NAME: &'static str;
    /// Who changes the files.
    const OWNERSHIP: Ownership;

    /// Whether it makes a difference to the backend when a file is opened and when it is closed.
    const HEARS_OPENS: bool;
    /// Whether there are files that [`Backend::backing`] names.
    const HAS_BACKING: bool;

    /// The root directory, whose id is [`NodeId::ROOT`](crate::NodeId::ROOT).
    fn root(&self) -> Arc<Self::Node>;
    /// Whether what is seen of the node, and below it, depends on who looks (procfs): nothing of it is the kernel's to keep.
    fn depends_on_caller(&self, _node: &Arc<Self::Node>) -> bool {
        false
    }
    /// Makes the thread see of such a node what `caller` would, until the guard is dropped.
    ///
    /// # Errors
    /// `EACCES` where the daemon cannot.
    fn look_as(&self, _caller: &Caller, _node: &Arc<Self::Node>) -> Result<Guard> {
        Ok(Guard::none())
    }
    /// The node that `name` leads to.
    fn lookup(&self, parent: &Arc<Self::Node>, name: &Name) -> Result<Entry<Self::Node>>;
    /// The attributes, through the open file where there is one.
    fn getattr(&self, node: &Arc<Self::Node>, file: Option<&Self::File>) -> Result<Attr>;
    /// Changes attributes and returns them all. Setuid, setgid and capabilities are cleared as a local file system
    /// clears them for `caller` (fs/attr.c).
    fn setattr(
        &self,
        caller: &Caller,
        node: &Arc<Self::Node>,
        file: Option<&Self::File>,
        change: &SetAttr,
    ) -> Result<Attr>;
    /// The target of a symbolic link.
    fn readlink(&self, caller: &Caller, node: &Arc<Self::Node>) -> Result<Vec<u8>>;
    /// Creates a node that is not opened.
    fn make(
        &self,
        caller: &Caller,
        parent: &Arc<Self::Node>,
        name: &Name,
        what: Make<'_>,
    ) -> Result<Entry<Self::Node>>;
    /// Gives a node one more name.
    fn link(
        &self,
        node: &Arc<Self::Node>,
        parent: &Arc<Self::Node>,
        name: &Name,
    ) -> Result<Entry<Self::Node>>;
    /// Removes a name that leads to anything but a directory.
    fn unlink(&self, parent: &Arc<Self::Node>, name: &Name) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: &Arc<Self::Node>, name: &Name) -> Result<()>;
    /// Removes a name for `caller`, of an empty directory if `directory`, else of anything else. What is removed may be another file than
    /// the one that the kernel has checked the caller's right to remove, where others change names, too.
    fn remove(&self, _caller: &Caller, parent: &Arc<Self::Node>, name: &Name, directory: bool) -> Result<()> {
        if directory { self.rmdir(parent, name) } else { self.unlink(parent, name) }
    }
    /// Renames, as renameat2(2). `caller` owns the whiteout that `RENAME_WHITEOUT` leaves.
    fn rename(
        &self,
        caller: &Caller,
        from: (&Arc<Self::Node>, &Name),
        to: (&Arc<Self::Node>, &Name),
        flags: RenameFlags,
    ) -> Result<()>;

    /// Opens a regular file.
    fn open(&self, caller: &Caller, node: &Arc<Self::Node>, flags: OpenFlags) -> Result<Opened<Self::File>>;
    /// Creates a regular file and opens it.
    #[allow(clippy::type_complexity, reason = "a pair of two named types")]
    fn create(
        &self,
        caller: &Caller,
        parent: &Arc<Self::Node>,
        name: &Name,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Self::Node>, Opened<Self::File>)>;
    /// Creates and opens a regular file without a name (`O_TMPFILE`).
    #[allow(clippy::type_complexity, reason = "a pair of two named types")]
    fn tmpfile(
        &self,
        caller: &Caller,
        parent: &Arc<Self::Node>,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Entry<Self::Node>, Opened<Self::File>)>;
    /// Says where the bytes of `span` are: calls `execute` with the plan, once, and keeps what the plan speaks of as it
    /// is until `execute` returns. The plan is shorter than the span only at the end of the file. Where this fails,
    /// `execute` has not been called.
    fn plan_read(&self, file: &Self::File, span: Span, execute: &mut dyn FnMut(&ReadPlan<'_>)) -> Result<()>;
    /// The descriptor of the file that the kernel may read, write and map in the daemon's stead (kernel passthrough): one that
    /// holds all of the contents, is never another's, and of whose changes the backend need not hear. `None` where the daemon
    /// must be asked.
    fn backing(&self, file: &Self::File) -> Option<Arc<OwnedFd>>;
    /// Whether the contents of a file that was opened for reading, and that nobody has open otherwise, should go into the kernel's page
    /// cache at once: until somebody opens the file for writing or truncates it they stay what they are, and they were not
    /// [prefetched](Backend::prefetched) before.
    fn is_worth_prefetching(&self, _file: &Self::File) -> bool {
        false
    }
    /// The contents have been prefetched, or are too many.
    fn prefetched(&self, _file: &Self::File) {}
    /// Whether an open file takes nothing but what is appended (`chattr +a`), and so no pages of a cache.
    fn only_grows(&self, _file: &Self::File) -> Result<bool> {
        Ok(false)
    }
    /// Whether a write to the file may be refused for a reason that can be known before. Where nothing is opened, the kernel is then made to
    /// ask ([`Backend::prepare_write`]).
    fn may_refuse_writes(&self, _node: &Arc<Self::Node>) -> bool {
        false
    }
    /// Does what must be done before the file can be written, and could fail.
    fn prepare_write(&self, _node: &Arc<Self::Node>) -> Result<()> {
        Ok(())
    }
    /// The nodes whose attributes have changed without a request to change them, since this was asked last: the kernel is to look at them
    /// again.
    fn take_changed(&self) -> Vec<NodeId> {
        Vec::new()
    }
    /// Where the node is in the mount, for messages; `None` where that is not known.
    fn path_of(&self, _node: &Arc<Self::Node>) -> Option<PathBuf> {
        None
    }
    /// The type and permission bits of an open file.
    fn mode(&self, file: &Self::File) -> Result<u32>;
    /// Writes all of `data` or as much as there is room for, and returns how much. As with every change of contents,
    /// setuid and setgid bits go unless `caller` may keep them ([`Caller::fsetid`]), and file capabilities always.
    fn write(
        &self,
        caller: &Caller,
        file: &Self::File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize>;
    /// Whether closing the file may have an error to tell ([`Backend::flush`]): where writing goes on after write(2) has returned,
    /// and close(2) says how it ended.
    fn tells_at_close(&self, file: &Self::File) -> bool;
    /// Whether no file ever does: the kernel need not ask again.
    fn never_tells_at_close(&self) -> bool {
        false
    }
    /// A descriptor of the file is closed: errors of earlier writes may be told now.
    fn flush(&self, file: &Self::File) -> Result<()>;
    /// Makes the contents durable, and the attributes unless `data_only`.
    fn fsync(&self, file: &Self::File, data_only: bool) -> Result<()>;
    /// As fallocate(2), with its mode bits.
    fn fallocate(&self, caller: &Caller, file: &Self::File, mode: u32, offset: u64, len: u64) -> Result<()>;
    /// The next data or hole at or after `offset`.
    fn seek(&self, file: &Self::File, offset: u64, to: SeekTo) -> Result<u64>;
    /// As copy_file_range(2); returns the number of bytes copied.
    fn copy_range(
        &self,
        caller: &Caller,
        from: (&Self::File, u64),
        to: (&Self::File, u64),
        len: usize,
    ) -> Result<usize>;
    /// A descriptor that poll(2) tells the readiness of; `None` for a file that is always ready.
    fn pollable<'f>(&self, file: &'f Self::File) -> Option<BorrowedFd<'f>>;
    /// As ioctl(2) on an open file; returns the result and what goes back to the caller.
    fn ioctl_file(&self, file: &Self::File, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)>;
    /// As ioctl(2) on an open directory.
    fn ioctl_dir(&self, dir: &Self::Dir, request: Ioctl<'_>) -> Result<(i32, Vec<u8>)>;

    /// Opens a directory stream.
    fn opendir(&self, node: &Arc<Self::Node>) -> Result<Self::Dir>;
    /// Hands entries from `from` on to `sink` until it is full or the directory ends. `hint` is the number of bytes
    /// of names worth reading at once.
    fn read_dir(&self, dir: &Self::Dir, from: Cookie, hint: usize, sink: &mut DirSink<'_>) -> Result<()>;
    /// Whether the entries of the stream stay what they are, inode numbers included, until the directory's own time of
    /// modification changes. Only where the kernel alone changes files does it keep entries at all.
    fn keeps_entries(&self, _dir: &Self::Dir) -> bool {
        true
    }
    /// A number that stays the same as long as no change of the node by others, and of a directory's names, can be missed;
    /// `None` where one can. It is asked where changes are to be heard of.
    fn hears(&self, _node: &Arc<Self::Node>) -> Option<u64> {
        None
    }
    /// What hears of changes by others.
    ///
    /// # Errors
    /// Why nothing does.
    fn listener(&self) -> Result<Arc<dyn Listener>> {
        Err(Errno::EOPNOTSUPP.into())
    }
    /// Makes a directory's entries durable.
    fn fsyncdir(&self, dir: &Self::Dir, data_only: bool) -> Result<()>;

    /// A number of the file system that answers for `node`: what hangs in one hangs in all of it. Known without a look.
    fn file_system_of(&self, _node: &Self::Node) -> u64 {
        0
    }

    /// Size and room of the file system that holds `node`.
    fn statfs(&self, node: &Arc<Self::Node>) -> Result<StatFs>;
    /// The value of an extended attribute, of at most `limit` bytes (`ERANGE` over that).
    fn getxattr(&self, node: &Arc<Self::Node>, name: &std::ffi::CStr, limit: usize) -> Result<Vec<u8>>;
    /// The names of the extended attributes, each ended by a NUL, of at most `limit` bytes.
    fn listxattr(&self, node: &Arc<Self::Node>, limit: usize) -> Result<Vec<u8>>;
    /// Sets an extended attribute.
    fn setxattr(
        &self,
        caller: &Caller,
        node: &Arc<Self::Node>,
        name: &std::ffi::CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()>;
    /// Removes an extended attribute.
    fn removexattr(&self, node: &Arc<Self::Node>, name: &std::ffi::CStr) -> Result<()>;

    /// Changes the mounted file system as mount options in a text ask, all of them or none.
    fn reconfigure(&self, options: &str) -> Result<()> {
        log::debug!("{} has nothing to change to `{options}`", Self::NAME);
        Err(Errno::EOPNOTSUPP.into())
    }
}
