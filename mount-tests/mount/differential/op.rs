//! The operations of the differential test. They act on a few names, so that they meet each other.

use std::fmt::{self, Debug};

use rustix::fs::{FallocateFlags, OFlags, RenameFlags};

/// How many descriptors a sequence keeps.
pub(crate) const SLOTS: usize = 3;
/// The names that paths are made of.
pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// One operation and who performs it.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) who: Who,
    pub(crate) umask: u32,
    pub(crate) op: Op,
}

impl Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, umask {:03o}: {:?}", self.who, self.umask, self.op)
    }
}

/// A caller of the test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    Root,
    /// 1001:1001, and in group [`SHARED_GROUP`].
    Member,
    /// 1002:1002.
    Stranger,
}

pub(crate) const SHARED_GROUP: u32 = 3000;

impl Who {
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::Root => 0,
            Self::Member => 1001,
            Self::Stranger => 1002,
        }
    }

    pub(crate) fn groups(self) -> &'static [u32] {
        if self == Self::Member { &[SHARED_GROUP] } else { &[] }
    }
}

/// A path below the root of the test, as indices into [`NAMES`]; empty for the root itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct At(pub(crate) Vec<usize>);

impl At {
    pub(crate) fn relative(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|&index| NAMES[index]).collect();
        names.join("/")
    }

    pub(crate) fn parent(&self) -> Self {
        Self(self.0.split_last().map_or_else(Vec::new, |(_, parents)| parents.to_vec()))
    }
}

impl Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "." } else { "" })?;
        f.write_str(&self.relative())
    }
}

/// What an attribute operation acts on.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// Through a last symbolic link.
    Follow(At),
    /// The link itself.
    NoFollow(At),
    Open(usize),
}

/// The target of a symbolic link: no `..` alone, so that no path leaves the mount.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Beside(usize),
    Above(usize),
    Long(usize),
}

impl Target {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Beside(name) => NAMES[*name].to_owned(),
            Self::Above(name) => format!("../{}", NAMES[*name]),
            Self::Long(length) => "t".repeat(*length),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Special {
    Fifo,
    Socket,
    /// A character device of this number.
    Character(u32, u32),
    Block(u32, u32),
    Regular,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Time {
    At(i64, i64),
    Now,
    Omit,
}

/// Bytes that `length` and `fill` determine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data {
    pub(crate) length: usize,
    pub(crate) fill: u8,
}

impl Data {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let first = usize::from(self.fill);
        // Not of a page's period, and never zero.
        (first..first + self.length).map(|n| u8::try_from(n % 251).unwrap_or(0) + 1).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whence {
    Data,
    Hole,
    Set,
    End,
}

/// An access control list as the system.posix_acl_* attributes hold it.
#[derive(Clone)]
pub(crate) struct Acl(pub(crate) Vec<u8>);

impl Debug for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AclKind {
    Access,
    Default,
}

impl AclKind {
    pub(crate) fn attribute(self) -> &'static str {
        match self {
            Self::Access => "system.posix_acl_access",
            Self::Default => "system.posix_acl_default",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Mkdir(At, u32),
    Open {
        slot: usize,
        path: At,
        flags: OFlags,
        mode: u32,
    },
    Tmpfile {
        slot: usize,
        dir: At,
        exclusive: bool,
        mode: u32,
    },
    /// linkat(2) of an open file, through /proc.
    LinkOpen {
        slot: usize,
        path: At,
    },
    Mknod(At, Special, u32),
    Symlink(At, Target),
    Link {
        from: At,
        to: At,
        follow: bool,
    },
    Unlink(At),
    Rmdir(At),
    Rename {
        from: At,
        to: At,
        flags: RenameFlags,
    },
    Close(usize),
    Pread {
        slot: usize,
        offset: u64,
        length: usize,
    },
    Pwrite {
        slot: usize,
        offset: u64,
        data: Data,
    },
    /// writev(2) at the end, or where the descriptor stands.
    Append {
        slot: usize,
        parts: Vec<Data>,
        seek: bool,
    },
    Truncate(At, u64),
    Ftruncate(usize, u64),
    Fallocate {
        slot: usize,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    },
    Seek {
        slot: usize,
        whence: Whence,
        offset: u64,
    },
    CopyRange {
        from: usize,
        to: usize,
        from_offset: u64,
        to_offset: u64,
        length: usize,
    },
    /// Writes by a shared mapping, somewhere within the file, and msync(2).
    MapWrite {
        slot: usize,
        place: u32,
        data: Data,
    },
    Chmod(Object, u32),
    Chown(Object, Option<u32>, Option<u32>),
    Utimens(Object, Time, Time),
    Access {
        path: At,
        mode: u32,
        effective: bool,
    },
    SetXattr {
        object: Object,
        name: &'static str,
        value: Data,
        flags: u32,
    },
    GetXattr {
        object: Object,
        name: &'static str,
        room: usize,
    },
    ListXattr {
        object: Object,
        room: usize,
    },
    RemoveXattr {
        object: Object,
        name: &'static str,
    },
    SetAcl {
        object: Object,
        kind: AclKind,
        acl: Acl,
    },
    Stat(Object),
    Readdir(Object),
    Readlink(At),
    Fsync(usize),
}

impl Op {
    /// Every path that it names.
    pub(crate) fn paths(&self) -> Vec<&At> {
        match self {
            Self::Mkdir(path, _)
            | Self::Open { path, .. }
            | Self::Tmpfile { dir: path, .. }
            | Self::LinkOpen { path, .. }
            | Self::Mknod(path, ..)
            | Self::Symlink(path, _)
            | Self::Unlink(path)
            | Self::Rmdir(path)
            | Self::Truncate(path, _)
            | Self::Access { path, .. }
            | Self::Readlink(path) => vec![path],
            Self::Link { from, to, .. } | Self::Rename { from, to, .. } => vec![from, to],
            _ => match self.object() {
                Some(Object::Follow(path) | Object::NoFollow(path)) => vec![path],
                _ => vec![],
            },
        }
    }

