//! What a backend must tell besides to be a layer of an overlay.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::backend::{Backend, Make};
use crate::error::Result;
use crate::name::Name;
use crate::sys::creds::Caller;

/// A file handle as name_to_handle_at(2) gives it: it leads to one file for ever, by whatever name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileHandle {
    /// What the file system makes of the bytes (`handle_type`); a kernel that knows no such type refuses it.
    pub kind: i32,
    /// At most 128 bytes (`MAX_HANDLE_SZ`).
    pub bytes: Vec<u8>,
}

/// A backend that can be merged with others.
///
/// The inode numbers in its attributes and directory entries are its own (`Attr::ino`); the overlay tells those of
/// different layers apart by [`Layer::file_system`].
pub trait Layer: Backend {
    /// Whether what is open counts for what there is room for, and an overlay must tell what is opened and closed.
    const COUNTS_OPENS: bool;

    /// Whether errors of writing may be told when a file is closed, and not before (NFS).
    ///
    /// # Errors
    /// Those of looking at the file system.
    fn tells_late(&self) -> Result<bool>;
    /// A number that two layers share when their inode numbers are those of one file system.
    fn file_system(&self) -> u64;
    /// The UUID of the file system (`FS_IOC_GETFSUUID`); zeros where it has none or does not tell.
    fn uuid(&self) -> [u8; 16];
    /// The handle of a node; `None` where the file system has no handles.
    ///
    /// # Errors
    /// Those of finding the node.
    fn handle(&self, node: &Arc<Self::Node>) -> Result<Option<FileHandle>>;
    /// The inode number, as attributes show it, of the file that a handle of this layer's file system leads to; `None`
    /// where it leads to none (any longer).
    ///
    /// # Errors
    /// `EPERM` where the daemon may not ask (open_by_handle_at(2) needs CAP_DAC_READ_SEARCH).
    fn inode_of(&self, handle: &FileHandle) -> Result<Option<u64>>;
    /// Makes a character device 0/0, of the daemon's and without permissions: what hides a name of the layers below. It may
    /// be a further name of one that was made before.
    ///
    /// # Errors
    /// Those of mknod(2).
    fn make_whiteout(&self, dir: &Arc<Self::Node>, name: &Name) -> Result<()> {
        self.make(&Caller::DAEMON, dir, name, Make::Node(libc::S_IFCHR, 0)).map(drop)
    }
    /// Whiteouts may have lost names: one that is kept to be given further names is let go if that was its last. An open file without
    /// a name keeps its file system from being made read-only.
    fn release_whiteout(&self) {}
    /// The descriptor that holds the contents of an open file, to be cloned or copied from and to by the kernel;
    /// `None` where there is no single one.
    fn descriptor<'f>(&self, file: &'f Self::File) -> Option<BorrowedFd<'f>>;
}
