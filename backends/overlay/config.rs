//! How layers are merged.

use crate::owners::Owners;

/// In which extended attributes an upper layer says what it hides and where it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// `trusted.overlay.*`, which only root can read and write.
    Trusted,
    /// `user.overlay.*` (`userxattr`).
    User,
}

/// What becomes of a directory of a lower layer when it is renamed, and of one that was (`redirect_dir=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Redirect {
    /// It leads to its lower directory by a redirect; redirects are followed.
    On,
    /// All of it is copied up and it becomes opaque, which needs no redirect; redirects are followed.
    Copy,
    /// Renaming it is refused (`EXDEV`); redirects are followed.
    Follow,
    /// Renaming it is refused (`EXDEV`); redirects are not followed.
    NoFollow,
}

/// How inode numbers of layers of different file systems are told apart (`xino=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Xino {
    /// By the upper bits, where they are free; by a hash where they are not.
    On,
    /// Not at all: numbers are those of the layers.
    Off,
}

/// Who owns a copy whose owner or group the daemon may not give (`copyup_owner=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyupOwner {
    /// Nobody: the change that needs the copy is refused, as the kernel refuses it.
    Keep,
    /// The daemon's user, and its group where the group cannot be given either. Permissions are narrowed, so that nobody but
    /// that user gains any.
    Mounter,
}

/// How layers are merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where the upper layer's own attributes are kept.
    pub namespace: Namespace,
    /// Renamed directories.
    pub redirect: Redirect,
    /// A change of attributes alone copies no data (`metacopy=on`).
    pub metacopy: bool,
    /// Hard links of a lower file stay one file when it is copied up (`index=on`).
    pub index: bool,
    /// Inode numbers.
    pub xino: Xino,
    /// Nothing is made durable (`volatile`, `fsync=0`).
    pub volatile: bool,
    /// Directories are shown with one link each (`static_nlink`).
    pub static_nlink: bool,
    /// Whose the files are, if not whose they are in the layers.
    pub owners: Owners,
    /// Files have POSIX ACLs.
    pub acls: bool,
    /// Whose a copy is, if not whose the lower file is.
    pub copyup_owner: CopyupOwner,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: Namespace::Trusted,
            redirect: Redirect::On,
            metacopy: false,
            index: true,
            xino: Xino::On,
            volatile: false,
            static_nlink: false,
            owners: Owners::default(),
            acls: true,
            copyup_owner: CopyupOwner::Keep,
        }
    }
}
