//! Attributes of nodes and of the file system.

use std::ops::BitOr;

/// A point in time, as the kernel keeps it: seconds before or after 1970 and nanoseconds after that second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00:00 UTC; negative before.
    pub sec: i64,
    /// Nanoseconds after `sec`, under 1,000,000,000.
    pub nsec: u32,
}

/// The type bits of a mode (inode(7)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// `S_IFREG`
    Regular,
    /// `S_IFDIR`
    Directory,
    /// `S_IFLNK`
    Symlink,
    /// `S_IFIFO`
    Fifo,
    /// `S_IFSOCK`
    Socket,
    /// `S_IFCHR`
    CharDevice,
    /// `S_IFBLK`
    BlockDevice,
    /// Anything else that a directory says it holds (`DT_UNKNOWN`).
    Unknown,
}

impl FileKind {
    /// The kind in the type bits of `mode`.
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFBLK => Self::BlockDevice,
            _ => Self::Unknown,
        }
    }

    /// The `DT_` constant of readdir(3), which is the type bits of the mode shifted down.
    pub fn to_dtype(self) -> u32 {
        let mode = match self {
            Self::Regular => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::CharDevice => libc::S_IFCHR,
            Self::BlockDevice => libc::S_IFBLK,
            Self::Unknown => 0,
        };
        mode >> 12
    }
}

/// What stat(2) tells of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The inode number callers see (`st_ino`), which is not the node's id.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the node.
    pub ctime: Timestamp,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding (`new_encode_dev`).
    pub rdev: u32,
    /// Preferred length of a read or write, in bytes.
    pub blksize: u32,
    /// What its file system keeps everybody from doing to it (`stx_attributes` of statx(2)).
    pub protection: Protection,
}

/// What keeps everybody, root included, from changing a file or its names.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Protection {
    /// It only grows (`chattr +a`).
    pub append: bool,
    /// It does not change at all (`chattr +i`).
    pub immutable: bool,
}

impl Protection {
    /// Whether there is any.
    #[must_use]
    pub fn any(self) -> bool {
        self.append || self.immutable
    }
}

impl BitOr for Protection {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { append: self.append || other.append, immutable: self.immutable || other.immutable }
    }
}

impl Attr {
    /// The kind of node.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode)
    }
}

/// How a time is to be set (utimensat(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// To the moment of the call (`UTIME_NOW`).
    Now,
    /// To this.
    At(Timestamp),
}

/// Which attributes are to be changed; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
}

/// What statfs(2) tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Total size, in units of `frsize`.
    pub blocks: u64,
    /// Free, in units of `frsize`.
    pub bfree: u64,
    /// Free to unprivileged users, in units of `frsize`.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred length of a read or write, in bytes.
    pub bsize: u32,
    /// Fragment size, in bytes.
    pub frsize: u32,
    /// Longest name, in bytes.
    pub namelen: u32,
}