    /// Every descriptor that it uses.
    pub(crate) fn slots(&self) -> Vec<usize> {
        match self {
            Self::Open { slot, .. }
            | Self::Tmpfile { slot, .. }
            | Self::LinkOpen { slot, .. }
            | Self::Close(slot)
            | Self::Pread { slot, .. }
            | Self::Pwrite { slot, .. }
            | Self::Append { slot, .. }
            | Self::Ftruncate(slot, _)
            | Self::Fallocate { slot, .. }
            | Self::Seek { slot, .. }
            | Self::MapWrite { slot, .. }
            | Self::Fsync(slot) => vec![*slot],
            Self::CopyRange { from, to, .. } => vec![*from, *to],
            _ => match self.object() {
                Some(Object::Open(slot)) => vec![*slot],
                _ => vec![],
            },
        }
    }

    /// Whether it gives what it acts on a new time of change, if it succeeds.
    pub(crate) fn changes_attributes(&self) -> bool {
        !matches!(
            self,
            Self::Open { .. }
                | Self::Close(_)
                | Self::Pread { .. }
                | Self::Seek { .. }
                | Self::Access { .. }
                | Self::GetXattr { .. }
                | Self::ListXattr { .. }
                | Self::Stat(_)
                | Self::Readdir(_)
                | Self::Readlink(_)
                | Self::Fsync(_)
        )
    }

    fn object(&self) -> Option<&Object> {
        match self {
            Self::Chmod(object, _)
            | Self::Chown(object, ..)
            | Self::Utimens(object, ..)
            | Self::SetXattr { object, .. }
            | Self::GetXattr { object, .. }
            | Self::ListXattr { object, .. }
            | Self::RemoveXattr { object, .. }
            | Self::SetAcl { object, .. }
            | Self::Stat(object)
            | Self::Readdir(object) => Some(object),
            _ => None,
        }
    }
}
