//! What a mount in memory is made with.

use std::num::NonZeroU64;

/// When reading updates access times (mount(8)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Atime {
    /// Where the access time is not later than the last change, or older than a day (`relatime`, the kernel's default).
    #[default]
    Relative,
    /// With every read that reaches the daemon (`strictatime`).
    Strict,
    /// Never (`noatime`).
    Never,
}

/// What the mount is made with. The names are those of tmpfs(5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `size=` and `nr_blocks=`: the most pages of 4 KiB that files may take; `None` for no limit.
    pub pages: Option<NonZeroU64>,
    /// `nr_inodes=`: the most inodes; `None` for no limit.
    pub inodes: Option<NonZeroU64>,
    /// `mode=`: permission bits of the root.
    pub mode: u32,
    /// `uid=`: owner of the root.
    pub uid: u32,
    /// `gid=`: group of the root.
    pub gid: u32,
    /// `inode32`: inode numbers stay under 2^32 and may come again after that many.
    pub inode32: bool,
    /// When reading updates access times.
    pub atime: Atime,
}
