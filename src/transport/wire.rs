//! The structures of the FUSE protocol that we read and write (include/uapi/linux/fuse.h, version 7.31 and later).

#![allow(missing_docs, reason = "the kernel's header documents them under these names")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! structures {
    ($derive:ident: $($name:ident { $($field:ident: $kind:ty),* $(,)? })*) => { $(
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, $derive, Immutable, KnownLayout)]
        pub(crate) struct $name { $(pub(crate) $field: $kind),* }
    )* };
}

structures! { FromBytes:
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    ForgetIn { nlookup: u64 }
    BatchForgetIn { count: u32, dummy: u32 }
    ForgetOne { nodeid: u64, nlookup: u64 }
    GetattrIn { flags: u32, dummy: u32, fh: u64 }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { newdir: u64 }
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    LinkIn { oldnodeid: u64 }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    OpenIn { flags: u32, open_flags: u32 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    GetxattrIn { size: u32, padding: u32 }
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    PollIn { fh: u64, kh: u64, flags: u32, events: u32 }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
}

structures! { IntoBytes:
    AttrOutBody {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: AttrOutBody }
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: AttrOutBody,
    }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    WriteOut { size: u32, padding: u32 }
    CopyOut { bytes_copied: u64 }
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    GetxattrOut { size: u32, padding: u32 }
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    PollOut { revents: u32, padding: u32 }
    PollWakeupOut { kh: u64 }
    InvalInodeOut { ino: u64, off: i64, len: i64 }
    InvalEntryOut { parent: u64, namelen: u32, flags: u32 }
    StoreOut { nodeid: u64, offset: u64, size: u32, padding: u32 }
    LseekOut { offset: u64 }
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}

/// `FUSE_ROOT_ID` aside, the constants of requests.
pub(crate) mod flag {
    pub(crate) const GETATTR_FH: u32 = 1;
    pub(crate) const FATTR_MODE: u32 = 1;
    pub(crate) const FATTR_UID: u32 = 1 << 1;
    pub(crate) const FATTR_GID: u32 = 1 << 2;
    pub(crate) const FATTR_SIZE: u32 = 1 << 3;
    pub(crate) const FATTR_ATIME: u32 = 1 << 4;
    pub(crate) const FATTR_MTIME: u32 = 1 << 5;
    pub(crate) const FATTR_FH: u32 = 1 << 6;
    pub(crate) const FATTR_ATIME_NOW: u32 = 1 << 7;
    pub(crate) const FATTR_MTIME_NOW: u32 = 1 << 8;
    pub(crate) const FATTR_LOCKOWNER: u32 = 1 << 9;
    pub(crate) const FATTR_KILL_SUIDGID: u32 = 1 << 11;
    pub(crate) const OPEN_KILL_SUIDGID: u32 = 1;
    pub(crate) const WRITE_CACHE: u32 = 1;
    pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub(crate) const FSYNC_FDATASYNC: u32 = 1;
    pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1;
    pub(crate) const IOCTL_UNRESTRICTED: u32 = 1 << 1;
    pub(crate) const IOCTL_DIR: u32 = 1 << 4;
    pub(crate) const POLL_SCHEDULE_NOTIFY: u32 = 1;
    pub(crate) const FOPEN_DIRECT_IO: u32 = 1;
    pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const FOPEN_CACHE_DIR: u32 = 1 << 3;
    pub(crate) const FOPEN_NONSEEKABLE: u32 = 1 << 2;
    pub(crate) const FOPEN_STREAM: u32 = 1 << 4;
    pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;
    pub(crate) const FOPEN_PASSTHROUGH: u32 = 1 << 7;
    /// Message code of a poll wake-up (`FUSE_NOTIFY_POLL`).
    pub(crate) const NOTIFY_POLL: i32 = 1;
    /// Message code of an invalidation of attributes or data (`FUSE_NOTIFY_INVAL_INODE`).
    pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;
    /// Message code of an invalidation of a name (`FUSE_NOTIFY_INVAL_ENTRY`).
    pub(crate) const NOTIFY_INVAL_ENTRY: i32 = 3;
    /// Message code of data for the page cache (`FUSE_NOTIFY_STORE`).
    pub(crate) const NOTIFY_STORE: i32 = 4;
    /// Message code of an invalidation of all names (`FUSE_NOTIFY_INC_EPOCH`).
    pub(crate) const NOTIFY_INC_EPOCH: i32 = 8;
    /// The name is looked up once more, instead of being dropped.
    pub(crate) const EXPIRE_ONLY: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths that the kernel's header gives.
    #[test]
    fn structures_have_the_kernels_lengths() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<IoctlIn>(), 32);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<AttrOutBody>(), 88);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<Dirent>(), 24);
    }
}
