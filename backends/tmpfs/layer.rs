//! A file system in memory as the upper layer of an overlay.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use splicefs_core::{FileHandle, Layer, Result};

use crate::{File, Node, Tmpfs};

/// What no `st_dev` is: device numbers have 32 bits (`dev_t` in include/linux/types.h).
const NOT_A_DEVICE: u64 = u64::MAX;

impl Layer for Tmpfs {
    const COUNTS_OPENS: bool = true;

    fn tells_late(&self) -> Result<bool> {
        Ok(false)
    }

    fn file_system(&self) -> u64 {
        NOT_A_DEVICE
    }

    /// None: it would end with the process, and so would everything that it could be compared with.
    fn uuid(&self) -> [u8; 16] {
        [0; 16]
    }

    fn handle(&self, _node: &Arc<Node>) -> Result<Option<FileHandle>> {
        Ok(None)
    }

    fn inode_of(&self, _handle: &FileHandle) -> Result<Option<u64>> {
        Ok(None)
    }

    /// None: the limits would not know of what is written past them.
    fn descriptor<'f>(&self, _file: &'f File) -> Option<BorrowedFd<'f>> {
        None
    }
}
