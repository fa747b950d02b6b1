//! Identifiers that travel to the kernel. None of them is an inode number, a descriptor or an address.

use std::fmt;

/// A node of the mounted file system, as the kernel names it in requests.
///
/// Ids are handed out in ascending order and never used twice in the life of a mount, so a late request for a
/// forgotten node can never reach another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount (`FUSE_ROOT_ID` in include/uapi/linux/fuse.h).
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// An open file or directory stream, as the kernel names it in requests. Never used twice in the life of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HandleId(pub u64);

/// A position in a directory stream: where the entry after this one is found (`d_off` of getdents64(2)).
///
/// Opaque to everyone but the backend that made it. `Cookie::START` is the beginning of every directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The beginning of a directory stream, what rewinddir(3) goes back to.
    pub const START: Self = Self(0);
}

/// The owner or group of a file that has no id in the daemon's user namespace, where the kernel says the overflow id in its stead
/// (user_namespaces(7)). No namespace gives this number an id: told it, the kernel knows the file's owner as little as we do, shows
/// the overflow id itself, and refuses changes (`HAS_UNMAPPED_ID` in include/linux/fs.h).
pub const NO_ID: u32 = u32::MAX - 1;
